// Loudness as ITU-R BS.1770-4 measures it: what is compared by ear is compared at the same loudness.

import { RATE } from "./clips.js";

// The two filters of its K-weighting at 48 kHz (its tables 1 and 2): the head's shelf, and the bass that is heard less.
const K_WEIGHTING = [
  [[1.53512485958697, -2.69169618940638, 1.19839281085285], [1, -1.69065929318241, 0.73248077421585]],
  [[1, -2, 1], [1, -1.99004745483398, 0.99007225036621]],
];
const OFFSET = -0.691;
const BLOCK = 0.4 * RATE;
const STEP = 0.1 * RATE;
const SILENT = -70; // LUFS; blocks below are not counted,
const UNDER = -10; // nor those so far, LU, below the rest

const lufs = (power) => OFFSET + 10 * Math.log10(power);
const mean = (values) => values.reduce((total, value) => total + value, 0) / values.length;

/** Integrated loudness of an AudioBuffer as two loudspeakers play it, LUFS; -Infinity where nothing is heard. */
export async function loudnessOf(buffer) {
  const context = new OfflineAudioContext(2, buffer.length, RATE);
  const source = new AudioBufferSourceNode(context, { buffer });
  const weigh = (node, [feedforward, feedback]) => node.connect(context.createIIRFilter(feedforward, feedback));
  K_WEIGHTING.reduce(weigh, source).connect(context.destination);
  source.start();
  const weighted = await context.startRendering();
  const powers = powersOf([0, 1].map((channel) => weighted.getChannelData(channel)));
  const heard = powers.filter((power) => lufs(power) > SILENT);
  if (!heard.length) return -Infinity;
  const gate = lufs(mean(heard)) + UNDER;
  return lufs(mean(heard.filter((power) => lufs(power) > gate)));
}

/** Mean squares of blocks that overlap by three quarters, both channels together. */
function powersOf(channels) {
  const { length } = channels[0];
  const steps = Math.max(1, Math.floor((length - BLOCK) / STEP) + 1);
  return Array.from({ length: steps }, (_, step) => {
    const end = Math.min(length, step * STEP + BLOCK);
    let total = 0;
    for (const samples of channels) for (let i = step * STEP; i < end; i++) total += samples[i] * samples[i];
    return total / (end - step * STEP);
  });
}
