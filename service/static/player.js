// One player: the mix and a stem go round together on one clock, and another stem takes over on a beat.

import { RATE, Undecodable } from "./clips.js";

const LEAD_S = 0.06; // from the call to the first sample, so that all sources are scheduled before it
const FADE_S = 0.002; // no click where something begins, takes over or stops
const WEIGH_S = 0.012; // no click where the balance moves
const MASTER = 0.5; // mix and stem together stay below 2, see levelOf
const LONGEST_WAIT_S = 4; // a stem that enters later is not waited for from the loop's start,
const RUN_UP_S = 2; // but from this long before it enters
const HEARABLE = 1e-4;

/** Where in a loop to start: 0, or shortly before a stem that enters late; a stem alone starts as it enters. */
export function firstSecond(stem, listen) {
  const channels = stem ? Array.from({ length: stem.numberOfChannels }, (_, channel) => stem.getChannelData(channel)) : [];
  const entries = channels.map((samples) => samples.findIndex((sample) => Math.abs(sample) > HEARABLE)).filter((at) => at >= 0);
  const entersS = entries.length ? Math.min(...entries) / RATE : 0;
  if (listen === "stem") return entersS;
  return entersS > LONGEST_WAIT_S ? entersS - RUN_UP_S : 0;
}

/** The next second at which a beat of the loop falls, no sooner than `soonest`; `zero` is one at which the loop begins. */
export function nextBeat({ zero, lengthS, beats, soonest }) {
  if (!beats) return soonest;
  const { everyS, firstS } = beats; // of the loop's own seconds
  const round = Math.floor((soonest - zero) / lengthS);
  const since = soonest - zero - round * lengthS;
  const beat = firstS + Math.ceil((since - firstS) / everyS - 1e-6) * everyS;
  return zero + round * lengthS + Math.min(beat, lengthS);
}

/**
 * What sounds, on a context of either kind: { mix, stem } are buffers of one length, or null. Both go round from the
 * same second on, so that they stay together however long they play.
 */
export class Sound {
  constructor(context, { mix, stem, gain, begin, offsetS, volumes }) {
    this.context = context;
    this.zero = begin - offsetS;
    this.lengthS = (mix ?? stem).duration;
    this.out = new GainNode(context, { gain: MASTER });
    this.sides = {};
    for (const role of ["mix", "stem"]) {
      this.sides[role] = new GainNode(context, { gain: volumes[role] });
      this.sides[role].connect(this.out);
    }
    this.voices = new Set();
    this.mix = mix && this.#begin("mix", mix, 1, begin);
    this.stem = stem && this.#begin("stem", stem, gain, begin);
  }

  /** Another stem instead, from second `at` of the context's clock on. */
  change(stem, gain, at) {
    if (this.stem?.atS >= at) this.stem.volume.disconnect(); // it was to begin there, and is never heard
    else if (this.stem) end(this.stem, at);
    this.stem = this.#begin("stem", stem, gain, at);
  }

  stop(at) {
    for (const voice of this.voices) end(voice, at);
  }

  /** The loop's second at a second of the context's clock. */
  secondAt(time) {
    const since = (time - this.zero) % this.lengthS;
    return since < 0 ? since + this.lengthS : since;
  }

  #begin(role, buffer, gain, at) {
    const source = new AudioBufferSourceNode(this.context, { buffer, loop: true });
    const volume = new GainNode(this.context, { gain: 0 });
    volume.gain.setValueAtTime(0, at);
    volume.gain.linearRampToValueAtTime(gain, at + FADE_S);
    source.connect(volume).connect(this.sides[role]);
    const offsetS = this.secondAt(at);
    source.start(at, offsetS);
    const voice = { source, volume, atS: at, offsetS };
    this.voices.add(voice);
    source.onended = () => this.voices.delete(voice);
    return voice;
  }
}

function end({ source, volume }, at) {
  volume.gain.cancelScheduledValues(at);
  volume.gain.setTargetAtTime(0, at, FADE_S / 3);
  source.stop(at + 4 * FADE_S);
}

/**
 * Fires "change" whenever `state` does, and "problem" (detail: the error) when something cannot be played.
 *
 * state.status: idle, loading or playing; state.id: the hit's stem, or "mix"; state.next: what takes over; state.listen:
 * both, stem or mix; state.loop: { fromS, lengthS }.
 */
export class Player extends EventTarget {
  state = { status: "idle", id: null, next: null, listen: "both", balance: 0, loop: null, hasMix: false, hasStem: false, plan: null };
  #context = null;
  #out = null;
  #levels = null;
  #sound = null;
  #take = null; // what plays
  #turn = 0;
  #last = null;

