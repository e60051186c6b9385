/** Calls to the service, with the key of this tab, and their failures as texts. */

const STORED = "llama_api.key";

/** A failure to show: a title, a sentence that says what to do, and details. */
export class Failure extends Error {
  constructor(title, detail, { status = 0, slug = "", notes = [] } = {}) {
    super(detail);
    Object.assign(this, { title, detail, status, slug, notes });
  }
}

const UNREACHABLE = "Start it (`make run`) or read its log; this page keeps its content and retries by itself.";

/** Whether this tab has a key. */
export const keyed = () => sessionStorage.getItem(STORED) !== null;

/** Keep a key for this tab, and notify the page. */
export function useKey(key) {
  sessionStorage.setItem(STORED, key);
  document.dispatchEvent(new Event("key-given"));
}

/** The failure of a call that ended before its answer was complete. */
export const brokenOff = () => new Failure("The answer broke off", UNREACHABLE);

/** Send a request and return its response, whatever its status. Throws a Failure if there is none. */
export async function send(path, options = {}) {
  const headers = new Headers(options.headers);
  if (keyed()) headers.set("Authorization", `Bearer ${sessionStorage.getItem(STORED)}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service does not answer", UNREACHABLE);
  }
  if (response.status === 401) document.dispatchEvent(new Event("key-wanted"));
  return response;
}

/** Send a request and return its response. Throws a Failure unless it is a success. */
export async function demand(path, options) {
  const response = await send(path, options);
  if (!response.ok) throw await failureOf(response);
  return response;
}

/** The JSON of a response. Throws a Failure if it is incomplete or not JSON. */
export async function jsonOf(response) {
  try {
    return await response.json();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure("The service does not answer", UNREACHABLE);
  }
}

/** The failure that a response describes: a problem (RFC 9457), or the error page of a proxy in between. */
async function failureOf(response) {
  const json = response.headers.get("Content-Type")?.includes("json");
  return json ? failureFrom(await jsonOf(response), response) : new Failure(
    `Status ${response.status}`, "This response is not from the service; a proxy in between may have sent it.",
    { status: response.status });
}

/** The failure that a problem object describes. */
export function failureFrom(problem, response) {
  const notes = Object.entries(problem.errors || {}).map(([field, faults]) => `${field}: ${[faults].flat().join(" ")}`);
  const pause = response.headers.get("Retry-After");
  if (pause && !problem.detail?.includes(`${pause} s`)) notes.push(`Try again in ${pause} s.`);
  if (problem.request_id) notes.push(`Request ${problem.request_id}`);
  const slug = String(problem.type || "").replace(/^\/problems\//, "");
  return new Failure(problem.title || "The service failed", problem.detail || "", { status: problem.status, slug, notes });
}
