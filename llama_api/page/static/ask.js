/** The prompt and its answer as it streams. */

import { byId, make, prose, say } from "./dom.js";
import { curl, ollama, openai } from "./dialects.js";
import { BrokenOff, eventsOf } from "./events.js";
import { brokenOff, demand, Failure, failureFrom, jsonOf, keyed } from "./service.js";
import { measures, origin, waiting } from "./words.js";

const form = byId("ask");
const answer = byId("answer");
const progress = byId("progress");
let underWay = null;
let wantsKey = false;
let asked = null; // the body of the last call

/** Set up the form; `ended` is called after each call. */
export function init(ended) {
  const start = () => ask().finally(ended);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (!underWay) start();
  });
  form.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
  });
  document.addEventListener("key-given", () => {
    if (wantsKey) start();
  });
  byId("stop").addEventListener("click", () => underWay.abort());
  byId("options").addEventListener("toggle", listModels, { once: true });
  byId("calls").addEventListener("change", showCall);
  byId("copy").addEventListener("click", copyCall);
}

async function ask() {
  underWay = new AbortController();
  asked = bodyOf(form);
  begin();
  try {
    const response = await demand("generate", {
      method: "POST", signal: underWay.signal, headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ ...asked, stream: true }) });
    showEnding(await follow(response), response.headers);
  } catch (error) {
    showFailure(error);
  } finally {
    underWay = null;
    byId("send").setAttribute("aria-disabled", "false");
    byId("stop").hidden = true;
    answer.setAttribute("aria-busy", "false");
  }
}

/** The fields that are filled in, numbers as numbers. */
function bodyOf({ elements }) {
  const body = { prompt: elements.prompt.value };
  for (const name of ["model", "system"]) {
    if (elements[name].value) body[name] = elements[name].value;
  }
  for (const name of ["max_tokens", "temperature", "seed"]) {
    if (elements[name].value) body[name] = elements[name].valueAsNumber;
  }
  return body;
}

function begin() {
  for (const id of ["trouble", "outcome", "calls"]) byId(id).hidden = true;
  byId("stop").hidden = false;
  byId("send").setAttribute("aria-disabled", "true");
  answer.setAttribute("aria-busy", "true"); // so that screen readers read it once, when it is complete
  answer.replaceChildren();
  tell("Sent.", "wait");
}

function tell(text, kind) {
  say(progress, text);
  progress.dataset.kind = kind;
}

/** Show the pieces of a stream as they arrive; return its last event. */
async function follow(response) {
  const text = answer.appendChild(document.createTextNode(""));
  for await (const { comment, name, data } of eventsOf(response)) {
    if (comment !== undefined) {
      if (!text.length) tell(waiting(comment), "wait");
      continue;
    }
    const found = JSON.parse(data);
    if (name === "error") throw failureFrom(found, response);
    append(text, found.response);
    if (found.done) return found;
    tell("Writing.", "wait");
  }
  throw new BrokenOff();
}

/** Append to the answer; keep its end in view unless the user has scrolled away from it. */
function append(text, piece) {
  const atEnd = answer.scrollHeight - answer.scrollTop - answer.clientHeight < 24;
  text.appendData(piece);
  if (atEnd) answer.scrollTop = answer.scrollHeight;
}

function showEnding(ending, headers) {
  const { kind, text } = origin(headers.get("Cache-Status"), headers.get("Age"), ending.cached);
  tell(text, kind);
  byId("outcome").replaceChildren(...measures(ending).map(([label, value]) =>
    make("div", {}, make("dt", {}, label), make("dd", {}, value))));
  asked.answeredBy = ending.model;
  byId("outcome").hidden = byId("calls").hidden = false;
  wantsKey = false;
  showCall();
}

function showFailure(error) {
  if (error.name === "AbortError") return tell("Stopped.", "stopped");
  if (error instanceof BrokenOff) return showFailure(brokenOff());
  tell("", "failed");
  if (!(error instanceof Failure)) throw error;
  wantsKey = error.status === 401;
  const more = error.slug ? [make("p", {}, make("a", { href: `problems/${error.slug}` }, "More on this problem"))] : [];
  byId("trouble").replaceChildren(make("strong", {}, error.title), make("p", {}, ...prose(error.detail)),
    ...error.notes.map((note) => make("p", { class: "hint" }, note)), ...more);
  byId("trouble").hidden = false;
  return undefined;
}

function showCall() {
  const { answeredBy, ...body } = asked;
  const dialect = { curl, openai, ollama }[form.ownerDocument.querySelector("[name=dialect]:checked").value];
  say(byId("call"), dialect(new URL(".", document.baseURI).href, body, keyed(), answeredBy));
  say(byId("copy"), "Copy");
}

async function copyCall() {
  getSelection().selectAllChildren(byId("call"));
  const text = byId("call").textContent;
  const old = () => document.execCommand("copy"); // the only way on a page loaded by plain HTTP from another host
  const copied = navigator.clipboard ? await navigator.clipboard.writeText(text).then(() => true, old) : old();
  say(byId("copy"), copied ? "Copied" : "Selected");
}

async function listModels() {
  try {
    const { data } = await jsonOf(await demand("v1/models"));
    byId("models").replaceChildren(...data.map(({ id }) => make("option", { value: id })));
  } catch (error) {
    if (!(error instanceof Failure)) throw error;
    form.elements.model.title = `The models cannot be listed: ${error.title}.`; // a name can still be typed
  }
}
