// The page at /: gives a mix to the service, shows what fits, and plays it in place.

import { getJson, key, onKeyNeeded } from "./api.js";
import { readChoices } from "./catalog.js";
import { decode, once } from "./clips.js";
import { Demo, demoMix } from "./demo.js";
import { mountDrop } from "./drop.js";
import { byId } from "./elements.js";
import { countFilters, showFilters } from "./filters.js";
import { secondOf } from "./fitted.js";
import * as format from "./format.js";
import { groundOf } from "./ground.js";
import { Heard } from "./heard.js";
import { Ingest } from "./ingest.js";
import { forget, keep, kept } from "./kept.js";
import { askKey } from "./key.js";
import { Song, named } from "./placed.js";
import { Player } from "./player.js";
import { problemCard } from "./problem.js";
import { asSearch, curlLine, fillForm, formData, queryFields } from "./query.js";
import { Results } from "./results.js";
import { mountSaved } from "./saved.js";
import { mountShortcuts } from "./shortcuts.js";
import { refreshStatus, showTrained, watchStatus } from "./status.js";
import { mountTransport } from "./transport.js";
import { drawLane, peaksOf } from "./waveform.js";

const SLOW_S = 4;
const GONE = { title: "The mix has to be dropped again", detail: "Its hits were kept with this page, its file was not." };

const form = byId("query");
const before = kept();
if (before) fillForm(form, asSearch(before.fields)); // while nobody listens who would search anew
const player = new Player();
const results = new Results(player);
const panel = new Heard();
const song = new Song();
const demo = new Demo();
const showSaved = mountSaved(form, { opened: () => (countFilters(form), showCurl()), failed: showProblem });
const ingest = new Ingest(() => {
  refreshStatus();
  refreshCatalog();
});

let mix = null; // the one to search with: { name, file | stemIds, track, id, placed, complete, audio(), peaks, undecodable, gone }
let fileMix = null; // the last file, kept while a demo mix is tried
let search = null; // AbortController of the search under way
let again = null; // what the retry button does
let shown = null; // { answer, fields, mix, ground } of the hits on the page
let unticked = before?.fields ?? []; // filters of an answer that was kept; they are there when the catalog has been read

// The catalog: filters and demo tracks -------------------------------------------------------------------------

async function refreshCatalog() {
  let offered;
  try {
    offered = await readChoices();
  } catch (problem) {
    demo.empty(`The catalog cannot be listed. ${problem.message}`);
    return;
  }
  ingest.offer(offered);
  song.offer(offered.instrument);
  showFilters(form, offered, unticked);
  showCurl();
  showSaved().catch(() => {}); // the list stays as it was
  unticked = [];
  demo.offer(offered.tracks, shown?.mix);
}

// The mix ------------------------------------------------------------------------------------------------------

function takeFile(file) {
  const audio = once(() => file.arrayBuffer().then(decode).catch(() => null));
  fileMix = { name: file.name, file, facts: format.bytes(file.size), placed: [], peaks: null, audio };
  choose(fileMix);
  hear(mix);
  runSearch();
  bringToView();
}

function takeDropped(files) {
  if (files.length === 1) takeFile(files[0]);
  else showProblem({ title: "One mix at a time", detail: `${files.length} files were dropped. Drop one to search with it; stems for the catalog go on the open panel “Add stems”.` });
}

function choose(next) {
  if (player.lastId === "mix") player.forget(); // what could be played again is the mix that was
  if (next !== mix) clearProblem();
  mix = next;
  if (mix) form.elements.source.value = mix.stemIds ? "demo" : "file";
  panel.about(mix);
  song.show(groundNow() && mix, shown?.answer.mix);
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
  const { loop, beats } = groundNow() ?? {};
  const mark = loop ? { from: loop.fromS, to: loop.fromS + loop.lengthS } : null;
  drawLane(byId("mix-canvas"), { from: 0, to: durationS, mix: { startS: 0, durationS, peaks: mix.peaks }, mark, beats: beats ?? null });
}

