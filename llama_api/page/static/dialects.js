/** The same call for a shell and for two Python packages, safe to paste whatever the prompt contains. */

// Characters that JSON does not escape but that can deceive a terminal or a reader: DEL, C1, direction and width marks.
const TREACHEROUS = /[\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]/g;
const KEY = "LLAMA_API_KEY"; // the environment variable with the key; the key itself is not copied

/** A value as JSON in one line of visible characters; for a string this is also a Python literal. */
export function literal(value) {
  const escape = (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`;
  return JSON.stringify(value).replace(TREACHEROUS, escape);
}

/** A text as one word of a POSIX shell. */
export function shellWord(text) {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

/** The curl line of a body for /generate. `base` is the service's URL with a trailing slash. */
export function curl(base, body, keyed) {
  const key = keyed ? ` -H "Authorization: Bearer $${KEY}"` : "";
  return `curl ${shellWord(`${base}generate`)} -H 'Content-Type: application/json'${key} -d ${shellWord(literal(body))}`;
}

/** The call with the `openai` package. */
export function openai(base, body, keyed, model) {
  const turn = (role, content) => `{"role": "${role}", "content": ${literal(content)}}`;
  const turns = [...(body.system ? [turn("system", body.system)] : []), turn("user", body.prompt)];
  const options = ["max_tokens", "temperature", "seed"].filter((name) => body[name] !== undefined)
    .map((name) => `    ${name}=${literal(body[name])},\n`);
  return `${keyed ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${literal(`${base}v1`)}, api_key=${keyed ? `os.environ["${KEY}"]` : '"none"'})
completion = client.chat.completions.create(
    model=${literal(body.model || model)},
    messages=[${turns.join(",\n              ")}],
${options.join("")})
print(completion.choices[0].message.content)
`;
}

/** The call with the `ollama` package. */
export function ollama(base, body, keyed, model) {
  const names = { max_tokens: "num_predict", temperature: "temperature", seed: "seed" };
  const options = Object.entries(names).filter(([ours]) => body[ours] !== undefined)
    .map(([ours, theirs]) => `"${theirs}": ${literal(body[ours])}`);
  const headers = keyed ? `, headers={"Authorization": "Bearer " + os.environ["${KEY}"]}` : "";
  const system = body.system ? `    system=${literal(body.system)},\n` : "";
  return `${keyed ? "import os\n\n" : ""}from ollama import Client

client = Client(${literal(base.replace(/\/$/, ""))}${headers})
answer = client.generate(
    model=${literal(body.model || model)},
    prompt=${literal(body.prompt)},
${system}    options={${options.join(", ")}},
)
print(answer.response)
`;
}
