"""A double of Ollama that misbehaves on demand: real sockets, the real grammar of the wire, text computed from the prompt.

In a test:        with OllamaDouble(slots=2, ttft=0.1) as double: ... double.url ... double.set(fault='busy', times=3)
As a process:     python -m tests.double --port 11434 --gap 0.02     (then DoubleRemote('http://127.0.0.1:11434'))
In one prompt:    'Why? [[fault=eof]] [[after=3]]'   overrides the knobs of PER_PROMPT for that prompt alone

Both classes have the methods of Control; each is a POST of a JSON object to /_double/<verb> too. `python -m tests.double --faults`
lists the faults, `--help` the knobs.
"""
import argparse
import asyncio
import functools
import hashlib
import http.client
import json
import random
import re
import signal
import socket
import struct
import threading
import time
from collections import Counter, deque
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from types import SimpleNamespace
from urllib.parse import urlsplit

JSON, NDJSON = 'application/json; charset=utf-8', 'application/x-ndjson'
TEXT, HTML = 'text/plain; charset=utf-8', 'text/html'
PHRASES = {200: 'OK', 307: 'Temporary Redirect', 400: 'Bad Request', 401: 'Unauthorized', 403: 'Forbidden', 404: 'Not Found',
           405: 'Method Not Allowed', 500: 'Internal Server Error', 502: 'Bad Gateway', 503: 'Service Unavailable'}
STOPS = ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
TEMPLATE_TOKENS = 11            # what the chat template adds to the words of prompt and system
PLAIN_LIMIT = 2048              # a larger plain body is chunked, as Go does
ABSENT = ...                    # as the value of a field: leave the field out
WORDS = ('the a sky sea light model answer because often water blue wave small long number river city music paper green red '
         'time people world house night day hand part place case week system program question work point home').split()
RARE = 'café naïve 漢字 日本 😀 🦙 über señor Ωμέγα привет'.split()


@dataclass
class Knobs:
    """What may be set at any time; times are in seconds."""

    version: str = '0.33.0'
    slots: int = 1              # generations at once; the others wait in an unbounded FIFO
    max_queue: int = 512        # requests that may wait for a load; one more is 503
    load: float = 0.0           # a cold load; lost when the client that started it leaves
    num_ctx: int = 8192         # the context window, unless options.num_ctx says otherwise
    delay: float = 0.0          # before a slot is asked for
    ttft: float = 0.0           # silence before the first token, slot held
    gap: float = 0.0            # between tokens
    tokens: int = 0             # natural length of an answer; 0 = from the prompt, 8 to 20
    fault: str = ''             # how /api/generate fails: a name of FAULTS; of several with commas one is drawn for each call
    times: int = 0              # calls the fault strikes before all is well again; 0 = for ever
    rate: float = 1.0           # share of the calls it strikes
    after: int = 2              # pieces sent before a fault that comes midway
    slow: float = 2.0           # the wait of the fault `slow`
    drip: float = 0.2           # between the bytes of the fault `trickle`
    size: int = 4_000_000       # bytes of the fault `long_line`
    tags_fault: str = ''        # as fault, for /api/tags
    show_fault: str = ''        # for /api/show
    version_fault: str = ''     # for /api/version
    record: int = 10_000        # calls remembered, the last ones; 0 = none, nor generations by prompt

    def bent(self, changes):
        """Return a copy with CHANGES, cast to the type of each knob; an unknown knob or fault is a ValueError."""
        kinds = {field.name: field.type for field in fields(self)}
        if unknown := changes.keys() - kinds.keys():
            raise ValueError(f'double: no such knob: {", ".join(sorted(unknown))}')
        new = replace(self, **{name: kinds[name]() if value is None else kinds[name](value) for name, value in changes.items()})
        for name in (new.fault, new.tags_fault, new.show_fault, new.version_fault):
            if unknown := set(name.split(',')) - FAULTS.keys() - {''}:
                raise ValueError(f'double: no such fault: {", ".join(unknown)}')
        return new


PER_PROMPT = 'delay ttft gap tokens fault times rate after slow drip size'.split()
MARKER = re.compile(r'\[\[(\w+)=([^\[\]]*)\]\]')

# --- text ----------------------------------------------------------------------------------------------------------------


def markers(prompt):
    """Return the knobs that PROMPT sets for itself."""
    found = dict(MARKER.findall(prompt)) if '[[' in prompt else {}
    if strangers := found.keys() - set(PER_PROMPT):
        raise ValueError(f'double: not for a prompt: {", ".join(strangers)}')
    return found


@functools.lru_cache(4096)
def spoken(digest, length):
    """Return the first LENGTH pieces of the endless text that DIGEST stands for; every fourth one has multi-byte characters."""
    return tuple([' ' * bool(at) + (words := RARE if at % 4 == 1 else WORDS)[(digest[at % 32] + at // 32) % len(words)]
                  for at in range(length)])


def natural_pieces(prompt, system=None, tokens=0):
    """Return the pieces of the whole answer: TOKENS of them, or as many as the prompt makes it."""
    digest = hashlib.blake2b(f'{system or ""}\0{prompt}'.encode('utf-8', 'surrogatepass'), digest_size=32).digest()
    return spoken(digest, int(markers(prompt).get('tokens', 0)) or tokens or 8 + digest[0] % 13)


def pieces_for(prompt, system=None, n=None, stop=(), tokens=0):
    """Return (pieces, done_reason): the natural answer, cut by N as num_predict, or before one of STOP."""
    pieces, reason = natural_pieces(prompt, system, tokens), 'stop'
    if n is not None and 0 < n <= len(pieces):
        pieces, reason = pieces[:n], 'length'
    if stop:
        text = ''.join(pieces)
        end = min((at for at in map(text.find, stop) if at >= 0), default=None)
        if end is not None:
            kept = []
            for piece in pieces:
                kept.append(piece[:end])
                end -= len(kept[-1])
            pieces, reason = tuple(filter(None, kept)), 'stop'
    return pieces, reason


def answer_for(prompt, system=None, n=None, stop=(), tokens=0):
    """Return the text this double gives to PROMPT; N is num_predict, TOKENS the knob of that name if it is set."""
    return ''.join(pieces_for(prompt, system, n, stop, tokens)[0])


def prompt_tokens(prompt, system=None):
    """Return the prompt_eval_count of a call without `context`."""
    return len(prompt.split()) + len((system or '').split()) + TEMPLATE_TOKENS


# --- JSON as Go writes it -------------------------------------------------------------------------------------------------

compact = json.JSONEncoder(ensure_ascii=False, separators=(',', ':')).encode
ESCAPED = re.compile('[<>&\u2028\u2029]')


def dump(value):
    """Return VALUE as JSON bytes; < > & are escaped and a lone surrogate becomes U+FFFD, as in Go."""
    text = ESCAPED.sub(lambda match: f'\\u{ord(match[0]):04x}', compact(value))
    try:
        return text.encode()
    except UnicodeEncodeError:
        return re.sub('[\ud800-\udfff]', '\ufffd', text).encode()


def error(text):
    """Return the body of an error."""
    return dump({'error': text})


@functools.lru_cache(8)
def to_the_second(second):
    """Return the start of the timestamps of one second."""
    return time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))


