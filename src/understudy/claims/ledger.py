"""The ledger: every published system that understudy should contain, its claim, and the verdict."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape
from pathlib import Path

from ..core import UserError
from ..evaluate.planning import plan
from ..evaluate.plots import COLORS, STYLE
from ..evaluate.stats import Interval, seeds_caveat
from ..files import read_json, write_text
from .arm_tables import arm_tables
from .base import Claim, Condition, Unit, format_bound, format_interval
from .folder import claims_folder
from .records import all_claims, all_texts, find_claim, is_redesigned, list_claims, record_path
from .spot_check import disagreement, published
from .text import DECISIONS, IMPROVEMENT_DECISIONS, ClaimText

COLUMNS = ["id", "family", "core", "priority", "name", "title", "arxiv"]
STALE_NOTE = " (stale: the code has changed since)"
CONTROL_INCONCLUSIVE = "control inconclusive"
FEW_DRAWS = 10  # spot checks, below which the rate of disagreement is hardly known
TOY_SECONDS = 300  # CPU seconds that a claim on a toy is meant to take, with its control and tuning
MAX_WORDS = 80  # of a paragraph
MADE = "<!-- made by understudy claims table: change the source, not this page -->"
VERDICTS = ("holds", "fails", "undecided", "not run", "no claim")
# of several claims of one row, the first of these stands for it
_VERDICT_ORDER = ("fails", "undecided", "not run", "holds")


@dataclass(frozen=True)
class LedgerRow:
    """A published system.

    Attributes:
        id: Three digits.
        is_core: A method or study of learning to act from demonstrations, not a mechanism from another field.
        priority: 1 (users expect it) to 3.
        arxiv: Number of the paper, "" if unknown.
    """

    id: str
    family: str
    is_core: bool
    priority: int
    name: str
    title: str
    arxiv: str


def ledger_rows() -> dict[str, LedgerRow]:
    """All rows by id, from ledger.tsv in the folder of the claims."""
    return _parse_rows((claims_folder() / "ledger.tsv").read_text(encoding="utf-8"))


@lru_cache(1)
def _parse_rows(text: str) -> dict[str, LedgerRow]:
    head, *lines = text.splitlines()
    rows: dict[str, LedgerRow] = {}
    for number, line in enumerate(lines, 2):
        cells = line.split("\t")
        place = f"claims/ledger.tsv, line {number}"
        if head.split("\t") != COLUMNS:
            raise UserError(f"The columns must be {', '.join(COLUMNS)}, not {head!r}.",
                            where="claims/ledger.tsv, line 1", hint="fix the line: tabs separate its columns")
        if len(cells) != len(COLUMNS):
            raise UserError(f"The line has {len(cells)} columns instead of {len(COLUMNS)}.", where=place,
                            hint="fix the line: tabs separate its columns")
        row = LedgerRow(cells[0], cells[1], cells[2] == "core", int(cells[3]), *cells[4:])
        if not re.fullmatch(r"\d{3}", row.id) or row.id in rows:
            raise UserError(f"The id {row.id!r} is not three digits, or is used twice.", where=place,
                            hint="give the line another number")
        rows[row.id] = row
    return rows


def find_row(number: str, claim: str) -> LedgerRow:
    """The row of this id.

    Args:
        number: Three digits.
        claim: Name of the claim that asks, for the error.
    """
    if number not in ledger_rows():
        raise UserError(f"The ledger has no row {number!r}.", where=f"the claim {claim}",
                        hint="its ids have three digits: claims/ledger.tsv")
    return ledger_rows()[number]


# -- the comparison that decides --------------------------------------------------------------------------------------


def decisive_condition(record: dict) -> Condition | None:
    """The comparison that decides a record.

    If a control was inconclusive, it is a comparison of the control. Otherwise it is the first one that leads to the
    verdict. If all hold, it is the one with the smallest margin.
    """
    if record["reason"] == CONTROL_INCONCLUSIVE and record["negative_control"]["conditions"]:
        return next(c for c in _conditions(record["negative_control"]) if c.verdict != "fails")
    conditions = [c for p in record["parts"].values() if p["decides"] for c in _conditions(p)]
    return (next((c for c in conditions if c.verdict == record["verdict"] != "holds"), None)
            or min(conditions, key=lambda c: c.margin, default=None))


def _conditions(judged: dict) -> list[Condition]:
    return [Condition(**c) for c in judged["conditions"]]


_W, _H = 200, 38


def interval_svg(condition: Condition, unit: Unit, *, standalone: bool = False) -> str:
    """SVG of the interval, the bound, and the side of the bound on which the interval must be.

    Args:
        unit: `Claim.unit_of` the label of the condition.
        standalone: As a separate file with its own colors. By default the style of the page sets the colors.
    """
    c = condition
    bounds = (-c.bound, c.bound) if c.side == "within" else (c.bound,)
    values = [v for v in (c.low, c.high, c.estimate, *bounds) if math.isfinite(v)]
    low, high = min(values), max(values)
    pad = (high - low or 1.0) * 0.12

    def x(v: float) -> float:
        return round(min(max((v - low + pad) / (high - low + 2 * pad), 0.0), 1.0) * _W, 1)
    accepted = {"above": (x(c.bound), _W), "below": (0, x(c.bound)), "within": (x(-c.bound), x(c.bound))}[c.side]
    parts = [f'<rect class="w" x="{accepted[0]}" y="2" width="{max(accepted[1] - accepted[0], 1):.1f}" height="20"/>']
    for b in bounds:
        anchor = "start" if x(b) < 20 else "end" if x(b) > _W - 20 else "middle"
        parts.append(f'<path class="b" d="M{x(b)} 2V22"/><text x="{x(b)}" y="35" text-anchor="{anchor}">'
                     f"{format_bound(b, unit)}</text>")
    ends = "".join(f"M{x(v)} 7V17" for v in (c.low, c.high))
    parts.append(f'<path class="i" d="M{x(c.low)} 12H{x(c.high)}{ends}"/><circle cx="{x(c.estimate)}" cy="12" r="4"/>')
    style = ""
    if standalone:
        style = "<style>" + _svg_style(COLORS["light"]) + "@media (prefers-color-scheme:dark){" + _svg_style(
            COLORS["dark"]) + "}</style>"
    return (f'<svg xmlns="http://www.w3.org/2000/svg" class="bar {c.verdict}" viewBox="0 0 {_W} {_H}" width="{_W}" '
            f'height="{_H}" role="img" aria-label="{escape(c.describe(unit))}">{style}{"".join(parts)}</svg>')


def _svg_style(colors) -> str:
    c = {k: colors[k] for k in ("good", "bad", "soft", "ink", "goal")}
    return (f".w{{fill:{c['goal']};fill-opacity:.15}}.b{{stroke:{c['soft']};stroke-dasharray:3 2;fill:none}}"
            f"text{{fill:{c['soft']};font:12px sans-serif}}.i{{stroke:{c['ink']};stroke-width:2;fill:none}}"
            f".holds circle{{fill:{c['good']}}}.fails circle{{fill:{c['bad']}}}.undecided circle{{fill:{c['soft']}}}")


# -- the page of the documents --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LedgerEntry:
    """A row with the entries of its claims in `records.list_claims`."""

    row: LedgerRow
    claims: tuple[dict, ...]

    @property
    def verdict(self) -> str:
        """The worst verdict of the row's own claims, or "no claim". A comparison of several rows does not count."""
        verdicts = {c["verdict"] for c in self.claims if not _is_comparison(c)}
        return next((v for v in _VERDICT_ORDER if v in verdicts), "no claim")


