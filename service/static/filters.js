// The filters of the search form: which there are, and how many are set.

import { byId, make, pill } from "./elements.js";
import { filterFields } from "./query.js";

const FILTERS = [
  ["instrument", "Instrument"],
  ["tag", "Tag"],
  ["collection", "Collection"],
  ["key", "Key"],
  ["kind", "Kind"],
];
const MODES = ["key_match", "tempo_octaves"]; // of filters, and none themselves

/** Offer the values that the catalog holds; what was ticked stays ticked, and `also`, [name, value] pairs, is. */
export function showFilters(form, offered, also = []) {
  const chosen = new Set([...filterFields(form), ...also].map(([name, value]) => `${name}=${value}`));
  const compatible = form.elements.key_match?.checked ?? also.some(([name]) => name === "key_match");
  const groups = FILTERS.filter(([name]) => offered[name].length).map(([name, label]) =>
    make(
      "fieldset",
      { className: "pills" },
      make("legend", {}, label),
      make(
        "div",
        {},
        ...offered[name].map((value) => pill(value, { name, value, checked: chosen.has(`${name}=${value}`) })),
      ),
      name === "key" && make("label", { className: "check" }, make("input", { type: "checkbox", name: "key_match", checked: compatible }), "Compatible keys too"),
    ),
  );
  byId("filter-groups").replaceChildren(...groups);
  for (const [n, id] of ["tempo-min", "tempo-max"].entries()) {
    byId(id).placeholder = offered.tempi[n] === null ? "any" : String(offered.tempi[n]);
  }
  countFilters(form);
}

export function countFilters(form) {
  const n = filterFields(form).filter(([name]) => !MODES.includes(name)).length;
  byId("filter-count").hidden = !n;
  byId("filter-count").textContent = String(n);
}
