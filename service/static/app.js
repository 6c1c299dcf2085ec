// The page at /: gives a mix to the service, shows what fits, and plays it in place.

import { getJson, key, onKeyNeeded } from "./api.js";
import { readChoices, stemsOfTrack } from "./catalog.js";
import { Undecodable, decode, sumOfStems } from "./clips.js";
import { mountDrop } from "./drop.js";
import { byId, make } from "./elements.js";
import { countFilters, showFilters } from "./filters.js";
import * as format from "./format.js";
import { Heard, beatsOf } from "./heard.js";
import { Ingest } from "./ingest.js";
import { forget, keep, kept } from "./kept.js";
import { askKey } from "./key.js";
import { Player } from "./player.js";
import { problemCard } from "./problem.js";
import { curlLine, formData, queryFields } from "./query.js";
import { Results, secondOf } from "./results.js";
import { refreshStatus, showTrained, watchStatus } from "./status.js";
import { mountTransport } from "./transport.js";
import { drawLane, peaksOf } from "./waveform.js";

const SLOW_S = 4;

const form = byId("query");
const player = new Player();
const results = new Results(player);
const panel = new Heard();
const ingest = new Ingest(() => {
  refreshStatus();
  refreshCatalog();
});

let mix = null; // the one to search with: { name, file | stemIds, track, audio(), peaks, undecodable, gone }
let fileMix = null; // the last file, kept while a demo mix is tried
let demoStems = []; // of the chosen demo track
let search = null; // AbortController of the search under way
let again = null; // what the retry button does
let shown = null; // { answer, fields, mix } of the hits on the page
let unticked = kept()?.fields ?? []; // filters of an answer that was kept; they are there when the catalog has been read

// The catalog: filters and demo tracks -------------------------------------------------------------------------

async function refreshCatalog() {
  let offered;
  try {
    offered = await readChoices();
  } catch (problem) {
    demoEmpty(`The catalog cannot be listed. ${problem.message}`);
    return;
  }
  ingest.offer(offered);
  showFilters(form, offered, unticked);
  unticked = [];
  showTracks(offered.tracks);
}

function demoEmpty(text) {
  byId("demo-empty").textContent = text;
  byId("demo-empty").hidden = !text;
  byId("demo-body").hidden = Boolean(text);
}

function showTracks(tracks) {
  demoEmpty(tracks.length ? "" : "No stem of this catalog says which track it belongs to. Add some stems with a track name first.");
  byId("demo-start").hidden = !tracks.length;
  const select = byId("demo-track");
  const before = select.value;
  select.replaceChildren(...tracks.map((name) => make("option", { value: name }, name)));
  if (tracks.includes(before)) {
    select.value = before;
  } else if (tracks.includes(shown?.mix.track)) {
    select.value = shown.mix.track;
    showDemoStems(undefined, shown.mix.stemIds);
  } else {
    showDemoStems();
  }
}

/** Offer the stems of the chosen track; the mix is those of `ticked`, or all but the one of n that `pick(n)` leaves out. */
async function showDemoStems(pick = (n) => n - 1, ticked = null) {
  const track = byId("demo-track").value;
  if (!track) return;
  let stems;
  try {
    stems = await stemsOfTrack(track);
  } catch (problem) {
    showProblem(problem, () => showDemoStems(pick, ticked));
    return;
  }
  if (track !== byId("demo-track").value) return; // another one was chosen meanwhile
  const leftOut = stems.length > 1 ? pick(stems.length) : -1;
  demoStems = stems;
  byId("demo-stems").replaceChildren(
    ...stems.map((stem, i) =>
      make(
        "label",
        { title: stem.title },
        make("input", { type: "checkbox", name: "demo-stem", value: stem.id, checked: ticked ? ticked.includes(stem.id) : i !== leftOut }),
        make("span", {}, stem.instrument || stem.title),
      ),
    ),
  );
  takeDemo();
}

// The mix ------------------------------------------------------------------------------------------------------

function takeFile(file) {
  let audio = null;
  fileMix = {
    name: file.name,
    file,
    facts: format.bytes(file.size),
    peaks: null,
    undecodable: false,
    audio: () => (audio ??= file.arrayBuffer().then(decode).catch(() => null)),
  };
  form.elements.source.value = "file";
  choose(fileMix);
  hear(mix);
  runSearch();
}

function takeDemo() {
  if (form.elements.source.value !== "demo") return;
  const ticked = [...byId("demo-stems").querySelectorAll("input:checked")].map((box) => box.value);
  const stems = demoStems.filter((stem) => ticked.includes(stem.id));
  if (!stems.length) {
    choose(null);
    return;
  }
  const { track } = stems[0];
  choose(demoMix({ name: track, track, stemIds: stems.map((stem) => stem.id), facts: stems.map((stem) => stem.instrument || stem.title).join(" + ") }));
}

function demoMix(of) {
  let audio = null;
  return {
    ...of,
    peaks: null,
    undecodable: false,
    audio: () =>
      (audio ??= sumOfStems(of.stemIds).catch((error) => {
        if (error instanceof Undecodable) return null;
        audio = null; // could not be fetched now; the next press of play tries again
        throw error;
      })),
  };
}

