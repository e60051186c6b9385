/** The coordinates of a plot's shapes: numbers in, numbers and path data out. */

const STEPS = [1, 1.5, 2, 3, 4, 5, 6, 8, 10];

/** A round number not below `most`: one of STEPS times a power of ten, and for bytes also a power of 1024. */
export function ceiling(most, unit) {
  if (!(most > 0)) return 1;
  const scale = unit === "B" ? 1024 ** Math.floor(Math.log2(most) / 10) : 1;
  const power = scale * 10 ** Math.floor(Math.log10(most / scale));
  return STEPS.map((step) => step * power).find((bound) => bound >= most * 0.999999);
}

/** The ranges of points that pass `test`, as pairs of the first and the last index. */
export function stretches(points, test = (point) => point !== null) {
  const found = [];
  points.forEach((point, n) => {
    if (!test(point)) return;
    const last = found.at(-1);
    if (last && last[1] === n - 1) last[1] = n;
    else found.push([n, n]);
  });
  return found;
}

/** Stack areas: for each series the floor and the top at every point, null where the series has no value. */
export function stack(areas) {
  let below = [];
  return areas.map((points) => {
    const floor = points.map((_, n) => below[n] || 0);
    const top = points.map((point, n) => (point === null ? null : floor[n] + point));
    below = top.map((value, n) => value ?? floor[n]);
    return { floor, top };
  });
}

/** The scales of a plot of `count` points in a box; each point has a band, with its value in the middle. */
export function scales({ left, top, width, height }, count, most) {
  const band = width / count;
  return {
    x: (n) => left + (n + 0.5) * band,
    y: (value) => top + height * (1 - value / most),
    edge: (n) => left + n * band,
    at: (x) => Math.max(0, Math.min(count - 1, Math.floor((x - left) / band))),
  };
}

const round = (value) => Math.round(value * 10) / 10;

/** A line through the points, broken at the gaps; a range extends to the edges of its first and last band. */
export function linePath(points, scale) {
  return stretches(points).map(([first, last]) => `M${ridge(points, first, last, scale).join("L")}`).join("");
}

/** The area between two lines, broken at the gaps of `top`. */
export function areaPath(floor, top, scale) {
  return stretches(top).map(([first, last]) =>
    `M${[...ridge(top, first, last, scale), ...ridge(floor, first, last, scale).reverse()].join("L")}Z`).join("");
}

function ridge(points, first, last, { x, y, edge }) {
  const inner = points.slice(first, last + 1).map((point, n) => [x(first + n), y(point)]);
  const all = [[edge(first), y(points[first])], ...inner, [edge(last + 1), y(points[last])]];
  return all.map(([a, b]) => `${round(a)} ${round(b)}`);
}
