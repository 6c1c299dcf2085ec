// The dialog that asks for an API key.

import { byId } from "./elements.js";

/** The key that was typed; null where there is none. */
export function askKey(wrong) {
  const dialog = byId("key-dialog");
  byId("key-why").textContent = wrong
    ? "The key in this tab was refused: it is unknown here, or may not do this. Type another one."
    : "It stays in this tab and is forgotten when you close it.";
  byId("key-input").value = "";
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "ok" ? byId("key-input").value.trim() || null : null), { once: true });
  });
}
