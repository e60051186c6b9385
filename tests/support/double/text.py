"""The double's text: pieces computed from the request alone, so that a test can know them in advance.

A piece is text (str), a Thinking, or a tool call (dict). A prompt is a string, or the list of messages of a chat; a
chat of one system and one user message gets the answer of /api/generate to the same two texts.
"""
import functools
import hashlib
import json
import random
import re

from tests.support.double.golang import compact
from tests.support.double.schemas import value_for

TEMPLATE_TOKENS = 11            # what the chat template adds to the words of prompt and system
TURN_TOKENS = 5                 # and for each further message
WORDS = ('the a sky sea light model answer because often water blue wave small long number river city music paper '
         'time people world house night day hand part place case week system program question work point home').split()
WORDS = [f' {word}' for word in WORDS]
RARE = [f' {word}' for word in 'café naïve 漢字 日本 😀 🦙 über señor Ωμέγα привет'.split()]
PER_PROMPT = 'delay ttft gap tokens thinking tool fault times rate after slow drip size'.split()
TOLD_BY_TEXT = ('tokens', 'thinking', 'tool')    # those that text and tests read in the prompt themselves
MARKER = re.compile(r'\[\[(\w+)=([^\[\]]*)\]\]')
PRINTED = 'role content thinking images tool_calls tool_name tool_call_id'.split()     # of a message, by the template
ANY_JSON = {'type': 'object', 'properties': {'answer': {'type': 'string'}, 'certain': {'type': 'boolean'}}}


class Thinking(str):
    """A piece of what the model thinks before it answers."""

    __slots__ = ()


def markers(text):
    """Return the controls that TEXT sets for its own call, as text."""
    found = dict(MARKER.findall(text)) if '[[' in text else {}
    if strangers := found.keys() - set(PER_PROMPT):
        raise ValueError(f'not for a prompt: {", ".join(strangers)}')
    return found


def last_said(messages):
    """Return the text of the last message of the user, the one whose markers count."""
    return next((message.get('content') or '' for message in reversed(messages) if message.get('role') == 'user'), '')


