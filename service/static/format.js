// How numbers are said on the page.

const counts = new Intl.NumberFormat("en");

export const count = (n, one, many = `${one}s`) => `${counts.format(n)} ${n === 1 ? one : many}`;

/** 72.345 -> "1:12.35"; negative seconds keep their sign. */
export function clock(seconds, digits = 2) {
  const scale = 10 ** digits;
  const whole = Math.round(Math.abs(seconds) * scale);
  const minutes = Math.floor(whole / (60 * scale));
  const rest = (whole - minutes * 60 * scale) / scale;
  const padded = rest.toFixed(digits).padStart(digits ? digits + 3 : 2, "0");
  return `${seconds < 0 && whole > 0 ? "−" : ""}${minutes}:${padded}`;
}

/** Where a stem fits: the second of the stem that sounds with the mix's second 0; negative: it enters so much later. */
export const place = (startS) =>
  startS <= -0.005 ? `enters ${(-startS).toFixed(2)} s into your mix` : `from ${clock(Math.max(0, startS))}`;

/** How a stem is to be played: "4 % faster, 2 semitones up", or "as recorded". */
export function way(speed, transpose) {
  const percent = Number((100 * Math.abs(speed - 1)).toFixed(1));
  const said = [];
  if (percent) said.push(`${percent} % ${speed > 1 ? "faster" : "slower"}`);
  if (transpose) said.push(`${count(Math.abs(transpose), "semitone")} ${transpose > 0 ? "up" : "down"}`);
  return said.join(", ") || "as recorded";
}

const SOURCES = { said: "said", tags: "from its tags", chunk: "from a chunk of the file", name: "from the file’s name", heard: "heard" };

/** Where a tempo, a key or a kind is from. */
export const source = (from, sure = true) => `${SOURCES[from] ?? "said"}${sure ? "" : ", not sure"}`;

export const score = (value, digits = 2) => value.toFixed(digits).replace("-", "−");

export function bytes(n) {
  if (n < 1e3) return `${n} B`;
  return n < 1e6 ? `${(n / 1e3).toFixed(0)} kB` : `${(n / 1e6).toFixed(1)} MB`;
}

export const milliseconds = (ms) => (ms >= 1000 ? `${(ms / 1000).toFixed(2)} s` : `${ms < 10 ? ms.toFixed(1) : ms.toFixed(0)} ms`);

export const tempo = (bpm) => `${Number(bpm.toFixed(1))} BPM`;
