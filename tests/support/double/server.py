"""What the double of Ollama knows and does: its knobs, models, slots and records, and the endpoints."""
import asyncio
import hashlib
import json
import random
import re
import socket
import time
from collections import Counter, deque
from dataclasses import asdict, dataclass, fields, replace

from tests.support.double.faults import FAULTS, JSON, REPLIES, TEXT
from tests.support.double.rules import (STOPS, Refused, check_length, check_modes, check_types, dump, markers,
                                        nanoseconds, normal, parsed, pieces_for, prompt_tokens, seconds_of, timestamp)
from tests.support.double.wire import Answer, Connection, Slots


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
    fault: str = ''             # how /api/generate fails: one of FAULTS, or several with commas, drawn for each call
    times: int = 0              # calls it strikes before all is well again; 0 = for ever
    rate: float = 1.0           # share of the calls it strikes
    after: int = 2              # pieces sent before a fault that comes midway
    slow: float = 2.0           # the wait of the fault `slow`
    drip: float = 0.2           # between the bytes of the fault `trickle`
    size: int = 4_000_000       # bytes of the fault `long_line`
    tags_fault: str = ''        # how /api/tags fails
    show_fault: str = ''        # how /api/show fails
    version_fault: str = ''     # how /api/version fails
    record: int = 10_000        # calls remembered, the last ones; 0 = none, nor generations by prompt

    def bent(self, changes):
        """Return a copy with CHANGES, cast to the type of each knob; an unknown knob or fault is a ValueError."""
        kinds = {field.name: field.type for field in fields(self)}
        if strangers := changes.keys() - kinds.keys():
            raise ValueError(f'no such knob: {", ".join(strangers)}')
        cast = {name: kinds[name]() if value is None else kinds[name](value) for name, value in changes.items()}
        new = replace(self, **cast)
        named = {name for knob in ('fault', 'tags_fault', 'show_fault', 'version_fault')
                 for name in getattr(new, knob).split(',')}
        if strangers := named - FAULTS.keys() - {''}:
            raise ValueError(f'no such fault: {", ".join(strangers)}')
        return new


