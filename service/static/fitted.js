// What sounds together: a stretch of the mix that goes round, and stems played at its tempo and in its key, level with it.

import { RATE, audioAt, sum } from "./clips.js";
import { loudnessOf } from "./loudness.js";

const LONGEST_S = 30; // of a longer mix this much goes round
const BAR = 4; // beats, as most music has them
const ON_A_BEAT = 0.03; // of one: a file may end so early
const FADE = 0.005 * RATE; // into the end, so that the way round does not click; the first beat stays as it is
const LEAST_S = 0.001; // of a stem: less is not asked for, it may round to nothing
const UNDER_LU = 3; // a stem is so much softer than the mix it joins
const ALONE_LUFS = -18; // a stem whose mix cannot be played
const CEILING = 2; // the greatest sample of mix and stem together; the player halves it

/** The second of a hit's stem where the mix begins; negative: it enters later. A loop goes round from the mix's start on. */
export function startOf({ stem, start_s: startS }) {
  if (stem.kind !== "loop") return startS;
  return startS - Math.floor(startS / stem.duration_s) * stem.duration_s;
}

/** The second of the stem that sounds with the mix's second 0; negative: it enters so long after that, in the mix's seconds. */
export const secondOf = (hit) => (startOf(hit) < 0 ? startOf(hit) / hit.speed : startOf(hit));

/**
 * The stretch of a mix that goes round, { fromS, lengthS } in its seconds: all of a short one, a part of what was searched
 * of a longer one; whole bars of it where beats are known ({ firstS, everyS }).
 */
export function loopOf({ duration_s: mixS, searched_from_s: searchedS }, beats = null) {
  const fromS = mixS > LONGEST_S ? Math.min(searchedS, mixS - LONGEST_S) : 0;
  const toS = Math.min(mixS, fromS + LONGEST_S);
  if (!beats) return { fromS, lengthS: toS - fromS };
  const { firstS, everyS } = beats;
  const begin = Math.max(0, firstS + Math.ceil((fromS - firstS) / everyS - ON_A_BEAT) * everyS);
  const count = Math.floor((toS - begin) / everyS + ON_A_BEAT);
  const whole = count >= BAR ? count - (count % BAR) : count;
  return whole ? { fromS: begin, lengthS: whole * everyS } : { fromS, lengthS: toS - fromS };
}

/**
 * The address of a hit's stem as it is played, from second `fromS` of the mix on, `lengthS` of it: silence before it enters
 * and after it has ended; null where that is all. `more`: of the file.
 */
export function renderingOf(hit, { fromS, lengthS }, more = {}) {
  const { stem, speed, transpose } = hit;
  const loop = stem.kind === "loop";
  const startS = startOf(hit) + fromS * speed;
  const start_s = loop ? startS % stem.duration_s : startS;
  if (!loop && start_s >= stem.duration_s - LEAST_S) return null;
  const query = new URLSearchParams({ speed, transpose, start_s, duration_s: lengthS, format: "wav", loop, ...more });
  return `stems/${encodeURIComponent(stem.id)}/audio?${query}`;
}

/** A hit's stem over the loop: an AudioBuffer as long as the loop. */
export async function stemOver(hit, loop) {
  const path = renderingOf(hit, loop, { rate: RATE });
  const buffer = path ? await audioAt(path) : new AudioBuffer({ numberOfChannels: 1, length: 1, sampleRate: RATE });
  return cut(buffer, 0, lengthOf(loop));
}

/** The mix over the loop with the stems in it that were `kept` ({ hit, gain_db }); null: the mix cannot be decoded. */
export async function mixOver(audio, kept, loop) {
  const [mix, ...stems] = await Promise.all([audio, ...kept.map(({ hit }) => stemOver(hit, loop))]);
  if (!mix) return null;
  const parts = stems.map((buffer, n) => ({ buffer, gain: amplitude(kept[n].gain_db) }));
  return sum([{ buffer: cut(mix, Math.round(loop.fromS * RATE), lengthOf(loop)), gain: 1 }, ...parts], lengthOf(loop));
}

const loudnesses = new WeakMap(); // AudioBuffer -> promise of its loudness

function loudness(buffer) {
  if (!loudnesses.has(buffer)) loudnesses.set(buffer, loudnessOf(buffer));
  return loudnesses.get(buffer);
}

/** By how many dB a stem is to be made louder, to be level with the mix; never so much that both together clip. */
export async function levelOf(stem, mix) {
  const [ofStem, ofMix] = await Promise.all([loudness(stem), mix ? loudness(mix) : -Infinity]);
  if (ofStem === -Infinity) return 0;
  const wanted = (ofMix === -Infinity ? ALONE_LUFS : ofMix - UNDER_LU) - ofStem;
  const room = 20 * Math.log10(Math.max(CEILING - (mix ? peakOf(mix) : 0), 0.1) / peakOf(stem));
  return Number(Math.min(wanted, room, 24).toFixed(2));
}

export const amplitude = (db) => 10 ** (db / 20);

const lengthOf = ({ lengthS }) => Math.round(lengthS * RATE);

/** `length` samples of a buffer from sample `from` on, silence where it has none; led to silence at the end. */
function cut(buffer, from, length) {
  const out = new AudioBuffer({ numberOfChannels: buffer.numberOfChannels, length, sampleRate: RATE });
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const to = out.getChannelData(channel);
    to.set(buffer.getChannelData(channel).subarray(from, from + length));
    for (let i = 0; i < FADE && i < length; i++) to[length - 1 - i] *= i / FADE;
  }
  return out;
}

/** The greatest absolute sample of a buffer. */
function peakOf(buffer) {
  let peak = 0;
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    for (const sample of buffer.getChannelData(channel)) {
      if (sample > peak) peak = sample;
      else if (-sample > peak) peak = -sample;
    }
  }
  return peak;
}
