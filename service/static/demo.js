// A mix made of the catalog's own stems: some of a track's, so that what is left out can be found.

import { stemsOfTrack } from "./catalog.js";
import { once, sumOfStems } from "./clips.js";
import { byId, make, pill, tickedIn } from "./elements.js";

const EMPTY = "No stem of this catalog says which track it belongs to. Add some stems with a track name first.";

/** A mix of stems that start together. */
export function demoMix(of) {
  return { ...of, placed: of.placed ?? [], peaks: null, audio: once(() => sumOfStems(of.stemIds)) };
}

/** Fires "mix" (detail: the mix, or null) when other stems are chosen, and "problem" (detail: the error, and what to try again). */
export class Demo extends EventTarget {
  #stems = []; // of the chosen track

  constructor() {
    super();
    byId("demo-track").addEventListener("change", () => this.#showStems());
    byId("demo-stems").addEventListener("change", () => this.take());
  }

  /** Nothing can be chosen, and why. */
  empty(text) {
    byId("demo-empty").textContent = text;
    byId("demo-empty").hidden = !text;
    byId("demo-body").hidden = Boolean(text);
  }

  /** Offer these tracks; the first time the stems of `before`, a mix, are chosen. */
  offer(tracks, before) {
    this.empty(tracks.length ? "" : EMPTY);
    byId("demo-start").hidden = !tracks.length;
    const select = byId("demo-track");
    const chosen = select.value;
    select.replaceChildren(...tracks.map((name) => make("option", { value: name }, name)));
    if (tracks.includes(chosen)) {
      select.value = chosen;
    } else if (tracks.includes(before?.track)) {
      select.value = before.track;
      this.#showStems(undefined, before.stemIds);
    } else {
      this.#showStems();
    }
  }

  /** Any track, less any of its stems. */
  async surprise() {
    const anyOf = (n) => Math.floor(Math.random() * n);
    byId("demo-track").selectedIndex = anyOf(byId("demo-track").options.length);
    await this.#showStems(anyOf);
  }

  /** Say which mix is chosen. */
  take() {
    const ticked = tickedIn("demo-stems");
    const stems = this.#stems.filter((stem) => ticked.includes(stem.id));
    const named = stems.map((stem) => stem.instrument || stem.title).join(" + ");
    const mix = stems.length ? demoMix({ name: stems[0].track, track: stems[0].track, stemIds: stems.map(({ id }) => id), facts: named }) : null;
    this.dispatchEvent(new CustomEvent("mix", { detail: mix }));
  }

  /** Offer the stems of the chosen track; the mix is those of `ticked`, or all but the one of n that `pick(n)` leaves out. */
  async #showStems(pick = (n) => n - 1, ticked = null) {
    const track = byId("demo-track").value;
    if (!track) return;
    let stems;
    try {
      stems = await stemsOfTrack(track);
    } catch (problem) {
      this.dispatchEvent(new CustomEvent("problem", { detail: { problem, again: () => this.#showStems(pick, ticked) } }));
      return;
    }
    if (track !== byId("demo-track").value) return; // another one was chosen meanwhile
    const leftOut = stems.length > 1 ? pick(stems.length) : -1;
    this.#stems = stems;
    byId("demo-stems").replaceChildren(
      ...stems.map((stem, i) =>
        pill(stem.instrument || stem.title, { name: "demo-stem", value: stem.id, checked: ticked ? ticked.includes(stem.id) : i !== leftOut }, { title: stem.title }),
      ),
    );
    this.take();
  }
}
