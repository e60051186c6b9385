"""The client of Ollama over real sockets: framing, connections, and that no wait of it is without an end."""

import http.client
import socket
import threading
import time
from contextlib import contextmanager, suppress

import pytest

from llama_api.answer import Piece
from llama_api.errors import (ModelNotFound, NotOllama, OllamaBrokeOff, OllamaError, OllamaGarbled, OllamaRefused,
                              OllamaReported, OllamaReset, OllamaTimeout, OllamaUnavailable, OllamaUntrusted,
                              PromptTooLong)
from llama_api.model_call import EMBED, ModelCall
from llama_api.ollama import client as module
from llama_api.ollama import protocol
from llama_api.ollama.connection import Call
from llama_api.waiting import Cancellation, Cancelled
from tests.ollama.scripted_server import DONE, TOO_LONG, ask, client_of, error, lines, record, text_from
from tests.support.certificates import certify, server_context
from tests.support.double import answer_for
from tests.support.fakes import call, in_threads, until
from tests.support.listening import Handler, listening

LONG = 30.0
VECTORS = ModelCall.of(EMBED, "embedder", input=["sky"] * 20)


@pytest.fixture
def double(double):
    """A reset double, with a slot for every caller."""
    double.set(slots=64)
    double.add_model("embedder", capabilities=["embedding"])
    return double


def test_many_threads_share_one_client(double):
    """Fifty generations at once do not mix; multi-byte characters stay whole."""
    client = client_of(double.url)
    texts = in_threads(50, lambda number: text_from(client, f"Hello {number}"))
    assert texts == [answer_for(f"Hello {number}", n=100) for number in range(50)]


ADDED = {"controls": " \x00\r\n", "text_in_last": " fin"}


@pytest.mark.parametrize("fault", ["split", "glued", "crlf", "blank_line", "controls", "text_in_last", "extra_fields",
                                   "single_json", "after_done", "long_line", "trickle"])
def test_odd_framing_changes_nothing(double, fault):
    """However the lines are cut, glued and padded, the answer is the same."""
    double.set(fault=fault, drip=0.0001, size=200_000)
    text = text_from(client_of(double.url), "Hello", num_predict=5)
    assert text.replace(ADDED.get(fault, "\0"), "") == answer_for("Hello", n=5)


BREAKS = {
    OllamaReset: "reset close bad_http reset_midway close_midway",
    OllamaBrokeOff: "eof eof_at_once done_false empty_200", OllamaReported: "error_line context_error",
    OllamaGarbled: "cut_line invalid_json invalid_utf8 html_200",
    OllamaRefused: "oom crashed", NotOllama: "redirect html_502 empty_502 forbidden bad_method path_not_found"}


@pytest.mark.parametrize("kind, fault", [(kind, fault) for kind, faults in BREAKS.items() for fault in faults.split()])
def test_what_breaks_on_the_wire_has_its_error(double, kind, fault):
    """A drop, a reset, a broken chunk, an end without done; and never a second call."""
    double.fail(fault)
    with pytest.raises(OllamaError) as caught:
        ask(client_of(double.url))
    assert type(caught.value) is kind and double.faults[fault] == 1


@pytest.mark.parametrize("fault", ["endless_garbage", "endless_tokens"])
def test_an_answer_without_an_end_is_refused(double, monkeypatch, fault):
    """A line or a text beyond any model's is not collected forever."""
    monkeypatch.setattr(protocol, "LINE_LIMIT", 1 << 20)
    monkeypatch.setattr(module, "TEXT_LIMIT", 100)
    double.fail(fault)
    with pytest.raises(OllamaGarbled, match="longer"):
        ask(client_of(double.url))


def test_vectors_without_an_end_are_refused(double, monkeypatch):
    """A body beyond any model's vectors is not collected."""
    monkeypatch.setattr(module, "VECTORS_LIMIT", 1000)
    with pytest.raises(OllamaGarbled, match="endless"):
        ask(client_of(double.url), VECTORS)


@pytest.mark.parametrize("fault", ["hang", "hang_after_headers", "hang_midway", "trickle", "endless_blanks"])
@pytest.mark.parametrize("asked", [call(), VECTORS], ids=["text", "vectors"])
def test_the_deadline_cuts_whatever_is_waited_for(double, asked, fault):
    """Before the headers, after them, between tokens, byte by byte: the deadline ends it and Ollama sees it."""
    double.set(fault=fault, drip=0.05)
    with pytest.raises(OllamaTimeout, match="fewer tokens"):
        ask(client_of(double.url), asked, seconds=0.2)
    until(lambda: double.running == 0 and double.closed_early == 1)


