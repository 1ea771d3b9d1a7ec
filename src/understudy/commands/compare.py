"""The command understudy compare."""

from __future__ import annotations

import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, UseAppendAction, arg

from ..core import UserError
from ..files import file_name
from ..hints import join_and, path_text
from .parts.common import (
    Output,
    acting_options,
    command_line,
    given_options,
    has_no_run,
    parse,
    plain_table,
    trust_options,
    unused_path,
)
from .parts.groups import RolloutOptions, StepCount, command_options
from .parts.learned_rewards import learns_reward, tell_learned_reward
from .parts.options import refuse_given
from .parts.policies import refuse_unused_conditions, run_folder, run_names, weights_digest, weights_path
from .parts.rollouts import evaluate_run

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..envs.base import Env
    from ..evaluate.comparison import Comparison
    from ..evaluate.evaluation import Evaluation


@command_options
class CompareOptions(RolloutOptions):
    """Compare two or more policies: which is better, and which differences are not significant?

    All policies are rolled out on the same starts. The difference between policies that share a letter is not
    significant. p-values are adjusted for the number of pairs. With --group, methods are compared: each has a name and
    runs of several training seeds. A folder that eval --save wrote stands for its policy, which is then not rolled out
    again.
    """

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN")] = ()
    """two or more: runs, checkpoints, exported files, or rollouts that were saved"""
    env: Annotated[str | None, arg(metavar="ENV")] = None
    """environment in which to act; not needed if all rollouts were saved"""
    episodes: StepCount = None
    """number of episodes of each policy: by default 100, or all that were saved"""
    group: Annotated[UseAppendAction[tuple[tuple[str, ...], ...]], arg(metavar="NAME RUN ...")] = ()
    """a method: its name, and a run of each training seed"""
    save: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """write each policy's rollouts there as a data set"""


def main(args: list[str]) -> None:
    o = parse(CompareOptions, "compare", args)
    from ..evaluate.comparison import compare_all

    with Output(o.json) as out:
        groups = _named_runs(o)
        runs = [run for group in groups.values() for run in group]
        for run in runs:
            tell_learned_reward(run)
        evaluations, env = _evaluate_runs(o, runs)
        judged = {name: [evaluations[r] for r in group] if o.group else evaluations[group[0]]
                  for name, group in groups.items()}
        clones = [str(run) for run in runs if learns_reward(run)]
        comparison = replace(compare_all(judged), note="" if not clones else
                             f"In {join_and(clones)} a clone of the better segments acts, and not the learned reward.")
        commands = _next_commands(o, comparison, runs)
        named_comparison = comparison if o.group else replace(comparison, names=tuple(run_names(runs)))
        _print_comparison(named_comparison, out)
        if o.html is not None:
            from .parts.comparison_page import write_comparison_page

            drawn = {name: evaluations[group[0]]
                     for name, group in zip(named_comparison.names, groups.values(), strict=True)}
            write_comparison_page(o.html, named_comparison, drawn, env, commands)
            out.print(f"Report written to {o.html}")
        if o.save is not None:
            out.print(f"Episodes written to {o.save}")
        out.suggest(*(command for command, _ in commands))
        out.print_json(comparison.to_json())


def _named_runs(o: CompareOptions) -> dict[str, list[Path]]:
    if o.runs and o.group:
        raise UserError("takes runs or groups, not both", where="compare",
                        hint="a checkpoint and a method cannot be compared: put each run into a --group NAME RUN ...")
    if twice := next((r for r in o.runs if o.runs.count(r) > 1), None):
        raise UserError(f"the policy {twice} is named twice", where="understudy compare",
                        hint="there is nothing to tell apart: name each once")
    groups = {path_text(run): [run] for run in o.runs}
    for name, *runs in (g or ("",) for g in o.group):
        if len(runs) < 2:
            raise UserError(f"a group is a name and two runs or more, one for each training seed, not "
                            f"{' '.join([name, *runs]) or 'nothing'}", where="--group",
                            hint="--group NAME RUN RUN; without --group, checkpoints are compared")
        if name in groups:
            raise UserError(f"the name {name!r} is given twice", where="--group",
                            hint="give all runs of a method after its name, once: --group NAME RUN RUN ...")
        groups[name] = [Path(r) for r in runs]
    if len(groups) < 2:
        raise UserError(f"needs at least two {'groups' if o.group else 'policies'}, but has {len(groups)}",
                        where="understudy compare", hint="understudy eval RUN ENV judges one")
    sizes = {name: len(group) for name, group in groups.items()}
    if len(set(sizes.values())) > 1:
        raise UserError("the methods have different numbers of training seeds: "
                        + ", ".join(f"{n} of {name}" for name, n in sizes.items()), where="--group",
                        hint="train the missing ones, or leave some out")
    places: dict[Path, Path] = {}
    for run in (run for group in groups.values() for run in group):
        place = run.resolve() if _is_saved_rollouts(run) else weights_path(run).resolve()
        if place in places:
            raise UserError(f"{places[place]} and {run} are the same policy",
                            where="compare", hint="there is nothing to tell apart")
        places[place] = run
    for group in groups.values() if o.group else ():
        _refuse_one_training(group)
    return groups