class Server:
    """All the state, touched by one event loop only: first what Control asks for, then what Ollama is asked for."""

    VERBS = 'set reset set_model remove_model counters calls start stop'.split()
    METHODS = {'/': 'GET HEAD', '/api/version': 'GET HEAD', '/api/tags': 'GET HEAD', '/api/ps': 'GET',
               '/api/status': 'GET', '/api/show': 'POST', '/api/generate': 'POST'}
    LOAD_OPTIONS = 'num_ctx num_batch num_gpu main_gpu use_mmap num_thread'.split()

    def __init__(self, port=0, **knobs):
        self.port, self.first_knobs = port, Knobs().bent(knobs)
        self.connections, self.listener, self.held = set(), None, None
        self.reset()

    def reset(self):
        for connection in list(self.connections):
            if connection.task and not connection.call.path.startswith('/_double/'):
                connection.break_off()
        self.knobs, self.slots = self.first_knobs, Slots(self.first_knobs.slots)
        self.models, self.loaded, self.load_lock, self.loading = {}, {}, asyncio.Lock(), 0
        self.log, self.struck = deque(maxlen=self.knobs.record), Counter()
        self.generations, self.faults = Counter(), Counter()
        self.requests = self.finished = self.closed_early = self.loads = 0
        for name in ('llama3:latest', 'llama3:8b'):
            self.set_model(name, hashlib.sha256(b'llama3').hexdigest())

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
        self.loaded.clear()

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

    def set(self, **knobs):
        self.knobs = self.knobs.bent(knobs)
        self.slots.total = self.knobs.slots
        self.slots.hand_out()
        if 'record' in knobs:
            self.log = deque(self.log, maxlen=self.knobs.record)
        if 'fault' in knobs or 'times' in knobs:
            del self.struck['']
        return asdict(self.knobs)

    def set_model(self, name, digest=None):
        digest = digest or random.randbytes(32).hex()
        self.models[normal(name)] = (digest, time.time())
        return digest

    def remove_model(self, name):
        self.models.pop(normal(name), None)
        self.loaded.pop(normal(name), None)

    def counters(self):
        return {'requests': self.requests, 'finished': self.finished, 'closed_early': self.closed_early,
                'loads': self.loads, 'running': self.slots.running, 'waiting': len(self.slots.queue),
                'peak': self.slots.peak, 'faults': dict(self.faults), 'generations': dict(self.generations),
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
        self.requests += 1
        self.log.append(call)
        try:
            await self.answer_ollama(connection, call, path, body)
            self.finished += 1
        except asyncio.CancelledError:
            self.closed_early += call.closed_early
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
        if path == '/api/generate':
            return await self.generate(connection, call, body)
        await self.inform(connection, call, path.removeprefix('/api/'), body)

    async def inform(self, connection, call, name, body):
        """Answer one of the small endpoints, or fail as its own knob says."""
        fault = self.drawn(getattr(self.knobs, f'{name}_fault', ''), call)
        shown = {} if fault in REPLIES else getattr(self, name)(body)
        await give(Answer(connection, replace(self.knobs, ttft=0, gap=0), lambda answer: shown), fault)

    def drawn(self, names, call):
        """Return one of the faults NAMES, and write down that it strikes CALL."""
        call.fault = random.choice(names.split(','))
        self.faults[call.fault] += bool(call.fault)
        return call.fault

    def version(self, body):
        return {'version': self.knobs.version}

    def status(self, body):
        return {'cloud': {'disabled': False, 'source': 'none'}}

    def tags(self, body):
        newest = sorted(self.models.items(), key=lambda item: -item[1][1])
        return {'models': [self.entry(name) | {'modified_at': timestamp(born)} for name, (_, born) in newest]}

    def ps(self, body):
        loaded = sorted((-expires, name) for name, (*_, expires) in self.loaded.items() if expires > time.time())
        return {'models': [self.entry(name) | {'expires_at': timestamp(-expires), 'size_vram': 4661224676,
                                               'context_length': self.knobs.num_ctx} for expires, name in loaded]}

    def entry(self, name):
        """Return what /api/tags and /api/ps have in common."""
        return {'name': name, 'model': name, 'size': 4661224676, 'digest': self.models[name][0],
                'details': {'parent_model': '', 'format': 'gguf', 'family': 'llama', 'families': ['llama'],
                            'parameter_size': '8.0B', 'quantization_level': 'Q4_0'}}

    def show(self, body):
        body = parsed(body)
        check_types(body)
        if not body.get('model'):
            raise Refused(400, 'model is required')
        name = normal(body['model'])
        if name not in self.models:
            raise Refused(404, f"model '{name}' not found")
        parameters = [('num_keep', '24'), *(('stop', f'"{text}"') for text in STOPS)]
        return {'license': 'META LLAMA 3 COMMUNITY LICENSE AGREEMENT', 'modelfile': f'FROM {name}\n',
                'parameters': '\n'.join(f'{key:<30} {value}' for key, value in parameters), 'template': '{{ .Prompt }}',
                'details': self.entry(name)['details'], 'capabilities': ['completion'],
                'model_info': {'general.architecture': 'llama', 'llama.context_length': 8192},
                'modified_at': timestamp(self.models[name][1])}

    def lookup(self, body):
        """Return the normal name of the model and the keep_alive of BODY after all that Ollama checks first."""
        check_types(body)
        keep, sent = seconds_of(body.get('keep_alive')), body.get('model') or ''
        if not sent.strip() or (name := normal(sent)) not in self.models:
            raise Refused(404, f"model '{sent}' not found")
        check_modes(body, name)
        return name, keep

    async def load(self, name, options, keep):
        """See that NAME is loaded with OPTIONS; a load whose client leaves is lost."""
        wanted = [options.get(option) for option in self.LOAD_OPTIONS]
        if not self.is_loaded(name, wanted):
            if self.load_lock.locked() and self.loading > self.knobs.max_queue:
                raise Refused(503, 'server busy, please try again.  maximum pending requests exceeded')
            self.loading += 1
            try:
                async with self.load_lock:
                    if not self.is_loaded(name, wanted):
                        await asyncio.sleep(self.knobs.load)
                        self.loads += 1
            finally:
                self.loading -= 1
        _, kept, _ = self.loaded.get(name, (None, 300, 0))
        keep = kept if keep is None else keep
        self.loaded[name] = (wanted, keep, time.time() + (keep if keep >= 0 else 9.2e9))

    def is_loaded(self, name, wanted):
        """Tell whether NAME is loaded with the options WANTED and has not expired."""
        loaded, _, expires = self.loaded.get(name, (None, 300, 0))
        return loaded == wanted and expires > time.time()

    def strikes(self, knobs, key):
        """Tell whether the fault of KNOBS strikes this time; `times` counts by KEY."""
        if not knobs.fault or knobs.times and self.struck[key] >= knobs.times or random.random() >= knobs.rate:
            return False
        self.struck[key] += 1
        return True

    async def generate(self, connection, call, raw):
        """Answer POST /api/generate."""
        call.json = body = parsed(raw)
        name, keep = self.lookup(body)
        prompt, options = body.get('prompt') or '', body.get('options') or {}
        bends = markers(prompt)
        knobs = self.knobs.bent(bends) if bends else self.knobs
        if prompt and knobs.record:
            self.generations[prompt] += 1
        fault = self.drawn(knobs.fault, call) if self.strikes(knobs, prompt if 'fault' in bends else '') else ''
        if knobs.delay:
            await asyncio.sleep(knobs.delay)
        if fault in REPLIES:
            return await give(Answer(connection, knobs, None), fault)
        if not prompt:
            return await self.only_load(connection, body, name, keep)
        check_length(body, options.get('num_ctx') or knobs.num_ctx)
        await self.load(name, options, keep)
        loaded, slots = time.monotonic(), self.slots
        await slots.acquire()
        call.granted = time.monotonic()
        answer = spoken_answer(connection, knobs, body, loaded)
        try:
            await give(answer, fault)
        except asyncio.CancelledError:
            slots.running += answer.leaks
            raise
        finally:
            slots.release()

    async def only_load(self, connection, body, name, keep):
        """Answer an empty prompt: load the model, or unload it if it is to be kept for no time."""
        if keep == 0:
            self.loaded.pop(name, None)
        else:
            await self.load(name, body.get('options') or {}, keep)
        connection.reply(200, JSON, dump({'model': body['model'], 'created_at': timestamp(), 'response': '',
                                          'done': True, 'done_reason': 'unload' if keep == 0 else 'load'}))


async def give(answer, fault):
    """Let ANSWER go its way, or that of FAULT."""
    await (FAULTS[fault](answer) if fault else answer.finish())


def spoken_answer(connection, knobs, body, loaded):
    """Return the Answer that a sane Ollama gives to BODY; LOADED is when the model was there."""
    call, options, given = connection.call, body.get('options') or {}, body.get('context') or []
    stream, prompt, system = body.get('stream') is not False, body['prompt'], body.get('system')
    pieces, reason = pieces_for(prompt, system, options.get('num_predict'), options.get('stop') or (), knobs.tokens)
    window = options.get('num_ctx') or knobs.num_ctx
    count, made = prompt_tokens(prompt, system) + len(given), len(pieces) + (reason == 'stop')
    count = count if count <= window else window // 2 + 2

    def final(answer):
        now = time.monotonic()
        record = {'model': body['model'], 'created_at': timestamp(),
                  'response': '' if answer.stream else ''.join(pieces), 'done': True, 'done_reason': reason,
                  'context': [*given, *range(1000, 1000 + count + made)],
                  'total_duration': nanoseconds(now - call.started),
                  'load_duration': nanoseconds(loaded - call.started), 'prompt_eval_count': count,
                  'prompt_eval_duration': nanoseconds(answer.first - call.granted), 'eval_count': made,
                  'eval_duration': nanoseconds(now - answer.first)}
        if body.get('raw'):
            del record['context']
        return record
    return Answer(connection, knobs, final, pieces, stream, body['model'])