def timestamp(now=None):
    """Return RFC 3339 in UTC with 0 to 9 digits of a second, trailing zeros cut."""
    now = now or time.time()
    digits = f'.{int(now % 1 * 1e9):09d}'.rstrip('0').rstrip('.')
    return f'{to_the_second(int(now))}{digits}Z'


def nanoseconds(seconds):
    """Return a duration as Ollama counts it, never zero."""
    return max(1, int(seconds * 1e9))


# --- what the real one refuses --------------------------------------------------------------------------------------------

class Refused(Exception):
    """A request that is answered with a status and an {"error"} object."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status, self.body = status, error(text)


NAME = re.compile(r'(\w[\w.-]{0,79}/){0,2}\w[\w.-]{0,79}(:\w[\w.-]{0,79})?', re.ASCII)
FIELDS = {'model': str, 'prompt': str, 'system': str, 'template': str, 'suffix': str, 'raw': bool, 'stream': bool, 'options': dict,
          'context': list, 'images': list, 'truncate': bool, 'shift': bool, 'logprobs': bool, 'top_logprobs': int}
OPTIONS = {'integer': 'num_predict seed top_k num_keep num_ctx repeat_last_n num_batch num_gpu num_thread main_gpu',
           'float32': 'temperature top_p min_p typical_p repeat_penalty presence_penalty frequency_penalty',
           'boolean': 'use_mmap', 'array': 'stop'}
OPTIONS = {name: kind for kind, names in OPTIONS.items() for name in names.split()}
PYTHON = {'integer': (int, float), 'float32': (int, float), 'boolean': bool, 'array': list}
GO = {str: 'string', bool: 'bool', dict: 'object', list: 'array', int: 'number', float: 'number'}
LOAD_OPTIONS = 'num_ctx num_batch num_gpu main_gpu use_mmap num_thread'.split()
UNITS = {'h': 3600, 'm': 60, 's': 1, 'ms': 1e-3, 'us': 1e-6, 'µs': 1e-6, 'ns': 1e-9}
DURATION = re.compile(r'(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)')


def is_a(value, kind):
    """Tell whether VALUE is of KIND, where true is no number."""
    return isinstance(value, kind) and not (isinstance(value, bool) and kind is not bool)


def refuse_constant(name):
    """Refuse NaN and Infinity, which Python's decoder would take."""
    raise ValueError(name)


decode = json.JSONDecoder(parse_constant=refuse_constant).raw_decode


def parsed(body):
    """Return the one JSON object of a request body; what follows it is ignored."""
    if not body.strip():
        raise Refused(400, 'missing request body')
    try:
        value, _ = decode(body.decode('utf-8', 'replace').lstrip())
    except ValueError:
        raise Refused(400, f"invalid character '{body.strip()[:1].decode('latin-1')}' looking for beginning of value") from None
    if not isinstance(value, dict):
        raise Refused(400, f'json: cannot unmarshal {GO.get(type(value))} into Go value of type api.GenerateRequest')
    return value


def seconds_of(keep_alive):
    """Return a keep_alive in seconds; a string is a Go duration."""
    if not isinstance(keep_alive, str):
        return float(keep_alive)
    number = keep_alive.lstrip('+-')
    if re.fullmatch(r'\d+', number) and number != '0':
        raise Refused(400, f'time: missing unit in duration "{keep_alive}"')
    parts = DURATION.findall(number)
    if number != '0' and ''.join(map(''.join, parts)) != number or not number:
        raise Refused(400, f'time: invalid duration "{keep_alive}"')
    return (-1 if keep_alive[0] == '-' else 1) * sum(float(count) * UNITS[unit] for count, unit in parts)


def check_types(body):
    """Refuse fields of a wrong type (400) and options of a wrong type (500); null is no fault."""
    for name, value in body.items():
        kind = FIELDS.get(name)
        if kind and value is not None and not is_a(value, kind):
            raise Refused(400, f'json: cannot unmarshal {GO.get(type(value))} into Go struct field '
                               f'GenerateRequest.{name} of type {GO[kind]}')
    for name, value in (body.get('options') or {}).items():
        kind = OPTIONS.get(name)
        if kind and value is not None and not is_a(value, PYTHON[kind]):
            raise Refused(500, f'option "{name}" must be of type {kind}')
        if name == 'stop' and value and not all(isinstance(text, str) for text in value):
            raise Refused(500, 'option "stop" must be of type an array of strings')


def check_modes(body, model):
    """Refuse what Llama 3 cannot do and what does not go together."""
    if body.get('raw') and any(body.get(name) for name in ('template', 'system', 'context')):
        raise Refused(400, 'raw mode does not support template, system, or context')
    if body.get('suffix'):
        raise Refused(400, f'registry.ollama.ai/library/{model} does not support insert')
    if body.get('think'):
        raise Refused(400, f'"{body["model"]}" does not support thinking')
    if (form := body.get('format')) and form != 'json' and not isinstance(form, dict):
        raise Refused(500, f'invalid format: {compact(form)}; expected "json" or a valid JSON Schema object')
    if not 0 <= (body.get('top_logprobs') or 0) <= 20:
        raise Refused(400, 'top_logprobs must be between 0 and 20')


# --- faults: every one is a coroutine function of an Answer; its docstring says what goes over the wire ----------------------

FAULTS = {}
TOO_LONG = ('{"error":{"code":400,"message":"request (%d tokens) exceeds the available context size (%d tokens), try increasing it",'
            '"type":"exceed_context_size_error","n_prompt_tokens":%d,"n_ctx":%d}}')

