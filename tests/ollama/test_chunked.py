"""Chunked bodies: any content in any chunks, however the bytes are split on their way, and nothing else."""

import http.client

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llama_api.ollama.chunked import LONGEST_LINE, ChunkedDecoder


def encoded(chunks, trailers=b""):
    """``chunks`` in their framing."""
    return b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailers + b"\r\n"


def decode(parts):
    """The content of ``parts``, and the decoder."""
    decoder = ChunkedDecoder()
    return b"".join(decoder.feed(part) for part in parts), decoder


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.lists(st.integers(0, 250), max_size=8))
def test_any_content_comes_out_however_it_is_split(chunks, cuts):
    """Splits inside sizes, line breaks and content change nothing, and the end is seen with the last byte."""
    body = encoded(chunks)
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(body)), len(body)]
    parts = [body[start:end] for start, end in zip(edges, edges[1:]) if start < end]
    content, decoder = decode(parts)
    assert content == b"".join(chunks) and decoder.ended
    assert not decode([body[:-1]])[1].ended


@pytest.mark.parametrize("body, content", [
    (b"A\r\n0123456789\r\n0\r\n\r\n", b"0123456789"), (b"00a\r\n0123456789\r\n000\r\n\r\n", b"0123456789"),
    (b"3;name=value\r\nabc\r\n0;x\r\n\r\n", b"abc"), (b"3 \r\nabc\r\n0\r\n\r\n", b"abc"),
    (encoded([b"abc"], b"Expires: never\r\nX: y\r\n"), b"abc"),
    (encoded([b"abc", b"a\r\n1\r\nb", b"c"]), b"abca\r\n1\r\nbc")])
def test_sizes_extensions_and_trailers_are_read_by_the_grammar(body, content):
    """Upper case, leading zeros, extensions and trailer fields are legal, and content that looks like chunks."""
    found, decoder = decode([body])
    assert found == content and decoder.ended


@pytest.mark.parametrize("body", [
    b"x\r\n", b"-1\r\n", b"+1\r\n", b"0x1\r\n", b"\r\n", b"1_0\r\n", b"{\"a\"\n", b"5" * (LONGEST_LINE + 1)])
def test_what_is_not_chunked_is_refused(body):
    """No size, or none that ends, is an error of http.client's, as its own reader raises."""
    with pytest.raises(http.client.HTTPException):
        decode([body])


def test_an_end_too_early_is_an_incomplete_read():
    """The connection that ends within a body has broken it off."""
    with pytest.raises(http.client.IncompleteRead):
        decode([b"5\r\nab", b""])
