// The answer: ranked hits, how they were found, and their lanes.

import { request } from "./api.js";
import { knownPeaks, stemAudio, stemPeaks } from "./clips.js";
import { byId, make } from "./elements.js";
import * as format from "./format.js";
import { drawLane, laneSpan } from "./waveform.js";

const EAGER_S = 60; // stems up to this long are drawn as they scroll into view, longer ones when played
const STAGES = ["decode", "queue", "embed", "index", "rescore", "refine"];

/** The second of the stem that sounds with the mix's second 0; negative: it enters so long after that, in the mix's seconds. */
export const secondOf = ({ start_s: startS, speed }) => (startS < 0 ? startS / speed : startS);

const asRecorded = (hit) => format.way(hit.speed, hit.transpose) === "as recorded";

export class Results {
  #player;
  #rows = new Map(); // stem id -> { hit, row, lane, playhead, span, play, alone }
  #mix = null;
  #mixS = 0;
  #mixPeaks = null;
  #eager = [];
  #drawing = false;
  #seen = new IntersectionObserver((entries) => this.#draw(entries), { rootMargin: "200px" });

  constructor(player) {
    this.#player = player;
    player.addEventListener("change", () => this.#mark());
    new ResizeObserver(() => this.redraw()).observe(byId("hits"));
  }

  clear() {
    this.#seen.disconnect();
    this.#rows.clear();
    this.#eager = [];
    byId("hits").replaceChildren();
    byId("answer").hidden = true;
  }

  /** Show what the service answered to `mix`. */
  show(answer, mix) {
    this.clear();
    this.#mix = mix;
    this.#mixS = answer.mix.duration_s;
    this.#mixPeaks = null;
    const best = Math.max(0, ...answer.hits.map((hit) => hit.score));
    for (const hit of answer.hits) this.#add(hit, best);

    const hits = format.count(answer.hits.length, "hit");
    byId("answer-title").textContent = answer.hits.length
      ? `${hits} for ${mix.name}`
      : answer.index.stems
        ? "No stem passed the filters"
        : "The catalog is empty: add stems first";
    byId("answer-mix").textContent = looked(answer);
    const warnings = [...(answer.mix.warnings ?? [])];
    byId("warnings").replaceChildren(...warnings.map((text) => make("li", {}, text)));
    byId("facts").replaceChildren(...facts(answer));
    byId("answer").hidden = false;
    for (const { row } of this.#rows.values()) this.#seen.observe(row);
    this.redraw();
  }

  /** The mix was decoded, or cannot be. */
  mixDecoded(mix, peaks) {
    if (mix !== this.#mix) return;
    this.#mixPeaks = peaks;
    for (const { play, hit } of this.#rows.values()) {
      if (!mix.undecodable) continue;
      play.setAttribute("aria-label", `Play ${hit.stem.title} alone`);
    }
    if (mix.undecodable && !byId("no-playback")) {
      const why = mix.gone ? "Drop the mix again to hear the hits with it: the page kept its hits, not its file." : "Playback of this mix’s format is not possible in this browser. The hits are right all the same.";
      byId("warnings").append(make("li", { id: "no-playback" }, `${why} Each stem can be heard alone.`));
    }
    this.redraw();
  }

  describe(id) {
    const { hit } = this.#rows.get(id);
    return { title: hit.stem.title, place: `${format.place(secondOf(hit))}${asRecorded(hit) ? "" : " · heard as recorded"}` };
  }

  redraw() {
    for (const entry of this.#rows.values()) this.#paint(entry);
  }

  /** Once per animation frame while something plays. */
  tick(position) {
    const entry = this.#rows.get(this.#player.state.id);
    if (!entry) return;
    const at = position + secondOf(entry.hit);
    entry.playhead.style.setProperty("--at", String((at - entry.span.from) / (entry.span.to - entry.span.from)));
  }

  #add(hit, best) {
    const { stem } = hit;
    const title = stem.title;
    const startS = secondOf(hit);
    const play = make("button", { type: "button", className: "play", "aria-label": `Play the mix with ${title}`, onclick: () => this.#toggle(hit, "both") }, make("span", { className: "glyph" }));
    const alone = make("button", { type: "button", className: "link", "aria-label": `Play ${title} alone`, onclick: () => this.#toggle(hit, "stem") }, "Stem alone");
    const windows = make("div", { className: "windows", hidden: true });
    const canvas = make("canvas", { role: "img", "aria-label": `Waveform of ${title}; it ${startS < 0 ? "" : "fits "}${format.place(startS)}` });
    const playhead = make("div", { className: "playhead" });
    const lane = make("div", { className: "lane", onclick: (event) => this.#seek(hit, event) }, canvas, playhead);
    const share = best > 0 ? Math.max(0, hit.score / best) : 0;
    const bar = make("div", { className: "score-bar" }, make("div"));
    bar.firstChild.style.setProperty("--share", share.toFixed(4));
    const row = make(
      "li",
      { className: "hit", "data-stem": stem.id, "data-start": String(startS) },
      make("span", { className: "rank", "aria-label": `Rank ${hit.rank}` }, String(hit.rank)),
      play,
      make(
        "div",
        { className: "hit-text" },
        make("h3", { title }, title),
        make(
          "p",
          { className: "chips" },
          stem.instrument && make("span", { className: "chip" }, stem.instrument),
          ["loop", "one-shot"].includes(stem.kind) && make("span", { className: "chip", title: from(stem, "kind") }, stem.kind),
          stem.track && make("span", { className: "quiet" }, stem.track),
        ),
        make("p", { className: "quiet meta" }, ...about(stem)),
        this.#mix.track && stem.track === this.#mix.track && make("p", { className: "own" }, "From your mix’s own track"),
      ),
      make(
        "div",
        { className: "hit-place" },
        lane,
        make(
          "p",
          { className: "under" },
          make(
            "span",
            {},
            make("strong", { className: "place" }, format.place(startS)),
            " ",
            make("span", { className: "way" }, format.way(hit.speed, hit.transpose)),
            asRecorded(hit) ? null : make("span", { className: "quiet" }, " · heard as recorded"),
          ),
          make(
            "span",
            { className: "actions" },
            alone,
            make("button", { type: "button", className: "link", "aria-label": `Windows of ${title}`, "aria-expanded": "false", onclick: (event) => unfold(event.currentTarget, windows, hit) }, "Windows"),
            make("button", { type: "button", className: "link", "aria-label": `Download ${title}`, onclick: (event) => download(event.currentTarget, stem) }, "Download"),
          ),
        ),
        windows,
      ),
      make("div", { className: "hit-score" }, make("span", { className: "score", title: `score ${hit.score}` }, make("span", { className: "sr" }, "Score "), format.score(hit.score, best < 1 ? 3 : 2)), bar),
    );
    const span = laneSpan(stem.duration_s, startS, this.#mixS);
    this.#rows.set(stem.id, { hit, row, canvas, playhead, span, play, alone });
    byId("hits").append(row);
  }

  #toggle(hit, listen) {
    const { state } = this.#player;
    const wanted = this.#mix.undecodable ? "stem" : listen;
    if (state.id === hit.stem.id) {
      if (state.status === "loading" || state.listen === wanted) this.#player.stop();
      else this.#player.listen = wanted;
      return;
    }
    const stem = stemAudio(hit.stem.id);
    stem.then(() => this.#paint(this.#rows.get(hit.stem.id)), () => {});
    this.#player.play({ id: hit.stem.id, mix: this.#mix.audio(), stem, startS: secondOf(hit), lengthS: this.#mixS, listen: wanted });
  }

  #seek(hit, event) {
    const { state } = this.#player;
    if (state.id !== hit.stem.id) return;
    const { span } = this.#rows.get(hit.stem.id);
    const box = event.currentTarget.getBoundingClientRect();
    this.#player.seek(span.from + ((event.clientX - box.left) / box.width) * (span.to - span.from) - secondOf(hit));
  }

  #mark() {
    const { state } = this.#player;
    for (const [id, { row, play, alone, hit }] of this.#rows) {
      const mine = state.id === id;
      const title = hit.stem.title;
      row.classList.toggle("loading", mine && state.status === "loading");
      row.classList.toggle("playing", mine && state.status === "playing");
      const stops = mine && (state.listen !== "stem" || this.#mix.undecodable);
      play.setAttribute("aria-label", stops ? "Stop" : this.#mix.undecodable ? `Play ${title} alone` : `Play the mix with ${title}`);
      play.classList.toggle("on", stops);
      alone.textContent = mine && state.listen === "stem" ? "Stop" : "Stem alone";
      alone.setAttribute("aria-label", mine && state.listen === "stem" ? "Stop" : `Play ${title} alone`);
    }
  }

  #paint(entry) {
    if (!entry) return;
    const { hit, canvas, span } = entry;
    drawLane(canvas, {
      ...span,
      stem: { startS: 0, durationS: hit.stem.duration_s, peaks: knownPeaks(hit.stem.id) },
      mix: { startS: secondOf(hit), durationS: this.#mixS, peaks: this.#mixPeaks },
    });
  }

  #draw(entries) {
    for (const { isIntersecting, target } of entries) {
      const entry = this.#rows.get(target.dataset.stem);
      if (!isIntersecting || !entry) continue;
      this.#seen.unobserve(target);
      if (entry.hit.stem.duration_s <= EAGER_S && !navigator.connection?.saveData) this.#eager.push(entry);
    }
    this.#drawEager();
  }

  /** One at a time, so that a press of play never waits behind ten waveforms. */
  async #drawEager() {
    if (this.#drawing) return;
    this.#drawing = true;
    while (this.#eager.length) {
      const entry = this.#eager.shift();
      try {
        await stemPeaks(entry.hit.stem.id);
        this.#paint(this.#rows.get(entry.hit.stem.id));
      } catch {
        // The lane keeps its placeholder; pressing play says what is wrong.
      }
    }
    this.#drawing = false;
  }
}

/** Where a fact of a stem is from, for a title. */
const from = (stem, name) => format.source(stem.sources[name], stem.sure[name]);

function about(stem) {
  const unsure = (name) => stem.sure[name] === false && make("span", {}, "?", make("span", { className: "sr" }, " (not sure)"));
  const facts = [];
  if (stem.tempo_bpm) facts.push(make("span", { className: "fact", title: from(stem, "tempo_bpm") }, format.tempo(stem.tempo_bpm), unsure("tempo_bpm")));
  if (stem.key) facts.push(make("span", { className: "fact", title: from(stem, "key") }, stem.key, unsure("key")));
  facts.push(format.clock(stem.duration_s, 0));
  return facts.flatMap((fact, n) => (n ? [" · ", fact] : [fact]));
}

/** How far the search looked, in one sentence. */
function looked({ mix, align }) {
  const from = mix.searched_from_s.toFixed(2);
  const to = mix.searched_to_s.toFixed(2);
  const whole = mix.searched_from_s <= 0 && mix.searched_to_s >= mix.duration_s - 0.01;
  const stretch = whole ? `Looked at all ${mix.duration_s.toFixed(2)} s of your mix` : `Looked at ${from} to ${to} s of your ${mix.duration_s.toFixed(2)} s mix`;
  if (align.mode === "grid") return `${stretch}, starting on the catalog’s grid.`;
  const step = Math.round(align.shift_s * 1000);
  if (align.mode === "beats") return `${stretch}, at ${format.count(align.shifts, "start")} a beat or ${step} ms apart, and as recorded.`;
  return `${stretch}, at ${format.count(align.shifts, "start")} ${step} ms apart over ${align.range_s.toFixed(2)} s.`;
}

function facts(answer) {
  const timing = answer.timing_ms;
  const named = Object.keys(timing).filter((stage) => stage !== "total");
  const stages = [...STAGES.filter((stage) => named.includes(stage)), ...named.filter((stage) => !STAGES.includes(stage))];
  const total = timing.total ?? stages.reduce((sum, stage) => sum + timing[stage], 0);
  const bar = make("div", { className: "timing-bar", "aria-hidden": "true" });
  for (const stage of stages) {
    const part = make("div", { title: `${stage} ${format.milliseconds(timing[stage])}` });
    part.style.setProperty("--part", String(timing[stage]));
    bar.append(part);
  }
  const { index, model } = answer;
  return [
    make(
      "p",
      { className: answer.exact ? "exact" : "exact not" },
      answer.exact ? "Proven exact at the starts that were tried" : "Not proven exact",
      make("span", { className: "quiet" }, answer.exact ? "No stem the index passed over could have ranked among these." : "A stem that the index passed over might belong here."),
    ),
    make(
      "div",
      { className: "timing" },
      bar,
      make("p", { className: "quiet" }, `${stages.map((stage) => `${stage} ${format.milliseconds(timing[stage])}`).join(" · ")} · `, make("strong", {}, `total ${format.milliseconds(total)}`)),
    ),
    make(
      "p",
      { className: "quiet" },
      `Searched ${format.count(index.stems, "stem")}, ${format.count(index.windows, "window")}, index generation ${index.generation}, model `,
      make("code", { title: model.fingerprint }, model.fingerprint.slice(0, 8)),
      model.trained ? "" : " (untrained)",
    ),
  ];
}

function unfold(button, panel, hit) {
  if (!panel.firstChild) {
    const cells = (tag, ...texts) => make("tr", {}, ...texts.map((text) => make(tag, tag === "th" ? { scope: "col" } : {}, text)));
    panel.append(
      make(
        "table",
        {},
        make("caption", { className: "sr" }, "Windows that were compared"),
        make("thead", {}, cells("th", "Mix", "Stem", "Score")),
        make("tbody", {}, ...hit.windows.map((pair) => cells("td", format.clock(pair.mix_s), format.clock(pair.stem_s), format.score(pair.score)))),
      ),
    );
    const [score, cost] = [hit.score, hit.cost].map((value) => Math.round(100 * value));
    if (cost) panel.append(make("p", { className: "quiet" }, `Score ${format.score(score / 100)} = ${format.score((score + cost) / 100)} − ${format.score(cost / 100)} for playing it otherwise`));
  }
  panel.hidden = !panel.hidden;
  button.setAttribute("aria-expanded", String(!panel.hidden));
}

/** By fetch and not by a plain link, because a link cannot carry the API key. */
async function download(button, stem) {
  button.disabled = true;
  try {
    const response = await request(`stems/${encodeURIComponent(stem.id)}/audio`);
    const url = URL.createObjectURL(await response.blob());
    make("a", { href: url, download: stem.file_name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 60_000);
  } catch (problem) {
    button.textContent = "Download failed";
    button.title = problem.message;
  } finally {
    button.disabled = false;
  }
}