def _refuse_one_training(group: list[Path]) -> None:
    """Raises UserError if two runs of a group are of one training, which counts as one training seed.

    They are two checkpoints of a run, or a policy and its saved rollouts.
    """
    runs_by_mark: dict[Path | str, Path] = {}
    for run in group:
        marks: list[Path | str]
        if _is_saved_rollouts(run):
            marks = [_policy_of_rollouts(run)]
        else:
            folder = run if has_no_run(run) else run_folder(run)
            marks = [weights_digest(weights_path(run)), *([folder.resolve()] if (folder / "run.json").exists() else [])]
        if (other := next((runs_by_mark[mark] for mark in marks if mark in runs_by_mark), None)) is not None:
            raise UserError(f"{other} and {run} are of one training, which is one training seed", where="--group",
                            hint="train the method with another --seed; without --group, checkpoints are compared")
        runs_by_mark |= dict.fromkeys(marks, run)


def _policy_of_rollouts(run: Path) -> str:
    """Returns the digest of the policy that acted in saved rollouts, or the folder if it is not known."""
    from ..data.formats import open_dataset

    data = open_dataset(run)
    by = str(data[0].metadata.get("by", "")) if len(data) else ""
    return by.removeprefix("policy ").partition(",")[0] if by.startswith("policy ") else str(run.resolve())


def _is_saved_rollouts(run: Path) -> bool:
    from ..data.formats.parts.file_kinds import is_lerobot

    return is_lerobot(run)


def _evaluate_runs(o: CompareOptions, runs: list[Path]) -> tuple[dict[Path, Evaluation], Env | None]:
    """Returns the evaluations, and the closed environment in which the policies acted, if any of them did."""
    from ..envs import make
    from ..evaluate.evaluation import evaluation_of
    from .parts.kept_episodes import KeptEpisodes

    evaluations = {run: _read_evaluation(run, o) for run in runs if _is_saved_rollouts(run)}
    acting = [run for run in runs if run not in evaluations]
    if not acting:
        refuse_given(o, ("task", "condition", "executor", "save"), "all rollouts were saved, so no policy acts",
                     "leave it out, or name the runs")
    episodes = o.episodes or min((len(e.episodes) for e in evaluations.values()), default=100)
    if acting and o.env is None:
        raise UserError("no environment is named in which the policies act", where="--env",
                        hint=command_line("compare", *runs, "--env", "ENV"))
    asked, env = replace(o, episodes=episodes), None
    if acting:
        assert o.env is not None
        refuse_unused_conditions(acting, asked)
        with closing(make(o.env, min(o.rows, episodes), o.trust)) as env, KeptEpisodes() as kept:
            for run in acting:
                save = None if o.save is None else o.save / (file_name(run).strip(".") or "run")
                evaluations[run] = evaluate_run(run, env, asked, save, o.env, kept)
    named = {run: evaluations[run] for run in runs}  # in the order of the user
    cut = {run: e if len(e.episodes) == episodes else evaluation_of(e.episodes[:episodes]) for run, e in named.items()}
    return cut, env


