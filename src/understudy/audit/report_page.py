"""An audit as one HTML page that opens from disk: the findings, the episodes to look at, and the scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core import UserError, role
from ..data.column_selection import open_columns
from ..data.episode import Dataset, Episode
from ..data.formats import preview_dataset
from ..evaluate.episode_video import film_strip
from ..evaluate.plots import Figure, curves, histogram
from ..evaluate.report import Commands, Content, Figures, Paragraph, Section, Table, write_page
from .base import AuditReport
from .purposes import Ranking, typical_episodes
from .text import format_list, pluralize

_MAX_FINDINGS = 200  # findings of one severity that are listed
_N_EXAMPLES = 3  # episodes at each end
_COMPONENTS = 4


def write_audit_page(file: Path | str, path: Path | str, report: AuditReport, mapping: Path | None = None, *,
                     rankings: Sequence[Ranking] = (), **options) -> Path:
    """Writes an audit as an HTML page.

    Args:
        file: The page to write.
        path: The data set that was audited.
        report: The result of `audit`.
        mapping: For bags, a mapping of topics to columns instead of the proposed one.
        rankings: Episodes to look at, of `rank_episodes`.
        options: columns (see `open_columns`), and options of the format, as for `audit`.

    Returns:
        The path of the page.

    Raises:
        UserError: There is already a file at `file`.
    """
    if Path(file).exists():
        raise UserError("there is already a file", where=file, hint="choose another name, or remove it first")
    try:
        data = open_columns(path, open=preview_dataset, mapping=mapping, **options)
    except UserError:
        data = Dataset([])
    kinds = {s: [f for f in report.findings if f.severity == s] for s in ("error", "warning", "note")}
    sections = [_findings_section(kind, found) for kind, found in kinds.items() if found]
    if not report.findings:
        sections.append(Section("Findings", (Paragraph("None: no check found anything."),)))
    if len(data):
        sections += [*(_ranking_section(data, ranking) for ranking in rankings), *_typical_section(data, report),
                     _scores_section(data, report)]
    told = "No errors were found." if report.ok else "Errors were found."
    about = (
        f"{pluralize(len(data), 'episode')}, {pluralize(data.steps, 'step')}"
        if len(data)
        else "It could not be opened."
    )
    return write_page(file, f"Audit of {Path(path).name or path}", sections, verdict=(
        told, ", ".join(pluralize(len(found), kind) for kind, found in kinds.items()), about))


def _findings_section(kind, found) -> Section:
    lead = {"error": "The files contradict themselves, or a reader would return what was never recorded.",
            "warning": "What deserves a second look before anything is learned from it.",
            "note": "What is good to know."}[kind]
    rows = tuple((f.code, str(f.where), f.message, f.remedy) for f in found[:_MAX_FINDINGS])
    more = (
        (Paragraph(f"And {len(found) - _MAX_FINDINGS} more: understudy audit --json lists all."),)
        if len(found) > _MAX_FINDINGS
        else ()
    )
    table = Table(("code", "where", "what was found", "what to do"), rows)
    return Section(f"{kind.capitalize()}s", (table, *more), lead)


def _scores_section(data, report) -> Section:
    each, equal = [("Steps", histogram(data.lengths, "steps of an episode"), "")], []
    for name, values in report.scores.items():
        values = np.asarray(values, float)
        if np.isfinite(values).any() and np.nanmin(values) == np.nanmax(values):
            equal.append(name)
        elif np.isfinite(values).any():
            order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
            order = order[:int(np.isfinite(values).sum())]
            each.append(
                (
                    name,
                    histogram(values, name),
                    f"lowest: episodes {format_list(order[:_N_EXAMPLES])}; highest: "
                    f"{format_list(order[::-1][:_N_EXAMPLES])}",
                )
            )
    words = (Paragraph(f"The same for all episodes: {', '.join(equal)}."),) if equal else ()
    return Section("Scores", (Figures(tuple(each)), *words), "One number an episode; higher is better."
                   if len(each) > 1 else "")


def _ranking_section(data: Dataset, ranking: Ranking) -> Section:
    """The episodes that are listed for a purpose: why, what they look like, and the command that leaves them out."""
    rows = tuple((episode.episode, evidence.text) for episode in ranking.episodes for evidence in episode.evidence)
    shown = [e.episode for e in ranking.episodes if e.episode < len(data)][:_N_EXAMPLES]
    return Section(ranking.name.capitalize(), (
        Table(("episode", "evidence"), rows[:_MAX_FINDINGS]), *_episode_figures(data, shown),
        *([Commands(((ranking.command, "A view without these episodes:"),))] if ranking.command else [])),
        ranking.meaning)


def _typical_section(data: Dataset, report: AuditReport) -> list[Section]:
    """Episodes that are most like the others, to compare the listed ones with."""
    typical = typical_episodes(report.scores, min(_N_EXAMPLES, len(data) // 2))
    return [Section("Most like the others", _episode_figures(data, typical), "To compare with. Highest typicality.")
            ] if typical else []


def _episode_figures(data, numbers) -> tuple[Content, ...]:
    items = []
    for e in map(int, numbers):
        episode = data[e]
        told = f"{pluralize(len(episode), 'step')}" + (f", {'succeeded' if episode.metadata['success'] else 'failed'}"
                                                       if isinstance(episode.metadata.get("success"), bool) else "")
        try:
            film = film_strip(episode)
        except UserError:
            film = None  # its frames are damaged: a finding says so
        if film is not None:
            items.append((f"Episode {e}", film, told))
        for name in sorted(episode.steps, key=lambda n: (role(n) != "action", n != "observation.state")):
            if role(name) not in ("action", "observation"):
                continue
            if (line := _line_figure(episode, name)) is not None:
                items.append((f"Episode {e}" if film is None else "", line, f"{name}; {told}"))
                break
    return (Figures(tuple(items)),) if items else ()


def _line_figure(episode: Episode, name: str) -> Figure | None:
    try:
        values = np.asarray(episode.steps[name])
    except (KeyError, UserError):
        return None
    if values.dtype.kind not in "biuf" or values.ndim > 2:
        return None
    values = values.reshape(len(values), -1)[:len(episode)].astype(float)
    names = episode.features()[name].names or range(values.shape[1])
    return curves({str(n): (np.arange(len(values)), values[:, i]) for i, n in
                   zip(range(min(_COMPONENTS, values.shape[1])), names, strict=False)}, "step", name)
