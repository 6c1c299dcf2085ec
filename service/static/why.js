// Why a hit fits: what GET /explain tells of it, drawn as rows of bars.

import { getJson } from "./api.js";
import { link, make } from "./elements.js";
import * as format from "./format.js";

const SVG = "http://www.w3.org/2000/svg";
const BAR = 14;
const HIGH = 36;

/** What the service tells of a hit once it is asked; `mix` found the hit, and is still kept by the service. */
export function whyOf(hit, mix) {
  const body = make("div", { className: "why", role: "status" });
  const ask = () => {
    body.replaceChildren("Looking why it fits …");
    getJson(`explain?${questionOf(hit, mix)}`).then(
      (why) => body.replaceChildren(...drawn(why)),
      (error) => body.replaceChildren(make("p", {}, `${error.message} `, link("Try again", ask))),
    );
  };
  ask();
  return body;
}

const questionOf = ({ stem, start_s, speed, transpose }, { id, said: { tempo_bpm } = {} }) =>
  new URLSearchParams({ mix_id: id, stem_id: stem.id, start_s, speed, transpose, ...(tempo_bpm && { tempo_bpm }) });

function drawn({ pitch, rhythm, from_s, to_s, keys, shifts, octaves, parts }) {
  const carried = Math.abs(pitch - rhythm) < 0.3 * Math.max(pitch, rhythm) ? "Both carry it" : pitch > rhythm ? "Its pitch carries it" : "Its rhythm carries it";
  const said =
    `${Math.max(pitch, rhythm) > 0 ? carried : "Neither its key nor its beat carries it"}: in this key ${difference(pitch)} other keys, ` +
    `on this beat ${difference(rhythm)} a part of a beat or more beside it. Looked at: ${format.clock(from_s, 1)} to ${format.clock(to_s, 1)} of your mix.`;
  return [
    make("p", {}, said),
    chart("Score in other keys", keys.map(({ transpose, score: value }) => [signed(transpose), value, transpose === 0])),
    chart("Score beside this beat", shifts.map(({ beats, score: value }) => [signed(beats), value, beats === 0])),
    chart("What each octave adds", octaves.map(({ low_hz, lost }, at) => [`C${at}`, lost, false, `from ${Math.round(low_hz)} Hz`])),
    chart("What each beat adds", parts.map(({ from_s: at, lost }, beat) => [String(beat + 1), lost, false, format.clock(at, 1)])),
  ];
}

const difference = (value) => `${format.score(Math.abs(value))} ${value < 0 ? "lower than in" : "higher than in"}`;

const signed = (value) => (value > 0 ? `+${value}` : String(value).replace("-", "−"));

/** Bars of `[label, value, marked, note]` about a zero line. */
function chart(title, bars) {
  const values = bars.map(([, value]) => value);
  const top = Math.max(0.1, ...values);
  const bottom = Math.min(0, ...values);
  const y = (value) => (HIGH * (top - value)) / (top - bottom);
  const picture = element("svg", {
    viewBox: `0 0 ${BAR * bars.length} ${HIGH + 12}`,
    role: "img",
    "aria-label": `${title}: ${bars.map(([label, value]) => `${label}: ${format.score(value, 1)}`).join(", ")}`,
  });
  bars.forEach(([label, value, marked, note = ""], at) => {
    const bar = element("rect", {
      x: at * BAR + 2,
      y: Math.min(y(value), y(0)),
      width: BAR - 4,
      height: Math.max(1, Math.abs(y(value) - y(0))),
      class: marked ? "marked" : "bar",
    });
    const told = element("title", {});
    told.textContent = `${label}: ${format.score(value)} ${note}`;
    bar.append(told);
    const text = element("text", { x: at * BAR + BAR / 2, y: HIGH + 10, "text-anchor": "middle" });
    text.textContent = label;
    picture.append(bar, text);
  });
  return make("figure", {}, make("figcaption", {}, title), picture);
}

function element(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [attribute, value] of Object.entries(attributes)) made.setAttribute(attribute, value);
  return made;
}
