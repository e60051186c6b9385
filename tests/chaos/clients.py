"""The callers of the chaos run: every kind of request, polite and rude, and the judgement of what came back."""

import http.client
import json
import random
import re
import socket
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tests.support.double import markers, pieces_for
from tests.support.gunicorn_server import JSON, together

TIMEOUT, QUEUE_TIMEOUT, SLACK = 2.0, 2.0, 4.0  # seconds; SLACK is for a machine of few cores that does it all
BODY_SECONDS, HEAD_SECONDS = 15.0, 2.0  # the limits of the service itself
TAKEOVER = 5.0  # seconds within which a killed leader's claim is taken over
BODY_LIMIT = 65536
GONE = (OSError, http.client.HTTPException)
FAILURES = {(502, "ollama-error"), (503, "ollama-unavailable"), (503, "model-not-found"), (503, "overloaded"),
            (504, "ollama-timeout"), (422, "prompt-too-long")}  # what a faultless question may end in
STALE_DETAILS = {slug for status, slug in FAILURES if status > 500}
STATUS = re.compile(r"llama-api; (hit(; ttl=\d+)?|fwd=stale; detail=([a-z-]+)|fwd=(miss|stale|request)(; stored)?"
                    r"|fwd=miss; collapsed|fwd=bypass)")
GARBAGE = (b"\x00\xff\x16\x03\x01 garbage\r\n\r\n", b"GET /livez HTTP/9.9\r\n\r\n", b"GET\r\n\r\n",
           b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
           b"POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
           b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
           b"GET /livez HTTP/1.1\r\n" + b"X-A: b\r\n" * 300 + b"\r\n")
BROKEN_BODIES = (b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b'{"prompt": "a", "prompt": "b"}', b"\xff\xfe",
                 b"[" * 20000)
WRONG_FIELDS = ({}, {"prompt": " "}, {"prompt": 5}, {"prompt": "a", "max_tokens": 0}, {"prompt": "a", "nothing": 1},
                {"prompt": "a", "temperature": 3}, {"prompt": "a", "stop": [""]}, {"prompt": "\ud800"})


class Ledger:
    """What happened: counts by kind and outcome, times, and everything that must not be."""

    def __init__(self):
        self._lock = threading.Lock()
        self.outcomes, self.times, self.violations = defaultdict(Counter), defaultdict(list), []

    def note(self, kind, outcome, seconds=None):
        with self._lock:
            self.outcomes[kind][outcome] += 1
            if seconds is not None:
                self.times[kind, outcome].append(seconds)

    def blame(self, sentence):
        with self._lock:
            self.violations.append(sentence)


@dataclass
class Scene:
    """The stage that all actors share, and when what was done to it (monotonic)."""

    seed: int
    services: list
    doubles: list
    redis: object
    began: float
    ends: float
    ledger: Ledger = field(default_factory=Ledger)
    kills: list = field(default_factory=list)  # (time, service)
    troubles: list = field(default_factory=list)  # times of all that was done to Redis
    purges: list = field(default_factory=list)  # times of purges that were answered

    @property
    def over(self):
        return time.monotonic() >= self.ends

    def killed(self, since, service=None):
        """Whether a worker was killed after ``since``, one of ``service`` if that is given."""
        return any(at >= since for at, victim in self.kills if service in (None, victim))

    def bound(self, since):
        """Seconds that a request begun at ``since`` may take: longer when the one it joined may have been killed."""
        taken_over = self.killed(since - TAKEOVER) or any(at >= since - TAKEOVER for at in self.troubles)
        return TIMEOUT + QUEUE_TIMEOUT + SLACK + (TAKEOVER + TIMEOUT + QUEUE_TIMEOUT if taken_over else 0)


@dataclass(frozen=True)
class Question:
    """A request, and all that its answer may be."""

    fields: dict
    headers: dict

    @property
    def expected(self):
        """The pieces and the finish reason; the reason is None when the answer must never end."""
        prompt, stop = self.fields["prompt"], self.fields.get("stop", ())
        pieces, reason = pieces_for(prompt, self.fields.get("system"), self.fields.get("max_tokens", 100),
                                    [stop] if isinstance(stop, str) else stop)
        match markers(prompt).get("fault"):
            case "controls":
                pieces = (*pieces[:2], " \0\r\n", *pieces[2:])
            case "text_in_last":
                pieces = (*pieces, " fin")
            case "endless_tokens":
                pieces, reason = (*pieces[:2], *[" on"] * 20000), None
        return pieces, reason

    @property
    def control(self):
        return self.headers.get("Cache-Control", "")


