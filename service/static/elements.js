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

export const byId = (id) => document.getElementById(id);
