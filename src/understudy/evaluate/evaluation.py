"""Closed-loop evaluation: success rates with intervals, and which of two policies is better."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from ..core import UserError, as_seed
from ..data.episode import Dataset, Episode
from ..envs.base import Env
from ..envs.episode_wrappers import trial_success_key
from ..execute.actor import Actor
from ..files import replace_nonfinite
from . import stats
from .env_checks import different_column
from .rollout import rollout
from .sequential import SequentialDifferenceTest, SequentialRateTest, TestState
from .stats import LEVEL, Interval, are_too_few


def validation_seed(seed: int) -> int:
    """Returns the seed of rollouts during training.

    Evaluation uses seeds from 0 upward, and everything else uses negative seeds. The episodes that selected a
    checkpoint are therefore never used to evaluate it.
    """
    return -1 - 3 * _check_seed(seed)


def recording_seed(seed: int) -> int:
    """Returns the seed of recorded demonstrations, which differs from the seed of evaluations."""
    return -2 - 3 * _check_seed(seed)


def user_seed(seed: int) -> int:
    """Returns the seed from which `recording_seed` made this one. Another number stays as it is."""
    return (-2 - seed) // 3 if seed < 0 and (-2 - seed) % 3 == 0 else seed


def tuning_seed(seed: int) -> int:
    """Returns the seed of rollouts that choose between settings."""
    return -3 - 3 * _check_seed(seed)


def _check_seed(seed: int) -> int:
    seed = as_seed(seed)
    if seed < 0:
        raise UserError(f"the seed must be 0 or larger, not {seed}", hint="negative seeds are reserved for training")
    return seed


@dataclass(frozen=True)
class Evaluation:
    """Rollouts of one checkpoint or another actor, with intervals. `success` is None if the environment does not define
    it. `alarms` says what a failure detector tells about the episodes."""

    env: str
    episodes: Dataset  # can be stored and trained on like any other
    success: Interval | None
    returns: Interval
    seconds: float
    seed: int
    alarms: str = ""

    @property
    def successes(self) -> np.ndarray | None:
        """Whether each episode succeeded, (episodes,) bool."""
        return None if self.success is None else np.array([bool(e.metadata["success"]) for e in self.episodes])

    @property
    def trial_successes(self) -> np.ndarray | None:
        """Whether each trial of each episode succeeded, (episodes, trials) bool. None if episodes are single trials."""
        first, n = self.episodes[0].metadata, 0
        while trial_success_key(n) in first:
            n += 1
        if self.success is None or not n:
            return None
        return np.array([[bool(e.metadata[trial_success_key(i)]) for i in range(n)] for e in self.episodes])

    @property
    def trials(self) -> list[Interval] | None:
        """Success rate in each trial of the episodes (see `MultiTrialEnv`). None if episodes are single trials."""
        if (k := self.trial_successes) is None:
            return None
        assert self.success is not None
        return [stats.clopper_pearson(int(one.sum()), len(one), self.success.level) for one in k.T]

    @property
    def trial_gain(self) -> PairedComparison | None:
        """Success in the last trial minus success in the first, of the same episodes. None if there are no several
        trials."""
        if (k := self.trial_successes) is None or k.shape[1] == 1:
            return None
        assert self.success is not None
        return compare_outcomes(k[:, -1], k[:, 0], "success", self.success.level)

    @property
    def episode_returns(self) -> np.ndarray:
        """Return of each episode, (episodes,) float64."""
        return np.array([episode_return(e) for e in self.episodes])

    def to_json(self, other: Evaluation | None = None, name: str = "") -> dict[str, Any]:
        """Returns the document of `understudy eval --json`.

        Args:
            other: A second evaluation to compare with.
            name: Its name under `against`. `against` has the difference of success, or the difference of returns if
                success is not defined.
        """
        k = self.successes
        out = {
            "env": self.env, "episodes": len(self.episodes), "successes": None if k is None else int(k.sum()),
            "success": None if self.success is None else _interval_to_json(self.success, "estimate"),
            "return": _interval_to_json(self.returns, "mean"), "seconds": self.seconds, "paired": None,
            "trials": None, "trial_gain": None}
        if (trials := self.trials) is not None and (each := self.trial_successes) is not None:
            out["trials"] = [{"successes": int(n), "success": _interval_to_json(rate, "estimate")}
                             for n, rate in zip(each.sum(0), trials, strict=True)]
        if (g := self.trial_gain) is not None:
            out["trial_gain"] = g.to_json()
        if other is not None:
            out["paired"] = {"against": name, **compare(self, other).to_json()}
        return replace_nonfinite(out)


@dataclass(frozen=True)
class PairedComparison:
    """The comparison of two policies on the same starts, first minus second.

    With one training seed (`n_seeds`), it compares two checkpoints. With more, it compares two methods.
    """

    metric: Literal["success", "return"]
    difference: float
    low: float
    high: float
    p_value: float  # p-value of the hypothesis of no difference
    level: float
    n_seeds: int

    @property
    def better(self) -> Literal["first", "second"] | None:
        """The better policy. None means "cannot tell": the interval and the test do not both show a difference."""
        if not self.p_value < 1 - self.level:
            return None
        return "first" if self.low > 0 else "second" if self.high < 0 else None

    def to_json(self) -> dict[str, float]:
        """Returns the difference, its limits and the p-value as JSON."""
        return {"difference": self.difference, "low": self.low, "high": self.high, "p": self.p_value}


@dataclass(frozen=True)
class MethodEvaluation:
    """The evaluation of a method over several training seeds, all on the same starts."""

    success: Interval | None
    returns: Interval
    n_seeds: int


MethodRuns = Evaluation | Sequence[Evaluation]  # one checkpoint, or one for each training seed


def evaluate(actor: Actor, env: Env, episodes: int = 100, seed: int = 0, *, level: float = LEVEL,
             watch: Callable[[int, Episode], None] = lambda n, e: None) -> Evaluation:
    """Evaluates an actor: runs episodes 0 to episodes-1 of a seed, and computes success and intervals.

    An episode is a success if the environment reports it in `info["success"]` at any step.

    Args:
        seed: Seed of the episodes, 0 or larger.
        watch: Called as `watch(number, episode)` when an episode ends.
    """
    if episodes < 1:
        raise UserError(f"an evaluation needs at least one episode, not {episodes}", where="evaluate",
                        hint="such as 100")
    began = time.perf_counter()
    rollouts = rollout(actor, env, episodes, seed, watch=watch)
    return evaluation_of(rollouts, time.perf_counter() - began, level)


def evaluation_of(episodes: Dataset, seconds: float = math.nan, level: float = LEVEL) -> Evaluation:
    """Builds the evaluation of existing rollouts, which may come from disk.

    If some episodes have no "success", they were written before the environment first reported one, and are failures.

    Args:
        seconds: Wall-clock time of the rollouts, seconds.
    """
    ended = [e.metadata.get("success") for e in episodes]
    success = None
    if any(is_success is not None for is_success in ended):
        success = stats.clopper_pearson(sum(map(bool, ended)), len(ended), level)
        episodes = _others_failed(episodes) if None in ended else episodes
    returns = stats.bootstrap_mean([episode_return(e) for e in episodes], level)
    first = episodes[0].metadata
    return Evaluation(str(first["env"]), episodes, success, returns, seconds, int(first["seed"]))


def with_common_success(groups: Sequence[Sequence[Evaluation]]) -> list[tuple[Evaluation, ...]]:
    """Returns the evaluations with success defined in all of them, if it is in any.

    An environment may report success only where there is one. Rollouts without any then seem to define no success.
    """
    if all(run.success is None for runs in groups for run in runs):
        return [tuple(runs) for runs in groups]
    return [tuple(run if run.success is not None else
                  replace(run, episodes=_others_failed(run.episodes),
                          success=stats.clopper_pearson(0, len(run.episodes), run.returns.level))
                  for run in runs) for runs in groups]


def _others_failed(episodes: Dataset) -> Dataset:
    """Sets success to False in the episodes that do not report it."""
    return Dataset([replace(e, metadata={"success": False, **e.metadata}) for e in episodes], episodes.metadata)


def aggregate_seeds(runs: Sequence[Evaluation], level: float = LEVEL) -> MethodEvaluation:
    """Aggregates the evaluations of a method, one for each training seed, on the same starts."""
    for other in runs[1:]:
        _check_same_starts(runs[0], other)
    (runs,) = with_common_success([runs])
    tallies = [r.successes for r in runs if r.successes is not None]
    success = stats.two_level_rate(tallies, level) if len(tallies) == len(runs) else None
    return MethodEvaluation(success, stats.two_level_mean([r.episode_returns for r in runs], level), len(runs))


def compare(
    a: MethodRuns, b: MethodRuns, *, metric: Literal["success", "return"] | None = None, level: float = LEVEL
) -> PairedComparison:
    """Compares two evaluations a and b on the same starts. Differences are a minus b.

    Two evaluations compare these checkpoints, with Tango's interval and McNemar's exact test, or for returns with a
    bootstrap and a sign-flip test. Two groups of evaluations, one for each training seed, compare the methods over
    seeds and starts.

    Args:
        a: An evaluation, or one for each training seed.
        b: Likewise, on the same starts.
        metric: "success" or "return". By default success, if it is defined.
    """
    first, second = with_common_success([_as_runs(a), _as_runs(b)])
    if len(first) != len(second):
        raise UserError(f"both methods need the same number of training seeds, but have {len(first)} and {len(second)}",
                        where="compare", hint="give one evaluation for each training seed")
    for other in (*first[1:], *second):
        _check_same_starts(first[0], other)
    defined = all(r.success is not None for r in (*first, *second))
    metric = metric or ("success" if defined else "return")
    if metric == "success" and not defined:
        raise UserError(f"{first[0].env} defines no success", where="compare",
                        hint='compare the return: metric="return"')
    x, y = (np.array([r.successes if metric == "success" else r.episode_returns for r in runs])
            for runs in (first, second))
    if len(x) == 1:
        return compare_outcomes(x[0], y[0], metric, level)
    interval, p = stats.two_level_difference(x, y, level, kind="rate" if metric == "success" else "real")
    return PairedComparison(metric, interval.estimate, interval.low, interval.high, p, level, len(first))


def compare_outcomes(x: np.ndarray, y: np.ndarray, metric: Literal["success", "return"], level: float = LEVEL
                     ) -> PairedComparison:
    """Compares two checkpoints by their outcomes in the same episodes, x minus y, as `compare` does.

    Args:
        x: Success, bool, or return of each episode, (episodes,).
    """
    if metric == "success":
        only, other = int((x & ~y).sum()), int((y & ~x).sum())
        interval, p_value = stats.tango(only, other, x.size, level), stats.mcnemar(only, other)
    else:
        interval, p_value = stats.bootstrap_mean(x - y, level), stats.sign_flip_p_value(x - y)
    return PairedComparison(metric, interval.estimate, interval.low, interval.high, p_value, level, 1)


def describe_trial_gain(e: Evaluation) -> str:
    """Describes in words the success in the last trial minus the success in the first. Empty if there are no trials."""
    if (gain := e.trial_gain) is None:
        return ""
    return (f"The last trial minus the first: {_format_difference(gain.difference, 'success')}, "
            f"{_format_interval(gain, lambda v: _format_difference(v, 'success'))}, {format_p_value(gain.p_value)}.")


def verdict(
    a: MethodRuns, b: MethodRuns | None = None, names: tuple[str, str] = ("this checkpoint", "the other")
) -> str:
    """Returns the result in plain words: how good a policy is, or which of two is better, and how certain that is.

    Args:
        a: An evaluation, or one per training seed.
        b: An evaluation of a second policy, or one per training seed. None for a verdict on the first policy alone.
    """
    return " ".join(verdict_parts(a, b, names))


def verdict_parts(a: MethodRuns, b: MethodRuns | None = None, names: tuple[str, str] = ("this checkpoint", "the other")
                  ) -> tuple[str, str, str]:
    """Returns the three parts of `verdict`: the result, its certainty, and what it is about."""
    runs, *others = with_common_success([_as_runs(one) for one in (a, b) if one is not None])
    what = "success" if runs[0].success is not None else "return"
    if not others:
        both = aggregate_seeds(runs) if len(runs) > 1 else runs[0]
        r = both.success or both.returns
        show = (lambda v: f"{v:.1%}") if what == "success" else (lambda v: f"{v:.4g}")
        scope = ("This is about this checkpoint; another training seed may come out otherwise." if len(runs) == 1 else
                 f"This is about the method: {len(runs)} training seeds, over seeds and starts. "
                 f"{stats.seeds_caveat(len(runs))}")
        done = "succeeds in" if what == "success" else "has"
        return (f"{capitalize_name(names[0])} {done} {_success_counts(runs, what)} in {runs[0].env}.",
                f"{f'{show(r.estimate)}, ' if what == 'success' else ''}{_format_interval(r, show)}.", scope)
    p = compare(runs, others[0])
    what = p.metric
    order = -1 if p.better == "second" else 1
    winner, loser = names[::order]
    does = "succeeds more often than" if what == "success" else "has a higher return than"
    head = (f"Cannot tell whether {names[0]} or {names[1]} is better" if p.better is None else
            f"{capitalize_name(winner)} {does} {loser}")
    head += f": {' against '.join(_success_counts(r, what) for r in (runs, others[0])[::order])} on the same starts."
    more = "" if p.better else f" More {'episodes' if p.n_seeds == 1 else 'training seeds'} would narrow it down."
    sure = (
        f"{capitalize_name(names[0])} minus {names[1]}: {_format_difference(p.difference, what)}, "
        f"{_format_interval(p, lambda v: _format_difference(v, what))}, "
        f"{format_p_value(p.p_value)}.{_disagreement_note(p)}{more}")
    scope = ('This is about two checkpoints, and each stands for "this checkpoint" only: another training seed '
             "may come out otherwise. To compare the methods, train several seeds of each." if p.n_seeds == 1 else
             f"This is about the methods: {p.n_seeds} training seeds of each, over seeds and starts. "
             f"{stats.seeds_caveat(p.n_seeds)}")
    return head, sure, scope


def sequential_verdict_parts(
    test: SequentialRateTest | SequentialDifferenceTest,
    state: TestState,
    successes: Sequence[int],
    names: tuple[str, ...] = ("this checkpoint",),
    unit: str = "episodes",
) -> tuple[str, str, str]:
    """Returns the parts of a verdict, as `verdict_parts`, for a sequential test in the given state.

    Args:
        unit: What is counted, such as "episodes".
    """
    outcome, interval, first = test.verdict(state), test.interval(state), capitalize_name(names[0])
    if isinstance(test, SequentialDifferenceTest):
        n, gap, starts = state["pairs"], f"{first} minus {names[1]}: ", " on the same starts"
        unsettled = f"Cannot tell whether {names[0]} or {names[1]} is better"
        settled = {"first": f"{first} succeeds more often than {names[1]}",
                   "second": f"{capitalize_name(names[1])} succeeds more often than {names[0]}"}
        scope = 'This is about two checkpoints, and each stands for "this checkpoint" only.'
    else:
        n, gap, starts, bound = state["trials"], "", "", f"than {test.threshold:.4g} of the {unit}"
        unsettled = f"Cannot tell whether {names[0]} succeeds in more or in less {bound}"
        settled = {"above": f"{first} succeeds in more {bound}", "below": f"{first} succeeds in less {bound}"}
        scope = "This is about this checkpoint; another training seed may come out otherwise."

    def show(value: float) -> str:
        return _format_difference(value, "success") if starts else f"{value:.1%}"
    tally = " against ".join(f"{k} of {n}" for k in (successes[::-1] if outcome == "second" else successes)) + starts
    if outcome == "futile":
        reason = (f" That is all that were asked for: {n}." if n >= (test.max_rollouts or n) else
                  f" It would hardly be settled within the {test.max_rollouts} that were asked for.")
    else:
        reason = f" Settled after {n} {unit}." if outcome in settled else ""
    certainty = (f"{gap}{show(interval.estimate)}, {_format_interval(interval, show)}, "
                 f"{format_p_value(min(1.0, 1 / test.e_value(state)))}; these hold whenever one looks.{reason}")
    return f"{settled.get(outcome, unsettled)}: {tally}.", certainty, scope


def _disagreement_note(p: PairedComparison) -> str:
    """Explains a disagreement of interval and test: what each says, and which one decides. Empty if they agree."""
    apart, sure = p.low > 0 or p.high < 0, p.p_value < 1 - p.level
    if apart == sure:
        return ""
    says = ("The interval leaves out 0, but the test does not rule out chance" if apart else
            "The test rules out chance, but the interval does not leave out 0")
    return (f" {says}: neither is called better unless both say so, because with few differing outcomes each "
            "test alone errs too often.")


def _success_counts(runs: Sequence[Evaluation], what: str) -> str:
    if what == "success":
        succeeded = sum(int(r.successes.sum()) for r in runs if r.successes is not None)
        return f"{succeeded} of {sum(len(r.episodes) for r in runs)}"
    return f"a mean return of {np.mean([r.episode_returns.mean() for r in runs]):.4g}"


def _format_interval(interval: Interval | PairedComparison, show: Callable[[float], str]) -> str:
    if math.isnan(interval.low):
        needed = next(n for n in itertools.count(1) if not are_too_few(n, interval.level))
        return f"no interval: that takes at least {needed} episodes, all with finite returns"
    return f"{interval.level:.0%} interval {show(interval.low)} to {show(interval.high)}"


def _format_difference(value: float, what: str) -> str:
    return f"{100 * value:+.1f} points" if what == "success" else f"{value:+.4g}"


def format_p_value(p: float) -> str:
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def capitalize_name(name: str) -> str:
    """Capitalizes a word at the start of a sentence. Names of methods and paths stay unchanged."""
    first, more, _ = name.partition(" ")
    return name[:1].upper() + name[1:] if more and first.isalpha() else name


def _interval_to_json(i: Interval, name: str) -> dict[str, float]:
    return {name: i.estimate, "low": i.low, "high": i.high, "level": i.level}


def episode_return(episode: Episode) -> float:
    return float(np.sum(episode.steps["next.reward"], dtype=np.float64))


def _as_runs(runs: MethodRuns) -> tuple[Evaluation, ...]:
    return (runs,) if isinstance(runs, Evaluation) else tuple(runs)


def _check_same_starts(a: Evaluation, b: Evaluation) -> None:
    """Raises an error if two evaluations differ in their metadata or the first observations of their episodes."""
    if a.env != b.env or len(a.episodes) != len(b.episodes):
        raise UserError(f"the environments or starts differ: {len(a.episodes)} episodes of {a.env} and "
                        f"{len(b.episodes)} of {b.env}", where="compare", hint="evaluate both alike")
    for x, y in zip(a.episodes, b.episodes, strict=True):
        first_start, second_start = ((e.metadata["seed"], e.metadata["number"]) for e in (x, y))
        if first_start != second_start:
            raise UserError(f"the starts differ: seed {first_start[0]}, episode {first_start[1]}, and seed "
                            f"{second_start[0]}, episode {second_start[1]}", where="compare",
                            hint="evaluate both with the same seed and number of episodes")
        columns = {k for k, f in x.features().items() if k.startswith("observation.") and f.kind != "image"}
        first, second = ({k: e.steps[k][0] for k in columns & set(e.steps)} for e in (x, y))
        if (k := different_column(first, second, columns)) is not None:  # frames may come from a video, which is lossy
            raise UserError(f"the starts differ: {k} of episode {first_start[1]} is not the same",
                            where=f"compare, {a.env}, seed {first_start[0]}",
                            hint="the environment does not repeat: it is not decided by its key alone")
