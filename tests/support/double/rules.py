"""What the double of Ollama says and what it refuses: text from a prompt, JSON as Go writes it, checks of a request."""
import functools
import hashlib
import json
import re
import time

TEMPLATE_TOKENS = 11            # what the chat template adds to the words of prompt and system
STOPS = ('<|start_header_id|>', '<|end_header_id|>', '<|eot_id|>')
WORDS = ('the a sky sea light model answer because often water blue wave small long number river city music paper '
         'time people world house night day hand part place case week system program question work point home').split()
WORDS = [f' {word}' for word in WORDS]
RARE = [f' {word}' for word in 'café naïve 漢字 日本 😀 🦙 über señor Ωμέγα привет'.split()]
PER_PROMPT = 'delay ttft gap tokens fault times rate after slow drip size'.split()
MARKER = re.compile(r'\[\[(\w+)=([^\[\]]*)\]\]')


def markers(prompt):
    """Return the knobs that PROMPT sets for itself, as text."""
    found = dict(MARKER.findall(prompt)) if '[[' in prompt else {}
    if strangers := found.keys() - set(PER_PROMPT):
        raise ValueError(f'not for a prompt: {", ".join(strangers)}')
    return found


@functools.lru_cache(4096)
def spoken(digest, length):
    """Return the first LENGTH pieces of the endless text of DIGEST; every fourth one has multi-byte characters."""
    numbers = (digest * (length // len(digest) + 1))[:length]
    pieces = [WORDS[(at + number) % len(WORDS)] for at, number in enumerate(numbers)]
    pieces[1::4] = [RARE[(at + number) % len(RARE)] for at, number in enumerate(numbers[1::4])]
    pieces[0] = pieces[0].lstrip()
    return tuple(pieces)


def natural_pieces(prompt, system=None, tokens=0):
    """Return the pieces of the whole answer: TOKENS of them, or as many as the prompt makes it."""
    digest = hashlib.blake2b(f'{system or ""}\0{prompt}'.encode('utf-8', 'surrogatepass'), digest_size=32).digest()
    return spoken(digest, int(markers(prompt).get('tokens', 0)) or tokens or 8 + digest[0] % 13)


def pieces_for(prompt, system=None, n=None, stop=(), tokens=0):
    """Return (pieces, done_reason): the natural answer, cut by N as num_predict, or before one of STOP."""
    pieces, reason = natural_pieces(prompt, system, tokens), 'stop'
    if n is not None and 0 < n <= len(pieces):
        pieces, reason = pieces[:n], 'length'
    text = ''.join(pieces) if stop else ''
    if found := [at for at in map(text.find, stop) if at >= 0]:
        left, kept = min(found), []
        for piece in pieces:
            kept.append(piece[:left])
            left -= len(kept[-1])
        pieces, reason = tuple(filter(None, kept)), 'stop'
    return pieces, reason


def answer_for(prompt, system=None, n=None, stop=(), tokens=0):
    """Return the text the double gives to PROMPT; N is num_predict, TOKENS the knob of that name where it is set."""
    return ''.join(pieces_for(prompt, system, n, stop, tokens)[0])


def prompt_tokens(prompt, system=None):
    """Return the prompt_eval_count of a call without `context`."""
    return len(prompt.split()) + len((system or '').split()) + TEMPLATE_TOKENS


# --- JSON as Go writes it

compact = json.JSONEncoder(ensure_ascii=False, separators=(',', ':')).encode
ESCAPED = '<>&\u2028\u2029'


def dump(value):
    """Return VALUE as JSON bytes; < > & are escaped and a lone surrogate becomes U+FFFD."""
    text = compact(value)
    for character in ESCAPED:
        if character in text:
            text = text.replace(character, f'\\u{ord(character):04x}')
    try:
        return text.encode()
    except UnicodeEncodeError:
        return re.sub('[\ud800-\udfff]', '\ufffd', text).encode()


def error(text):
    """Return the body of an error."""
    return dump({'error': text})


@functools.lru_cache(8)
def to_the_second(second):
    """Return the start of all timestamps of one second."""
    return time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(second))


def timestamp(now=None):
    """Return RFC 3339 in UTC with 0 to 9 digits of a second, trailing zeros cut."""
    now = now or time.time()
    digits = f'.{int(now % 1 * 1e9):09d}'.rstrip('0').rstrip('.')
    return f'{to_the_second(int(now))}{digits}Z'


def nanoseconds(seconds):
    """Return a duration as Ollama counts it, never zero."""
    return max(1, int(seconds * 1e9))


# --- what a request must be

class Refused(Exception):
    """A request that is answered with a status and an {"error"} object."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status, self.body = status, error(text)


NAME = re.compile(r'(\w[\w.-]{0,79}/){0,2}\w[\w.-]{0,79}(:\w[\w.-]{0,79})?', re.ASCII)
FIELDS = {'model': str, 'prompt': str, 'system': str, 'template': str, 'suffix': str, 'raw': bool, 'stream': bool,
          'options': dict, 'context': list, 'images': list, 'truncate': bool, 'shift': bool, 'logprobs': bool,
          'top_logprobs': int}
OPTION_KINDS = {
    'integer': 'num_predict seed top_k num_keep num_ctx repeat_last_n num_batch num_gpu num_thread main_gpu',
    'float32': 'temperature top_p min_p typical_p repeat_penalty presence_penalty frequency_penalty',
    'boolean': 'use_mmap', 'array': 'stop'}
OPTIONS = {name: kind for kind, names in OPTION_KINDS.items() for name in names.split()}
PYTHON = {'integer': (int, float), 'float32': (int, float), 'boolean': (bool,), 'array': (list,)}
GO = {str: 'string', bool: 'bool', dict: 'object', list: 'array', int: 'number', float: 'number', type(None): 'null'}
UNITS = {'h': 3600, 'm': 60, 's': 1, 'ms': 1e-3, 'us': 1e-6, 'µs': 1e-6, 'ns': 1e-9}
DURATION = re.compile(r'(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)')


def refuse_constant(name):
    """Refuse NaN and Infinity, which Python's decoder would take."""
    raise ValueError(name)


decode = json.JSONDecoder(parse_constant=refuse_constant).raw_decode


def parsed(body):
    """Return the JSON object a request body begins with; what follows it is ignored."""
    text = body.decode('utf-8', 'replace').lstrip()
    if not text:
        raise Refused(400, 'missing request body')
    try:
        value, _ = decode(text)
    except ValueError:
        raise Refused(400, f"invalid character '{text[0]}' looking for beginning of value") from None
    if not isinstance(value, dict):
        raise Refused(400, f'json: cannot unmarshal {GO[type(value)]} into Go value of type api.GenerateRequest')
    return value


@functools.lru_cache(1024)
def normal(name):
    """Return the form of a model's name that is looked up; an illegal one is refused."""
    name = name.strip().lower().removesuffix(':local').removeprefix('registry.ollama.ai/').removeprefix('library/')
    if not NAME.fullmatch(name):
        raise Refused(400, 'invalid model name')
    return name if ':' in name.rpartition('/')[2] else f'{name}:latest'


def seconds_of(keep_alive):
    """Return a keep_alive in seconds, None if there is none; a string is a Go duration."""
    if not isinstance(keep_alive, str):
        return keep_alive
    number = keep_alive.lstrip('+-')
    if number.isdigit() and number != '0':
        raise Refused(400, f'time: missing unit in duration "{keep_alive}"')
    parts = DURATION.findall(number)
    if number != '0' and (not number or ''.join(map(''.join, parts)) != number):
        raise Refused(400, f'time: invalid duration "{keep_alive}"')
    return (-1 if keep_alive[0] == '-' else 1) * sum(float(count) * UNITS[unit] for count, unit in parts)


def check_types(body):
    """Refuse fields of a wrong type (400) and options of a wrong type (500); null is no fault."""
    for name, value in body.items():
        kind = FIELDS.get(name)
        if kind and type(value) is not kind and value is not None:
            raise Refused(400, f'json: cannot unmarshal {GO[type(value)]} into Go struct field '
                               f'GenerateRequest.{name} of type {GO[kind]}')
    for name, value in (body.get('options') or {}).items():
        kind = OPTIONS.get(name)
        if kind and type(value) not in PYTHON[kind] and value is not None:
            raise Refused(500, f'option "{name}" must be of type {kind}')
        if name == 'stop' and value and not all(isinstance(text, str) for text in value):
            raise Refused(500, 'option "stop" must be of type an array of strings')


def check_modes(body, name):
    """Refuse what Llama 3 cannot do and what does not go together."""
    if body.get('raw') and any(body.get(field) for field in ('template', 'system', 'context')):
        raise Refused(400, 'raw mode does not support template, system, or context')
    if body.get('suffix'):
        raise Refused(400, f'registry.ollama.ai/library/{name} does not support insert')
    if body.get('think'):
        raise Refused(400, f'"{body["model"]}" does not support thinking')
    if not 0 <= (body.get('top_logprobs') or 0) <= 20:
        raise Refused(400, 'top_logprobs must be between 0 and 20')
    if (form := body.get('format')) and form != 'json' and not isinstance(form, dict):
        raise Refused(500, f'invalid format: {compact(form)}; expected "json" or a valid JSON Schema object')


TOO_LONG = ('{"error":{"code":400,"message":"request (%d tokens) exceeds the available context size (%d tokens), '
            'try increasing it","type":"exceed_context_size_error","n_prompt_tokens":%d,"n_ctx":%d}}')


def check_length(body, window):
    """Refuse a prompt longer than WINDOW tokens, unless it may be cut."""
    count = prompt_tokens(body['prompt'], body.get('system'))
    if count > window and body.get('shift') is False:
        raise Refused(400, 'the prompt is longer than the context length currently available to the model')
    if count > window and body.get('truncate') is False:
        raise Refused(400, TOO_LONG % (count, window, count, window))