REPLIES = {  # given at once, without a slot: status, Content-Type, body, meaning
    'oom': (500, JSON, error('llama-server reported out-of-memory during startup: cudaMalloc failed: out of memory'),
            'Out of memory while loading.'),
    'crashed': (500, JSON, error('llama-server process has terminated: exit status 2: /usr/lib/ollama/x\nCUDA error'),
                'The runner crashed; two lines of stderr with a path.'),
    'load_failed': (500, JSON, error('error starting llama-server: fork/exec /usr/bin/llama-server: no such file or directory'),
                    'The runner cannot be started.'),
    'load_timeout': (500, JSON, error('timed out waiting for llama-server to start - progress 0.42'), 'The load stalled.'),
    'no_slots': (500, JSON, error('no slots available after 10 retries'), 'The runner is busy.'),
    'busy': (503, JSON, error('server busy, please try again.  maximum pending requests exceeded'), 'The scheduler queue is full.'),
    'not_found': (404, JSON, error("model 'llama3:8b' not found"), 'The model is gone.'),
    'path_not_found': (404, TEXT, b'404 page not found', 'The wrong base URL: plain text.'),
    'bad_method': (405, TEXT, b'405 method not allowed', 'The wrong method: plain text.'),
    'bad_request': (400, JSON, error('invalid character \'x\' looking for beginning of value'), 'A 400 with a plain sentence.'),
    'bad_request_text': (400, TEXT, b'400 Bad Request: malformed', 'A 400 in plain text.'),
    'too_long': (400, JSON, error(TOO_LONG % (9000, 8192, 9000, 8192)), 'Prompt too long: the error is a string that holds JSON.'),
    'too_long_shift': (400, JSON, error('the prompt is longer than the context length currently available to the model'),
                       'Prompt too long with shift off: a plain sentence.'),
    'unauthorized': (401, JSON, dump({'error': 'unauthorized', 'signin_url': 'https://ollama.com/connect'}), 'A cloud model.'),
    'forbidden': (403, TEXT, b'', 'An unlisted Origin or Host: an empty body.'),
    'redirect': (307, TEXT, b'', 'A redirect to /elsewhere.'),
    'error_object': (500, JSON, dump({'error': {'message': 'boom'}}), 'The error is an object where a string belongs.'),
    'error_array': (500, JSON, b'[]', 'An error that is a JSON array.'),
    'html_200': (200, HTML, b'<html><body>Welcome to nginx!</body></html>', 'Another server: HTML with 200.'),
    'html_502': (502, HTML, b'<html><body><h1>502 Bad Gateway</h1></body></html>', 'A proxy in front: HTML with 502.'),
    'empty_200': (200, JSON, b'', 'An empty body with 200.'),
    'empty_502': (502, TEXT, b'', 'An empty body with 502.'),
}
INTRUDERS = {  # a line among the pieces, after which all goes on as it should; in the plain form it is the body
    'invalid_json': (b'{"model":"llama3","response":" oops', 'A line that is no JSON.'),
    'array_line': (b'["response"]', 'A line that is a JSON array.'),
    'number_line': (b'42', 'A line that is a number.'),
    'null_line': (b'null', 'A line that is null.'),
    'response_number': (b'{"model":"m","response":5,"done":false}', 'A piece that is a number.'),
    'response_null': (b'{"model":"m","response":null,"done":false}', 'A piece that is null.'),
    'response_missing': (b'{"model":"m","done":false}', 'A line without response.'),
    'invalid_utf8': (b'{"model":"m","response":" \xff\xfe\x80","done":false}', 'A piece that is no UTF-8.'),
    'lone_surrogate': (b'{"model":"m","response":" \\ud83d","done":false}', 'A piece that is half a surrogate pair, escaped.'),
    'nul': (b'{"model":"m","response":" \\u0000\\r\\n","done":false}', 'A piece with control characters; valid.'),
    'blank_line': (b'', 'An empty line; harmless.'),
}
EDITS = {  # what the last object says instead
    'done_false': (dict(done=False, done_reason=ABSENT, context=ABSENT, total_duration=ABSENT, load_duration=ABSENT,
                        prompt_eval_count=ABSENT, prompt_eval_duration=ABSENT, eval_count=ABSENT, eval_duration=ABSENT),
                   'The last object says done:false, without reason and metrics: the answer is partial.'),
    'done_string': (dict(done='yes'), 'done is a string.'),
    'done_absent': (dict(done=ABSENT), 'The last object has no done.'),
    'reason_load': (dict(done_reason='load'), 'done_reason is load.'),
    'reason_unknown': (dict(done_reason='tired'), 'done_reason is a word nobody knows.'),
    'reason_absent': (dict(done_reason=ABSENT), 'No done_reason.'),
    'reason_number': (dict(done_reason=7), 'done_reason is a number.'),
    'missing_counts': (dict(prompt_eval_count=ABSENT, eval_count=ABSENT), 'No counts.'),
    'missing_metrics': (dict(total_duration=ABSENT, load_duration=ABSENT, prompt_eval_count=ABSENT, prompt_eval_duration=ABSENT,
                             eval_count=ABSENT, eval_duration=ABSENT), 'Neither counts nor durations.'),
    'zero_durations': (dict(total_duration=0, load_duration=0, prompt_eval_duration=0, eval_duration=0), 'All durations are 0.'),
    'negative_counts': (dict(prompt_eval_count=-3, eval_count=-1, eval_duration=-5), 'Negative counts and durations.'),
    'huge_counts': (dict(prompt_eval_count=10**30, eval_count=2**63, eval_duration=10**400), 'Counts beyond 64 bits.'),
    'string_counts': (dict(prompt_eval_count='7', eval_count=[1], eval_duration='1s'), 'Counts of wrong types.'),
    'text_in_last': (dict(response=' fin'), 'The last object of a stream has text too; valid.'),
    'extra_fields': (dict(prompt_eval_cached_count=3, thinking='', new={'a': [1]}), 'Fields from the future; valid.'),
}


def fault(run):
    """Enter RUN into the registry."""
    FAULTS[run.__name__] = run
    return run


