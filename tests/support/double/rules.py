"""The rules for a request to Ollama: fields, options, messages, tools; the model's capabilities; its window."""
import functools
import random
import re

from tests.support.double.golang import Refused, compact, dump, mismatch, release
from tests.support.double.schemas import value_for

NAME = re.compile(r'(\w[\w.-]{0,79}/){0,2}\w[\w.-]{0,79}(:\w[\w.-]{0,79})?', re.ASCII)
BASE64 = re.compile(r'[A-Za-z0-9+/\r\n]*')
GENERATING = {'model': str, 'stream': bool, 'options': dict, 'truncate': bool, 'shift': bool, 'logprobs': bool,
              'top_logprobs': int, '_debug_render_only': bool}
FIELDS = {
    'GenerateRequest': GENERATING | {'prompt': str, 'system': str, 'template': str, 'suffix': str, 'raw': bool,
                                     'context': list, 'images': list},
    'ChatRequest': GENERATING | {'messages': list, 'tools': list},
    'EmbedRequest': {'model': str, 'options': dict, 'truncate': bool, 'dimensions': int},
    'EmbeddingRequest': {'model': str, 'options': dict, 'prompt': str},
    'ShowRequest': {'model': str, 'name': str, 'system': str, 'template': str, 'verbose': bool, 'options': dict},
    'PullRequest': {'model': str, 'name': str, 'insecure': bool, 'stream': bool}}
GO_TYPES = {str: 'string', bool: 'bool', int: 'int', dict: 'map[string]interface {}', list: '[]interface {}'}
OPTION_KINDS = {
    'integer': 'num_predict seed top_k num_keep num_ctx repeat_last_n num_batch num_gpu num_thread main_gpu '
               'draft_num_predict',
    'float32': 'temperature top_p min_p typical_p repeat_penalty presence_penalty frequency_penalty',
    'boolean': 'use_mmap', 'array': 'stop'}
OPTIONS = {name: kind for kind, names in OPTION_KINDS.items() for name in names.split()}
PYTHON = {'integer': (int, float), 'float32': (int, float), 'boolean': (bool,), 'array': (list,)}
LEVELS = ('low', 'medium', 'high', 'max')
HOW_TO_THINK = '"high", "medium", "low", "max", true, or false'
LATER = (0, 12, 6)              # the release that learned `truncate`
ENGINE = (0, 30, 0)             # the release that began to run llama-server and to pass on what it says
TOO_LONG = ('{"error":{"code":400,"message":"request (%d tokens) exceeds the available context size (%d tokens), '
            'try increasing it","type":"exceed_context_size_error","n_prompt_tokens":%d,"n_ctx":%d}}')
TOO_LONG_PLAIN = 'the input length exceeds the context length'
TOO_LONG_SHIFT = 'the prompt is longer than the context length currently available to the model'


@functools.lru_cache(1024)
def normal(name):
    """Return the form of a model's name that is looked up; an illegal one is refused."""
    name = name.strip().lower().removesuffix(':local').removeprefix('registry.ollama.ai/').removeprefix('library/')
    if not NAME.fullmatch(name):
        raise Refused(400, 'invalid model name')
    return name if ':' in name.rpartition('/')[2] else f'{name}:latest'


def full(name):
    """Return the normal NAME as the registry has it."""
    return f'registry.ollama.ai/{name}' if '/' in name else f'registry.ollama.ai/library/{name}'


def engine_error(message, kind='invalid_request_error'):
    """Return the refusal of llama-server, which Ollama passes on as a string that holds JSON."""
    return Refused(400, dump({'error': {'code': 400, 'message': message, 'type': kind}}).decode())


# --- types

def check_fields(body, struct):
    """Refuse fields of a wrong type; null is no fault."""
    kinds = FIELDS[struct]
    for name, value in body.items():
        kind = kinds.get(name)
        if kind and type(value) is not kind and value is not None:
            raise mismatch(value, f'struct field {struct}.{name} of type {GO_TYPES[kind]}')
    if 'top_logprobs' in body and not 0 <= (body['top_logprobs'] or 0) <= 20:
        raise Refused(400, 'top_logprobs must be between 0 and 20')
    if 'images' in body:
        check_images(body['images'] or (), struct)
    if 'think' in body:
        check_think(body['think'])


def check_think(think):
    """Refuse what is neither a switch nor a level."""
    if think is not None and not isinstance(think, (bool, str)):
        raise Refused(400, f'think must be a boolean or string ({HOW_TO_THINK})')
    if isinstance(think, str) and think not in LEVELS:
        raise Refused(400, f'invalid think value: "{think}" (must be {HOW_TO_THINK})')


def check_images(images, struct):
    """Refuse what is not base64."""
    for image in images:
        if not isinstance(image, str):
            raise mismatch(image, f'struct field {struct}.images of type []uint8')
        bare = image.rstrip('=')
        if (end := BASE64.match(bare).end()) < len(bare) or len(image) % 4:
            raise Refused(400, f'illegal base64 data at input byte {end}')


