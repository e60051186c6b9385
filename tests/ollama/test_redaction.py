"""Logged errors of Ollama: its own words, none of the caller's."""

import json

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from llama_api.model_call import CHAT, EMBED, EMBEDDINGS, GENERATE, ModelCall
from llama_api.ollama.redaction import LOGGED, MASK, RUN, redacted
from tests.support.fakes import call

PROMPT = "My name is Xyzzy,\nand I live in the \"Grey House\" at 7 Elm Street."
CALLS = [
    (GENERATE, {"prompt": PROMPT}), (GENERATE, {"prompt": "Hi", "system": PROMPT}),
    (GENERATE, {"prompt": "Hi", "suffix": PROMPT}), (EMBEDDINGS, {"prompt": PROMPT}),
    (EMBED, {"input": ["sky", PROMPT]}), (EMBED, {"input": PROMPT}),
    *((CHAT, {"messages": [{"role": "user", "content": "Hi"}, message]}) for message in (
        {"role": "system", "content": PROMPT}, {"role": "tool", "tool_name": "house", "content": PROMPT},
        {"role": "assistant", "content": "", "thinking": PROMPT})),
    (CHAT, {"messages": [], "format": {"description": PROMPT}}),
    (CHAT, {"messages": [], "tools": [{"function": {"name": "f", "description": PROMPT}}]}),
    (CHAT, {"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": {"a": PROMPT}}}]}]})]


@pytest.mark.parametrize("endpoint, fields", CALLS)
@pytest.mark.parametrize("repeated", [PROMPT, json.dumps(PROMPT)[1:-1], PROMPT[19:], PROMPT[20:40]],
                         ids=["whole", "escaped", "end", "part"])
def test_what_was_asked_is_masked_wherever_it_was_put(endpoint, fields, repeated):
    """The whole, as it is or as JSON writes it, or twenty characters in a row."""
    said = redacted(f"500: cannot read <{repeated}> at /usr/lib/x", ModelCall.of(endpoint, "llama3:8b", **fields))
    assert said == f"500: cannot read <{MASK}> at /usr/lib/x"


@pytest.mark.parametrize("prompt, text, said", [
    ("Xyzzy!", "bad XXyzzy!y, Xyzzy.", f"bad X{MASK}y, Xyzzy."), (" sky\n", "no sky", f"no {MASK}"),
    ("a", "cudaMalloc of a failed", f"cudaMalloc of {MASK} failed"), ("", "as it is", "as it is"),
    ("x" * 19, "x" * 18, "x" * 18), ("x" * 60, "a" + "x" * 19, "a" + "x" * 19), ("x" * 60, "x" * 80 + "a", MASK + "a"),
    ("Why? " * 10, "model requires more system memory (9 GiB)", "model requires more system memory (9 GiB)")])
def test_short_texts_and_short_parts(prompt, text, said):
    """A short text is masked as a whole, a very short one as a word; parts that are short may be chance."""
    assert redacted(text, call(prompt)) == said


def test_the_model_is_named():
    """Its name is the operator's."""
    name = "hf.co/somebody/a-model-with-a-long-name:Q4_K_M"
    assert redacted(f"model '{name}' not found", call("Hi", model=name)) == f"model '{name}' not found"


def test_an_error_without_a_question_is_as_it_is():
    """Cut to the same length."""
    assert redacted("y" * 5000, None) == redacted("y" * 5000, call()) == "y" * LOGGED


letters = st.text("ab", max_size=90)


@given(letters, letters)
@example("ab" * 40, "x" * (LOGGED - 5) + "ab" * 40)
@example("a" * 20 + "b" * 20, "b" * 20 + "a" * 20)
def test_no_run_of_a_prompt_is_left(prompt, text):
    """Wherever it begins, also at the end of what is logged, and however often."""
    said = redacted(text, call(prompt))
    runs = {prompt[at:at + RUN] for at in range(len(prompt) - RUN + 1)}
    assert not any(run in part for run in runs for part in said.split(MASK))
    assert (MASK in said) or said == text[:LOGGED]
