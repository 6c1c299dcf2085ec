// The panel that adds stems: many files, sent in small groups, each with its own state.

import { getJson } from "./api.js";
import { byId, link, make } from "./elements.js";
import * as format from "./format.js";

const GROUP_FILES = 4;
const GROUP_BYTES = 32 * 2 ** 20;
const POLL_MS = [400, 800, 1500, 2500]; // the last one repeats
const TEXT = {
  waiting: "waiting",
  sending: "sending…",
  queued: "embedding…",
  ready: "ready",
  known: "already in the catalog",
  failed: "failed",
};

const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

export class Ingest {
  #entries = []; // { file, row, title, instrument, state, stateText }
  #instruments = [];
  #changed;
  #busy = false;

  /** `changed` is called when stems became ready. */
  constructor(changed) {
    this.#changed = changed;
    byId("add-files").addEventListener("change", (event) => {
      this.add(event.target.files);
      event.target.value = "";
    });
    byId("add-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#send();
    });
    byId("add-clear").addEventListener("click", () => {
      this.#entries.filter((entry) => entry.state === "ready").forEach((entry) => entry.row.remove());
      this.#entries = this.#entries.filter((entry) => entry.state !== "ready");
      this.#summarise();
      byId("add-files").focus(); // the button is gone
    });
  }

  /** Offer the catalog's own words. */
  offer(choices) {
    this.#instruments = choices.instrument;
    for (const [id, values] of [["known-instruments", choices.instrument], ["known-collections", choices.collection], ["known-keys", choices.key]]) {
      byId(id).replaceChildren(...values.map((value) => make("option", { value })));
    }
  }

  add(files) {
    for (const file of files) {
      const base = file.name.replace(/\.[^.]+$/, "");
      const words = base.toLowerCase().split(/[^\p{L}\p{N}]+/u);
      const guess = this.#instruments.find((name) => words.includes(name.toLowerCase())) ?? "";
      const entry = { file, state: "waiting" };
      entry.title = make("input", { value: base, maxLength: 200, autocomplete: "off", "aria-label": `Title of ${file.name}` });
      entry.instrument = make("input", { value: guess, maxLength: 80, autocomplete: "off", placeholder: "instrument", "aria-label": `Instrument of ${file.name}` });
      entry.instrument.setAttribute("list", "known-instruments");
      entry.stateText = make("span", { className: "add-state" });
      entry.remove = link("Leave out", () => this.#remove(entry), { "aria-label": `Leave out ${file.name}` });
      entry.row = make(
        "li",
        { "data-file": file.name },
        make("span", { className: "add-name" }, make("strong", { title: file.name }, file.name), make("span", { className: "quiet" }, format.bytes(file.size))),
        entry.title,
        entry.instrument,
        make("span", { className: "add-end" }, entry.stateText, entry.remove),
      );
      this.#entries.push(entry);
      byId("add-list").append(entry.row);
      this.#state(entry, "waiting");
    }
    this.#summarise();
  }

  #remove(entry) {
    entry.row.remove();
    this.#entries = this.#entries.filter((other) => other !== entry);
    this.#summarise();
    byId("add-files").focus();
  }

  #state(entry, state, problem = null) {
    entry.state = state === "known" ? "ready" : state;
    entry.row.dataset.state = entry.state;
    entry.stateText.textContent = problem ? [problem.title, problem.detail].filter(Boolean).join(": ") : TEXT[state];
    const open = state === "waiting" || state === "failed";
    entry.title.disabled = entry.instrument.disabled = !open;
    entry.remove.hidden = !open;
  }

  #summarise(text = null) {
    const of = (...states) => this.#entries.filter((entry) => states.includes(entry.state)).length;
    const open = of("waiting", "failed");
    const send = byId("add-send");
    send.disabled = this.#busy || !open;
    send.textContent = open ? `Add ${format.count(open, "stem")}` : "Add stems";
    byId("add-clear").hidden = !of("ready");
    const said = [
      of("sending", "queued") ? `${of("sending", "queued")} under way` : null,
      of("ready") ? `${of("ready")} ready` : null,
      of("failed") ? `${of("failed")} failed` : null,
    ].filter(Boolean);
    byId("add-state").textContent = text ?? said.join(", ");
  }

  #metadata(entry) {
    const text = (id) => byId(id).value.trim() || null;
    const tempo = text("add-tempo");
    return {
      title: entry.title.value.trim() || null,
      instrument: entry.instrument.value.trim() || null,
      track: text("add-track"),
      collection: text("add-collection"),
      key: text("add-key"),
      tempo_bpm: tempo === null ? null : Number(tempo),
      tags: byId("add-tags").value.split(",").map((tag) => tag.trim()).filter(Boolean),
    };
  }

  async #send() {
    if (this.#busy) return;
    this.#busy = true;
    const open = this.#entries.filter((entry) => entry.state === "waiting" || entry.state === "failed");
    const watched = [];
    for (const entry of open) this.#state(entry, "waiting");
    // Groups are posted one after the other; their jobs are watched side by side.
    for (const group of groups(open)) watched.push(...(await this.#sendGroup(group)));
    await Promise.all(watched);
    this.#busy = false;
    this.#summarise();
    this.#changed();
  }

  /** Posts one group; returns the watches over its jobs. */
  async #sendGroup(group) {
    for (const entry of group) this.#state(entry, "sending");
    this.#summarise();
    const data = new FormData();
    for (const { file } of group) data.append("files", file, file.name);
    data.append("metadata", JSON.stringify(group.map((entry) => this.#metadata(entry))));
    try {
      const job = await this.#patiently(() => getJson("stems", { method: "POST", body: data }));
      return [this.#watch(job, group)];
    } catch (problem) {
      const watched = [];
      if ((problem.status === 413 || problem.type === "unreadable") && group.length > 1) {
        for (const entry of group) watched.push(...(await this.#sendGroup([entry])));
      } else {
        for (const entry of group) this.#state(entry, "failed", problem);
        this.#summarise();
      }
      return watched;
    }
  }

  /** A service that is busy says when to come back; it is believed, and the person is told. */
  async #patiently(ask) {
    for (;;) {
      try {
        return await ask();
      } catch (problem) {
        if (![429, 503].includes(problem.status) || problem.retryAfterS === null) throw problem;
        this.#summarise(`The service is busy; going on in ${Math.ceil(problem.retryAfterS)} s.`);
        await pause(problem.retryAfterS * 1000);
      }
    }
  }

  async #watch(job, group) {
    for (let round = 0; ; round++) {
      job.items.forEach((item, i) => {
        const known = item.state === "ready" && item.created === false;
        if (item.state === "deleted") this.#state(group[i], "failed", { title: "Deleted meanwhile" });
        else this.#state(group[i], known ? "known" : item.state, item.state === "failed" ? item.problem : null);
      });
      this.#summarise();
      if (job.state !== "running") return;
      await pause(POLL_MS[Math.min(round, POLL_MS.length - 1)]);
      try {
        job = await this.#patiently(() => getJson(`jobs/${encodeURIComponent(job.id)}`));
      } catch (problem) {
        if (problem.type === "unreachable" || problem.status >= 500) {
          this.#summarise("The service does not answer; asking again.");
          continue; // an upload answered 202 is never lost
        }
        for (const entry of group) if (entry.state !== "ready") this.#state(entry, "failed", problem);
        return;
      }
    }
  }
}

function groups(entries) {
  const all = [];
  let bytes = 0;
  for (const entry of entries) {
    bytes += entry.file.size;
    if (!all.length || all.at(-1).length >= GROUP_FILES || bytes > GROUP_BYTES) {
      all.push([]);
      bytes = entry.file.size;
    }
    all.at(-1).push(entry);
  }
  return all;
}