function choose(next) {
  if (player.lastId === "mix") player.forget(); // what could be played again is the mix that was
  mix = next;
  panel.about(mix);
  showMix();
}

function showMix() {
  const source = form.elements.source.value;
  byId("source-file").hidden = source !== "file";
  byId("source-demo").hidden = source !== "demo";
  byId("mix-card").hidden = !mix;
  document.body.classList.toggle("has-file", Boolean(mix?.file));
  if (mix) {
    byId("mix-name").textContent = mix.name;
    byId("mix-facts").textContent = mix.facts;
    byId("mix-play").disabled = mix.undecodable;
    drawMix();
  }
  showCurl();
}

function drawMix() {
  if (!mix) return;
  const durationS = mix.durationS ?? 1;
  drawLane(byId("mix-canvas"), { from: 0, to: durationS, mix: { startS: 0, durationS, peaks: mix.peaks }, mark: mix.searched ?? null, beats: mix.beats ?? null });
}

/** Decode the mix for its waveform and for playback; the search does not wait for it. */
async function hear(heard) {
  if (heard.peaks || heard.undecodable) return;
  let buffer;
  try {
    buffer = await heard.audio();
  } catch {
    return; // stems that cannot be fetched now; pressing play tries again and says why
  }
  heard.undecodable = buffer === null;
  if (heard.undecodable) {
    heard.facts = "not playable in this browser";
  } else {
    heard.peaks = peaksOf(buffer);
    heard.durationS = buffer.duration;
    if (heard.file) heard.facts = `${format.clock(buffer.duration)} · ${format.bytes(heard.file.size)}`;
  }
  if (heard === mix) showMix();
  if (heard === shown?.mix) keep(shown);
  results.mixDecoded(heard, heard.peaks);
}

// The search ---------------------------------------------------------------------------------------------------

async function runSearch() {
  if (mix?.gone) {
    showProblem({ title: "The mix has to be dropped again", detail: "Its hits were kept with this page, its file was not." });
    return;
  }
  if (!mix) {
    showProblem({ title: "There is no mix yet", detail: form.elements.source.value === "demo" ? "Tick at least one stem." : "Drop a file on this page, or choose one." });
    return;
  }
  search?.abort();
  const mine = (search = new AbortController());
  const asked = mix;
  const fields = queryFields(form, asked);
  panel.about(asked);
  player.forget();
  clearProblem();
  results.clear();
  forget();
  shown = null;
  byId("welcome").hidden = true;
  byId("busy").hidden = false;
  const ticking = countSeconds(form.elements.align.value);
  document.body.dataset.search = "busy";
  byId("announce").textContent = "Searching";
  const { top } = byId("results").getBoundingClientRect();
  if (top > innerHeight * 0.35 || top < 0) byId("results").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  hear(asked);
  try {
    const answer = await getJson("retrieve", { method: "POST", body: formData(fields, asked.file), signal: mine.signal });
    asked.searched = { from: answer.mix.searched_from_s, to: answer.mix.searched_to_s };
    shown = { answer, fields, mix: asked };
    showAnswer();
    keep(shown);
    const [first] = answer.hits;
    byId("announce").textContent = first
      ? `${format.count(answer.hits.length, "hit")}. Best: ${first.stem.title}, ${format.place(secondOf(first))}, ${format.way(first.speed, first.transpose)}.`
      : "No stem passed the filters.";
  } catch (problem) {
    if (problem.name === "AbortError") {
      if (search === mine) document.body.dataset.search = "idle";
    } else {
      document.body.dataset.search = "failed";
      byId("announce").textContent = "";
      showProblem(problem, runSearch);
    }
  } finally {
    clearInterval(ticking);
    if (search === mine) {
      search = null;
      byId("busy").hidden = true;
      byId("welcome").hidden = document.body.dataset.search !== "idle";
    }
  }
}

function showAnswer() {
  const { answer, fields, mix: asked } = shown;
  results.show(answer, asked);
  panel.show(answer.mix, asked, Object.fromEntries(fields).align === "beats");
  panel.about(mix);
  asked.beats = beatsOf(answer.mix, asked);
  drawMix();
  if (asked.peaks || asked.undecodable) results.mixDecoded(asked, asked.peaks);
  showTrained({ trained: answer.model.trained, note: byId("untrained-note").textContent });
  document.body.dataset.search = "done";
}

/** The answer that this page showed before it was left or loaded again. A demo mix is fetched anew; a file can only be dropped again. */
function showKept({ answer, fields, mix: was }) {
  if (was.stemIds) choose(demoMix(was));
  else choose((fileMix = { ...was, gone: true, undecodable: true, audio: async () => null }));
  form.elements.source.value = was.stemIds ? "demo" : "file";
  showMix();
  shown = { answer, fields, mix };
  byId("welcome").hidden = true;
  showAnswer();
}

