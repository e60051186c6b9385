/**
 * The plots described by GET /stats. The page knows no metric: each series says where and how it is drawn.
 *
 *   {"step": 5, "end": 1767225600, "series": [{"name": "hit", "unit": "/s", "metric": "llama_api_…",
 *     "plot": "Requests", "kind": "area", "tone": "bad", "points": [null, 0.2, …]}, …], "health": {…}, …}
 *
 * - `health`, if present, is the body of GET /health, which then is not called.
 * - `end` is the time of the newest points in seconds since 1970; `step` is the interval in seconds.
 * - Series with the same `plot` share one, in their order; a plot's unit is that of its first series.
 *   `unit` is "s" or "B", which are scaled, or a text to write after the number.
 * - `kind` is "area" (stacked on those before it), "line", "limit" (a dashed line) or "outage" (in no plot: where its
 *   points are 0, every plot has a band). `tone: "bad"` is drawn in the colour of failure. null is a gap.
 */

import { byId, row, say } from "./dom.js";
import { Plot } from "./plot.js";
import { amount, clock } from "./words.js";

const POINTS = 180; // across a plot; with fewer, the rest is a gap

const plots = new Map();
const slider = byId("moment");
let shown = null;

slider.addEventListener("input", () => read(slider.valueAsNumber));

/** Draw the series of a /stats. */
export function showSeries({ series, step, end = Date.now() / 1000 }) {
  const whole = series.map((one) => ({ kind: "line", plot: one.name, ...one, points: padded(one.points) }));
  const outages = whole.filter((one) => one.kind === "outage");
  const drawn = whole.filter((one) => one.kind !== "outage");
  const moved = shown ? Math.round((end - shown.end) / step) : 0;
  const at = !shown || slider.value === slider.max ? POINTS - 1 : Math.max(0, slider.valueAsNumber - moved);
  shown = { drawn, step, end };
  for (const [title, members] of grouped(drawn)) {
    if (!plots.has(title)) {
      plots.set(title, new Plot((index) => read(index ?? POINTS - 1)));
      byId("plots").append(plots.get(title).figure);
    }
    plots.get(title).show(title, members, outages, step);
  }
  for (const id of ["reader", "table"]) byId(id).hidden = false;
  slider.max = POINTS - 1;
  read(at);
}

/** Show the values of one moment in all plots and in the table. */
function read(index) {
  const { drawn, step, end } = shown;
  const time = clock(1000 * (end - (POINTS - 1 - index) * step));
  slider.valueAsNumber = index;
  slider.setAttribute("aria-valuetext", time);
  say(byId("clock"), time);
  plots.forEach((plot) => plot.read(index));
  byId("figures").replaceChildren(...drawn.map(({ plot, name, metric, unit, points }) => {
    const known = points.filter((point) => point !== null);
    const figures = [points[index], ...(known.length ? [Math.min(...known), Math.max(...known)] : [null, null])];
    return row([plot, name, metric, unit || "", ...figures.map((figure) => amount(figure, unit, false))]);
  }));
}

function padded(points) {
  return [...Array(Math.max(0, POINTS - points.length)).fill(null), ...points.slice(-POINTS)];
}

function grouped(series) {
  const found = new Map();
  for (const one of series) found.set(one.plot, [...(found.get(one.plot) || []), one]);
  return found;
}
