"""One call that takes a slot, from the checks of its body to the end of its answer."""
import asyncio
import time

from tests.support.double.answer import Answer, Given
from tests.support.double.faults import ALL_FAULTS, REPLIES
from tests.support.double.golang import Refused, nanoseconds, seconds_of, timestamp
from tests.support.double.rules import check_fields, check_format, check_options, evaluated, normal
from tests.support.double.text import TOLD_BY_TEXT, markers


class Turn:
    """The course of one call; a subclass says what its body means."""

    struct = ''                 # of Ollama's source, for the texts of refusals
    said = ''                   # where the markers are looked for, and what is counted
    empty = False               # whether it asks for no more than a load
    count = 0                   # tokens of the prompt that are read
    loaded = 0.0                # when the model was there

    def __init__(self, server, connection, call, body):
        self.server, self.connection, self.call, self.body = server, connection, call, body
        self.controls, self.options = server.controls, {}

    def find(self, sent):
        """Return the normal name of the model SENT names."""
        if not sent.strip() or (name := normal(sent)) not in self.server.models.all:
            raise Refused(404, f"model '{sent}' not found")
        return name

    def check(self):
        """Refuse what is wrong with this body or too much for this model."""

    def record(self):
        """Count the call."""

    def measure(self, window):
        """Set `count`, or refuse a prompt that does not fit WINDOW."""

    def asked(self):
        """Return all the text of the request."""
        raise NotImplementedError

    def nothing(self, reason):
        """Return the object that answers a call which is empty, REASON being load or unload."""
        raise NotImplementedError

    def early(self):
        """Return the object that is given without a slot once the model is loaded, None to go on; or refuse."""

    def answer(self):
        """Return the Answer that a sane Ollama gives."""
        raise NotImplementedError

    async def run(self):
        """Go the whole way."""
        server, models, controls = self.server, self.server.models, self.controls
        self.admit()
        bends = markers(self.said)
        if bends:
            self.controls = controls = controls.bent({name: bends[name] for name in bends if name not in TOLD_BY_TEXT})
        if controls.record:
            self.record()
        fault = server.struck_by(controls, self.said if 'fault' in bends else '', self.call)
        if controls.delay:
            await asyncio.sleep(controls.delay)
        if fault in REPLIES:
            return await give(Answer(self.connection, controls), fault)
        if self.empty:
            return await self.only_load(fault)
        self.measure(models.window(self.name, self.options, controls))
        await models.load(self.name, self.options, self.keep, controls)
        self.loaded = time.monotonic()
        if early := self.early():
            return await give(Given(self.connection, controls, early), fault)
        await self.take_slot(fault)

    def admit(self):
        """Check all that Ollama checks before it looks for a place to run, in its order."""
        body = self.body
        check_fields(body, self.struct)
        self.keep = seconds_of(body.get('keep_alive'))
        self.name = self.find(body.get('model') or '')
        self.model = self.server.models.all[self.name]
        self.check()
        if options := body.get('options'):
            self.options = options
            check_options(options)
        if 'format' in body:
            check_format(body['format'])

    async def only_load(self, fault):
        """Load the model, or unload it if it is to be kept for no time."""
        models = self.server.models
        if self.keep == 0:
            models.loaded.pop(self.name, None)
        else:
            await models.load(self.name, self.options, self.keep, self.controls)
        await give(Given(self.connection, self.controls, self.nothing('unload' if self.keep == 0 else 'load')), fault)

    async def take_slot(self, fault):
        """Wait for a slot and answer."""
        slots, holders = self.server.slots, self.server.holders
        await slots.acquire()
        self.call.granted = time.monotonic()
        holders.add(self.connection)
        if self.controls.record:
            self.call.beside = sum(connection.has_client for connection in holders)
        answer = self.answer()
        try:
            await give(answer, fault)
        except asyncio.CancelledError:
            slots.running += answer.leaks
            raise
        finally:
            holders.discard(self.connection)
            slots.release()

    def figures(self, answer):
        """Return the durations and counts of ANSWER, a generated one."""
        now, call = time.monotonic(), self.call
        figures = {'total_duration': nanoseconds(now - call.started),
                   'load_duration': nanoseconds(self.loaded - call.started), 'prompt_eval_count': self.count,
                   'prompt_eval_duration': nanoseconds(answer.first - call.granted),
                   'eval_count': len(answer.pieces) + (answer.reason == 'stop'),
                   'eval_duration': nanoseconds(now - answer.first)}
        if call.cached:
            figures['prompt_eval_cached_count'] = call.cached
        return figures


class Conversing(Turn):
    """The common part of generate and chat: a call for text, from a model that may think."""

    changing = ()               # fields of the body that change the answer

    def rest(self):
        """Return the further fields that change the answer, as pieces_for takes them."""
        body, model, controls = self.body, self.model, self.controls
        found = {name: body[name] for name in self.changing if name in body and body[name]}
        if model.voice:
            found['voice'] = model.voice
        if 'thinking' in model.capabilities and body.get('think') is not False:
            found['think'] = body.get('think') or True
        return found | {'thinking': controls.thinking, 'tool': controls.tool} if found else found

    def early(self):
        if self.body.get('_debug_render_only'):
            return {'model': self.body['model'], 'created_at': timestamp(), **self.blank(), 'done': False,
                    '_debug_info': {'rendered_template': self.rendered()}}
        return None

    def nothing(self, reason):
        return {'model': self.body['model'], 'created_at': timestamp(), **self.blank(), 'done': True,
                'done_reason': reason}

    def blank(self):
        """Return the fields that hold the answer, empty."""
        raise NotImplementedError

    def rendered(self):
        """Return the prompt as the template makes it."""
        raise NotImplementedError

    def seconds_to_read(self, answer):
        """Return how long the prompt takes, with the prefix memory; remember it with its ANSWER."""
        controls, prefixes, words = self.controls, self.server.prefixes, self.rendered().split()
        if controls.prefix_memory:
            self.call.cached = min(prefixes.matched(words), self.count - 1)
            prefixes.remember([*words, *answer.split()], controls.prefix_memory)
        self.server.prompt_tokens += self.count
        self.server.cached_tokens += self.call.cached
        return controls.prefill * (self.count - self.call.cached)

    def fit(self, count, window):
        """Return how many of COUNT tokens are read."""
        return evaluated(count, self.body, window, self.controls.version)


async def give(answer, fault):
    """Let ANSWER go its way, or that of FAULT."""
    await (ALL_FAULTS[fault](answer) if fault else answer.finish())
