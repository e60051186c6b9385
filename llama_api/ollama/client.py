"""The client of Ollama: one pooled session, every wait bounded, every fault a typed error with the cure.

Ollama's error texts may contain paths and host names: they are logged, without the caller's words, and never shown.
"""

import http.client
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import requests
import urllib3

from ..answer import Completion, Piece
from ..errors import (ModelNotFound, NotOllama, OllamaBrokeOff, OllamaBusy, OllamaError, OllamaGarbled, OllamaRefused,
                      OllamaReported, OllamaReset, OllamaTimeout, OllamaUnavailable, OllamaUntrusted)
from ..model_call import GENERATE, ModelCall
from ..settings import Settings, ca_bundle
from ..trace_context import TraceContext
from ..waiting import Cancellation, Cancelled, Watchdog
from .connection import Call, CuttingAdapter, current
from .protocol import (LINE_LIMIT, LineReader, completion_of, error_text, parse_record, piece_of, stops_of, too_long,
                       vectors_of)
from .redaction import redacted

logger = logging.getLogger(__name__)

SHOW_SECONDS = 5.0
TEXT_LIMIT = 64 << 20  # characters of one answer
VECTORS_LIMIT = 256 << 20  # bytes of the vectors of one call
ERROR_LIMIT = 64 << 10  # bytes of an error body that are read
TURN_BYTES = 4096  # to read of one answer before yielding to the others
DRAIN_SECONDS = 0.05  # to wait for the end of a body after its last record
_NOTHING = Piece()
_BROKEN = (urllib3.exceptions.HTTPError, http.client.HTTPException, OSError)


