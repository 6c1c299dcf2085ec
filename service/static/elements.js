// Making elements, so that text from the service can never become markup.

const isAbsent = (value) => value === null || value === undefined || value === false;

/** `make("li", { className: "hit", onclick }, child, "text")`; null and false are left out. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [property, value] of Object.entries(properties)) {
    if (isAbsent(value)) continue;
    if (property.startsWith("on")) element.addEventListener(property.slice(2), value);
    else if (property in element && property !== "list") element[property] = value;
    else element.setAttribute(property, value);
  }
  element.append(...children.filter((child) => !isAbsent(child)));
  return element;
}

/** A button that looks like a link. */
export const link = (text, onclick, more = {}) => make("button", { type: "button", className: "link", onclick, ...more }, text);

/** One of several that can be ticked. */
export const pill = (text, box, more = {}) => make("label", more, make("input", { type: "checkbox", ...box }), make("span", {}, text));

/** The values that are ticked in an element. */
export const tickedIn = (id) => [...byId(id).querySelectorAll("input:checked")].map(({ value }) => value);

export const byId = (id) => document.getElementById(id);
