// What the search form asks, once, for the request and for the curl line that repeats it.

import { address, key } from "./api.js";
import { placedField } from "./placed.js";

const REPEATED = ["instrument", "tag", "collection", "key", "kind"];
const UNSAID = { key_match: "exact", tempo_octaves: "false", group_duplicates: "true" }; // what holds where it is not sent
const TEMPI = [["tempo-min", "tempo_min"], ["tempo-max", "tempo_max"]];

/** The filter fields of the form, as [name, value] pairs in the API's own names. */
export function filterFields(form) {
  const fields = [];
  for (const name of REPEATED) {
    for (const box of form.querySelectorAll(`input[name="${name}"]:checked`)) fields.push([name, box.value]);
  }
  for (const [id, name] of TEMPI) {
    const value = form.querySelector(`#${id}`).value.trim();
    if (value) fields.push([name, value]);
  }
  const words = form.elements.q.value.trim();
  if (words) fields.push(["q", words]);
  if (form.elements.favourite.checked) fields.push(["favourite", "true"]);
  const given = new Set(fields.map(([name]) => name));
  if (given.has("key") && form.elements.key_match?.checked) fields.push(["key_match", "compatible"]);
  if ((given.has("tempo_min") || given.has("tempo_max")) && form.elements.tempo_octaves.checked) fields.push(["tempo_octaves", "true"]);
  return fields;
}

/** What the form asks, whatever the mix, as the service saves it. */
export const searchOf = (form) => asSearch(queryFields(form, null));

export function asSearch(fields) {
  const search = {};
  for (const [name, value] of fields) {
    if (REPEATED.includes(name)) (search[name] ??= []).push(value);
    else search[name] = value;
  }
  return search;
}

/** Fill the form with a saved search; the names of what it says beside that are returned. */
export function fillForm(form, search) {
  for (const box of form.querySelectorAll("#filters input[type=checkbox]")) {
    const said = search[box.name];
    box.checked = REPEATED.includes(box.name) ? Boolean(said?.includes(box.value)) : ["true", "compatible"].includes(String(said));
  }
  for (const [id, name] of TEMPI) form.querySelector(`#${id}`).value = search[name] ?? "";
  const { q, limit, align, max_stretch: stretch, max_transpose: transpose } = form.elements;
  q.value = search.q ?? "";
  limit.value = search.limit ?? limit.defaultValue;
  align.value = search.align ?? [...align].find((choice) => choice.defaultChecked).value;
  stretch.value = search.max_stretch === undefined ? stretch.defaultValue : 100 * search.max_stretch;
  transpose.value = search.max_transpose ?? transpose.defaultValue;
  for (const range of [stretch, transpose]) range.dispatchEvent(new Event("input", { bubbles: true }));
  const filled = { ...UNSAID, ...searchOf(form) };
  const isShown = (name, value) => value === null || [filled[name]].flat().includes(String(value));
  return Object.keys(search).filter((name) => ![search[name]].flat().every((value) => isShown(name, value)));
}

/** Every field of the query but the file. */
export function queryFields(form, mix) {
  const fields = (mix?.stemIds ?? []).map((id) => ["stem_id", id]);
  fields.push(["limit", form.querySelector("#limit").value || "10"]);
  const { align, max_stretch: stretch, max_transpose: transpose } = form.elements;
  fields.push(["align", align.value]);
  if (align.value === "beats") fields.push(["max_stretch", String(stretch.value / 100)], ["max_transpose", transpose.value]);
  fields.push(...Object.entries(mix?.said ?? {}).map(([name, value]) => [name, String(value)]));
  const complete = mix?.complete ?? [];
  if (mix?.placed.length) fields.push(["placed", placedField(mix.placed)]);
  if (complete.length) fields.push(["complete", complete.join(",")]);
  fields.push(...filterFields(form).filter(([name]) => name !== "instrument" || !complete.length));
  return fields;
}

/** What is sent: `fields` of queryFields, and the mix by its handle `id`, as a file, or as its stems. */
export function formData(fields, { id, file }) {
  const data = new FormData();
  if (id) data.append("mix_id", id);
  else if (file) data.append("file", file, file.name);
  for (const [name, value] of fields) if (name !== "stem_id" || !id) data.append(name, value);
  return data;
}

const quoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

/** The same query as a shell command. The key itself is never written out. */
export function curlLine(fields, mix) {
  const lines = [`curl -s ${quoted(address("retrieve"))}`];
  if (key.get()) lines.push(`-H "Authorization: Bearer $PHALAR_KEY"`);
  if (!mix?.stemIds) {
    const name = (mix?.name ?? "mix.wav").replaceAll("\\", "\\\\").replaceAll('"', '\\"');
    lines.push(`-F ${quoted(`file=@"${name}"`)}`);
  }
  // --form-string: curl reads nothing into a leading @ or < of a value.
  for (const [name, value] of fields) lines.push(`--form-string ${quoted(`${name}=${value}`)}`);
  return lines.join(" \\\n  ");
}
