"""POST /api/embed of the double, and /api/embeddings, its old form: texts in, vectors out."""
import json
import time

from tests.support.double.answer import ABSENT, Answer
from tests.support.double.golang import Refused, compact, dump, nanoseconds, release
from tests.support.double.rules import ENGINE, TOO_LONG_PLAIN, engine_error
from tests.support.double.turn import Turn
from tests.support.double.vectors import cut, text_tokens, written

RENAMED = (0, 12, 0)            # the release that said in other words that a text is too long
NO_EMBEDDINGS = 'This server does not support embeddings. Start it with `--embeddings`'


class Embed(Turn):
    """An embed of several texts; without any it gives no vectors, though it loads the model."""

    struct = 'EmbedRequest'

    def find(self, sent):
        if not sent.strip():
            raise Refused(400, 'model is required')
        try:
            return super().find(sent)
        except Refused as refused:
            raise Refused(404, f'model "{sent}" not found, try pulling it first') if refused.status == 404 else refused

    def texts(self):
        """Return the texts to embed."""
        given = self.body.get('input')
        given = [given] if isinstance(given, str) and given else given or []
        if not isinstance(given, list) or not all(isinstance(text, str) for text in given):
            raise Refused(400, 'invalid input type')
        return given

    def check(self):
        self.input = self.texts()
        self.said, self.empty = '\n'.join(self.input), not self.input

    def record(self):
        self.server.embedded.update(self.input)

    def measure(self, window):
        if self.body.get('truncate') is False and any(text_tokens(text) > window for text in self.input):
            raise Refused(400, TOO_LONG_PLAIN if release(self.controls.version) >= RENAMED
                          else 'input length exceeds maximum context length')
        self.read = [cut(text, window) for text in self.input]
        self.count = sum(map(text_tokens, self.read))

    def nothing(self, reason):
        return {'model': self.body['model'], 'embeddings': []}

    def early(self):
        engine = release(self.controls.version) >= ENGINE
        if engine and 'embedding' not in self.model.capabilities:
            raise Refused(501, NO_EMBEDDINGS)
        if not all(self.input):
            raise engine_error('input content cannot be empty') if engine else Refused(
                500, 'Failed to create new sequence: no input provided')

    def asked(self):
        return self.said

    def answer(self):
        return Embedded(self)


class Embeddings(Embed):
    """The old form: one text, and its vector without any figures."""

    struct = 'EmbeddingRequest'

    def texts(self):
        return [self.body['prompt']] if self.body.get('prompt') else []

    def nothing(self, reason):
        return {'embedding': []}

    def answer(self):
        return EmbeddedOne(self)


class Embedded(Answer):
    """Vectors, in the order of the texts."""

    kind = 'embed'

    def __init__(self, turn):
        super().__init__(turn.connection, turn.controls, turn.input)
        self.turn = turn

    def vectors(self):
        """Return the JSON of each vector."""
        turn, model = self.turn, self.turn.model
        return [written(turn.name, text, turn.body.get('dimensions'), model.embedding_length, model.voice)
                for text in turn.read]

    def closing(self):
        return {'model': self.turn.body['model'], 'embeddings': json.loads(b'[%b]' % b','.join(self.vectors())),
                **self.figures()}

    def changed(self, change):
        """Return the field of the vectors after CHANGE, a function of all of them."""
        return {'embeddings': change(self.closing()['embeddings'])}

    def figures(self):
        """Return the durations and the count."""
        turn, now = self.turn, time.monotonic()
        return {'total_duration': nanoseconds(now - self.call.started),
                'load_duration': nanoseconds(turn.loaded - self.call.started), 'prompt_eval_count': turn.count}

    def last(self, **changes):
        if changes:
            body = {name: value for name, value in (self.closing() | changes).items() if value is not ABSENT}
            return compact(body).encode()
        return b'{"model":%b,"embeddings":[%b],%b' % (dump(self.turn.body['model']), b','.join(self.vectors()),
                                                      dump(self.figures())[1:])

    def asked(self):
        return self.turn.asked()

    def zero(self):
        return {'model': '', 'embeddings': None}


class EmbeddedOne(Embedded):
    """One vector."""

    def closing(self):
        return {'embedding': json.loads(self.vectors()[0])}

    def changed(self, change):
        vectors = change([self.closing()['embedding']])
        return {'embedding': vectors[0] if isinstance(vectors, list) and vectors else vectors}

    def last(self, **changes):
        return super().last(**changes) if changes else b'{"embedding":%b}' % self.vectors()[0]

    def zero(self):
        return {'embedding': None}
