"""Run the benchmarks: ``python -m benchmarks [section ...]``; by default those that take eight minutes together."""

import argparse
import datetime
import importlib.metadata
import os
import platform
import re
import shutil
import subprocess
import time

import psutil

from . import (doors, embeddings, fleet, flow, gate, hits, lru, memory, misses, pages, plots, report, start, storms,
               streams, tokens, turns, workers)
from .contenders import ROOT

SECTIONS = {module.__name__.rpartition(".")[2]: module.run
            for module in (hits, misses, tokens, streams, doors, embeddings, storms, gate, fleet, turns, flow, workers,
                           lru, start, memory, pages)}
LONG = ("flow", "memory", "pages")  # take minutes each, and so run by name only
PACKAGES = ("flask", "werkzeug", "gunicorn", "gunicorn_h1c", "gevent", "orjson", "marshmallow", "requests",
            "prometheus_client", "flask-caching", "cachetools", "cachelib")


def environment():
    """The machine, the versions and the settings."""
    return {
        "date": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d %H:%M} UTC",
        "code": _code(),
        "machine": f"{_processor()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 2 ** 30:.0f} GiB, "
                   f"{platform.system()} {platform.release()}; load at the start {os.getloadavg()[0]:.2f}",
        "versions": f"Python {platform.python_version()}, " + ", ".join(map(_version, PACKAGES)),
        "tools": f"{_first_line(['wrk', '-v'])}; {_first_line(['nginx', '-v'])}",
        "settings": "as shipped (gevent worker, log to file and stdout, metrics, ids, headers, validation); "
                    "LLAMA_API_PARALLEL raised where many misses are meant to run at once; "
                    "upstream: tests/support/double"}


def _code():
    commit, changes = (subprocess.run(["git", *arguments], capture_output=True, text=True, cwd=ROOT).stdout.strip()
                       for arguments in (["rev-parse", "--short", "HEAD"], ["status", "--short", "llama_api"]))
    return f"commit {commit or 'unknown'}{', with changes not committed' if changes else ''}"


def _version(package):
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        return f"{package} absent"


def _processor():
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.machine()


def _first_line(command):
    if not shutil.which(command[0]):
        return f"{command[0]} absent"
    found = subprocess.run(command, capture_output=True, text=True)
    return re.split(r" Copyright|\n", found.stdout + found.stderr)[0]


def main():
    """Run the requested sections, print and store their results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("sections", nargs="*", metavar="section",
                        help=f"of: {', '.join(SECTIONS)}; by default all but {', '.join(LONG)}")
    wanted = parser.parse_args().sections or [name for name in SECTIONS if name not in LONG]
    if strangers := set(wanted) - SECTIONS.keys():
        parser.error(f"no such section: {', '.join(sorted(strangers))}; there are {', '.join(SECTIONS)}")
    facts, results, done = environment(), report.load(), []
    for name, value in facts.items():
        print(f"{name}: {value}")
    for name in wanted:
        started = time.monotonic()
        section = SECTIONS[name]()
        print(f"\n## {name} ({time.monotonic() - started:.0f} s)\n", flush=True)
        print("\n\n".join(map(report.text_of, section.tables)), flush=True)
        report.save(results, facts, section)
        done.append({"figures": section.figures})
    plots.draw(results)
    report.write_readme(results, SECTIONS)
    print("\n" + report.text_of(report.verdict(done)))


if __name__ == "__main__":
    main()
