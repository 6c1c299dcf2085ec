// Small waveforms: peaks of decoded audio, drawn on a canvas as bars.

const COLUMNS = 1024;
const BAR = 2;
const GAP = 1;
const CLOSEST_BEATS = 3; // px: beats nearer to each other than this are no lines any more

/** Peaks of an AudioBuffer, all channels together: Float32Array of COLUMNS values in 0..1, loudest 1. */
export function peaksOf(buffer) {
  const peaks = new Float32Array(COLUMNS);
  const step = buffer.length / COLUMNS;
  let loudest = 1e-6;
  for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
    const samples = buffer.getChannelData(channel);
    for (let column = 0; column < COLUMNS; column++) {
      const end = Math.min(samples.length, Math.ceil((column + 1) * step));
      let peak = peaks[column];
      for (let i = Math.floor(column * step); i < end; i++) {
        const value = Math.abs(samples[i]);
        if (value > peak) peak = value;
      }
      peaks[column] = peak;
      if (peak > loudest) loudest = peak;
    }
  }
  return peaks.map((peak) => peak / loudest);
}

/** The loudest of `peaks` between two fractions of the clip. */
function loudestBetween(peaks, from, to) {
  const first = Math.max(0, Math.floor(from * peaks.length));
  const last = Math.min(peaks.length, Math.max(first + 1, Math.ceil(to * peaks.length)));
  let loudest = 0;
  for (let i = first; i < last; i++) if (peaks[i] > loudest) loudest = peaks[i];
  return loudest;
}

/**
 * Draw a lane.
 *
 * `stem` and `mix` are { startS, durationS, peaks } on the lane's clock, peaks null until decoded, or null where there is none.
 * `mark` ({ from, to }) is the stretch of a lone mix to stand out, `beats` ({ firstS, everyS }) are lines behind it. With both, the mix stands on the middle line and the stem hangs from it.
 */
export function drawLane(canvas, { from, to, stem = null, mix = null, mark = null, beats = null }) {
  const { clientWidth: width, clientHeight: height } = canvas;
  if (!width || !height) return;
  const ratio = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const colour = (name) => style.getPropertyValue(name).trim();
  const x = (seconds) => ((seconds - from) / (to - from)) * width;
  const both = stem && mix;

  if (beats && (beats.everyS / (to - from)) * width >= CLOSEST_BEATS) {
    pen.fillStyle = colour("--lane-beat");
    for (let n = Math.ceil((from - beats.firstS) / beats.everyS); beats.firstS + n * beats.everyS < to; n++) {
      pen.fillRect(Math.round(x(beats.firstS + n * beats.everyS)), 0, 1, height);
    }
  }

  const middle = both ? Math.round(height * 0.46) : height / 2;
  const bars = (clip, up, down, colourAt) => {
    for (let left = 0; left < width; left += BAR + GAP) {
      const at = from + (left / width) * (to - from);
      const next = from + ((left + BAR + GAP) / width) * (to - from);
      const begin = (at - clip.startS) / clip.durationS;
      const end = (next - clip.startS) / clip.durationS;
      if (end <= 0 || begin >= 1) continue;
      const loud = clip.peaks ? loudestBetween(clip.peaks, begin, end) ** 0.8 : 0;
      pen.fillStyle = colourAt((at + next) / 2);
      const above = Math.max(up ? 0.75 : 0, up * loud);
      const below = Math.max(down ? 0.75 : 0, down * loud);
      pen.fillRect(left, middle - above, BAR, above + below);
    }
  };
  if (both) {
    bars(mix, middle - 3, 0, () => colour("--lane-mix"));
    bars(stem, 0, height - middle - 3, () => colour("--accent"));
  } else if (mix) {
    const inside = (at) => !mark || (at >= mark.from && at <= mark.to);
    bars(mix, middle - 2, middle - 2, (at) => colour(inside(at) ? "--lane-ink" : "--lane-rest"));
  }
}