class Caller:
    """One client that asks again and again; each of its decisions comes from the seed."""

    KINDS = {"plain": 30, "stream": 22, "popular": 40, "control": 16, "leave": 10, "probe": 8, "purge": 1, "faulty": 5}

    def __init__(self, scene, number):
        self._scene, self._ledger = scene, scene.ledger
        self._name, self._count = f"{scene.seed}.{number}", 0
        self._random = random.Random(self._name)
        self._kinds = [kind for kind, weight in self.KINDS.items() for _ in range(weight)]

    def run(self):
        """Ask until the time is over."""
        while not self._scene.over and self._count < 20000:
            self._count += 1
            kind, service = self._random.choice(self._kinds), self._random.choice(self._scene.services)
            try:
                getattr(self, f"_{kind}")(service)
            except Exception as error:  # a caller's own fault must not pass for success
                self._ledger.blame(f"{kind}: {type(error).__name__}: {error}")
            time.sleep(self._random.uniform(0, 0.06))

    # Polite

    def _plain(self, service):
        self._ask("plain", service, self._question())

    def _stream(self, service):
        self._ask("stream", service, self._question(stream=True))

    def _popular(self, service):
        self._ask("popular", service, self._common(stream=self._random.random() < 0.3))

    def _control(self, service):
        control = self._random.choice(("no-cache", "no-store", "max-age=1", "max-age=0", "only-if-cached",
                                       "only-if-cached, max-age=2", "no-cache, no-store", "max-age=x, nonsense"))
        self._ask("control", service, self._common(control, stream=self._random.random() < 0.3))

    def _probe(self, service):
        path = self._random.choice(("/livez", "/readyz", "/health", "/metrics", "/cache"))
        allowed = {"/readyz": (200, 503), "/health": (200, 503)}.get(path, (200,))
        reply = self._attempt(path, service, lambda: service.get(path, timeout=10))
        if reply is not None:
            if reply.status not in allowed:
                self._ledger.blame(f"{path} answered {reply.status}: {reply.body[:200]!r}")
            self._ledger.note("probe", f"{path} {reply.status}", reply.seconds)

    def _purge(self, service):
        reply = self._attempt("purge", service, lambda: service.request("DELETE", "/cache", timeout=10))
        if reply is not None:
            self._scene.purges.append(time.monotonic())
            self._expect("purge", reply, (204, None))

    # Rude

    def _leave(self, service):
        question = self._question(stream=self._random.random() < 0.5, markers="[[ttft=0.5]] [[gap=0.1]]")
        patience = self._random.choice((0.0, 0.05, 0.3, 1.0))
        try:
            with service.open_ask(**question.fields, headers=question.headers, timeout=10) as exchange:
                if question.fields["stream"] and patience:
                    exchange.head.read(10)  # some answer, or an error
                else:
                    time.sleep(patience)
            self._ledger.note("leave", "left")
        except TimeoutError:
            self._ledger.blame("leave: no answer within 10 s")
        except GONE:
            self._note_gone("leave", service, time.monotonic() - 10)

    def _faulty(self, service):
        dice = self._random.random()
        if dice < 0.4:
            wanted, body = (400, "malformed-json"), self._random.choice(BROKEN_BODIES)
        elif dice < 0.7:
            wanted, body = (422, "invalid-request"), json.dumps(self._random.choice(WRONG_FIELDS)).encode()
            if b"ud800" in body:
                wanted = (422, "invalid-request"), (400, "malformed-json")
        else:
            wanted, body = (413, "body-too-large"), b'{"prompt": "' + b"a" * BODY_LIMIT * self._random.choice((1, 20))
        reply = self._attempt("faulty", service, lambda: service.ask_raw(body, timeout=10))
        if reply is not None:
            self._expect("faulty", reply, *(wanted if isinstance(wanted[0], tuple) else (wanted,)))

    # Questions

    def _question(self, control="", markers="", **fields):
        """A question that nobody else asks."""
        if not markers and self._random.random() < 0.12:
            markers = self._random.choice(("[[fault=controls]] [[rate=1]]", "[[fault=text_in_last]] [[rate=1]]",
                                           "[[fault=endless_tokens]] [[rate=1]]", "[[tokens=60]]", "[[ttft=0.4]]"))
        if self._random.random() < 0.2:
            fields["max_tokens"] = self._random.randint(1, 12)
        if self._random.random() < 0.15:
            fields["stop"] = self._random.choice(("water", [" the", "über"], ["nowhere"]))
        if self._random.random() < 0.1:
            fields["system"] = "Be brief."
        return self._made(f"Chaos of {self._name}, {self._count}? {markers}", control, fields)

    def _common(self, control="", **fields):
        """One of a few questions that all ask."""
        fields |= self._random.choice(({}, {}, {"max_tokens": 3}, {"max_tokens": 5}, {"system": "Be brief."}))
        return self._made(f"Chaos for all of {self._scene.seed}, {self._random.randrange(12)}?", control, fields)

    def _made(self, prompt, control, fields):
        return Question({"prompt": prompt, "stream": False, **fields}, {"Cache-Control": control} if control else {})

    # Judgement

    def _ask(self, kind, service, question):
        asked = time.monotonic()
        reply = self._attempt(kind, service, lambda: service.ask(
            **question.fields, headers=question.headers, timeout=3 * (TIMEOUT + QUEUE_TIMEOUT) + TAKEOVER + SLACK))
        if reply is None:
            return
        if reply.status != 200:
            more = [(504, "not-cached")] if "only-if-cached" in question.control else []
            return self._expect(kind, reply, *FAILURES, *more)
        problem = wrong_answer(question, reply, self._scene, asked)
        if problem:
            self._ledger.blame(f"{kind}: {problem} (asked {question.fields} {question.headers}, "
                               f"got {reply.cache!r} Age {reply.headers['Age']} {reply.body[:400]!r})")
        self._ledger.note(kind, outcome_of(reply), reply.seconds)

    def _attempt(self, kind, service, call):
        """The reply; None when the connection broke, which is to be blamed unless a worker was killed meanwhile."""
        began = time.monotonic()
        try:
            reply = call()
        except TimeoutError:
            return self._ledger.blame(f"{kind}: silence for {time.monotonic() - began:.1f} s")
        except GONE as error:
            return self._note_gone(kind, service, began, error)
        if (took := time.monotonic() - began) > (bound := self._scene.bound(began)):
            self._ledger.blame(f"{kind}: took {took:.1f} s, may take {bound:.1f} s, ended {reply.status}")
        return reply

    def _note_gone(self, kind, service, began, error=None):
        if not self._scene.killed(began - 0.5, service):
            self._ledger.blame(f"{kind}: disconnected without cause: {error!r}")
        self._ledger.note(kind, "disconnected")

    def _expect(self, kind, reply, *allowed):
        """Count a reply without an answer, which must be one of ``allowed``: pairs of status and slug."""
        try:
            found = reply.status, reply.slug if reply.status >= 400 else None
        except (AssertionError, ValueError, KeyError) as error:
            return self._ledger.blame(f"{kind}: {reply.status} with a broken problem: {error!r} {reply.body[:300]!r}")
        if found not in allowed:
            self._ledger.blame(f"{kind}: {found}, allowed was {allowed}: {reply.body[:300]!r}")
        if reply.status == 503 and not (reply.headers["Retry-After"] or "").isdigit():
            self._ledger.blame(f"{kind}: {found} without Retry-After")
        self._ledger.note(kind, f"{found[0]} {found[1] or ''}".strip(), reply.seconds)


