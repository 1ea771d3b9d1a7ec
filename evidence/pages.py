"""Writes the pages about evidence from tables, systems, advice and published numbers."""

from __future__ import annotations

import json
import re
from collections import Counter
from html import escape
from pathlib import Path

import numpy as np

from understudy.files import write_text
from understudy.hints import pluralize

from . import advice, published
from .advice import MADE
from .systems import STATUSES, System, systems
from .tables import Comparison, Family, Measure, Table, families, find_table, format_figure

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
MAX_WORDS = 120  # of the text of a family
FAMILIES_OF_SYSTEMS = {
    "continual": "continual learning", "irl-matching": "inverse RL and matching", "offline-rl": "offline RL",
    "multi-embodiment": "multi-embodiment", "observation-only": "observations only", "rl-finetuning": "RL fine-tuning",
    "privacy-security-safety": "privacy, security and safety", "skills-hierarchy": "skills and hierarchy",
    "world-model": "world models"}
# Opens the families that have rows of the family and the status that are chosen, and hides all other rows.
FILTER = """<p class="filter"><label>Family <select id="family"><option value="">all</option>{families}</select></label>
<label>Status <select id="status"><option value="">all</option>{statuses}</select></label>
<output id="shown"></output></p>
<script>
function show() {{
  const [family, status] = ["family", "status"].map(id => document.getElementById(id).value);
  let shown = 0;
  for (const part of document.querySelectorAll(".systems")) {{
    const rows = [...part.querySelectorAll("tbody tr")];
    const isOther = family && part.querySelector("h2").id !== family;
    for (const row of rows) row.hidden = isOther || status && row.cells[2].textContent !== status;
    const left = rows.filter(row => !row.hidden).length;
    part.hidden = !left;
    part.querySelector("details").open = family || status;
    shown += left;
  }}
  document.getElementById("shown").textContent = shown + " of {total} systems";
}}
document.addEventListener("DOMContentLoaded", () => {{
  for (const id of ["family", "status"]) document.getElementById(id).addEventListener("change", show);
  show();
}});
</script>"""


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
    kind = "exploratory" if all(table.record["exploratory"] for table in family.tables.values()) else "paired by seed"
    parts = [f"# {family.question}", MADE, _paragraphs(family.text),
             f"The tables are {kind}: see [how to read them](index.md#how-to-read-a-table)."]
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
    comparisons = [] if table.shows_nothing else table.comparisons(name)
    reach = max((abs(v) for c in comparisons for v in (c.low, c.high)), default=1.0) or 1.0
    title = name + (", %" if measure.percent else "") + (" (lower is better)" if measure.lower else "")
    lines = [f"| arm | {title} | difference from {table.rival} |", "|---|--:|--:|"]
    for arm in (arm for arm in table.arms if arm in record):
        label = f"{arm} *(ablation)*" if arm in (table.ablations or {}) else arm
        differences = [("" if c.rival == table.rival else f"from {c.rival}: ") + _difference(c, measure)
                       + f" {picture(c, measure, reach)}" for c in comparisons if c.arm == arm]
        figure = format_figure(float(np.mean(record[arm])), measure)
        lines.append(f"| {label} | {figure} | {'<br>'.join(differences)} |")
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
    return f'<i class="{comparison.word}" style="{style}"></i>'


def _origin(table: Table) -> str:
    record = table.record
    kind = "" if record["exploratory"] else "Planned before its run, "
    commits = ", ".join(f"`{commit}`" for commit in dict.fromkeys(commit[:8] for commit in record["commits"]))
    other = sum(entry["design"] == "another" for entry in record.get("earlier", []))
    earlier = f", {other} earlier runs of another design" if other else ""
    return f"*{kind}{len(record['seeds'])} seeds, commit {commits}{earlier}.*"


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
        "The first arm is what a practitioner would try first. The last column says how each other arm differs from it "
        "on the same training seeds, demonstrations and starts. A line that begins with *from* compares with another "
        "arm. An *ablation* lacks the mechanism of the arm that is compared with it.",
        "In brackets is the 95 % interval of Student's t over training seeds. Intervals are not adjusted for the "
        "number of comparisons. One of four words and a picture follow.",
        "- **better** or **worse**: the interval excludes 0.\n- **equal**: the interval lies within the margin, the "
        "gray band of the picture.\n- **open**: neither. More seeds would be needed.",
        "All tables are exploratory unless they say that they were planned before their run: they are older than these "
        "rules, their seeds may have been looked at, and their margin was chosen for another rule.",
        "`python -m evidence run NAME` runs a table again if its code is still in the repository, and otherwise says "
        "which file of which commit has it. The name of a table stands after the `#` in the link of its heading. "
        "`evidence/families/` has the figure of every seed.",
        "## Families",
        "\n".join(f"- [{family.question}]({_page_of(family)}) {pluralize(len(family.tables), 'table')}"
                  for family in everything.values())]
    return "\n\n".join(lines) + "\n"


