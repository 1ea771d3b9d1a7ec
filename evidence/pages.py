"""Writes the pages about evidence from tables, systems, advice and published numbers."""

from __future__ import annotations

import json
import re
from collections import Counter
from html import escape
from pathlib import Path

import numpy as np

from understudy.files import write_text

from . import advice, published
from .advice import MADE
from .systems import STATUSES, System, systems
from .tables import Comparison, Family, Measure, Table, families, find_table, format_figure

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MAX_WORDS = 120  # of the text of a family


def write_pages() -> list[Path]:
    """Writes all pages, and the advice that ships with the package.

    Returns:
        The files.
    """
    texts = pages()
    for path, text in texts.items():
        write_text(path, text)
    return list(texts)


def pages() -> dict[Path, str]:
    """The text of each page, and of the advice that ships with the package."""
    everything = {name: family for name, family in families().items() if name != "advice"}  # it has its own page
    texts = {"evidence/index.md": _index(everything), "evidence/systems.md": _systems(systems()),
             "evidence/advice.md": advice.page(), "published.md": published.page(),
             **{f"evidence/{_page_of(family)}": family_page(family) for family in everything.values()}}
    shipped = json.dumps(advice.survivors(), indent=1, ensure_ascii=False) + "\n"
    return {**{DOCS / name: text for name, text in texts.items()}, ROOT / "src/understudy/advice.json": shipped}


def family_page(family: Family) -> str:
    """The page of a family: its question, and each table with its comparisons."""
    if (words := len(family.text.split())) > MAX_WORDS:
        raise ValueError(f"{family.folder / 'family.toml'}: the text has {words} words, and at most {MAX_WORDS}")
    parts = [f"# {family.question}", MADE, _paragraphs(family.text)]
    for table in family.tables.values():
        parts += [f"## {table.title} {{#{table.name}}}", table.text]
        if table.shows_nothing:
            parts.append(f"*No comparison can be read: {table.shows_nothing}*")
        parts += ["\n".join(_rows(table, measure)) for measure in table.measures]
        parts.append(_origin(table))
    return "\n\n".join(filter(None, parts)) + "\n"


def _paragraphs(text: str) -> str:
    """A text of more than 80 words in two paragraphs."""
    sentences = re.split(r"(?<=[.?!*])\s+(?=[A-Z*])", " ".join(text.split()))
    if len(text.split()) <= 80:
        return text
    half = min(range(1, len(sentences)), key=lambda i: abs(len(text) / 2 - len(" ".join(sentences[:i]))))
    return " ".join(sentences[:half]) + "\n\n" + " ".join(sentences[half:])


def _rows(table: Table, name: str) -> list[str]:
    measure, record = table.family.measure(name), table.record["figures"][name]
    comparisons = table.comparisons(name)
    reach = max((abs(v) for c in comparisons for v in (c.low, c.high)), default=1.0) or 1.0
    title = name + (", %" if measure.percent else "") + (" (lower is better)" if measure.lower else "")
    lines = [f"| arm | {title} | compared with | difference | |", "|---|--:|---|--:|---|"]
    for arm in (arm for arm in table.arms if arm in record):
        own = [c for c in comparisons if c.arm == arm and not table.shows_nothing]
        label = f"{arm} *(ablation)*" if arm in (table.ablations or {}) else arm
        first = f"| {label} | {format_figure(float(np.mean(record[arm])), measure)} |"
        cells = [f" {c.rival} | {_difference(c, measure)} | {picture(c, measure, reach)} |" for c in own] or [" | | |"]
        lines += [start + cell for start, cell in zip([first, *["| | |"] * (len(cells) - 1)], cells, strict=True)]
    return lines


def _difference(comparison: Comparison, measure: Measure) -> str:
    limits = comparison.difference, comparison.low, comparison.high
    is_small = max(map(abs, limits)) < 0.015  # as percent they would all be 0 or 1
    mean, low, high = (format_figure(v, measure, signed=True, digits=2 if is_small else 0) for v in limits)
    return f"{mean} [{low}, {high}] **{comparison.word}**"


def picture(comparison: Comparison, measure: Measure, reach: float) -> str:
    """A difference with its interval and margin, drawn by docs/style.css. 0 is in the middle, `reach` at the edge."""
    def place(value: float) -> int:
        return round(50 * (1 + min(max(value / (1.1 * reach), -1), 1)))
    places = {"low": comparison.low, "high": comparison.high, "mean": comparison.difference,
              "margin": measure.margin or 0.0}
    style = ";".join(f"--{name}:{place(value)}" for name, value in places.items())
    return f'<i class="difference {comparison.word}" style="{style}"></i>'


def _origin(table: Table) -> str:
    record = table.record
    seeds, commits = record["seeds"], ", ".join(f"`{commit[:8]}`" for commit in record["commits"])
    kind = "Exploratory, " if record["exploratory"] else ""
    again = f"`python -m evidence run {table.name}`" if table.experiment else f"`{table.was}`"
    other = sum(entry["design"] == "another" for entry in record.get("earlier", []))
    earlier = f", {other} earlier runs of another design" if other else ""
    return (f"*{kind}{len(seeds)} seeds from {seeds[0]}, {record['seconds'] / 60:.0f} CPU minutes, commit {commits}"
            f"{earlier}: {again}.*")