/** What hits are heard with, once the mix has been searched with. */
const groundNow = () => (mix && shown?.mix === mix ? shown.ground : null);

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
}

/** The mix alone: what goes round under the hits, or all of it before there are any. */
function playMix() {
  const ground = groundNow();
  const heard = mix;
  const whole = async () => ({ mix: await heard.audio(), stem: null });
  const sound = ground ? async () => ({ mix: await ground.mix(), stem: null }) : whole;
  player.play({ id: "mix", sound, loop: ground?.loop ?? null, listen: "mix" });
  hear(heard);
}

// The search ---------------------------------------------------------------------------------------------------

async function runSearch() {
  if (mix?.gone && !mix.id) {
    showProblem(GONE);
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
  clearProblem();
  if (shown?.mix !== asked) forgetAnswer();
  byId("busy").hidden = false;
  const ticking = countSeconds(form.elements.align.value);
  document.body.dataset.search = "busy";
  byId("announce").textContent = "Searching";
  hear(asked);
  try {
    const answer = await ask(fields, asked, mine.signal);
    asked.id = answer.mix_id;
    player.forget();
    shown = { answer, fields, mix: asked, ground: groundOf(answer, asked) };
    showAnswer();
    keep(shown);
    const [first] = answer.hits;
    byId("announce").textContent = first
      ? `${format.count(answer.hits.length, "hit")}. Best: ${first.stem.title}, ${format.place(secondOf(first))}, ${format.way(first.speed, first.transpose)}.`
      : "No stem passed the filters.";
  } catch (problem) {
    if (problem.name === "AbortError") {
      if (search === mine) document.body.dataset.search = shown ? "done" : "idle";
    } else {
      document.body.dataset.search = "failed"; // what this mix was answered before stays
      byId("announce").textContent = "";
      showProblem(named(problem, asked.placed), problem === GONE ? null : runSearch);
    }
  } finally {
    clearInterval(ticking);
    if (search === mine) {
      search = null;
      byId("busy").hidden = true;
      showWelcome();
    }
  }
}

/** On a phone what is found lies far below the button that was pressed. */
function bringToView() {
  const { top } = byId("results").getBoundingClientRect();
  const behavior = matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth";
  if (top > innerHeight * 0.35 || top < 0) byId("results").scrollIntoView({ behavior });
}

/** The answer to a mix: by its handle where it was searched with before, else by its file. */
async function ask(fields, asked, signal) {
  const answer = () => getJson("retrieve", { method: "POST", body: formData(fields, asked), signal });
  try {
    return await answer();
  } catch (problem) {
    if (problem.type !== "/problems/mix-not-found" || !asked.id) throw problem;
    asked.id = null; // it was kept for an hour
    if (asked.gone) throw GONE;
    return await answer();
  }
}

function forgetAnswer() {
  player.forget();
  results.clear();
  song.show(null);
  forget();
  shown = null;
}

function showAnswer() {
  const { answer, fields, mix: asked, ground } = shown;
  results.show(answer, asked, ground);
  song.show(asked === mix ? asked : null, answer.mix);
  panel.show(answer.mix, asked, Object.fromEntries(fields).align === "beats");
  panel.about(mix);
  drawMix();
  showTrained(answer.model);
  document.body.dataset.search = "done";
}

/** The answer that this page showed before it was left or loaded again. A demo mix is fetched anew; a file can only be dropped again. */
function showKept({ answer, fields, mix: was }) {
  if (was.stemIds) choose(demoMix(was));
  else choose((fileMix = { ...was, gone: true, undecodable: true, audio: async () => null }));
  shown = { answer, fields, mix, ground: groundOf(answer, mix) };
  showWelcome();
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
  if (retry) actions.push(["Try again", tryAgain]);
  if (mix?.file && [413, 415, 422].includes(problem.status)) actions.push(["Choose another file", () => byId("mix-file").click()]);
  if (problem.status === 401 || problem.status === 403) actions.push(["Use another key", changeKey]);
  byId("problem").replaceChildren(problemCard(problem, actions));
  showWelcome();
}

function tryAgain() {
  byId("results").focus({ preventScroll: true }); // the button is about to go
  again?.();
}

function clearProblem() {
  again = null;
  byId("problem").replaceChildren();
  showWelcome();
}

/** Where there is nothing else to see. */
function showWelcome() {
  byId("welcome").hidden = Boolean(shown || search || byId("problem").firstChild);
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
  again?.();
}

function showKey() {
  byId("key-button").hidden = key.get() === null;
  showCurl();
}

// Wiring -------------------------------------------------------------------------------------------------------

form.addEventListener("submit", (event) => {
  event.preventDefault();
  if (mix) mix.complete = null;
  runSearch();
  bringToView();
});
form.addEventListener("change", (event) => {
  const { name, id } = event.target;
  if (id === "mix-file") {
    const [file] = event.target.files;
    event.target.value = ""; // so that the same file can be chosen again
    if (file) takeFile(file);
  } else if (name === "source") {
    if (event.target.value === "demo") demo.take();
    else choose(fileMix);
    showMix();
  }
  countFilters(form);
  showCurl();
});
form.addEventListener("input", showCurl);

async function surprise() {
  form.elements.source.value = "demo";
  await demo.surprise();
  if (!mix) return;
  runSearch();
  bringToView();
}

byId("filters").addEventListener("invalid", () => (byId("filters").open = true), true); // what is wrong must be seen
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
panel.addEventListener("settled", () => groundNow() && runSearch()); // a saved search may be opened before there is a mix
demo.addEventListener("mix", ({ detail }) => {
  if (form.elements.source.value !== "demo") return;
  const isShown = detail && String(detail.stemIds) === String(shown?.mix.stemIds); // with what was kept and said of it
  choose(isShown ? shown.mix : detail);
});
demo.addEventListener("problem", ({ detail }) => showProblem(detail.problem, detail.again));
results.addEventListener("keep", ({ detail }) => {
  if (detail.mix !== shown?.mix) return; // they have gone meanwhile
  const more = detail.kept.filter(({ hit }) => !detail.mix.placed.some((one) => one.hit.stem.id === hit.stem.id));
  if (!more.length) return; // pressed twice
  if (detail.mix !== mix) choose(detail.mix);
  mix.placed = [...mix.placed, ...more];
  mix.complete = null;
  song.show(mix);
  byId("song").focus({ preventScroll: true }); // the button is about to go
  runSearch();
});
song.addEventListener("change", runSearch);
song.addEventListener("complete", ({ detail }) => {
  mix.complete = detail;
  runSearch();
});
byId("keep-all").addEventListener("click", () => results.keepAll());
byId("mix-play").addEventListener("click", () => (player.state.id === "mix" ? player.stop() : playMix()));
byId("cancel").addEventListener("click", () => search?.abort());
byId("curl-copy").addEventListener("click", copyCurl);
byId("key-button").addEventListener("click", changeKey);
byId("key-cancel").addEventListener("click", () => byId("key-dialog").close(""));
byId("add-link").addEventListener("click", (event) => {
  event.preventDefault();
  byId("add").open = true;
  byId("add").scrollIntoView({ block: "start" });
  byId("add").querySelector("summary").focus({ preventScroll: true });
});
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
    const { fromS } = player.state.loop ?? { fromS: 0 };
    byId("mix-card").querySelector(".playhead").style.setProperty("--at", String((fromS + position) / (mix?.durationS || 1)));
  },
});
mountShortcuts({
  walk: (step) => shown !== null && results.walk(step),
  go: (n) => shown !== null && results.go(n, true),
  toggle: () => {
    if (player.state.status !== "idle") player.stop();
    else if (player.canRepeat) player.repeat();
    else if (shown) results.go(0, true);
    else return false;
  },
  stop: () => player.state.status !== "idle" && player.stop(),
});
onKeyNeeded(async (wrong) => {
  const given = await askKey(wrong);
  if (given) queueMicrotask(showKey);
  return given;
});
mountDrop({ mix: takeDropped, stems: (files) => ingest.add(files) });
if (before) showKept(before);
else showMix();
showKey();
watchStatus(refreshCatalog);
