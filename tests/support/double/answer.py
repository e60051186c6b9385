"""The steps of one call to the double, which a fault may stop, change or extend."""
import asyncio
import functools
import time
from dataclasses import replace

from tests.support.double.golang import dump, timestamp
from tests.support.double.text import logprobs_for, text_of
from tests.support.double.wire import JSON, NDJSON

ABSENT = ...                    # as the value of a field: leave the field out
BURST = 50                      # tokens without a gap that are written at once, each as a chunk


class Answer:
    """The answer to one call; subclasses say what its objects look like."""

    kind = ''                   # chat, embed …: where a fault strikes one of them alone
    leaks, first = False, 0.0   # first: when the first token came
    prefill = 0.0               # seconds of work on the prompt

    def __init__(self, connection, controls, pieces=(), stream=False):
        self.connection, self.call, self.controls = connection, connection.call, controls
        self.pieces, self.stream = pieces, stream

    def closing(self):
        """Return the last object, or the only one of a plain answer."""
        raise NotImplementedError

    def line(self, piece):
        """Return the line of a stream that carries PIECE."""
        return dump({'response': piece, 'done': False}) + b'\n'

    def last(self, **changes):
        """Return the line, or the body, of the last object with CHANGES."""
        body = self.closing()
        if changes:
            body = {name: value for name, value in (body | changes).items() if value is not ABSENT}
        return dump(body) + b'\n' if self.stream else dump(body)

    def zero(self):
        """Return the object of an answer that never began."""
        return {}

    def asked(self):
        """Return all the text of the request."""
        return ''

    def adapted(self, line):
        """Return LINE, one of a generate, as it would be here."""
        return line

    async def pause(self, count):
        """Wait for the next COUNT tokens."""
        if not self.first:
            wait = self.controls.ttft + self.prefill + self.controls.gap * max(count - 1, 0)
        else:
            wait = self.controls.gap * count
        if wait > 0:
            await asyncio.sleep(wait)
        self.first = self.first or time.monotonic()
        self.call.sent += count

    async def some(self, count=None):
        """Let COUNT more tokens come, all that are left without a count; only a stream shows them."""
        rest = self.pieces[self.call.sent:][:count]
        if not self.stream or not rest:
            return await self.pause(len(rest))
        step = 1 if self.controls.gap else BURST
        for at in range(0, len(rest), step):
            due = rest[at:at + step]
            await self.pause(len(due))
            await self.write(*map(self.line, due))

    async def lines(self):
        """Return the whole answer as lines once the time for it has passed; a plain answer is one."""
        await self.pause(len(self.pieces))
        return [*map(self.line, self.pieces if self.stream else ()), self.last()]

    async def write(self, *chunks):
        """Write CHUNKS once the client has read enough of what came before."""
        if self.connection.transport.is_closing():
            await asyncio.Event().wait()    # the news that the client has left is under way and ends this task
        if self.connection.resumed:
            await self.connection.resumed
        self.connection.chunks(chunks, NDJSON if self.stream else JSON)

    async def finish(self, **changes):
        """Give what is left and the last object, with CHANGES."""
        await self.some()
        if not self.stream:
            return self.connection.reply(200, JSON, self.last(**changes))
        await self.write(self.last(**changes))
        self.connection.end()

    async def half_a_chunk(self):
        """Give some pieces, then half of a chunk."""
        await self.some(self.controls.after)
        await self.write(b'')
        self.connection.transport.write(b'ff\r\n' + self.line(' half')[:30])

    async def repeat(self, data):
        """Give some pieces, then DATA forever, at a bearable pace."""
        await self.some(self.controls.after)
        while True:
            await self.write(data)
            self.call.sent += 1
            await asyncio.sleep(self.controls.gap or 0.005)


class Given(Answer):
    """An object that is there at once."""

    def __init__(self, connection, controls, body):
        super().__init__(connection, replace(controls, ttft=0.0, gap=0.0))
        self.body = body

    def closing(self):
        return self.body


@functools.lru_cache(64)
def head_of(model):
    """Return how a line of MODEL begins, up to the time."""
    return dump({'model': model, 'created_at': ''})[:-2]


@functools.lru_cache(4096)
def fields_of(kind, piece):
    """Return the JSON of the fields that carry PIECE, some text, in an answer of KIND; words come again and again."""
    return dump(kind.text(piece))[1:-1]


class Spoken(Answer):
    """The answer of a model to a generate or a chat, with its figures."""

    def __init__(self, turn, pieces, reason):
        body = turn.body
        super().__init__(turn.connection, turn.controls, pieces, body.get('stream') is not False)
        self.turn, self.reason, self.model = turn, reason, body['model']
        if turn.controls.prefix_memory or turn.controls.prefill:
            self.prefill = turn.seconds_to_read(text_of(pieces))
        self.top = (body.get('top_logprobs') or 0) if body.get('logprobs') else None

    @staticmethod
    def text(piece):
        """Return the fields that carry PIECE, some text."""
        raise NotImplementedError

    def part(self, piece):
        """Return the fields that carry PIECE."""
        raise NotImplementedError

    def whole(self, pieces):
        """Return the fields that carry PIECES together, of which there may be none."""
        raise NotImplementedError

    def line(self, piece):
        """Return the line of a stream that carries PIECE."""
        fields = fields_of(type(self), piece) if type(piece) is str else dump(self.part(piece))[1:-1]
        if self.top is not None and (found := logprobs_for((piece,), self.top)):
            fields += b',"logprobs":' + dump(found)
        return b'%b%b",%b,"done":false}\n' % (head_of(self.model), timestamp().encode(), fields)

    def closing(self):
        pieces = () if self.stream else self.pieces
        record = {'model': self.model, 'created_at': timestamp(), **self.whole(pieces), 'done': True,
                  'done_reason': self.reason} | self.turn.figures(self)
        if self.top is not None and pieces:
            record['logprobs'] = logprobs_for(pieces, self.top)
        return record

    def last(self, **changes):
        return super().last(**changes | self.part(changes.pop('response')) if 'response' in changes else changes)

    def asked(self):
        return self.turn.asked()

    def zero(self):
        return {'model': '', 'created_at': '0001-01-01T00:00:00Z', **self.whole(()), 'done': False}
