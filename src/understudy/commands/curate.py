"""understudy curate"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from .common import Out, Trust, demonstrations, line, parse
from .merge import absent

if TYPE_CHECKING:
    import numpy as np

    from ..data.episode import Dataset


@dataclass(frozen=True)
class Curate:
    """The best episodes by a score: a view of them. It records the score and every episode's value."""

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations, or a view"""
    by: Annotated[str, arg(metavar="SCORE")]
    """a score (higher is better), a fact of the episodes that is a number (success, length), or module:function, from
    a data set to one number an episode"""
    keep: Annotated[float, arg(metavar="FRACTION")]
    """of the episodes, the best; of equal ones the first"""
    out: Annotated[Path, arg(metavar="VIEW")]
    """where to write the view; nothing may be there"""
    lowest: bool = False
    """the lowest values are the best"""
    trust: Trust = ()
    """load code of this package"""
    json: bool = False
    """one JSON document on standard output"""


def main(args: list[str]) -> None:
    o = parse(Curate, "curate", args)
    import numpy as np

    from ..core import UserError
    from ..data import views
    from ..data.episode import Dataset
    from ..data.operations import Pick

    if not 0 < o.keep <= 1:
        raise UserError(f"expected more than 0 and at most 1, found {o.keep:g}", where="--keep",
                        do="such as --keep 0.8")
    absent(o.out)
    with Out(o.json) as out:
        data = Dataset.open(demonstrations(o.data))
        score, settings = scores_of(data, o.by, o.trust)
        if np.isnan(score).all():
            raise UserError(f"expected a value by which to choose, found none in {len(score)} episodes",
                            where=f"--by {o.by}", do="take another score: understudy audit --json shows them all")
        kept, order = best(score, o.keep, o.lowest)
        known = score[np.isfinite(score)]
        if len(kept) < len(score) and len(known) == len(score) > 1 and (known == known[0]).all():
            raise UserError(f"all {len(score)} episodes have the same value, {known[0]:.4g}: there is nothing to "
                            "choose by", where=f"--by {o.by}", do="take another score (understudy audit --json "
                            "shows them all), or --keep 1; understudy view make DATA --sample N draws at random")
        view = views.write(o.out, o.data, Pick(tuple(kept)), made={
            "command": "curate", "by": o.by, "settings": settings, "keep": o.keep, "lowest": o.lowest,
            "values": score.tolist()})
        left = [i for i in order if i not in set(kept)]
        out.say(f"{len(kept)} of {len(score)} episodes by {o.by}: {_span(score[kept])}",
                *([f"left out: {_span(score[left])}; the worst first: "
                   + ", ".join(f"episode {i} ({score[i]:.4g})" for i in left[::-1][:5])] if left else []))
        if tie := _tie(score, kept):
            value, many, some = tie
            out.say(f"{many} episodes have the value {value:.4g}; {some} of them are kept, the first in the order of "
                    "the data: the score does not choose between them")
        if bad := int(np.isnan(score).sum()):
            out.say(f"{bad} episodes have no value; they count as the worst")
        out.say(f"{view.steps} steps. Written to {o.out}")
        out.next(line("inspect", o.out), line("view", "show", o.out))
        out.answer({"view": str(o.out), "by": o.by, "settings": settings, "kept": kept, "values": score.tolist()})


def scores_of(data: Dataset, by: str, trust: tuple[str, ...] = ()) -> tuple[np.ndarray, object]:
    """(E,) the values, and the settings they were made with."""
    import numpy as np

    from ..audit.scores import SCORES
    from ..core import UserError
    from ..data.operations import values

    if ":" in by or by in SCORES:
        score = _loaded(by, trust) if ":" in by else SCORES[by]()
        found, settings = _asked(score, data, by), _settings(score)
    else:
        try:
            found, settings = values(data, by), None
        except UserError as error:
            if by in error.what.partition(";")[0]:
                near = get_close_matches(by, SCORES, 1)
                raise UserError(f"there is no score {by!r} (there are {', '.join(SCORES)}), and {error.what}",
                                where="--by", do=f"did you mean {near[0]}?" if near else error.do) from None
            raise
    try:
        found = np.array([np.nan if v is None else v for v in found], np.float64)
    except (TypeError, ValueError):
        odd = next((v for v in found if isinstance(v, (str, list, dict))), found)
        raise UserError(f"expected numbers, found {odd!r}", where=f"--by {by}",
                        do="understudy view make DATA --where FIELD=VALUE keeps those of one value") from None
    if found.shape != (len(data),):
        raise UserError(f"expected one number an episode, ({len(data)},), found {found.shape}", where=f"--by {by}",
                        do="the function is given a Dataset, whose length is the number of its episodes")
    return found, settings


def best(score: np.ndarray, keep: float, lowest: bool = False) -> tuple[list[int], list[int]]:
    """(the kept, in the order of the data; all, the best first). At least one is kept; NaN is the worst."""
    import numpy as np

    order = np.argsort(np.where(np.isnan(score), np.inf, score if lowest else -score), kind="stable").tolist()
    order = [i for i in order if not np.isnan(score[i])] + [i for i in order if np.isnan(score[i])]
    return sorted(order[: max(1, int(keep * len(score) + 0.5))]), order


def _tie(score: np.ndarray, kept: list[int]) -> tuple[float, int, int] | None:
    """(value, episodes that have it, how many of these are kept), where a value is on both sides of the choice."""
    import numpy as np

    left = np.setdiff1d(np.arange(len(score)), kept)
    both = np.intersect1d(score[kept], score[left])  # NaN equals nothing
    if not len(both):
        return None
    return float(both[0]), int((score == both[0]).sum()), int((score[kept] == both[0]).sum())


def _loaded(name: str, trust: tuple[str, ...]):
    """A function of a data set; a class is made first."""
    from importlib import import_module

    from ..config import Untrusted
    from ..core import UserError

    module, _, function = name.partition(":")
    if (package := module.split(".")[0]) not in trust:
        raise Untrusted(f"names code of the package {package!r}, which is not trusted", where=f"--by {name}",
                        do=f"add --trust {package} if you trust that code to run")
    try:
        found = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        raise UserError(f"there is no module {error.name}", where=f"--by {name}",
                        do="check the name; it has to be importable from here (PYTHONPATH)") from error
    if not callable(found):
        raise UserError(f"expected a function {function!r} in {module}, found none", where=f"--by {name}",
                        do="check the name after the colon")
    return found() if isinstance(found, type) else found


def _asked(score, data: Dataset, by: str):
    from ..core import UserError

    try:
        return score(data)
    except UserError:
        raise
    except Exception as error:
        if ":" not in by:
            raise
        what = f"expected one number an episode, found an error: {type(error).__name__}: {error}"
        raise UserError(what, where=f"--by {by}", do="the function is given a Dataset: try it on Dataset.open(DATA)") \
            from error


def _settings(score):
    from ..config import dump

    try:
        return dump(score)
    except TypeError:
        return repr(score)


def _span(values: np.ndarray) -> str:
    import numpy as np

    values = values[np.isfinite(values)]
    return f"{values.min():.4g} to {values.max():.4g}" if len(values) else "no values"
