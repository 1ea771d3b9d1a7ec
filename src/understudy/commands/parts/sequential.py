"""understudy eval --sequential: rolls out only as many episodes as an answer needs."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...core import UserError
from ...hints import path_text
from .common import (
    Output,
    acting_options,
    command_line,
    progress_bar,
    trained_rate,
    trust_options,
)
from .policies import append_result, load_actor, refuse_unused_conditions, tell_untrained_episodes
from .rollouts import policy_key

if TYPE_CHECKING:
    from ...data.episode import Dataset
    from ...evaluate.sequential import SequentialDifferenceTest, SequentialRateTest
    from .eval_options import EvalOptions
    from .kept_episodes import KeptEpisodes

DEFAULT_MAX_EPISODES = 100  # episodes without a word of success, after which there is none


def run_sequential(o: EvalOptions, out: Output) -> None:
    """Evaluates one or two policies until the test decides, and prints the result."""
    from ...envs import make
    from ...evaluate.evaluation import sequential_verdict_parts

    test = build_test(o)
    runs = [o.run] if o.against is None else [o.run, o.against]
    assert o.target is not None and o.episodes is not None
    refuse_unused_conditions([o.run], o)
    with closing(make(o.target, min(o.rows, o.episodes), o.trust)) as env:
        began = time.perf_counter()
        won = _run_until_settled(test, runs, env, o)
    path, state = [], test.start()
    for outcome in won:
        path.append(state := test.update(state, *outcome))
    successes = tuple(map(sum, zip(*won, strict=True)))
    names = ("this checkpoint",) if o.against is None else tuple(f"the policy in {path_text(run)}" for run in runs)
    verdict = sequential_verdict_parts(test, state, successes, names)
    document = _to_json(o, test, state, successes, str(env.metadata["env"]), time.perf_counter() - began)
    out.print(" ".join(verdict))
    if env.metadata.get("success"):
        out.print(f"Success: {env.metadata['success']}.")
    if o.save:
        out.print(f"Episodes written to {o.save}")
    append_result(o, {**document, "seed": o.seed, "each": {"success": [w[0] for w in won]}})
    if o.html is not None:
        write_sequential_page(o.html, test, path, verdict, [run.name for run in runs], document["env"])
        out.print(f"Report written to {o.html}")
    if test.verdict(state) == "futile" and (enough := _episodes_needed(o, successes, len(won))) is not None:
        out.print(f"If all is as it was seen here, {enough:,} episodes settle it four times in five.")
        asked = ("--threshold", o.threshold) if o.against is None else ("--against", o.against)
        out.suggest(command_line("eval", o.run, o.target, "--sequential", *asked, "--episodes", enough,
                                 *acting_options(o), *trust_options(o.trust, o.target, *runs)))
    out.print_json(document)


def _episodes_needed(o: EvalOptions, successes: tuple[int, ...], episodes: int) -> int | None:
    """Returns the number of episodes that decide with probability 0.8. None if the rates are about equal.

    The rates are posterior means after the episodes so far, with a flat prior. None also if --episodes allows that
    many.
    """
    from ...evaluate.planning import plan, plan_rate

    rates = [(k + 1) / (episodes + 2) for k in successes]
    try:
        enough = (plan_rate(rates[0], o.threshold) if o.threshold is not None else plan(*rates)).maximum
    except UserError:  # nobody runs so many
        return None
    return enough if o.episodes is not None and enough > o.episodes else None


def build_test(o: EvalOptions) -> SequentialRateTest | SequentialDifferenceTest:
    """Builds the sequential test that the options ask for."""
    from ...evaluate.sequential import SequentialDifferenceTest, SequentialRateTest

    flag = "--interactive" if o.interactive else "--sequential"
    if (o.threshold is None) == (o.against is None):
        problem = "neither is given" if o.threshold is None else "both are given"
        raise UserError(f"needs either --threshold RATE or --against RUN2, but {problem}", where=flag,
                        hint="does it succeed in more or less --threshold 0.7? more often than --against RUN2?")

    make: Any = SequentialDifferenceTest if o.threshold is None else partial(SequentialRateTest, o.threshold)
    assert o.episodes is not None
    if (enough := fewest_rollouts(make, o.episodes)) != o.episodes:
        raise UserError(f"{o.episodes} episodes are too few for any verdict: "
                        f"{f'at least {enough}' if enough else 'more'} are needed", where="--episodes",
                        hint="it stops as soon as the question is settled")
    return make(max_rollouts=o.episodes)


def fewest_rollouts(make: Callable[..., SequentialRateTest | SequentialDifferenceTest], n: int) -> int | None:
    """Returns the smallest number of rollouts, from `n` on, with which a test can reach a verdict.

    None if about 10,000 are too few.
    """
    def is_futile(most: int) -> bool:
        test = make(max_rollouts=most)
        return test.verdict(test.start()) == "futile"
    return next((most for most in range(n, max(10_000, n + 1)) if not is_futile(most)), None)


def _run_until_settled(test, runs, env, o: EvalOptions) -> list[tuple[bool, ...]]:
    """Rolls out episodes until the test decides.

    Episodes are tested in the order of their numbers, so that the result does not depend on the number of rows.

    Returns:
        For each episode up to the episode that decides, whether each of the policies succeeded.
    """
    from ...evaluate.env_checks import warn_unless_repeatable
    from .kept_episodes import KeptEpisodes

    assert o.episodes is not None
    actors = [load_actor(run, env, o, tell=True) for run in runs]
    warn_unless_repeatable(actors[0][0], env, o.seed)
    state, won, reports_success = test.start(), [], [env.metadata.get("success") is not None] * len(runs)
    met: list[list[bool | None]] = [[] for _ in runs]
    with progress_bar(
        " against ".join(run.name for run in runs) + f" in {env.metadata['env']}", o.episodes
    ) as progress, KeptEpisodes() as kept:
        while len(met[0]) < o.episodes:
            first = len(met[0])
            group = min(env.rows, o.episodes - first)  # rows may idle at its end: more would be run for nothing
            for i, (actor, by) in enumerate(actors):
                data = _rollout_or_load(actor, env, o, range(first, first + group), by,
                                        kept if o.save is None or i > 0 else None)
                if first == 0 and o.task is None:
                    tell_untrained_episodes(runs[i], data, o.trust)
                met[i] += [e.metadata.get("success") for e in data]
                reports_success[i] |= any(s is not None for s in met[i])
            progress(len(met[0]))
            if not all(reports_success):  # an environment may report success for the first time later
                if len(met[0]) >= min(DEFAULT_MAX_EPISODES, o.episodes):
                    raise UserError(f"{env.metadata['env']} defines no success, whose rate this is about",
                                    where="--sequential",
                                    hint=command_line("eval", o.run, o.target) + " tells the mean return")
                continue
            for outcome in list(zip(*met, strict=True))[len(won):]:
                won.append(tuple(map(bool, outcome)))
                state = test.update(state, *won[-1])
                if test.verdict(state) is not None:
                    return won
    return won


def _rollout_or_load(actor, env, o: EvalOptions, numbers: range, by: str, kept: KeptEpisodes | None) -> Dataset:
    """Returns the episodes with these numbers, which an interrupted call may have finished."""
    from ...evaluate.recording import record_episodes
    from ...evaluate.workers import WorkerPool

    assert o.episodes is not None
    if kept is not None:
        with WorkerPool(lambda: (actor, env), local=(actor, env)) as crew:
            return kept.rollout(crew, env, o.episodes, o.seed, policy_key(by, o), numbers=numbers)
    assert o.save is not None
    return record_episodes(env, actor, numbers.stop, o.save, o.seed, actor_name=by, fps=trained_rate(o.run))[
        numbers.start : numbers.stop
    ]


def _to_json(o: EvalOptions, test, state, successes, env: str, seconds: float) -> dict:
    """Returns the document of `eval --json` with numbers that hold at any stopping time, and the verdict."""
    from ...evaluate.sequential import SequentialRateTest

    n, p = next(iter(state.values())), min(1.0, 1 / test.e_value(state))
    alone = SequentialRateTest(o.threshold or 0.5).interval({"trials": n, "successes": successes[0]})
    paired = None if o.against is None else test.interval(state)
    return {"env": env, "verdict": test.verdict(state), "episodes": n, "most": o.episodes, "threshold": o.threshold,
            "successes": successes[0], "success": asdict(alone), "p": p, "seconds": seconds,
            "paired": None if paired is None else {"against": path_text(o.against), "successes": successes[1],
                                                   "difference": paired.estimate, "low": paired.low,
                                                   "high": paired.high, "p": p}}


def write_sequential_page(
    file: Path,
    test: SequentialRateTest | SequentialDifferenceTest,
    path: Sequence[dict[str, int]],
    verdict: Sequence[str],
    names: Sequence[str],
    where: str,
    unit: str = "episodes",
) -> None:
    """Writes a page that shows how the interval narrowed.

    Args:
        path: State of the test after each episode, or each round of trials.
        where: Name of the environment, or "trials".
        unit: What the test counts, in the plural, such as "episodes".
    """
    from ...evaluate import plots, report
    from ...evaluate.sequential import SequentialDifferenceTest

    counts = [*range(1, len(path) + 1)]
    intervals = [test.interval(state) for state in path]
    two = isinstance(test, SequentialDifferenceTest)
    name, bound = ("difference", "no difference") if two else ("success", f"{test.threshold:g}")
    level, low = (0.0, -1.0) if two else (test.threshold, 0.0)
    figure = plots.curves({name: (counts, [i.estimate for i in intervals]), bound: ([1, len(path)], [level, level])},
                          plots.Axis(unit), plots.Axis(name, low, 1.0),
                          bands={name: ([i.low for i in intervals], [i.high for i in intervals])})
    what = f"{names[0]} minus {names[1]}" if two else f"Success of {names[0]}"
    items = ((what, figure, "The band is the 95% interval at each moment; all of it holds at once."),)
    report.write_page(file, f"{what} in {where}",
                [report.Section(f"Looked at after every {unit.removesuffix('s')}", (report.Figures(items),))],
                verdict=verdict, footer="Intervals and p: betting, valid at any time (Waudby-Smith and Ramdas 2024).")
