// What a hit is heard with: the mix over the stretch that goes round, with the stems in it that were kept.

import { once } from "./clips.js";
import { loopOf, mixOver } from "./fitted.js";
import { beatsOf } from "./heard.js";
import { peaksOf } from "./waveform.js";

/**
 * Of an answer to `mix`: { loop, beats, mix(), drawn() }.
 *
 * `mix()` promises an AudioBuffer as long as the loop (null: it cannot be decoded), made once; `drawn()` are its peaks,
 * null until then.
 */
export function groundOf(answer, mix) {
  const beats = beatsOf(answer.mix, mix);
  const loop = loopOf(answer.mix, beats);
  const kept = [...mix.placed];
  let peaks = null;
  const hear = async () => {
    const buffer = await mixOver(mix.audio(), kept, loop);
    if (buffer) peaks = peaksOf(buffer);
    return buffer;
  };
  return { loop, beats, drawn: () => peaks, mix: once(hear) };
}
