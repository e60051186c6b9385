"""W3C Trace Context: which headers are a trace, and what is passed on of it."""

import pytest

from llama_api.trace_context import TraceContext

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

MALFORMED = [
    "", "x", f"00-{TRACE}-{SPAN}", f"00-{TRACE}-{SPAN}-1", f"00-{TRACE}-{SPAN}-01-", f"00-{TRACE}-{SPAN}-01-more",
    f"ff-{TRACE}-{SPAN}-01", f"0-{TRACE}-{SPAN}-01", f"00-{TRACE.upper()}-{SPAN}-01", f"00-{TRACE}-{SPAN.upper()}-01",
    f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}0-{SPAN}-01", f"00-{TRACE}-{SPAN}-0g",
    f" 00-{TRACE}-{SPAN}-01", f"00-{TRACE}-{SPAN}-01\n", f"01-{TRACE}-{SPAN}-01more", f"00_{TRACE}_{SPAN}_01"]


@pytest.mark.parametrize("header", MALFORMED)
def test_what_is_malformed_is_no_trace(header):
    """Also ids of zeros alone, upper case, and the version that is forbidden."""
    assert TraceContext.received(header, "vendor=value") is None


@pytest.mark.parametrize(("header", "flags"), [
    (f"00-{TRACE}-{SPAN}-01", 1), (f"00-{TRACE}-{SPAN}-00", 0), (f"00-{TRACE}-{SPAN}-03", 3),
    (f"00-{TRACE}-{SPAN}-ff", 3), (f"01-{TRACE}-{SPAN}-01", 1), (f"cc-{TRACE}-{SPAN}-01-what-comes", 1)])
def test_a_trace_is_read_and_written_as_of_version_00(header, flags):
    """Of a later version what it shares with this one; flags that are not known are sent as zero."""
    trace = TraceContext.received(header)
    assert trace == TraceContext(TRACE, SPAN, flags)
    assert trace.sampled is bool(flags & 1) and trace.headers == {"traceparent": f"00-{TRACE}-{SPAN}-0{flags}"}


@pytest.mark.parametrize(("state", "passed"), [
    ("a=1,b=2", "a=1,b=2"), ("a=1,\tb=2", "a=1,\tb=2"), ("", None), ("a=ä", None), ("a=1\r\nX: y", None),
    ("a=" + "x" * 510, "a=" + "x" * 510), ("a=" + "x" * 511, None)])
def test_a_state_is_passed_on_as_it_is(state, passed):
    """Unless it is too long, or no text for a header."""
    assert TraceContext.received(f"00-{TRACE}-{SPAN}-01", state).child().headers.get("tracestate") == passed


def test_a_child_is_a_new_span_of_the_same_trace():
    """And knows its parent; a trace that begins here has none."""
    caller = TraceContext.received(f"00-{TRACE}-{SPAN}-00", "a=1")
    child, begun = caller.child(), TraceContext.begun()
    assert (child.trace_id, child.parent, child.flags, child.state) == (TRACE, SPAN, 0, "a=1")
    assert len({SPAN, child.span_id, caller.child().span_id}) == 3
    assert begun.parent is None and begun.sampled and TraceContext.received(begun.headers["traceparent"]) == begun
