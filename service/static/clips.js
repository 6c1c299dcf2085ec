// Audio that this page has fetched and decoded: by its address, and the mix.

import { request } from "./api.js";

/** Of everything that is decoded and played, Hz: what begins on a sample is played on it. */
export const RATE = 48_000;
const BUDGET_BYTES = 192 * 2 ** 20;

const decoded = new Map(); // address -> { promise, bytes }, the last used last

/** The browser knows no decoder for this clip. */
export class Undecodable extends Error {}

/** Decode a whole file; it does not need a running AudioContext, so it works before the first click. */
export async function decode(arrayBuffer) {
  try {
    return await new OfflineAudioContext(1, 1, RATE).decodeAudioData(arrayBuffer);
  } catch {
    throw new Undecodable("this browser cannot decode it");
  }
}

/** What `make()` promises: asked for once, and once more after it has failed, by a later press. */
export function once(make) {
  let promise = null;
  return () =>
    (promise ??= make().catch((error) => {
      promise = null;
      throw error;
    }));
}

/** The AudioBuffer at an address of the service; asked for once, however many ask. */
export function audioAt(path) {
  let entry = decoded.get(path);
  if (!entry) {
    entry = { bytes: 0 };
    entry.promise = fetchAudio(path).then(
      (buffer) => {
        entry.bytes = buffer.length * buffer.numberOfChannels * 4;
        forgetOldest();
        return buffer;
      },
      (error) => {
        if (decoded.get(path) === entry) decoded.delete(path); // so that a later click tries again
        throw error;
      },
    );
  }
  decoded.delete(path);
  decoded.set(path, entry);
  return entry.promise;
}

/** The sum of stems as they were recorded, which start together; as long as the longest of them. */
export async function sumOfStems(ids) {
  const parts = await Promise.all(ids.map((id) => stemAudio(`stems/${encodeURIComponent(id)}/audio`)));
  const length = Math.max(...parts.map((part) => part.length));
  return sum(parts.map((buffer) => ({ buffer, gain: 1 })), length);
}

/** A stem's file, or as a WAV where the browser cannot decode that. */
const stemAudio = (path) =>
  audioAt(path).catch((error) => {
    if (error instanceof Undecodable) return audioAt(`${path}?format=wav`);
    throw error;
  });

/** Buffers times their gains, added up from their first samples on; `length` samples of it. */
export function sum(parts, length) {
  const channels = Math.max(...parts.map(({ buffer }) => buffer.numberOfChannels));
  const total = new AudioBuffer({ numberOfChannels: channels, length, sampleRate: RATE });
  for (let channel = 0; channel < channels; channel++) {
    const out = total.getChannelData(channel);
    for (const { buffer, gain } of parts) {
      const samples = buffer.getChannelData(Math.min(channel, buffer.numberOfChannels - 1));
      const end = Math.min(samples.length, length);
      for (let i = 0; i < end; i++) out[i] += gain * samples[i];
    }
  }
  return total;
}

async function fetchAudio(path) {
  const response = await request(path);
  return decode(await response.arrayBuffer());
}

function forgetOldest() {
  let total = 0;
  for (const { bytes } of decoded.values()) total += bytes;
  for (const [path, { bytes }] of decoded) {
    if (total <= BUDGET_BYTES) return;
    if (!bytes) continue; // still on its way
    decoded.delete(path);
    total -= bytes;
  }
}