def _is_comparison(claim: dict) -> bool:
    """Whether the claim compares the systems of several rows."""
    return len(claim["rows"]) > 1


def _page_of(claim: dict) -> str:
    """The page with the section of a claim: that of the family of its first row."""
    return f"{find_row(claim['rows'][0], claim['name']).family}.md"


def ledger_entries() -> list[LedgerEntry]:
    """One entry per row, in the order of the ledger."""
    by_row: dict[str, list[dict]] = {}
    for claim in list_claims():
        for number in claim["rows"]:
            by_row.setdefault(find_row(number, claim["name"]).id, []).append(claim)
    return [LedgerEntry(r, tuple(by_row.get(r.id, ()))) for r in ledger_rows().values()]


def verdict_counts(entries: Iterable[LedgerEntry]) -> dict[str, int]:
    """The number of rows with each verdict. If a row has several claims, the worst verdict counts."""
    verdicts = [e.verdict for e in entries]
    return {v: verdicts.count(v) for v in VERDICTS}


def entries_by_family(entries: Sequence[LedgerEntry]) -> dict[str, list[LedgerEntry]]:
    """Entries by the family of their row, in alphabetical order."""
    return {f: [e for e in entries if e.row.family == f] for f in sorted({e.row.family for e in entries})}


def write_table(path: Path | str, entries: Sequence[LedgerEntry] | None = None) -> Path:
    """Writes the summary, a page for each family in the folder of the same name, and a picture for each record.

    Args:
        path: File of the summary, such as docs/ledger.md. Pages of families go to docs/ledger/, pictures to
            docs/images/claims/.
    """
    path, rows = Path(path), ledger_entries() if entries is None else entries
    for name in {c["name"] for e in rows for c in e.claims}:
        if (condition := _decisive_of_claim(name)) is not None:
            svg = interval_svg(condition, find_claim(name).unit_of(condition.label), standalone=True)
            write_text(path.parent / "images/claims" / f"{name}.svg", svg + "\n")
    for name, text in ledger_pages(rows).items():
        write_text(path.parent / path.stem / name if name != SUMMARY else path, text)
    return path


