// The bar at the foot of the page: what plays, where it is, and how loud each side is.

import { Undecodable } from "./clips.js";
import { byId } from "./elements.js";
import * as format from "./format.js";

const METER_RANGE_DB = 48;

/** Wires the bar to the player; `describe(id)` names what plays, `tick(position)` is called once a frame. */
export function mountTransport(player, { describe, tick }) {
  const bar = byId("transport");
  const toggle = byId("toggle");
  const seek = byId("seek");
  let frame = 0;
  let seeking = false;

  /** The mix's second, and where the loop ends. */
  const showClock = (position) => {
    const { fromS, lengthS } = player.state.loop ?? { fromS: 0, lengthS: 0 };
    byId("clock").textContent = `${format.clock(fromS + position, 1)} / ${format.clock(fromS + lengthS, 1)}`;
  };

  const draw = () => {
    const { position } = player;
    if (!seeking) seek.value = String(position);
    showClock(position);
    const db = 20 * Math.log10(Math.max(player.level, 1e-6));
    byId("meter-level").style.setProperty("--level", Math.max(0, 1 + db / METER_RANGE_DB).toFixed(3));
    document.body.dataset.position = position.toFixed(3);
    document.body.dataset.level = player.level.toFixed(5);
    tick(position);
    frame = player.state.status === "playing" ? requestAnimationFrame(draw) : 0;
  };

  player.addEventListener("change", () => {
    const { status, id, next, listen, loop, plan, hasMix, hasStem } = player.state;
    const active = status !== "idle";
    bar.hidden = !active && !player.canRepeat;
    document.body.classList.toggle("with-transport", !bar.hidden);
    if (active) {
      byId("player-problem").textContent = "";
      const { title, place } = describe(id);
      byId("now-title").textContent = title;
      byId("now-place").textContent = status === "loading" ? "loading…" : next ? `${describe(next).title} takes over…` : place;
    }
    bar.classList.toggle("idle", !active);
    toggle.classList.toggle("on", active);
    toggle.setAttribute("aria-label", active ? "Stop" : "Play again");
    seek.disabled = status !== "playing";
    seek.max = String(Math.max(loop?.lengthS ?? 0, 0.01));
    if (status === "playing") {
      for (const input of bar.querySelectorAll('input[name="listen"]')) {
        input.disabled = input.value === "both" ? !(hasMix && hasStem) : input.value === "mix" ? !hasMix : !hasStem;
      }
      byId("balance").disabled = !(hasMix && hasStem);
    }
    bar.querySelector(`input[name="listen"][value="${listen}"]`).checked = true;

    // The state, for whoever drives this page from outside.
    const { dataset } = document.body;
    dataset.player = status;
    dataset.playing = id ?? "";
    dataset.next = next ?? "";
    dataset.listen = listen;
    dataset.audio = player.running ? "running" : "stopped";
    dataset.schedule = plan ? JSON.stringify(plan) : "";
    if (!frame) frame = requestAnimationFrame(draw);
  });

  player.addEventListener("problem", ({ detail }) => {
    bar.hidden = false;
    byId("player-problem").textContent =
      detail instanceof Undecodable
        ? "Playback of this stem’s format is not possible in this browser."
        : `This cannot be played: ${detail.message}`;
  });

  toggle.addEventListener("click", () => (player.state.status === "idle" ? player.repeat() : player.stop()));
  seek.addEventListener("input", () => {
    seeking = true;
    showClock(Number(seek.value));
  });
  seek.addEventListener("change", () => {
    seeking = false;
    player.seek(Number(seek.value));
  });
  for (const input of bar.querySelectorAll('input[name="listen"]')) {
    input.addEventListener("change", () => (player.listen = input.value));
  }
  byId("balance").addEventListener("input", (event) => (player.balance = Number(event.target.value)));
}
