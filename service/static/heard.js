// What was heard of the mix, above the hits: its tempo and key, which a person may correct, and how far stems may be played otherwise.

import { byId, make } from "./elements.js";
import * as format from "./format.js";
import { tapped, tempoOf } from "./tap.js";

const SETTLES_MS = 700; // whoever drags a slider, or presses twice, asks once
const LAST_TAP_MS = 1_600;
const MAJOR = ["C", "Db", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B"];
const MINOR = ["C", "C#", "D", "Eb", "E", "F", "F#", "G", "G#", "A", "Bb", "B"];
const KEYS = [...MAJOR.map((tonic) => `${tonic} major`), ...MINOR.map((tonic) => `${tonic} minor`)];

const rounded = (bpm) => Number(bpm.toFixed(2));

/** Where beats fall, where that is said or sure; which of them begin a bar is not known. */
export function beatsOf({ tempo_bpm, first_beat_s, sources, sure }, { said = {} }) {
  if (!tempo_bpm || !(sources.tempo_bpm === "said" || sure.tempo_bpm)) return null;
  return { firstS: first_beat_s, everyS: 60 / (said.tempo_bpm ?? tempo_bpm) };
}

/**
 * The panel. What a person says lies with the mix it is said of: `mix.said`, by the API's names of the fields.
 *
 * Fires "change" when something else is to be asked, and "settled" a moment later.
 */
export class Heard extends EventTarget {
  #mix = null;
  #told = null; // what the service told of the mix
  #shown = ""; // in the tempo's field; other text is being typed
  #taps = [];
  #asking = 0; // timers
  #tapping = 0;

  constructor() {
    super();
    const tempo = byId("heard-tempo");
    tempo.addEventListener("change", () => this.#sayTempo(tempo.value.trim() === "" ? null : tempo.valueAsNumber));
    byId("heard-half").addEventListener("click", () => this.#sayTempo(tempo.valueAsNumber / 2));
    byId("heard-double").addEventListener("click", () => this.#sayTempo(tempo.valueAsNumber * 2));
    byId("heard-tap").addEventListener("click", ({ timeStamp }) => this.#tap(timeStamp));
    byId("heard-again").addEventListener("click", () => {
      tempo.focus(); // the button is about to go
      this.#sayTempo(null);
    });
    const key = byId("heard-key");
    key.append(make("option", { value: "" }), ...KEYS.map((name) => make("option", { value: name }, name)));
    key.addEventListener("change", () => this.#say("mix_key", key.value || null));
    for (const id of ["max-stretch", "max-transpose"]) {
      byId(id).addEventListener("input", () => {
        this.#showLimits();
        this.#ask();
      });
    }
    this.#showLimits();
  }

  /** What a search said of `mix`; `fitted`: stems may be played at its tempo. */
  show(told, mix, fitted) {
    const typing = mix === this.#mix && byId("heard-tempo").value !== this.#shown;
    this.#mix = mix;
    this.#told = told;
    mix.said ??= {};
    mix.heard ??= {};
    for (const name of ["tempo_bpm", "key"]) if (told.sources[name] !== "said") mix.heard[name] = told[name];
    byId("heard-limits").disabled = !fitted;
    if (!typing) this.#showTempo();
    this.#showKey();
  }

  /** The mix is `mix` now: what was heard of another one is out of place. */
  about(mix) {
    const known = mix !== null && mix === this.#mix;
    byId("heard").hidden = !known;
    if (known) return;
    clearTimeout(this.#asking);
    clearTimeout(this.#tapping);
    this.#taps = [];
  }

  #showTempo() {
    const { said, heard } = this.#mix;
    const bpm = said.tempo_bpm ?? this.#told.tempo_bpm;
    const tempo = byId("heard-tempo");
    tempo.value = this.#shown = bpm ? String(rounded(bpm)) : "";
    byId("heard-half").disabled = !bpm || bpm / 2 < Number(tempo.min);
    byId("heard-double").disabled = !bpm || bpm * 2 > Number(tempo.max);
    const none = "no steady tempo was heard: stems are compared as recorded";
    const known = said.tempo_bpm && heard.tempo_bpm ? `said; heard as ${rounded(heard.tempo_bpm)}` : null;
    byId("heard-tempo-source").textContent = known ?? (bpm ? this.#source("tempo_bpm") : none);
    byId("heard-again").hidden = !said.tempo_bpm;
  }

  #showKey() {
    const { said, heard } = this.#mix;
    const key = byId("heard-key");
    key.options[0].textContent = heard.key ? `As heard: ${heard.key}` : "As heard";
    key.value = said.mix_key ?? "";
    byId("heard-key-source").textContent = said.mix_key || this.#told.key ? this.#source("key") : "no key was heard";
  }

  /** `said` is set before the service has answered to it. */
  #source(name) {
    if (this.#mix.said[name === "key" ? "mix_key" : name]) return "said";
    const { sources, sure } = this.#told;
    return format.source(sources[name], sure[name]);
  }

  #showLimits() {
    const stretch = byId("max-stretch").value;
    const transpose = Number(byId("max-transpose").value);
    byId("max-stretch-value").textContent = stretch === "0" ? "not at all" : `${stretch} %`;
    byId("max-transpose-value").textContent = transpose ? format.count(transpose, "semitone") : "not at all";
    byId("max-stretch").setAttribute("aria-valuetext", byId("max-stretch-value").textContent);
    byId("max-transpose").setAttribute("aria-valuetext", byId("max-transpose-value").textContent);
  }

  #sayTempo(bpm) {
    const tempo = byId("heard-tempo");
    if (bpm !== null && !(bpm >= Number(tempo.min) && bpm <= Number(tempo.max))) {
      tempo.reportValidity();
      return;
    }
    this.#say("tempo_bpm", bpm && rounded(bpm));
  }

  #say(name, value) {
    if (value) this.#mix.said[name] = value;
    else delete this.#mix.said[name];
    this.#showTempo();
    this.#showKey();
    this.#ask();
  }

  #tap(now) {
    this.#taps = tapped(this.#taps, now);
    clearTimeout(this.#tapping);
    const bpm = tempoOf(this.#taps, this.#mix.heard.tempo_bpm);
    byId("heard-tempo-source").textContent = bpm ? `tapped: ${rounded(bpm)}` : "tap on, on every beat";
    this.#tapping = setTimeout(() => {
      this.#taps = [];
      if (bpm) this.#sayTempo(bpm);
      else this.#showTempo();
    }, LAST_TAP_MS);
  }

  #ask() {
    clearTimeout(this.#asking);
    this.dispatchEvent(new Event("change"));
    this.#asking = setTimeout(() => this.dispatchEvent(new Event("settled")), SETTLES_MS);
  }
}
