"""Results: tables on the terminal, results.json, and the generated part of README.md."""

import json
import pathlib
from dataclasses import asdict, dataclass, field

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results.json"
README = HERE / "README.md"
BEGIN, END = "<!-- results: begin -->", "<!-- results: end -->"


@dataclass
class Section:
    """The results of one module. ``figures`` are the rows of the closing table, ``data`` is for the plots."""

    name: str
    tables: list = field(default_factory=list)
    figures: list = field(default_factory=list)
    data: dict = field(default_factory=dict)

    def table(self, title, headers, rows):
        """Add a table; numbers become text with three digits."""
        self.tables.append({"title": title, "headers": headers, "rows": [[show(cell) for cell in row] for row in rows]})

    def at_most(self, name, ours, limit, unit="", baseline=None):
        """Add a figure that may not exceed ``limit``; ``baseline`` is what the baseline measured of the same."""
        self._add(name, ours, unit, baseline, f"≤ {show(limit)}{unit}", ours <= limit)

    def at_least(self, name, ours, limit, unit="", baseline=None):
        """Add a figure that must reach ``limit``."""
        self._add(name, ours, unit, baseline, f"≥ {show(limit)}{unit}", ours >= limit)

    def at_most_of(self, name, ours, baseline, limit, unit=""):
        """Add a figure that may not exceed ``limit`` times that of the baseline."""
        self._add(name, ours, unit, baseline, f"≤ {show(limit)} ×", ours <= limit * baseline)

    def at_least_of(self, name, ours, baseline, limit, unit=""):
        """Add a figure that must reach ``limit`` times that of the baseline."""
        self._add(name, ours, unit, baseline, f"≥ {show(limit)} ×", ours >= limit * baseline)

    def compare(self, name, ours, baseline, unit=""):
        """Add a figure that has no goal."""
        self._add(name, ours, unit, baseline, "", None)

    def _add(self, name, ours, unit, baseline, goal, met):
        ratio = "" if not baseline else f"{show(ours / baseline)} ×"
        self.figures.append({
            "name": name, "ours": f"{show(ours)}{unit}", "baseline": "" if baseline is None else
            f"{show(baseline)}{unit}", "ratio": ratio, "goal": goal, "met": None if met is None else bool(met)})


def show(cell):
    """A cell as text: numbers with about three digits."""
    if not isinstance(cell, float):
        return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
    if abs(cell) >= 100:
        return f"{cell:,.0f}"
    return f"{cell:.1f}" if abs(cell) >= 10 else f"{cell:.2f}"


def text_of(table):
    """A table in Markdown, which reads well on a terminal too."""
    rows = [table["headers"], *table["rows"]]
    widths = [max(len(row[at]) for row in rows) for at in range(len(table["headers"]))]

    def line(cells):
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([f"**{table['title']}**", "", line(rows[0]), rule, *map(line, rows[1:])])


def verdict(sections):
    """The table of all figures: ours, the baseline that the row names, and the goal."""
    words = {True: "met", False: "MISSED", None: ""}
    rows = [[one["name"], one["ours"], one["baseline"], one["ratio"], one["goal"], words[one["met"]]]
            for section in sections for one in section["figures"]]
    return {"title": "Goals", "headers": ["row; its baseline", "ours", "baseline", "ratio", "goal", ""], "rows": rows}


def load():
    """The results so far: facts and sections of earlier runs, by name."""
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"sections": {}}


def save(results, facts, section):
    """Keep ``section`` in results.json, replacing its predecessor."""
    results["sections"][section.name] = {**asdict(section), "facts": facts}
    RESULTS.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")


def write_readme(results, order):
    """Rewrite the generated part of README.md."""
    sections = [results["sections"][name] for name in order if name in results["sections"]]
    parts = [text_of(verdict(sections))]
    facts = None
    for section in sections:
        if section["facts"] != facts:
            facts = section["facts"]
            parts.append("\n".join(["Measured with:", "", *(f"- {name}: {value}" for name, value in facts.items())]))
        parts.append(f"### `{section['name']}`")
        parts.extend(text_of(table) for table in section["tables"])
        plots = sorted(HERE.glob(f"plots/{section['name']}*.svg"))
        parts.extend(f"![{plot.stem}](plots/{plot.name})" for plot in plots)
    head, _, rest = README.read_text().partition(BEGIN)
    _, _, tail = rest.partition(END)
    README.write_text(f"{head}{BEGIN}\n\n" + "\n\n".join(parts) + f"\n\n{END}{tail}")
