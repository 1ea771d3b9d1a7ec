"""Chooses a method for a data set by short trials on the same starts, and shows the evidence.

The rule, which does not depend on what is seen:

- Every candidate gets the same training time, and no more updates than it has by default.
- A round trains one more seed of every candidate that is left, and judges it on the same starts (or, without an
  environment, on the same held-out episodes).
- After a round, a candidate is dropped if it is worse than the best one: the p-value of the sign-flip test of the
  differences on each start (means over the seeds so far), times the number of such tests that there can be, is below
  0.05. This is about the policies that were trained. The best two stay until each has three training seeds.
- A candidate whose training or judging fails is left out, with all its trials.
- The trials end when one candidate is left, after five rounds, or when another round would exceed the budget. The best
  one is recommended. Other candidates that are left are named: the trials do not tell them apart.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .advice import advice_about
from .audit.scores.neighbors import LocalUnimodality
from .core import Schema, UserError, role
from .data.episode import Dataset
from .envs.base import Env
from .envs.recorded_columns import check_recorded_columns
from .evaluate import stats
from .evaluate.env_checks import warn_unless_repeatable
from .evaluate.evaluation import evaluate, tuning_seed
from .evaluate.stats import Interval
from .files import file_name, read_json, replace_nonfinite, write_json
from .hints import command_line, format_duration, join_and, pluralize
from .learn.fit_method import fit_method
from .learn.method import Method, build_actor, load_actor, training_data, without_made_episodes
from .learn.preflight import preflight, tell
from .learn.train import train
from .learn.training_episodes import EpisodeSplit, validation_episodes
from .learn.validation import Validation, target_scale
from .methods import find_method, read_info
from .methods.needs import is_goal, learners_for, middle_returns
from .policy import Policy

MAX_ROUNDS = 5
MIN_SEEDS = 3  # of the best two
SIGNIFICANCE = 0.05  # of all tests together
HELD_OUT = 0.2  # fraction of the episodes, without an environment
TIMED_UPDATES = 24
ROUNDS_OF_ALL = 1.5  # trials of all candidates for which the time of a trial is planned; many are dropped early
LEAST_UPDATES = 0.05  # fraction of the default number; a candidate that has no time for these is not tried
ROWS = 16  # rows of every batch that a network gets in rollouts
FEW_EPISODES = 40  # with fewer, two ways of acting may not be seen
ENOUGH_EPISODES = 200  # with as many, a second way would have been seen
FAST = 30  # steps a second: ten observations are a third of a second
MIN_COMPARED_EPISODES = 10  # with fewer, chance looks like two ways
MEASURED_STEPS = 20_000  # of large data, evenly spaced episodes are measured
TWO_WAYS_FRACTION = 0.01  # of the steps; toys with one way to act have at most 0.1 %
LARGE_TWO_WAYS_FRACTION = 0.1  # of the steps, so that one answer is wrong at many of them
TWO_WAYS = 0.25  # of `LocalUnimodality`: neighbors act in two clearly different ways

Metric = Literal["success", "return", "error"]


@dataclass(frozen=True)
class DataProperties:
    """Properties of a data set that matter for the choice of a method.

    Args:
        fps: Steps per second. None if unknown.
        two_ways: Fraction of the steps at which the nearest steps of other episodes act in two clearly different ways
            (`LocalUnimodality`). None if it cannot be measured, as with fewer than 10 episodes.
        returns: The 10th and the 90th percentile of the episodes' returns. None if there are no rewards.
        learners: The result of `learners_for` for the data.
        has_ends: Whether the data say where the environment ended an episode.
        given_goal: Whether the environment in which the methods are judged gives a goal that a state can be.
    """

    episodes: int
    steps: int
    fps: float | None
    cameras: int
    actions: Literal["numbers", "classes"]
    two_ways: float | None
    returns: tuple[float, float] | None = None
    learners: Mapping[str, str] = field(default_factory=dict)
    has_ends: bool = True
    given_goal: bool = False

    def sentences(self) -> list[str]:
        """Describes the properties in sentences."""
        rate = f" at {self.fps:g} a second" if self.fps else ""
        cameras = f"{self.cameras or 'no'} camera{'s' * (self.cameras > 1)}"
        sentences = [f"{self.episodes} episodes, {self.steps} steps{rate}; {cameras}; actions are {self.actions}."]
        if self.two_ways is not None:
            effect = (": a method that predicts the mean may act in neither." if self.two_ways >= TWO_WAYS_FRACTION else
                      f". {self.episodes} episodes may be too few to see them." if _is_few(self) else ".")
            sentences.append(f"At {self.two_ways:.1%} of the steps, the most similar steps of other episodes act in "
                             f"two clearly different ways{effect}")
        advice = advice_about("choose ways") if (self.two_ways or 0) >= TWO_WAYS_FRACTION else []
        return [*sentences, *advice, *self.learners.values()]


@dataclass(frozen=True)
class CandidateRule:
    """A rule by which a property of the data adds candidate methods or drops them.

    Args:
        methods: Names of the methods that it adds, or drops.
        reason: Why, with the properties in braces. Empty for the sentence in `understudy methods`.
        adds: False drops the methods.
    """

    applies: Callable[[DataProperties], bool]
    methods: tuple[str, ...]
    reason: str = ""
    adds: bool = True


def _is_few(p: DataProperties) -> bool:
    return p.episodes < FEW_EPISODES


def _has_ways(p: DataProperties, least: float = TWO_WAYS_FRACTION) -> bool:
    return p.two_ways is not None and p.two_ways >= least


def _is_fast(p: DataProperties) -> bool:
    return p.actions == "numbers" and (p.fps or 0) >= FAST


# Later rules change what earlier ones chose. Only many episodes without a second way drop a method that can represent
# several: on four_rooms no second way is seen in 60 episodes, and flow-policy is best.
CANDIDATE_RULES = (
    CandidateRule(lambda p: p.actions == "classes", ("bc", "knn")),
    CandidateRule(lambda p: p.actions == "numbers",
                  ("bc", "bc-gmm", "bc-rnn-gmm", "knn", "mip", "flow-policy", "act", "diffusion-policy")),
    CandidateRule(_is_few, ("knn",), "{episodes} episodes"),
    CandidateRule(lambda p: _is_few(p) and p.actions == "numbers", ("search-bc",), "{episodes} episodes"),
    CandidateRule(_has_ways, ("bc-gmm", "flow-policy", "diffusion-policy"), "two ways at {two_ways:.1%} of the steps"),
    CandidateRule(_has_ways, ("bc-rnn-gmm",),
                  "two ways at {two_ways:.1%} of the steps, which earlier observations may tell apart"),
    CandidateRule(lambda p: "iql" in p.learners and p.has_ends, ("iql",), "returns differ between episodes"),
    CandidateRule(lambda p: p.given_goal, ("gcivl", "hiql"), "the environment gives a goal"),
    CandidateRule(_is_fast, ("act",), "long chunks for {fps:g} steps a second"),
    CandidateRule(lambda p: _is_fast(p) and not _has_ways(p), ("bc-rnn-gmm",),
                  "at {fps:g} steps a second its ten observations tell little", adds=False),
    CandidateRule(lambda p: _has_ways(p, LARGE_TWO_WAYS_FRACTION), ("mip",),
                  "it gives one answer, and there are two ways at {two_ways:.1%} of the steps", adds=False),
    CandidateRule(lambda p: p.two_ways is not None and not _has_ways(p) and p.episodes >= ENOUGH_EPISODES,
                  ("diffusion-policy",), "it is slow, and {episodes} episodes show one way to act", adds=False),
    CandidateRule(lambda p: p.cameras > 0, ("knn", "search-bc"), "it cannot read images", adds=False),
    CandidateRule(lambda p: _is_few(p) and p.cameras > 0 and p.actions == "numbers", ("vinn-byol",),
                  "{episodes} episodes with images"),
)


@dataclass(frozen=True)
class MethodTrial:
    """One short training of a method, and its evaluation.

    Args:
        seconds: Wall-clock time of training and judging, seconds.
        values: For each start success (0 or 1) or return, or for each held-out episode minus the error.
    """

    method: str
    seed: int
    updates: int
    seconds: float
    metric: Metric
    values: tuple[float, ...]

    @property
    def result(self) -> str:
        """Mean value of the trial in words."""
        mean = float(np.mean(self.values))
        return {"success": f"{mean:.1%} success", "return": f"return {mean:.4g}",
                "error": f"action error {-mean:z.4g}"}[self.metric]


@dataclass(frozen=True)
class FailedTrial:
    """A training that failed, or whose policy could not be judged.

    Args:
        seconds: Wall-clock time until it failed, seconds.
    """

    method: str
    seed: int
    seconds: float
    failed: str  # why


@dataclass(frozen=True)
class Standing:
    """The place of a candidate method after the trials.

    Args:
        reason: Why the method is a candidate. Empty if it was named.
        estimate: Mean value with its interval over training seeds and starts. With one seed, over starts alone.
        full_updates: Number of updates that the method has by default.
        seconds: Wall-clock time of one trial, seconds.
        dropped_after: The round after which it was dropped. None if it was not.
        worse: Whether the test finds it worse than the best method. It is kept nevertheless until there are `MIN_SEEDS`
            training seeds if it is one of the best two.
    """

    method: str
    reason: str
    estimate: Interval
    seeds: int
    updates: int
    full_updates: int
    seconds: float
    dropped_after: int | None
    worse: bool = False


@dataclass(frozen=True)
class MethodChoice:
    """The result of `choose_method`.

    Args:
        env: Name of the environment. None if the candidates were judged on held-out episodes.
        metric: What the values are. "error" is the error of predicted actions, and smaller is better.
        judged_on: Number of starts or of held-out episodes.
        ahead: Number of steps whose predicted actions are judged, from the current one on: the same for all candidates.
            None if the policies act in an environment.
        standings: The candidates, best first. Dropped candidates come last.
        skipped: Candidates that were not tried, each with the reason.
        failed: Candidates that were left out because they failed, each with the reason.
        budget: Seconds that were allowed.
        seconds: Seconds that all trials took.
    """

    properties: DataProperties
    env: str | None
    metric: Metric
    judged_on: int
    ahead: int | None
    standings: tuple[Standing, ...]
    skipped: Mapping[str, str]
    rounds: int
    budget: float
    seconds: float
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def recommended(self) -> str:
        """The name of the best method."""
        return self.standings[0].method

    @property
    def tied(self) -> tuple[str, ...]:
        """The names of the methods that the trials do not tell apart from the best one."""
        return tuple(s.method for s in self.standings[1:] if s.dropped_after is None and not s.worse)

    def printed_estimate(self, standing: Standing) -> Interval:
        """Returns the estimate of a candidate as it is printed: errors are positive."""
        return -standing.estimate if self.metric == "error" else standing.estimate

    def verdict_parts(self) -> tuple[str, str, str]:
        """Says what is recommended, how certain that is, and what the statement is about."""
        n_dropped = sum(s.dropped_after is not None for s in self.standings)
        kept = [s for s in self.standings if s.worse and s.dropped_after is None]
        if self.tied:
            certainty = f"{join_and(self.tied)} did as well, as far as {pluralize(self.rounds, 'round')} can tell."
        elif kept:
            certainty = (f"{kept[0].method} was worse, but with {pluralize(kept[0].seeds, 'training seed')} of each "
                         "that is not certain.")
        else:
            certainty = ("Every other candidate was worse." if len(self.standings) > 1 else
                         "It was compared with no other candidate.")
        if n_dropped:
            certainty += f" {n_dropped} of {len(self.standings)} {'was' if n_dropped == 1 else 'were'} dropped."
        if self.failed:
            certainty += f" {join_and(list(self.failed))} failed."
        short = [s.method for s in self.standings if s.updates < s.full_updates / 2]
        basis = (f"{join_and(short)} had less than half of {'its' if len(short) == 1 else 'their'} updates: with a "
                 "longer --budget, and another --out, the order may change. " if short else "")
        predicted = "next action" if self.ahead == 1 else f"next {self.ahead} actions"
        basis += (f"Judged in {self.env} on {self.judged_on} starts, which understudy eval never uses."
                  if self.env is not None else
                  f"Judged by the error of the {predicted}, predicted on {self.judged_on} held-out "
                  f"episode{'s' * (self.judged_on > 1)}, not by acting: with --env ENV the policies act.")
        return f"{self.recommended} is recommended.", certainty, basis

    def to_json(self) -> dict[str, Any]:
        """Returns the document of `understudy choose --json`."""
        return replace_nonfinite({
            "recommended": self.recommended, "tied": list(self.tied), "verdict": " ".join(self.verdict_parts()[:2]),
            "data": asdict(self.properties), "env": self.env, "of": self.metric, "judged_on": self.judged_on,
            "ahead": self.ahead, "rounds": self.rounds, "budget": self.budget, "seconds": self.seconds,
            "skipped": dict(self.skipped), "failed": dict(self.failed),
            "methods": [{"name": s.method, "reason": s.reason, **self.printed_estimate(s).to_json(), "seeds": s.seeds,
                         "updates": s.updates, "full_updates": s.full_updates, "seconds": s.seconds,
                         "dropped_after": s.dropped_after} for s in self.standings]})


def choose_method(data: Dataset, out: Path | str, *, env: Env | None = None, budget: float = 1800.0,
                  methods: Sequence[str] = (), episodes: int = 100, seed: int = 0, device: str = "cpu",
                  trust: tuple[str, ...] = (), say: Callable[[str], None] = lambda line: None,
                  build: Callable[[str, Schema], Method] | None = None, training: Mapping[str, Any] | None = None
                  ) -> MethodChoice:
    """Compares methods on a data set by short trials, and recommends one.

    Trials that an earlier, interrupted call finished are not repeated. Their runs stay in `out`, and are ordinary runs.

    Args:
        env: Environment in which the policies are judged. None to judge them by the error of predicted actions on
            held-out episodes, which is weaker evidence.
        budget: Seconds for all trials. The first round is always finished.
        methods: Names of the candidates. By default the methods that suit the data.
        episodes: Number of starts on which every trial is judged.
        seed: First seed of the trainings, and of the starts.
        build: Builds a candidate from its name and the columns of the data. None for `find_method`.
        training: Further options of `learn.train.train` for the trials, such as their `command`.

    Example:
        >>> choose_method(data, "trials", env=make("fork", rows=16), budget=600).recommended
        'flow-policy'
    """
    out = Path(out)
    held_out = [] if env is not None else validation_episodes(len(data), HELD_OUT)
    if env is None and not held_out:
        raise UserError(f"{len(data)} episodes are too few to hold any out",
                        where=data.metadata.get("path", "data set"),
                        hint="name an environment to judge them in (--env ENV), or record 5 episodes or more")
    features = data.features()
    if env is not None:
        check_recorded_columns(features, env)
    properties = data_properties(data, env)
    if "preference-reward" in properties.learners and not methods:
        raise UserError("the episodes are comparisons of two segments, from which no policy is chosen",
                        where=data.metadata.get("path", "data set"), hint=command_line(
                            "train", "preference-reward", data.metadata.get("path", "DATA"), "--out", "RUN")
                        + " learns a reward from them")
    candidates, dropped = ({name: "" for name in methods}, {}) if methods else candidate_methods(properties)
    asked = {"data": data.fingerprint(), "env": None if env is None else env.metadata["env"], "budget": budget,
             "methods": list(candidates), "episodes": episodes, "seed": seed,
             "method options": ((training or {}).get("options") or {}).get("method_options") or None}
    for line in properties.sentences():
        say(line)
    build = build or partial(find_method, trust=trust)
    built = {name: _check_candidate(build(name, features), name) for name in candidates}
    if env is None:
        dropped |= (no_actions := _without_actions(built))
        built = {name: method for name, method in built.items() if name not in no_actions}
    if len(built) < 2:
        raise UserError(f"{join_and(list(built)) or 'nothing'} has nothing to be compared with"
                        + "".join(f"; {name}: {why}" for name, why in dropped.items()), where="--methods",
                        hint="name two methods or more")
    ahead = min(m.policy.window.horizon + m.policy.window.action_offset for m in built.values())
    plan = _make_plan(out, asked, data, built, env, budget, device, say)

    def judge(folder: Path, method: Method) -> tuple[Metric, tuple[float, ...]]:
        return (_held_out_errors(folder, method, data, held_out, ahead, device, trust) if env is None else
                _rollout_values(folder, env, episodes, seed, device, trust))
    planned = {name: built[name] for name in plan["updates"] if name in built}
    series = _Trials(data, out, planned, plan["updates"], held_out, judge, {"device": device, **(training or {})})
    trials, dropped_after, failed, rounds, spent = series.run(seed, budget - float(plan["seconds"]), say)
    kept = {name: np.array([t.values for t in trials[name]]) for name in trials if name not in dropped_after}
    worse = {*dropped_after, *worse_candidates(kept, len(planned))}
    spent += float(plan["seconds"])
    metric, judged_on = next(iter(trials.values()))[0].metric, len(next(iter(trials.values()))[0].values)
    standings = [Standing(name, candidates[name], _estimate(np.array([t.values for t in method_trials]), metric),
                          len(method_trials), method_trials[0].updates, series.methods[name].learner.steps,
                          float(np.mean([t.seconds for t in method_trials])), dropped_after.get(name), name in worse)
                 for name, method_trials in trials.items()]
    standings.sort(key=lambda s: (-(s.dropped_after or math.inf), -s.estimate.estimate))
    return MethodChoice(properties, asked["env"], metric, judged_on, ahead if env is None else None, tuple(standings),
                        {**dropped, **plan["skipped"]}, rounds, budget, spent, {**plan.get("failed", {}), **failed})


def trial_run(out: Path, method: str, seed: int) -> Path:
    """Returns the run of a trial of `choose_method` in the folder of the trials."""
    return out / f"{file_name(method)}-{seed}"


def survivors(values: Mapping[str, np.ndarray], n_candidates: int) -> list[str]:
    """Returns the candidates that stay after a round: see `worse_candidates`."""
    ranked = sorted(values, key=lambda name: -values[name].mean())
    early = ranked[:2] if len(values[ranked[0]]) < MIN_SEEDS else []
    worse = worse_candidates(values, n_candidates)
    return [name for name in values if name in early or name not in worse]


def worse_candidates(values: Mapping[str, np.ndarray], n_candidates: int) -> list[str]:
    """Returns the candidates that are significantly worse than the best one.

    Args:
        values: The values of all trials of each candidate so far, (seeds, starts). Larger is better.
        n_candidates: Number of candidates in the first round. With the number of rounds it bounds the number of tests.
    """
    best = max(values, key=lambda name: values[name].mean())
    level = SIGNIFICANCE / (MAX_ROUNDS * (n_candidates - 1)) if n_candidates > 1 else SIGNIFICANCE
    return [name for name in values if name != best
            and stats.sign_flip_p_value((values[best] - values[name]).mean(0)) < level]


def candidate_methods(properties: DataProperties) -> tuple[dict[str, str], dict[str, str]]:
    """Returns the reason of each method to try, and of each that `CANDIDATE_RULES` dropped, by name."""
    chosen: dict[str, str] = {}
    dropped: dict[str, str] = {}
    for rule in CANDIDATE_RULES:
        if rule.applies(properties):
            for name in rule.methods:
                reason = rule.reason.format(**asdict(properties)) or read_info(name)[1].when
                if rule.adds:
                    chosen[name] = reason
                elif chosen.pop(name, None):
                    dropped[name] = reason
    return chosen, dropped


def data_properties(data: Dataset, env: Env | None = None) -> DataProperties:
    """Measures the properties of data that matter for the choice of a method for `env`."""
    features = data.features()
    discrete = features["action"].kind == "discrete"
    two_ways = None
    states = any(f.kind == "vector" for k, f in features.items() if role(k) == "observation")
    if states and not discrete and len(data) >= MIN_COMPARED_EPISODES:
        subset = data.select(range(0, len(data), max(1, -(-data.steps // MEASURED_STEPS))))
        score = LocalUnimodality()
        score = replace(score, n_neighbors=min(score.n_neighbors, len(subset) - 1))  # about one of each other episode
        scores = np.concatenate([np.asarray(s, float) for s in score.score_steps(subset)])
        scores = scores[np.isfinite(scores)]
        two_ways = float((-scores > TWO_WAYS).mean()) if len(scores) else None
    cameras = sum(f.kind == "image" and role(name) == "observation" for name, f in features.items())
    state = features.get("observation.state")  # whose later values gcivl and hiql take as goals
    goals = {} if env is None or state is None else {
        name: f for name, f in env.features.items() if is_goal(name) and f.shape == state.shape}
    return DataProperties(len(data), data.steps, data.fps, cameras, "classes" if discrete else "numbers", two_ways,
                          middle_returns(data), learners_for(data, goals), "next.terminated" in features, bool(goals))


@dataclass(frozen=True)
class _Trials:
    """Runs the trials of several methods."""

    data: Dataset
    out: Path
    methods: Mapping[str, Method]
    updates: Mapping[str, int]  # of each trial, by the method's name
    held_out: Sequence[int]  # indices of the held-out episodes
    judge: Callable[[Path, Method], tuple[Metric, tuple[float, ...]]]  # of a trial, given its folder and method
    training: Mapping[str, Any]  # further options of `train`, the same for all trials

    def trial(self, name: str, seed: int) -> MethodTrial | FailedTrial:
        """Trains and judges one method, unless this has been done. What failed is not tried again."""
        folder = trial_run(self.out, name, seed)
        file = folder.with_name(f"{folder.name}.json")
        if file.exists():
            stored = read_json(file)
            return FailedTrial(**stored) if "failed" in stored else MethodTrial(
                name, seed, stored["updates"], stored["seconds"], stored["metric"], tuple(stored["values"]))
        began, updates = time.perf_counter(), self.updates[name]
        try:
            train(self.methods[name], self.data, folder, steps=updates, seed=seed, save_freq=updates,
                  val_fraction=self.held_out or 0.0, title=f"{name}, seed {seed}", **self.training)
            metric, values = self.judge(folder, self.methods[name])
            if not np.isfinite(values).all():
                raise UserError("its values are not finite", hint="leave the method out")
            trial = MethodTrial(name, seed, updates, time.perf_counter() - began, metric, values)
        except UserError as error:
            if isinstance(error.where, Path) and error.where.is_relative_to(folder):
                raise  # a full disk or another process, and not the method
            trial = FailedTrial(name, seed, time.perf_counter() - began, _problem(error))
        write_json(file, asdict(trial))
        return trial

    def run(self, seed: int, budget: float, say: Callable[[str], None]
            ) -> tuple[dict[str, list[MethodTrial]], dict[str, int], dict[str, str], int, float]:
        """Runs rounds of trials until the best method is clear or the time is used up.

        Returns:
            The trials of each method that did not fail, the round after which each was dropped, why others failed,
            number of rounds, seconds.
        """
        trials: dict[str, list[MethodTrial]] = {name: [] for name in self.methods}
        candidates, dropped_after, failed, rounds, spent = list(self.methods), {}, {}, 0, 0.0
        while rounds < MAX_ROUNDS and (rounds == 0 or len(candidates) > 1):
            if rounds and spent + sum(trials[name][-1].seconds for name in candidates) > budget:
                break
            for name in candidates:
                trial = self.trial(name, seed + rounds)
                spent += trial.seconds
                if isinstance(trial, FailedTrial):
                    failed[name] = f"seed {trial.seed}: {trial.failed}"
                    del trials[name]
                    say(f"round {rounds + 1}: {name} failed and is left out: {failed[name]}")
                    continue
                trials[name].append(trial)
                say(f"round {rounds + 1}: {name}, seed {trial.seed}: {trial.result}")
            candidates = [name for name in candidates if name not in failed]
            if not candidates:
                raise _none_left(failed)
            rounds += 1
            trials = _with_common_metric(trials)
            values = {name: np.array([t.values for t in trials[name]]) for name in candidates}
            stay = survivors(values, len(self.methods))
            for name in candidates:
                if name not in stay:
                    dropped_after[name] = rounds
                    say(f"round {rounds}: {name} is dropped")
            candidates = stay
        return trials, dropped_after, failed, rounds, spent


def _with_common_metric(trials: Mapping[str, list[MethodTrial]]) -> dict[str, list[MethodTrial]]:
    """Judges all trials by success if any is, because an environment may report it only where there is one."""
    if all(trial.metric != "success" for method_trials in trials.values() for trial in method_trials):
        return dict(trials)
    return {name: [trial if trial.metric == "success" else
                   replace(trial, metric="success", values=(0.0,) * len(trial.values)) for trial in method_trials]
            for name, method_trials in trials.items()}


def _problem(error: UserError) -> str:
    """Returns the text of an error, with the place in one line."""
    return error.problem if error.where is None else f"{error.where}: {error.problem}"


def _none_left(failed: Mapping[str, str]) -> UserError:
    return UserError("no candidate is left" + "".join(f"; {name}: {why}" for name, why in failed.items()),
                     where="choose", hint="name other candidates with --methods, and another --out")


def _without_actions(methods: Mapping[str, Method]) -> dict[str, str]:
    """Returns why methods that predict no actions cannot be judged by the error of actions."""
    return {name: f"it predicts {method.policy.target or 'nothing'}, so its error would not be that of actions; with "
                  "--env ENV it acts" for name, method in methods.items() if role(method.policy.target) != "action"}


def _make_plan(out: Path, asked: dict[str, Any], data: Dataset, candidates: Mapping[str, Method], env: Env | None,
               budget: float, device: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Chooses the number of updates of every candidate, and stores it, as it depends on the machine's speed."""
    file = out / "plan.json"
    if file.exists():
        plan = read_json(file)
        if changed := [k for k in asked if plan["asked"].get(k) != asked[k]]:
            raise UserError(f"the trials there have {changed[0]} {plan['asked'].get(changed[0])!r}, but this call has "
                            f"{asked[changed[0]]!r}" if changed[0] != "data" else "the trials there are of other data",
                            where=out, hint="choose another --out, or give the options of the first call")
        return plan
    if out.exists() and any(out.iterdir()):
        raise UserError("the folder contains something else", where=out, hint="choose another --out")
    began = time.perf_counter()
    default_costs: dict[str, tuple[int, float]] = {}  # default number of updates, and seconds for all of them
    failed: dict[str, str] = {}
    for name, method in candidates.items():
        try:
            seconds_per_update = _try_out(method, data, env, device)  # reports what it lacks before any trial
        except UserError as error:
            failed[name] = _problem(error)
            say(f"{name} failed and is left out: {failed[name]}")
            continue
        default_costs[name] = method.learner.steps, method.learner.steps * seconds_per_update
        if seconds_per_update:
            say(f"{name}: {method.learner.steps} updates by default, {1000 * seconds_per_update:.3g} ms each")
    if not default_costs:
        if len(failed) > 1 and len(reasons := {*failed.values()}) == 1:  # one reason for all: no method causes it
            raise UserError(f"no candidate can be tried: {reasons.pop()}", where="choose",
                            hint="all failed for this reason: look at DATA and at --env")
        raise _none_left(failed)
    tried = sorted(default_costs, key=lambda name: default_costs[name][1])
    while tried and LEAST_UPDATES * default_costs[tried[-1]][1] > budget / (ROUNDS_OF_ALL * len(tried)):
        tried.pop()
    share = budget / (ROUNDS_OF_ALL * max(len(tried), 1))
    updates = {name: max(int(steps * min(share / max(seconds, 1e-9), 1)), 1)
               for name, (steps, seconds) in default_costs.items() if name in tried}
    skipped = {name: f"its {steps} updates take {format_duration(seconds)}, and a trial would have "
                     f"{format_duration(share)}"
               for name, (steps, seconds) in default_costs.items() if name not in tried}
    if skipped and len(updates) < 2:
        raise UserError(f"there is time for {len(updates)} of {len(default_costs)} candidates"
                        + "".join(f"; {k}: {v}" for k, v in skipped.items()), where="--budget",
                        hint="allow more time, or name faster --methods")
    plan = {"asked": asked, "updates": updates, "skipped": skipped, "failed": failed,
            "seconds": time.perf_counter() - began}
    write_json(file, plan)
    return plan