def _decisive_of_claim(name: str) -> Condition | None:
    return decisive_condition(read_json(record_path(name))) if record_path(name).exists() else None


SUMMARY = "ledger.md"


def ledger_pages(entries: Sequence[LedgerEntry] | None = None) -> dict[str, str]:
    """The Markdown pages by file name: the summary, and one per family."""
    entries = ledger_entries() if entries is None else entries
    families = entries_by_family(entries)
    pages = {SUMMARY: _summary(entries), **{f"{family}.md": _family_page(family, inside)
                                            for family, inside in families.items()}}
    return {name: re.sub(r"(?<=\d) ?%", "\N{NO-BREAK SPACE}%", text) for name, text in pages.items()}


def _summary(entries: Sequence[LedgerEntry]) -> str:
    n_claims = len({c["name"] for e in entries for c in e.claims})
    lines = [
        "---", "hide: [toc]", "---", "# The ledger of claims", "", MADE, "",
        f"What {n_claims} small experiments say, by what you want to decide. Each repeats a paper's statement on a "
        "task of its own, which may *hold*, *fail* or stay *undecided* here. Pictures show the deciding interval, "
        "which must be on the shaded side of the dashed bound.",
        "",
        *_advice_lines(entries),
        *HOW_TO_READ,
        *_family_table(entries),
        *_row_table(entries),
        *_spot_check_lines()]
    return "\n".join(lines).rstrip() + "\n"


HOW_TO_READ = (
    "## How to read a verdict",
    "",
    "A claim is a small experiment that can fail, on the task and scale named with it, which need not be the paper's. "
    "The training seeds that judge are not those that tune. A rule compares the interval of a difference or of a mean "
    "with a bound, which is zero or a number that the claim states.",
    "",
    "- It **holds** if the whole interval is on the right side of the bound. Where the bound is zero, the interval "
    "must also reach the smallest effect that counts.",
    "- It **fails** if the whole interval is on the other side, or below that smallest effect. A rule of equivalence "
    "holds inside its margin and fails outside.",
    "- Everything else is **undecided**, also a claim whose arm does not reach its stated level, and one that cannot "
    "test the paper's sentence (mechanism only), which says why.",
    "",
    "With several deciding rules, a claim holds if all hold and fails if one fails. A negative control removes the "
    "mechanism, and the rule that it names should then fail. If it does not, the control is inconclusive, and a claim "
    "that would hold is undecided. A claim that fails stays failed, whatever its control shows.",
    "",
    "Intervals have a level of 95 %, or that of a planned look, which the page of the claim names. That page also has "
    "the history. A toy is meant to take at most 300 CPU seconds; where a run took longer, its page says so.",
    "",
)
_COMPARED_RATES = ((0.7, 0.8), (0.7, 0.9), (0.5, 0.9))


