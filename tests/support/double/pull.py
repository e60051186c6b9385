"""POST /api/pull of the double: a model comes layer by layer, and is there when the last line says so."""
import hashlib

from tests.support.double.answer import Answer
from tests.support.double.golang import Refused, dump, parsed
from tests.support.double.rules import NAME, check_fields, normal
from tests.support.double.wire import JSON

LAYERS = (4_661_211_808, 12_403, 485)   # bytes
LINES = 20                              # about each layer that is not small


def pulled(server, connection, raw):
    """Return the Answer to the body RAW of a pull; the lines come `gap` seconds apart."""
    body = connection.call.json = parsed(raw, 'PullRequest')
    check_fields(body, 'PullRequest')
    sent = body.get('model') or body.get('name') or ''
    if not NAME.fullmatch(sent):
        raise Refused(400, 'invalid model name')
    name = normal(sent)
    known = name in map(normal, server.controls.registry.split(','))
    return Pulled(server, connection, name, known, body.get('stream') is not False)


def progress(name, cached):
    """Return the objects that report the layers of the model NAME; CACHED ones are reported once."""
    for at, total in enumerate(LAYERS):
        digest = hashlib.sha256(f'{name} {at}'.encode()).hexdigest()
        line = {'status': f'pulling {digest[:12]}', 'digest': f'sha256:{digest}', 'total': total}
        if not cached and total > LINES:
            yield line
            yield from (line | {'completed': total * part // LINES} for part in range(1, LINES))
        yield line | {'completed': total}
    for status in ('verifying sha256 digest', 'writing manifest'):
        yield {'status': status}


class Pulled(Answer):
    """The lines of a pull; plain, its end alone."""

    kind = 'pull'

    def __init__(self, server, connection, name, known, stream):
        pieces = ({'status': 'pulling manifest'}, *(progress(name, name in server.models.all) if known else ()))
        super().__init__(connection, server.controls, pieces, stream)
        self.server, self.name, self.known = server, name, known

    def line(self, piece):
        return dump(piece) + b'\n'

    def closing(self):
        if not self.known:
            return {'error': 'pull model manifest: file does not exist'}
        if self.name not in self.server.models.all:
            self.server.models.set(self.name, hashlib.sha256(self.name.partition(':')[0].encode()).hexdigest())
        return {'status': 'success'}

    async def finish(self, **changes):
        if self.stream or self.known:
            return await super().finish(**changes)
        await self.some()
        self.connection.reply(500, JSON, self.last(**changes))
