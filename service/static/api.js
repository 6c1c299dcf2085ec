// Requests to the service: the API key, problem+json, and when to come back.

const KEY_NAME = "phalar.key";

let askForKey = async () => null;

/** What the service, or the way to it, refused: `title` and `detail` are written for people. */
export class Problem extends Error {
  constructor({ type = "about:blank", title, detail = "", status = 0, retryAfterS = null, facts = {} }) {
    super(detail ? `${title}: ${detail}` : title);
    Object.assign(this, { type, title, detail, status, retryAfterS, facts });
  }
}

export const key = {
  get: () => sessionStorage.getItem(KEY_NAME),
  set: (value) => (value ? sessionStorage.setItem(KEY_NAME, value) : sessionStorage.removeItem(KEY_NAME)),
};

/** `ask(wrong)` shows the dialog and resolves to a key, or to null when the person declines. */
export function onKeyNeeded(ask) {
  let open = null;
  // Several requests may meet the locked door at once; they share one dialog.
  askForKey = (wrong) => (open ??= ask(wrong).finally(() => (open = null)));
}

/** An address of the service, also when it is served under a prefix. */
export const address = (path) => new URL(path, document.baseURI).href;

/**
 * Fetch from the service.
 *
 * `quiet` never opens the key dialog; a status in `also` is an answer, not a problem. Rejects with Problem, or with AbortError when `signal` fires.
 */
export async function request(path, { quiet = false, also = [], headers = {}, ...rest } = {}) {
  for (let asked = false; ; asked = true) {
    const used = key.get();
    let response;
    try {
      response = await fetch(address(path), {
        ...rest,
        headers: used ? { ...headers, Authorization: `Bearer ${used}` } : headers,
      });
    } catch (error) {
      if (error.name === "AbortError") throw error;
      await refuseUnreadable(rest.body);
      throw new Problem({
        type: "unreachable",
        title: "The service cannot be reached",
        detail: "It may be restarting, or the connection is gone.",
      });
    }
    if (response.ok || also.includes(response.status)) return response;
    const locked = response.status === 401 || (response.status === 403 && used !== null);
    if (locked && !quiet && !asked) {
      // Another request may have been given the key while this one was under way.
      const given = key.get() !== used ? key.get() : await askForKey(used !== null);
      if (given) {
        key.set(given);
        continue;
      }
    }
    throw await problemOf(response);
  }
}

export const getJson = async (path, options) => (await request(path, options)).json();

/** A browser says of a file that it cannot read no more than of a service that is away. */
async function refuseUnreadable(body) {
  for (const file of body instanceof FormData ? body.values() : []) {
    if (!(file instanceof File)) continue;
    try {
      await file.slice(0, 1).arrayBuffer();
    } catch {
      throw new Problem({
        type: "unreadable",
        title: `${file.name} cannot be read any more`,
        detail: "It was changed or moved since it was chosen, or is a folder. Choose it again.",
      });
    }
  }
}

async function problemOf(response) {
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy in between answers in HTML; the status line is all there is to say.
  }
  const { type, title, detail, status: _status, instance: _instance, ...facts } = body ?? {};
  return new Problem({
    type,
    title: title ?? `The service answered ${response.status} ${response.statusText}`.trim(),
    detail: typeof detail === "string" ? detail : "",
    status: response.status,
    retryAfterS: Number(response.headers.get("Retry-After")) || null, // seconds; a date is not believed
    facts,
  });
}

