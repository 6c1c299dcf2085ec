// The song so far: hits that were kept with the mix, which of its instruments are missing, and the whole as files.

import { Problem, request } from "./api.js";
import { byId, link, make, pill, tickedIn } from "./elements.js";
import { startOf } from "./fitted.js";
import * as format from "./format.js";
import { save } from "./hit.js";
import { wavOf } from "./wav.js";

/** The stems that were kept, as the service takes them. */
export const placedField = (placed) =>
  JSON.stringify(
    placed.map(({ hit, gain_db }) => {
      const { stem, speed, transpose } = hit;
      return { stem_id: stem.id, start_s: startOf(hit), speed, transpose, gain_db, loop: stem.kind === "loop" };
    }),
  );

/** A problem with one of the stems that were kept says which. */
export function named(problem, placed) {
  const lost = placed.find(({ hit }) => hit.stem.id === problem.facts?.stem_id);
  if (!lost) return problem;
  const detail = `“${lost.hit.stem.title}” was kept with your mix and is no longer in the catalog. Remove it and go on.`;
  return new Problem({ ...problem, detail, facts: {} });
}

/** Fires "change" when a stem is taken out, and "complete" (detail: instruments) when a band is asked for. */
export class Song extends EventTarget {
  #mix = null;
  #told = null; // what was said or heard of it

  constructor() {
    super();
    byId("band-go").addEventListener("click", () => {
      const wanted = tickedIn("band-instruments");
      if (wanted.length) this.dispatchEvent(new CustomEvent("complete", { detail: wanted }));
    });
    byId("export").addEventListener("click", () => this.#export());
  }

  /** Offer instruments that a band may be made of. */
  offer(instruments) {
    const ticked = tickedIn("band-instruments");
    byId("band-instruments").replaceChildren(...instruments.map((value) => pill(value, { value, checked: ticked.includes(value) })));
    byId("band").hidden = !instruments.length;
  }

  /** Of this mix, of which the service `told` so much; null: none has been searched with. */
  show(mix, told = this.#told) {
    this.#mix = mix;
    this.#told = told;
    byId("song").hidden = !mix;
    if (!mix) return;
    byId("song-problem").textContent = "";
    this.#allowExport();
    byId("placed").replaceChildren(...mix.placed.map((one) => this.#row(one)));
  }

  #row(one) {
    const { stem, speed, transpose } = one.hit;
    const remove = () => {
      this.#mix.placed = this.#mix.placed.filter((other) => other !== one);
      this.show(this.#mix);
      byId("song").focus(); // the button is gone
      this.dispatchEvent(new Event("change"));
    };
    return make(
      "li",
      { "data-stem": stem.id },
      make("strong", {}, stem.title),
      make("span", { className: "quiet" }, format.way(speed, transpose)),
      link("Remove", remove, { "aria-label": `Take ${stem.title} out of the mix` }),
    );
  }

  async #export() {
    const mix = this.#mix;
    byId("export").disabled = true;
    byId("song-problem").textContent = "";
    try {
      const file = mix.file ?? new File([wavOf(await mix.audio())], `${mix.name}.wav`);
      const body = new FormData();
      body.append("file", file, file.name);
      body.append("placed", placedField(mix.placed));
      const said = { tempo_bpm: this.#told.tempo_bpm, mix_key: this.#told.key, ...mix.said };
      for (const [name, value] of Object.entries(said)) if (value) body.append(name, value);
      const response = await request("export", { method: "POST", body });
      save(await response.blob(), `${mix.name.replace(/\.\w+$/, "")}.zip`);
    } catch (problem) {
      byId("song-problem").textContent = named(problem, mix.placed).message;
    } finally {
      this.#allowExport();
    }
  }

  #allowExport() {
    const { placed = [], gone = false } = this.#mix ?? {};
    const first = !placed.length ? "Keep a hit first" : gone ? "Drop the mix again first" : "";
    byId("export").disabled = Boolean(first);
    byId("export").title = first;
  }
}
