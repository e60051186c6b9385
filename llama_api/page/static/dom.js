/** Elements. Text is never parsed as markup. */

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

/** Make an element; strings among the children become text nodes. */
export function make(tag, attributes = {}, ...children) {
  return furnish(document.createElement(tag), attributes, children);
}

/** Make an SVG element. */
export function draw(tag, attributes = {}, ...children) {
  return furnish(document.createElementNS(SVG, tag), attributes, children);
}

function furnish(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Set a text only if it differs, so that a live region is not announced again. */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Split a sentence at its `code` and return nodes that show it. */
export function prose(sentence) {
  return sentence.split("`").map((part, n) => (n % 2 ? make("code", {}, part) : part));
}

/** Make a table row; a cell is text or a node. */
export function row(cells, attributes = {}) {
  return make("tr", attributes, ...cells.map((cell) => make("td", {}, cell)));
}
