"""Flask with three steps of a request made cheap: matching its URL, finding its hooks, fitting its response's headers.

They were a fifth, a fourteenth and an eighth of a hit (benchmarks/README.md, the profile), and mostly have the same
result each time. Everything else is Flask's own, and none of its behaviour is dropped.
"""

from collections.abc import Callable
from typing import Any, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from flask import Flask, Request, Response, request
from flask.globals import request_ctx
from flask.signals import request_finished, request_started
from werkzeug.routing import MapAdapter, Rule


class _Hooks(NamedTuple):
    """The functions to run before and after the view of an endpoint, in order."""

    before: tuple[Callable[[], Any], ...]
    after: tuple[Callable[[Response], Response], ...]


class Application(Flask):
    """An application without static files."""

    def __init__(self, import_name: str):
        super().__init__(import_name, static_folder=None)
        self.response_class = WholeResponse
        self._hooks: dict[str | None, _Hooks] = {}  # by endpoint
        self._rules: dict[tuple[str, str], Rule] = {}  # those without variables, by path and method

    def full_dispatch_request(self) -> Response:
        """Run the hooks and the view of the current request."""
        self._got_first_request = True
        context = request_ctx._get_current_object()  # type: ignore[attr-defined]
        endpoint = context.request.endpoint
        if (hooks := self._hooks.get(endpoint)) is None:
            hooks = self._hooks[endpoint] = self._hooks_of(context.request.blueprints)
        try:
            if request_started.receivers:
                request_started.send(self, _async_wrapper=self.ensure_sync)
            for before in hooks.before:
                if (answer := before()) is not None:
                    break
            else:
                answer = self.dispatch_request()
        except Exception as error:
            answer = self.handle_user_exception(error)
        response = self.make_response(answer)
        if context._after_request_functions or not self.session_interface.is_null_session(context._session):
            response = self.process_response(response)
        else:
            for after in hooks.after:
                response = after(response)
        if request_finished.receivers:
            request_finished.send(self, _async_wrapper=self.ensure_sync, response=response)
        return response

    def _hooks_of(self, blueprints: list[str]) -> _Hooks:
        """The hooks of the application and of ``blueprints``, the innermost first."""
        inward, outward = (None, *reversed(blueprints)), (*blueprints, None)
        before: list[Callable[[], Any]] = [
            _preprocessed(function) for name in inward for function in self.url_value_preprocessors.get(name, ())]
        before += [self.ensure_sync(function) for name in inward
                   for function in self.before_request_funcs.get(name, ())]
        after = [self.ensure_sync(function) for name in outward
                 for function in reversed(self.after_request_funcs.get(name, ()))]
        return _Hooks(tuple(before), tuple(after))

    def create_url_adapter(self, request: Request | None) -> MapAdapter | None:
        """The URL matcher of a request; Flask's own if host names or WebSockets matter."""
        environ = {} if request is None else request.environ
        if (request is None or self.url_map.host_matching or self.subdomain_matching or "HTTP_UPGRADE" in environ
                or self.config["TRUSTED_HOSTS"] is not None or self.config["SERVER_NAME"] is not None):
            return super().create_url_adapter(request)
        adapter = _PathAdapter(self.url_map, "", environ.get("SCRIPT_NAME", ""), "", request.scheme, request.path,
                               request.method, environ.get("QUERY_STRING", ""))
        adapter.known, adapter.request = self._rules, request
        return adapter


def _preprocessed(function: Callable[[str | None, dict[str, Any] | None], None]) -> Callable[[], None]:
    return lambda: function(request.endpoint, request.view_args)


class _PathAdapter(MapAdapter):
    """Matches by path and method alone, and remembers the matches of rules without variables."""

    known: dict[tuple[str, str], Rule]
    request: Request
    # Looked up only when a URL is built with it: the check goes through it letter by letter.
    server_name = property(lambda self: self.request.host, lambda self, name: None)

    def match(self, path_info: str | None = None, method: str | None = None, return_rule: bool = False,
              query_args: Any = None, websocket: bool | None = None) -> Any:
        if not return_rule or path_info is not None or method is not None or query_args is not None or websocket:
            return super().match(path_info, method, return_rule, query_args, websocket)  # type: ignore[call-overload]
        asked = (self.path_info, self.default_method)
        if (rule := self.known.get(asked)) is not None:
            return rule, {}
        rule, values = super().match(return_rule=True)
        if not rule.arguments:
            self.known[asked] = rule
        return rule, values

    def make_redirect_url(self, *args: Any, **kwargs: Any) -> str:
        """The redirect for a doubled slash: only a path, as the host may be a proxy's or forged."""
        return urlunsplit(("", "", *urlsplit(super().make_redirect_url(*args, **kwargs))[2:]))


_ADAPTED = frozenset({"Location", "Content-Location"})


class WholeResponse(Response):
    """A response with a complete body, which is sent without adapting its headers."""

    def __call__(self, environ: Any, start_response: Any) -> Any:
        """Send it. Flask would also adapt the headers to the status, to HEAD and to non-ASCII URLs."""
        headers = list(self.headers)
        if (type(self.response) is list and self.status_code == 200 and environ["REQUEST_METHOD"] != "HEAD"
                and not self._on_close and _ADAPTED.isdisjoint(names := [name for name, _ in headers])
                and "Content-Length" in names):
            start_response(self.status, headers)
            return self.response
        return super().__call__(environ, start_response)


class NoContent(Response):
    """An empty response without a Content-Type."""

    default_status = 204
    default_mimetype = None
