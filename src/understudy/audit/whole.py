"""The audit of a data set: every check, in order; and the guard of what must not be given broken data."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

from ..core import UserError, role
from ..data.episode import Dataset
from ..data.formats import look, remote, sniff
from . import checks
from .base import Finding, Report, Where, refusal
from .files import files
from .words import count

Progress = Callable[[int, int], None]  # (checks done, of)
_ORDER = ("error", "warning", "note")
_BROKEN = {"rows-disagree", "shape-disagrees", "names-disagree", "cannot-be-read"}  # columns that cannot be had
_SCORED = 1_000_000  # steps, beyond which scores are left to `understudy curate`: they hold all of them at once
_REFUSED = ("cannot-be-read", "frame-damaged")


def audit(path: Path | str, mapping: Path | None = None, *, scores: bool = True, frames: bool = True,
          progress: Progress | None = None, **options) -> Report:
    """All findings, errors first, and the scores that need no training. Raises UserError where nothing could be opened;
    where a file of what is otherwise a data set is why, that is a finding.

    mapping: of the topics of bags, in place of the one that is proposed. frames: also decode every camera frame, which
    takes minutes for hours of video. options: others of the format's (max_episode_steps)."""
    path = Path(path).expanduser()
    try:
        data = look(path, mapping, **options)
    except UserError as error:
        if "pip install" in (error.do or "") or remote.address(path):  # what is missing is not in the data
            raise
        found = list(files(path))
        if not any(f.severity == "error" for f in found):
            sniff(path)  # raises where this is no data set; else it is one, of which something is wrong
        return Report(_sorted([*found, refusal(error, path)]))
    path = Path(data.facts.get("path", path))  # the one data set in a folder of one
    found = list(files(path))
    found += findings(data, path, frames=frames, files_too=False, progress=progress)
    whole = not {f.code for f in found} & _BROKEN and 0 < data.steps <= _SCORED
    return Report(_sorted(found), _scores(data) if scores and whole else {})


def findings(data: Dataset, path: Path | str | None = None, *, frames: bool = False, files_too: bool = True,
             progress: Progress | None = None) -> tuple[Finding, ...]:
    """Of data that could be opened; of the files at `path`, too, without their checksums."""
    chosen = checks.WHOLE + checks.QUALITY + (checks.FRAMES if frames else ())
    return _sorted([*(files(Path(path), deep=False) if path is not None and files_too else ()),
                    *_run(data, chosen, Path(path or data.facts.get("path", ".")), progress)])


def guard(data: Dataset, path: Path | str | None = None, despite: Collection[str] = ()) -> list[str]:
    """Raises UserError where an audit would find an error, other than of a code in `despite`: what `train`, `convert`
    and `merge` do first. Reads the numbers; checksums of whole files, and camera frames, are left to the audit and to
    whoever decodes them. Returns the codes in `despite` that nothing has."""
    where = Path(path or data.facts.get("path", "."))
    found = [*(files(where, deep=False) if path is not None else ()), *_run(data, checks.WHOLE, where)]
    refuse(found, where, despite)
    return [code for code in despite if code not in {f.code for f in found}]


def refuse(found: Iterable[Finding], where: Path | str, despite: Collection[str] = ()) -> None:
    """Raises UserError where an error is among these findings, other than of a code in `despite`."""
    wrong = [f for f in found if f.severity == "error" and f.code not in despite]
    if wrong:
        codes = list(dict.fromkeys(f.code for f in wrong))
        lines = [f"  {f.code}: {f'{f.where}: ' if str(f.where) else ''}{f.message}" for f in _sorted(wrong)[:10]]
        raise UserError(f"expected data without errors, found {count(len(wrong), 'error')}:\n" + "\n".join(lines)
                        + ("\n  ..." if len(wrong) > 10 else ""), where=where,
                        do=f"understudy audit {where} says more; " + (
                            f"understudy repair {where} --out DST saves what can be read" if set(codes) & set(_REFUSED)
                            else "to go on all the same: " + " ".join(f"--despite {code}" for code in codes)))


def _run(data: Dataset, chosen: Iterable[checks.Check], path: Path,
         progress: Progress | None = None) -> Iterator[Finding]:
    chosen = tuple(chosen)
    if not len(data):
        yield from checks.warned(data)
        yield Finding("no-episodes", "note", "there is no episode", "record some", Where())
        return
    told = set()
    for done, check in enumerate(chosen, 1):
        try:
            found = list(check(data))
            yield from found
            if check is checks.rows and found:
                return  # the others take columns of one shape for granted
        except UserError as error:  # of a column that is read only now; several checks may meet it
            if str(error) not in told:
                told.add(str(error))
                yield refusal(error, path, data[0].steps)
        if progress is not None:
            progress(done, len(chosen))


def _sorted(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Errors first. What a reader says of a file in which a check has found an error is no second finding."""
    found = list(dict.fromkeys(found))
    known = {f.where.file for f in found if f.severity == "error" and f.code not in _REFUSED}
    found = [f for f in found if f.code not in _REFUSED or f.where.file not in known]
    return tuple(sorted(found, key=lambda f: _ORDER.index(f.severity)))


def _scores(data: Dataset) -> dict:
    """Those without training; one that has no meaning for these data is left out."""
    from .scores import SCORES, TRAINED

    kinds = {role(n): f.kind for n, f in data.features().items()}
    if kinds.get("action") not in ("vector", "choice") or "observation" not in kinds:
        return {}  # a finding says so
    found = {}
    for name, make in SCORES.items():
        if name in TRAINED:
            continue
        try:
            found[name] = make()(data)
        except UserError:
            continue
    return found