def _advice_lines(entries: Sequence[LedgerEntry]) -> list[str]:
    """For each decision, the advice of its claims: first of comparisons, then of those that hold, then of the others.
    """
    texts = all_texts()
    claims = {c["name"]: c for e in entries for c in e.claims}
    order = ("holds", "undecided", "fails", "not run")
    names = sorted(claims, key=lambda name: (not _is_comparison(claims[name]), order.index(claims[name]["verdict"])))
    decisions = [d for d in DECISIONS if any(texts[name].decision == d for name in names)]
    titles = {d: "improving a policy" if d == IMPROVEMENT_DECISIONS[0] else d
              for d in decisions if d not in IMPROVEMENT_DECISIONS[1:]}  # the others follow it
    links = (f"[{title.capitalize()}](#{d.replace(' ', '-').replace(',', '')})" for d, title in titles.items())
    lines = [" · ".join(links), ""]
    for decision in decisions:
        lines += [f"## {decision.capitalize()}", ""]
        if decision == "how many episodes to judge":
            lines += [_rollouts_needed(), ""]
        lines += ['<div class="advice" markdown>', "", "| advice | claim and verdict |", "|---|---|"]
        for name in (n for n in names if texts[n].decision == decision):
            claim = claims[name]
            condition = _decisive_of_claim(name)
            picture = "" if condition is None else f"<br>{_figure(find_claim(name), condition, 'images')}"
            lines.append(f"| {texts[name].advice.replace('|', chr(92) + '|')} | "
                         f"[{name}](ledger/{_page_of(claim)}#{name}) {_verdict_words(claim)}{picture} |")
        lines += ["", "</div>", ""]
    return lines


def _figure(claim: Claim, condition: Condition, images: str) -> str:
    described = _markdown_cell(condition.describe(claim.unit_of(condition.label)))
    return f"![{described}]({images}/claims/{claim.name}.svg)"


@lru_cache(1)
def _rollouts_needed() -> str:
    each = [f"{first:.0%} against {second:.0%} takes {plan(first, second).paired[0.0]}"
            for first, second in _COMPARED_RATES]
    return (f"To find the better of two policies four times in five, {each[0]} episodes of each on the same starts, "
            f"{', '.join(each[1:])}. `understudy plan` computes this for other rates, and "
            "[Comparing policies](comparing.md) explains it.")


def _family_table(entries: Sequence[LedgerEntry]) -> list[str]:
    total = verdict_counts(entries)
    lines = [f"## All {len(entries)} systems", "",
             f"{len(entries) - total['no claim']} of them have a claim, {total['no claim']} have none yet. "
             "`understudy claims table --html ledger.html` writes one page with filters.", "",
             "| family | systems | core | " + " | ".join(VERDICTS) + " |", "|---|" + "--:|" * (len(VERDICTS) + 2)]
    for family, inside in entries_by_family(entries).items():
        each = " | ".join(str(n or "") for n in verdict_counts(inside).values())
        core = sum(e.row.is_core for e in inside)
        lines.append(f"| [{family}](ledger/{family}.md) | {len(inside)} | {core} | {each} |")
    return [*lines, f"| **all** | **{len(entries)}** | **{sum(e.row.is_core for e in entries)}** | "
            + " | ".join(f"**{n}**" for n in total.values()) + " |", ""]


def _row_table(entries: Sequence[LedgerEntry]) -> list[str]:
    untested = tomllib.loads((claims_folder() / "untested.toml").read_text(encoding="utf-8"))
    lines = ["| row | system | family | claim |", "|---|---|---|---|"]
    for e in entries:
        claims = "<br>".join(f"[{c['name']}](ledger/{_page_of(c)}#{c['name']}) {c['verdict']}" for c in e.claims)
        lines.append(f"| {e.row.id} | {_markdown_cell(e.row.name)} | {e.row.family} | "
                     f"{claims or untested.get(e.row.id, '')} |")
    return _fold("The systems by row", lines)


