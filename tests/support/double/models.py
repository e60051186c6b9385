"""The models of the double of Ollama: which exist, which are loaded, and the answers of its small endpoints."""
import asyncio
import hashlib
import random
import time
from dataclasses import dataclass, fields, replace

from tests.support.double.golang import Refused, parsed, timestamp
from tests.support.double.rules import ENGINE, check_fields, normal, release

STOPS = ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
LOAD_OPTIONS = 'num_ctx num_batch num_gpu main_gpu use_mmap num_thread draft_num_predict'.split()
BUSY = 'server busy, please try again.  maximum pending requests exceeded'
FOR_EVER = 9.2e9


@dataclass(frozen=True)
class Model:
    """One model; without `completion` among its capabilities it is for embeddings alone."""

    digest: str
    born: float                 # its modified_at
    capabilities: tuple = ('completion',)
    context_length: int = 8192  # the longest window it was trained for
    embedding_length: int = 768
    gpu_percent: int = 100      # the share of it that fits on the GPU
    size: int = 4661224676
    family: str = 'llama'
    stops: tuple = STOPS
    tells: bool = True          # what it can do; Ollama before 0.6.4 does not
    remote_host: str = ''       # where a cloud model runs, of which only a stub is here
    voice: str = ''             # makes its answers differ from those of other models


@dataclass(slots=True)
class Loaded:
    """How a model is loaded: its load-time options, its window, and until when."""

    options: dict
    window: int
    keep: float
    expires: float


class Models:
    """The models by their normal names, and one load at a time."""

    def __init__(self):
        self.all, self.loaded = {}, {}
        self.lock, self.loading = asyncio.Lock(), 0     # loading: requests that load or wait for a load
        self.loads = self.aborted_loads = 0
        for name in ('llama3:latest', 'llama3:8b'):
            self.set(name, hashlib.sha256(b'llama3').hexdigest())

    def set(self, name, digest=None, **attributes):
        """Change the model NAME, or add it; a new digest is made up if none is given. Return its digest."""
        if strangers := attributes.keys() - {field.name for field in fields(Model)}:
            raise ValueError(f'no such attribute of a model: {", ".join(strangers)}')
        for plural in ('capabilities', 'stops'):
            if plural in attributes:
                attributes[plural] = tuple(attributes[plural])
        name, now = normal(name), time.time()
        known = self.all.get(name)
        if known and digest in (None, known.digest):
            self.all[name] = replace(known, **attributes)
        else:
            known = known or Model('', now)
            self.all[name] = replace(known, digest=digest or random.randbytes(32).hex(), born=now, **attributes)
        return self.all[name].digest

    def put(self, name, loaded, controls):
        """Load NAME without a wait, or unload it."""
        name = normal(name)
        self.loaded.pop(name, None)
        if loaded:
            self.renew(name, {}, self.window(name, {}, controls), None)

    def remove(self, name):
        """Forget the model NAME."""
        self.all.pop(normal(name), None)
        self.loaded.pop(normal(name), None)

    # --- loading

    def window(self, name, options, controls):
        """Return the context window that NAME has, or would be loaded with."""
        return min(options.get('num_ctx') or controls.num_ctx, self.all[name].context_length)

    async def load(self, name, options, keep, controls):
        """See that NAME is loaded with OPTIONS; a load whose client leaves is lost."""
        window = self.window(name, options, controls)
        options = {option: value for option, value in options.items() if option in LOAD_OPTIONS and value is not None}
        if not self.is_loaded(name, options):
            if self.lock.locked() and self.loading > controls.max_queue:
                raise Refused(503, BUSY)
            self.loading += 1
            try:
                async with self.lock:
                    if not self.is_loaded(name, options):
                        await self.read(controls.load)
            finally:
                self.loading -= 1
        self.renew(name, options, window, keep)

    async def read(self, seconds):
        """Take the time of a load."""
        try:
            await asyncio.sleep(seconds)
        except asyncio.CancelledError:
            self.aborted_loads += 1
            raise
        self.loads += 1

    def is_loaded(self, name, options):
        """Whether NAME is loaded with these load-time OPTIONS and has not expired."""
        loaded = self.loaded.get(name)
        return bool(loaded) and loaded.options == options and loaded.expires > time.time()

    def renew(self, name, options, window, keep):
        """Record that NAME is loaded, for KEEP seconds or the previous time."""
        loaded = self.loaded.get(name)
        keep = keep if keep is not None else loaded.keep if loaded else 300
        self.loaded[name] = Loaded(options, window, keep, time.time() + (keep if keep >= 0 else FOR_EVER))

    # --- descriptions

    def tags(self, version):
        """Return the body of /api/tags, newest first."""
        newest = sorted(self.all.items(), key=lambda item: -item[1].born)
        return {'models': [self.entry(name, version) | {'modified_at': timestamp(model.born)}
                           | ({'capabilities': model.capabilities}
                              if model.tells and release(version) >= ENGINE else {})
                           for name, model in newest]}

    def ps(self, version):
        """Return the body of /api/ps: what is loaded, the last to expire first; a model still loading is not."""
        loaded = sorted(((how, name) for name, how in self.loaded.items() if how.expires > time.time()),
                        key=lambda item: -item[0].expires)
        return {'models': [self.entry(name, version) | {
            'expires_at': timestamp(how.expires), 'context_length': how.window,
            'size_vram': self.all[name].size * self.all[name].gpu_percent // 100} for how, name in loaded]}

    def entry(self, name, version):
        """Return what /api/tags and /api/ps have in common."""
        model = self.all[name]
        return {'name': name, 'model': name, 'size': model.size, 'digest': model.digest,
                'details': self.details(model, version)} | self.remote(name, model)

    def remote(self, name, model):
        """Return the additional facts of a cloud model."""
        return {'remote_model': name, 'remote_host': model.remote_host} if model.remote_host else {}

    def details(self, model, version):
        """Return the `details` of MODEL, as they are in three places."""
        lengths = {'context_length': model.context_length, 'embedding_length': model.embedding_length}
        return {'parent_model': '', 'format': 'gguf', 'family': model.family, 'families': [model.family],
                'parameter_size': '8.0B', 'quantization_level': 'Q4_0'} | (
                    lengths if release(version) >= ENGINE else {})

    def show(self, raw, version):
        """Return the body of /api/show."""
        body = parsed(raw, 'ShowRequest')
        check_fields(body, 'ShowRequest')
        sent = body.get('model') or body.get('name')
        if not sent:
            raise Refused(400, 'model is required')
        name = normal(sent)
        if name not in self.all:
            raise Refused(404, f"model '{name if release(version) >= ENGINE else sent}' not found")
        model, family = self.all[name], self.all[name].family
        parameters = [('num_keep', '24'), *(('stop', f'"{text}"') for text in model.stops)]
        return {'license': 'META LLAMA 3 COMMUNITY LICENSE AGREEMENT', 'modelfile': f'FROM {name}\n',
                'parameters': '\n'.join(f'{key:<30} {value}' for key, value in parameters), 'template': '{{ .Prompt }}',
                'details': self.details(model, version), **self.remote(name, model),
                **({'capabilities': model.capabilities} if model.tells else {}),
                'model_info': {'general.architecture': family, f'{family}.context_length': model.context_length,
                               f'{family}.embedding_length': model.embedding_length},
                'modified_at': timestamp(model.born)}
