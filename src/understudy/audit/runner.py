"""Runs all checks of a data set, and refuses damaged data for training and conversion."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..core import DataError, UserError, role
from ..data.cache import DiskError
from ..data.episode import Dataset
from ..data.formats import preview_dataset, remote
from ..data.formats.detection import format_of
from ..data.formats.parts.links import OutsideLink
from ..data.opening.column_selection import column_options, open_columns
from ..hints import command_line, pluralize, repair_hint
from . import checks, label_checks
from .base import AuditReport, Finding, Location, StepScore, finding_from_error
from .file_checks import check_files

Progress = Callable[[int, int], None]  # (checks done, of)
_ORDER = ("error", "warning", "note")
_ERROR_CODES = {"rows-disagree", "shape-disagrees", "names-disagree", "cannot-be-read"}  # columns that cannot be read
# with more steps, scores are left to `understudy curate`, because they need all steps in memory
_MAX_SCORED_STEPS = 1_000_000
# of the layout of a format, which does not matter where the user names the arrays to read
_LAYOUT_CODES = {"lengths-disagree", "counts-disagree", "names-disagree", "next-disagrees", "mask-unknown"}
_UNREADABLE_CODES = ("cannot-be-read", "frame-damaged")


def audit(path: Path | str, mapping: Path | None = None, *, scores: bool = True, frames: bool = True,
          progress: Progress | None = None, **options) -> AuditReport:
    """Audits a data set. Returns all findings, errors first, and the scores that need no training.

    If a file of an otherwise readable data set is damaged, that is a finding, not an exception.

    Args:
        mapping: For bags, a mapping of topics to columns instead of the proposed one.
        frames: Also decode every camera frame. This takes minutes for hours of video.
        options: columns (see `open_columns`), and options of the format (`max_episode_steps`).
    """
    path = Path(path).expanduser()
    try:
        data = open_columns(path, open=preview_dataset, mapping=mapping, **options)
    except UserError as error:
        # a package, a network or space is missing, not a part of the data; or no file of it may be read
        if "pip install" in (error.hint or "") or remote.url_of(path) or isinstance(error, (DiskError, OutsideLink)):
            raise
        findings = list(check_files(path))
        if not any(f.severity == "error" for f in findings):
            try:
                format_of(path)
            except UserError:  # this is not a data set at all, or the user names its columns
                raise error from None
        return AuditReport(_sort_findings([*findings, finding_from_error(error, path)]))
    path = Path(data.metadata.get("path", path))  # the folder may contain exactly one data set
    findings = _check_files(data, path)
    findings += find_problems(data, frames=frames, progress=progress)
    if {f.code for f in findings} & _ERROR_CODES:
        return AuditReport(_sort_findings(findings))
    values, lowest = _scores(data) if scores and 0 < data.steps <= _MAX_SCORED_STEPS else ({}, {})
    return AuditReport(_sort_findings(findings), values, lowest, len(data))


def _check_files(data: Dataset, path: Path, checksums: bool = True) -> list[Finding]:
    """Returns the findings about the files of a data set, without findings about layout if the layout is unknown."""
    own_layout = data.metadata.get("format") == "hdf5"
    return [f for f in check_files(path, checksums) if not (own_layout and f.code in _LAYOUT_CODES)]


def find_problems(data: Dataset, path: Path | str | None = None, *, frames: bool = False,
                  progress: Progress | None = None) -> tuple[Finding, ...]:
    """Checks an open data set. Returns the findings, errors first.

    Args:
        path: The files of the data set, which are checked without their checksums. By default they are not checked.
        frames: Also decode and check every camera frame.
    """
    chosen = checks.INTEGRITY_CHECKS + checks.QUALITY_CHECKS + (checks.FRAME_CHECKS if frames else ())
    return _sort_findings([*(_check_files(data, Path(path), checksums=False) if path is not None else ()),
                           *_run_checks(data, chosen, Path(path or data.metadata.get("path", ".")), progress)])


def check_usable(data: Dataset, path: Path | str | None = None, ignore: Collection[str] = (), *,
                 training: bool = False) -> list[str]:
    """Refuses data in which an audit finds an error. `train`, `convert` and `merge` call it first.

    Camera frames and checksums of whole files are not checked. `understudy audit` does this.

    Args:
        data: The episodes. All of their numbers are read.
        training: The data are trained on. Errors that would end training are then refused, whatever `ignore` says.

    Returns:
        The codes in `ignore` that no error has.
    """
    place = Path(path or data.metadata.get("path", "."))
    findings = [
        *(_check_files(data, place, checksums=False) if path is not None else ()),
        *_run_checks(data, (checks.reader_warnings, *checks.INTEGRITY_CHECKS), place),
    ]
    raise_on_errors(findings, place, ignore, training_data=data if training else None, columns=column_options(data))
    return [code for code in ignore if code not in {f.code for f in findings}]


def training_warnings(data: Dataset, needs_actions: bool = True) -> list[str]:
    """Returns what a user should know before training on data that `check_usable` accepts, as warnings.

    Args:
        needs_actions: Whether all steps need an action. Otherwise it is only said how actions are read.
    """
    audited = data if needs_actions else data.map(lambda episode: episode.replace({"action": None}))
    findings = _run_checks(audited, checks.TRAINING_CHECKS, Path(data.metadata.get("path", ".")))
    texts = [f"warning: {f.message}" + ("" if f.code == "reader" else f" ({f.remedy})")
             for f in findings if f.severity == "warning"]
    return [*texts, *([reading] if (reading := checks.action_reading(data)) else [])]


def raise_on_errors(findings: Sequence[Finding], where: Path | str, ignore: Collection[str] = (), *,
                    training_data: Dataset | None = None, columns: Collection[str] = ()) -> None:
    """Raises DataError if an error is among these findings, except for codes in `ignore`.

    Args:
        training_data: The data, if they are trained on. Then values that are not finite are refused in any case.
        columns: The option with which the data were opened: see `column_options`.
    """
    errors = [f for f in findings if f.severity == "error" and f.code not in ignore]
    not_finite = [f for f in findings if f.code == "not-finite"
                  and role(f.where.feature or "") in ("observation", "action")]
    if training_data is not None and not_finite:
        lines = "\n".join(f"  {f.code}: {f.message}" for f in not_finite[:10])
        raise DataError(f"policies cannot be trained on values that are not finite:\n{lines}", where=where,
                        hint=_unknown_actions_hint(training_data, not_finite, where)
                        + _deletion_hint(training_data, where))
    if errors:
        short_video = next((f for f in errors if f.code == "frames-missing"), None)
        codes = list(dict.fromkeys(f.code for f in errors))
        lines = [f"  {f.code}: {f'{f.where}: ' if str(f.where) else ''}{f.message}"
                 for f in _sort_findings(errors)[:10]]
        lines += ["  ..."] if len(errors) > 10 else []
        misread = [f for f in findings if f.code == "reader" and f.severity == "warning"]  # may have caused them
        lines += [f"  {f.code}: {f.message}" for f in misread]
        unread = sorted({f.where.feature for f in errors if f.code == "not-finite" and f.where.feature})
        only_with = f", with a method that does not read {' and '.join(unread)}" if unread and training_data else ""
        remedy = f"to accept them{only_with}: " + " ".join(f"--ignore {code}" for code in codes)
        if short_video is not None:
            remedy = short_video.remedy  # the remedy for the data that these are a view of
        elif set(codes) & set(_UNREADABLE_CODES):
            remedy = repair_hint(where)
        raise DataError(f"the audit finds {pluralize(len(errors), 'error')}:\n" + "\n".join(lines), where=where,
                        hint=f"{command_line('audit', where, *columns)} explains them; {remedy}")


def _unknown_actions_hint(data: Dataset, not_finite: Iterable[Finding], where: Path | str) -> str:
    """Returns which method learns from data where NaN stands for unknown actions. Empty if all actions are finite."""
    name = next((f.where.feature for f in not_finite if role(f.where.feature or "") == "action"), None)
    if name is None:
        return ""
    if any(np.isfinite(episode.steps[name]).any() for episode in data):
        return "if NaN stands for unknown actions, train vpt, which predicts them; otherwise "
    drop = f"drop the column ({command_line('view', 'make', where, '--out', 'VIEW', '--drop', name)})"
    if column_options(data):  # views are of data that open without them
        drop = f"leave {name} out of --columns"
    return (f"no action is known. If none was recorded, {drop} and train bco, which practices in an environment; "
            "otherwise ")


def _deletion_hint(data: Dataset, where: Path | str) -> str:
    """Returns how to leave out the episodes with observations or actions that are not finite."""
    bad = {e for e, episode in enumerate(data) for name, f in episode.features().items()
           if role(name) in ("observation", "action") and f.kind == "vector"
           and not np.isfinite(episode.steps[name]).all()}
    if len(bad) == len(data):
        return "correct the values: every episode has some"
    columns, source, before = column_options(data), where, ""
    if columns:  # views are of data that open without them
        source, before = "DST", command_line("convert", where, "DST", *columns, "--ignore", "not-finite") + " and then "
    command = before + command_line("view", "make", source, "--out", "finite.json", "--delete", *sorted(bad))
    return f"correct the values, or leave out {'this episode' if len(bad) == 1 else 'these episodes'}: {command}"


def _run_checks(data: Dataset, chosen: Iterable[checks.Check], path: Path,
                progress: Progress | None = None) -> Iterator[Finding]:
    chosen = tuple(chosen)
    if not len(data):
        yield from checks.reader_warnings(data)
        yield Finding("no-episodes", "note", "the data set has no episodes", "record some", Location())
        return
    reported = set()
    for done, check in enumerate(chosen, 1):
        try:
            findings = list(check(data))
            yield from findings
            if check in (checks.check_rows, label_checks.check_flags) and findings:
                return  # all further checks assume columns of one shape, and flags
        except DiskError:  # says nothing about the data
            raise
        except UserError as error:  # a column that is read only now; several checks may find the same error
            if str(error) not in reported:
                reported.add(str(error))
                yield finding_from_error(error, path, data[0].steps)
        if progress is not None:
            progress(done, len(chosen))


def _sort_findings(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sorts findings by severity, errors first. Drops remarks of the reader about a file that has an error."""
    unique = list(dict.fromkeys(findings))
    damaged_files = {f.where.file for f in unique if f.severity == "error" and f.code not in _UNREADABLE_CODES}
    remaining = [f for f in unique if f.code not in _UNREADABLE_CODES or f.where.file not in damaged_files]
    return tuple(sorted(remaining, key=lambda f: _ORDER.index(f.severity)))


def _scores(data: Dataset) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Computes the scores that need no training and suit these data, and the steps at which they are lowest."""
    from .scores import NETWORK_SCORES, SCORES

    roles = {role(n) for n, f in data.features().items() if f.kind in ("vector", "discrete", "image")}
    if not {"observation", "action"} <= roles:
        return {}, {}  # a finding says so
    scores, lowest = {}, {}
    for name, make in SCORES.items():
        if name in NETWORK_SCORES:
            continue
        try:
            score = make()
            if isinstance(score, StepScore):
                step_scores = score.score_steps(data)
                scores[name] = score.of_episodes(step_scores)
                lowest[name] = np.array([np.nanargmin(s) if np.isfinite(s).any() else -1 for s in step_scores])
            else:
                scores[name] = score(data)
        except UserError:
            continue
    return scores, lowest