def check_options(options):
    """Refuse options of a wrong type, which Ollama takes for a fault of its own; unknown ones and nulls are ignored."""
    for name, value in options.items():
        kind = OPTIONS.get(name)
        if kind and type(value) not in PYTHON[kind] and value is not None:
            raise Refused(500, f'option "{name}" must be of type {kind}')
        if name == 'stop' and value and not all(isinstance(text, str) for text in value):
            raise Refused(500, 'option "stop" must be of type an array of strings')


def check_format(form):
    """Refuse a format that is neither "json" nor a schema, and a schema that the engine cannot read."""
    if form in (None, '', 'json'):
        return
    if not isinstance(form, dict):
        raise Refused(500, f'invalid format: {compact(form)}; expected "json" or a valid JSON Schema object')
    try:
        value_for(form, random.Random(0))
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError):
        raise engine_error('failed to parse grammar') from None


# --- messages and tools of a chat

MESSAGE = {'role': str, 'content': str, 'thinking': str, 'images': list, 'tool_calls': list, 'tool_name': str,
           'tool_call_id': str}
PARAMETERS = {'type': str, '$defs': dict, 'required': list, 'properties': dict}
PROPERTY = {'description': str, 'required': list, 'properties': dict, 'enum': list, 'anyOf': list}


def check_struct(value, kinds, where):
    """Refuse VALUE unless it is an object whose fields have the types KINDS; WHERE names it."""
    if not isinstance(value, dict):
        raise mismatch(value, f'struct field {where} of type api.{where.rpartition(".")[2].title()}')
    for name, kind in kinds.items():
        if value.get(name) is not None and type(value[name]) is not kind:
            raise mismatch(value[name], f'struct field {where}.{name} of type {GO_TYPES[kind]}')


def check_messages(messages):
    """Refuse messages of a wrong shape; any role will do."""
    for message in messages:
        check_struct(message, MESSAGE, 'ChatRequest.messages')
        check_images(message.get('images') or (), 'ChatRequest.messages')
        for call in message.get('tool_calls') or ():
            check_struct(call, {'id': str, 'function': dict}, 'ChatRequest.messages.tool_calls')
            check_struct(call.get('function') or {}, {'name': str, 'arguments': dict},
                         'ChatRequest.messages.tool_calls.function')


def check_tools(tools):
    """Refuse tools that Ollama's fixed structs cannot take, some legal JSON Schema among them."""
    for tool in tools:
        check_struct(tool, {'type': str, 'function': dict}, 'ChatRequest.tools')
        function = tool.get('function') or {}
        check_struct(function, {'name': str, 'description': str, 'parameters': dict}, 'ChatRequest.tools.function')
        parameters = function.get('parameters') or {}
        check_struct(parameters, PARAMETERS, 'ChatRequest.tools.function.parameters')
        for part in (parameters.get('properties') or {}).values():
            check_struct(part, PROPERTY, 'ChatRequest.tools.function.parameters.properties')


# --- what the model can do

def check_modes(body, sent, name, capabilities):
    """Refuse a generate that does not go together, or that a model of these CAPABILITIES cannot do."""
    if 'raw' in body and body['raw'] and any(body.get(field) for field in ('template', 'system', 'context')):
        raise Refused(400, 'raw mode does not support template, system, or context')
    if (template := body.get('template')) and template.count('{{') != template.count('}}'):
        raise Refused(500, 'template: :1: unclosed action')
    if body.get('suffix') and 'insert' not in capabilities:
        raise Refused(400, f'{full(name)} does not support insert')
    check_ability(body, sent, 'generate', capabilities)


def check_chat(body, sent, name, capabilities):
    """Refuse a chat that a model of these CAPABILITIES cannot do."""
    check_messages(body.get('messages') or ())
    check_tools(body.get('tools') or ())
    check_ability(body, sent, 'chat', capabilities)
    if body.get('tools') and 'tools' not in capabilities:
        raise Refused(400, f'{full(name)} does not support tools')


def check_ability(body, sent, what, capabilities):
    """Refuse to complete, or to think, what the model cannot; SENT is its name in the request."""
    if 'completion' not in capabilities:
        raise Refused(400, f'"{sent}" does not support {what}')
    if body.get('think') and 'thinking' not in capabilities:
        raise Refused(400, f'"{sent}" does not support thinking')


def check_sight(images, capabilities, version):
    """Refuse images for a model that cannot see; before the engine of 0.30 they are ignored."""
    if images and 'vision' not in capabilities and release(version) >= ENGINE:
        raise engine_error('image input is not supported - hint: if this is unexpected, you may need to provide the '
                           'mmproj')


# --- what fits

def evaluated(count, body, window, version):
    """Return how many of COUNT tokens of a prompt are left after a cut to WINDOW, or refuse what may not be cut."""
    if count <= window:
        return count
    now = release(version)
    if now >= ENGINE and body.get('shift') is False:
        raise Refused(400, TOO_LONG_SHIFT)
    if now >= LATER and body.get('truncate') is False:
        raise Refused(400, TOO_LONG % (count, window, count, window) if now >= ENGINE else TOO_LONG_PLAIN)
    return window // 2 + 2 if now >= (0, 30, 11) else window
