"""Access from outside: keys, rates, proxies, host names, browsers."""

import re

import pytest

from tests.support.gunicorn_server import JSON, new_prompt, until
from tests.support.redis_server import RedisServer

HEALTH = ["/livez", "/readyz", "/health"]
OPEN = [*HEALTH, "/docs", "/openapi.json", "/"]
GUARDED = [("POST", "/generate"), ("GET", "/cache"), ("DELETE", "/cache"), ("GET", "/metrics"), ("GET", "/nowhere"),
           ("PUT", "/generate"), ("POST", "/nothing/here"), ("OPTIONS", "/generate")]
GOOD = [{"Authorization": "Bearer first-key"}, {"Authorization": "bearer second-key"}, {"X-API-Key": "first-key"},
        {"X-API-Key": "third-key"}]
BAD = [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}, {"Authorization": "Basic first-key"},
       {"Authorization": "first-key"}, {"X-API-Key": ""}, {"X-API-Key": "first-key,second-key"},
       {"X-API-Key": "FIRST-KEY"}, {"X-API-Key": "first-ke"}, {"X-API-Key": "first-key2"}, {"X-API-Key": "é" * 9},
       {"Cookie": "first-key"}]
FORWARDED = {"X-Forwarded-For": "203.0.113.7"}


@pytest.fixture(scope="module")
def keyed(shared_double, shared_serve, tmp_path_factory):
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("third-key\n\n  fourth-key  \n")
    return shared_serve(shared_double, api_keys="first-key, second-key", api_keys_file=keys,
                        cors_origins="https://app.example, https://other.example:8443, http://[2001:db8::1]:3000")


@pytest.fixture(scope="module")
def limited(shared_double, shared_serve):
    """A server behind a proxy, whose limits are by key and by address."""
    return shared_serve(shared_double, rate_limit="5/hour", trusted_proxies=1, api_keys="one,two,three")


@pytest.fixture(scope="module")
def plain(shared_double, shared_serve):
    return shared_serve(shared_double, trusted_hosts="api.example, .Wild.example, 127.0.0.1, [::1]",
                        rate_limit="6/hour")


# Keys

@pytest.mark.parametrize("method, path", GUARDED)
def test_without_a_key_nothing_is_told(keyed, method, path):
    """401 with WWW-Authenticate, whether or not there is such a URL, and with the request's id."""
    for headers in BAD[:3]:
        headers = {**JSON, **headers, "X-Request-ID": "mine"}
        reply = keyed.request(method, path, b'{"prompt": "Why?"}' if method == "POST" else None, headers)
        assert (reply.status, reply.slug, reply.headers["WWW-Authenticate"]) == (401, "unauthorized", "Bearer")
        assert reply.headers["X-Request-ID"] == "mine"


@pytest.mark.parametrize("headers", BAD, ids=str)
def test_a_wrong_key_is_refused(keyed, headers):
    """However near it is."""
    encoded = {name: value.encode("latin-1") for name, value in headers.items()}
    assert keyed.get("/cache", headers=encoded).status == 401


@pytest.mark.parametrize("headers", GOOD, ids=str)
def test_each_key_opens(keyed, headers):
    """By either header, from the variable or the file."""
    assert keyed.ask(new_prompt(), headers).status == 200
    assert keyed.get("/nowhere", headers=headers).status == 404


@pytest.mark.parametrize("path", OPEN)
def test_some_doors_are_always_open(keyed, path):
    """Health and documentation want no key."""
    assert keyed.get(path).status in (200, 302)


def test_a_body_is_not_read_for_a_stranger(keyed):
    """The key comes first: a malformed or huge body of a stranger is 401."""
    for body in (b"{", b" " * 1_200_000):
        assert keyed.ask_raw(body).status == 401


# Browsers

ORIGINS = ["https://app.example", "https://other.example:8443", "http://[2001:db8::1]:3000", "HTTPS://App.Example"]
OTHER_ORIGINS = ["https://evil.example", "http://app.example", "https://app.example.evil.example", "null",
                 "https://app-example", "http://2001:db8::1:3000", "http://d:3000",
                 "http://[2001:db8::2]:3000"]