def test_the_deadline_holds_while_show_hangs(double):
    """The look at the model's stops is inside the same deadline."""
    double.set(show_fault="hang")
    with pytest.raises(OllamaTimeout):
        ask(client_of(double.url), call(options={"stop": ["x"]}), seconds=0.2)
    assert double.calls("/api/generate") == []


@pytest.mark.parametrize("name, control", [("inventory", "tags_fault"), ("loaded", "ps_fault"),
                                           ("version", "version_fault")])
def test_a_small_call_is_bounded(double, name, control):
    """It ends within the seconds given to it, whatever Ollama does."""
    for fault in ("hang", "endless_garbage"):
        double.set(**{control: fault})
        with pytest.raises(OllamaError):
            getattr(client_of(double.url), name)(0.1)


@pytest.mark.parametrize("controls, state", [
    ({"slots": 0}, {"waiting": 1}), ({"ttft": LONG}, {"running": 1}), ({"gap": LONG}, {"running": 1}),
    ({"gap": 0.01, "tokens": 3000}, {"running": 1}), ({"fault": "hang"}, {"running": 1})])
def test_a_cancelled_call_is_closed(double, controls, state):
    """Waiting for a slot, for the first token or between two: Ollama is rid of it."""
    double.set(**controls)
    cancellation, raised = Cancellation(), []

    def work():
        with pytest.raises(Cancelled):
            ask(client_of(double.url), call(options={"num_predict": 5000}), cancellation=cancellation)
        raised.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    double.wait(**state)
    cancellation.request()
    double.wait(running=0, waiting=0, closed_early=1)
    thread.join(LONG)
    assert raised == [True]


class Unread(Handler):
    """Reads no body before it is let."""

    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.server.connections.append(self.client_address)

    def do_POST(self):
        self.server.begun.append(self.path)
        self.server.proceed.wait(LONG)
        self.server.whole = len(self.read_body()) == int(self.headers["Content-Length"])
        if self.server.whole:
            self.wfile.write(b"".join(framed("length", PARTS)))
        else:
            self.close_connection = True


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """The paths of a certificate for the loopback and of its key."""
    return certify(tmp_path_factory.mktemp("tls"))


@pytest.fixture(params=["http", "https"])
def unread(request, certificate, monkeypatch):
    """An Ollama that takes a call, but not its body; without TLS, and with it and a certificate that is trusted."""
    context = None
    if request.param == "https":
        context = server_context(*certificate)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate[0]))
    with listening(Unread, context) as server:
        server.connections, server.begun = [], []
        server.proceed, server.whole = threading.Event(), None
        server.url = f"{request.param}://127.0.0.1:{server.server_port}"
        yield server
        server.proceed.set()


LARGE = call("x" * (16 << 20))  # bytes: more than the buffers of both sides take


@pytest.mark.parametrize("seconds, kind", [(0.2, OllamaTimeout), (LONG, Cancelled)])
def test_a_call_is_cut_while_it_is_sent(unread, seconds, kind):
    """By its deadline, or by its cancellation: Ollama sees it close in the middle of its body."""
    cancellation, raised = Cancellation(), []

    def work():
        with pytest.raises(kind):
            ask(client_of(unread.url, connect_timeout=LONG), LARGE, seconds=seconds, cancellation=cancellation)
        raised.append(True)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    until(lambda: unread.begun)
    if kind is Cancelled:
        cancellation.request()
    until(lambda: raised)
    unread.proceed.set()
    until(lambda: unread.whole is False)


def test_a_body_is_sent_for_as_long_as_its_call_may_last(unread):
    """On a new connection or a used one: the longest wait for a connection does not bound what is sent on it."""
    client = client_of(unread.url, connect_timeout=0.2)
    for _ in range(2):
        unread.proceed.clear()
        letting = threading.Timer(1.0, unread.proceed.set)
        letting.start()
        assert ask(client, LARGE)[0] == [Piece("Hé"), Piece(" you")] and unread.whole
        letting.join()


