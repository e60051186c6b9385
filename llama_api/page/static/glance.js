/** The tables below the plots: running generations, Ollamas, last requests, settings. */

import { byId, draw, make, prose, row, say } from "./dom.js";
import { demand, Failure } from "./service.js";
import { clock, duration } from "./words.js";

const flights = new Map(); // id to its row; rows are reused so that a button keeps its focus

/** Show the tables of a /stats; `refresh` is called after a change made here. */
export function showGlance(stats, refresh) {
  byId("glance").hidden = false;
  showFlights(stats.flights || [], refresh);
  byId("hosts").replaceChildren(...(stats.hosts || []).map(hostRow));
  byId("requests").replaceChildren(...(stats.requests || []).map(requestRow));
  byId("settings").replaceChildren(...Object.entries(stats.settings || {}).map(([name, value]) => row(
    [make("code", {}, name), value === null || value === "" ? "–" : [value].flat().join(", ")])));
}

function showFlights(found, refresh) {
  const present = new Set(found.map(({ id }) => id));
  for (const [id, old] of flights) {
    if (present.has(id)) continue;
    if (old.contains(document.activeElement)) byId("flights-title").focus();
    old.remove();
    flights.delete(id);
  }
  for (const flight of found) {
    if (!flights.has(flight.id)) {
      flights.set(flight.id, row(["", "", "", "", cancelButton(flight.id, refresh)]));
      byId("flights").append(flights.get(flight.id));
    }
    const cells = flights.get(flight.id).cells;
    [flight.host ? `${flight.state} at ${flight.host}` : flight.state, duration(Math.round(flight.age_s)),
      flight.readers, flight.tokens ?? "–"].forEach((value, n) => say(cells[n], String(value)));
  }
  byId("flights-table").hidden = found.length === 0;
  say(byId("flights-note"), found.length === 0 ? "Nothing is being generated." : "");
}

function cancelButton(id, refresh) {
  const button = make("button", { type: "button" }, "Cancel");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      await demand(`flights/${encodeURIComponent(id)}`, { method: "DELETE" });
    } catch (error) {
      if (!(error instanceof Failure)) throw error;
      button.disabled = false;
      if (error.status !== 404) say(byId("flights-note"), `${error.title}: ${error.detail}`); // 404: it has ended
    }
    refresh();
  });
  return button;
}

function hostRow(host) {
  const state = make("div", { class: host.usable ? "good" : "ill" }, ...prose(host.usable ? "in use" : host.reason || "out of use"));
  const yes = (value) => (value === null || value === undefined ? "–" : value ? "yes" : "no");
  return row([make("div", {}, host.host, state), slots(host), yes(host.loaded),
    typeof host.gpu_percent === "number" ? `${Math.round(host.gpu_percent)} %` : "–",
    host.context_length?.toLocaleString("en") ?? "–", make("code", {}, host.digest || "–"), host.version || "–"]);
}

function slots({ running, slots: all }) {
  const bar = draw("svg", { class: "slots", viewBox: `0 0 ${all} 1`, preserveAspectRatio: "none", "aria-hidden": "true" },
    draw("rect", { class: "free", width: all, height: 1 }), draw("rect", { class: "taken", width: running, height: 1 }));
  return make("span", {}, bar, ` ${running} of ${all}`);
}

function requestRow({ time, endpoint, status, cache, duration_ms: took }) {
  const number = make("span", { class: status >= 500 ? "ill" : "" }, String(status));
  return row([clock(time), endpoint, number, cache || "–", duration(took / 1000)]);
}
