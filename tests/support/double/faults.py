"""The faults of the double of Ollama, each a coroutine function of an Answer; FAULTS has them by name.

The docstring of each says what goes over the wire; "valid" marks those that a good client takes in its stride.
"""
import asyncio
from dataclasses import replace

from tests.support.double.rules import TOO_LONG, dump, error

FAULTS = {}
JSON, TEXT, HTML = 'application/json; charset=utf-8', 'text/plain; charset=utf-8', 'text/html'
ABSENT = ...                    # as the value of a field: leave the field out

REPLIES = {  # given at once, without a slot: status, Content-Type, body, meaning
    'oom': (500, JSON, error('llama-server reported out-of-memory during startup: cudaMalloc failed: out of memory'),
            'Out of memory while loading.'),
    'crashed': (500, JSON, error('llama-server process has terminated: exit status 2: /usr/lib/ollama/x\nCUDA error'),
                'The runner crashed; two lines of stderr with a path.'),
    'load_failed': (500, JSON, error('error starting llama-server: fork/exec llama-server: no such file or directory'),
                    'The runner cannot be started.'),
    'load_timeout': (500, JSON, error('timed out waiting for llama-server to start - progress 0.42'),
                     'The load stalled.'),
    'no_slots': (500, JSON, error('no slots available after 10 retries'), 'The runner is busy.'),
    'busy': (503, JSON, error('server busy, please try again.  maximum pending requests exceeded'),
             'The scheduler queue is full.'),
    'not_found': (404, JSON, error("model 'llama3:8b' not found"), 'The model is gone.'),
    'path_not_found': (404, TEXT, b'404 page not found', 'The wrong base URL: plain text.'),
    'bad_method': (405, TEXT, b'405 method not allowed', 'The wrong method: plain text.'),
    'bad_request': (400, JSON, error('invalid options: top_k is too large'), 'A 400 with a plain sentence.'),
    'bad_request_text': (400, TEXT, b'400 Bad Request', 'A 400 in plain text.'),
    'too_long': (400, JSON, error(TOO_LONG % (9000, 8192, 9000, 8192)),
                 'Prompt too long: the error is a string that holds JSON.'),
    'too_long_shift': (400, JSON, error('the prompt is longer than the context length currently available to the '
                                        'model'), 'Prompt too long with shift off: a plain sentence.'),
    'unauthorized': (401, JSON, dump({'error': 'unauthorized', 'signin_url': 'https://ollama.com/connect'}),
                     'A cloud model.'),
    'forbidden': (403, TEXT, b'', 'An unlisted Origin or Host: an empty body.'),
    'redirect': (307, TEXT, b'', 'A redirect to /elsewhere.'),
    'error_object': (500, JSON, dump({'error': {'message': 'boom'}}), 'The error is an object, not a string.'),
    'error_array': (500, JSON, b'[]', 'The body of a 500 is a JSON array.'),
    'html_200': (200, HTML, b'<html><body>Welcome to nginx!</body></html>', 'Another server: HTML with 200.'),
    'html_502': (502, HTML, b'<html><body><h1>502 Bad Gateway</h1></body></html>', 'A proxy in front: HTML with 502.'),
    'empty_200': (200, JSON, b'', 'An empty body with 200.'),
    'empty_502': (502, TEXT, b'', 'An empty body with 502.'),
}
INTRUDERS = {  # a line among the pieces, after which all goes on as it should; in the plain form it is the body
    'invalid_json': (b'{"model":"m","response":" oops', 'A line that is no JSON.'),
    'array_line': (b'["response"]', 'A line that is a JSON array.'),
    'number_line': (b'42', 'A line that is a number.'),
    'null_line': (b'null', 'A line that is null.'),
    'response_number': (b'{"model":"m","response":5,"done":false}', 'A piece that is a number.'),
    'response_null': (b'{"model":"m","response":null,"done":false}', 'A piece that is null.'),
    'response_missing': (b'{"model":"m","done":false}', 'A line without response.'),
    'invalid_utf8': (b'{"model":"m","response":" \xff\xfe\x80","done":false}', 'A piece that is no UTF-8.'),
    'lone_surrogate': (b'{"model":"m","response":" \\ud83d","done":false}', 'A piece: half a surrogate pair.'),
    'controls': (b'{"model":"m","response":" \\u0000\\r\\n","done":false}', 'A piece with NUL, CR, LF; valid.'),
    'blank_line': (b'', 'An empty line; valid.'),
}
METRICS = 'total_duration load_duration prompt_eval_count prompt_eval_duration eval_count eval_duration'.split()
EDITS = {  # what the last object says instead
    'done_false': (dict.fromkeys(('done_reason', 'context', *METRICS), ABSENT) | {'done': False},
                   'The last object says done:false, without reason and metrics: a partial answer.'),
    'done_string': ({'done': 'yes'}, 'done is a string.'),
    'done_absent': ({'done': ABSENT}, 'The last object has no done.'),
    'reason_load': ({'done_reason': 'load'}, 'done_reason is load.'),
    'reason_unknown': ({'done_reason': 'tired'}, 'done_reason is a word nobody knows.'),
    'reason_absent': ({'done_reason': ABSENT}, 'No done_reason.'),
    'reason_number': ({'done_reason': 7}, 'done_reason is a number.'),
    'missing_counts': ({'prompt_eval_count': ABSENT, 'eval_count': ABSENT}, 'No counts.'),
    'missing_metrics': (dict.fromkeys(METRICS, ABSENT), 'Neither counts nor durations.'),
    'zero_durations': ({name: 0 for name in METRICS if 'duration' in name}, 'All durations are 0.'),
    'negative_counts': ({'prompt_eval_count': -3, 'eval_count': -1, 'eval_duration': -5}, 'Negative counts.'),
    'huge_counts': ({'prompt_eval_count': 10**30, 'eval_count': 2**63, 'eval_duration': 10**400}, 'Beyond 64 bits.'),
    'string_counts': ({'prompt_eval_count': '7', 'eval_count': [1], 'eval_duration': '1s'}, 'Counts of wrong types.'),
    'text_in_last': ({'response': ' fin'}, 'The last object of a stream has text too; valid.'),
    'extra_fields': ({'prompt_eval_cached_count': 3, 'new': {'a': [1]}}, 'Fields from the future; valid.'),
}