@functools.lru_cache(4096)
def spoken(digest, length):
    """Return the first LENGTH pieces of the endless text of DIGEST; every fourth one has multi-byte characters."""
    numbers = (digest * (length // len(digest) + 1))[:length]
    pieces = [WORDS[(at + number) % len(WORDS)] for at, number in enumerate(numbers)]
    pieces[1::4] = [RARE[(at + number) % len(RARE)] for at, number in enumerate(numbers[1::4])]
    pieces[0] = pieces[0].lstrip()
    return tuple(pieces)


def digest_of(prompt, system, rest):
    """Return the bytes from which an answer is made; REST are the other fields of the request that matter."""
    text = f'{system or ""}\0{prompt}'
    if rest and (rest := {name: value for name, value in sorted(rest.items()) if value}):
        text += f'\0{compact(rest)}'
    return hashlib.blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=32).digest()


def read(prompt, system):
    """Return (prompt, system, what was said last) of a prompt or of the messages of a chat."""
    if isinstance(prompt, str):
        return prompt, system, prompt
    systems = [message.get('content') or '' for message in prompt if message.get('role') == 'system']
    others = [{name: message[name] for name in PRINTED if message.get(name)} for message in prompt
              if message.get('role') != 'system']
    said = last_said(others)
    simple = len(others) == 1 and others[0].keys() == {'role', 'content'} and said
    return said if simple else compact(others), '\n\n'.join(systems), said


def thoughts(digest, length):
    """Return LENGTH pieces of thinking, as many as DIGEST makes it without a length."""
    other = hashlib.blake2b(b'thinking' + digest, digest_size=32).digest()
    return tuple(map(Thinking, spoken(other, length or 3 + digest[1] % 5)))


def tool_call(digest, at, name, tools):
    """Return the call, number AT, of the tool NAME with arguments that fit its parameters."""
    schemas = (tool['function'].get('parameters') for tool in tools if tool['function']['name'] == name)
    own = hashlib.blake2b(digest + bytes([at]) + name.encode(), digest_size=32)
    arguments = value_for(next(schemas, None) or {'type': 'object'}, random.Random(own.digest()))
    return {'id': f'call_{own.hexdigest()[:8]}', 'function': {'index': at, 'name': name, 'arguments': arguments}}


def written(digest, form):
    """Return JSON that fits FORM, a schema or 'json', four characters a piece."""
    value = value_for(ANY_JSON if form == 'json' else form, random.Random(digest))
    text = json.dumps(value, ensure_ascii=False)
    return tuple(text[at:at + 4] for at in range(0, len(text), 4))


def natural_pieces(prompt, system=None, tokens=0, *, thinking=0, tool='', **rest):
    """Return the pieces of the whole answer: TOKENS of them, or as many as the prompt makes it.

    THINKING is the number of pieces of it where `think` is on, TOOL the tools to call, controls like TOKENS.
    """
    messages = prompt
    prompt, system, said = read(prompt, system)
    digest, own = digest_of(prompt, system, rest), markers(said)
    before = thoughts(digest, int(own.get('thinking', 0)) or thinking) if rest.get('think') else ()
    names = own.get('tool') or tool
    if names and rest.get('tools') and messages[-1].get('role') == 'user':
        return before + tuple(tool_call(digest, at, name, rest['tools']) for at, name in enumerate(names.split(',')))
    if rest.get('format'):
        return before + written(digest, rest['format'])
    return before + spoken(digest, int(own.get('tokens', 0)) or tokens or 8 + digest[0] % 13)


def pieces_for(prompt, system=None, n=None, stop=(), tokens=0, **rest):
    """Return (pieces, done_reason): the natural answer, cut by N as num_predict, or before one of STOP.

    REST are other fields of the request that change the answer: images, suffix, context, raw, template, format, tools,
    think (True for a model that thinks, unless the request disables it), and the `voice` of the model.
    """
    pieces, reason = natural_pieces(prompt, system, tokens, **rest), 'stop'
    if n is not None and 0 < n <= len(pieces):
        pieces, reason = pieces[:n], 'length'
    text = text_of(pieces) if stop else ''
    if found := [at for at in map(text.find, stop) if at >= 0]:
        pieces, reason = cut(pieces, min(found)), 'stop'
    return pieces, reason


def cut(pieces, left):
    """Return PIECES up to the character LEFT of their text; what is no text stays."""
    kept = []
    for piece in pieces:
        if type(piece) is str:
            piece = piece[:left]
            left -= len(piece)
        kept.append(piece)
    return tuple(filter(None, kept))


def text_of(pieces):
    """Return the text in PIECES, without thinking and tool calls."""
    return ''.join([piece for piece in pieces if type(piece) is str])


def thinking_of(pieces):
    """Return the thinking in PIECES."""
    return ''.join([piece for piece in pieces if type(piece) is Thinking])


def calls_of(pieces):
    """Return the tool calls in PIECES."""
    return [piece for piece in pieces if type(piece) is dict]


def answer_for(prompt, system=None, n=None, stop=(), tokens=0, **rest):
    """Return the text the double gives to PROMPT; N is num_predict, TOKENS the control of that name where it is set."""
    return text_of(pieces_for(prompt, system, n, stop, tokens, **rest)[0])


def prompt_tokens(prompt, system=None):
    """Return the prompt_eval_count of a call without `context`."""
    if isinstance(prompt, str):
        return len(prompt.split()) + (len(system.split()) if system else 0) + TEMPLATE_TOKENS
    further = max(0, sum(message.get('role') != 'system' for message in prompt) - 1)
    return (sum(len((message.get('content') or '').split()) for message in prompt) + TEMPLATE_TOKENS
            + TURN_TOKENS * further)


def logprobs_for(pieces, top=0):
    """Return the log-probabilities of PIECES of text or thinking, each with the TOP most likely tokens."""
    return [entry_of(piece) | ({'top_logprobs': [entry_of(token) for token in (piece, *WORDS)[:top]]} if top else {})
            for piece in pieces if isinstance(piece, str)]


def entry_of(token):
    data = token.encode()
    return {'token': token, 'logprob': -(sum(data) % 512) / 256, 'bytes': list(data)}
