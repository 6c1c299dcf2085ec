// Saved searches: what the form asks, whatever the mix, by a name; opened again, or forgotten.

import { getJson, request } from "./api.js";
import { byId, link, make } from "./elements.js";
import { fillForm, searchOf } from "./query.js";

/** `opened` is called when the form has been filled, `failed` with the problem of what could not be done. */
export function mountSaved(form, { opened, failed }) {
  const list = byId("saved-list");
  const note = byId("saved-note");
  const field = byId("saved-name");

  const at = (name) => `searches/${encodeURIComponent(name)}`;

  /** Do one thing with the service, then show what it holds. */
  async function change(doing) {
    try {
      await doing();
      await show();
    } catch (problem) {
      failed(problem);
    }
  }

  function open({ name, search }) {
    const unshown = fillForm(form, search);
    note.textContent = unshown.length ? `“${name}” also says ${unshown.join(", ")}, which this page does not ask.` : "";
    opened();
  }

  function save() {
    const name = field.value.trim();
    if (!name) {
      field.focus();
      return;
    }
    const body = JSON.stringify(searchOf(form));
    change(async () => {
      await request(at(name), { method: "PUT", body, headers: { "Content-Type": "application/json" } });
      field.value = "";
      note.textContent = `Saved as “${name}”.`;
    });
  }

  function forget({ name }) {
    field.focus(); // the button is about to go
    change(() => request(at(name), { method: "DELETE" }));
  }

  async function show() {
    const { searches } = await getJson("searches");
    const item = (one) =>
      make(
        "li",
        {},
        link(one.name, () => open(one)),
        link("×", () => forget(one), { "aria-label": `Forget “${one.name}”` }),
      );
    list.replaceChildren(...searches.map(item));
  }

  byId("saved-save").addEventListener("click", save);
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault(); // it would search
    save();
  });
  return show;
}
