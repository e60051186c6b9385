"""The application compared with a plain Flask: the same hooks run in the same order, whatever is registered."""

import re

import pytest
from flask import (Blueprint, Flask, Response, after_this_request, appcontext_tearing_down, g, got_request_exception,
                   redirect, request, request_finished, request_started, request_tearing_down, session, url_for)
from werkzeug.exceptions import Forbidden

from llama_api.http import Application

URLS = ["/plain", "/plain/", "/outer/plain", "/outer/inner/plain", "/outer/inner/value/7", "/value/7", "/nowhere",
        "/outer/denied", "/raises", "/later", "/stream", "/redirect", "/list", "/empty", "/closing", "/url?q=1",
        "/place", "/cookie", "/outer/inner/raises", "/outer//plain?q=1", "/value//7"]
METHODS = ["GET", "HEAD", "POST", "OPTIONS"]


def built(kind, **config):
    """An application of ``kind`` with hooks of every sort, and the list of what happens in it."""
    app, events = kind("tests"), []
    app.config.update(config)
    outer, inner = Blueprint("outer", "tests", url_prefix="/outer"), Blueprint("inner", "tests", url_prefix="/inner")
    for name, place in (("app", app), ("outer", outer), ("inner", inner)):
        hooks(place, name, events)
        views(place, name, events)
    extra_views(app, events)

    @outer.get("/denied")
    def denied():
        events.append("the view that nobody may see")
        return "denied"

    outer.register_blueprint(inner)
    app.register_blueprint(outer)
    return app, events


def hooks(place, name, events):
    """Two hooks of each sort on ``place``; the outer blueprint's refuses one path."""
    def told(what):
        events.append(f"{name} {what}")

    for number in (1, 2):
        place.before_request(lambda number=number: told(f"before {number}"))
        place.teardown_request(lambda error, number=number: told(f"teardown {number} {type(error).__name__}"))
        place.url_value_preprocessor(lambda endpoint, values, number=number: told(f"values {endpoint} {values}"))

        @place.after_request
        def after(response, number=number):
            told(f"after {number} {response.status_code}")
            response.headers.add("X-After", f"{name} {number}")
            return response

    @place.before_request
    def guard():
        if request.path.endswith("/denied"):
            told("denies")
            return Response("no", 401)

    @place.errorhandler(Forbidden)
    def forbidden(error):
        told("forbidden")
        return "forbidden", 403


def views(place, name, events):
    """Views that any part of an application may have."""
    @place.route("/plain", methods=["GET", "POST"])
    def plain():
        g.seen = getattr(g, "seen", 0) + 1
        events.append(f"{name} plain {request.endpoint} {request.blueprint} {g.seen}")
        return "plain"

    @place.get("/value/<int:number>")
    def value(number):
        return {"number": number}

    @place.get("/raises")
    def raises():
        raise Forbidden


def extra_views(app, events):
    """Responses of every shape."""
    def later():
        after_this_request(lambda response: (events.append("this request"), response)[1])
        return "later"

    def closing():
        response = Response(b"body")
        response.call_on_close(lambda: events.append("closed"))
        return response

    def cookie():
        session["seen"] = True
        return "cookie"

    answers = {
        "/later": later, "/closing": closing, "/cookie": cookie, "/empty": lambda: ("", 204),
        "/stream": lambda: Response(piece for piece in (b"a", b"b")), "/list": lambda: Response([b"a", b"b"]),
        "/redirect": lambda: redirect("/ä"), "/place": lambda: Response("ä", headers={"Content-Location": "/ä"}),
        "/url": lambda: " ".join([url_for("/url", _external=True), url_for("outer.inner.value", number=1),
                                  request.url])}
    for path, view in answers.items():
        app.add_url_rule(path, path, view)


def told(app, events, method, path, **options):
    """Everything that can be seen of a request: the response, the events and the signals."""
    events.clear()
    signals = (request_started, request_finished, request_tearing_down, got_request_exception, appcontext_tearing_down)
    names = ("started", "finished", "tearing down", "exception", "context")
    listeners = [lambda sender, name=name, **_: events.append(f"signal {name}") for name in names]
    for signal, listener in zip(signals, listeners):
        signal.connect(listener, app)
    try:
        reply = app.test_client(use_cookies=False).open(path, method=method, **options)
        seen = (reply.status, sorted(reply.headers), reply.data)
        if reply.status_code == 308:  # the one difference: where it is sent on to names no host
            seen = (reply.status, re.sub(r"^https?://[^/]+", "", reply.headers["Location"]))
        reply.close()
    finally:
        for signal, listener in zip(signals, listeners):
            signal.disconnect(listener, app)
    return seen, list(events)


@pytest.mark.parametrize("config", [
    {}, {"SECRET_KEY": "x"}, {"SERVER_NAME": "api.example"}, {"TRUSTED_HOSTS": ["api.example"]}], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_everything_is_as_with_flask(config, method):
    """Hooks of blueprints within blueprints, hooks of one request, signals, sessions, errors, teardown; also again."""
    (ours, our_events), (plain, plain_events) = built(Application, **config), built(Flask, **config)
    for path in URLS * 2:
        for options in ({}, {"headers": {"Host": "api.example"}}, {"headers": {"Upgrade": "websocket",
                                                                               "Connection": "upgrade"}}):
            assert told(ours, our_events, method, path, **options) == told(plain, plain_events, method, path, **options)


@pytest.mark.parametrize("path, to", [("/outer//plain", "/outer/plain"), ("/outer//plain?q=1", "/outer/plain?q=1")])
def test_a_doubled_slash_is_sent_on_to_a_path(path, to):
    """Whatever the Host header; the method and the body are kept (308)."""
    reply = built(Application)[0].test_client().post(path, headers={"Host": "evil.example"})
    assert (reply.status_code, reply.headers["Location"]) == (308, to)