def _spot_check_lines() -> list[str]:
    done = published()
    if not done:
        return []
    rate = disagreement(done)
    return ["## Spot checks", "", "`understudy claims spot-check` runs randomly drawn claims again in full. "
            f"{len(done)} so far: {sum(not c.agrees for c in done)} gave another verdict than the record, a rate of "
            f"{format_interval(rate, '%')}. The largest difference of a figure was "
            f"{max(c.largest_difference for c in done):.2g} of its scale."
            + (" So few draws say little about this rate." if len(done) < FEW_DRAWS else ""), "",
            "| claim | date | commit | recorded | found | largest difference |", "|---|---|---|---|---|--:|",
            *(f"| {c.name} | {c.date} | {(c.commit or '')[:8]} | {c.recorded_verdict} | {c.new_verdict} | "
              f"{c.largest_difference:.2g} |" for c in done), ""]


def _verdict_words(claim: dict) -> str:
    if claim["verdict"] == "not run":
        return "not run"
    record = read_json(record_path(claim["name"]))
    why = claim["reason"] or ", ".join(f"part: {name}" for name in deciding_parts(record))
    return f"**{claim['verdict']}**{f' ({why})' if why else ''}{STALE_NOTE if claim['stale'] else ''}"


def deciding_parts(record: dict) -> list[str]:
    """The parts that lead to a verdict other than "holds", if several parts decide."""
    parts = {name: p["verdict"] for name, p in record["parts"].items() if p["decides"]}
    if record["verdict"] == "holds" or len(parts) < 2:
        return []
    return [name for name, verdict in parts.items() if verdict == record["verdict"]]


def _family_page(family: str, entries: Sequence[LedgerEntry]) -> str:
    """The page of a family: first the rows with a claim, each with its section, then the others in a fold."""
    with_claims = [e for e in entries if e.claims]
    without = [e for e in entries if not e.claims]
    lines = [f"# {family}", "", MADE, "",
             f"{len(entries)} published systems, {len(with_claims)} with a claim. [All families](../{SUMMARY})", "",
             "Tables have means with their 95 % intervals over training seeds and starts. Arms that share a letter "
             "cannot be told apart (pairs are adjusted by Holm's method).", ""]
    if with_claims:
        lines += ['<div class="index" markdown>', "", "| row | system | claim | verdict here |", "|---|---|---|---|"]
        for e in with_claims:
            lines += [f"| {e.row.id} | {_linked(e.row, e.row.name)} | [{c['name']}]({_page_of(c)}#{c['name']}) | "
                      f"{'compared with others' if _is_comparison(c) else _verdict_words(c)} |" for c in e.claims]
        lines += ["", "</div>", ""]
    if without:
        lines += _fold(f"{len(without)} systems without a claim yet", [
            "| row | system |", "|---|---|", *(f"| {e.row.id} | {_system(e.row)} |" for e in without)])
    claims, texts = (all_claims(), all_texts()) if with_claims else ({}, {})
    sections: dict[str, list[str]] = {}
    on_page = [c for e in with_claims for c in e.claims if _page_of(c) == f"{family}.md"]
    for c in sorted(on_page, key=lambda c: not _is_comparison(c)):
        sections.setdefault(c["name"], _claim_section(claims[c["name"]], texts[c["name"]], c))
    return "\n\n".join("\n".join(part).rstrip() for part in (lines, *sections.values())) + "\n"


def _system(row: LedgerRow) -> str:
    return f"**{_markdown_cell(row.name)}**: {_linked(row, row.title)} ({_row_kind(row)})"


def _linked(row: LedgerRow, text: str) -> str:
    """The text as a link to the paper, if its address is known."""
    cell = _markdown_cell(text)
    return f"[{cell}](https://arxiv.org/abs/{row.arxiv})" if row.arxiv else cell


def _row_kind(row: LedgerRow) -> str:
    return f"{'core' if row.is_core else 'adjacent'}, priority {row.priority}"


