"""The polite callers of the chaos run, and those that leave: every kind of request."""

import http.client
import json
import random
import re
import time

from tests.chaos.answer_checks import FAILURES, outcome_of, wrong_answer
from tests.chaos.scene import OPENING, QUEUE_TIMEOUT, SLACK, TAKEOVER, TIMEOUT, Question
from tests.support.gunicorn_server import Reply, together

BODY_LIMIT = 65536
GONE = (OSError, http.client.HTTPException)
PIECE = re.compile(rb'"response": ?"[^"]')
BROKEN_BODIES = (b"", b"{", b"[]", b"null", b'{"prompt": NaN}', b'{"prompt": "a", "prompt": "b"}', b"\xff\xfe",
                 b"[" * 20000)
WRONG_FIELDS = ({}, {"prompt": " "}, {"prompt": 5}, {"prompt": "a", "max_tokens": 0}, {"prompt": "a", "nothing": 1},
                {"prompt": "a", "temperature": 3}, {"prompt": "a", "stop": [""]}, {"prompt": "\ud800"})


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
        """A question that no other client asks."""
        if not markers and self._random.random() < 0.12:
            markers = self._random.choice(("[[fault=controls]] [[rate=1]]", "[[fault=text_in_last]] [[rate=1]]",
                                           "[[fault=endless_tokens]] [[rate=1]]", "[[tokens=60]]", "[[ttft=0.4]]"))
        if self._random.random() < 0.2:
            fields["max_tokens"] = self._random.randint(1, 12)
        if self._random.random() < 0.15:
            fields["stop"] = self._random.choice(("water", [" the", "über"], ["nowhere"]))
        if self._random.random() < 0.1:
            fields["system"] = "Be brief."
        return self._made(f"{OPENING} of {self._name}, {self._count}? {markers}", control, fields, unique=True)

    def _common(self, control="", **fields):
        """One of a few questions that all ask."""
        fields |= self._random.choice(({}, {}, {"max_tokens": 3}, {"max_tokens": 5}, {"system": "Be brief."}))
        return self._made(f"{OPENING} for all of {self._scene.seed}, {self._random.randrange(12)}?", control, fields)

    def _made(self, prompt, control, fields, unique=False):
        headers = {"Cache-Control": control} if control else {}
        question = Question({"prompt": prompt, "stream": False, **fields}, headers, unique)
        self._scene.invariants.asked(question)
        return question

    # Judgement

    def _ask(self, kind, service, question):
        asked = time.monotonic()
        reply = self._attempt(kind, service, lambda: self._read(service, question))
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

    def _read(self, service, question):
        """The whole reply to ``question``; the time of its first piece is passed to the invariants."""
        asked, body, begun = time.monotonic(), b"", False
        with service.open_ask(**question.fields, headers=question.headers,
                              timeout=3 * (TIMEOUT + QUEUE_TIMEOUT) + TAKEOVER + SLACK) as exchange:
            while data := exchange.head.read1(65536):
                body += data
                if question.fields["stream"] and not begun and PIECE.search(body):
                    begun = True
                    self._scene.invariants.began(question, time.monotonic())
            return Reply(exchange.head.status, exchange.head.headers, body, time.monotonic() - asked)

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


class Mob:
    """Asks one new question many times at once, of all services, plain and streamed."""

    def __init__(self, scene, number):
        self._scene, self._number, self._random = scene, number, random.Random(f"{scene.seed} mob {number}")
        self.asked = 0

    def run(self):
        while not self._scene.over:
            self.asked += 1
            callers = [Caller(self._scene, f"mob{self._number}.{self.asked}.{at}") for at in range(8)]
            prompt = f"{OPENING} of a mob of {self._scene.seed}, {self._number}.{self.asked}? [[ttft=0.1]]"
            questions = [Question({"prompt": prompt, "stream": at % 3 == 0}, {}) for at in range(8)]
            services = self._scene.services
            together(8, lambda at: callers[at]._ask("identical", services[at % len(services)], questions[at]))
            time.sleep(self._random.uniform(0.3, 1.0))