class OllamaClient:
    """The client of one Ollama with ``slots`` (by default PARALLEL). It can be shared between threads."""

    def __init__(self, url: str, settings: Settings, watchdog: Watchdog, slots: int | None = None):
        self._url, self._settings = url, settings
        self._watchdog = watchdog
        self._session = requests.Session()
        self._session.trust_env = False  # ignore proxies from the environment
        self._verify = ca_bundle()
        adapter = CuttingAdapter(pool_connections=1, pool_maxsize=(slots or settings.parallel) + 8, max_retries=0)
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, adapter)
        self._prepared: dict[tuple[str, str], requests.PreparedRequest] = {}
        self._model_stops: dict[str, tuple[str | None, list[str]]] = {}  # by model: its build and its own stops

    def generate(self, call: ModelCall, digest: str | None, seconds: float, cancellation: Cancellation,
                 publish: Callable[[list[Piece]], None], trace: TraceContext | None = None) -> Completion:
        """Generate the answer to ``call``, within ``seconds``, passing its pieces to ``publish`` as they arrive.

        ``digest`` is the model's build, for which its own stops are cached; ``trace`` is the span of this request.
        Raises OllamaError, or Cancelled.
        """
        deadline = time.monotonic() + seconds
        payload = dict(call.body) | ({} if call.embeds else {"stream": True})
        if self._settings.keep_alive is not None:
            payload["keep_alive"] = self._settings.keep_alive
        if stops := call.options.get("stop"):
            payload["options"] = call.options | {
                "stop": self._all_stops(call.model, stops, digest, deadline, cancellation)}
        return self._generate_once(call, orjson.dumps(payload), deadline, cancellation, publish, trace)

    def inventory(self, seconds: float) -> list[dict[str, Any]]:
        """The models of ``/api/tags``, within ``seconds``. Raises OllamaError."""
        models = self._json("GET", "/api/tags", None, seconds).get("models")
        if not isinstance(models, list):
            raise OllamaGarbled("a list of models that is not a list")
        return [model for model in models if isinstance(model, dict)]

    def show(self, model: str, **fields: Any) -> dict[str, Any]:
        """The response of /api/show for ``model``; ``fields`` extend the request. Raises OllamaError."""
        return self._json("POST", "/api/show", orjson.dumps({"model": model, **fields}), SHOW_SECONDS, model=model)

    def loaded(self, seconds: float) -> list[dict[str, Any]]:
        """The loaded models of ``/api/ps``, within ``seconds``. Raises OllamaError."""
        models = self._json("GET", "/api/ps", None, seconds).get("models")
        return [model for model in models if isinstance(model, dict)] if isinstance(models, list) else []

    def load(self, model: str, cancellation: Cancellation) -> None:
        """Load ``model`` by an empty prompt. Raises OllamaError, or Cancelled."""
        body = {"model": model, "stream": False}
        if str(self._settings.keep_alive or "").strip("0.hmsuµn"):  # zero would unload it instead
            body["keep_alive"] = self._settings.keep_alive
        if self._settings.num_ctx is not None:
            body["options"] = {"num_ctx": self._settings.num_ctx}
        self._json("POST", GENERATE, orjson.dumps(body), self._settings.timeout, cancellation, model)

    def version(self, seconds: float) -> str | None:
        """The version of ``/api/version``, within ``seconds``. Raises OllamaError."""
        version = self._json("GET", "/api/version", None, seconds).get("version")
        return version if isinstance(version, str) else None

    def _all_stops(self, model: str, stops: list[str], digest: str | None, deadline: float,
                   cancellation: Cancellation) -> list[str]:
        """The model's own stops and the caller's; stops in a request replace the model's (ollama issue 3629)."""
        known = self._model_stops.get(model)
        if known is None or known[0] is None or known[0] != digest:
            shown = self._json("POST", "/api/show", orjson.dumps({"model": model}),
                               deadline - time.monotonic(), cancellation, model)
            known = self._model_stops[model] = (digest, stops_of(shown.get("parameters")))
        return list(dict.fromkeys([*known[1], *stops]))

    def _generate_once(self, asked: ModelCall, body: bytes, deadline: float, cancellation: Cancellation,
                       publish: Callable[[list[Piece]], None], trace: TraceContext | None) -> Completion:
        call = Call(trace)
        if asked.embeds:
            return self._embed_once(call, asked, body, deadline, cancellation, publish)
        with self._exchange(call, "POST", asked.endpoint, body, deadline - time.monotonic(), cancellation) as response:
            self._check_status(response, asked.model, asked)
            answer = call.body or response.raw
            last = self._read_answer(answer, call, asked, publish)
            _drain(call.detach(), answer)
            if answer.closed:
                response.raw.release_conn()
            return completion_of(last)

    def _embed_once(self, call: Call, asked: ModelCall, body: bytes, deadline: float, cancellation: Cancellation,
                    publish: Callable[[list[Piece]], None]) -> Completion:
        with self._exchange(call, "POST", asked.endpoint, body, deadline - time.monotonic(), cancellation) as response:
            self._check_status(response, asked.model, asked)
            record = _whole(response.raw, VECTORS_LIMIT)
            call.detach()
        publish([Piece(vectors=vectors_of(record, len(asked.texts)))])
        return completion_of(record)._replace(finish_reason="stop")

    def _read_answer(self, body: Any, call: Call, asked: ModelCall,
                     publish: Callable[[list[Piece]], None]) -> dict[str, Any]:
        reader = LineReader()
        size = unyielded = 0
        while True:
            data = body.read1(65536)
            if call.cut_by is not None:  # the socket's buffer can be read even then
                raise OllamaReset
            unyielded += len(data)
            if unyielded > TURN_BYTES:  # under gevent a read from the buffer does not yield
                unyielded = 0
                time.sleep(0)
            pieces: list[Piece] = []
            try:
                for record in reader.feed(data) if data else reader.end():
                    if record.get("error") is not None:
                        _log(200, record["error"], asked)
                        raise OllamaReported
                    piece = piece_of(record)
                    if piece != _NOTHING:
                        pieces.append(piece)
                        size += len(piece.text) + len(piece.thinking)
                    if record.get("done") is True or "_debug_info" in record:  # false when only rendering
                        return record
            finally:
                if pieces:
                    publish(pieces)
            if size > TEXT_LIMIT:
                raise OllamaGarbled("an answer longer than any model can write")
            if not data:
                raise OllamaBrokeOff

    def _json(self, method: str, path: str, body: bytes | None, seconds: float,
              cancellation: Cancellation | None = None, model: str = "") -> dict[str, Any]:
        call = Call()
        with self._exchange(call, method, path, body, seconds, cancellation or Cancellation()) as response:
            self._check_status(response, model)
            record = _whole(response.raw, LINE_LIMIT)
            call.detach()
            return record

    @contextmanager
    def _exchange(self, call: Call, method: str, path: str, body: bytes | None, seconds: float,
                  cancellation: Cancellation) -> Iterator[requests.Response]:
        """Send one request; the block reads its response. Raises only OllamaError or Cancelled."""
        response = None
        try:
            with (cancellation.interrupts(lambda: call.cut(Cancelled)),
                  self._watchdog.limit(seconds, lambda: call.cut(OllamaTimeout))):
                current.call = call
                seconds = max(seconds, 0.001)
                # The session's own send() would add cookies and follow redirects.
                response = self._session.get_adapter(self._url).send(
                    self._request(method, path, body, call.trace), stream=True,
                    timeout=(min(self._settings.connect_timeout, seconds), seconds + 1), verify=self._verify)
                yield response
        except (requests.RequestException, OllamaError, *_BROKEN) as error:
            raise self._translated(error, call) from error
        except ValueError as error:  # raised by a read whose TLS socket is cut
            if call.cut_by is None:
                raise
            raise self._translated(error, call) from error
        finally:
            current.call = None
            call.detach()
            if response is not None:
                response.close()

    def _request(self, method: str, path: str, body: bytes | None,
                 trace: TraceContext | None) -> requests.PreparedRequest:
        """A request made from a template: preparing a new one costs as much as sending it."""
        if (method, path) not in self._prepared:
            headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
            request = requests.Request(method, self._url + path, headers)
            self._prepared[method, path] = request.prepare()
        prepared = self._prepared[method, path].copy()
        prepared.body = body
        prepared.headers["Content-Length"] = str(len(body or b""))
        if trace is not None:
            prepared.headers.update(trace.headers)
        return prepared

    def _check_status(self, response: requests.Response, model: str, asked: ModelCall | None = None) -> None:
        status = response.status_code
        if status == 200:
            return
        text = error_text(_beginning(response.raw, ERROR_LIMIT))
        _log(status, text, asked)
        if status == 404 and text is not None:
            raise ModelNotFound(model, text)
        if status == 503:
            raise OllamaBusy
        if status == 400 and text is not None and (error := too_long(text)) is not None:
            raise error
        if text is None:
            raise NotOllama(status)
        raise OllamaRefused(status, text)

    def _translated(self, error: Exception, call: Call) -> Exception:
        if call.cut_by is Cancelled:
            return Cancelled()
        timeouts = (requests.ReadTimeout, urllib3.exceptions.ReadTimeoutError)
        if call.cut_by is OllamaTimeout or isinstance(error, timeouts):
            return OllamaTimeout()
        if isinstance(error, OllamaError):
            return error
        # requests raises a plain OSError for a missing bundle.
        if not call.connected and (isinstance(error, requests.exceptions.SSLError) or type(error) is OSError):
            return OllamaUntrusted()
        reason = getattr(error.args[0], "reason", None) if error.args else None
        if isinstance(error, requests.ConnectTimeout) or isinstance(reason, urllib3.exceptions.NewConnectionError):
            return OllamaUnavailable()
        return OllamaReset()


def _log(status: int, text: Any, asked: ModelCall | None) -> None:
    logger.warning("Ollama answered %d: %s", status,
                   redacted(text, asked) if isinstance(text, str) else "(no error text)")


def _whole(raw: Any, limit: int) -> dict[str, Any]:
    """The body, a JSON object of at most ``limit`` bytes."""
    data = bytearray()
    while chunk := raw.read1(65536):
        data += chunk
        if len(data) > limit:
            raise OllamaGarbled("an endless reply")
    return parse_record(data)


def _drain(sock: Any, body: Any) -> None:
    """Read the end of a complete body, so that its connection can be reused."""
    seconds = sock.gettimeout() if sock is not None else None
    try:
        if sock is not None:
            sock.settimeout(DRAIN_SECONDS)
        body.read1(65536)
        if sock is not None:
            sock.settimeout(seconds)
    except _BROKEN:
        pass  # not worth waiting: close the connection instead


def _beginning(raw: Any, limit: int) -> bytes:
    """The first ``limit`` bytes of a body, however it is segmented."""
    found = b""
    while len(found) < limit and (data := raw.read1(limit - len(found))):
        found += data
    return found