/** Say how long it has taken, and after a while what would be faster. */
function countSeconds(align) {
  const began = performance.now();
  const say = () => {
    const seconds = Math.floor((performance.now() - began) / 1000);
    const slow = seconds >= SLOW_S && align !== "grid" ? " Trying every shift takes its time without a GPU; a mix on the catalog’s grid is answered much faster." : "";
    byId("busy-text").textContent = `Listening to your mix…${seconds >= 2 ? ` ${seconds} s.` : ""}${slow}`;
  };
  say();
  return setInterval(say, 500);
}

function showProblem(problem, retry = null) {
  again = retry;
  const actions = [];
  if (retry) actions.push(["Try again", () => again?.()]);
  if (mix?.file && problem.status >= 400 && problem.status < 500) actions.push(["Choose another file", () => byId("mix-file").click()]);
  if (problem.status === 401 || problem.status === 403) actions.push(["Use another key", changeKey]);
  byId("welcome").hidden = true;
  byId("problem").replaceChildren(problemCard(problem, actions));
}

function clearProblem() {
  byId("problem").replaceChildren();
}

// The curl line ------------------------------------------------------------------------------------------------

function showCurl() {
  byId("curl").textContent = curlLine(queryFields(form, mix), mix);
}

async function copyCurl() {
  const button = byId("curl-copy");
  try {
    await navigator.clipboard.writeText(byId("curl").textContent);
    button.textContent = "Copied";
  } catch {
    // Without a secure context there is no clipboard; the text is selected instead.
    getSelection().selectAllChildren(byId("curl"));
    button.textContent = "Selected: press Ctrl+C";
  }
  setTimeout(() => (button.textContent = "Copy"), 2_500);
}

// The API key --------------------------------------------------------------------------------------------------

async function changeKey() {
  const given = await askKey(false);
  if (given === null) return;
  key.set(given);
  showKey();
  refreshCatalog();
  if (again && document.body.dataset.search === "failed") again();
}

function showKey() {
  byId("key-button").hidden = key.get() === null;
  showCurl();
}

// Wiring -------------------------------------------------------------------------------------------------------

function openPanel(id) {
  byId(id).open = true;
  byId(id).scrollIntoView({ block: "start" });
  byId(id).querySelector("summary").focus({ preventScroll: true });
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  runSearch();
});
form.addEventListener("change", (event) => {
  const { name, id } = event.target;
  if (id === "mix-file") {
    const [file] = event.target.files;
    event.target.value = ""; // so that the same file can be chosen again
    if (file) takeFile(file);
  } else if (name === "source") {
    if (event.target.value === "demo") takeDemo();
    else choose(fileMix);
    showMix();
  } else if (id === "demo-track") {
    showDemoStems();
  } else if (name === "demo-stem") {
    takeDemo();
  }
  countFilters(form);
  showCurl();
});
form.addEventListener("input", showCurl);

const anyOf = (n) => Math.floor(Math.random() * n);

async function surprise() {
  form.elements.source.value = "demo";
  byId("demo-track").selectedIndex = anyOf(byId("demo-track").options.length);
  await showDemoStems(anyOf);
  if (mix) runSearch();
}

byId("demo-random").addEventListener("click", surprise);
byId("demo-start").addEventListener("click", surprise);
byId("filters-clear").addEventListener("click", () => {
  for (const box of byId("filters").querySelectorAll("input")) {
    if (box.type === "checkbox") box.checked = false;
    else box.value = "";
  }
  countFilters(form);
  showCurl();
});
panel.addEventListener("change", showCurl);
panel.addEventListener("settled", runSearch);
byId("mix-play").addEventListener("click", () => {
  if (player.state.id === "mix") player.stop();
  else player.play({ id: "mix", mix: mix.audio(), stem: null, lengthS: 0, listen: "mix" });
  hear(mix);
});
byId("cancel").addEventListener("click", () => search?.abort());
byId("curl-copy").addEventListener("click", copyCurl);
byId("key-button").addEventListener("click", changeKey);
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close(""));
for (const link of document.querySelectorAll("[data-open]")) {
  link.addEventListener("click", (event) => {
    event.preventDefault();
    openPanel(link.dataset.open);
  });
}
new ResizeObserver(drawMix).observe(byId("mix-canvas"));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawMix();
  results.redraw();
});
player.addEventListener("change", () => {
  const on = player.state.id === "mix";
  byId("mix-play").classList.toggle("on", on);
  byId("mix-play").setAttribute("aria-label", on ? "Stop" : "Play the mix alone");
  byId("mix-card").classList.toggle("playing", on && player.state.status === "playing");
});
mountTransport(player, {
  describe: (id) => (id === "mix" ? { title: mix?.name ?? "", place: "the mix alone" } : results.describe(id)),
  tick: (position) => {
    results.tick(position);
    byId("mix-card").querySelector(".playhead").style.setProperty("--at", String(position / (player.state.lengthS || 1)));
  },
});
onKeyNeeded(async (wrong) => {
  const given = await askKey(wrong);
  if (given) queueMicrotask(showKey);
  return given;
});
mountDrop({ mix: takeFile, stems: (files) => ingest.add(files) });
if (kept()) showKept(kept());
else showMix();
showKey();
watchStatus(refreshCatalog);
