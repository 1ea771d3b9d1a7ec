"""Writes the results of an evaluation as one HTML file that loads nothing, in a light and a dark theme."""

from __future__ import annotations

import base64
import hashlib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np

from .. import __version__
from ..core import role
from ..data.episode import Dataset
from ..data.formats.describe import task_counts
from ..envs.base import Env, PlanarMap
from ..files import write_text
from ..learn.training_curves import HELD_OUT_ERROR, LOSS, SCORE, TrainingCurves
from . import plots
from .action_prediction import ActionPrediction, EpisodePlanSamples, ErrorBreakdown
from .behavior_metrics import BehaviorMetrics, BehaviorModes
from .episode_video import film_strip
from .evaluation import Evaluation, capitalize_name, compare, describe_trial_gain, format_p_value, verdict_parts
from .failures import FailurePictures
from .plots import Axis, Figure
from .stats import Interval

LINES = "A solid line succeeds; a dashed one that ends in a cross does not."
MAX_FANS = 4  # components of an episode for which plans are drawn
SMOOTHED_FROM = 50  # points of a loss curve from which on a moving average is drawn over it

STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);font:16px/1.55 FONT;-webkit-text-size-adjust:100%}
main,header,footer{max-width:1020px;margin:0 auto;padding:0 24px}
header{padding-top:44px}
.mark{color:var(--soft);font-size:14px;letter-spacing:.02em;margin:0 0 6px}
h1{font-size:32px;line-height:1.2;letter-spacing:-.02em;font-weight:680;margin:0 0 22px;text-wrap:balance}
h2{font-size:20px;letter-spacing:-.01em;font-weight:640;margin:0 0 16px} h2.led{margin-bottom:4px}
h3{font-size:15px;font-weight:640;margin:0 0 10px}
p{margin:0 0 10px;max-width:74ch} .soft{color:var(--soft)}
.verdict{background:var(--panel);border:1px solid var(--line);border-radius:14px;padding:22px 26px 18px}
.verdict p{margin:0;font-size:15px;color:var(--soft);max-width:none}
.verdict .head{font-size:23px;line-height:1.35;letter-spacing:-.012em;font-weight:620;color:var(--ink);
 margin-bottom:10px;text-wrap:pretty}
.verdict .sure{color:var(--ink);font-variant-numeric:tabular-nums;margin-bottom:4px}
section{margin:46px 0 0} section>p{color:var(--soft);margin-bottom:18px}
.row{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:34px 44px;margin:0 0 30px}
figure{margin:0;min-width:0;max-width:560px} figcaption{color:var(--soft);font-size:14px;margin-top:8px}
.single{max-width:480px} .row.three{grid-template-columns:repeat(auto-fit,minmax(min(100%,280px),1fr));gap:34px 28px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(128px,1fr));gap:12px;margin:0 0 30px;padding:0}
.tile{background:var(--panel);border:1px solid var(--line);border-radius:10px;padding:12px 16px;margin:0}
.tile dt{font-size:13px;color:var(--soft)} .tile dd{margin:0;font-size:21px;font-weight:620;letter-spacing:-.01em;
 font-variant-numeric:tabular-nums;overflow-wrap:anywhere}
.scroll{overflow-x:auto;margin:0 0 26px;scrollbar-width:thin;scrollbar-color:var(--edge) transparent;
 --shade:color-mix(in srgb,var(--ink) 26%,transparent);background:
 linear-gradient(to left,var(--paper) 20px,transparent) right/60px 100% no-repeat local,
 linear-gradient(to left,var(--shade),transparent) right/14px 100% no-repeat scroll}
table{border-collapse:separate;border-spacing:0;font-size:14px;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:7px 22px 7px 0;border-bottom:1px solid var(--line);vertical-align:baseline}
th{white-space:nowrap} td.n{white-space:nowrap}
th:first-child,td:first-child{position:sticky;left:0;background:var(--paper);max-width:38vw;white-space:normal;
 overflow-wrap:break-word}
th{font-weight:600;color:var(--soft)} td.n,th.n{text-align:right}
.findings{list-style:none;margin:0 0 26px;padding:0} .findings li{padding:14px 0}
.findings li+li{border-top:1px solid var(--line)}
.findings p{margin:0 0 4px;overflow-wrap:anywhere} .findings .what{font-weight:600} .findings .soft{font-size:14px}
.columns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,340px),1fr));gap:26px 44px}
.columns>div{min-width:0} .columns>div>h3{font-size:16px;padding-bottom:8px;border-bottom:1px solid var(--line);
 margin-bottom:16px}