def _check_candidate(method: Method, name: str) -> Method:
    if method.collection is not None or method.stages:
        raise UserError("the method needs more than the data: it collects episodes or has stages", where=name,
                        hint="compare methods that learn from demonstrations alone")
    return method


def _try_out(method: Method, data: Dataset, env: Env | None, device: str) -> float:
    """Measures the seconds of an update of a method by a short training. 0 if it makes only a few."""
    tell(preflight(method, data, val_fraction=HELD_OUT if env is None else 0.0).findings)
    times: list[float] = []
    short = replace(method, learner=replace(method.learner, steps=min(method.learner.steps, TIMED_UPDATES)))
    result = fit_method(short, data, 0, callbacks=[lambda *_: times.append(time.perf_counter())], device=device)
    if env is not None:
        actor = build_actor(result.method, result.modules, ROWS, features=env.features)
        warn_unless_repeatable(actor, env, 0)
    return max(float(np.median(np.diff(times))), 1e-6) if method.learner.steps > TIMED_UPDATES else 0.0


def _rollout_values(folder: Path, env: Env, episodes: int, seed: int, device: str, trust: tuple[str, ...]
                    ) -> tuple[Metric, tuple[float, ...]]:
    actor = load_actor(folder, device=device, rows=ROWS, trust=trust, features=env.features)
    evaluation = evaluate(actor, env, episodes, tuning_seed(seed))
    if evaluation.successes is not None:
        return "success", tuple(float(v) for v in evaluation.successes)
    return "return", tuple(float(v) for v in evaluation.episode_returns)