async def reply(answer, status, kind, body):
    answer.connection.reply(status, kind, body, location='/elsewhere' if status == 307 else None)


async def intrude(answer, line):
    if not answer.stream:
        return answer.connection.reply(200, JSON, line)
    await answer.some(answer.knobs.after)
    await answer.write(line + b'\n')
    await answer.finish()


async def edit(answer, changes):
    await answer.finish(**changes)


def from_row(act, row):
    """Return the fault that ACT makes of a table's ROW."""
    *what, sentence = row

    async def run(answer):
        await act(answer, *what)
    run.__doc__ = sentence
    return run


for table, act in ((REPLIES, reply), (INTRUDERS, intrude), (EDITS, edit)):
    FAULTS.update({name: from_row(act, row) for name, row in table.items()})


def fault(run):
    """Enter RUN into FAULTS."""
    FAULTS[run.__name__] = run
    return run


# --- before the headers

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
    answer.connection.transport.write(b'\x00\x01garbage\r\n\r\n')
    answer.connection.transport.close()


@fault
async def hang(answer):
    """Silence for ever before the headers, the slot held."""
    await asyncio.Event().wait()


@fault
async def slow(answer):
    """As it should be, after a wait of the knob `slow`; valid."""
    await asyncio.sleep(answer.knobs.slow)
    await answer.finish()


@fault
async def leak(answer):
    """As it should be, but the slot is never given back if the client leaves before the end; valid."""
    answer.leaks = True
    await answer.finish()


@fault
async def single_json(answer):
    """One plain JSON object though a stream was asked for."""
    answer.stream = False
    await answer.finish()


# --- it breaks off

@fault
async def hang_after_headers(answer):
    """Headers, then silence for ever."""
    await answer.write(b'')
    await asyncio.Event().wait()


@fault
async def hang_midway(answer):
    """Some pieces, then silence for ever."""
    await answer.some(answer.knobs.after)
    await hang_after_headers(answer)


@fault
async def reset_midway(answer):
    """Some pieces, then half a chunk and a reset."""
    await answer.half_a_chunk()
    answer.connection.reset()


@fault
async def close_midway(answer):
    """Some pieces, then half a chunk and a close in good order."""
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
    await eof_at_once(answer)


@fault
async def eof_at_once(answer):
    """Headers and a clean end, no line at all; in the plain form the zero object, with model ''."""
    if not answer.stream:
        return answer.connection.reply(200, JSON, dump({'model': '', 'created_at': '0001-01-01T00:00:00Z',
                                                        'response': '', 'done': False}))
    await answer.write(b'')
    answer.connection.end()


# --- odd framing

@fault
async def glued(answer):
    """All lines in one TCP write and one chunk; valid."""
    await answer.write(b''.join(await answer.lines()))
    answer.connection.end()


@fault
async def split(answer):
    """Every line in two chunks and two TCP writes, cut inside its first multi-byte character; valid."""
    for line in await answer.lines():
        at = next((index + 1 for index, byte in enumerate(line) if byte > 127), len(line) // 2)
        for part in (line[:at], line[at:]):
            await answer.write(part)
            await asyncio.sleep(0.005)
    answer.connection.end()


@fault
async def crlf(answer):
    """CR LF at the end of each line and a line of blanks after it; valid."""
    for line in await answer.lines():
        await answer.write(line.rstrip() + b'\r\n  \r\n')
    answer.connection.end()


@fault
async def after_done(answer):
    """A complete answer, then one more piece after done:true."""
    await answer.write(b''.join(await answer.lines()).rstrip() + b'\n' + answer.line(' more'))
    answer.connection.end()


@fault
async def long_line(answer):
    """A last object with a context of megabytes (the knob `size`); valid."""
    await answer.finish(context=[128000] * (answer.knobs.size // 7))


@fault
async def trickle(answer):
    """The whole answer a byte at a time, one each `drip` seconds; valid."""
    for byte in b''.join(await answer.lines()):
        await answer.write(bytes([byte]))
        await asyncio.sleep(answer.knobs.drip)
    answer.connection.end()


# --- without an end

@fault
async def endless_blanks(answer):
    """Some pieces, then blank lines for ever."""
    await answer.repeat(b' \n' * 512)


@fault
async def endless_garbage(answer):
    """Some pieces, then one line that never ends."""
    await answer.repeat(b'x' * 16384)


@fault
async def endless_tokens(answer):
    """Pieces for ever, whatever num_predict says; done never comes."""
    await answer.repeat(answer.line(' on'))
