"""POST /api/chat of the double: messages, tools and what they said, thinking; one message back."""
import re

from tests.support.double.answer import Spoken
from tests.support.double.golang import Refused, release
from tests.support.double.rules import check_chat, check_sight
from tests.support.double.text import Thinking, calls_of, last_said, pieces_for, prompt_tokens, text_of, thinking_of
from tests.support.double.turn import Conversing

TEXT_ALONE = ('system', 'user', 'assistant')
IDENTIFIED = (0, 12, 10)        # the release that gave tool calls an id
RESPONSE = re.compile(rb'"response":("(?:[^"\\]|\\.)*"|null|\d+)')


class Chat(Conversing):
    """A chat; without messages it loads the model, or unloads it."""

    struct = 'ChatRequest'
    changing = ('tools', 'format')

    def find(self, sent):
        if not sent.strip():
            raise Refused(400, 'model is required')
        return super().find(sent)

    def check(self):
        body, can = self.body, self.model.capabilities
        check_chat(body, body['model'], self.name, can)
        messages = body.get('messages') or []
        self.empty, self.said = not messages, last_said(messages)
        check_sight(any(message.get('images') for message in messages), can, self.controls.version)
        self.messages = [blind(message) if 'vision' not in can else message for message in messages
                         # The template of a model without tools drops all other roles without a word.
                         if 'tools' in can or message.get('role') in TEXT_ALONE]

    def record(self):
        if self.said:
            self.server.generations[self.said] += 1

    def measure(self, window):
        self.count = self.fit(prompt_tokens(self.messages), window)

    def answer(self):
        options = self.options
        return Chatted(self, *pieces_for(self.messages, None, options.get('num_predict'), options.get('stop') or (),
                                         self.controls.tokens, **self.rest()))

    def asked(self):
        return '\n'.join(message.get('content') or '' for message in self.messages)

    def blank(self):
        return {'message': {'role': 'assistant', 'content': ''}}

    def rendered(self):
        return ''.join(f'{message.get("role", "")}: {message.get("content") or ""}\n' for message in self.messages
                       ) + 'assistant: '


def blind(message):
    """Return MESSAGE as it is to a model that sees no images."""
    return {name: value for name, value in message.items() if name != 'images'} if 'images' in message else message


class Chatted(Spoken):
    """The answer to a chat."""

    kind = 'chat'

    @staticmethod
    def text(piece):
        return {'message': {'role': 'assistant', 'content': piece}}

    def part(self, piece):
        if type(piece) is str:
            return self.text(piece)
        if type(piece) is Thinking:
            return {'message': {'role': 'assistant', 'content': '', 'thinking': piece}}
        return {'message': {'role': 'assistant', 'content': '', 'tool_calls': self.tool_calls([piece])}}

    def whole(self, pieces):
        message = {'role': 'assistant', 'content': text_of(pieces), 'thinking': thinking_of(pieces),
                   'tool_calls': self.tool_calls(calls_of(pieces))}
        return {'message': {name: value for name, value in message.items() if value or name == 'content'}}

    def tool_calls(self, calls):
        """Return CALLS as this release of Ollama writes them."""
        if release(self.controls.version) >= IDENTIFIED:
            return calls
        return [{'function': call['function']} for call in calls]

    def adapted(self, line):
        return RESPONSE.sub(rb'"message":{"role":"assistant","content":\1}', line)
