// Audio that this page has fetched and decoded: stems by id, and the mix.

import { request } from "./api.js";
import { peaksOf } from "./waveform.js";

const DECODE_RATE = 48_000;
const BUDGET_BYTES = 192 * 2 ** 20;

const decoded = new Map(); // stem id -> { promise, bytes }, the last used last
const peaks = new Map(); // stem id -> peaks; small, so kept for good

/** The browser knows no decoder for this clip. */
export class Undecodable extends Error {}

/** Decode a whole file; it does not need a running AudioContext, so it works before the first click. */
export async function decode(arrayBuffer) {
  try {
    return await new OfflineAudioContext(1, 1, DECODE_RATE).decodeAudioData(arrayBuffer);
  } catch {
    throw new Undecodable("this browser cannot decode it");
  }
}

/** A stem's AudioBuffer; asked for once, however many ask. */
export function stemAudio(id) {
  let entry = decoded.get(id);
  if (!entry) {
    entry = { bytes: 0 };
    entry.promise = fetchStem(id).then(
      (buffer) => {
        entry.bytes = buffer.length * buffer.numberOfChannels * 4;
        peaks.set(id, peaksOf(buffer));
        forgetOldest();
        return buffer;
      },
      (error) => {
        if (decoded.get(id) === entry) decoded.delete(id); // so that a later click tries again
        throw error;
      },
    );
  }
  decoded.delete(id);
  decoded.set(id, entry);
  return entry.promise;
}

export const knownPeaks = (id) => peaks.get(id) ?? null;

/** A stem's peaks, fetching and decoding its audio if need be. */
export async function stemPeaks(id) {
  if (!peaks.has(id)) await stemAudio(id);
  return peaks.get(id);
}

/** The sum of stems that start together, as long as the longest of them. */
export async function sumOfStems(ids) {
  const parts = await Promise.all(ids.map(stemAudio));
  const sum = new AudioBuffer({
    numberOfChannels: Math.max(...parts.map((part) => part.numberOfChannels)),
    length: Math.max(...parts.map((part) => part.length)),
    sampleRate: DECODE_RATE,
  });
  for (let channel = 0; channel < sum.numberOfChannels; channel++) {
    const total = sum.getChannelData(channel);
    for (const part of parts) {
      const samples = part.getChannelData(Math.min(channel, part.numberOfChannels - 1));
      for (let i = 0; i < samples.length; i++) total[i] += samples[i];
    }
  }
  return sum;
}

async function fetchStem(id) {
  const response = await request(`stems/${encodeURIComponent(id)}/audio`);
  return decode(await response.arrayBuffer());
}

function forgetOldest() {
  let total = 0;
  for (const { bytes } of decoded.values()) total += bytes;
  for (const [id, { bytes }] of decoded) {
    if (total <= BUDGET_BYTES) return;
    if (!bytes) continue; // still on its way
    decoded.delete(id);
    total -= bytes;
  }
}
