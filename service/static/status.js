// Whether the service answers, with how much, and by which model: asked again and again, and shown by the chip.

import { getJson } from "./api.js";
import { byId } from "./elements.js";
import * as format from "./format.js";

const READY_POLL_MS = 10_000;
const WAITING_POLL_MS = 1_500;

let whenReady = () => {};

/** Ask from now on; `ready` is called each time the service becomes ready. */
export function watchStatus(ready) {
  whenReady = ready;
  refreshStatus();
}

let statusTimer = 0;

export async function refreshStatus() {
  clearTimeout(statusTimer);
  let state;
  try {
    // Starting and rebuilding are answered with 503 and the same body; a catalog that is away with 503 and a problem.
    state = await getJson("readyz", { quiet: true, also: [503] });
  } catch (problem) {
    state = { title: "The service cannot be reached", ...problem };
  }
  const hurried = state.status === 429; // and knows no better than before
  if (!hurried) showStatus(state);
  const settled = hurried || (state.status === "ready" && !state.stems?.queued);
  statusTimer = setTimeout(refreshStatus, settled ? READY_POLL_MS : WAITING_POLL_MS);
}

function showStatus(state) {
  const before = document.body.dataset.service;
  const status = state.title ? "unreachable" : state.status;
  document.body.dataset.service = status;
  const { stems = 0, windows = 0, generation = null } = state.index ?? {};
  const said = {
    ready: "Ready",
    starting: "Starting…",
    rebuilding: "Rebuilding the index…",
    unreachable: state.title ?? "The index server cannot be reached",
  };
  const parts = [said[status]];
  if (status === "ready") {
    parts.push(format.count(stems, "stem"), format.count(windows, "window"));
    if (generation !== null) parts.push(`generation ${generation}`);
  }
  if (state.stems?.queued) parts.push(`${state.stems.queued} waiting`);
  if (state.stems?.failed) parts.push(`${state.stems.failed} failed`);
  const text = parts.join(" · ");
  const chip = document.querySelector("#status .status-text");
  if (chip.textContent !== text) chip.textContent = text;
  if (state.model) showTrained(state.model);
  if (status === "ready" && before !== "ready") whenReady();
}

export function showTrained({ trained, note }) {
  byId("untrained").hidden = trained;
  byId("untrained-note").textContent = note ?? "";
}
