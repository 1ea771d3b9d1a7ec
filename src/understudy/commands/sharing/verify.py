"""The command understudy verify."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, arg

from ...core import UserError
from ...hints import command_line, pluralize
from ..parts.common import Output, parse, recorded_env_of
from ..parts.eval_options import EvalOptions
from ..parts.groups import DeviceOption, JsonOption, PositiveCount, TrustOption, command_options
from ..parts.policies import ACTING, run_folder, tell_checkpoint, weights_digest
from .stored_evaluations import stored_evaluations

if TYPE_CHECKING:
    from ...evaluate.evaluation import Evaluation

Verdict = Literal["equal", "consistent", "different"]


@command_options
class VerifyOptions(DeviceOption, TrustOption, JsonOption):
    """Repeat the first episodes of each stored evaluation of a run, with the same seed, and compare.

    The evidence holds if every episode ends as it is stored, as in a deterministic environment, or else if the
    interval of the repeated episodes overlaps the stored one. Exit status: 0 if it holds, 3 if it does not.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, or hf:OWNER/NAME"""
    episodes: PositiveCount = 10
    """number of episodes of each evaluation that are repeated"""


def main(args: list[str]) -> None:
    o = parse(VerifyOptions, "verify", args)
    from ...checkpoint import find_checkpoint

    with Output(o.json) as out:
        tell_checkpoint(o.run)
        lines = stored_evaluations(run_folder(o.run), weights_digest(find_checkpoint(o.run)))
        if not lines:
            raise UserError("no evaluation of this checkpoint is stored", where=o.run,
                            hint=command_line("eval", o.run, recorded_env_of(o.run) or "ENV", "--episodes", 100))
        results = [_repeat(o, line) for line in lines]
        for result in results:
            out.print(_describe(result))
        holds = all(result["verdict"] != "different" for result in results)
        out.print("The stored evidence holds." if holds else "The stored evidence does not hold.")
        out.print_json({"holds": holds, "evaluations": results})
    if not holds:
        raise SystemExit(3)


def _repeat(o: VerifyOptions, line: dict[str, Any]) -> dict[str, Any]:
    """Repeats the first episodes of a stored evaluation, and returns the comparison."""
    from ...envs import make
    from ..parts.kept_episodes import KeptEpisodes
    from ..parts.rollouts import evaluate_run

    n = min(o.episodes, line["episodes"])
    acting: dict[str, Any] = {name: tuple(line[name]) if isinstance(line[name], list) else line[name]
                              for name in ACTING if name in line}
    options = EvalOptions(run=o.run, target=line["env"], episodes=n, seed=line["seed"], device=o.device, trust=o.trust,
                          **acting)
    with closing(make(line["env"], min(options.rows, n), o.trust)) as env, KeptEpisodes() as kept:
        evaluation = evaluate_run(o.run, env, options, None, line["env"], kept)
    name = "success" if line["each"]["success"] is not None else "return"
    return {"env": line["env"], "seed": line["seed"], "episodes": n, "of": line["episodes"], "outcome": name,
            **_compare(line, evaluation, name)}


def _compare(line: dict[str, Any], evaluation: Evaluation, name: str) -> dict[str, Any]:
    import numpy as np

    outcomes = evaluation.successes if name == "success" else evaluation.episode_returns
    assert outcomes is not None  # the environment is the one that reported them
    stored = np.asarray(line["each"][name][:len(outcomes)], dtype=float)
    differing = np.flatnonzero(~np.isclose(stored, np.asarray(outcomes, dtype=float)))
    repeated = evaluation.to_json()[name]
    ends = [result[end] for result in (repeated, line[name]) for end in ("low", "high")]
    overlaps = None not in ends and ends[0] <= ends[3] and ends[2] <= ends[1]  # one episode may have no interval
    verdict: Verdict = "equal" if not len(differing) else "consistent" if overlaps else "different"
    return {"verdict": verdict, "differing": differing.tolist(), "stored": line[name], "repeated": repeated}


def _describe(result: dict[str, Any]) -> str:
    what = (f"{result['env']}, seed {result['seed']}, the first {pluralize(result['episodes'], 'episode')} of "
            f"{result['of']}")
    if result["verdict"] == "equal":
        return f"{what}: all end as stored."
    numbers = [" to ".join("unknown" if end is None else f"{end:.4g}" for end in (interval["low"], interval["high"]))
               for interval in (result["repeated"], result["stored"])]
    relation = "overlaps" if result["verdict"] == "consistent" else "does not overlap"
    return (f"{what}: {pluralize(len(result['differing']), 'episode')} ended otherwise. The interval of "
            f"{result['outcome']}, {numbers[0]}, {relation} the stored one, {numbers[1]}.")