def _page_of(family: Family) -> str:
    """The file of a family's page in docs/evidence/."""
    return f"{family.name.replace('_', '-')}.md"


def _systems(rows: list[System]) -> str:
    counts = Counter(system.status for system in rows)
    names = sorted({system.family for system in rows})
    parts = [
        "---\nhide: [navigation, toc]\n---", "# Systems", MADE,
        f"This page lists {len(rows)} published systems by family. It says how to use each one, what its tests compare "
        "it with, and where it is compared with the plainest rival, which is what a practitioner would try first. Open "
        "the table of a family, or choose a family or a status.",
        "- **works**: it can be used and is tested, and a comparison with the plainest rival is better, or equal at a "
        "lower cost.\n- **no gain**: the comparison was made and is not better.\n- **not at this scale**: no "
        "experiment of this size could show a difference.\n- **experiment only**: there is an experiment, and nothing "
        "that a person would use, or no test.\n- **missing**: it is not here, or nothing compares it with a rival.",
        "Systems by status: " + ", ".join(f"*{status}* {counts[status]}" for status in STATUSES) + ".",
        "`python -m evidence systems` prints all entries, with the names of the tests.",
        FILTER.format(families="".join(f'<option value="{name}">{_spoken(name)}</option>' for name in names),
                      total=len(rows), statuses="".join(f"<option>{status}</option>" for status in STATUSES))]
    for name in names:
        parts += _systems_of(name, [system for system in rows if system.family == name])
    return "\n\n".join(parts) + "\n"


def _spoken(family: str) -> str:
    return FAMILIES_OF_SYSTEMS.get(family, family.replace("-", " "))


def _systems_of(family: str, systems: list[System]) -> list[str]:
    """The folded table of a family, below a line that counts its systems by status."""
    title = _spoken(family)
    counts = Counter(system.status for system in systems)
    counted = ", ".join(f"{status} {counts[status]}" for status in STATUSES if counts[status])
    head = "| row | system | status | use | tested against | compared |", "|---|---|---|---|---|---|"
    return ['<div class="systems" markdown>', f"## {title[0].upper()}{title[1:]} {{#{family}}}",
            f"<details markdown>\n<summary>{counted}</summary>", "\n".join([*head, *map(_system_line, systems)]),
            "</details>", "</div>"]


def _linked_name(system: System) -> str:
    return f"[{system.name}](https://arxiv.org/abs/{system.arxiv})" if system.arxiv else system.name


def _system_line(system: System) -> str:
    uses = "<br>".join(map(_use, filter(None, system.use.split("; ")))) or escape(system.note)
    tests: dict[str, list[str]] = {}
    for test in filter(None, system.right.split("; ")):
        tests.setdefault(_kind(test), []).append(test.split(" (")[0])
    kinds = ", ".join(f'<span title="{"&#10;".join(map(escape, names))}">{escape(kind)}</span>'
                      for kind, names in tests.items())
    comparison = system.comparison
    compared = "" if comparison is None else f"{_table_link(system)}: {comparison.arm} {comparison.word}"
    cells = [system.row, _linked_name(system), system.status, uses, kinds, compared]
    while not cells[-1]:  # a row may have fewer cells than the head
        cells.pop()
    return "| " + " | ".join(cell.replace("|", "&#124;") for cell in cells) + " |"


def _use(use: str) -> str:
    """A command without its first word, or the name of a part, whose module is shown when pointed at."""
    if " " in use.split("(")[0]:
        return f"<code>{escape(use.removeprefix('understudy '))}</code>"
    return f'<code title="{escape(use, quote=True)}">{escape(use.split(":")[-1].split("(")[0])}</code>'


def _kind(test: str) -> str:
    """What a test compares with, in the first words of its description."""
    what = re.search(r" \((.+)\)$", test)
    words = re.split(r"[,;]" if what[1].startswith("peer") else r"[:,;]", what[1])[0] if what else "test"
    kinds = "closed form", "limiting case", "literal", "planted"
    return next((kind for kind in kinds if words.startswith(kind)), words)


def _table_link(system: System) -> str:
    table = find_table(system.works.split(" | ")[0])
    return f"[{table.name}]({_page_of(table.family)}#{table.name})"