def test_a_cut_before_the_connection_is_there_is_not_lost():
    """A call that is cut while it still connects is shut as soon as it has a socket; one that is over is left alone."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        exchange = Call()
        exchange.cut(Cancelled)
        exchange.cut(OllamaTimeout)
        exchange.attach(ours)
        assert theirs.recv(1) == b"" and exchange.cut_by is Cancelled
    exchange.cut(Cancelled)  # its socket is closed by now
    ours, theirs = socket.socketpair()
    with ours, theirs:
        exchange = Call()
        exchange.attach(ours)
        assert exchange.detach() is ours
        exchange.cut(Cancelled)
        ours.send(b"still open")
        assert theirs.recv(10) == b"still open"


# Connections


def test_connections_are_not_piled_up(double):
    """Twenty calls at once leave at most twenty connections, and those of broken answers are closed."""
    client = client_of(double.url)
    in_threads(20, lambda number: text_from(client, f"Hello {number}"))
    assert 1 <= double.connections <= 20
    double.fail("error_line")
    for _ in range(25):
        with pytest.raises(OllamaReported):
            ask(client)
    double.fail()
    assert text_from(client, "Hello") == answer_for("Hello", n=100)
    until(lambda: double.connections <= 20)


def test_as_many_connections_are_kept_as_the_host_has_slots(unread):
    """Its own number, whatever PARALLEL is: the next calls connect no more."""
    client = client_of(unread.url, slots=20, parallel=1)
    for turn in (1, 2):
        unread.proceed.clear()
        threads = [threading.Thread(target=ask, args=[client], daemon=True) for _ in range(20)]
        for thread in threads:
            thread.start()
        until(lambda: len(unread.begun) == 20 * turn)
        unread.proceed.set()
        for thread in threads:
            thread.join(LONG)
    assert len(unread.connections) == 20


def test_a_restart_of_ollama_is_survived(double):
    """A pooled connection that died meanwhile costs nothing."""
    client = client_of(double.url)
    ask(client)
    double.restart()
    assert text_from(client, "Hello") == answer_for("Hello", n=100)


def test_nobody_listening_is_unavailable(double):
    """A refused connection says what to start."""
    double.stop()
    try:
        with pytest.raises(OllamaUnavailable, match="ollama serve"):
            ask(client_of(double.url))
    finally:
        double.start()


@pytest.mark.parametrize("unread", ["https"], indirect=True)
@pytest.mark.parametrize("bundle", [None, "/nonexistent", __file__])
def test_a_certificate_that_is_not_trusted_is_told_with_its_cure(unread, monkeypatch, bundle):
    """Nobody named who signed it, or in a file that is not there or is none: nothing is sent."""
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    if bundle is None:
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
    else:
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", bundle)
    with pytest.raises(OllamaUntrusted, match="REQUESTS_CA_BUNDLE"):
        ask(client_of(unread.url))
    assert not unread.begun


@pytest.mark.parametrize("unread", ["http"], indirect=True)
def test_one_that_speaks_no_tls_is_told_so(unread):
    """Its URL is corrected."""
    with pytest.raises(OllamaUntrusted, match="use http://"):
        ask(client_of(unread.url.replace("http:", "https:")))


def test_a_proxy_of_the_environment_is_not_used(double, monkeypatch):
    """HTTP_PROXY is no way to a local server."""
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert ask(client_of(double.url))[1].finish_reason


# Bytes and segments as a network brings them


@contextmanager
def raw_server(*replies):
    """A server that takes one connection, answers each request with the next of ``replies``, then closes it.

    A reply is a list of segments, each a TCP write of its own.
    """
    def serve(listener):
        connection, _ = listener.accept()
        listener.close()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection, connection.makefile("rb") as requests, suppress(OSError):  # the client need not read it all
            for reply in replies:
                requests.readline()
                requests.read(int(http.client.parse_headers(requests)["Content-Length"]))
                for segment in reply:
                    connection.sendall(segment)
                    time.sleep(0.01)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve, args=[listener], daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join(LONG)
        assert not thread.is_alive()


def framed(framing, parts, status="200 OK", length=None):
    """A reply of ``parts``: one chunk each, or with a correct or wrong length, or ended by the close."""
    head = f"HTTP/1.1 {status}\r\n".encode()
    if framing == "chunked":
        return [head + b"Transfer-Encoding: chunked\r\n\r\n",
                *(b"%x\r\n%s\r\n" % (len(part), part) for part in parts[:-1]),
                b"%x\r\n%s\r\n0\r\n\r\n" % (len(parts[-1]), parts[-1])]
    told = b"Content-Length: %d\r\n" % (length or sum(map(len, parts))) if framing == "length" else b""
    return [head + told + b"\r\n", *parts]


ANSWER = lines(record("Hé"), record(" you"), DONE)
PARTS = [ANSWER[:20], ANSWER[20:57], ANSWER[57:]]


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
def test_each_kind_of_body_is_read_to_its_end(framing):
    """Chunks, a length, or an end by closing: the answer is the same."""
    with raw_server(framed(framing, PARTS)) as url:
        assert ask(client_of(url))[0] == [Piece("Hé"), Piece(" you")]


@pytest.mark.parametrize("framing", ["chunked", "length"])
def test_a_connection_is_used_again_after_a_whole_answer(framing):
    """Answers one after the other, and the small calls between them, take one connection."""
    version = framed("length", [b'{"version": "0.33.0"}'])
    with raw_server(framed(framing, PARTS), version, framed(framing, PARTS), version) as url:
        client = client_of(url)
        for _ in range(2):
            assert ask(client)[0] == [Piece("Hé"), Piece(" you")] and client.version(LONG) == "0.33.0"


@pytest.mark.parametrize("after", [b"HTTP/1.1 500 Oops\r\n\r\n", b"x"])
def test_bytes_after_an_answer_are_not_taken_for_the_next(after):
    """A reply that says more than its length is its length."""
    whole = b"".join(framed("length", PARTS))
    with raw_server([whole + after], framed("length", PARTS)) as url:
        client = client_of(url)
        assert [ask(client)[0] for _ in range(2)] == [[Piece("Hé"), Piece(" you")]] * 2


BROKEN = [
    (framed("length", PARTS, length=len(ANSWER) - 10), OllamaGarbled),
    (framed("length", [lines(record("x"))], length=5000), OllamaReset),
    (framed("close", [lines(record("x"))]), OllamaBrokeOff),
    ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"ffff\r\n" + lines(record("x"))], OllamaReset),
    ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"3\r\n" + lines(record("x"))], OllamaReset),
    ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", lines(record("x"))], OllamaReset),
    ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"], OllamaBrokeOff),
    ([b"HTTP/1.1 200 OK\r\nContent-Le"], OllamaBrokeOff), ([b"HTTP/1.1 wrong\r\n\r\n"], OllamaReset),
    ([b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n"], OllamaReset)]


@pytest.mark.parametrize("segments, kind", BROKEN)
def test_what_lies_about_its_length_is_not_an_answer(segments, kind):
    """Too short, too long, chunks without or with a wrong size, half a head: an error, never half an answer."""
    with raw_server(segments) as url, pytest.raises(OllamaError) as caught:
        ask(client_of(url))
    assert type(caught.value) is kind


def test_a_length_beyond_the_answer_is_not_waited_for():
    """The last record ends the answer, whatever length the head gave."""
    with raw_server(framed("length", PARTS, length=len(ANSWER) + 5)) as url:
        assert ask(client_of(url))[0] == [Piece("Hé"), Piece(" you")]


@pytest.mark.parametrize("framing", ["chunked", "length", "close"])
@pytest.mark.parametrize("cut", [1, 10, 30])
@pytest.mark.parametrize("status, body, kind", [
    ("404 Not Found", error("model 'llama3:8b' not found"), ModelNotFound),
    ("400 Bad Request", error(TOO_LONG), PromptTooLong)])
def test_an_error_in_two_segments_is_read_whole(status, body, kind, cut, framing):
    """An error's body that the network cut in two is the same error."""
    with raw_server(framed(framing, [body[:cut], body[cut:]], status)) as url, pytest.raises(kind):
        ask(client_of(url))


def test_an_error_body_without_an_end_is_not_read_for_ever(monkeypatch):
    """Only so much of an error is read."""
    monkeypatch.setattr(module, "ERROR_LIMIT", 1000)
    endless = [b"HTTP/1.1 500 Error\r\n\r\n", *[b"x" * 100_000] * 100]
    with raw_server(endless) as url, pytest.raises(NotOllama, match="500"):
        ask(client_of(url))
