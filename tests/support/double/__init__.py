"""A double of Ollama that misbehaves on demand: real sockets, the grammar of the wire, answers made of the request.

In a test:     with OllamaDouble(slots=2, ttft=0.1) as double: ... double.url ... double.fail('busy', times=3)
As a process:  python -m tests.support.double --port 11434 --gap 0.02     (then DoubleRemote('http://127.0.0.1:11434'))
In a prompt:   'Why? [[fault=eof]] [[after=3]]' overrides the controls named in PER_PROMPT, for that call alone

Both classes have the methods of Control; each is a POST of a JSON object to /_double/<verb> too, for other languages.
`python -m tests.support.double --faults` lists the faults, `--help` the controls. What to expect: answer_for(prompt or
messages) is the text, pieces_for(…) also the thinking and the tool calls, vector_for(model, text) the vector.
"""
import asyncio
import http.client
import json
import secrets
import threading
import time
from collections import Counter
from types import SimpleNamespace
from urllib.parse import urlsplit

from tests.support.double.faults import CHAT_FAULTS, EMBED_FAULTS, FAULTS
from tests.support.double.controls import Controls
from tests.support.double.schemas import value_for
from tests.support.double.server import Server
from tests.support.double.text import (PER_PROMPT, answer_for, calls_of, markers, pieces_for, prompt_tokens, text_of,
                                       thinking_of)
from tests.support.double.vectors import text_tokens, vector_for

__all__ = ['CHAT_FAULTS', 'EMBED_FAULTS', 'FAULTS', 'PER_PROMPT', 'Controls', 'DoubleRemote', 'OllamaDouble',
           'answer_for', 'calls_of', 'markers', 'pieces_for', 'prompt_tokens', 'text_of', 'text_tokens', 'thinking_of',
           'value_for', 'vector_for']


class Control:
    """The controls for a test; ask() sends them to the server."""

    def set(self, **controls):
        """Change controls; those not named stay. Return all of them."""
        return SimpleNamespace(**self.ask('set', **controls))

    def fail(self, fault='', times=0, rate=1.0):
        """Let all that is asked of a model fail that way: the next TIMES calls, or a share; without a fault, heal."""
        self.set(fault=fault, times=times, rate=rate)

    def reset(self):
        """Go back to the controls and models of the beginning; forget all calls, cut off those under way."""
        self.ask('reset')

    def set_model(self, name, **attributes):
        """Change model NAME, or add it; return its digest.

        The attributes are those of models.Model (digest, capabilities, context_length, gpu_percent, voice …) and
        `loaded`: True loads it without a wait, False unloads it. Those not named stay.
        """
        return self.ask('set_model', name=name, **attributes)

    def add_model(self, name, digest=None, **attributes):
        """Set model NAME with another digest, a random one by default; return it."""
        return self.set_model(name, digest=digest or secrets.token_hex(32), **attributes)

    set_digest = add_model

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
        """Refuse connections, break those there are, unload the models."""
        self.ask('stop')

    def restart(self, down=0.0):
        """Stop, stay away for DOWN seconds, start."""
        self.stop()
        time.sleep(down)
        self.start()

    def wait(self, timeout=20.0, **counters):
        """Poll until each of COUNTERS has the value given, as in wait(running=1, waiting=2); else TimeoutError."""
        end = time.monotonic() + timeout
        while any((seen := self.ask('counters'))[name] != value for name, value in counters.items()):
            if time.monotonic() > end:
                raise TimeoutError(f'wanted {counters}, have {({name: seen[name] for name in counters})}')
            time.sleep(0.005)

    def __getattr__(self, name):
        """Return a counter: requests finished closed_early connections running waiting peak, and those named here.

        `loads` ended well, `aborted_loads` were left by their client, `loading` calls load or wait for a load; of all
        `prompt_tokens` the prefix memory had `cached_tokens` (both only while it or `prefill` is on). Counters of calls
        that arrived: `faults` by name, `generations` by prompt or last message of the user, `embedded` by text.
        """
        if name.startswith('_') or name not in (counters := self.ask('counters')):
            raise AttributeError(name)
        return Counter(counters[name]) if isinstance(counters[name], dict) else counters[name]


class OllamaDouble(Control):
    """A double in a thread of this process, for a with statement."""

    def __init__(self, port=0, **controls):
        Controls().bent(controls)
        self._port, self._controls, self._failure, self._ready = port, controls, None, threading.Event()
        self._thread = threading.Thread(target=asyncio.run, args=[self._live()], name='ollama-double', daemon=True)

    def __enter__(self):
        self._thread.start()
        self._ready.wait()
        if self._failure:
            raise self._failure
        self.port = self._server.port
        self.url = f'http://127.0.0.1:{self.port}'
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    async def _live(self):
        self._loop, self._end = asyncio.get_running_loop(), asyncio.Event()
        self._server = Server(self._port, **self._controls)
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
        self.url = self._steering = url
        self.port = urlsplit(url).port
        self._steering = self.ask('counters')['control']

    def ask(self, verb, **arguments):
        """Carry out VERB by HTTP."""
        connection = http.client.HTTPConnection(urlsplit(self._steering).netloc, timeout=10)
        try:
            connection.request('POST', f'/_double/{verb}', json.dumps(arguments))
            response = connection.getresponse()
            result = json.loads(response.read())
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(result['error'])
        return result
