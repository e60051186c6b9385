"""POST /api/generate of the double: one prompt, one text."""
from tests.support.double.answer import Spoken
from tests.support.double.rules import check_modes, check_sight
from tests.support.double.text import Thinking, pieces_for, prompt_tokens, text_of, thinking_of
from tests.support.double.turn import Conversing


class Generate(Conversing):
    """A generate; an empty prompt loads the model, or unloads it."""

    struct = 'GenerateRequest'
    changing = ('images', 'suffix', 'context', 'raw', 'template', 'format')

    def check(self):
        body, can = self.body, self.model.capabilities
        check_modes(body, body['model'], self.name, can)
        self.prompt = self.said = body.get('prompt') or ''
        self.empty = not self.prompt
        if 'images' in body:
            check_sight(body['images'], can, self.controls.version)

    def record(self):
        if self.prompt:
            self.server.generations[self.prompt] += 1

    def measure(self, window):
        count = prompt_tokens(self.prompt, self.body.get('system'))
        if given := self.body.get('context'):
            count += len(given)
        self.count = count if count <= window else self.fit(count, window)

    def answer(self):
        options, rest = self.options, self.rest()
        if 'images' in rest and 'vision' not in self.model.capabilities:
            del rest['images']
        return Generated(self, *pieces_for(self.prompt, self.body.get('system'), options.get('num_predict'),
                                           options.get('stop') or (), self.controls.tokens, **rest))

    def figures(self, answer):
        figures = super().figures(answer)
        if not self.body.get('raw'):
            tokens = range(1000, 1000 + self.count + figures['eval_count'])
            figures['context'] = [*(self.body.get('context') or ()), *tokens]
        return figures

    def asked(self):
        return f'{self.body.get("system") or ""}\n{self.prompt}'.strip()

    def blank(self):
        return {'response': ''}

    def rendered(self):
        body = self.body
        if body.get('raw'):
            return self.prompt
        system = f'system: {body["system"]}\n' if body.get('system') else ''
        return f'{system}user: {self.prompt}{body.get("suffix") or ""}\nassistant: '


class Generated(Spoken):
    """The answer to a generate."""

    @staticmethod
    def text(piece):
        return {'response': piece}

    def part(self, piece):
        return {'response': '', 'thinking': piece} if type(piece) is Thinking else self.text(piece)

    def whole(self, pieces):
        thinking = thinking_of(pieces)
        return {'response': text_of(pieces), **({'thinking': thinking} if thinking else {})}
