// Files dropped anywhere on the page.

import { byId } from "./elements.js";

const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
const overAdd = (event) => byId("add").open && event.target instanceof Element && event.target.closest("#add") !== null;

/** `mix(files)` gets those dropped on the page, `stems(files)` those dropped on the open 'Add stems' panel. */
export function mountDrop({ mix, stems }) {
  let depth = 0; // dragenter and dragleave come in pairs for every element on the way
  const veil = (shown) => {
    byId("veil").hidden = !shown;
    if (!shown) depth = 0;
  };
  document.addEventListener("dragenter", (event) => {
    if (!carriesFiles(event)) return;
    depth++;
    veil(true);
  });
  document.addEventListener("dragleave", (event) => {
    if (carriesFiles(event) && --depth <= 0) veil(false);
  });
  document.addEventListener("dragover", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    byId("veil-text").textContent = overAdd(event) ? "to add these stems to the catalog" : "to search the catalog with this mix";
  });
  document.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault();
    veil(false);
    const files = [...event.dataTransfer.files];
    if (!files.length) return;
    if (overAdd(event)) stems(files);
    else mix(files);
  });
}