def _markdown_cell(text: str) -> str:
    """Escapes text for a cell of a Markdown table."""
    return re.sub(r"([|\\`*_\[\]<>])", r"\\\1", " ".join(text.split()))


def _claim_section(claim: Claim, text: ClaimText, entry: dict) -> list[str]:
    """Advice, what speaks against it, the figure, the arms and the verdict. The experiment and its history are folded.
    """
    systems = "; ".join(f"{n} {find_row(n, claim.name).name}" for n in claim.rows)
    lines = [f"## {claim.name}", "", text.advice, "", f"**Against it:** {text.against}", ""]
    design = [("system", systems), ("paper", text.paper), ("statement", f"“{text.statement}”")]
    setup = _spaced(text.setup)
    command = ("command", f"`{entry['command']}`")
    if entry["verdict"] == "not run":
        needs = f" It needs {', '.join(claim.needs)}." if claim.needs else ""
        return [*lines, f"Not run yet.{needs}", "",
                *_fold("The experiment", [*setup, *_design_table([*design, command])])]
    record = read_json(record_path(claim.name))
    condition = decisive_condition(record)
    is_due = is_redesigned(text.revision, record)
    if condition is not None:
        lines += [_figure(claim, condition, "../images"), ""]
    lines += arm_tables(claim, record)
    reason = f" ({record['reason']})" if record["reason"] else ""
    notes = " ".join(filter(None, (claim.mechanism_only, _history_note(record))))
    lines += _spaced(_short_paragraphs(f"**{record['verdict'].capitalize()} here{reason}.** {notes}".rstrip()))
    if is_due:
        lines += _spaced(_short_paragraphs(
            f"The design has changed since this record, and its run is due. {text.revision}"))
    design += [(f"{'rule' if part['decides'] else 'reported'}, {name}",
                _judged_cell(claim, part) + ("" if is_due else _look_note(claim, name, part)))
               for name, part in record["parts"].items()]
    design += [("negative control",
                f"{text.control}. {_control_note(record)} {_judged_cell(claim, record['negative_control'])}"),
               ("run", f"{record['machine']}; {_cost_note(claim, record)}; {record['date']}; "
                       f"commit {record['commit'][:8]}{record['commit'][40:]}"), command]
    if any("pilot" in p.lower() for p in text.setup) and all(step["kind"] != "pilot" for step in record["log"]):
        design.append(("pilots", "The history has no entry of the pilots that are described above."))
    return [*lines, *_fold("The experiment, its rules and all figures",
                           [*setup, *_design_table(design), "", *_summary_tables(claim, record)]),
            *_fold(f"History, to {record['log'][-1]['date']}", _history_table(record["log"]))]


def _fold(title: str, lines: Sequence[str]) -> list[str]:
    return ["<details markdown>", f"<summary>{title}</summary>", "", *lines, "", "</details>", ""]


def _spaced(paragraphs: Iterable[str]) -> list[str]:
    return [line for paragraph in paragraphs for line in (paragraph, "")]


def _short_paragraphs(text: str) -> list[str]:
    """Splits a text between sentences into paragraphs of at most `MAX_WORDS`."""
    paragraphs = [""]
    for sentence in re.split(r"(?<=[.!?]) (?=[A-Z])", text):
        longer = f"{paragraphs[-1]} {sentence}".strip()
        paragraphs[len(paragraphs) - (len(longer.split()) <= MAX_WORDS):] = [
            longer if len(longer.split()) <= MAX_WORDS else sentence]
    return paragraphs


def _history_table(log: Sequence[dict]) -> list[str]:
    lines = ['<div class="rows" markdown>', "", "| date | | what changed | verdict |", "|---|---|---|---|"]
    for step in log:
        reason = f" ({step['reason']})" if step["reason"] else ""
        change = "<br><br>".join(map(_markdown_cell, _short_paragraphs(step["change"])))
        lines.append(f"| {step['date']} | {step['kind']} | {change} | {step['verdict']}{reason} |")
    return [*lines, "", "</div>"]


