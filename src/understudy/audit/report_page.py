"""An audit as one HTML page that opens from disk: the findings, the episodes to look at, and the scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..core import UserError, role
from ..data.episode import Dataset, Episode
from ..data.formats import preview_dataset
from ..data.formats.parts.column_names import format_list
from ..data.opening.column_selection import open_columns
from ..evaluate.episode_video import film_strip
from ..evaluate.plots import Axis, Figure, curves, histogram
from ..evaluate.report import Commands, Content, Details, Figures, Paragraph, Remedies, Section, Table, write_page
from ..hints import pluralize
from .base import AuditReport
from .purposes import Ranking, typical_episodes
from .scores import SCORE_MEANINGS

_MAX_FINDINGS = 200  # findings of one severity that are listed
_N_EXAMPLES = 3  # episodes at each end
_COMPONENTS = 4


def write_audit_page(file: Path | str, path: Path | str, report: AuditReport, mapping: Path | None = None, *,
                     rankings: Sequence[Ranking] = (), **options) -> Path:
    """Writes an audit as an HTML page.

    Args:
        mapping: For bags, a mapping of topics to columns instead of the proposed one.
        options: columns (see `open_columns`), and options of the format, as for `audit`.
    """
    if Path(file).exists():
        raise UserError("there is already a file", where=file, hint="choose another name, or remove it first")
    try:
        data = open_columns(path, open=preview_dataset, mapping=mapping, **options)
    except UserError:
        data = Dataset([])
    kinds = {s: [f for f in report.findings if f.severity == s] for s in ("error", "warning", "note")}
    sections = [_findings_section(kind, findings) for kind, findings in kinds.items() if findings]
    if not report.findings:
        sections.append(Section("Findings", (Paragraph("None: no check found anything."),)))
    if len(data):
        sections += [*(_ranking_section(data, ranking) for ranking in rankings), *_typical_section(data, report),
                     _scores_section(data, report)]
    head = _headline(kinds, rankings)
    about = "It could not be opened."
    if len(data):
        about = f"{pluralize(len(data), 'episode')}, {pluralize(data.steps, 'step')}"
    return write_page(file, f"Audit of {Path(path).name or path}", sections, verdict=(
        head, ", ".join(pluralize(len(findings), kind) for kind, findings in kinds.items()), about))


def _headline(kinds, rankings: Sequence[Ranking]) -> str:
    """Builds the headline: whether the data can be trained on, and what to look at first."""
    if kinds["error"]:
        return "Errors were found. Repair these data before you train on them."
    if kinds["warning"]:
        return "No errors were found. Read the warnings before you train on these data."
    if rankings:
        return "No errors were found. Look at the episodes below before you train on these data."
    return "No errors were found, and no episode is far from the others: you can train on these data."


def _findings_section(kind, findings) -> Section:
    lead = {"error": "The files contradict themselves, or a reader would return what was never recorded.",
            "warning": "Look at these before you train on the data.",
            "note": "These need no change, but may explain a result."}[kind]
    items = tuple((f.message, f"What to do: {f.remedy}", ", ".join(filter(None, (str(f.where), f.code))))
                  for f in findings[:_MAX_FINDINGS])
    content: list[Content] = [Remedies(items)]
    if (n_more := len(findings) - _MAX_FINDINGS) > 0:
        content.append(Paragraph(f"And {n_more} more: understudy audit --json lists all."))
    return Section(f"{kind.capitalize()}s", tuple(content), lead)


def _scores_section(data, report) -> Section:
    """Builds the section with the lengths of the episodes and the table of scores with histograms."""
    rows, figures, equal = [], [], []
    for name, values in report.scores.items():
        values = np.asarray(values, float)
        if np.isfinite(values).any() and np.nanmin(values) == np.nanmax(values):
            equal.append(name)
        elif np.isfinite(values).any():
            order = np.argsort(np.where(np.isfinite(values), values, np.inf), kind="stable")
            order = order[:int(np.isfinite(values).sum())]
            rows.append((name, SCORE_MEANINGS.get(name, ""), format_list(order[:_N_EXAMPLES]),
                         format_list(order[::-1][:_N_EXAMPLES])))
            figures.append((name, histogram(values, name), ""))
    lengths = Figures((("How long the episodes are", histogram(data.lengths, "steps of an episode"), ""),))
    if not rows:
        return Section("Episodes", (lengths,))
    words = (Paragraph(f"The same for all episodes: {', '.join(equal)}."),) if equal else ()
    table = Table(("score", "a high score means", "lowest", "highest"), tuple(rows))
    return Section("Scores", (lengths, table, *words, Details("Show the scores of all episodes", (
        Figures(tuple(figures)),))), "A score rates each episode in one respect. The table has the episodes with the "
        "lowest and the highest scores. Look at them before you leave any out: a low score is not always a fault.")


def _ranking_section(data: Dataset, ranking: Ranking) -> Section:
    """Builds the section of the episodes listed for one purpose: why, what they look like, how to leave them out."""
    rows = tuple((episode.episode, evidence.text) for episode in ranking.episodes for evidence in episode.evidence)
    examples = [e.episode for e in ranking.episodes if e.episode < len(data)][:_N_EXAMPLES]
    return Section(ranking.name.capitalize(), (
        Table(("episode", "evidence"), rows[:_MAX_FINDINGS]), *_episode_figures(data, examples),
        *([Commands(((ranking.command, "A view without these episodes:"),))] if ranking.command else [])),
        ranking.meaning)


def _typical_section(data: Dataset, report: AuditReport) -> list[Section]:
    """Builds the section of typical episodes, to compare the listed ones with."""
    lead = "Usual episodes, to compare others with. Their states and actions are close to those of other episodes."
    typical = typical_episodes(report.scores, min(_N_EXAMPLES, len(data) // 2))
    return [Section("Most like the others", _episode_figures(data, typical), lead)] if typical else []


def _episode_figures(data, numbers) -> tuple[Content, ...]:
    items = []
    for e in map(int, numbers):
        episode = data[e]
        caption = pluralize(len(episode), "step")
        if isinstance(success := episode.metadata.get("success"), bool):
            caption += ", succeeded" if success else ", failed"
        try:
            film = film_strip(episode)
        except UserError:
            film = None  # its frames are damaged: a finding says so
        if film is not None:
            items.append((f"Episode {e}", film, caption))
        for name in sorted(episode.steps, key=lambda n: (role(n) != "action", n != "observation.state")):
            if role(name) not in ("action", "observation"):
                continue
            if (line := _line_figure(episode, name)) is not None:
                figure, column_caption = line
                items.append((f"Episode {e}" if film is None else "", figure, f"{column_caption}; {caption}"))
                break
    return (Figures(tuple(items)),) if items else ()


def _line_figure(episode: Episode, name: str) -> tuple[Figure, str] | None:
    """Draws the first components of a column over the steps. Returns the figure and its caption."""
    try:
        values = np.asarray(episode.steps[name])
    except (KeyError, UserError):
        return None
    if values.dtype.kind not in "biuf" or values.ndim > 2:
        return None
    values = values.reshape(len(values), -1)[:len(episode)].astype(float)
    names = episode.features()[name].names or range(values.shape[1])
    figure = curves({str(n): (np.arange(len(values)), values[:, i]) for i, n in
                     zip(range(min(_COMPONENTS, values.shape[1])), names, strict=False)}, Axis("step"), Axis(name))
    n_missing = int((~np.isfinite(values[:, :_COMPONENTS])).sum())
    return figure, f"{name}, without {pluralize(n_missing, 'NaN or infinite value')}" if n_missing else name
