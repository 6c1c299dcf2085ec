// Making elements, so that text from the service can never become markup.

/** `make("li", { class: "hit", onclick }, child, "text")`; null and false are left out. */
export function make(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [property, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (property.startsWith("on")) element.addEventListener(property.slice(2), value);
    else if (property in element && property !== "list") element[property] = value;
    else element.setAttribute(property === "className" ? "class" : property, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const byId = (id) => document.getElementById(id);
