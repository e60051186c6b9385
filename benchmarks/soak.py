"""The service on the embedded model under steady callers: ``python -m benchmarks.soak --minutes 10``.

It starts the processes of ``make run`` without an Ollama, and prints the number of answers and the memory over time.
"""

import argparse
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter

import psutil
import requests

CALLERS = 4
WORDS = "sky sea sun moon rain wind fire stone tree bird fish horse river cloud winter summer bread music".split()


def free_port():
    """A free loopback port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def call(url, until, counts, seconds, seed):
    """Ask one question after another, plain and streamed, new and repeated, until the time is over."""
    chooser = random.Random(seed)
    with requests.Session() as session:
        while time.monotonic() < until:
            prompt = f"Tell me about the {chooser.choice(WORDS)} and the {chooser.choice(WORDS)}."
            body = {"prompt": prompt, "max_tokens": chooser.randint(5, 40), "stream": chooser.random() < 0.3}
            started = time.monotonic()
            reply = session.post(f"{url}/generate", json=body, timeout=120)
            good = reply.status_code == 200 and ('"done":true' in reply.text or "response" in reply.text)
            counts[reply.status_code if good or reply.status_code != 200 else "broken"] += 1
            counts[reply.headers["Cache-Status"].split(";")[1].strip() if good else "no answer"] += 1
            seconds.append(time.monotonic() - started)


def main():
    """Run, watch the memory of each process, end everything, print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    minutes = parser.parse_args().minutes
    port = free_port()
    with tempfile.TemporaryDirectory() as home:
        environ = {**os.environ, "LLAMA_API_BIND": f"127.0.0.1:{port}", "LLAMA_API_LOG_FILE": f"{home}/api.log",
                   "LLAMA_API_OLLAMA_URL": f"http://127.0.0.1:{free_port()}"}
        process = subprocess.Popen([sys.executable, "-m", "llama_api", "run"], env=environ,
                                   stdout=subprocess.DEVNULL)
        try:
            soak(f"http://127.0.0.1:{port}", psutil.Process(process.pid), minutes)
        finally:
            process.send_signal(signal.SIGTERM)
            print("exit status:", process.wait(60))


def soak(url, master, minutes):
    """Keep the callers busy and print a line of memory every so often."""
    while True:
        try:
            requests.get(f"{url}/livez", timeout=2)
            break
        except requests.ConnectionError:
            time.sleep(0.1)
    counts, seconds = Counter(), []
    began = time.monotonic()
    callers = [threading.Thread(target=call, args=(url, began + minutes * 60, counts, seconds, seed))
               for seed in range(CALLERS)]
    for caller in callers:
        caller.start()
    names = {one.pid: "model" if "llama_api.embedded" in one.cmdline() else "worker" for one in master.children()}
    while alive := [caller for caller in callers if caller.is_alive()]:
        memory = {name: round(psutil.Process(pid).memory_info().rss / 1e6, 1) for pid, name in names.items()}
        answered = sum(counts.values()) // 2
        print(f"{time.monotonic() - began:6.0f} s  {answered:6} answers  RSS in MB: {memory}", flush=True)
        alive[0].join(minutes * 60 / 10)
    print("answers:", dict(counts))
    print(f"seconds a call: median {statistics.median(seconds):.2f}, longest {max(seconds):.2f}")


if __name__ == "__main__":
    main()
