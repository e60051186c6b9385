"""Access control: host names, API keys, rate limits, browsers' origins and trusted proxies."""

import hashlib
import hmac
import math
import re
import time
from typing import Any

from flask import Flask, Response, request
from flask_cors import CORS
from flask_limiter import Limiter
from flask_limiter.constants import HeaderNames as HEADERS
from flask_limiter.util import get_remote_address
from werkzeug.middleware.proxy_fix import ProxyFix
from werkzeug.sansio.utils import host_is_trusted

from ..errors import Unauthorized, UntrustedHost
from ..settings import Settings
from .flask_app import NoContent

HEALTH_PATHS = frozenset({"/livez", "/readyz", "/health"})
OPEN_PATHS = HEALTH_PATHS | {"/", "/docs", "/openapi.json"}  # an unknown URL requires a key too
BEARER_ONLY = "/v1/"  # OpenAI's API, whose clients send their key in no other header
PAGE_FILES = ("/docs/", "/page/", "/problems/")  # files that pages load or link to: open to all and never limited
UNLIMITED = HEALTH_PATHS | {"/metrics", "/stats"}  # URLs that are polled
RESET = "RateLimit-Reset"
_SPARE = "RateLimit-Retry-After"  # in place of Retry-After, which the limiter would overwrite in every response
EXPOSED_HEADERS = ["Age", "Cache-Status", "RateLimit-Limit", "RateLimit-Remaining", RESET, "Retry-After",
                   "X-Request-ID", "X-Should-Retry"]
PAGE_POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:;"
               " connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")


def is_monitoring(endpoint: str) -> bool:
    """Whether requests of an endpoint (the pattern of its URL) only monitor the service or load its pages."""
    return endpoint in OPEN_PATHS or endpoint in UNLIMITED or endpoint.startswith(PAGE_FILES)


def init_app(app: Flask, settings: Settings) -> None:
    """Guard every request of ``app``. The order is host, rate, key: guessing keys is limited too."""
    if settings.trusted_proxies:
        hops = settings.trusted_proxies
        app.wsgi_app = ProxyFix(app.wsgi_app, hops, hops, hops)  # type: ignore[method-assign]
    if settings.trusted_hosts:
        trusted = tuple(_host_name(host) for host in settings.trusted_hosts)
        app.before_request(lambda: _check_host(trusted))
    if settings.cors_origins:
        app.before_request(_answer_preflight)  # a preflight carries no key and is cheap
        CORS(app, origins=[_exactly(origin) for origin in settings.cors_origins], expose_headers=EXPOSED_HEADERS,
             max_age=600)
    keys = [_digest(key) for key in settings.keys]
    if settings.rate_limit:
        _limit(app, settings, keys)
    if keys:
        app.before_request(lambda: _check_key(keys))
    app.after_request(_harden)


def _check_host(trusted: tuple[str, ...]) -> None:
    if request.path in HEALTH_PATHS:
        return
    host = request.environ.get("HTTP_HOST", "")
    name = _host_name(host)
    if not (host_is_trusted(host) and any(  # without a list it checks only the characters
            name == known.removeprefix(".") or known[0] == "." and name.endswith(known) for known in trusted)):
        raise UntrustedHost


def _host_name(host: str) -> str:
    """``host`` in the form for comparison: without its port and in lower case (RFC 3986 §3.2.2)."""
    return re.sub(r":[0-9]*$", "", host.lower())


def _check_key(keys: list[bytes]) -> None:
    if request.path in OPEN_PATHS or request.path.startswith(PAGE_FILES):
        return
    if _key_used(keys) is None:
        raise Unauthorized(request.path.startswith(BEARER_ONLY))


def _key_used(keys: list[bytes]) -> bytes | None:
    """The digest of the request's valid key, or None. Takes the same time for every key."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    other = "" if request.path.startswith(BEARER_ONLY) else request.headers.get("X-API-Key", "")
    sent = _digest(token.strip() if scheme.lower() == "bearer" else other)
    found = None
    for key in keys:
        if hmac.compare_digest(sent, key):
            found = key
    return found


def _answer_preflight() -> Response | None:
    if request.method != "OPTIONS" or "Access-Control-Request-Method" not in request.headers:
        return None
    return NoContent()


def _exactly(origin: str) -> str | re.Pattern[str]:
    """``origin`` for flask_cors, which treats one with a bracket, such as an IPv6 address, as a regular expression."""
    return origin if origin == "*" else re.compile(rf"{re.escape(origin)}\Z", re.IGNORECASE)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _limit(app: Flask, settings: Settings, keys: list[bytes]) -> None:
    shared = settings.cache_url if settings.cache_url.startswith("redis") else None
    seconds: dict[str, Any] = {"socket_timeout": 0.05, "socket_connect_timeout": 0.05}
    app.after_request(_reset_in_seconds)  # runs after the limiter's own, which is registered next
    limiter = Limiter(
        lambda: _client_of(keys), app=app, application_limits=[settings.rate_limit], strategy="fixed-window",
        request_identifier=lambda: request.endpoint or "(unknown)",  # else keys could be guessed at unknown URLs
        headers_enabled=True, header_name_mapping={
            HEADERS.LIMIT: "RateLimit-Limit", HEADERS.REMAINING: "RateLimit-Remaining", HEADERS.RESET: RESET,
            HEADERS.RETRY_AFTER: _SPARE},
        storage_uri=shared or "memory://", storage_options=seconds if shared else {}, key_prefix="llama_api",
        in_memory_fallback_enabled=bool(shared))

    @limiter.request_filter
    def _exempt() -> bool:
        return request.path in UNLIMITED or request.path.startswith(PAGE_FILES)


def _client_of(keys: list[bytes]) -> str:
    key = _key_used(keys)
    return key.hex()[:16] if key else get_remote_address()


def _reset_in_seconds(response: Response) -> Response:
    """Convert the limiter's point in time to seconds, as in the RateLimit fields of the IETF draft."""
    response.headers.pop(_SPARE, None)
    if moment := response.headers.get(RESET):
        response.headers[RESET] = str(max(0, math.ceil(float(moment) - time.time())))
        if response.status_code == 429:
            longest = int(response.headers.get("Retry-After", 10 ** 9))  # the longest that the called API allows
            response.headers["Retry-After"] = str(min(longest, max(1, int(response.headers[RESET]))))
    return response


def _harden(response: Response) -> Response:
    response.headers["X-Content-Type-Options"] = "nosniff"
    if request.method in ("GET", "HEAD"):
        response.headers.setdefault("Cache-Control", "no-store")  # proxies must not cache the state of the service
    if response.mimetype == "text/html":
        response.headers.setdefault("Content-Security-Policy", PAGE_POLICY)
        response.headers["X-Frame-Options"] = "DENY"
        response.headers["Referrer-Policy"] = "no-referrer"
    return response