def outcome_of(reply):
    """The outcome of a 200 in a few words."""
    if b"\nevent: error\n" in b"\n" + reply.body and "stream" in reply.headers["Content-Type"]:
        return "200, broken off"
    return "200 " + ("hit" if "; hit" in reply.cache else "stale" if "detail=" in reply.cache else
                     "joined" if "collapsed" in reply.cache else "generated")


def wrong_answer(question, reply, scene, asked):
    """What is wrong with a 200 to ``question``, None when nothing is."""
    pieces, reason = question.expected
    streamed = question.fields["stream"]
    if streamed != reply.headers["Content-Type"].startswith("text/event-stream"):
        return "plain and streamed are mixed up"
    if streamed and reply.events[-1][0] == "error":
        problem = reply.events[-1][1]
        if (problem["status"], problem["type"].removeprefix("/problems/")) not in FAILURES:
            return "the stream ended in an error that is none of the contract's"
        return None if "".join(pieces).startswith(reply.text) else "wrong text before the error"
    if reason is None or reply.text != "".join(pieces):
        return f"WRONG TEXT, expected {''.join(pieces)[:200]!r}"
    ending = reply.events[-1][1] if streamed else reply.json
    if streamed and not ending["done"]:
        return "the stream ended without done"
    if ending["finish_reason"] not in (reason, None) or ending["cached"] and ending["finish_reason"] is None:
        return f"finish_reason, expected {reason}"
    return _wrong_labels(question, reply, ending, scene, asked)


