"""Invariants of the doubles' records: never more calls at once than slots, no second call after a first piece."""

import threading

LOSSY = {"reset_midway"}  # a reset takes with it what the client has yet to read
TRIED_AGAIN = {0, 200, 503}  # status of what may be tried at the next Ollama; any other is an answer
TRIED_AT_ONE = {503}  # where there is but one


class Invariants:
    """All generations that were asked of each double, also before it was reset or killed."""

    def __init__(self):
        self._lock = threading.Lock()
        self._earlier = []  # of doubles that have forgotten them: host and call
        self._begun = {}  # by prompt that is asked once: when its client had the first piece
        self._asked_once = set()
        self.broken = []  # when hosts broke off what they did: since and until

    def asked(self, question):
        """``question`` is about to be asked."""
        if question.unique:
            self._asked_once.add(question.fields["prompt"])

    def began(self, question, at):
        """The client that asks ``question`` has had its first piece, at the latest ``at``."""
        if question.unique:
            self._begun[question.fields["prompt"]] = at

    def remember(self, double):
        """Keep the calls of a double that is about to forget them."""
        with self._lock:
            self._earlier += calls_of(double)

    def calls(self, doubles):
        """Pairs of host and call, as they came."""
        with self._lock:
            found = self._earlier + [pair for double in doubles for pair in calls_of(double)]
        return sorted(found, key=lambda pair: pair[1].started)

    def most_at_once(self, doubles):
        """By host: how many calls had a slot at most."""
        most = dict.fromkeys((double.host for double in doubles), 0)
        for host, call in self.calls(doubles):
            most[host] = max(most[host], call.beside)
        return most

    def above(self, doubles, allowed):
        """Sentences on calls that exceeded the number allowed; ``allowed`` is that number, by time."""
        return [f"{call.beside} calls at once at {host}, {allowed(call.granted)} were allowed"
                for host, call in self.calls(doubles) if call.beside > allowed(call.granted)]

    def replayed(self, doubles):
        """Sentences on generations that were asked for again though their client could have had a piece."""
        by_prompt, status = {}, TRIED_AGAIN if len(doubles) > 1 else TRIED_AT_ONE
        for host, call in self.calls(doubles):
            if (prompt := call.json["prompt"]) in self._asked_once:
                by_prompt.setdefault(prompt, []).append(call)
        found = []
        for prompt, calls in by_prompt.items():
            for call, later in zip(calls, calls[1:]):
                if later.started > self._begun.get(prompt, later.started):
                    found.append(f"{prompt!r} was asked for again after its client had a piece")
                if call.ended and not self._may_be_tried_again(call, status):
                    found.append(f"{prompt!r} was asked for again after {call.status} {call.fault!r}, {call.sent} sent")
        return found

    def _may_be_tried_again(self, call, status):
        if call.closed_early or call.fault in LOSSY or any(
                since <= call.ended and call.started <= until for since, until in self.broken):
            return True
        return call.status in status and not (call.status == 200 and call.sent)


def calls_of(double):
    """Host and call of each generation that was asked of ``double``."""
    return [(double.host, call) for call in double.calls("/api/generate") if call.json and call.json.get("prompt")]