def from_tables():
    """Enter the rows of the tables above."""
    async def reply(answer, row):
        answer.connection.reply(*row, **({'location': '/elsewhere'} if row[0] == 307 else {}))

    async def intrude(answer, line):
        if not answer.stream:
            return answer.connection.reply(200, JSON, line)
        await answer.some(answer.knobs.after)
        await answer.write(line + b'\n')
        await answer.finish()

    async def edit(answer, changes):
        await answer.finish(**changes)

    for table, act in ((REPLIES, reply), (INTRUDERS, intrude), (EDITS, edit)):
        for name, row in table.items():
            *what, sentence = row

            async def run(answer, act=act, what=what):
                await act(answer, what if act is reply else what[0])
            run.__doc__ = sentence
            FAULTS[name] = run


from_tables()


def for_ever():
    """Return what never comes."""
    return asyncio.get_running_loop().create_future()


@fault
async def reset(answer):
    """The connection is reset before any header."""
    answer.connection.reset()


@fault
async def close(answer):
    """The connection is closed in good order before any header."""
    answer.connection.transport.close()


@fault
async def bad_http(answer):
    """Bytes that are no HTTP, then the end."""
    answer.connection.raw(b'\x00\x01garbage\r\n\r\n')
    answer.connection.transport.close()


@fault
async def hang(answer):
    """Silence for ever before the headers, the slot held."""
    await for_ever()


@fault
async def hang_after_headers(answer):
    """Headers, then silence for ever."""
    await answer.write(b'')
    await for_ever()


@fault
async def hang_midway(answer):
    """Some pieces, then silence for ever."""
    await answer.some(answer.knobs.after)
    await answer.write(b'')
    await for_ever()


@fault
async def slow(answer):
    """As it should be, after a wait of the knob `slow`."""
    await asyncio.sleep(answer.knobs.slow)
    await answer.finish()


@fault
async def reset_midway(answer):
    """Some pieces, then half a chunk and a reset."""
    await answer.half_a_chunk()
    answer.connection.reset()


@fault
async def close_midway(answer):
    """Some pieces, then half a line and a close without the last chunk."""
    await answer.half_a_chunk()
    answer.connection.transport.close()


@fault
async def cut_line(answer):
    """Some pieces, then half a line and a clean end of the body."""
    await answer.some(answer.knobs.after)
    await answer.write(answer.line(' half')[:20])
    answer.connection.end()


@fault
async def error_line(answer):
    """Some pieces, an {"error"} line under status 200, a clean end; in the plain form a 500."""
    body = error('an error was encountered while running the model: unexpected EOF')
    if not answer.stream:
        return answer.connection.reply(500, JSON, body)
    await answer.some(answer.knobs.after)
    await answer.write(body + b'\n')
    answer.connection.end()


@fault
async def context_error(answer):
    """All the text, then an {"error"} line in place of the last object; in the plain form a 500."""
    answer.knobs = replace(answer.knobs, after=len(answer.pieces))
    await error_line(answer)


@fault
async def eof(answer):
    """Some pieces, then a clean end without done; in the plain form done:false."""
    if not answer.stream:
        return await FAULTS['done_false'](answer)
    await answer.some(answer.knobs.after)
    await answer.write(b'')
    answer.connection.end()


@fault
async def eof_at_once(answer):
    """Headers and a clean end, no line at all; in the plain form the zero object."""
    if not answer.stream:
        return answer.connection.reply(200, JSON, dump({'model': '', 'created_at': '0001-01-01T00:00:00Z', 'response': '', 'done': False}))
    await answer.write(b'')
    answer.connection.end()


@fault
async def single_json(answer):
    """One plain JSON object though a stream was asked for."""
    answer.stream = False
    await answer.finish()


@fault
async def glued(answer):
    """All lines in one TCP write and one chunk; valid."""
    await answer.pause(len(answer.pieces))
    await answer.write(b''.join(map(answer.line, answer.pieces)) + answer.last())
    answer.connection.end()


