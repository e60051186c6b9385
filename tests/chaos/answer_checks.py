"""Checks of the replies: the answer of one build, with the right labels."""

import re
import time

from tests.chaos.scene import SLACK

SEEN = 5.0  # seconds within which the service sees another build (contract, 4)
FAILURES = {(502, "ollama-error"), (503, "ollama-unavailable"), (503, "model-not-found"), (503, "overloaded"),
            (504, "ollama-timeout"), (422, "prompt-too-long")}  # what a faultless question may end in
STALE_DETAILS = {slug for status, slug in FAILURES if status > 500}
STATUS = re.compile(r"llama-api; (hit(; ttl=\d+)?|fwd=stale; detail=([a-z-]+)|fwd=(miss|stale|request)(; stored)?"
                    r"|fwd=miss; collapsed|fwd=bypass)")


def outcome_of(reply):
    """The outcome of a 200 in a few words."""
    if b"\nevent: error\n" in b"\n" + reply.body and "stream" in reply.headers["Content-Type"]:
        return "200, broken off"
    return "200 " + ("hit" if "; hit" in reply.cache else "stale" if "detail=" in reply.cache else
                     "joined" if "collapsed" in reply.cache else "generated")


def wrong_answer(question, reply, scene, asked):
    """The fault of a 200 to ``question``, None if there is none."""
    streamed, text = question.fields["stream"], reply.text
    if streamed != reply.headers["Content-Type"].startswith("text/event-stream"):
        return "plain and streamed are mixed up"
    expected = [(build, *question.expected(build)) for build in scene.builds.all]
    if streamed and reply.events[-1][0] == "error":
        problem = reply.events[-1][1]
        if (problem["status"], problem["type"].removeprefix("/problems/")) not in FAILURES:
            return "the stream ended in an error that is none of the contract's"
        good = any("".join(pieces).startswith(text) for _, pieces, _ in expected)
        return None if good else "wrong text before the error"
    ending = reply.events[-1][1] if streamed else reply.json
    if streamed and not ending["done"]:
        return "the stream ended without done"
    found = [(build, reason) for build, pieces, reason in expected if reason and "".join(pieces) == text]
    if not found:
        return f"WRONG TEXT, expected {''.join(expected[0][1])[:200]!r} or another build's"
    if ending["finish_reason"] not in {None, *(reason for _, reason in found)} or (
            ending["cached"] and ending["finish_reason"] is None):
        return f"finish_reason, expected {found[0][1]}"
    faults = [_wrong_build(build, reply, scene, asked) for build, _ in found]
    return _wrong_labels(question, reply, ending, scene, asked) or (faults[0] if all(faults) else None)


def _wrong_build(build, reply, scene, asked):
    """Why the answer should not be that of ``build``, None when it may be."""
    now, gone, outcome = time.monotonic(), build.gone, outcome_of(reply)
    if outcome == "200 stale":
        return None
    if gone is not None:
        seen = SEEN + SLACK + scene.builds.blind(gone, asked)
        late = {"200 hit": seen, "200 joined": scene.bound(asked)}.get(outcome, 0.0)
        if gone < asked - late:
            return f"THE ANSWER OF A BUILD that no Ollama has had for {asked - gone:.1f} s, {seen:.1f} may pass"
    if build.left_out is not None and build.left_out[0] < asked and now < build.left_out[1]:
        return "THE ANSWER OF A BUILD that is left out"
    return None


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
    for purged in scene.purges if scene.store.shared else ():
        calm = not scene.store.in_trouble(purged - 12) and not scene.killed(purged - 12)
        if calm and asked > purged + 3 and int(age) > time.monotonic() - purged + 1:
            return "older than the last purge"
    return None
