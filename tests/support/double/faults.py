"""The faults of the double of Ollama, each a coroutine function of an Answer; FAULTS has them by name.

The docstring of each says what goes over the wire; "valid" marks those that a good client takes in its stride.
"""
import asyncio
from dataclasses import replace

from tests.support.double.fault_tables import CHAT_LINES, EDITS, INTRUDERS, REPLIES, VECTORS
from tests.support.double.golang import dump, error
from tests.support.double.wire import JSON

FAULTS = {}                     # they strike any call
CHAT_FAULTS = {}                # they strike a chat; any other call is answered as it should be
EMBED_FAULTS = {}               # they strike an embed


async def reply(answer, status, kind, body):
    answer.connection.reply(status, kind, body, location='/elsewhere' if status == 307 else None)


async def intrude(answer, line):
    if not answer.stream:
        return answer.connection.reply(200, JSON, answer.adapted(line))
    await answer.some(answer.controls.after)
    await answer.write(answer.adapted(line) + b'\n')
    await answer.finish()


async def edit(answer, changes):
    await answer.finish(**changes)


async def say(answer, message):
    if answer.kind != 'chat':
        return await answer.finish()
    await intrude(answer, b'{"model":"m","message":%b,"done":false}' % message)


async def disturb(answer, change):
    if answer.kind != 'embed':
        return await answer.finish()
    await answer.finish(**answer.changed(change))


def from_row(act, row):
    """Return the fault that ACT makes of a table's ROW."""
    *what, sentence = row

    async def run(answer):
        await act(answer, *what)
    run.__doc__ = sentence
    return run


for registry, table, act in ((FAULTS, REPLIES, reply), (FAULTS, INTRUDERS, intrude), (FAULTS, EDITS, edit),
                             (CHAT_FAULTS, CHAT_LINES, say), (EMBED_FAULTS, VECTORS, disturb)):
    registry.update({name: from_row(act, row) for name, row in table.items()})


def fault(run):
    """Enter RUN into FAULTS."""
    FAULTS[run.__name__] = run
    return run


def chat_fault(run):
    """Enter RUN into CHAT_FAULTS."""
    CHAT_FAULTS[run.__name__] = run
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
    """Silence forever before the headers, the slot held."""
    await asyncio.Event().wait()


@fault
async def slow(answer):
    """As it should be, after a wait of the control `slow`; valid."""
    await asyncio.sleep(answer.controls.slow)
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
    """Headers, then silence forever."""
    await answer.write(b'')
    await asyncio.Event().wait()


@fault
async def hang_midway(answer):
    """Some pieces, then silence forever."""
    await answer.some(answer.controls.after)
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
    await answer.some(answer.controls.after)
    await answer.write(answer.line(' half')[:20])
    answer.connection.end()


@fault
async def error_line(answer):
    """Some pieces, an {"error"} line under status 200, a clean end; in the plain form a 500."""
    await fail_with(answer, 'an error was encountered while running the model: unexpected EOF')


@fault
async def context_error(answer):
    """All the text, then an {"error"} line in place of the last object; in the plain form a 500."""
    answer.controls = replace(answer.controls, after=len(answer.pieces))
    await error_line(answer)


@fault
async def eof(answer):
    """Some pieces, then a clean end without done; in the plain form done:false."""
    if not answer.stream:
        return await FAULTS['done_false'](answer)
    await answer.some(answer.controls.after)
    await eof_at_once(answer)


@fault
async def eof_at_once(answer):
    """Headers and a clean end, no line at all; in the plain form the zero object, with model ''."""
    if not answer.stream:
        return answer.connection.reply(200, JSON, dump(answer.zero()))
    await answer.write(b'')
    answer.connection.end()


async def fail_with(answer, text):
    """Give some pieces and an {"error"} line; in the plain form a 500."""
    if not answer.stream:
        return answer.connection.reply(500, JSON, error(text))
    await answer.some(answer.controls.after)
    await answer.write(error(text) + b'\n')
    answer.connection.end()


@fault
async def repeats_prompt(answer):
    """A 500 whose text repeats the whole of what was asked."""
    answer.connection.reply(500, JSON, error(f'failed to process "{answer.asked()}": unexpected EOF'))


@fault
async def repeats_part(answer):
    """Some pieces, an {"error"} line that repeats most of what was asked, a clean end; in the plain form a 500."""
    text = answer.asked()
    await fail_with(answer, f'failed at "{text[len(text) // 8:-(len(text) // 8) or None]}": unexpected EOF')


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
    """A last object with a context of megabytes (the control `size`); valid."""
    await answer.finish(context=[128000] * (answer.controls.size // 7))


@fault
async def trickle(answer):
    """The whole answer a byte at a time, one each `drip` seconds; valid."""
    for byte in b''.join(await answer.lines()):
        await answer.write(bytes([byte]))
        await asyncio.sleep(answer.controls.drip)
    answer.connection.end()


# --- without an end

@fault
async def endless_blanks(answer):
    """Some pieces, then blank lines forever."""
    await answer.repeat(b' \n' * 512)


@fault
async def endless_garbage(answer):
    """Some pieces, then one line that never ends."""
    await answer.repeat(b'x' * 16384)


@fault
async def endless_tokens(answer):
    """Pieces forever, whatever num_predict says; done never comes."""
    await answer.repeat(answer.line(' on'))


@chat_fault
async def tool_calls_in_last(answer):
    """The tool calls are in the last object, with done:true; valid."""
    calls = [piece for piece in answer.pieces if type(piece) is dict]
    if not (answer.kind == 'chat' and answer.stream and calls):
        return await answer.finish()
    await answer.some(len(answer.pieces) - len(calls))
    await answer.pause(len(calls))
    await answer.finish(message={'role': 'assistant', 'content': '', 'tool_calls': calls})


ALL_FAULTS = FAULTS | CHAT_FAULTS | EMBED_FAULTS
