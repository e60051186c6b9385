"""Small stand-ins that unit tests pass in, and the wait for what another thread brings about."""

import threading
import time

from llama_api.answer import Answer, Completion
from llama_api.model_call import GENERATE, ModelCall


class Clock:
    """A clock that stands until it is ticked."""

    def __init__(self, now=1000.0):
        self.now = now

    def __call__(self):
        return self.now

    def tick(self, seconds):
        self.now += seconds


def until(condition, seconds=10.0):
    """Poll until ``condition`` holds; return what it gave."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "it never came to be"
        time.sleep(0.002)
    return value


def call(prompt="Why is the sky blue?", model="llama3:8b", options=None, **fields):
    """The call that POST /generate makes of a prompt, by the defaults of the contract."""
    return ModelCall.of(GENERATE, model, {"num_predict": 100, "temperature": 0.7, **(options or {})}, prompt=prompt,
                        truncate=False, **fields)


def answer(text="Because.", finish_reason="stop", input_tokens=7, output_tokens=3, **fields):
    """A whole answer, by default at 50 tokens a second."""
    completion = Completion(finish_reason, input_tokens, output_tokens, eval_duration=output_tokens * 20_000_000)
    return Answer(**{"model": "llama3:8b", "text": text, "completion": completion, "digest": "build-1",
                     "created": time.time(), **fields})


def in_threads(count, work):
    """Run ``work(number)`` in ``count`` threads that start together; return what each gave, or the error it raised."""
    start, results = threading.Barrier(count), [None] * count

    def run(number):
        start.wait()
        try:
            results[number] = work(number)
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=run, args=[number], daemon=True) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads), "a thread never came back"
    return results
