// A tempo from taps.

const LONGEST_PAUSE_MS = 2_500; // after a longer one the count begins anew
const SHORTEST_MS = 150; // a key that is held down repeats faster than that
const FEWEST = 4;
const NEAR = 0.03; // a finger is no nearer than this, as a share of the tempo
const MISHEARD = [1, 2, 1 / 2, 3 / 2, 2 / 3, 4 / 3, 3 / 4]; // times the true tempo: what is heard is wrong by these

/** The taps that count once there is one at `now`, ms. */
export function tapped(taps, now) {
  const since = now - taps.at(-1);
  if (since < SHORTEST_MS) return taps;
  return since <= LONGEST_PAUSE_MS ? [...taps, now] : [now];
}

/**
 * Beats a minute of taps (ms), or null while they are too few.
 *
 * Nobody taps as exactly as a search needs it (half a per cent off already costs hits): where what was `heard` is near, or one of
 * its relatives, the taps only choose among these; else it is a whole number, as most music has it.
 */
export function tempoOf(taps, heard = null) {
  if (taps.length < FEWEST) return null;
  const tempo = (60_000 * (taps.length - 1)) / (taps.at(-1) - taps[0]);
  const likely = heard ? MISHEARD.map((times) => heard * times) : [];
  const off = (one) => Math.abs(Math.log(one / tempo));
  const [nearest] = likely.sort((a, b) => off(a) - off(b));
  return nearest && off(nearest) < NEAR ? nearest : Math.round(tempo);
}