def _index(everything: dict[str, Family]) -> str:
    counts = Counter(system.status for system in systems())
    lines = [
        "# Evidence", MADE,
        "These pages show what understudy can do and how that is known. There are four kinds of evidence, and each has "
        "its own page.",
        "- [Advice that was tested](advice.md): sentences for practitioners. Each was tested in two worlds.\n"
        f"- [Systems](systems.md): which of {counts.total()} published systems are here, by status: "
        + ", ".join(f"{status} {counts[status]}" for status in STATUSES) + ".\n"
        "- [Published numbers](../published.md): figures of papers and other libraries, and the same here.\n"
        "- Family tables, below: which method suits a situation.",
        "## How to read a table",
        "The first arm is what a practitioner would try first. Every other arm is compared with it on the same "
        "training seeds, demonstrations and starts. The difference has a 95 % interval of Student's t over training "
        "seeds, and one of four words.",
        "- **better** or **worse**: the interval excludes 0.\n- **equal**: the interval lies within the margin, the "
        "gray band of the picture.\n- **open**: neither. More seeds would be needed.",
        "Intervals are not adjusted for the number of comparisons. A table that is marked *exploratory* is older than "
        "these rules: its seeds may have been looked at, and its margin was chosen for another rule. An *ablation* "
        "lacks the mechanism of another arm, and is compared with that arm.",
        "## Families",
        "\n".join(f"- [{family.question}]({_page_of(family)}) {len(family.tables)} tables"
                  for family in everything.values())]
    return "\n\n".join(lines) + "\n"


def _page_of(family: Family) -> str:
    """The file of a family's page in docs/evidence/."""
    return f"{family.name.replace('_', '-')}.md"


FILTER = """<p class="filter"><label>Family <select id="family"><option></option>{families}</select></label>
<label>Status <select id="status"><option></option>{statuses}</select></label> <output id="shown"></output></p>
<script>
const choose = (id, i) => row => !document.getElementById(id).value
  || row.cells[i].textContent === document.getElementById(id).value;
function show() {{
  const rows = [...document.querySelectorAll(".md-typeset tbody tr")];
  const tests = [choose("family", 2), choose("status", 3)];
  rows.forEach(row => row.hidden = !tests.every(test => test(row)));
  document.getElementById("shown").textContent = rows.filter(row => !row.hidden).length + " systems";
}}
for (const id of ["family", "status"]) document.getElementById(id).addEventListener("change", show);
document.addEventListener("DOMContentLoaded", show);
</script>"""


def _systems(rows: list[System]) -> str:
    counts = Counter(system.status for system in rows)
    names = sorted({system.family for system in rows})
    options = {key: "".join(f"<option>{escape(v)}</option>" for v in values)
               for key, values in (("families", names), ("statuses", STATUSES))}
    head = "\n\n".join([
        "---\nhide: [navigation, toc]\n---", "# Systems", MADE,
        f"This table of {len(rows)} published systems says how to use each one, which test shows that it is right, and "
        "where it is compared with the plainest rival.",
        "- **works**: there is a use and a test, and a comparison with the plainest rival is better, or equal at a "
        "lower cost.\n- **no gain**: the comparison was made and is not better.\n- **not at this scale**: no "
        "experiment of this size could show a difference.\n- **experiment only**: there is an experiment, and nothing "
        "that a person would use, or no test.\n- **missing**: the rest.",
        "Systems by status: " + ", ".join(f"*{status}* {counts[status]}" for status in STATUSES) + ".",
        FILTER.format(**options), '<div class="systems" markdown>'])
    lines = ["| row | system | family | status | use | right: compared with | works |", "|---|---|---|---|---|---|---|"]
    return head + "\n\n" + "\n".join([*lines, *map(_system_line, rows)]) + "\n\n</div>\n"


def _system_line(system: System) -> str:
    name = f"[{system.name}](https://arxiv.org/abs/{system.arxiv})" if system.arxiv else system.name
    uses = "<br>".join(map(_use, filter(None, system.use.split("; "))))
    tests = "<br>".join(_test(test) for test in filter(None, system.right.split("; ")))
    comparison = system.comparison
    compared = "" if comparison is None else f"{_table_link(system)}: {comparison.arm} {comparison.word}"
    why = compared or system.works or system.note
    cells = (system.row, name, system.family, system.status, uses, tests, why)
    return "| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |"


def _use(use: str) -> str:
    """A command without its first word, or the name of a part. The whole is shown when pointed at."""
    short = use.removeprefix("understudy ") if " " in use.split("(")[0] else use.split(":")[-1]
    return f'<code title="{escape(use, quote=True)}">{escape(short)}</code>'


def _test(test: str) -> str:
    what = re.search(r" \((.+)\)$", test)
    title = escape(test.split(" (")[0], quote=True)
    return f'<span title="{title}">{escape(what[1]) if what else "test"}</span>'


def _table_link(system: System) -> str:
    table = find_table(system.works.split(" | ")[0])
    return f"[{table.name}]({_page_of(table.family)}#{table.name})"
