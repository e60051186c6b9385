"""The plots, drawn from results.json."""

import matplotlib

from .report import HERE

matplotlib.use("svg")
matplotlib.rcParams.update({"svg.hashsalt": "benchmarks", "figure.figsize": (7, 4.2), "axes.grid": True,
                            "grid.alpha": 0.3, "axes.spines.top": False, "axes.spines.right": False})
from matplotlib import pyplot  # noqa: E402


def draw(results):
    """Draw what there are results for."""
    (HERE / "plots").mkdir(exist_ok=True)
    for name, plot in {"hits": _hits, "misses": _misses, "fleet": _fleet, "lru": _lru,
                       "memory": _memory}.items():
        if name in results["sections"]:
            plot(results["sections"][name]["data"])


def _save(name, axes, **labels):
    axes.set(**labels)
    axes.legend(fontsize=8)
    axes.figure.tight_layout()
    axes.figure.savefig(HERE / "plots" / f"{name}.svg", metadata={"Date": None})
    pyplot.close(axes.figure)


def _hits(data):
    throughput, latency = pyplot.subplots()[1], pyplot.subplots()[1]
    for at, (name, by_count) in enumerate(data["figures"].items()):
        counts = [int(count) for count in by_count]
        throughput.plot(counts, [one["rate"] for one in by_count.values()], "o-", color=f"C{at}", label=name)
        for percent, line in (("p50", "-"), ("p99", "--")):
            latency.plot(counts, [one[percent] for one in by_count.values()], f"o{line}", color=f"C{at}",
                         label=f"{name}, {percent}", markersize=4)
    labels = {"xscale": "log", "yscale": "log", "xlabel": "connections"}
    _save("hits-throughput", throughput, **labels, ylabel="requests/s", title="Hits: throughput by connections")
    _save("hits-latency", latency, **labels, ylabel="ms", title="Hits: latency by connections")


def _misses(data):
    axes = pyplot.subplots()[1]
    for at, (connections, by_name) in enumerate(data.items()):
        for name, added in by_name.items():
            if name != "upstream, direct":
                axes.plot(["p50", "p75", "p90", "p95", "p99"], added, "o-" if name == "llama_api" else "o--",
                          color=f"C{at}", label=f"{name}, {connections} connection(s)")
    _save("misses", axes, ylabel="ms", title="Miss: time added to the upstream's own")


def _fleet(data):
    axes = pyplot.subplots()[1]
    for name, waits in data["waits"].items():
        shares = [100 * (at + 1) / len(waits) for at in range(len(waits))]
        axes.plot(waits, shares, ":" if "ideal" in name else "-", label=name)
    _save("fleet", axes, xlabel="seconds waited for a slot", ylabel="% of calls", ylim=(40, 100),
          title="Three unequal Ollamas: waits")


def _lru(data):
    axes = pyplot.subplots()[1]
    sizes = [int(size) for size in data["times"]]
    for at, name in enumerate(("ours", "cachetools", "cachelib")):
        for what, line in (("get", "--"), ("set", "-")):
            points = [(size, one[name][what]) for size, one in zip(sizes, data["times"].values(), strict=True)
                      if name in one]
            axes.plot(*zip(*points, strict=True), f"o{line}", color=f"C{at}", label=f"{name}, {what}")
    _save("lru", axes, xscale="log", yscale="log", xlabel="entries", ylabel="µs a call", title="LRU: cost by size")


def _memory(data):
    axes = pyplot.subplots()[1]
    prompts = [one["prompts"] for one in data["readings"]]
    axes.plot(prompts, [one["rss"] / 1e6 for one in data["readings"]], "o-", label="RSS of the worker")
    axes.plot(prompts, [one["bytes"] / 1e6 for one in data["readings"]], "o-", label="bytes in the cache")
    axes.axhline(data["bound"] / 1e6, color="grey", linestyle=":", label="bound")
    _save("memory", axes, xlabel="prompts", ylabel="MB", ylim=(0, None), title="Memory over the flood")
