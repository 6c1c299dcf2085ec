// What the catalog holds: the values that filters offer, and the stems of one track for a demo mix.

import { getJson } from "./api.js";

const MOST_TRACKS = 500; // a longer list helps nobody choose
const MOST_STEMS = 32; // as many as one query may be made of

const inOrder = (values) => [...values].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));

/** The values each filter can take, by the API's name of the filter, and the tracks. */
export async function readChoices() {
  const { instruments, tags, collections, keys, kinds, tracks, tempo_min, tempo_max } = await getJson("catalog");
  return {
    instrument: inOrder(instruments),
    tag: inOrder(tags),
    collection: inOrder(collections),
    key: inOrder(keys),
    kind: inOrder(kinds),
    tracks: inOrder(tracks).slice(0, MOST_TRACKS),
    tempi: [tempo_min, tempo_max],
  };
}

/** The ready stems of one track. */
export async function stemsOfTrack(track) {
  const query = new URLSearchParams({ state: "ready", limit: MOST_STEMS, track });
  return (await getJson(`stems?${query}`)).stems;
}