def _wrong_labels(question, reply, ending, scene, asked):
    match, age, control = STATUS.fullmatch(reply.cache), reply.headers["Age"], question.control
    if not match:
        return "Cache-Status"
    hit, detail = "; hit" in reply.cache, match[3]
    if detail is not None and detail not in STALE_DETAILS:
        return "detail of a stale answer"
    if not ending["cached"] == bool(hit or detail) == (age is not None):
        return "cached, Cache-Status and Age disagree"
    if hit and ("no-cache" in control or "no-store" in control):
        return "a hit against the request's will"
    if "only-if-cached" in control and not hit:
        return "generated against the request's will"
    if ("no-store" in control) != (reply.cache == "llama-api; fwd=bypass"):
        return "bypass"
    if age is None:
        return None
    limit = re.search(r"max-age=(\d+)", control)
    if limit and int(age) > int(limit[1]):
        return "older than max-age"
    if int(age) > time.monotonic() - scene.began + 1:
        return "older than the cache"
    for purged in scene.purges:
        calm = not any(at > purged - 12 for at in scene.troubles) and not scene.killed(purged - 12)
        if calm and asked > purged + 3 and int(age) > time.monotonic() - purged + 1:
            return "older than the last purge"
    return None


class Mob:
    """Asks one new question many times at once, of all services, plain and streamed."""

    def __init__(self, scene, number):
        self._scene, self._number, self._random = scene, number, random.Random(f"{scene.seed} mob {number}")
        self.asked = 0

    def run(self):
        while not self._scene.over:
            self.asked += 1
            callers = [Caller(self._scene, f"mob{self._number}.{self.asked}.{at}") for at in range(8)]
            prompt = f"Chaos of a mob of {self._scene.seed}, {self._number}.{self.asked}? [[ttft=0.1]]"
            together(8, lambda at: callers[at]._ask("identical", self._scene.services[at % 2], Question(
                {"prompt": prompt, "stream": at % 3 == 0}, {})))
            time.sleep(self._random.uniform(0.3, 1.0))


class Hooligan(Caller):
    """One client that keeps connections busy without purpose: half heads, trickled bodies, unread streams, garbage."""

    KINDS = {"half_head": 3, "trickle": 3, "deaf": 3, "garbage": 5}

    def _half_head(self, service):
        with service.send_raw(b"POST /generate HTTP/1.1\r\nHost: x\r\nX-Half: ") as client:
            self._until_closed("half head", client, HEAD_SECONDS + SLACK, b"")

    def _trickle(self, service):
        body = json.dumps(self._question().fields).encode()
        head = ("POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()
        with service.send_raw(head) as client:
            for at in range(self._random.randrange(25)):
                try:
                    client.sendall(body[at:at + 1])
                except OSError:
                    break
                time.sleep(0.1)
        self._ledger.note("trickle", "left")

    def _deaf(self, service):
        question = self._question(stream=True, markers="[[tokens=400]]")
        body = json.dumps(question.fields | {"max_tokens": 8000}).encode()
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(("127.0.0.1", service.port))
            client.sendall(f"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Type: {JSON['Content-Type']}\r\n"
                           f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
            time.sleep(self._random.uniform(0.5, 3))
        self._ledger.note("deaf", "left")

    def _garbage(self, service):
        with service.send_raw(self._random.choice(GARBAGE)) as client:
            self._until_closed("garbage", client, HEAD_SECONDS + SLACK, b"HTTP/1.1 4")

    def _until_closed(self, kind, client, seconds, begins):
        """Read to the end, which must come within ``seconds``; an answer must begin with ``begins``."""
        client.settimeout(seconds)
        data, end = b"", time.monotonic() + seconds
        try:
            while time.monotonic() < end and (more := client.recv(65536)):
                data += more
        except TimeoutError:
            return self._ledger.blame(f"{kind}: the connection is open after {seconds:g} s")
        except OSError:
            pass  # reset: what it sent was not read
        if data and not data.startswith(begins or b"HTTP/1.1 4"):
            self._ledger.blame(f"{kind}: answered {data[:200]!r}")
        self._ledger.note(kind, "refused" if data else "closed")