.row.top{align-items:start} .row.top>div:has(>.group>details[open]){grid-column:1/-1}
 .group>figure{max-width:490px} .row>div{min-width:0} .columns .group{margin-bottom:34px}
details{margin:14px 0 0} summary{cursor:pointer;display:inline-block;background:var(--panel);border-radius:9px;
 border:1px solid var(--line);padding:7px 15px;font-size:14px;font-weight:560} summary:hover{border-color:var(--edge)}
details[open]>summary{margin-bottom:18px} details .row{gap:18px 44px;margin:0}
 details h3{font-size:14px;font-weight:560}
code,pre{font-family:ui-monospace,"SF Mono",SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;font-size:14px}
.commands{list-style:none;margin:0;padding:0}
.commands li{margin:0 0 12px;display:grid;grid-template-columns:minmax(0,1fr) auto;gap:4px 8px;align-items:start}
.commands span{grid-column:1/-1;color:var(--soft);font-size:14px} .commands button{font:inherit;font-size:13px;
 padding:12px;min-width:72px;border-radius:9px;color:var(--soft);background:var(--paper);border:1px solid var(--line)}
.commands button:hover,.commands button:focus-visible{color:var(--ink);border-color:var(--edge)}
.commands pre{margin:0;background:var(--panel);border:1px solid var(--line);
 border-radius:9px;padding:11px 15px;white-space:pre-wrap;overflow-wrap:anywhere}
footer{color:var(--soft);font-size:13px;margin-top:56px;padding-top:16px;padding-bottom:40px}
footer p{max-width:none}
@media (max-width:560px){main,header,footer{padding-left:16px;padding-right:16px}header{padding-top:26px}
 h1{font-size:26px}.verdict{padding:18px 18px 14px}.verdict .head{font-size:20px}section{margin-top:36px}
 th,td{padding-right:12px}.plot{font-size:max(13px,21px - 1.6vw)} .plot .soft{font-size:max(12px,20.3px - 1.6vw)}}
