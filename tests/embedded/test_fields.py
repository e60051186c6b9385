"""The fields that the embedded Ollama reads from a body: bodies of any shape, as values."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_api.embedded import fields, go_json
from llama_api.embedded.errors import Refused
from llama_api.embedded.options import OPTIONS, engine_settings

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["json", "5m", "high"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8)


def bodies(names):
    """Objects with some of these keys, in any case, and any values."""
    keys = st.sampled_from(names) | st.sampled_from(names).map(str.upper)
    return st.dictionaries(keys, ANY_JSON, max_size=6)


@pytest.mark.parametrize("kind", [kind for kind in fields.FIELDS if kind != "messages"])
@given(data=st.data())
def test_any_body_is_read_or_refused(kind, data):
    """The result has only known fields, none of them null, and options that the engine accepts."""
    body = data.draw(ANY_JSON | bodies(sorted(fields.FIELDS[kind])))
    try:
        request = fields.read(json.dumps(body).encode(), kind)
        settings = engine_settings(request, window=4096)
    except Refused as refused:
        assert refused.status in (400, 500)
        assert str(refused)
    else:
        assert request.keys() <= fields.FIELDS[kind].keys()
        assert None not in request.values()
        assert 1 <= settings["n_predict"] <= 40960


@given(bodies(sorted(OPTIONS)))
def test_options_keep_their_types(given_options):
    """For any input, the engine gets the types of the defaults, or nothing."""
    try:
        settings = engine_settings({"options": given_options}, window=4096)
    except Refused as refused:
        assert (refused.status, str(refused)[:8]) == (500, 'option "')
    else:
        assert {key: type(settings[key]) for key in OPTIONS} == {key: type(value) for key, value in OPTIONS.items()}


@given(st.binary() | st.text().map(str.encode))
def test_any_bytes_are_decoded_or_refused(raw):
    """Nothing but a refusal comes out of the decoder."""
    try:
        value = go_json.decode(raw)
    except Refused as refused:
        assert refused.status == 400
    else:
        assert type(value) in (*go_json.JSON_TYPES, type(None))


@pytest.mark.parametrize("raw, error", [
    (b"", "missing request body"),
    (b" \n", "missing request body"),
    (b'{"a', "unexpected EOF"),
    (b'{"a": NaN}', "invalid character 'N' looking for beginning of value"),
    (b'{"a": ' + b"9" * 5000 + b"}", "json: cannot unmarshal number into Go value of type float64"),
    (b"[" * 100_000, "exceeded max depth")])
def test_what_is_not_json_is_refused_in_gos_words(raw, error):
    """The messages are those of Go's decoder."""
    with pytest.raises(Refused, match=f"^{error}$"):
        go_json.decode(raw)


def test_json_is_printed_as_go_prints_it():
    """Compact, raw UTF-8; what HTML would mind is escaped, half a surrogate pair replaced."""
    assert go_json.encode({"a": "<é&\u2028\ud800>"}) == \
        '{"a":"\\u003cé\\u0026\\u2028\ufffd\\u003e"}'.encode()
    assert go_json.rfc3339(1_500_000_000_120_000_000) == "2017-07-14T02:40:00.12Z"


@pytest.mark.parametrize("given_value, seconds", [
    (10, 10), (1.5, 1.5), ("10s", 10), ("1h30m", 5400), ("1.5m", 90), ("250ms", 0.25), ("0", 0),
    ("-1m", fields.FOR_EVER), (-1, fields.FOR_EVER), (1e300, fields.FOR_EVER)])
def test_a_keep_alive_is_read_in_seconds(given_value, seconds):
    """A number or a Go duration; a negative one is forever."""
    assert fields.seconds(given_value) == pytest.approx(seconds)
