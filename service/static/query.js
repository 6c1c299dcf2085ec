// What the search form asks, once, for the request and for the curl line that repeats it.

import { address, key } from "./api.js";

const REPEATED = ["instrument", "tag", "collection", "key"];

/** The filter fields of the form, as [name, value] pairs in the API's own names. */
export function filterFields(form) {
  const fields = [];
  for (const name of REPEATED) {
    for (const box of form.querySelectorAll(`input[name="${name}"]:checked`)) fields.push([name, box.value]);
  }
  for (const [id, name] of [["tempo-min", "tempo_min"], ["tempo-max", "tempo_max"]]) {
    const value = form.querySelector(`#${id}`).value.trim();
    if (value) fields.push([name, value]);
  }
  return fields;
}

/** Every field of the query but the file. */
export function queryFields(form, mix) {
  const fields = (mix?.stemIds ?? []).map((id) => ["stem_id", id]);
  fields.push(["limit", form.querySelector("#limit").value || "10"]);
  fields.push(["align", form.querySelector('input[name="align"]:checked').value]);
  fields.push(...filterFields(form));
  for (const id of mix?.stemIds ?? []) fields.push(["exclude", id]);
  return fields;
}

export function formData(fields, file) {
  const data = new FormData();
  if (file) data.append("file", file, file.name);
  for (const [name, value] of fields) data.append(name, value);
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
