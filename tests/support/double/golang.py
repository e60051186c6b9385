"""Go's treatment of JSON, times and durations, on the way in and on the way out."""
import functools
import json
import re
import time

compact = json.JSONEncoder(ensure_ascii=False, separators=(',', ':')).encode
ESCAPED = '<>&\u2028\u2029'
KINDS = {str: 'string', bool: 'bool', dict: 'object', list: 'array', int: 'number', float: 'number',
         type(None): 'null'}
UNITS = {'h': 3600, 'm': 60, 's': 1, 'ms': 1e-3, 'us': 1e-6, 'µs': 1e-6, 'ns': 1e-9}
DURATION = re.compile(r'(\d+(?:\.\d*)?|\.\d+)(h|ms|m|s|us|µs|ns)')


class Refused(Exception):
    """A request that is answered with a status and an {"error"} object."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status, self.body = status, error(text)


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


def refuse_constant(name):
    """Refuse NaN and Infinity, which Python's decoder would take."""
    raise ValueError(name)


decode = json.JSONDecoder(parse_constant=refuse_constant).raw_decode


def parsed(body, struct):
    """Return the JSON object a request body begins with, its keys in lower case; what follows it is ignored."""
    text = body.decode('utf-8', 'replace').lstrip()
    if not text:
        raise Refused(400, 'missing request body')
    try:
        value, _ = decode(text)
    except ValueError as failure:
        at = getattr(failure, 'pos', 0)
        raise Refused(400, f"invalid character '{text[at]}' looking for beginning of value" if at < len(text)
                      else 'unexpected EOF') from None
    if not isinstance(value, dict):
        raise mismatch(value, f'value of type api.{struct}')
    return value if all(map(str.islower, value)) else {name.lower(): value for name, value in value.items()}


def mismatch(value, where):
    """Return the refusal of VALUE, whose JSON type does not fit WHERE."""
    return Refused(400, f'json: cannot unmarshal {KINDS[type(value)]} into Go {where}')


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


def seconds_of(keep_alive):
    """Return a keep_alive in seconds, None if there is none; a string is a Go duration."""
    if isinstance(keep_alive, (bool, dict, list)):
        raise Refused(400, f'Unsupported type: {compact(keep_alive)}')
    if not isinstance(keep_alive, str):
        return keep_alive
    number = keep_alive.lstrip('+-')
    if number.isdigit() and number != '0':
        raise Refused(400, f'time: missing unit in duration "{keep_alive}"')
    parts = DURATION.findall(number)
    if number != '0' and (not number or ''.join(map(''.join, parts)) != number):
        raise Refused(400, f'time: invalid duration "{keep_alive}"')
    return (-1 if keep_alive[0] == '-' else 1) * sum(float(count) * UNITS[unit] for count, unit in parts)


@functools.lru_cache(64)
def release(version):
    """Return the numbers of VERSION, to be compared: (0, 33, 0) of '0.33.0-rc2'."""
    return tuple(map(int, re.findall(r'\d+', version)[:3]))
