"""Flask without what this service never uses: sessions, coroutine views, hosts in URLs.

Flask pays for these on every request; without them a hit costs a third less (benchmarks/README.md, the profile).
"""

from collections.abc import Callable
from typing import Any

from flask import Flask, Request, Response
from flask.sessions import NullSession, SessionInterface
from werkzeug.routing import MapAdapter, Rule


class NoSessions(SessionInterface):
    """One empty session for everybody."""

    _session = NullSession()

    def open_session(self, app: Flask, request: Request) -> NullSession:
        return self._session


class PathAdapter(MapAdapter):
    """Matches by path and method alone, and remembers the matches of rules without variables."""

    known: dict[tuple[str, str], tuple[Rule, dict[str, Any]]]

    def match(self, path_info: str | None = None, method: str | None = None, *args: Any, **kwargs: Any) -> Any:
        asked = (path_info or self.path_info, method or self.default_method)
        if (found := self.known.get(asked)) is None:
            found = super().match(path_info, method, *args, **kwargs)
            if not found[0].arguments:
                self.known[asked] = found
        return found

    def make_redirect_url(self, path_info: str, query_args: Any = None, domain_part: str | None = None) -> str:
        """The path alone, for there is no host name; doubled slashes are the one reason for a redirect (308)."""
        return f"/{path_info.lstrip('/')}"


class LeanResponse(Response):
    """A response that is sent as it was made when that is a whole body: there is nothing to adapt in its headers."""

    def __call__(self, environ: Any, start_response: Any) -> Any:
        whole = type(self.response) is list and self.status_code == 200 and environ["REQUEST_METHOD"] != "HEAD"
        if not whole or self._on_close:
            return super().__call__(environ, start_response)
        start_response(self.status, list(self.headers))
        return self.response


class LeanFlask(Flask):
    """An application of plain functions that answers under any host name; its hooks are the application's own."""

    session_interface = NoSessions()
    response_class = LeanResponse

    def __init__(self, import_name: str):
        super().__init__(import_name, static_folder=None)
        self._known_matches: dict[tuple[str, str], tuple[Rule, dict[str, Any]]] = {}

    def ensure_sync(self, func: Callable[..., Any]) -> Callable[..., Any]:
        return func

    def full_dispatch_request(self) -> Response:
        try:
            answer = self.preprocess_request()
            if answer is None:
                answer = self.dispatch_request()
        except Exception as error:
            answer = self.handle_user_exception(error)
        return self.process_response(self.make_response(answer))

    def preprocess_request(self) -> Any:
        for function in self.before_request_funcs[None]:
            if (answer := function()) is not None:
                return answer
        return None

    def process_response(self, response: Response) -> Response:
        for function in reversed(self.after_request_funcs[None]):
            response = function(response)
        return response

    def do_teardown_request(self, exc: BaseException | None = None) -> None:
        for function in self.teardown_request_funcs.get(None, ()):
            function(exc)

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        if request is None:
            return None
        adapter = PathAdapter(self.url_map, "", "/", "", request.scheme, request.path, request.method)
        adapter.known = self._known_matches
        return adapter