def _design_table(rows: Iterable[tuple[str, str]]) -> list[str]:
    cells = [(name, re.sub(r"[ \n]+", " ", cell).replace("|", "\\|")) for name, cell in rows]
    return ["| | |", "|---|---|", *(f"| {name} | {cell} |" for name, cell in cells)]


def _judged_cell(claim: Claim, judged: dict) -> str:
    """The comparisons of a part or control, each with its verdict."""
    verdict = f"**{judged['verdict']}**" if "decides" in judged else ""
    reason = re.sub(r"does not reach ([\d.]+) of ([^;]+)", lambda m: (
        f"does not reach {format_bound(float(m[1]), '%')} {m[2]}" if claim.is_rate(m[2]) else m[0]),
        judged.get("reason", ""))
    why = f" ({reason})" if reason else ""
    return f"{verdict}{why}{'<br>' * bool(verdict)}" + "<br>".join(
        f"{c.describe(claim.unit_of(c.label))}: {c.verdict}" for c in _conditions(judged))


def _summary_tables(claim: Claim, record: dict) -> list[str]:
    """Means and intervals of all arms. Parts about one experiment share a table."""
    tables: dict[str, list[str]] = {}
    for name, part in record["parts"].items():
        tables.setdefault(json.dumps(part["summary"]), []).append(name)
    lines = []
    for names in tables.values():
        part = record["parts"][names[0]]
        lines += [f"{', '.join(f'*{name}*' for name in names)}: {part['seeds']} training seeds. "
                  f"{seeds_caveat(part['seeds'])}", "",
                  "| arm | measure | mean [95 % interval] |", "|---|---|---|"]
        for arm, measures in part["summary"].items():
            lines += [f"| {arm} | {name} | {format_interval(Interval(**v), '%' if claim.is_rate(name) else '')} |"
                      for name, v in measures.items()]
        lines.append("")
    return lines


def _cost_note(claim: Claim, record: dict) -> str:
    is_above = record["seconds"] > TOY_SECONDS and not claim.needs  # with needs, it is no toy
    above = f", more than the {TOY_SECONDS} that a toy is meant to take" if is_above else ""
    return f"{record['seconds']:.0f} CPU seconds{above}"


def _control_note(record: dict) -> str:
    """What the negative control shows. It shows little where its rule does not hold without its change."""
    control = record["negative_control"]
    if control["verdict"] == "not run":
        return "The rule does not hold, so there is nothing to remove."
    if not control["passes"]:
        return "The rule does not fail, so the control is inconclusive."
    judged = {(c.label, c.side, c.bound) for c in _conditions(control)}
    unchanged = {c.verdict for c in _conditions(record["parts"][control["part"]])
                 if (c.label, c.side, c.bound) in judged}
    if "fails" in unchanged:
        return "The rule fails, as it must, but it fails without this change too, so the control shows nothing."
    if "undecided" in unchanged:
        return "The rule fails, as it must. Without this change it is undecided."
    return "The rule fails, as it must."


def _look_note(claim: Claim, name: str, part: dict) -> str:
    """Says at which of its planned looks a part was judged, and the level of its intervals there."""
    experiment, seeds = next((p.experiment for p in claim.parts if p.name == name), None), part["seeds"]
    if experiment is None or seeds not in dict(experiment.looks):
        return ""
    return (f"<br>Judged after {seeds} of {len(experiment.seeds)} planned seeds, as planned; the intervals of its rule "
            f"have a level of {100 * experiment.level(seeds):g} %.")


def _history_note(record: dict) -> str:
    """A note on how the verdict came about."""
    notes = []
    before = [step["verdict"] for step in record["log"] if step["kind"] in ("run", "redesign")][:-1]
    if record["verdict"] == "holds" and {"undecided", "fails"} & set(before):
        notes.append("An earlier run did not hold: see the history.")
    if (explained := _explaining_note(record)) is not None:
        notes.append(explained)
    return " ".join(notes)