def _held_out_errors(folder: Path, method: Method, data: Dataset, held_out: Sequence[int], ahead: int, device: str,
                     trust: tuple[str, ...]) -> tuple[Metric, tuple[float, ...]]:
    """Returns minus the energy score of the next `ahead` actions on each held-out episode."""
    policy, method = Policy.load(folder, device=device, trust=trust), without_made_episodes(method)
    scale = target_scale(training_data(EpisodeSplit(tuple(held_out)).learned(data), method), method.policy.target)
    judge = Validation(n_windows=32)
    return "error", tuple(-judge.evaluate(policy, training_data(data.select([i]), method), scale, method.executor,
                                          ahead)["energy"] for i in held_out)


def _estimate(values: np.ndarray, metric: Metric) -> Interval:
    """Returns the mean over seeds and starts. Limits are NaN for fewer than 3 starts, or 6 with one seed."""
    if metric != "success" and values.shape[1] < 3:
        return Interval(float(values.mean()), math.nan, math.nan, stats.LEVEL)
    if metric == "success":
        return stats.two_level_rate(values) if len(values) > 1 else stats.clopper_pearson(values.sum(), values.size)
    interval = stats.two_level_rate(values, kind="real") if len(values) > 1 else stats.bootstrap_mean(values[0])
    if metric == "error":  # no true error is below 0
        interval = replace(interval, high=min(interval.high, max(interval.estimate, 0.0)))
    return interval
