// How an answer was found: how far the search looked, whether it is exact, and how long each stage took.

import { make } from "./elements.js";
import * as format from "./format.js";

/** How far the search looked, in one sentence. */
export function looked({ mix, align }) {
  const from = mix.searched_from_s.toFixed(2);
  const to = mix.searched_to_s.toFixed(2);
  const whole = mix.searched_from_s <= 0 && mix.searched_to_s >= mix.duration_s - 0.01;
  const stretch = whole ? `Looked at all ${mix.duration_s.toFixed(2)} s of your mix` : `Looked at ${from} to ${to} s of your ${mix.duration_s.toFixed(2)} s mix`;
  if (align.mode === "grid") return `${stretch}, starting on the catalog’s grid.`;
  const step = Math.round(align.shift_s * 1000);
  if (align.mode === "beats") return `${stretch}, at ${format.count(align.shifts, "start")} a beat or ${step} ms apart, and as recorded.`;
  return `${stretch}, at ${format.count(align.shifts, "start")} ${step} ms apart over ${align.range_s.toFixed(2)} s.`;
}

export function facts(answer) {
  const timing = answer.timing_ms;
  const stages = Object.keys(timing).filter((stage) => stage !== "total");
  const bar = make("div", { className: "timing-bar", "aria-hidden": "true" });
  for (const stage of stages) {
    const part = make("div", { title: `${stage} ${format.milliseconds(timing[stage])}` });
    part.style.setProperty("--part", String(timing[stage]));
    bar.append(part);
  }
  const { index, model } = answer;
  return [
    make(
      "p",
      { className: answer.exact ? "exact" : "exact not" },
      answer.exact ? "Proven exact at the starts that were tried" : "Not proven exact",
      make("span", { className: "quiet" }, answer.exact ? "No stem the index passed over could have ranked among these." : "A stem that the index passed over might belong here."),
    ),
    make(
      "div",
      { className: "timing" },
      bar,
      make("p", { className: "quiet" }, `${stages.map((stage) => `${stage} ${format.milliseconds(timing[stage])}`).join(" · ")} · `, make("strong", {}, `total ${format.milliseconds(timing.total)}`)),
    ),
    make(
      "p",
      { className: "quiet" },
      `Searched ${format.count(index.stems, "stem")}, ${format.count(index.windows, "window")}, index generation ${index.generation}, model `,
      make("code", { title: model.fingerprint }, model.fingerprint.slice(0, 8)),
      model.trained ? "" : " (untrained)",
    ),
  ];
}
