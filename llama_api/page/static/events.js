/** Server-sent events (WHATWG HTML §9.2), parsed from chunks cut at any byte. */

/** The stream ended before its last event. */
export class BrokenOff extends Error {}

export class EventReader {
  #decoder = new TextDecoder();
  #unfinished = "";
  #name = "";
  #data = [];

  /** Parse the next bytes; return what they complete: `{name, data}` for an event, `{comment}` for a comment. */
  feed(bytes) {
    const text = this.#unfinished + this.#decoder.decode(bytes, { stream: true });
    const lines = text.split(/\r\n|\n|\r(?!$)/); // a CR at the end may be the first half of a CR LF
    this.#unfinished = lines.pop();
    return lines.map((line) => this.#line(line)).filter(Boolean);
  }

  #line(line) {
    if (line === "") return this.#dispatch();
    const [, field, value] = /^([^:]*):? ?([^]*)$/.exec(line);
    if (field === "" && line.startsWith(":")) return { comment: value };
    if (field === "data") this.#data.push(value);
    if (field === "event") this.#name = value;
    return null;
  }

  #dispatch() {
    const event = { name: this.#name || "message", data: this.#data.join("\n") };
    const empty = this.#data.length === 0;
    this.#name = "";
    this.#data = [];
    return empty ? null : event;
  }
}

/** The events and comments of a response as they arrive. Throws BrokenOff if the connection breaks. */
export async function* eventsOf(response) {
  const reader = new EventReader();
  for await (const bytes of chunks(response.body)) yield* reader.feed(bytes);
}

/** The chunks of a stream; not every browser can iterate over it directly. */
async function* chunks(stream) {
  const source = stream.getReader();
  try {
    for (let part = await read(source); !part.done; part = await read(source)) yield part.value;
  } finally {
    source.releaseLock();
  }
}

async function read(source) {
  try {
    return await source.read();
  } catch (error) {
    throw error.name === "AbortError" ? error : new BrokenOff("", { cause: error });
  }
}
