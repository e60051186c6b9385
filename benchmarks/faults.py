"""The caller's result for each fault of Ollama: ``python -m benchmarks.faults`` prints status, slug and time.

The faults are those of the double (``python -m tests.support.double --faults``); the deadline of a generation is
2 s here. After each, a fault-free request must succeed and the answer to the faulty one must not have been kept.
"""

import pathlib
import tempfile

from tests.support.double import FAULTS, OllamaDouble
from tests.support.gunicorn_server import new_prompt, servers, until

TIMEOUT = 2


def main():
    """Ask once with every fault, and once without after each."""
    print("| fault | status | slug | seconds | next request |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as home, OllamaDouble() as double, servers(pathlib.Path(home)) as serve:
        server = serve(double, timeout=TIMEOUT)
        for fault in FAULTS:
            report(fault, server, double, new_prompt(f"[[fault={fault}]]"))
        double.remove_model("llama3:8b")
        report("(model removed)", server, double, new_prompt(), heal=lambda: double.add_model("llama3:8b"))
        double.stop()
        report("(Ollama down)", server, double, new_prompt(), heal=double.start)


def report(fault, server, double, prompt, heal=lambda: None):
    """Print the row of one fault."""
    reply = server.ask(prompt, timeout=30)
    heal()
    until(lambda: double.running == 0)
    then = server.ask(new_prompt(), timeout=30)
    kept = server.ask(prompt, headers={"Cache-Control": "only-if-cached"}).status == 200
    assert not (kept and reply.status != 200), f"{fault}: a failure was kept"
    slug = reply.slug if reply.status != 200 else "kept" if kept else "not kept"
    print(f"| {fault} | {reply.status} | {slug} | {reply.seconds:.2f} | {then.status} |", flush=True)


if __name__ == "__main__":
    main()
