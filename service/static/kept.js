// The last answer, kept with the page in the tab's history: going back to the page, or reloading it, shows it again.

/** Keep an `answer`, what was asked and its mix; not a file's audio, which may be larger than any browser keeps here. */
export function keep({ answer, fields, mix }) {
  const { file: _file, audio: _audio, ...rest } = mix;
  try {
    history.replaceState({ answer, fields, mix: rest }, "");
  } catch {
    forget(); // too large for this browser: it is shown until the page goes
  }
}

export const forget = () => history.replaceState(null, "");

/** What was kept, or null. */
export const kept = () => history.state;
