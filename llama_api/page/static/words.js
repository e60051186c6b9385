/** Figures and headers as texts. */

const compact = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });
const BINARY = [[2 ** 30, "GiB"], [2 ** 20, "MiB"], [2 ** 10, "KiB"]];

/** A figure with three digits, scaled by its `unit`, which is appended if `full`. */
export function amount(value, unit = "", full = true) {
  if (value === null || value === undefined) return "–";
  if (unit === "s") return duration(value);
  if (unit === "B") {
    const [size, name] = BINARY.find(([size]) => value >= size) || [1, "B"];
    return `${compact.format(value / size)} ${name}`;
  }
  const spaced = unit && !unit.startsWith("/") ? ` ${unit}` : unit;
  return compact.format(value) + (full ? spaced : "");
}

/** A time in seconds, in a suitable unit. */
export function duration(seconds) {
  if (seconds === 0) return "0 s";
  if (seconds < 0.9995) return `${compact.format(seconds * 1000)} ms`;
  if (seconds < 120) return `${compact.format(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86400)} d`;
}

/** A moment as local time of day. */
export function clock(moment) {
  const date = new Date(moment);
  return Number.isNaN(date.getTime()) ? String(moment) : date.toLocaleTimeString("en-GB");
}

/** The origin of an answer, from its Cache-Status (RFC 9211), its Age in seconds and the `cached` of its end. */
export function origin(cacheStatus, age, cached) {
  const ours = (cacheStatus || "").split(",").map((part) => part.trim())
    .find((part) => part.startsWith("llama-api")) || "";
  const said = new Map(ours.split(";").slice(1).map((part) => part.trim().split("=")));
  const old = age === null || age === undefined ? "" : `, ${duration(Number(age))} old`;
  if (said.get("fwd") === "stale" && (old || cached)) {
    return { kind: "stale", text: `stale${old}${said.has("detail") ? `, because of ${said.get("detail")}` : ""}` };
  }
  if (said.has("hit") || cached) return { kind: "hit", text: `from the cache${old}` };
  return said.has("collapsed") ? { kind: "joined", text: "joined" } : { kind: "generated", text: "generated" };
}

/** The state of the wait, from a comment of the stream such as `waiting, 3 before you, about 8 s`. */
export function waiting(comment) {
  const [, before, seconds] = /^waiting(?:, (\d+) before you)?(?:, about (\d+(?:\.\d+)?) s)?/.exec(comment) || [];
  const parts = [];
  if (before !== undefined) parts.push(before === "0" ? "next in the queue" : `${before} before you`);
  if (seconds !== undefined) parts.push(`about ${duration(Number(seconds))}`);
  return parts.length ? `Waiting: ${parts.join(", ")}.` : "Waiting for the model.";
}

/** The metrics of an answer as pairs of a label and a text, without unknown ones. */
export function measures(ending) {
  const found = ending.metrics || {};
  const time = (ms) => (ms === null || ms === undefined ? null : duration(ms / 1000));
  const share = (percent) => (typeof percent === "number" ? `${Math.round(percent)} %` : null);
  const tokens = [found.input_tokens, found.output_tokens].map((count) => count ?? "?");
  return [
    ["Model", ending.model],
    ["Took", time(found.inference_latency_ms)],
    ["Waited", time(found.queue_ms)],
    ["First token", time(found.time_to_first_token_ms)],
    ["Speed", found.tokens_per_second ? `${amount(found.tokens_per_second)}/s` : null],
    ["Tokens", `${tokens[0]} in, ${tokens[1]} out`],
    ["Finish", ending.finish_reason],
    ["CPU", share(found.cpu_usage_percent)],
    ["Memory", share(found.memory_usage_percent)],
  ].filter(([, value]) => value !== null && value !== undefined);
}
