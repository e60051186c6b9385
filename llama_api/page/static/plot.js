/** One plot: time from left to right, stacked areas or lines, gaps left open, outages as bands. */

import { draw, make, say } from "./dom.js";
import { areaPath, ceiling, linePath, scales, stack, stretches } from "./geometry.js";
import { amount, duration } from "./words.js";

const HEIGHT = 128; // of the drawing, in CSS pixels, as are the margins
const MARGIN = { left: 48, right: 4, top: 8, bottom: 20 };
const COLUMNS = 3; // separated by vertical lines

export class Plot {
  #heading = make("h3");
  #legend = make("ul", { class: "legend" });
  #svg = draw("svg", { role: "img", height: HEIGHT });
  #cursor = draw("line", { class: "cursor", y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom, visibility: "hidden" });
  #values = [];
  #shown = null;
  #scale = null;

  /** `read(index)` is called with the point under the pointer, or null when it leaves. */
  constructor(read) {
    this.figure = make("figure", { class: "card" }, make("figcaption", {}, this.#heading, this.#legend), this.#svg);
    this.#svg.addEventListener("pointermove", (event) =>
      read(this.#scale?.at(event.clientX - this.#svg.getBoundingClientRect().left) ?? null));
    this.#svg.addEventListener("pointerleave", () => read(null));
    new ResizeObserver(() => this.#shown && this.#draw()).observe(this.figure);
  }

  /** Show series of equal length, `step` seconds apart; the zeros of `outages` are drawn as bands. */
  show(title, series, outages, step) {
    this.#shown = { title, series, outages, step };
    const unit = ["s", "B"].includes(series[0].unit) ? "" : series[0].unit || ""; // these are written after each number
    this.#heading.replaceChildren(title, " ", make("span", { class: "unit" }, unit));
    this.#values = series.map(() => make("b"));
    this.#legend.replaceChildren(...series.map((one, n) => make("li", {}, draw("svg", { class: "swatch",
      viewBox: "0 0 10 10", "aria-hidden": "true" }, draw("path", { class: look(one, n), d: swatch(one) })),
      `${one.name} `, this.#values[n])));
    this.#svg.setAttribute("aria-label", summary(this.#shown));
    this.#draw();
  }

  /** Show the values of a point, and its position unless it is the newest. */
  read(index) {
    const { series } = this.#shown;
    series.forEach((one, n) => say(this.#values[n], amount(one.points[index], one.unit, false)));
    const newest = index === series[0].points.length - 1;
    this.#cursor.setAttribute("visibility", newest ? "hidden" : "visible");
    for (const end of ["x1", "x2"]) this.#cursor.setAttribute(end, this.#scale.x(index));
  }

  #draw() {
    const { series, outages, step } = this.#shown;
    const width = Math.max(this.#svg.clientWidth, 120);
    const box = { left: MARGIN.left, top: MARGIN.top, width: width - MARGIN.left - MARGIN.right,
      height: HEIGHT - MARGIN.top - MARGIN.bottom };
    const areas = series.filter((one) => one.kind === "area");
    const stacked = stack(areas.map((one) => one.points));
    const tops = [...stacked.map(({ top }) => top), ...series.filter((one) => !areas.includes(one)).map((one) => one.points)];
    const most = ceiling(Math.max(0, ...tops.flat()), series[0].unit);
    const count = series[0].points.length;
    const scale = this.#scale = scales(box, count, most);
    const shapes = series.map((one, n) => draw("path", { class: look(one, n), d: areas.includes(one)
      ? areaPath(stacked[areas.indexOf(one)].floor, stacked[areas.indexOf(one)].top, scale) : linePath(one.points, scale) }));
    this.#svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.#svg.replaceChildren(...bands(outages, scale, box), ...grid(box, most, series[0].unit, count * step),
      ...shapes, this.#cursor);
  }
}

/** The classes of a series, the nth of its plot. */
function look({ kind, tone }, n) {
  return `${kind} ${tone === "bad" ? "bad" : `tone${n % 5}`}`;
}

function swatch({ kind }) {
  return kind === "area" ? "M0 0H10V10H0Z" : "M0 5H10";
}

function bands(outages, { edge }, { top, height }) {
  return outages.flatMap(({ name, points }) => stretches(points, (point) => point === 0).map(([first, last]) =>
    draw("rect", { class: "outage", x: edge(first), y: top, width: edge(last + 1) - edge(first), height },
      draw("title", {}, name))));
}

function grid({ left, top, width, height }, most, unit, seconds) {
  const marks = [];
  for (const part of [0, 0.5, 1]) {
    const y = top + height * (1 - part);
    marks.push(draw("line", { class: "grid", x1: left, x2: left + width, y1: y, y2: y }),
      draw("text", { x: left - 6, y: y + 4, "text-anchor": "end" }, amount(most * part, unit, false)));
  }
  for (let n = 0; n <= COLUMNS; n += 1) {
    const x = left + (width * n) / COLUMNS;
    const ago = duration(seconds * (1 - n / COLUMNS));
    marks.push(draw("text", { x, y: top + height + 15, "text-anchor": n === 0 ? "start" : n === COLUMNS ? "end" : "middle" },
      n === COLUMNS ? "now" : `−${ago}`));
  }
  return marks;
}

/** The plot as a sentence, for screen readers. */
function summary({ title, series, outages }) {
  const parts = series.map(({ name, unit, points }) => {
    const known = points.filter((point) => point !== null);
    const most = known.length ? Math.max(...known) : null;
    return `${name}: now ${amount(points.at(-1), unit)}, at most ${amount(most, unit)}`;
  });
  const down = outages.filter(({ points }) => points.includes(0)).map(({ name }) => `bands: ${name}`);
  return `${title}. ${[...parts, ...down].join("; ")}.`;
}
