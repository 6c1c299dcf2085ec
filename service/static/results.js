// The answer: ranked hits, each heard in its place, and how they were found.

import { once } from "./clips.js";
import { byId, make } from "./elements.js";
import { facts, looked } from "./facts.js";
import { amplitude, levelOf, secondOf, stemOver } from "./fitted.js";
import * as format from "./format.js";
import { hitRow } from "./hit.js";
import { drawLane, peaksOf } from "./waveform.js";

/**
 * The list of hits. Fires "keep" (detail: { mix, kept }) when some, { hit, gain_db } each, are to stay with their mix.
 *
 * What a hit is heard with is its `ground`: { loop, beats, mix(), drawn }, see app.js.
 */
export class Results extends EventTarget {
  #player;
  #rows = new Map(); // stem id -> { hit, row, play, solo, canvas, playhead, peaks, sound }
  #mix = null;
  #mixS = 0;
  #ground = null;
  #alone = false; // the mix cannot be played
  #best = 0;
  #eager = [];
  #drawing = false;
  #seen = new IntersectionObserver((entries) => this.#draw(entries), { rootMargin: "200px" });

  constructor(player) {
    super();
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
  show(answer, mix, ground) {
    this.clear();
    this.#mix = mix;
    this.#mixS = answer.mix.duration_s;
    this.#ground = ground;
    this.#alone = false;
    this.#best = Math.max(0, ...answer.hits.map((hit) => hit.score));
    const slots = answer.band?.slots ?? [];
    for (const hit of answer.hits) {
      const slot = slots.find(({ rank }) => rank === hit.rank);
      this.#add(hit, slot?.alternatives ?? [], (row) => byId("hits").append(row));
    }
    byId("answer-title").textContent = titleOf(answer, mix);
    byId("answer-mix").textContent = looked(answer);
    const notes = slots.filter(({ note }) => note).map(({ instrument, note }) => `${instrument}: ${note}`);
    byId("warnings").replaceChildren(...[...(answer.mix.warnings ?? []), ...notes].map((text) => make("li", {}, text)));
    byId("facts").replaceChildren(...facts(answer));
    byId("keep-all").hidden = !slots.length || !answer.hits.length;
    byId("answer").hidden = false;
    this.#mark();
    this.#hearMix(ground);
  }

  /** The hits of a band, as they are now: one or another may have been chosen instead. */
  keepAll() {
    this.#keep(this.#inOrder());
  }

  describe(id) {
    const { hit } = this.#rows.get(id);
    return { title: hit.stem.title, place: `${format.place(secondOf(hit))}, ${format.way(hit.speed, hit.transpose)}` };
  }

  redraw() {
    for (const entry of this.#rows.values()) this.#paint(entry);
  }

  /** Once per animation frame while something plays; `position` is the loop's second. */
  tick(position) {
    const entry = this.#rows.get(this.#player.state.id);
    if (entry) entry.playhead.style.setProperty("--at", String(position / this.#ground.loop.lengthS));
  }

  /** So many hits on from the one that plays, or is marked: what plays goes on with that one. */
  walk(step) {
    const ids = this.#inOrder().map(({ hit }) => hit.stem.id);
    const { id, next } = this.#player.state;
    const at = ids.indexOf(next ?? id) >= 0 ? ids.indexOf(next ?? id) : ids.indexOf(document.activeElement.closest(".hit")?.dataset.stem);
    this.go(at < 0 ? 0 : at + step);
  }

  /** To the hit at a place of the list, 0 the first; it is played where `plays`, or where another one plays. */
  go(n, plays = this.#player.state.status !== "idle") {
    const entry = this.#inOrder()[n];
    if (!entry) return;
    entry.play.focus({ preventScroll: true });
    entry.row.scrollIntoView({ block: "nearest" });
    const { id, next, listen } = this.#player.state;
    if (plays && (next ?? id) !== entry.hit.stem.id) this.#play(entry, listen === "mix" ? "both" : listen);
  }

  /** As they stand on the page: one that was chosen instead of another has its place. */
  #inOrder() {
    return [...byId("hits").children].map((row) => this.#rows.get(row.dataset.stem));
  }

  #add(hit, others, place) {
    const entry = { hit, peaks: null, sound: once(() => this.#fit(entry)) };
    const swap = (other) => {
      const { row } = entry;
      const { state, lastId } = this.#player;
      if ([state.id, state.next, lastId].includes(hit.stem.id)) this.#player.forget();
      this.#rows.delete(hit.stem.id);
      const rest = [hit, ...others.filter((one) => one !== other)];
      this.#add({ ...other, rank: hit.rank }, rest, (instead) => row.replaceWith(instead));
      this.#rows.get(other.stem.id).row.querySelector("select").focus();
    };
    const on = {
      play: () => this.#toggle(entry, "both"),
      solo: () => this.#toggle(entry, "stem"),
      seek: (event) => this.#seek(entry, event),
      keep: ({ currentTarget }) => {
        currentTarget.disabled = true;
        this.#keep([entry]);
      },
      swap,
    };
    Object.assign(entry, hitRow(hit, { best: this.#best, mix: this.#mix, mixS: this.#mixS, others, on }));
    this.#rows.set(hit.stem.id, entry);
    place(entry.row);
    this.#seen.observe(entry.row);
    this.#label(entry);
    this.#paint(entry);
  }

  async #hearMix(ground) {
    let buffer;
    try {
      buffer = await ground.mix();
    } catch {
      return; // stems that cannot be fetched now; pressing play tries again and says why
    }
    if (ground !== this.#ground) return;
    this.#alone = buffer === null;
    if (this.#alone) {
      const why = this.#mix.gone ? "Drop the mix again to hear the hits with it: the page kept its hits, not its file." : "Playback of this mix’s format is not possible in this browser. The hits are right all the same.";
      byId("warnings").append(make("li", { id: "no-playback" }, `${why} Each stem can be heard alone.`));
    }
    this.#mark();
    this.redraw();
  }

  /** A hit's stem over the loop, level with the mix. */
  async #fit(entry) {
    const { loop, mix: hear } = this.#ground;
    const [mix, stem] = await Promise.all([hear(), stemOver(entry.hit, loop)]);
    entry.peaks = peaksOf(stem);
    this.#paint(entry);
    const gainDb = await levelOf(stem, mix);
    entry.row.dataset.gain = String(gainDb); // that it can be heard, for whoever drives this page from outside
    return { mix, stem, gain: amplitude(gainDb), gainDb };
  }

  /** Keep hits as they are heard: as loud as they are played here, where that could be. */
  async #keep(entries) {
    const mix = this.#mix;
    const kept = [];
    for (const entry of entries) {
      const level = await entry.sound().catch(() => null);
      kept.push({ hit: entry.hit, gain_db: level?.gainDb ?? 0 });
    }
    this.dispatchEvent(new CustomEvent("keep", { detail: { mix, kept } }));
  }

  #toggle(entry, listen) {
    const { state } = this.#player;
    const wanted = this.#alone ? "stem" : listen;
    if (state.id === entry.hit.stem.id && !state.next) {
      if (state.status === "loading" || state.listen === wanted) this.#player.stop();
      else this.#player.listen = wanted;
      return;
    }
    this.#play(entry, wanted);
  }

  #play(entry, listen) {
    const { loop, beats } = this.#ground;
    this.#player.play({ id: entry.hit.stem.id, with: this.#ground, sound: entry.sound, loop, beats, listen });
  }

  #seek(entry, event) {
    if (this.#player.state.id !== entry.hit.stem.id) return;
    const box = event.currentTarget.getBoundingClientRect();
    this.#player.seek(((event.clientX - box.left) / box.width) * this.#ground.loop.lengthS);
  }

  #mark() {
    for (const entry of this.#rows.values()) this.#label(entry);
  }

  #label({ hit, row, play, solo }) {
    const { state } = this.#player;
    const { id, title } = hit.stem;
    const mine = state.id === id;
    row.classList.toggle("loading", (mine && state.status === "loading") || state.next === id);
    row.classList.toggle("playing", mine && state.status === "playing");
    if (mine) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
    const stops = mine && (state.listen !== "stem" || this.#alone);
    play.setAttribute("aria-label", stops ? "Stop" : this.#alone ? `Play ${title} alone` : `Play the mix with ${title}`);
    play.classList.toggle("on", stops || state.next === id);
    const soloed = mine && state.listen === "stem";
    solo.textContent = soloed ? "Stop" : "Solo";
    solo.setAttribute("aria-label", soloed ? "Stop" : `Play ${title} alone`);
  }

  #paint({ canvas, peaks }) {
    const { loop, beats, drawn } = this.#ground;
    const span = { startS: loop.fromS, durationS: loop.lengthS };
    drawLane(canvas, { from: loop.fromS, to: loop.fromS + loop.lengthS, stem: { ...span, peaks }, mix: { ...span, peaks: drawn() }, beats });
  }

  #draw(entries) {
    for (const { isIntersecting, target } of entries) {
      const entry = this.#rows.get(target.dataset.stem);
      if (!isIntersecting || !entry) continue;
      this.#seen.unobserve(target);
      if (!navigator.connection?.saveData) this.#eager.push(entry);
    }
    this.#drawEager();
  }

  /** One at a time, so that a press of play never waits behind ten waveforms. */
  async #drawEager() {
    if (this.#drawing) return;
    this.#drawing = true;
    while (this.#eager.length) {
      try {
        await this.#eager.shift().sound();
      } catch {
        // The lane keeps its placeholder; pressing play says what is wrong.
      }
    }
    this.#drawing = false;
  }
}

function titleOf({ hits, index, band }, { name }) {
  if (band && hits.length) return `A band for ${name}`;
  if (hits.length) return `${format.count(hits.length, "hit")} for ${name}`;
  return index.stems ? "No stem passed the filters" : "The catalog is empty: add stems first";
}
