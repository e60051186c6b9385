"""The state of the double of Ollama, all of it touched by one event loop only, and the way to its endpoints."""
import asyncio
import json
import random
import re
import socket
from collections import Counter, deque
from dataclasses import asdict

from tests.support.double.answer import Answer, Given
from tests.support.double.chat import Chat
from tests.support.double.embed import Embed, Embeddings
from tests.support.double.faults import REPLIES
from tests.support.double.generate import Generate
from tests.support.double.golang import Refused, parsed
from tests.support.double.controls import Controls
from tests.support.double.models import Models
from tests.support.double.prefixes import Prefixes
from tests.support.double.pull import pulled
from tests.support.double.slots import Slots
from tests.support.double.turn import give
from tests.support.double.wire import JSON, TEXT, Connection


class Server:
    """First what Control asks for, then what Ollama is asked for."""

    VERBS = 'set reset set_model remove_model counters calls start stop'.split()
    METHODS = {'/': 'GET HEAD', '/api/version': 'GET HEAD', '/api/tags': 'GET HEAD', '/api/ps': 'GET',
               '/api/status': 'GET', '/api/show': 'POST', '/api/generate': 'POST', '/api/chat': 'POST',
               '/api/embed': 'POST', '/api/embeddings': 'POST', '/api/pull': 'POST'}
    TURNS = {'/api/generate': Generate, '/api/chat': Chat, '/api/embed': Embed, '/api/embeddings': Embeddings}

    def __init__(self, port=0, **controls):
        self.port, self.first_controls = port, Controls().bent(controls)
        self.connections, self.listener, self.held = set(), None, None
        self.holders = set()        # connections whose call has a slot
        self.reset()

    def reset(self):
        for connection in list(self.connections):
            if connection.task and not connection.call.path.startswith('/_double/'):
                connection.break_off()
        self.controls, self.slots, self.models = self.first_controls, Slots(self.first_controls.slots), Models()
        self.log, self.struck = deque(maxlen=self.controls.record), Counter()
        self.generations, self.embedded, self.faults = Counter(), Counter(), Counter()
        self.ends = Counter()       # a new one: earlier calls may end later, and no longer count
        self.prefixes, self.prompt_tokens, self.cached_tokens = Prefixes(), 0, 0

    async def start(self):
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
        if self.listener:
            listener, self.listener = self.listener, None
            asyncio.get_running_loop().remove_reader(listener.sockets[0].fileno())
            await asyncio.sleep(0)  # asyncio would lose a connection accepted in the same turn as a close
            listener.close()
        for connection in list(self.connections):
            if not connection.steering:
                connection.break_off()
        self.models.loaded.clear()
        self.prefixes = Prefixes()

    async def close(self):
        """Stop for good."""
        tasks = [connection.task for connection in self.connections if connection.task]
        await self.stop()
        self.steering.close()
        self.held.close()
        for connection in list(self.connections):
            connection.break_off()
        await asyncio.gather(*tasks)
        await asyncio.sleep(0.01)           # those accepted just now get their end too

    def set(self, **controls):
        self.controls = self.controls.bent(controls)
        self.slots.total = self.controls.slots
        self.slots.hand_out()
        if 'record' in controls:
            self.log = deque(self.log, maxlen=self.controls.record)
        if 'fault' in controls or 'times' in controls:
            del self.struck['']
        return asdict(self.controls)

    def set_model(self, name, loaded=None, **attributes):
        digest = self.models.set(name, **attributes)
        if loaded is not None:
            self.models.put(name, loaded, self.controls)
        return digest

    def remove_model(self, name):
        self.models.remove(name)

    def counters(self):
        return {**{name: self.ends[name] for name in ('requests', 'finished', 'closed_early')},
                'loads': self.models.loads, 'aborted_loads': self.models.aborted_loads,
                'loading': self.models.loading, 'running': self.slots.running, 'waiting': len(self.slots.queue),
                'peak': self.slots.peak, 'faults': dict(self.faults), 'generations': dict(self.generations),
                'embedded': dict(self.embedded), 'prompt_tokens': self.prompt_tokens,
                'cached_tokens': self.cached_tokens,
                'connections': sum(not connection.steering for connection in self.connections),
                'control': self.control}

    def calls(self, path=None):
        return [{name: getattr(call, name) for name in call.__slots__}
                for call in self.log if path in (None, call.path)]

    async def steer(self, verb, arguments):
        """Carry out one of VERBS."""
        if verb not in self.VERBS:
            raise ValueError(f'no such verb: {verb}')
        result = getattr(self, verb)(**arguments)
        return await result if asyncio.iscoroutine(result) else result

    async def answer(self, connection, call, body):
        """Answer CALL, be it to the double or to Ollama."""
        path = call.path.partition('?')[0]
        if path.startswith('/_double/'):
            return await self.answer_control(connection, path.removeprefix('/_double/'), body)
        ends = self.ends
        ends['requests'] += 1
        self.log.append(call)
        try:
            await self.answer_ollama(connection, call, path, body)
            ends['finished'] += 1
        except asyncio.CancelledError:
            ends['closed_early'] += call.closed_early
            raise
        except Refused:
            raise
        except Exception as failure:    # a marker that makes no sense, or a fault of the double itself
            raise Refused(500, f'double: {failure!r}') from failure

    async def answer_control(self, connection, verb, body):
        try:
            status, result = 200, await self.steer(verb, json.loads(body or b'{}'))
        except (TypeError, ValueError, Refused) as failure:
            status, result = 400, {'error': str(failure)}
        connection.reply(status, JSON, json.dumps(result).encode())

    async def answer_ollama(self, connection, call, path, body):
        if 'origin' in call.headers:
            return connection.reply(403, TEXT, b'')
        if path not in self.METHODS:
            clean = re.sub('//+', '/', path)
            clean = clean.rstrip('/') if clean.rstrip('/') in self.METHODS else clean
            if clean != path:
                return connection.reply(307, TEXT, b'', location=clean)
            return connection.reply(404, TEXT, b'404 page not found')
        if call.method not in self.METHODS[path].split():
            return connection.reply(405, TEXT, b'405 method not allowed')
        if path == '/':
            return connection.reply(200, TEXT, b'Ollama is running')
        if turn := self.TURNS.get(path):
            call.json = parsed(body, turn.struct)
            return await turn(self, connection, call, call.json).run()
        await self.inform(connection, call, path.removeprefix('/api/'), body)

    async def inform(self, connection, call, name, body):
        """Answer one of the small endpoints, or fail as its own control says."""
        fault = self.drawn(getattr(self.controls, f'{name}_fault', ''), call)
        if fault in REPLIES:
            return await give(Answer(connection, self.controls), fault)
        if name == 'show':
            call.json = parsed(body, 'ShowRequest')
        if name == 'pull':
            return await give(pulled(self, connection, body), fault)
        await give(Given(connection, self.controls, getattr(self, name)(body)), fault)

    def drawn(self, names, call):
        """Return one of the faults NAMES, and write down that it strikes CALL."""
        call.fault = random.choice(names.split(','))
        self.faults[call.fault] += bool(call.fault)
        return call.fault

    def struck_by(self, controls, key, call):
        """Return the fault of KNOBS that strikes CALL this time, or ''; `times` counts by KEY."""
        spent = controls.times and self.struck[key] >= controls.times
        if not controls.fault or spent or random.random() >= controls.rate:
            return ''
        self.struck[key] += 1
        return self.drawn(controls.fault, call)

    def version(self, body):
        return {'version': self.controls.version}

    def status(self, body):
        return {'cloud': {'disabled': False, 'source': 'none'}}

    def tags(self, body):
        return self.models.tags(self.controls.version)

    def ps(self, body):
        return self.models.ps(self.controls.version)

    def show(self, body):
        return self.models.show(body, self.controls.version)
