"""The controls of the double of Ollama: what may be set at any time, some of it by a prompt for its own call."""
from dataclasses import dataclass, fields, replace

from tests.support.double.faults import ALL_FAULTS

FAULT_CONTROLS = 'fault tags_fault ps_fault show_fault version_fault pull_fault'.split()


@dataclass
class Controls:
    """Times are in seconds."""

    version: str = '0.33.0'     # of Ollama; it behaves as 0.12.5, 0.12.6, 0.24 or 0.30 and later did
    slots: int = 1              # generate, chat and embed calls at once; the others wait in an unbounded FIFO
    max_queue: int = 512        # requests that may wait for a load; one more is 503
    load: float = 0.0           # a cold load; lost when the client that started it leaves
    num_ctx: int = 8192         # the context window, unless options.num_ctx says otherwise
    delay: float = 0.0          # before a slot is asked for
    ttft: float = 0.0           # silence before the first token, slot held
    gap: float = 0.0            # between tokens
    prefill: float = 0.0        # for each token of the prompt that the prefix memory has not, before the first token
    prefix_memory: int = 0      # prompts whose beginnings need no work again; 0 = none, nor a count of them
    tokens: int = 0             # natural length of an answer; 0 = from the prompt, 8 to 20
    thinking: int = 0           # pieces of thinking before it, where a model thinks; 0 = from the prompt, 3 to 7
    tool: str = ''              # tools that a chat calls, with commas, where it is offered any
    fault: str = ''             # how calls fail: one of FAULTS, or several with commas, drawn for each call
    times: int = 0              # calls it strikes before all is well again; 0 = forever
    rate: float = 1.0           # share of the calls it strikes
    after: int = 2              # pieces sent before a fault that comes midway
    slow: float = 2.0           # the wait of the fault `slow`
    drip: float = 0.2           # between the bytes of the fault `trickle`
    size: int = 4_000_000       # bytes of the fault `long_line`
    tags_fault: str = ''        # how /api/tags fails
    ps_fault: str = ''          # how /api/ps fails
    show_fault: str = ''        # how /api/show fails
    version_fault: str = ''     # how /api/version fails
    pull_fault: str = ''        # how /api/pull fails
    registry: str = 'llama3,llama3:8b'      # models that can be pulled
    record: int = 10_000        # calls remembered, the last ones; 0 = none, nor generations by prompt

    def bent(self, changes):
        """Return a copy with CHANGES, cast to the type of each control; an unknown control or fault is a ValueError."""
        kinds = {field.name: field.type for field in fields(self)}
        if strangers := changes.keys() - kinds.keys():
            raise ValueError(f'no such control: {", ".join(strangers)}')
        cast = {name: kinds[name]() if value is None else kinds[name](value) for name, value in changes.items()}
        new = replace(self, **cast)
        named = {name for control in FAULT_CONTROLS for name in getattr(new, control).split(',')}
        if strangers := named - ALL_FAULTS.keys() - {''}:
            raise ValueError(f'no such fault: {", ".join(strangers)}')
        return new
