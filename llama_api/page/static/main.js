/** The page: poll the service every few seconds and show the result. */

import { init } from "./ask.js";
import { byId, prose, say } from "./dom.js";
import { showGlance } from "./glance.js";
import { showSeries } from "./plots.js";
import { demand, Failure, jsonOf, keyed, send, useKey } from "./service.js";
import { every } from "./timer.js";
import { clock } from "./words.js";

const SECONDS = 5; // between two polls, the interval of the points in /stats
let figuresWanted = true; // false once the service has refused them
let figuresOf = null; // when the figures shown were fetched

/** Fetch the figures and the state, in one call if the figures include the state. */
async function lookAround(signal) {
  try {
    const stats = figuresWanted ? await figures(signal) : null;
    showHealth(stats?.health ?? await jsonOf(await send("health", { signal })));
    if (stats) showFigures(stats);
  } catch (error) {
    if (error.name === "AbortError") return;
    if (!(error instanceof Failure)) throw error;
    showState("down", `${error.title}. ${error.detail}`);
    if (figuresOf) say(byId("figures-note"), `These figures are from ${clock(figuresOf)}.`);
  }
}

/** The figures of GET /stats, null if the service refuses them. */
async function figures(signal) {
  try {
    return await jsonOf(await demand("stats", { signal, cache: "no-cache" })); // the browser sends its ETag
  } catch (error) {
    if (!error.status) throw error;
    figuresWanted = ![401, 404].includes(error.status);
    byId("figures-note").replaceChildren(...prose(error.status === 404 ? "Figures are not available from this service."
      : `No figures: ${error.title}. ${error.detail}`));
    return null;
  }
}

function showFigures(stats) {
  figuresOf = Date.now();
  say(byId("figures-note"), "");
  showSeries(stats);
  showGlance(stats, look);
}

function showHealth(health) {
  figuresWanted ||= document.body.dataset.state === "down"; // it may have restarted as another version
  showState(health.status, sentence(health));
  if (health.model) document.forms.ask.elements.model.placeholder = health.model;
}

function sentence({ status, reason, model, cache_size: stored, queue = {} }) {
  if (reason) return `${status[0].toUpperCase()}${status.slice(1)}: ${reason}`;
  return `Healthy: ${model} answers. ${queue.running} of ${queue.slots} slots taken, ${queue.waiting} waiting,`
    + ` ${stored} answers stored.`;
}

function showState(state, text) {
  document.body.dataset.state = state;
  document.title = state === "healthy" ? "llama_api" : `${state} · llama_api`;
  if (byId("state").textContent !== text.replaceAll("`", "")) byId("state").replaceChildren(...prose(text));
}

byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(byId("key").value);
  byId("key").value = "";
  byId("key-form").hidden = true;
});
document.addEventListener("key-wanted", () => {
  say(byId("key-note"), keyed() ? "The service did not accept this key. Enter another one."
    : "This service requires an API key. It is kept for this tab only.");
  byId("key-form").hidden = false;
});
document.addEventListener("key-given", () => {
  figuresWanted = true;
  look();
});

const look = every(SECONDS, lookAround);
init(look);
