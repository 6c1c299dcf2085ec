// A problem in words: what happened, what the service said about it, and what to do next.

import { make } from "./elements.js";

const isPlain = (value) => ["string", "number", "boolean"].includes(typeof value);

/** `actions` are [label, function] pairs. */
export function problemCard(problem, actions) {
  const facts = Object.entries(problem.facts ?? {}).filter(([, value]) => isPlain(value));
  return make(
    "div",
    { className: "problem", "data-type": problem.type ?? "" },
    make("h2", {}, problem.title),
    problem.detail && make("p", {}, problem.detail),
    Number.isFinite(problem.retryAfterS) && make("p", { className: "retry-after" }, comeBack(problem.retryAfterS)),
    facts.length > 0 && make("p", { className: "problem-facts" }, facts.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(" · ")),
    actions.length > 0 &&
      make("div", { className: "problem-actions" }, ...actions.map(([label, onclick]) => make("button", { type: "button", className: "button small", onclick }, label))),
  );
}

function comeBack(retryAfterS) {
  const seconds = Math.ceil(retryAfterS);
  const at = new Date(Date.now() + seconds * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" });
  return `The service asks to come back in ${seconds} s, at ${at}.`;
}