def _explaining_note(record: dict) -> str | None:
    """The newest note on the present design and verdict. Runs of the same design and pilots may have followed it."""
    present = record["verdict"], record["reason"]
    for step in reversed(record["log"]):
        if step["kind"] == "note":
            return step["change"] if (step["verdict"], step.get("reason", "")) == present else None
        if step["kind"] != "pilot" and (step["kind"] != "run" or (step["verdict"], step.get("reason", "")) != present):
            return None
    return None


# -- the page to search ---------------------------------------------------------------------------------------------


def write_html(path: Path | str, entries: Sequence[LedgerEntry] | None = None) -> Path:
    """Writes one page with all rows, to search and filter. It loads nothing from other files."""
    entries = ledger_entries() if entries is None else entries
    total = verdict_counts(entries)
    counts = ", ".join(f"{v} {total[v]}" for v in VERDICTS)
    template = Path(__file__).with_name("ledger.html").read_text(encoding="utf-8")
    script_tag = re.search(r"<script>(.*)</script>", template, re.S)
    assert script_tag is not None
    script = script_tag[1]
    by_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    options = {"families": sorted({e.row.family for e in entries}), "verdicts": [v for v in VERDICTS if total[v]]}
    filled = {"rules": f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{by_hash}'",
              "plots": STYLE, "told": f"{len(entries)} published systems: {counts}.",
              "rows": "\n".join(map(_entry_html, entries)),
              "counts": _counts_html(entries),
              **{k: "".join(f"<option>{escape(v)}</option>" for v in values) for k, values in options.items()}}
    write_text(path, re.sub(r"\{\{(\w+)\}\}", lambda m: filled[m[1]], template))
    return Path(path)


def _counts_html(entries: Sequence[LedgerEntry]) -> str:
    head = "".join(f'<th class="n">{v}</th>' for v in ("systems", *VERDICTS))
    body = "".join(
        f'<tr><td>{escape(family)}</td><td class="n">{len(inside)}</td>'
        + "".join(f'<td class="n">{n or ""}</td>' for n in verdict_counts(inside).values()) + "</tr>"
        for family, inside in entries_by_family(entries).items())
    return f"<table><thead><tr><th>family</th>{head}</tr></thead><tbody>{body}</tbody></table>"


def _entry_html(e: LedgerEntry) -> str:
    r = e.row
    title = escape(r.title)
    if r.arxiv:
        title = f'<a href="https://arxiv.org/abs/{escape(r.arxiv)}" rel="noreferrer">{title}</a>'
    claims = "".join(map(_claim_html, e.claims)) or '<p class="chip none">no claim yet</p>'
    text = " ".join((r.id, r.family, r.name, r.title, *(f"{c['name']} {c['statement']}" for c in e.claims))).lower()
    return (
        f'<article id="r{r.id}" tabindex="-1" data-family="{escape(r.family)}" data-verdict="{e.verdict}" '
        f'data-core="{"core" if r.is_core else "adjacent"}" data-priority="{r.priority}" data-said="{escape(text)}">'
        f'<div class="who"><span class="id">{r.id}</span><h2>{escape(r.name)}</h2><p class="paper">{title}</p>'
        f'<p class="soft">{escape(r.family)} · {_row_kind(r)}</p></div><div class="what">{claims}</div></article>'
    )


def _claim_html(c: dict) -> str:
    condition = _decisive_of_claim(c["name"])
    chip = f'<span class="chip {c["verdict"].replace(" ", "-")}">{c["verdict"]}</span>'
    if c["reason"]:
        chip += f' <span class="soft">{escape(c["reason"])}</span>'
    stale = ' <span class="soft">stale: the code has changed since</span>' if c["stale"] else ""
    unit = "" if condition is None else find_claim(c["name"]).unit_of(condition.label)
    interval = "" if condition is None else (
        f'<div class="shown">{interval_svg(condition, unit)}<p>{escape(condition.describe(unit))}</p></div>')
    cost = f'{c["date"]} · {c["seconds"]:.0f} CPU seconds · ' if c["date"] else ""
    return (f'<section><p>{escape(c["advice"])}</p><p class="said">“{escape(c["statement"])}”</p>'
            f'<p>{chip}{stale}</p>{interval}'
            f'<p class="soft">{cost}<code>{escape(c["command"])}</code></p></section>')