PREFLIGHT = {"Access-Control-Request-Method": "POST",
             "Access-Control-Request-Headers": "content-type,x-api-key,openai-beta,x-stainless-lang"}
EXPOSED = {"x-request-id", "retry-after", "cache-status", "age", "x-should-retry", "ratelimit-remaining"}


def exposed(reply):
    """The response headers that a page may read."""
    return {name.strip() for name in reply.headers["Access-Control-Expose-Headers"].lower().split(",")}


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/api/chat", "/cache", "/nowhere"])
@pytest.mark.parametrize("origin", ORIGINS)
def test_a_preflight_needs_no_key_and_names_what_is_allowed(keyed, origin, path):
    """At any URL: the page learns of faults only from the answer to the call itself."""
    reply = keyed.request("OPTIONS", path, headers={"Origin": origin, **PREFLIGHT})
    assert (reply.status, reply.body, reply.headers["Content-Type"]) == (204, b"", None)
    assert reply.headers["Access-Control-Allow-Origin"] == origin
    assert {"GET", "POST", "DELETE"} <= set(reply.headers["Access-Control-Allow-Methods"].split(", "))
    asked = PREFLIGHT["Access-Control-Request-Headers"].split(",")
    assert sorted(reply.headers["Access-Control-Allow-Headers"].split(", ")) == sorted(asked)


@pytest.mark.parametrize("origin", ORIGINS)
def test_a_page_may_read_answers_and_errors(keyed, origin):
    """Including the informative headers; without them a page would see only a network failure."""
    for reply in (keyed.ask(new_prompt(), {"Origin": origin, **GOOD[0]}), keyed.ask(new_prompt(), {"Origin": origin}),
                  keyed.ask_raw(b"{", {**JSON, "Origin": origin, **GOOD[0]}),
                  keyed.get("/nowhere", headers={"Origin": origin, **GOOD[0]})):
        assert reply.headers["Access-Control-Allow-Origin"] == origin and EXPOSED <= exposed(reply)


@pytest.mark.parametrize("origin", OTHER_ORIGINS)
def test_another_origin_may_not_call(keyed, origin):
    """An origin is what is on the list, letter for letter but for their case; none is a pattern."""
    for reply in (keyed.request("OPTIONS", "/generate", headers={"Origin": origin, **PREFLIGHT}),
                  keyed.get("/livez", headers={"Origin": origin})):
        assert reply.headers["Access-Control-Allow-Origin"] is None


def test_without_cors_origins_no_browser_may_call(plain, limited):
    """No Access-Control header at all, and what looks like a preflight wants a key like any other call."""
    reply = plain.get("/livez", headers={"Origin": "https://app.example"})
    assert not [name for name in reply.headers if name.lower().startswith("access-control")]
    assert limited.request("OPTIONS", "/generate", headers={"Origin": "https://app.example", **PREFLIGHT}).status == 401


# Rates

def test_a_key_has_its_own_rate(limited):
    """The headers count down, then 429 with Retry-After; another key is not touched, nor health, nor metrics."""
    one, two = {"X-API-Key": "one"}, {"Authorization": "Bearer two"}
    for left in (4, 3, 2, 1, 0):
        reply = limited.get("/cache", headers=one)
        assert reply.status == 200 and int(reply.headers["RateLimit-Reset"]) in range(1, 3602)
        assert reply.headers["Retry-After"] is None
        assert (reply.headers["RateLimit-Limit"], reply.headers["RateLimit-Remaining"]) == ("5", str(left))
    for reply in (limited.ask(new_prompt(), one), limited.ask(new_prompt(), one, stream=True),
                  limited.get("/nowhere", headers=one)):
        assert (reply.status, reply.slug) == (429, "rate-limited")
        assert 1 <= int(reply.headers["Retry-After"]) <= 3601 and reply.headers["RateLimit-Remaining"] == "0"
        assert reply.headers["X-Request-ID"]
    assert limited.get("/cache", headers=two).status == 200
    for path in (*HEALTH, "/metrics"):
        assert {limited.get(path, headers=one).status for _ in range(7)} == {200}