@fault
async def split(answer):
    """Every line in two chunks and two TCP writes, cut inside its first multi-byte character; valid."""
    for line in [*map(answer.line, answer.pieces), answer.last()]:
        at = next((index + 1 for index, byte in enumerate(line) if byte > 127), len(line) // 2)
        for part in (line[:at], line[at:]):
            await answer.write(part)
            await asyncio.sleep(0.005)
    answer.connection.end()


@fault
async def joined_lines(answer):
    """CR LF at the end of each line and a line of blanks between them; valid."""
    for line in [*map(answer.line, answer.pieces), answer.last()]:
        await answer.write(line.rstrip() + b'\r\n  \r\n')
    answer.connection.end()


@fault
async def after_done(answer):
    """A complete answer, then one more piece after done:true."""
    await answer.some()
    await answer.write(answer.last() + answer.line(' more'))
    answer.connection.end()


@fault
async def long_line(answer):
    """A last object with a context of megabytes (the knob `size`); valid."""
    await answer.finish(context=[128000] * (answer.knobs.size // 7))


@fault
async def endless_blanks(answer):
    """Blank lines for ever."""
    await answer.repeat(b' \n' * 512)


@fault
async def endless_garbage(answer):
    """One line that never ends."""
    await answer.repeat(b'x' * 16384)


@fault
async def endless_tokens(answer):
    """Pieces for ever, whatever num_predict says; done never comes."""
    await answer.repeat(answer.line(' on'))


@fault
async def trickle(answer):
    """The whole answer a byte at a time, one each `drip` seconds."""
    for byte in b''.join(map(answer.line, answer.pieces)) * answer.stream + answer.last():
        await answer.write(bytes([byte]))
        await asyncio.sleep(answer.knobs.drip)
    answer.connection.end()


@fault
async def leak(answer):
    """As it should be, but the slot is never given back if the client leaves before the end."""
    answer.leaks = True
    await answer.finish()


# --- the wire --------------------------------------------------------------------------------------------------------------

@functools.lru_cache(4096)
def parse_head(head):
    """Return (method, path, headers, length, chunked, keep) of a request head; header names in lower case."""
    first, *lines = head.decode('latin-1').split('\r\n')
    method, path, version = first.split(' ')
    headers = {name.strip().lower(): value.strip() for name, _, value in (line.partition(':') for line in lines)}
    keep = headers.get('connection', '').lower() != 'close' and version != 'HTTP/1.0'
    return (method, path, headers, int(headers.get('content-length', 0)),
            'chunked' in headers.get('transfer-encoding', '').lower(), keep)


def unchunk(data, at):
    """Return (body, end) of the chunked body that begins at AT, or None while it is incomplete."""
    body = []
    while (line := data.find(b'\r\n', at)) >= 0:
        size = int(data[at:line].split(b';')[0], 16)
        at = line + 2 + size + 2
        if len(data) < at:
            return None
        if not size:
            return b''.join(body), at
        body.append(data[line + 2:at - 2])
    return None


@dataclass(slots=True)
class Call:
    """One request as it was seen; times are time.monotonic(), 0 = not yet."""

    method: str
    path: str
    headers: dict
    json: object = None
    started: float = 0.0
    granted: float = 0.0        # when it got its slot
    ended: float = 0.0
    sent: int = 0               # pieces made so far
    fault: str = ''
    status: int = 0
    closed_early: bool = False  # the client left before the answer was complete


class Connection(asyncio.Protocol):
    """One kept-alive connection: a request at a time, each served by a task that ends when the client leaves."""

    def __init__(self, server, steering=False):
        self.server, self.steering = server, steering
        self.data, self.task, self.call, self.resumed = b'', None, None, None
        self.keep = self.chunking = self.bare = False

    def connection_made(self, transport):
        self.transport = transport
        self.server.connections.add(self)

    def connection_lost(self, exc):
        self.server.connections.discard(self)
        if self.task:
            self.call.closed_early = True
            self.task.cancel()

    def pause_writing(self):
        self.resumed = asyncio.get_running_loop().create_future()

    def resume_writing(self):
        self.resumed.set_result(None)
        self.resumed = None

    def data_received(self, data):
        self.data = self.data + data if self.data else data
        if not self.task:
            self.take()

    def take(self):
        """Start serving the next request if all of it is there."""
        end = self.data.find(b'\r\n\r\n')
        if end < 0:
            return
        try:
            method, path, headers, length, chunked, self.keep = parse_head(self.data[:end])
            body, end = (unchunk(self.data, end + 4) or (None, 0)) if chunked else (self.data[end + 4:end + 4 + length], end + 4 + length)
        except ValueError:
            self.raw(b'HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n')
            return self.transport.close()
        if body is None or len(self.data) < end:
            if 'expect' in headers:
                self.raw(b'HTTP/1.1 100 Continue\r\n\r\n')
            return
        self.data, self.bare, self.chunking = self.data[end:], method == 'HEAD', False
        self.call = Call(method, path, headers, started=time.monotonic())
        self.task = asyncio.get_running_loop().create_task(self.serve(body))

    async def serve(self, body):
        """Answer one request, then look for the next."""
        call = self.call
        try:
            await self.server.answer(self, call, body)
        except Refused as refused:
            self.reply(refused.status, JSON, refused.body)
        except asyncio.CancelledError:
            return
        finally:
            call.ended, self.task = time.monotonic(), None
        if not self.keep:
            self.transport.close()
        elif self.data and not self.transport.is_closing():
            self.take()

    def raw(self, data):
        """Write bytes as they are."""
        self.transport.write(data)

    def head(self, status, kind, framing):
        """Return the bytes of a response head."""
        self.call.status = status
        return f'HTTP/1.1 {status} {PHRASES[status]}\r\nContent-Type: {kind}\r\n{framing}\r\n\r\n'.encode()

    def reply(self, status, kind, body, location=None):
        """Answer at one go; a large body is chunked."""
        framing = f'Content-Length: {len(body)}' if len(body) <= PLAIN_LIMIT else 'Transfer-Encoding: chunked'
        if location:
            framing += f'\r\nLocation: {location}'
        if not self.keep:
            framing += '\r\nConnection: close'
        if len(body) > PLAIN_LIMIT:
            body = b'%x\r\n%b\r\n0\r\n\r\n' % (len(body), body)
        self.transport.write(self.head(status, kind, framing) + body * (not self.bare))

    def chunk(self, data, kind=NDJSON):
        """Write DATA as a chunk, the head of the response before the first one."""
        head = b''
        if not self.chunking:
            head, self.chunking = self.head(200, kind, 'Transfer-Encoding: chunked' + '\r\nConnection: close' * (not self.keep)), True
        self.transport.write(head + b'%x\r\n%b\r\n' % (len(data), data) if data else head)

    def end(self):
        """Write the last chunk."""
        self.transport.write(b'0\r\n\r\n')

    def reset(self):
        """Send RST instead of a close in good order."""
        self.transport.get_extra_info('socket').setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.transport.abort()


class Answer:
    """What one call is to get, in steps that a fault may stop, bend or follow with something else."""

    leaks = False

    def __init__(self, connection, knobs, final, pieces=(), stream=False, model=''):
        self.connection, self.knobs, self.final = connection, knobs, final
        self.pieces, self.stream, self.model = pieces, stream, model
        self.first = 0.0

    def line(self, piece):
        """Return the line of a stream that carries PIECE."""
        return dump({'model': self.model, 'created_at': timestamp(), 'response': piece, 'done': False}) + b'\n'

    def last(self, **changes):
        """Return the last object, or the whole body of a plain answer, with CHANGES."""
        body = self.final(self)
        if changes:
            body = {name: value for name, value in (body | changes).items() if value is not ABSENT}
        return dump(body) + b'\n' * self.stream

    async def pause(self, count=1):
        """Wait for the next COUNT tokens."""
        call = self.connection.call
        first = not call.sent
        wait = self.knobs.gap * max(count - first, 0) + self.knobs.ttft * first
        if wait > 0:
            await asyncio.sleep(wait)
        self.first = self.first or time.monotonic()
        call.sent += count

    async def some(self, count=None):
        """Let COUNT more tokens come, all of them without a count; only a stream shows them."""
        rest = self.pieces[self.connection.call.sent:][:count]
        if not self.stream:
            return await self.pause(len(rest))
        for piece in rest:
            await self.pause()
            await self.write(self.line(piece))

    async def write(self, data):
        """Write a chunk once the client has read enough of what came before."""
        if self.connection.resumed:
            await self.connection.resumed
        self.connection.chunk(data, NDJSON if self.stream else JSON)

    async def finish(self, **changes):
        """Give what is left and the last object, with CHANGES."""
        await self.some()
        if not self.stream:
            return self.connection.reply(200, JSON, self.last(**changes))
        if not self.first:
            await self.pause(0)
        await self.write(self.last(**changes))
        self.connection.end()

    async def half_a_chunk(self):
        """Give some pieces, then half of a chunk."""
        await self.some(self.knobs.after)
        await self.write(b'')
        self.connection.raw(b'ff\r\n' + self.line(' half')[:30])
        await asyncio.sleep(0)

    async def repeat(self, data):
        """Give some pieces, then DATA for ever, at a bearable pace."""
        await self.some(self.knobs.after)
        while True:
            await self.write(data)
            self.connection.call.sent += 1
            await asyncio.sleep(self.knobs.gap or 0.005)


class Slots:
    """A semaphore with a strict FIFO whose size may change; a freed slot is handed to the first who waits."""

    def __init__(self, total):
        self.total, self.running, self.peak, self.queue = total, 0, 0, deque()

    async def acquire(self):
        if self.running < self.total and not self.queue:
            self.running += 1
            self.peak = max(self.peak, self.running)
            return
        turn = asyncio.get_running_loop().create_future()
        self.queue.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                with suppress(ValueError):
                    self.queue.remove(turn)
            else:
                self.release()
            raise

    def release(self):
        self.running -= 1
        self.hand_out()

    def hand_out(self):
        """Give free slots to those who wait."""
        while self.queue and self.running < self.total:
            turn = self.queue.popleft()
            if turn.done():
                continue
            self.running += 1
            self.peak = max(self.peak, self.running)
            turn.set_result(None)


# --- the server --------------------------------------------------------------------------------------------------------------

VERBS = 'set reset set_model remove_model counters calls start stop'.split()
METHODS = {'/': 'GET HEAD', '/api/version': 'GET HEAD', '/api/tags': 'GET HEAD', '/api/ps': 'GET', '/api/status': 'GET',
           '/api/show': 'POST', '/api/generate': 'POST'}


def normal(name):
    """Return the form of a model's name that is looked up; an illegal one is refused."""
    name = name.strip().lower().removesuffix(':local').removeprefix('registry.ollama.ai/').removeprefix('library/')
    if not NAME.fullmatch(name):
        raise Refused(400, 'invalid model name')
    return name if ':' in name.rpartition('/')[2] else f'{name}:latest'


class Server:
    """All the state, touched by one event loop only."""

    def __init__(self, port=0, **knobs):
        self.port, self.first_knobs = port, Knobs().bent(knobs)
        self.connections, self.listener, self.held = set(), None, None
        self.slots = Slots(0)
        self.clear()

    def clear(self):
        """Go back to the first state: knobs, models, records; calls under way are cut off."""
        self.cut_off(lambda connection: connection.task)
        self.knobs, self.slots = self.first_knobs, Slots(self.first_knobs.slots)
        self.models, self.loaded = {}, {}
        self.load_lock, self.loading = asyncio.Lock(), 0
        self.log, self.generations, self.faults, self.struck = deque(maxlen=self.knobs.record), Counter(), Counter(), Counter()
        self.requests = self.finished = self.closed_early = self.loads = 0
        for name in ('llama3:latest', 'llama3:8b'):
            self.set_model(name, hashlib.sha256(b'llama3').hexdigest())

    def cut_off(self, which):
        """Close the connections that WHICH holds for, steering ones excepted."""
        for connection in list(self.connections):
            if which(connection) and not connection.steering and not connection.call.path.startswith('/_double/'):
                connection.transport.abort()

    # what Control can ask for

    async def start(self):
        """Listen, on the same port as before."""
        loop = asyncio.get_running_loop()
        if not self.held:
            self.held = socket.socket()     # bound, never listening: keeps the port ours while we are stopped
            self.held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.held.bind(('127.0.0.1', self.port))
            self.port = self.held.getsockname()[1]
            self.steering = await loop.create_server(lambda: Connection(self, steering=True), '127.0.0.1', 0)
            self.control = f'http://127.0.0.1:{self.steering.sockets[0].getsockname()[1]}'
        if not self.listener:
            self.listener = await loop.create_server(lambda: Connection(self), '127.0.0.1', self.port, backlog=1024)

    async def stop(self):
        """Refuse connections and break those there are; the models are no longer loaded."""
        if self.listener:
            self.listener.close()
            self.listener = None
        for connection in [connection for connection in self.connections if not connection.steering]:
            connection.transport.abort()
        self.loaded.clear()

    async def close(self):
        """Stop for good."""
        await self.stop()
        self.steering.close()
        self.held.close()
        tasks = [connection.task for connection in self.connections if connection.task]
        for connection in list(self.connections):
            connection.transport.abort()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0)

    def set(self, **knobs):
        self.knobs = self.knobs.bent(knobs)
        self.slots.total = self.knobs.slots
        self.slots.hand_out()
        if 'record' in knobs:
            self.log = deque(self.log, maxlen=self.knobs.record)
        if 'fault' in knobs or 'times' in knobs:
            del self.struck['']
        return asdict(self.knobs)

    def reset(self):
        self.clear()

    def set_model(self, name, digest=None):
        digest = digest or hashlib.sha256(random.randbytes(32)).hexdigest()
        self.models[normal(name)] = (digest, time.time())
        return digest

    def remove_model(self, name):
        self.models.pop(normal(name), None)
        self.loaded.pop(normal(name), None)

    def counters(self):
        return {'requests': self.requests, 'finished': self.finished, 'closed_early': self.closed_early, 'loads': self.loads,
                'running': self.slots.running, 'waiting': len(self.slots.queue), 'peak': self.slots.peak,
                'connections': sum(not connection.steering for connection in self.connections),
                'faults': dict(self.faults), 'generations': dict(self.generations), 'control': self.control}

    def calls(self, path=None):
        return [asdict(call) for call in self.log if path in (None, call.path)]

    async def steer(self, verb, arguments):
        """Carry out one of VERBS."""
        if verb not in VERBS:
            raise ValueError(f'double: no such verb: {verb}')
        result = getattr(self, verb)(**arguments)
        return await result if asyncio.iscoroutine(result) else result

    # what Ollama can be asked for

    async def answer(self, connection, call, body):
        """Find who answers CALL."""
        path, _, _ = call.path.partition('?')
        if path.startswith('/_double/'):
            return await self.answer_control(connection, path[len('/_double/'):], body)
        self.requests += 1
        if self.knobs.record:
            self.log.append(call)
        try:
            await self.answer_ollama(connection, call, path, body)
            self.finished += 1
        except asyncio.CancelledError:
            self.closed_early += 1
            raise
        except ValueError as fault:
            raise Refused(500, str(fault)) from None

    async def answer_control(self, connection, verb, body):
        try:
            result = await self.steer(verb, json.loads(body or b'{}'))
            connection.reply(200, JSON, json.dumps(result).encode())
        except (TypeError, ValueError) as fault:
            connection.reply(400, JSON, json.dumps({'error': str(fault)}).encode())

    async def answer_ollama(self, connection, call, path, body):
        if 'origin' in call.headers:
            return connection.reply(403, TEXT, b'')
        clean = re.sub('//+', '/', path)
        if clean != path or clean.endswith('/') and clean[:-1] in METHODS and clean != '/':
            return connection.reply(307, TEXT, b'', location=clean.rstrip('/') or '/')
        if path not in METHODS:
            return connection.reply(404, TEXT, b'404 page not found')
        if call.method not in METHODS[path]:
            return connection.reply(405, TEXT, b'405 method not allowed')
        if path == '/api/generate':
            return await self.generate(connection, call, body)
        if path == '/':
            return connection.reply(200, TEXT, b'Ollama is running')
        name = path.rpartition('/')[2]
        fault = self.drawn(getattr(self.knobs, f'{name}_fault', ''), self.knobs, call)
        shown = self.show(parsed(body)) if name == 'show' and not fault else getattr(self, f'{name}_body', dict)()
        await self.give(Answer(connection, self.knobs, lambda answer: shown), fault)

    async def give(self, answer, fault):
        """Let ANSWER go its way, or FAULT's."""
        await (FAULTS[fault](answer) if fault else answer.finish())

    def drawn(self, names, knobs, call, key=''):
        """Return the fault that strikes CALL, if any does; KEY is what `times` counts by."""
        if not names or knobs.rate < 1 and random.random() >= knobs.rate or knobs.times and self.struck[key] >= knobs.times:
            return ''
        self.struck[key] += 1
        call.fault = random.choice(names.split(','))
        self.faults[call.fault] += 1
        return call.fault

    def version_body(self):
        return {'version': self.knobs.version}

    def status_body(self):
        return {'cloud': {'disabled': False, 'source': 'none'}}

    def tags_body(self):
        newest = sorted(self.models.items(), key=lambda item: -item[1][1])
        return {'models': [self.entry(name) | {'modified_at': timestamp(born)} for name, (_, born) in newest]}

    def ps_body(self):
        loaded = [(name, expires) for name, (_, _, expires) in self.loaded.items() if expires > time.time()]
        return {'models': [self.entry(name) | {'expires_at': timestamp(expires), 'size_vram': 4661224676,
                                               'context_length': self.knobs.num_ctx}
                           for name, expires in sorted(loaded, key=lambda item: -item[1])]}

    def entry(self, name):
        """Return what /api/tags and /api/ps have in common."""
        return {'name': name, 'model': name, 'size': 4661224676, 'digest': self.models[name][0],
                'details': {'parent_model': '', 'format': 'gguf', 'family': 'llama', 'families': ['llama'],
                            'parameter_size': '8.0B', 'quantization_level': 'Q4_0'}}

    def show(self, body):
        """Return the body of /api/show."""
        if not body.get('model'):
            raise Refused(400, 'model is required')
        name = normal(body['model'])
        if name not in self.models:
            raise Refused(404, f"model '{name}' not found")
        return {'license': 'META LLAMA 3 COMMUNITY LICENSE AGREEMENT', 'modelfile': f'FROM {name}\n', 'template': '{{ .Prompt }}',
                'parameters': 'num_keep                       24\n'
                              + '\n'.join(f'stop                           "{text}"' for text in STOPS),
                'details': self.entry(name)['details'], 'capabilities': ['completion'],
                'model_info': {'general.architecture': 'llama', 'llama.context_length': 8192},
                'modified_at': timestamp(self.models[name][1])}

    def lookup(self, body):
        """Return the normal name of the model asked for, after all that Ollama checks first."""
        check_types(body)
        keep = seconds_of(body['keep_alive']) if body.get('keep_alive') is not None else None
        sent = body.get('model') or ''
        if not sent.strip() or (name := normal(sent)) not in self.models:
            raise Refused(404, f"model '{sent}' not found")
        check_modes(body, name)
        return name, keep

    async def load(self, name, body, keep):
        """See that NAME is loaded with the options of BODY; a load whose client leaves is lost."""
        options = body.get('options') or {}
        wanted = [options.get(option) for option in LOAD_OPTIONS]
        now = time.time()
        loaded, kept, expires = self.loaded.get(name, (None, 300.0, 0))
        if loaded != wanted or expires < now:
            if self.load_lock.locked() and self.loading > self.knobs.max_queue:
                raise Refused(503, 'server busy, please try again.  maximum pending requests exceeded')
            self.loading += 1
            try:
                async with self.load_lock:
                    if self.loaded.get(name, (None,))[0] != wanted:
                        await asyncio.sleep(self.knobs.load)
                        self.loads += 1
                        self.loaded[name] = (wanted, kept, expires)
            finally:
                self.loading -= 1
        keep = kept if keep is None else keep
        self.loaded[name] = (wanted, keep, time.time() + (keep if keep >= 0 else 9.2e9))

    async def generate(self, connection, call, raw):
        """Answer POST /api/generate."""
        call.json = body = parsed(raw)
        name, keep = self.lookup(body)
        prompt = body.get('prompt') or ''
        if not prompt:
            return await self.only_load(connection, name, body, keep)
        bends = markers(prompt)
        knobs = self.knobs.bent(bends) if bends else self.knobs
        if knobs.record:
            self.generations[prompt] += 1
        fault = self.drawn(knobs.fault, knobs, call, prompt if 'fault' in bends else '')
        if knobs.delay:
            await asyncio.sleep(knobs.delay)
        if fault in REPLIES:
            return await self.give(Answer(connection, knobs, None), fault)
        check_length(body, knobs)
        await self.load(name, body, keep)
        loaded, slots = time.monotonic(), self.slots
        await slots.acquire()
        call.granted = time.monotonic()
        answer = spoken_answer(connection, knobs, body, loaded)
        try:
            await self.give(answer, fault)
        except asyncio.CancelledError:
            slots.running += answer.leaks
            raise
        finally:
            slots.release()

    async def only_load(self, connection, name, body, keep):
        """Answer an empty prompt: load the model, or unload it."""
        if keep == 0:
            self.loaded.pop(name, None)
        else:
            await self.load(name, body, keep)
        connection.reply(200, JSON, dump({'model': body['model'], 'created_at': timestamp(), 'response': '', 'done': True,
                                          'done_reason': 'unload' if keep == 0 else 'load'}))


def check_length(body, knobs):
    """Refuse a prompt that does not fit the window, unless it may be cut."""
    window = (body.get('options') or {}).get('num_ctx') or knobs.num_ctx
    count = prompt_tokens(body['prompt'], body.get('system'))
    if count > window and body.get('shift') is False:
        raise Refused(400, 'the prompt is longer than the context length currently available to the model')
    if count > window and body.get('truncate') is False:
        raise Refused(400, TOO_LONG % (count, window, count, window))


def spoken_answer(connection, knobs, body, loaded):
    """Return the Answer that a sane Ollama gives to BODY."""
    call, options = connection.call, body.get('options') or {}
    stream, prompt, system = body.get('stream') is not False, body['prompt'], body.get('system')
    pieces, reason = pieces_for(prompt, system, options.get('num_predict'), options.get('stop') or (), knobs.tokens)
    window = options.get('num_ctx') or knobs.num_ctx
    given = body.get('context') or []
    counted = prompt_tokens(prompt, system) + len(given)
    counted = counted if counted <= window else window // 2 + 2

    def final(answer):
        now = time.monotonic()
        made = len(pieces) + (reason == 'stop')
        record = {'model': body['model'], 'created_at': timestamp(), 'response': '' if answer.stream else ''.join(pieces),
                  'done': True, 'done_reason': reason}
        if not body.get('raw'):
            record['context'] = [*given, *range(1000, 1000 + counted + made - len(given))]
        record.update(total_duration=nanoseconds(now - call.started), load_duration=nanoseconds(loaded - call.started),
                      prompt_eval_count=counted, prompt_eval_duration=nanoseconds(answer.first - call.granted),
                      eval_count=made, eval_duration=nanoseconds(now - answer.first))
        return record
    return Answer(connection, knobs, final, pieces, stream, body['model'])


# --- how to steer it ---------------------------------------------------------------------------------------------------------

class Control:
    """What a test may do; ask() is how it gets to the server."""

    def set(self, **knobs):
        """Change knobs; those not named stay. Return all of them."""
        return SimpleNamespace(**self.ask('set', **knobs))

    def reset(self):
        """Go back to the knobs given at the start and to the models; forget all calls, cut off those under way."""
        self.ask('reset')

    def set_digest(self, name, digest=None):
        """Give model NAME another digest, a random one by default, adding it if need be; return the digest."""
        return self.ask('set_model', name=name, digest=digest)

    add_model = set_digest

    def remove_model(self, name):
        """Forget model NAME."""
        self.ask('remove_model', name=name)

    def calls(self, path=None):
        """Return the calls recorded, oldest first, those of PATH only if given: objects with the fields of Call."""
        return [SimpleNamespace(**call) for call in self.ask('calls', path=path)]

    def start(self):
        """Listen again, on the same port."""
        self.ask('start')

    def stop(self):
        """Refuse connections and break those there are."""
        self.ask('stop')

    def restart(self, down=0.0):
        """Stop, stay away for DOWN seconds, start."""
        self.stop()
        time.sleep(down)
        self.start()

    def wait(self, timeout=5.0, **counters):
        """Poll until each of COUNTERS has the value given, as in wait(running=1, waiting=2); TimeoutError else."""
        end = time.monotonic() + timeout
        while (seen := {name: getattr(self, name) for name in counters}) != counters:
            if time.monotonic() > end:
                raise TimeoutError(f'wanted {counters}, have {seen}')
            time.sleep(0.005)

    def __getattr__(self, name):
        """Return the counter NAME: requests, finished, closed_early, loads, running, waiting, peak, connections, faults, generations."""
        if not name.startswith('_') and name in (counters := self.ask('counters')):
            return Counter(counters[name]) if isinstance(counters[name], dict) else counters[name]
        raise AttributeError(name)


class OllamaDouble(Control):
    """A double in a thread of this process; use it in a with statement."""

    def __init__(self, port=0, **knobs):
        self._port, self._knobs, self._ready = port, knobs, threading.Event()
        Knobs().bent(knobs)

    def __enter__(self):
        self._thread = threading.Thread(target=asyncio.run, args=(self._live(),), name='ollama-double', daemon=True)
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError('the double did not start')
        if self._failure:
            raise self._failure
        self.port = self._server.port
        self.url = f'http://127.0.0.1:{self.port}'
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _live(self):
        self._loop, self._end, self._failure = asyncio.get_running_loop(), asyncio.Event(), None
        self._server = Server(self._port, **self._knobs)
        try:
            await self._server.start()
        except OSError as failure:
            self._failure = failure
            return
        finally:
            self._ready.set()
        await self._end.wait()
        await self._server.close()

    def ask(self, verb, **arguments):
        """Carry out VERB in the double's own thread."""
        return asyncio.run_coroutine_threadsafe(self._server.steer(verb, arguments), self._loop).result(10)


class DoubleRemote(Control):
    """A double in another process, steered over a port of its own that stays open while the double is stopped."""

    def __init__(self, url):
        self.url = self._control = url.rstrip('/')
        self.port = urlsplit(url).port
        self._control = self.ask('counters')['control']

    def ask(self, verb, **arguments):
        """Carry out VERB by HTTP."""
        connection = http.client.HTTPConnection(urlsplit(self._control).netloc, timeout=10)
        try:
            connection.request('POST', f'/_double/{verb}', json.dumps(arguments))
            response = connection.getresponse()
            result = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(result['error'])
        return result


async def serve(port, knobs):
    """Run until SIGTERM or SIGINT."""
    server, end = Server(port, **knobs), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end.set)
    await server.start()
    print(f'http://127.0.0.1:{server.port}', flush=True)
    await end.wait()
    await server.close()


def main():
    """Run the double as a process of its own."""
    parser = argparse.ArgumentParser(prog='python -m tests.double', description='A double of Ollama that misbehaves on demand.')
    parser.add_argument('--port', type=int, default=0)
    parser.add_argument('--faults', action='store_true', help='list the faults and end')
    for knob in fields(Knobs):
        parser.add_argument(f'--{knob.name.replace("_", "-")}', type=knob.type, default=knob.default, help=f'default {knob.default!r}')
    knobs = vars(parser.parse_args())
    port = knobs.pop('port')
    if knobs.pop('faults'):
        return print('\n'.join(f'{name:20} {run.__doc__}' for name, run in FAULTS.items()))
    asyncio.run(serve(port, knobs))


if __name__ == '__main__':
    main()