def _read_evaluation(run: Path, o: CompareOptions) -> Evaluation:
    from ..data.formats import open_dataset
    from ..evaluate.evaluation import evaluation_of

    data = open_dataset(run)
    invalid_number = next((n for n, e in enumerate(data) if not {"env", "seed", "number"} <= set(e.metadata)
                           or "next.reward" not in e.steps), None)
    if invalid_number is not None or not len(data):
        problem = "there are no rollouts in it" if invalid_number is None else "not a rollout that eval --save wrote"
        raise UserError(problem, where=run if invalid_number is None else f"{run}, episode {invalid_number}",
                        hint="name a run, or save its rollouts")
    env, seed = data[0].metadata["env"], data[0].metadata["seed"]
    if seed < 0:
        raise UserError("these are demonstrations, neither a run nor rollouts that eval --save wrote", where=run,
                        hint="train a policy on them: " + command_line("train", "METHOD", run, "--out", "RUN"))
    if o.env is not None and o.env != env:
        raise UserError(f"the rollouts are in {env}, but --env is {o.env}", where=run,
                        hint="leave out --env, or compare runs in it")
    if o.seed and o.seed != seed:
        raise UserError(f"the starts are of seed {seed}, but --seed is {o.seed}", where=run,
                        hint="leave out --seed, or save rollouts of that seed")
    if o.episodes is not None and len(data) < o.episodes:
        raise UserError(f"has {len(data)} episodes, but --episodes is {o.episodes}", where=run,
                        hint="save more of them (the same eval --save continues), or ask for fewer --episodes")
    return evaluation_of(data)


def _print_comparison(c: Comparison, out: Output) -> None:
    show = (lambda v: f"{v:.1%}") if c.metric == "success" else (lambda v: f"{v:.4g}")
    gap = (lambda v: f"{100 * v:+.1f}") if c.metric == "success" else (lambda v: f"{v:+.4g}")

    def interval(low: float, high: float, show: Callable[[float], str]) -> str:
        return "none" if math.isnan(low) else f"{show(low)} to {show(high)}"
    rows, pairs = [], []
    for i in c.ranking:
        e, r = c.estimates[i], c.ranks[i]
        rows.append((c.names[i], show(e.estimate), interval(e.low, e.high, show), c.letters[i],
                     r.low if r.low == r.high else f"{r.low} to {r.high}"))
    for p in c.pairs:
        better = {"first": f"{c.names[p.a]} is better", "second": f"{c.names[p.b]} is better", None: "cannot tell"}
        pairs.append((f"{c.names[p.a]} minus {c.names[p.b]}", gap(p.comparison.difference),
                      interval(p.comparison.low, p.comparison.high, gap), f"{p.comparison.p_value:.2g}",
                      f"{p.adjusted_p_value:.2g}", better[p.better]))
    metric, limits = "success" if c.metric == "success" else "mean return", f"{c.level:.0%} interval"
    out.print(f"{c.episodes} episode{'s' * (c.episodes > 1)} in {c.env}, the same starts for all."
              + ("" if c.metric == "success" else " It defines no success: returns are compared."), "",
              plain_table(("", metric, limits, "letters", "rank"), rows), "",
              plain_table(("", "difference", limits, "p", "adjusted", ""), pairs), "", " ".join(c.verdict_parts()))
    if more := c.next_steps():
        who = "the others" if len(c.pairs) > 1 else "them"
        out.print("", f"To tell {who} apart, four times in five:", *(f"  {m}" for m in more))


def _next_commands(o: CompareOptions, c: Comparison, runs: list[Path]) -> list[tuple[str, str]]:
    """Returns useful next commands with descriptions, such as more episodes or a page."""
    who = [part for g in o.group for part in ("--group", *g)] or [*map(str, o.runs)]
    more = [
        *given_options(o, "env"),
        *acting_options(o),
        *trust_options(o.trust, o.env, *(r for r in runs if not _is_saved_rollouts(r))),
    ]

    def again(episodes, *options):
        return command_line("compare", *who, "--episodes", episodes, *more, *options)
    commands = []
    short = [p.episodes_needed for p in c.pairs if p.better is None and p.episodes_needed is not None]
    if (
        c.seeds == 1
        and short
        and o.env is not None
        and not any(map(_is_saved_rollouts, runs))
        and max(short) > c.episodes
    ):
        commands.append((again(min(max(short), 10 * c.episodes), *given_options(o, "save")),
                         "More episodes, to tell more of them apart:"))
    if o.html is None:
        commands.append((again(c.episodes, "--html", unused_path("report.html")), "The same as a page:"))
    return commands
