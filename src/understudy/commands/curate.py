"""The command understudy curate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..config import UntrustedCode, dump
from ..core import Above, AtMost, UserError
from ..files import check_absent
from ..hints import did_you_mean, trust_hint
from ..user_code import import_module
from .parts.common import Output, command_line, demonstrations_path, parse
from .parts.groups import JsonOption, TrustOption, command_options
from .parts.options import Advice

if TYPE_CHECKING:
    import numpy as np

    from ..data.episode import Dataset


@command_options
class CurateOptions(TrustOption, JsonOption):
    """Keep the best episodes by a score, as a view. The view records the score and the value of every episode."""

    data: Annotated[Path, Positional, arg(metavar="DATA")]
    """a file or folder of demonstrations, or a view"""
    score: Annotated[str, arg(metavar="SCORE")]
    """a score (higher is better), a number in the metadata of the episodes (success, length), or module:function, which
    takes a data set and returns one number for each episode; transferability needs --env"""
    keep: Annotated[float, Above(0), AtMost(1), arg(metavar="FRACTION"), Advice("such as --keep 0.8")]
    """fraction of the episodes to keep; among equal scores, earlier episodes are kept"""
    out: Annotated[Path, arg(metavar="VIEW")]
    """where to write the view; nothing may be there"""
    lowest: bool = False
    """keep the lowest values"""
    env: Annotated[str | None, arg(metavar="ENV")] = None
    """environment in which imitators of the episodes act, for --score transferability"""


def main(args: list[str]) -> None:
    o = parse(CurateOptions, "curate", args)
    import numpy as np

    from ..data.formats import open_dataset
    from ..data.opening import views
    from ..data.operations import Select

    check_absent(o.out)
    with Output(o.json) as out:
        data = open_dataset(demonstrations_path(o.data))
        score, settings = scores_of(data, o.score, o.trust, o.env)
        if np.isnan(score).all():
            raise UserError(f"none of the {len(score)} episodes has a value", where=f"--score {o.score}",
                            hint="use another score: understudy audit --json shows them all")
        kept, order = select_best(score, o.keep, o.lowest)
        finite_scores = score[np.isfinite(score)]
        is_constant = len(finite_scores) == len(score) > 1 and (finite_scores == finite_scores[0]).all()
        if len(kept) < len(score) and is_constant:
            raise UserError(f"all {len(score)} episodes have the same value, {score[0]:.4g}: there is nothing to "
                            "choose by", where=f"--score {o.score}", hint="take another score (understudy audit --json "
                            "shows them all), or --keep 1; understudy view make DATA --sample N draws at random")
        view = views.write_view(o.out, o.data, Select(tuple(kept)), created_with={
            "command": "curate", "by": o.score, "settings": settings, "keep": o.keep, "lowest": o.lowest,
            "values": score.tolist()})
        excluded = order[len(kept):]
        out.print(f"{len(kept)} of {len(score)} episodes by {o.score}: {_format_range(score[kept])}",
                *([f"left out: {_format_range(score[excluded])}; the worst first: "
                   + ", ".join(f"episode {i} ({score[i]:.4g})" for i in excluded[::-1][:5])] if excluded else []))
        if tie := _tie(score, kept, excluded):
            value, many, some = tie
            out.print(f"{many} episodes have the value {value:.4g}; {some} of them are kept, the first in the order of "
                    "the data: the score does not choose between them")
        if bad := int(np.isnan(score).sum()):
            out.print(f"{bad} episodes have no value; they count as the worst")
        out.print(f"{view.steps} steps. Written to {o.out}")
        out.suggest(command_line("inspect", o.out), command_line("view", "show", o.out))
        out.print_json(
            {"view": str(o.out), "by": o.score, "settings": settings, "kept": kept, "values": score.tolist()})


def scores_of(
    data: Dataset, by: str, trust: tuple[str, ...] = (), env: str | None = None
) -> tuple[np.ndarray, object]:
    """Scores the episodes of a data set.

    Args:
        by: Name of a score, "module:function", or metadata of the episodes that are numbers.
        env: Name of the environment of the scores that need one.

    Returns:
        One number per episode, (E,), and the settings of the score.
    """
    import numpy as np

    from ..audit.scores import ENV_SCORES, SCORES
    from ..data.operations import episode_values

    if env is not None and by not in ENV_SCORES:
        raise UserError(f"the score {by} reads no environment, only {', '.join(ENV_SCORES)} does", where="--env",
                        hint=did_you_mean(by, ENV_SCORES) or "leave --env out")
    if ":" in by or by in SCORES or by in ENV_SCORES:
        score = _load_score(by, trust) if ":" in by else SCORES[by]() if by in SCORES else _env_score(by, env, trust)
        scores, settings = score(data), _score_settings(score)
    else:
        try:
            scores, settings = episode_values(data, by), None
        except UserError as error:
            if by in error.problem.partition(";")[0]:
                raise UserError(f"there is no score {by!r} (there are {', '.join([*SCORES, *ENV_SCORES])}), and "
                                f"{error.problem}", where="--score",
                                hint=did_you_mean(by, [*SCORES, *ENV_SCORES]) or error.hint) from None
            raise
    try:
        scores = np.array([np.nan if v is None else v for v in scores], np.float64)
    except (TypeError, ValueError):
        non_number = next((v for v in scores if isinstance(v, (str, list, dict))), scores)
        raise UserError(f"{non_number!r} is not a number", where=f"--score {by}",
                        hint="understudy view make DATA --filter FIELD=VALUE keeps those of one value") from None
    if scores.shape != (len(data),):
        raise UserError(f"it must be one number an episode, ({len(data)},), not {scores.shape}", where=f"--score {by}",
                        hint="the function is given a Dataset, whose length is the number of its episodes")
    return scores, settings


def select_best(values: np.ndarray, keep: float, lowest: bool = False) -> tuple[list[int], list[int]]:
    """Selects the best episodes. At least one is kept. NaN is the worst value.

    Args:
        values: Score of each episode, (E,).
        keep: Fraction of the episodes to keep.

    Returns:
        Indices of the kept episodes in the order of the data, and indices of all episodes, the best first.
    """
    import numpy as np

    order = np.argsort(values if lowest else -values, kind="stable").tolist()  # NaN last
    return sorted(order[: max(1, int(keep * len(values) + 0.5))]), order


def _tie(score: np.ndarray, kept: list[int], excluded: list[int]) -> tuple[float, int, int] | None:
    """Returns the value of a tie at the limit of the selection, its number of episodes, and how many of them are kept.

    None if there is no tie.
    """
    import numpy as np

    both = np.intersect1d(score[kept], score[excluded])  # NaN equals nothing
    if not len(both):
        return None
    return float(both[0]), int((score == both[0]).sum()), int((score[kept] == both[0]).sum())


def _load_score(name: str, trust: tuple[str, ...]):
    """Loads a function that scores a data set. A class is instantiated."""
    module, _, function = name.partition(":")
    if (package := module.split(".")[0]) not in trust:
        raise UntrustedCode(f"names code of the package {package!r}, which is not trusted", where=f"--score {name}",
                            hint=trust_hint(package))
    scorer = getattr(import_module(module, f"--score {name}"), function, None)
    if not callable(scorer):
        raise UserError(f"{module} has no function {function!r}", where=f"--score {name}",
                        hint="check the name after the colon")
    return scorer() if isinstance(scorer, type) else scorer


def _env_score(name: str, env: str | None, trust: tuple[str, ...]):
    from ..audit.scores import ENV_SCORES

    if env is None:
        raise UserError("it needs the environment in which imitators of the episodes act", where=f"--score {name}",
                        hint="add --env ENV, such as a toy's name, a Gymnasium id, metaworld/NAME or module:factory")
    return ENV_SCORES[name](env, trust=trust)


def _score_settings(score):
    try:
        return dump(score)
    except TypeError:
        return repr(score)


def _format_range(values: np.ndarray) -> str:
    import numpy as np

    values = values[np.isfinite(values)]
    return f"{values.min():.4g} to {values.max():.4g}" if len(values) else "no values"
