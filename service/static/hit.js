// One hit on the page: what it is, where and how it is played, and what can be done with it.

import { address, getJson, key, request } from "./api.js";
import { link, make } from "./elements.js";
import { renderingOf, secondOf } from "./fitted.js";
import * as format from "./format.js";
import { whyOf } from "./why.js";

/** What a hit's stem is called as a file: the way it is played is part of the name. */
const fileName = ({ stem, speed, transpose }) =>
  `${stem.title} (${format.way(speed, transpose)}).wav`.replaceAll(/[/\\:*?"<>|\u0000-\u001f]/g, "_");

/** The address of the stem as the hit says, as long as the mix, at the stem's own rate. */
const wholeOf = (hit, mixS) => renderingOf(hit, { fromS: 0, lengthS: mixS });

/**
 * The elements of a hit: { row, play, solo, canvas, playhead }.
 *
 * `best`: the best score among the hits; `others`: hits that may stand in its place; `on`: what its controls call.
 */
export function hitRow(hit, { best, mix, mixS, others = [], on }) {
  const { stem } = hit;
  const { title } = stem;
  const startS = secondOf(hit);
  const play = make("button", { type: "button", className: "play", onclick: on.play }, make("span", { className: "glyph" }));
  const solo = link("Solo", on.solo);
  const more = make("div", { className: "windows", hidden: true });
  const canvas = make("canvas", { role: "img", "aria-label": `Waveform of ${title} under your mix; ${format.place(startS)}` });
  const playhead = make("div", { className: "playhead" });
  const bar = make("div", { className: "score-bar" }, make("div"));
  bar.firstChild.style.setProperty("--share", (best > 0 ? Math.max(0, hit.score / best) : 0).toFixed(4));
  const row = make(
    "li",
    { className: "hit", "data-stem": stem.id, "data-start": String(startS), "data-speed": String(hit.speed), draggable: true, ondragstart: (event) => drag(event, hit, mixS) },
    make("span", { className: "rank", "aria-label": `Rank ${hit.rank}` }, String(hit.rank)),
    play,
    make(
      "div",
      { className: "hit-text" },
      make("h3", { title }, title),
      make(
        "p",
        { className: "chips" },
        stem.instrument && make("span", { className: "chip" }, stem.instrument),
        ["loop", "one-shot"].includes(stem.kind) && make("span", { className: "chip", title: from(stem, "kind") }, stem.kind),
        stem.track && make("span", { className: "quiet" }, stem.track),
      ),
      make("p", { className: "quiet meta" }, ...about(stem)),
      mix.track && stem.track === mix.track && make("p", { className: "own" }, "From your mix’s own track"),
      others.length > 0 && instead(hit, others, on.swap),
    ),
    make(
      "div",
      { className: "hit-place" },
      make("div", { className: "lane", onclick: on.seek }, canvas, playhead),
      make(
        "p",
        { className: "under" },
        make("span", {}, make("strong", { className: "place" }, format.place(startS)), " ", make("span", { className: "way" }, format.way(hit.speed, hit.transpose))),
        make(
          "span",
          { className: "actions" },
          favourite(stem),
          link("Keep", on.keep, { "aria-label": `Keep ${title} with the mix` }),
          solo,
          link("Download", ({ currentTarget }) => download(currentTarget, wholeOf(hit, mixS), fileName(hit)), { "aria-label": `Download ${title} as it is played here` }),
          link("More", ({ currentTarget }) => unfold(currentTarget, more, hit, mix), { "aria-label": `More about ${title}`, "aria-expanded": "false" }),
        ),
      ),
      make("p", { className: "player-problem", role: "alert" }),
      more,
    ),
    make("div", { className: "hit-score" }, make("span", { className: "score", title: `score ${hit.score}` }, make("span", { className: "sr" }, "Score "), format.score(hit.score, best < 1 ? 3 : 2)), bar, sureOf(hit)),
  );
  return { row, play, solo, canvas, playhead };
}

/** How likely it is to belong to the mix: of stems that score so, the share that do. */
function sureOf({ sureness }) {
  if (sureness === null) return null;
  const title = `Of stems that score so, ${Math.round(100 * sureness)} of 100 belong to the mix`;
  return make("span", { className: sureness < 0.5 ? "sure doubtful" : "sure", title }, sureness < 0.5 ? "no better than chance" : `${Math.round(100 * sureness)} % sure`);
}

/** A star for the stem, in the catalog. */
function favourite(stem) {
  const star = make("button", { type: "button", className: "link star", "aria-label": `${stem.title} is a favourite`, onclick: () => pressed(star, turn) });
  const show = () => {
    star.textContent = stem.favourite ? "★" : "☆";
    star.setAttribute("aria-pressed", String(stem.favourite));
  };
  async function turn() {
    const body = JSON.stringify({ favourite: !stem.favourite });
    const changed = await getJson(`stems/${encodeURIComponent(stem.id)}`, { method: "PATCH", body, headers: { "Content-Type": "application/json" } });
    stem.favourite = changed.favourite;
    show();
  }
  show();
  return star;
}

/** A choice among stems that may fill the same place of a band. */
function instead(hit, others, swap) {
  const options = [hit, ...others].map(({ stem }, n) => make("option", { value: String(n - 1) }, stem.title));
  return make("select", { className: "instead", "aria-label": `Another ${hit.stem.instrument || "stem"} instead`, onchange: ({ target }) => swap(others[Number(target.value)]) }, ...options);
}

/** Dropped outside the browser it is its WAV. A link carries no API key: where one is needed, there is the button. */
function drag(event, hit, mixS) {
  const path = wholeOf(hit, mixS);
  if (key.get() || !path) return event.preventDefault();
  const url = address(path);
  event.dataTransfer.effectAllowed = "copy";
  event.dataTransfer.setData("DownloadURL", `audio/wav:${fileName(hit)}:${url}`);
  event.dataTransfer.setData("text/uri-list", url);
}

/** Where a fact of a stem is from, for a title. */
const from = (stem, name) => format.source(stem.sources[name], stem.sure[name]);

function about(stem) {
  const unsure = (name) => stem.sure[name] === false && make("span", {}, "?", make("span", { className: "sr" }, " (not sure)"));
  const facts = [];
  if (stem.tempo_bpm) facts.push(make("span", { className: "fact", title: from(stem, "tempo_bpm") }, format.tempo(stem.tempo_bpm), unsure("tempo_bpm")));
  if (stem.key) facts.push(make("span", { className: "fact", title: from(stem, "key") }, stem.key, unsure("key")));
  facts.push(format.clock(stem.duration_s, 0));
  return facts.flatMap((fact, n) => (n ? [" · ", fact] : [fact]));
}

/** Why it fits, the windows that were compared, and the file as it was recorded. */
function unfold(button, panel, hit, mix) {
  if (!panel.firstChild) {
    const cells = (tag, ...texts) => make("tr", {}, ...texts.map((text) => make(tag, tag === "th" ? { scope: "col" } : {}, text)));
    const { id, title, file_name: name } = hit.stem;
    if (mix.id) panel.append(whyOf(hit, mix));
    panel.append(
      make(
        "table",
        {},
        make("caption", { className: "sr" }, "Windows that were compared"),
        make("thead", {}, cells("th", "Mix", "Stem", "Score")),
        make("tbody", {}, ...hit.windows.map((pair) => cells("td", format.clock(pair.mix_s), format.clock(pair.stem_s), format.score(pair.score)))),
      ),
    );
    const [score, cost, harmony, length] = [hit.score, hit.cost, hit.harmony_cost, hit.length_cost].map((value) => Math.round(100 * value));
    const less = [[cost, "for playing it otherwise"], [harmony, hit.stem.pitched ? "for its notes beside the mix's" : "for playing no notes"], [length, "for its length"]].filter(([value]) => value).map(([value, why]) => ` − ${format.score(value / 100)} ${why}`);
    if (less.length) panel.append(make("p", { className: "quiet" }, `Score ${format.score(score / 100)} = ${format.score((score + cost + harmony + length) / 100)}${less.join("")}`));
    const recorded = ({ currentTarget }) => download(currentTarget, `stems/${encodeURIComponent(id)}/audio`, name);
    panel.append(link("Download as recorded", recorded, { "aria-label": `Download ${title} as recorded` }));
  }
  panel.hidden = !panel.hidden;
  button.setAttribute("aria-expanded", String(!panel.hidden));
}

/** By fetch and not by a plain link, because a link cannot carry the API key. */
const download = (button, path, name) => pressed(button, async () => save(await (await request(path)).blob(), name));

/** Do what a button of a hit asks, once at a time; what fails is said under the hit. */
async function pressed(button, doing) {
  const said = button.closest(".hit").querySelector(".player-problem");
  said.textContent = "";
  button.disabled = true;
  try {
    await doing();
  } catch (problem) {
    said.textContent = problem.message;
  } finally {
    button.disabled = false;
  }
}

/** Give a file to the person. */
export function save(blob, name) {
  const url = URL.createObjectURL(blob);
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