def test_a_rate_does_not_change_what_an_error_says(limited):
    """Retry-After of a 503 is about the model, not about the window of the rate."""
    reply = limited.ask(new_prompt("[[fault=busy]]"), {"X-API-Key": "three"})
    assert reply.slug == "overloaded" and int(reply.headers["Retry-After"]) < 60


@pytest.mark.parametrize("page, address", [("/docs", "203.0.113.20"), ("/", "203.0.113.21")])
def test_what_a_page_loads_wants_no_key_and_counts_for_no_rate(limited, page, address):
    """A page is one request, however many files it has; a browser keeps these."""
    html = {"Accept": "text/html", "X-Forwarded-For": address}
    files = re.findall(r'(?:href|src)="((?:docs|page)/[^"]+)"', limited.get(page, headers=html).body.decode())
    assert len(files) >= 3
    for reply in [limited.get(f"/{file}", headers=html) for file in files * 3]:
        assert reply.status == 200 and int(re.search(r"max-age=(\d+)", reply.headers["Cache-Control"])[1]) > 0
        assert reply.headers["RateLimit-Limit"] is None
    assert limited.get(page, headers=html).headers["RateLimit-Remaining"] == "3"


def test_guessing_keys_has_a_rate_too(limited):
    """Strangers are limited by their address, as given by a trusted proxy."""
    paths = ["/cache", "/nowhere", "/metricss"] * 2
    statuses = [limited.get(paths[n], headers={"X-API-Key": f"guess{n}", **FORWARDED}).status
                for n in range(6)]
    assert statuses == [401] * 5 + [429]
    other = {"X-Forwarded-For": "198.51.100.1, 203.0.113.8"}
    assert limited.get("/cache", headers=other).status == 401
    assert limited.record_of(limited.get("/livez", headers=other))["client"] == "203.0.113.8"


def test_without_keys_and_proxies_the_rate_is_by_the_true_address(plain):
    """Nobody gets another count by a header of his own making."""
    statuses = [plain.get("/cache", headers={"X-Forwarded-For": f"203.0.113.{n}", "Forwarded": f"for=203.0.113.{n}",
                                             "X-Real-IP": f"203.0.113.{n}"}).status for n in range(7)]
    assert statuses == [200] * 6 + [429]
    assert plain.record_of(plain.get("/livez", headers=FORWARDED))["client"] == "127.0.0.1"


@pytest.fixture(scope="module")
def shared_redis(tmp_path_factory):
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


def test_with_redis_the_rate_is_counted_over_all_hosts(shared_double, serve, shared_redis):
    """Two servers, one count; and a Redis that is gone fails no request."""
    servers = [serve(shared_double, cache_url=shared_redis.url, rate_limit="6/hour") for _ in range(2)]
    statuses = [servers[n % 2].get("/cache").status for n in range(8)]
    assert statuses == [200] * 6 + [429] * 2
    shared_redis.kill()
    assert servers[0].get("/cache").status in (200, 429)
    until(lambda: servers[0].ask(new_prompt()).status == 200, 5)
    assert servers[0].get("/livez").status == 200


# Host names

@pytest.mark.parametrize("host, status", [
    ("api.example", 200), ("api.example:8000", 200), ("API.EXAMPLE", 200), ("a.wild.example", 200), ("127.0.0.1", 200),
    ("[::1]", 200), ("[::1]:8000", 200), ("[::2]", 400), ("wild.example", 200), ("evilwild.example", 400), (".", 400),
    ("evil.example/x.wild.example", 400),
    ("evil.example", 400), ("api.example.evil.example", 400), ("xapi.example", 400), ("", 400), ("localhost", 400),
    ("api.example@evil.example", 400)])
def test_only_its_own_names_are_answered(plain, host, status):
    """Any other Host is 400 untrusted-host, except for health."""
    reply = plain.request("GET", "/metrics", headers={"Host": host})
    assert reply.status == status
    assert status == 200 or reply.slug == "untrusted-host"
    assert plain.get("/livez", headers={"Host": host}).status == 200


def test_without_trusted_hosts_any_name_will_do(keyed):
    """The default believes every Host."""
    assert keyed.get("/cache", headers={"Host": "anything.example", **GOOD[0]}).status == 200
