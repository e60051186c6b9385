"""The faults of the double that are rows of a table: whole replies, odd lines, changes of the last object."""
import math

from tests.support.double.answer import ABSENT
from tests.support.double.golang import dump, error
from tests.support.double.rules import TOO_LONG, TOO_LONG_PLAIN, TOO_LONG_SHIFT
from tests.support.double.wire import JSON, TEXT

HTML = 'text/html'

REPLIES = {  # given at once, without a slot: status, Content-Type, body, meaning
    'oom': (500, JSON, error('llama-server reported out-of-memory during startup: cudaMalloc failed: out of memory'),
            'Out of memory while loading.'),
    'crashed': (500, JSON, error('llama-server process has terminated: exit status 2: /usr/lib/ollama/x\nCUDA error'),
                'The runner crashed; two lines of stderr with a path.'),
    'load_failed': (500, JSON, error('error starting llama-server: fork/exec llama-server: no such file or directory'),
                    'The runner cannot be started.'),
    'load_timeout': (500, JSON, error('timed out waiting for llama-server to start - progress 0.42'),
                     'The load stalled.'),
    'no_slots': (500, JSON, error('no slots available after 10 retries'), 'The runner is busy.'),
    'busy': (503, JSON, error('server busy, please try again.  maximum pending requests exceeded'),
             'The scheduler queue is full.'),
    'not_found': (404, JSON, error("model 'llama3:8b' not found"), 'The model is gone.'),
    'path_not_found': (404, TEXT, b'404 page not found', 'The wrong base URL: plain text.'),
    'bad_method': (405, TEXT, b'405 method not allowed', 'The wrong method: plain text.'),
    'bad_request': (400, JSON, error('invalid options: top_k is too large'), 'A 400 with a plain sentence.'),
    'bad_request_text': (400, TEXT, b'400 Bad Request', 'A 400 in plain text.'),
    'too_long': (400, JSON, error(TOO_LONG % (9000, 8192, 9000, 8192)),
                 'Prompt too long: the error is a string that holds JSON.'),
    'too_long_plain': (400, JSON, error(TOO_LONG_PLAIN), 'Prompt too long, before 0.30: a plain sentence.'),
    'too_long_shift': (400, JSON, error(TOO_LONG_SHIFT), 'Prompt too long with shift off: a plain sentence.'),
    'unauthorized': (401, JSON, dump({'error': 'unauthorized', 'signin_url': 'https://ollama.com/connect'}),
                     'A cloud model.'),
    'forbidden': (403, TEXT, b'', 'An unlisted Origin or Host: an empty body.'),
    'redirect': (307, TEXT, b'', 'A redirect to /elsewhere.'),
    'error_object': (500, JSON, dump({'error': {'message': 'boom'}}), 'The error is an object, not a string.'),
    'error_array': (500, JSON, b'[]', 'The body of a 500 is a JSON array.'),
    'html_200': (200, HTML, b'<html><body>Welcome to nginx!</body></html>', 'Another server: HTML with 200.'),
    'html_502': (502, HTML, b'<html><body><h1>502 Bad Gateway</h1></body></html>', 'A proxy in front: HTML with 502.'),
    'empty_200': (200, JSON, b'', 'An empty body with 200.'),
    'empty_502': (502, TEXT, b'', 'An empty body with 502.'),
}
INTRUDERS = {  # a line among the pieces, after which all goes on as it should; in the plain form it is the body
    'invalid_json': (b'{"model":"m","response":" oops"', 'A line that is no JSON.'),
    'array_line': (b'["response"]', 'A line that is a JSON array.'),
    'number_line': (b'42', 'A line that is a number.'),
    'null_line': (b'null', 'A line that is null.'),
    'response_number': (b'{"model":"m","response":5,"done":false}', 'A piece that is a number.'),
    'response_null': (b'{"model":"m","response":null,"done":false}', 'A piece that is null.'),
    'response_missing': (b'{"model":"m","done":false}', 'A line without response.'),
    'invalid_utf8': (b'{"model":"m","response":" \xff\xfe\x80","done":false}', 'A piece that is no UTF-8.'),
    'lone_surrogate': (b'{"model":"m","response":" \\ud83d","done":false}', 'A piece: half a surrogate pair.'),
    'controls': (b'{"model":"m","response":" \\u0000\\r\\n","done":false}', 'A piece with NUL, CR, LF; valid.'),
    'blank_line': (b'', 'An empty line; valid.'),
}
METRICS = 'total_duration load_duration prompt_eval_count prompt_eval_duration eval_count eval_duration'.split()
EDITS = {  # what the last object says instead
    'done_false': (dict.fromkeys(('done_reason', 'context', *METRICS), ABSENT) | {'done': False},
                   'The last object says done:false, without reason and metrics: a partial answer.'),
    'done_string': ({'done': 'yes'}, 'done is a string.'),
    'done_absent': ({'done': ABSENT}, 'The last object has no done.'),
    'reason_load': ({'done_reason': 'load'}, 'done_reason is load.'),
    'reason_unknown': ({'done_reason': 'tired'}, 'done_reason is a word nobody knows.'),
    'reason_absent': ({'done_reason': ABSENT}, 'No done_reason.'),
    'reason_number': ({'done_reason': 7}, 'done_reason is a number.'),
    'missing_counts': ({'prompt_eval_count': ABSENT, 'eval_count': ABSENT}, 'No counts.'),
    'missing_metrics': (dict.fromkeys(METRICS, ABSENT), 'Neither counts nor durations.'),
    'zero_durations': ({name: 0 for name in METRICS if 'duration' in name}, 'All durations are 0.'),
    'negative_counts': ({'prompt_eval_count': -3, 'eval_count': -1, 'eval_duration': -5}, 'Negative counts.'),
    'huge_counts': ({'prompt_eval_count': 10**30, 'eval_count': 2**63, 'eval_duration': 10**400}, 'Beyond 64 bits.'),
    'string_counts': ({'prompt_eval_count': '7', 'eval_count': [1], 'eval_duration': '1s'}, 'Counts of wrong types.'),
    'text_in_last': ({'response': ' fin'}, 'The last object of a stream has text too; valid.'),
    'extra_fields': ({'prompt_eval_cached_count': 3, 'new': {'a': [1]}}, 'Fields from the future; valid.'),
}
CALL = b'{"role":"assistant","content":"","tool_calls":[{"id":"call_1","function":%b}]}'
CHAT_LINES = {  # the message in a line among the pieces of a chat, after which all goes on as it should
    'message_null': (b'null', 'A message that is null.'),
    'message_text': (b'" oops"', 'A message that is a string.'),
    'content_list': (b'{"role":"assistant","content":[{"type":"text","text":" oops"}]}', 'Content as a list of parts.'),
    'thinking_number': (b'{"role":"assistant","content":"","thinking":7}', 'Thinking that is a number.'),
    'tool_calls_object': (b'{"role":"assistant","content":"","tool_calls":{}}', 'Tool calls that are an object.'),
    'tool_nameless': (CALL % b'{"arguments":{}}', 'A tool call without a name.'),
    'tool_arguments_text': (CALL % b'{"name":"f","arguments":"{}"}', 'Arguments as a string that holds JSON.'),
    'tool_arguments_list': (CALL % b'{"name":"f","arguments":[1]}', 'Arguments that are a list.'),
}
VECTORS = {  # what an embed gives in place of its vectors; of the old form the first of them
    'vectors_absent': (lambda vectors: ABSENT, 'No embeddings.'),
    'vectors_null': (lambda vectors: None, 'Embeddings that are null.'),
    'vectors_fewer': (lambda vectors: vectors[:-1], 'One vector too few.'),
    'vectors_more': (lambda vectors: vectors + vectors[:1], 'One vector too many.'),
    'vectors_shorter': (lambda vectors: [*vectors[:-1], vectors[-1][:-1]], 'The last vector lacks a number.'),
    'vectors_empty': (lambda vectors: [[] for _ in vectors], 'Vectors without numbers.'),
    'vectors_flat': (lambda vectors: vectors[0], 'Numbers in place of vectors.'),
    'vectors_text': (lambda vectors: [list(map(str, vector)) for vector in vectors], 'Numbers as strings.'),
    'vectors_nan': (lambda vectors: [[math.nan for _ in vector] for vector in vectors], 'NaN, which is not JSON.'),
    'vectors_huge': (lambda vectors: [[1e39 for _ in vector] for vector in vectors], 'Numbers beyond float32.'),
}
