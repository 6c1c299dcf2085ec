// Keys that act on the whole page, and the dialog that shows them.

import { byId } from "./elements.js";

const TYPING = "input, select, textarea, [contenteditable]";
const PRESSED = "button, a, summary"; // what Space presses, where it has the focus

/** `walk(step)`, `go(n)`, `toggle()`, `stop()`: see app.js. Keys can be turned off: a screen reader or dictation may want them itself. */
export function mountShortcuts({ walk, go, toggle, stop }) {
  const dialog = byId("keys-dialog");
  const show = () => dialog.showModal();
  const keys = {
    ArrowDown: () => walk(1),
    ArrowUp: () => walk(-1),
    " ": toggle,
    "?": show,
    ...Object.fromEntries([..."123456789"].map((digit) => [digit, () => go(Number(digit) - 1)])),
  };
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return document.querySelector("dialog[open]") ? undefined : stop();
    const { target, key } = event;
    if (event.defaultPrevented || event.ctrlKey || event.metaKey || event.altKey || !keys[key]) return;
    if (document.querySelector("dialog[open]") || !byId("keys-on").checked || target.closest(TYPING)) return;
    if (key === " " && target.closest(PRESSED)) return;
    if (keys[key]() === false) return; // nothing to do: the page scrolls as ever
    event.preventDefault();
  });
  byId("keys-button").addEventListener("click", show);
}