  /**
   * Play, or let a hit take over from another one on the next beat where both go with the same mix.
   *
   * `sound()` promises { mix, stem, gain }: buffers as long as `loop` (null where there is none) and the stem's amplitude;
   * without a `loop` all of them goes round. `beats` ({ firstS, everyS }) are of the mix. Must be called from a click or a key press: browsers let audio start only there.
   */
  async play(take) {
    const { id, loop, listen = this.state.listen } = take;
    const joins = this.state.status === "playing" && this.state.listen === listen && this.#take.with === take.with && take.with;
    if (!joins) this.stop();
    const turn = ++this.#turn;
    this.#last = take;
    this.#open();
    this.#set(joins ? { next: id } : { status: "loading", id, next: null, listen, loop });
    try {
      const [sound] = await Promise.all([take.sound(), this.#context.resume()]);
      if (turn !== this.#turn) return;
      if (joins) this.#takeOver(take, sound);
      else this.#begin(take, sound);
    } catch (error) {
      if (turn !== this.#turn) return;
      this.stop();
      this.dispatchEvent(new CustomEvent("problem", { detail: error }));
    }
  }

  stop() {
    this.#turn++;
    this.#silence();
    this.#take = null;
    if (this.state.status !== "idle") this.#set({ status: "idle", id: null, next: null, plan: null, loop: null });
  }

  /** Stop, and let go of what played last. */
  forget() {
    this.#last = null;
    this.stop();
    this.#set({});
  }

  get canRepeat() {
    return this.#last !== null;
  }

  /** What plays, or played last. */
  get lastId() {
    return this.#last?.id ?? null;
  }

  repeat() {
    return this.play({ ...this.#last, listen: this.state.listen }); // what was chosen since then holds
  }

  /** Go to a second of the loop. */
  seek(seconds) {
    if (this.state.status !== "playing") return;
    this.#silence();
    this.#start(Math.min(Math.max(0, seconds), this.state.loop.lengthS - 0.05));
  }

  set listen(listen) {
    this.#set({ listen });
    this.#weigh();
  }

  /** -1: only the mix; 0: both as they are; 1: only the stem. */
  set balance(balance) {
    this.#set({ balance });
    this.#weigh();
  }

  /** The loop's second that is heard now. */
  get position() {
    if (this.state.status !== "playing") return 0;
    const heard = this.#context.currentTime - (this.#context.outputLatency || 0);
    return heard < this.#sound.zero ? 0 : this.#sound.secondAt(heard);
  }

  /** The loudness of what is heard now: root mean square of the last samples. */
  get level() {
    if (this.state.status !== "playing") return 0;
    this.#out.getFloatTimeDomainData(this.#levels);
    let power = 0;
    for (const sample of this.#levels) power += sample * sample;
    return Math.sqrt(power / this.#levels.length);
  }

  get running() {
    return this.#context?.state === "running";
  }

  #open() {
    if (this.#context) return;
    this.#context = new AudioContext({ sampleRate: RATE });
    this.#out = new AnalyserNode(this.#context, { fftSize: 1024 });
    this.#levels = new Float32Array(this.#out.fftSize);
    this.#out.connect(this.#context.destination);
  }

  #begin(take, { mix, stem, gain }) {
    if (!mix && !stem) throw new Undecodable("this browser cannot decode it");
    this.#take = { ...take, mix, stem, gain };
    if (!mix || !stem) this.#set({ listen: stem ? "stem" : "mix" });
    this.#start(stem ? firstSecond(stem, this.state.listen) : 0);
  }

  #start(offsetS) {
    const { mix, stem, gain, loop } = this.#take;
    const begin = this.#context.currentTime + LEAD_S;
    this.#sound = new Sound(this.#context, { mix, stem, gain, begin, offsetS, volumes: this.#volumes() });
    this.#sound.out.connect(this.#out);
    const round = loop ?? { fromS: 0, lengthS: this.#sound.lengthS };
    this.#set({ status: "playing", loop: round, hasMix: mix !== null, hasStem: stem !== null, plan: this.#plan() });
  }

  #takeOver(take, { stem, gain }) {
    const sound = this.#sound;
    const { fromS, lengthS } = take.loop;
    const beats = take.beats && { ...take.beats, firstS: (take.beats.firstS - fromS) % take.beats.everyS };
    const at = nextBeat({ zero: sound.zero, lengthS, beats, soonest: this.#context.currentTime + LEAD_S });
    sound.change(stem, gain, at);
    this.#take = { ...take, mix: this.#take.mix, stem, gain };
    // The beat is told by the audio clock itself: timers are late in a hidden tab.
    const beat = new ConstantSourceNode(this.#context, { offset: 0 });
    beat.connect(this.#out);
    beat.start();
    beat.stop(at);
    const turn = this.#turn;
    beat.onended = () => {
      if (turn === this.#turn) this.#set({ id: take.id, next: null, plan: this.#plan() });
    };
  }

  #plan() {
    const of = (voice) => voice && { atS: voice.atS, offsetS: voice.offsetS };
    return { mix: of(this.#sound.mix), stem: of(this.#sound.stem) };
  }

  #silence() {
    this.#sound?.stop(this.#context.currentTime);
    this.#sound = null;
  }

  #volumes() {
    const { listen, balance } = this.state;
    const volume = (role) => (listen === "both" ? Math.min(1, 1 + (role === "stem" ? balance : -balance)) : Number(listen === role));
    return { mix: volume("mix"), stem: volume("stem") };
  }

  #weigh() {
    if (!this.#sound) return;
    for (const [role, volume] of Object.entries(this.#volumes())) {
      this.#sound.sides[role].gain.setTargetAtTime(volume, this.#context.currentTime, WEIGH_S);
    }
  }

  #set(change) {
    Object.assign(this.state, change);
    this.dispatchEvent(new Event("change"));
  }
}