@media print{body{background:#fff}.commands button{display:none}.verdict,.tile,figure,pre{break-inside:avoid}}
""".strip().replace("FONT", plots.FONT)

_SCRIPT = Path(__file__).with_name("copy_button.js").read_text(encoding="utf-8")
_SCRIPT_DIGEST = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode()


class Content(ABC):
    @abstractmethod
    def html(self) -> str: ...


@dataclass(frozen=True)
class Paragraph(Content):
    text: str

    def html(self) -> str:
        return f"<p>{escape(self.text)}</p>"


@dataclass(frozen=True)
class StatTiles(Content):
    """A row of values with their names on a page: (name, value) each."""

    items: tuple[tuple[str, str], ...]

    def html(self) -> str:
        return '<dl class="tiles">' + "".join(
            f'<div class="tile"><dt>{escape(k)}</dt><dd>{escape(v)}</dd></div>' for k, v in self.items) + "</dl>"


@dataclass(frozen=True)
class Figures(Content):
    """Figures with titles and captions, side by side on a page: (title, figure, caption) each."""

    items: tuple[tuple[str, Figure, str], ...]

    def html(self) -> str:
        each = "".join(
            "<figure>" + (f"<h3>{escape(title)}</h3>" if title else "") + figure.svg
            + (f"<figcaption>{escape(caption)}</figcaption>" if caption else "") + "</figure>"
            for title, figure, caption in self.items)
        kind = {1: " single", 3: " three"}.get(len(self.items), "")
        return f'<div class="row{kind}">{each}</div>'


@dataclass(frozen=True)
class Table(Content):
    """A table on a page. Numbers are right-aligned, and a column without any text is left out."""

    header: tuple[str, ...]
    rows: tuple[tuple[str | float | Interval, ...], ...]

    def html(self) -> str:
        def cell(tag, value, number):
            return f'<{tag}{" class=n" if number else ""}>{escape(_format_cell(value))}</{tag}>'

        filled = [i for i in range(len(self.header)) if not i or not self.rows or any(r[i] != "" for r in self.rows)]
        numbers = {i: bool(self.rows) and all(not isinstance(r[i], str) for r in self.rows) for i in filled}
        lines = ["".join(cell("td", r[i], numbers[i]) for i in filled) for r in self.rows]
        head = "".join(cell("th", self.header[i], numbers[i]) for i in filled)
        return (f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>'
                + "".join(f"<tr>{line}</tr>" for line in lines) + "</tbody></table></div>")


@dataclass(frozen=True)
class Columns(Content):
    """Page contents with titles, side by side where there is room: (title, contents) each."""

    items: tuple[tuple[str, tuple[Content, ...]], ...]

    def html(self) -> str:
        return '<div class="columns">' + "".join(
            f"<div><h3>{escape(title)}</h3>{''.join(c.html() for c in contents)}</div>"
            for title, contents in self.items) + "</div>"


@dataclass(frozen=True)
class SideBySide(Content):
    """Page contents without titles, side by side where there is room."""

    items: tuple[Content, ...]

    def html(self) -> str:
        return f'<div class="row top">{"".join(f"<div>{c.html()}</div>" for c in self.items)}</div>'


@dataclass(frozen=True)
class Group(Content):
    """A figure on a page, if there is one, with its caption and further contents."""

    title: str
    figure: Figure | None
    caption: str
    contents: tuple[Content, ...] = ()

    def html(self) -> str:
        return (f'<div class="group"><figure><h3>{escape(self.title)}</h3>{self.figure.svg if self.figure else ""}'
                f"<figcaption>{_unicode_minus(escape(self.caption))}</figcaption></figure>"
                f"{''.join(c.html() for c in self.contents)}</div>")


@dataclass(frozen=True)
class Details(Content):
    """Page contents that are folded until the reader opens them."""

    title: str
    contents: tuple[Content, ...]

    def html(self) -> str:
        return (f"<details><summary>{escape(self.title)}</summary>"
                f"{''.join(c.html() for c in self.contents)}</details>")


@dataclass(frozen=True)
class Commands(Content):
    """Commands on a page, with what each does: (command, what it does) each."""

    items: tuple[tuple[str, str], ...]

    def html(self) -> str:
        return '<ol class="commands">' + "".join(
            f"<li><span>{escape(what)}</span><pre>{escape(command)}</pre></li>"
            for command, what in self.items) + "</ol>"


@dataclass(frozen=True)
class Remedies(Content):
    """Findings and remedies on a page: (what was found, what to do, where) each, below each other."""

    items: tuple[tuple[str, str, str], ...]

    def html(self) -> str:
        return '<ul class="findings">' + "".join(
            f'<li><p class="what">{escape(what)}</p><p>{escape(remedy)}</p><p class="soft">{escape(place)}</p></li>'
            for what, remedy, place in self.items) + "</ul>"


@dataclass(frozen=True)
class Section:
    title: str
    contents: tuple[Content, ...]
    lead: str = ""

    def html(self) -> str:
        lead = f"<p>{escape(self.lead)}</p>" if self.lead else ""
        led = ' class="led"' if lead else ""
        return f"<section><h2{led}>{escape(self.title)}</h2>{lead}{''.join(c.html() for c in self.contents)}</section>"


def write_page(path: Path | str, title: str, sections: Sequence[Section], *, verdict: Sequence[str] = (),
               footer: str = "") -> Path:
    """Writes an HTML page that needs no other file.

    Args:
        verdict: Up to three sentences for the top: the result, its certainty, and what it is about (see
            `verdict_parts`).
    """
    kinds = ("head", "sure", "about")
    verdict_html = "".join(f'<p class="{kind}">{_unicode_minus(escape(sentence))}</p>'
                           for kind, sentence in zip(kinds, verdict, strict=False) if sentence)
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # Nothing from elsewhere, and no other script: a page may hold the names that strangers gave their columns.
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none';style-src 'unsafe-inline';"
        f"script-src 'sha256-{_SCRIPT_DIGEST}';img-src data:\">"
        f"<title>{escape(title)}</title><style>{plots.STYLE}\n{STYLE}</style></head><body>"
        f'<header><p class="mark">understudy</p><h1>{escape(title)}</h1>'
        + (f'<div class="verdict">{verdict_html}</div>' if verdict_html else "") + "</header>"
        f"<main>{''.join(s.html() for s in sections)}</main>"
        f"<footer><p>{escape(footer)}{' ' if footer else ''}Made by understudy {escape(__version__)}; one file, "
        f"nothing is loaded from elsewhere.</p></footer><script>{_SCRIPT}</script></body></html>\n")
    write_text(path, text)
    return Path(path)


# -- what there is to tell ----------------------------------------------------------------------------------------


def write_report(path: Path | str, *, runs: Mapping[str, Evaluation], env: Env | None = None,
                 training: Mapping[str, TrainingCurves] | None = None,
                 behavior: Mapping[str, BehaviorMetrics] | None = None, commands: Sequence[tuple[str, str]] = (),
                 gap: str = "") -> Path:
    """Writes a page about one or two policies.

    Args:
        commands: What to do next: pairs of a command and what it does.
        gap: The generalization gap of the first, in words.
    """
    names, judged = list(runs), list(runs.values())
    verdict = verdict_parts(judged[0], judged[1] if len(judged) > 1 else None, (names[0], names[-1]))
    sections = [closed_loop_section(runs, env), *camera_sections(runs)]
    if gap:
        sections.append(Section("Generalization gap", (Paragraph(_unicode_minus(gap)),)))
    if alarms := tuple(Paragraph(line) for e in judged for line in e.alarms.splitlines()):
        sections.append(Section("Alarms", alarms))
    if behavior:
        sections += [*failure_sections(behavior), behavior_section(behavior)]
    if training:
        sections.append(training_section(training))
    sections += next_step_section(behavior or {}, commands)
    return write_page(path, f"{' and '.join(names)} in {judged[0].env}", sections, verdict=verdict,
                      footer=method_notes(judged))


def method_notes(judged: Sequence[Evaluation]) -> str:
    """Returns the names of the intervals and tests on the page, for its footer."""
    success = all(e.success is not None for e in judged)
    used = ["Success: Clopper–Pearson intervals."] if judged[0].success is not None else ["Returns: bootstrap."]
    if len(judged) > 1:
        used.append("Difference on the same starts: " + (
            "Tango's score interval and the exact McNemar p." if success else "bootstrap and a sign-flip test."))
    return " ".join(used)


def _trial_contents(runs: Mapping[str, Evaluation]) -> tuple[Content, ...]:
    """Builds a table of the success in each trial, and the gain from first to last. Empty if there are no trials."""
    evaluations = {capitalize_name(name): e for name, e in runs.items() if e.trials is not None}
    rates = zip(*(e.trials or () for e in evaluations.values()), strict=True)
    rows = tuple((str(number), *row) for number, row in enumerate(rates, 1))
    gains = tuple(Paragraph(_unicode_minus(f"{name}: {gain}")) for name, e in evaluations.items()
                  if (gain := describe_trial_gain(e)))
    return (Table(("trial", *evaluations), rows), *gains) if rows else ()


def trajectory_figures(runs: Mapping[str, Evaluation], env: Env | None) -> list[tuple[str, Figure, str]]:
    """Draws the trajectories of each policy on the same part of the map. Empty if the environment has no map."""
    if not isinstance(env, PlanarMap):
        return []
    plane = plots.visible_area(env.map(), (e for run in runs.values() for e in run.episodes))
    return [(f"{capitalize_name(name)}: {_success_count(e)}", plots.trajectories(e.episodes, plane), "")
            for name, e in runs.items()]


def closed_loop_section(runs: Mapping[str, Evaluation], env: Env | None = None) -> Section:
    """Builds the section on what the policies did: trajectories, success rates, and the paired difference."""
    first = next(iter(runs.values()))
    n, ways, figures, table = len(first.episodes), trajectory_figures(runs, env), [], ()
    if first.success is not None:
        rows = [(capitalize_name(name), e.success, _success_count(e))
                for name, e in runs.items() if e.success is not None]
        figures.append(("Success rate", plots.success_bars(rows),
                        f"Fraction of {n} episodes; the line is the {first.success.level:.0%} interval."))
    else:
        table = (Table(("", "mean return", "low", "high"), tuple(
            (capitalize_name(name), e.returns.estimate, e.returns.low, e.returns.high) for name, e in runs.items())),)
        figures += [(f"{capitalize_name(name)}: return", plots.histogram(e.episode_returns, "return of an episode"), "")
                    for name, e in runs.items()]
    (a, x), *others = runs.items()
    for b, y in others:
        p = compare(x, y)
        figures.append(
            (
                f"{capitalize_name(a)} minus {b}, on the same starts",
                plots.difference_bar(a, b, p.difference, p.low, p.high, p.level, percent=p.metric == "success"),
                f"{'Percentage points' if p.metric == 'success' else 'Return'}; {p.level:.0%} interval "
                f"{_format_signed(p.low, p.metric)} to {_format_signed(p.high, p.metric)}, "
                f"{format_p_value(p.p_value)}.",
            ))
    rows = ((*ways, *figures),) if len(runs) == 1 else (ways, figures)
    contents = (*(Figures(tuple(r)) for r in rows if r), *table, *_trial_contents(runs))
    metadata = env.metadata if env is not None else {}
    what = f" Success: {metadata['success']}." if metadata.get("success") else ""
    if metadata.get("optimum") is not None:
        what += f" The best possible success here is {metadata['optimum']:.0%}."
    lines = f" {LINES}" if ways else ""
    return Section("Acting on its own" if len(runs) == 1 else "Acting on their own", contents,
                   f"{n} episodes in {first.env}, each decided by its number and seed {first.seed}"
                   f"{('', ', the same for both', ', the same for all')[min(len(runs), 3) - 1]}.{what}{lines}")


def camera_sections(runs: Mapping[str, Evaluation]) -> list[Section]:
    """Builds the camera sections: the first failure and the first success of each policy."""
    rows = []
    for name, e in runs.items():
        ended = [plots._outcome(episode) for episode in e.episodes]
        chosen = sorted({ended.index(w) for w in (False, True, None) if w in ended})
        words = {True: "succeeds", False: "does not succeed", None: "ended"}
        strips = [
            (f"{capitalize_name(name)}: episode {i} {words[ended[i]]}", film_strip(e.episodes[i]), "") for i in chosen
        ]
        rows.append(Figures(tuple((title, figure, more) for title, figure, more in strips if figure is not None)))
    rows = [row for row in rows if row.items]
    return [Section("What it saw" if len(runs) == 1 else "What they saw", tuple(rows),
                    "The first camera's frames, evenly over an episode: the first that succeeds, and the first that "
                    "does not.")] if rows else []


def behavior_section(runs: Mapping[str, BehaviorMetrics]) -> Section:
    """Builds the section on behavior: smoothness, speed, distances, modes and latency of each policy."""
    names, each = list(runs), list(runs.values())
    metrics = {m.key: m for b in each for m in b.metrics}
    references = {m.key: m.demonstrations for b in each for m in b.metrics if m.demonstrations is not None}
    rows = []
    for key, metric in metrics.items():
        policy_metrics = [next((m for m in b.metrics if m.key == key), None) for b in each]
        rows.append((f"{metric.name} ({metric.unit})" if metric.unit else metric.name,
                     *(math.nan if m is None else m.value for m in policy_metrics),
                     *([references[key].estimate if key in references else math.nan] if references else []),
                     metric.better_direction or "–"))
    titles = names if len(runs) > 1 else ["this policy"]
    header = ("mean of an episode", *titles, *(["demonstrations"] if references else []), "better")
    contents: list[Content] = [Table(header, tuple(rows))] if rows else []
    if items := [_modes_figure(name if len(runs) > 1 else "", b.modes) for name, b in runs.items() if b.modes]:
        contents.append(Figures(tuple(items)))
    words = [tuple(map(Paragraph, b.describe())) for b in each]
    contents.extend(words[0] if len(runs) == 1 else [Columns(tuple(zip(names, words, strict=True)))])
    return Section("Behavior metrics", tuple(contents),
                   "In brackets: the 95% interval, by bootstrap over episodes. Deviations are standard deviations of "
                   "the demonstrations, where they are known, else of these episodes. SPARC and LDLJ measure "
                   "how smooth a movement is: every halt and tremble lowers SPARC (about −1.4 at best), and abrupt "
                   "changes of the speed lower LDLJ (−5.3 at best).")


def _modes_figure(name: str, m: BehaviorModes) -> tuple[str, Figure, str]:
    references, total = m.demonstrations, max(sum(m.counts.values()), 1)
    ways = sorted({*m.counts, *(references or ())})
    figure = plots.bars([(w, 100 * m.counts.get(w, 0) / total,
                          100 * references.get(w, 0) / sum(references.values()) if references else None) for w in ways],
                        "percent of its successes", "percent of the demonstrations" if references else "")
    return f"Ways {name} goes" if name else "Ways it goes", figure, f"As told by {m.source}."


def failure_sections(runs: Mapping[str, BehaviorMetrics]) -> list[Section]:
    """Builds the section on groups of similar failures, with their episodes next to a success."""
    groups = [_failure_groups(b) for b in runs.values()]
    if not any(groups):
        return []
    pictures = [p for b in runs.values() for p in b.failure_figures]
    lead = "Failed episodes whose trajectories are alike, the largest group first."
    lead += " Thin gray lines are successes." if any(p.trajectories is not None for p in pictures) else ""
    lead += " Open a group to see its episodes next to one that succeeds." if any(p.strips for p in pictures) else ""
    if len(runs) == 1:
        return [Section("How it fails", (SideBySide(groups[0]),), lead)]
    titles = [f"{capitalize_name(name)} fails in {sum(map(len, b.failures))} episodes" if b.failures else
              f"{capitalize_name(name)} does not fail" for name, b in runs.items()]
    return [Section("How they fail", (Columns(tuple(zip(titles, groups, strict=True))),), lead)]


def _failure_groups(b: BehaviorMetrics) -> tuple[Content, ...]:
    total, out = sum(map(len, b.failures)), []
    pictures = b.failure_figures or (FailurePictures(None),) * len(b.failures)
    for i, (g, p) in enumerate(zip(b.failures, pictures, strict=True), 1):
        strips = [(f"Episode {n} fails", strip, "") for n, strip in p.strips]
        if p.success_strip is not None:
            number, strip = p.success_strip
            strips.insert(0, (f"For comparison, episode {number} succeeds from the most similar start", strip, ""))
        episodes_text = f"its {len(g)} episodes" if len(g) > 1 else "its episode"
        if len(p.strips) < len(g):
            episodes_text = f"{len(p.strips)} of its {len(g)} episodes"
        out.append(Group(f"Group {i}: {len(g)} of {total}", p.trajectories, f"{capitalize_first(g.describe())}.",
                         (Details(f"Show {episodes_text}", (Figures(tuple(strips)),)),) if p.strips else ()))
    return tuple(out)


def next_step_section(runs: Mapping[str, BehaviorMetrics], commands: Sequence[tuple[str, str]]) -> list[Section]:
    """Builds the section on what to do next: what to record against the largest group of failures, and commands.

    Args:
        commands: Pairs of a command and what it does.

    Returns:
        The section. Empty if there is nothing to say.
    """
    contents: list[Content] = []
    for name, b in runs.items():
        if b.failures:
            which = f"{capitalize_name(name)}, g" if len(runs) > 1 else "G"
            contents.append(Paragraph(f"{which}roup 1 of the failures: {b.failures[0].remedy(b.seed)}"))
    if commands:
        contents.append(Commands(tuple(commands)))
    return [Section("What to do next", tuple(contents))] if contents else []


def capitalize_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def _is_positive(series) -> bool:
    """Returns whether all values are positive, as a logarithmic axis needs."""
    return all(value > 0 for _, values in series.values() for value in values)


def training_section(runs: Mapping[str, TrainingCurves]) -> Section:
    """Builds the section on training: loss, error on held-out episodes and, if it was measured, success."""
    items = training_figures(runs)
    return Section("Training", (Figures(tuple(items)),) if items else (Paragraph("Nothing was measured."),))


def training_figures(runs: Mapping[str, TrainingCurves], mark_best: bool = False) -> list[tuple[str, Figure, str]]:
    """Returns (title, figure, caption) of the loss, the held-out error and the score, if they were measured."""
    best = {name: run.best for name, run in runs.items() if mark_best and run.best is not None}
    ring = " A ring marks the best checkpoint." if best else ""

    def series(key):
        return {name: (c.steps, c.values) for name, run in runs.items() if (c := run.curves.get(key)) is not None}
    items, updates, names = [], Axis("updates", low=0), list(runs)
    if loss := series(LOSS):
        smooth = {name: (c.steps, c.values) for name in loss
                  if len(runs[name].curves[LOSS].values) >= SMOOTHED_FROM for c in [runs[name].curves[LOSS].smoothed()]}
        figure = plots.curves(loss, updates, Axis("loss", log=_is_positive(loss)), smooth=smooth, names=names)
        items.append(("Training loss", figure,
                      " ".join([*(["The line is a moving average."] if smooth else []),
                                *(["Losses of different heads are not comparable."] if len(loss) > 1 else [])])))
    if held_out_errors := series(HELD_OUT_ERROR):
        figure = plots.curves(held_out_errors, updates, Axis("energy score", low=0), dots=True, marks=best, names=names)
        items.append(("Error on held-out episodes", figure, "Energy score, comparable between heads; less is better."
                      + "".join(f" The errors of {name} are of {run.error_of}, and cannot be compared."
                                for name, run in runs.items() if run.error_of != "actions") + ring))
    if score := series(SCORE):
        values = [v for _, ys in score.values() for v in ys]
        axis = Axis("score", 0, 1) if min(values) >= 0 and max(values) <= 1 else Axis("score")
        figure = plots.curves(score, updates, axis, dots=True, marks=best, names=names)
        items.append(("Score in rollouts during training", figure, f"On starts that no evaluation uses.{ring}"))
    return items


def demonstrations_section(data: Dataset, env: Env | None = None) -> Section:
    """Builds the section on the demonstrations that the policies learned from."""
    lengths, features = [len(e) for e in data], data.features()
    tiles = [("episodes", f"{len(data):,}"), ("steps", f"{data.steps:,}"),
             ("per second", f"{data.fps:g}" if data.fps else "unknown")]
    well = [w for e in data if (w := plots._outcome(e)) is not None]
    if len(well) == len(data):
        tiles.append(("succeed", f"{sum(well)} of {len(well)}"))
    if tasks := task_counts(data):
        tiles.append(("tasks", str(len(tasks))))
    figures = []
    if isinstance(env, PlanarMap) and env.map()["path"][0] in features:
        figures.append(("What was shown", plots.trajectories(data, plots.visible_area(env.map(), data)), ""))
    figures.append(("How long the episodes are", plots.histogram(lengths, "steps"), ""))
    rows = tuple(
        (
            name,
            f.kind if f.kind in ("image", "text", "string") else f"{f.kind}, {f.dtype}",
            " × ".join(map(str, f.shape)) or "1",
            ", ".join(f.names or ()) or "–",
            f.unit or "–",
        )
        for name, f in features.items()
        if role(name) in ("observation", "action"))
    return Section("Demonstrations", (StatTiles(tuple(tiles)), Figures(tuple(figures)),
                                      Table(("column", "kind", "shape", "components", "unit"), rows)))


def write_prediction_report(prediction: ActionPrediction, path: Path | str,
                            commands: Sequence[tuple[str, str]] = (), value: str = "") -> Path:
    """Writes a page about a policy that was evaluated on recorded episodes."""
    of_value = [Section("What it is worth", (), value)] if value else []
    sections = [*prediction_sections(prediction), *of_value, *next_step_section({}, commands)]
    return write_page(path, f"Judged on recorded episodes of {Path(prediction.name).name}", sections,
                      verdict=(prediction.headline(), prediction.baselines().strip(), prediction.note),
                      footer="Intervals: bootstrap over episodes.")


def prediction_sections(prediction: ActionPrediction) -> list[Section]:
    """Builds the sections on predicted actions: their errors next to errors of simple guesses, chunks, and figures."""
    return [_component_section(prediction), *_plan_section(prediction), _error_section(prediction),
            _distance_section(prediction)]


def _component_section(prediction: ActionPrediction) -> Section:
    predicted = prediction.predicted
    unit = f" ({prediction.unit})" if prediction.unit else ""
    rows = tuple((c.name, c.policy, c.average, c.last_action, "never changes" if c.is_constant else math.nan
                  if c.r2 is None else c.r2) for c in prediction.by_component)
    lead = (f"The fraction of wrong {predicted}s" if prediction.is_discrete else f"Mean absolute error{unit}")
    return Section(f"How far the predicted {predicted}s are off",
                   (Table(("component", "off by", "average", "last one", "R²"), rows),),
                   f"{lead} of the policy, of always predicting the average, and of repeating the last one. R² is 1 "
                   "for a perfect prediction and 0 for always the average.")


def _plan_section(prediction: ActionPrediction) -> list[Section]:
    kinds = ("middling", "largest", "smallest")
    items = tuple(item for fans, kind in zip(prediction.plan_samples, kinds, strict=False)
                  for item in _plan_fan_figures(fans, kind, prediction.by_dimension))
    if not items:
        return []
    has_dots = all(plots.is_single_step([(f.step, f.plans) for f in fans.plan_samples])
                   for fans in prediction.plan_samples)
    return [Section("What it would do", (Figures(items),), "The strong line is what was recorded; " + (
        "the dots are what the policy might do at the circles." if has_dots else
        "the fans are what the policy might do from the circles on."))]


def _error_section(prediction: ActionPrediction) -> Section:
    """Builds the section on errors by step ahead, time and component, and on where the policy is least sure."""
    predicted = prediction.predicted
    unit = f" ({prediction.unit})" if prediction.unit else ""
    has_spread, spread = prediction.samples > 1, "spread of its samples"

    def by(parts: Sequence[ErrorBreakdown], x_name: str, middle) -> Figure:
        at = [middle(p.name) for p in parts]
        series = {"error": (at, [p.error for p in parts])}
        if has_spread:
            series[spread] = (at, [p.spread for p in parts])
        return plots.curves(series, Axis(x_name), Axis(f"error{unit}", low=0), dots=True)
    by_component = plots.bars([(p.name, p.error, p.spread if has_spread else None) for p in prediction.by_dimension],
                              f"error{unit}", spread if has_spread else "")
    figures = Figures((
        ("By step ahead in the chunk", by(prediction.by_chunk_step, "steps ahead", float), ""),
        ("By time in the episode", by(prediction.by_time, "percent of the episode",
                                      lambda t: float(t.split("-")[0]) + 5), ""),
        (f"By component of the {predicted}", by_component, "Root mean squares over steps and samples.")))
    rows = tuple((m.episode, m.step, m.spread) for m in prediction.uncertain_steps)
    steps = (Details("Show where it is least sure", (Table(("episode", "step", "spread"), rows),)),) if rows else ()
    return Section("Where it is off, and where unsure", (figures, *steps),
                   "Error: of one sample. Spread: how far its samples are from their mean. Where a policy is as unsure "
                   "as it should be, the error is 1.4 times the spread." if has_spread else
                   "This policy gives one answer, so it cannot say where it is unsure.")


def _distance_section(prediction: ActionPrediction) -> Section:
    """Builds the section on the energy score, which compares policies that predict a distribution."""
    distances = {"of a sample, on average": prediction.mean_error, "of the nearest sample": prediction.best_error,
                 "energy score": prediction.energy_score}
    table = Table(("distance from the recorded chunk", "estimate", "low", "high"),
                  tuple((name, v.estimate, v.low, v.high) for name, v in distances.items()))
    coverage = () if prediction.coverage is None else (Paragraph(
        f"{prediction.coverage:.0%} of the recorded values lie between the lowest and the highest sample; "
        f"{prediction.expected_coverage:.0%} would, if the policy were exactly as unsure as it should be."),)
    return Section("To compare with other policies", (table, *coverage, Details(
        "Show this in words", (Paragraph(prediction.describe_distribution()),))),
        "Distances are root mean squares over a chunk, in units of each component's standard deviation in the data. "
        "The energy score is the first line minus half of the distance between two samples. Less is better, and a "
        "policy that knows several ways is not punished for those that were not recorded.")


def _plan_fan_figures(fans: EpisodePlanSamples, kind: str, dimensions: Sequence[ErrorBreakdown]):
    for i in range(min(fans.actions.shape[1], MAX_FANS)):
        name, chunks = dimensions[i].name, [(f.step, f.plans) for f in fans.plan_samples]
        yield (f"Episode {fans.episode}: {name}", plots.plan_fan(fans.actions, chunks, i, name),
               f"The episode of {kind} error." if i == 0 else "")


def _success_count(e: Evaluation) -> str:
    if e.successes is not None:
        return f"{int(e.successes.sum())} of {len(e.episodes)}"
    return f"mean return {e.returns.estimate:.4g}"


def _format_signed(v: float, of: str) -> str:
    return f"{100 * v:+.1f}".replace("-", "−") if of == "success" else f"{v:+.4g}".replace("-", "−")


def _unicode_minus(text: str) -> str:
    return re.sub(r"(?<![\w&#])-(?=\d)", "−", text)


def _format_cell(value) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, Interval):
        ends = f" [{_format_cell(value.low)}, {_format_cell(value.high)}]" if math.isfinite(value.low) else ""
        return f"{_format_cell(value.estimate)}{ends}"
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    if not math.isfinite(value):
        return "–"
    return (f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:z.3g}").replace("-", "−")
