"""Action prediction error on recorded episodes. Needs no simulator, and is not a success rate."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ..core import Batch, role
from ..data.episode import Dataset, episode_fingerprints
from ..execute.base import Executor
from ..files import replace_nonfinite
from ..learn.preflight import check_training_data
from ..learn.stages import learned_digests
from ..learn.validation import Validation, energy_score, target_scale
from ..policy import Policy, check_features
from . import stats
from .stats import LEVEL, Interval

Origin = Literal["held out", "trained on", "other data"]
N_TIME_BINS = 10  # number of parts of an episode


def episodes_to_evaluate(provenance: Mapping[str, Any], data: Dataset,
                         earlier: Iterable[Mapping[str, Any]] = ()) -> tuple[list[int], Origin]:
    """Selects the episodes to evaluate a run on, and says whether they were training or held-out data.

    Episodes are recognized by their numbers, so `data` may be the training data in another format, or a part of them.

    Args:
        earlier: The provenances of the runs that gave the training weights, to begin with or to use: see
            `stage_provenances`. What they were trained on is not held out.

    Returns:
        Episode numbers, and "other data" if the run was trained on none of `data`. If the run was trained on some
        episodes of `data`: the episodes that it was not trained on ("held out"). If there are none: the episodes that
        it was trained on ("trained on"). A held-out episode that equals a training episode counts as trained on.
        Fragments that training left out are not evaluated then.
    """
    everything, learned, left_out = list(range(len(data))), set(), set()
    digests: dict[tuple[str, ...], list[str]] = {}
    for one in (provenance, *earlier):
        columns = tuple(one.get("episodes", {}).get("columns", ()))
        if not columns or not all(name in data.features() for name in columns):
            continue
        if columns not in digests:
            digests[columns] = episode_fingerprints(data, columns)["digests"]
        trained_digests = learned_digests(one)
        learned |= {i for i in everything if digests[columns][i] in trained_digests}
        fragments = {one["episodes"]["digests"][i] for i in one.get("left_out", ())}
        left_out |= {i for i in everything if digests[columns][i] in fragments}
    if not learned:
        return everything, "other data"
    unseen = [i for i in everything if i not in learned | left_out]
    return (unseen, "held out") if unseen else (sorted(learned), "trained on")


@dataclass(frozen=True)
class ErrorBreakdown:
    """Errors and spreads over a part of the data: root mean squares in the unit of the component.

    For discrete actions, both are fractions: of wrong samples, and of pairs of samples that differ.
    """

    name: str
    error: float
    spread: float  # spread of the samples: the uncertainty of the policy


@dataclass(frozen=True)
class PredictionError:
    """Error of the predicted action, next to the errors of two predictions that need no policy.

    The predicted action is the mean of the samples. Only steps from the current one on count.

    Attributes:
        policy: Mean absolute error of the policy, in the unit of the component. For discrete actions, the fraction of
            wrong actions. The errors below are measured in the same way.
        average: Error of always predicting the mean action of the episodes that are not evaluated (of classes, the most
            frequent one).
        last_action: Error of repeating the last recorded action. At the first step of an episode there is none, and the
            average takes its place.
        r2: 1 - (squared error of the policy) / (squared error of the average). None for discrete actions, and where the
            average has no error.
        is_constant: The component has one value in all of the data, so that predicting it means nothing.
    """

    name: str
    policy: float
    average: float
    last_action: float
    r2: float | None
    is_constant: bool


@dataclass(frozen=True)
class UncertainStep:
    episode: int
    step: int
    spread: float  # mean distance of two samples


@dataclass(frozen=True)
class PlanSamples:
    """Sampled action chunks of a policy from one step on."""

    step: int
    plans: np.ndarray  # (K, H, A)


@dataclass(frozen=True)
class EpisodePlanSamples:
    """An episode with sampled action chunks of a policy along it."""

    episode: int
    actions: np.ndarray  # (T, A), as recorded
    plan_samples: tuple[PlanSamples, ...]


@dataclass(frozen=True)
class ActionPrediction:
    """The result of `evaluate_action_prediction`. Intervals are over episodes.

    Attributes:
        mean_error: Mean distance of the samples from the recorded chunk.
        best_error: Distance of the nearest sample.
        baseline_error: Distance of always predicting the mean action.
        coverage: Fraction of recorded values between the lowest and the highest sample. None for deterministic policies
            and for discrete actions.
        expected_coverage: The coverage of a policy that has exactly the right uncertainty.
        prediction_error: Error of the predicted action over all components that are not constant, and its interval.
            None if all are constant.
        steps_ahead: Number of steps of a chunk over which this error is the mean, from the current one on.
        of_latents: Whether the errors are errors of latents (see `evaluate_action_prediction`).
        column: The column that is compared, if the policy does not predict actions alone.
    """

    name: str  # name of the data
    origin: Origin
    episodes: tuple[int, ...]
    steps: int
    windows: int
    samples: int
    energy_score: Interval
    mean_error: Interval
    best_error: Interval
    baseline_error: float
    coverage: float | None
    expected_coverage: float | None
    by_dimension: tuple[ErrorBreakdown, ...]
    unit: str | None
    by_chunk_step: tuple[ErrorBreakdown, ...]  # by step ahead
    by_time: tuple[ErrorBreakdown, ...]  # by tenths of the episode
    uncertain_steps: tuple[UncertainStep, ...]  # the widest first
    plan_samples: tuple[EpisodePlanSamples, ...]
    prediction_error: tuple[PredictionError, Interval] | None
    by_component: tuple[PredictionError, ...]
    steps_ahead: int = 1
    is_discrete: bool = False
    of_latents: bool = False
    column: str | None = None

    @property
    def predicted(self) -> str:
        """Name of the predicted quantity in the singular: action, latent, or value of another column."""
        return "latent" if self.of_latents else "action" if self.column is None else "value"

    @property
    def note(self) -> str:
        """A note on what the result does not show."""
        return LATENT_NOTE if self.of_latents else NOTE if self.column is None else COLUMN_NOTE

    def to_json(self) -> dict[str, Any]:
        """Returns the result as JSON, without the sampled chunks. NaN and infinite numbers become null."""
        return replace_nonfinite(
            {
                "data": self.name,
                "origin": self.origin,
                "episodes": list(self.episodes),
                "steps": self.steps,
                "windows": self.windows,
                "samples": self.samples,
                "energy": asdict(self.energy_score),
                "mean": asdict(self.mean_error),
                "best": asdict(self.best_error),
                "average": self.baseline_error,
                "inside": self.coverage,
                "expected": self.expected_coverage,
                "unit": self.unit,
                "ahead": self.steps_ahead,
                "error": None if self.prediction_error is None else {
                    "policy": asdict(self.prediction_error[1]), **_baselines_json(self.prediction_error[0])},
                "components": [{"name": c.name, "policy": c.policy, **_baselines_json(c), "constant": c.is_constant}
                               for c in self.by_component],
                "dimensions": list(map(vars, self.by_dimension)),
                "chunk": list(map(vars, self.by_chunk_step)),
                "time": list(map(vars, self.by_time)),
                "unsure": list(map(vars, self.uncertain_steps)),
                "success": None,
                "latents": self.of_latents,
                "column": self.column,
                "note": self.note,
            }
        )

    def describe(self) -> str:
        """Describes the result in words: what the error means, then how sure the policy is."""
        return f"{self.headline()}{self.baselines()} {self.note}\n\n{self.describe_distribution()}"

    def headline(self) -> str:
        """Says how far the predicted actions are from the recorded ones."""
        n, what = len(self.episodes), f"{self.predicted}s"
        which = {"held out": f"{n} episode{'s' * (n != 1)} that it was not trained on",
                 "trained on": f"{n} episode{'s' * (n != 1)} that it was trained on (none of them is new to it, so "
                               "expect figures that are too good)",
                 "other data": f"{n} episode{'s' * (n != 1)} of a data set that it was not trained on, as far as is "
                               "recorded (if they are cut from its training data, this is not a test)"}[self.origin]
        constant = [c.name for c in self.by_component if c.is_constant]
        if self.prediction_error is None:
            return (f"This data cannot show how good the policy is: every component of its {what} has the same value "
                    f"at all steps ({', '.join(constant)}). An error of 0 means nothing here. Compared on {which}.")
        error, interval = self.prediction_error
        show = self._show_error
        sure = (f" ({interval.level:.0%} interval over episodes {show(interval.low)} to {show(interval.high)})"
                if np.isfinite(interval.low) else "")
        ahead = "" if self.steps_ahead == 1 else f" over the next {self.steps_ahead} steps"
        if self.is_discrete:
            text = f"On {which}, {show(error.policy)} of the predicted {what}{ahead} are wrong{sure}."
        else:
            in_units = "" if self.unit else f", in the units of the {what}"
            text = (f"On {which}, the predicted {what} are off by {show(error.policy)} on average{ahead}{sure}"
                    f"{in_units}.")
        if self.column is not None:
            return f"Values of the column {self.column!r}, and not actions alone, are compared. {text}"
        return f"Latents of skills, and not actions, are compared. {text}" if self.of_latents else text

    def baselines(self) -> str:
        """Compares the error with the errors of predictions that need no policy, in sentences."""
        if self.prediction_error is None:
            return ""
        error, show = self.prediction_error[0], self._show_error
        if self.is_discrete:
            text = (f"Always the most frequent one: {show(error.average)}. Repeating the last action: "
                    f"{show(error.last_action)}.")
        else:
            r2 = "" if error.r2 is None else f" R² is {error.r2:.3g} (1 is perfect, 0 is always the average)."
            text = (f"Always the average: {show(error.average)}. Repeating the last one: {show(error.last_action)}."
                    f"{r2}")
        constant = [c.name for c in self.by_component if c.is_constant]
        return f" {text} {_compare_with_baselines(error, self.is_discrete)}" + (
            f" Left out, because they never change in the data: {', '.join(constant)}." if constant else "")

    def _show_error(self, error: float) -> str:
        return f"{error:.1%}" if self.is_discrete else f"{error:.3g}" + (f" {self.unit}" if self.unit else "")

    def describe_distribution(self) -> str:
        """Describes the energy score, and where the policy is wrong and uncertain."""
        e = self.energy_score
        sure = f" ({e.level:.0%} interval over episodes {e.low:.3g} to {e.high:.3g})" if np.isfinite(e.low) else ""
        compared = "all" if self.windows == self.steps else f"{self.windows} evenly spread ones"
        text = (
            f"{self.steps:,} steps, {compared} compared, {self.samples} sample{'s' * (self.samples != 1)} "
            f"each. The energy score is {e.estimate:.3g}{sure}, in units of each component's spread in the data. "
            f"Always the average would get {self.baseline_error:.3g}. Less is better, and a policy that predicts "
            "several ways is not punished for the ways that were not recorded. "
        )
        largest = max(self.by_dimension, key=lambda p: p.error)
        latest = max(self.by_time, key=lambda p: p.error)
        text += f"The error is largest in {largest.name}, and at {latest.name} of the episode. "
        if self.samples == 1:
            text += "This policy gives one answer, so it cannot say where it is unsure."
        elif self.uncertain_steps:
            m = self.uncertain_steps[0]
            text += f"It is least sure in episode {m.episode} at step {m.step}. "
            if self.coverage is not None:
                text += (f"{self.coverage:.0%} of the recorded values lie within its samples, where "
                         f"{self.expected_coverage:.0%} would if it were as unsure as it should be.")
        return text.strip()


def _baselines_json(error: PredictionError) -> dict[str, Any]:
    return {"average": error.average, "last_action": error.last_action, "r2": error.r2}


def _compare_with_baselines(error: PredictionError, is_discrete: bool) -> str:
    """Says which of the two predictions without a policy the policy beats, in a sentence."""
    names = {"the most frequent action" if is_discrete else "the average": error.average,
             "repeating the last one": error.last_action}
    as_good = [name for name, baseline in names.items() if not error.policy < baseline]
    return f"It is no better than {' or '.join(as_good)}." if as_good else "It is better than both."


_ACT = ("in a simulator (understudy eval RUN ENV) or on a robot, where you judge the trials (understudy eval RUN "
        "--interactive --threshold 0.7 --robot TYPE).")
NOTE = ("This is not a success rate: it says how well recorded actions are predicted, not whether the policy works "
        f"when its own actions decide what it sees next. For that it must act: {_ACT}")
COLUMN_NOTE = ("This policy does not predict actions alone. The errors are of another column. They say little about "
               f"actions, and cannot be compared with other runs. For that each must act: {_ACT}")
LATENT_NOTE = ("This policy chooses latents of skills, which the run's own autoencoder turns into actions. The errors "
               "are of these latents, compared with those that the autoencoder finds in the episodes. They say nothing "
               f"about actions, and cannot be compared with other runs. For that each must act: {_ACT}")


@torch.no_grad()
def evaluate_action_prediction(
    policy: Policy,
    data: Dataset,
    episodes: Sequence[int] | None = None,
    origin: Origin = "other data",
    *,
    executor: Executor | None = None,
    validation: Validation | None = None,
    n_examples: int = 3,
    of_latents: bool = False,
) -> ActionPrediction:
    """Compares the plans of a policy with the recorded actions of episodes.

    Args:
        data: The data after the transforms of the method. Episodes that are not evaluated give the units and the
            average action.
        episodes: Numbers of the episodes to evaluate; None for all. See `episodes_to_evaluate`.
        executor: The executor of the method. It makes the plans if it is an `ActionConditionedExecutor`.
        n_examples: Number of episodes from which plans are kept for a figure: the episode with the median error, the
            worst and the best.
        of_latents: The actions of the policy are latents of skills, as with a `SkillWrapper`. The result then says so.
    """
    check_features(policy, data.features(), str(data.metadata.get("path", "data set")))
    check_training_data(policy, data)
    validation = validation or Validation(n_windows=512, n_samples=16)
    numbers = list(range(len(data))) if episodes is None else list(episodes)
    test, others = data.select(numbers), [i for i in range(len(data)) if i not in set(numbers)]
    basis = data.select(others) if others else data
    average = _baseline_action(basis, policy.config.target, policy.target.kind == "discrete")
    was_training = policy.training
    policy.eval()
    errors = _WindowErrors(policy, test, basis, average, validation, executor)
    values, (mean_error, _) = errors.values, errors.per_episode(errors.values["energy"], errors.episode)
    names = _component_names(policy, of_latents)
    components, prediction_error, n_current = errors.predictions(
        names, _constant_components(data, policy.config.target))
    order = np.argsort(mean_error, kind="stable")
    example_indices = list(dict.fromkeys(int(i) for i in (order[len(order) // 2], order[-1], order[0])))[:n_examples]
    fans = tuple(_plan_samples(policy, test, i, numbers[i], validation, executor) for i in example_indices)
    policy.train(was_training)
    K, inside = errors.n_samples, errors.fraction_inside
    return ActionPrediction(
        str(data.metadata.get("name") or data.metadata.get("path") or data.metadata.get("env") or "data"), origin,
        tuple(numbers), test.steps, len(errors.episode), K, errors.interval(values["energy"]),
        errors.interval(values["mean"]), errors.interval(values["best"]), float(values["average"].mean()), inside,
        None if inside is None else (K - 1) / (K + 1), errors.by_component(names),
        policy.target.unit, errors.by_chunk_step(), errors.by_time(), errors.widest(numbers), fans, prediction_error,
        components, n_current, errors.is_discrete, of_latents,
        None if role(policy.config.target) == "action" else policy.config.target)


class _WindowErrors:
    """Collects errors of the plans in windows of some episodes.

    Attributes:
        values: Arrays of one row for each window, by name.
        episode: Index of the episode of each window, (N,).
        step: Step of each window in its episode, (N,).
    """

    def __init__(self, policy: Policy, test: Dataset, basis: Dataset, average: Tensor, validation: Validation,
                 executor: Executor | None):
        self.policy, self.test, self.average = policy, test, average
        self.is_discrete = policy.target.kind == "discrete"
        scale = torch.ones(policy.action_dim) if self.is_discrete else target_scale(basis, policy.config.target)
        batches, self.n_samples = [], 1
        for batch, plans in validation.sampled_plans(policy, test, executor=executor):
            self.n_samples = plans.shape[1]
            counted = policy.config.head.counted(batch.action)
            batches.append(_batch_errors(batch, plans, scale.to(plans), average.to(plans), self.is_discrete, counted))
        self.values = {k: np.concatenate([errors[k] for errors in batches]) for k in batches[0]}
        length = np.array([len(e) for e in test])
        ends = np.cumsum(length)
        self.episode = np.searchsorted(ends, self.values["index"], side="right")
        self.step = self.values["index"] - (ends - length)[self.episode]
        self.part = np.minimum(self.step * N_TIME_BINS // length[self.episode], N_TIME_BINS - 1)
        self.mask = self.values["mask"]  # (N, H)

    @property
    def fraction_inside(self) -> float | None:
        """Fraction of recorded actions inside the range of the samples."""
        has_range = self.n_samples > 1 and not self.is_discrete
        return float(self.values["inside"][self.mask].mean()) if has_range else None

    def per_episode(self, x: np.ndarray, episode: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mean of the values x (N,) of each episode, and their number, (E,) each."""
        count = np.bincount(episode, minlength=len(self.test))
        return np.bincount(episode, x, minlength=len(self.test)) / np.maximum(count, 1), count

    def interval(self, x: np.ndarray, episode: np.ndarray | None = None) -> Interval:
        """Returns the mean of values and its interval, by resampling of episodes.

        Args:
            x: The values, (N,).
            episode: Index of the episode of each value. None: values are of windows.
        """
        mean, count = self.per_episode(x, self.episode if episode is None else episode)
        return stats.bootstrap_mean(mean[count > 0], LEVEL, weights=count[count > 0])

    def _breakdown(self, name: str, rows, columns=slice(None), steps=slice(None)) -> ErrorBreakdown:
        return ErrorBreakdown(name, *(
            _root_mean(self.values[k][rows][:, steps][..., columns], self.mask[rows][:, steps], self.is_discrete)
            for k in ("square", "spread")))

    def by_component(self, names: Sequence[str]) -> tuple[ErrorBreakdown, ...]:
        return tuple(self._breakdown(name, slice(None), slice(a, a + 1)) for a, name in enumerate(names))

    def by_chunk_step(self) -> tuple[ErrorBreakdown, ...]:
        return tuple(self._breakdown(str(h), slice(None), slice(None), slice(h, h + 1))
                     for h in range(self.mask.shape[1]) if self.mask[:, h].any())

    def by_time(self) -> tuple[ErrorBreakdown, ...]:
        return tuple(self._breakdown(f"{100 * p // N_TIME_BINS}-{100 * (p + 1) // N_TIME_BINS}%", self.part == p)
                     for p in range(N_TIME_BINS) if (self.part == p).any())

    def widest(self, numbers: Sequence[int]) -> tuple[UncertainStep, ...]:
        """Returns the steps in which samples are farthest apart. `numbers` are the numbers of the episodes."""
        apart = self.values["apart"]
        order = np.argsort(-apart, kind="stable")[:10] if self.n_samples > 1 else []
        return tuple(UncertainStep(numbers[int(self.episode[i])], int(self.step[i]), float(apart[i])) for i in order)

    def predictions(self, names: Sequence[str], constant: np.ndarray
                    ) -> tuple[tuple[PredictionError, ...], tuple[PredictionError, Interval] | None, int]:
        """Returns errors of the predicted actions by component, their mean with interval, and the number of steps."""
        target, average = self.policy.config.target, self.average.double().numpy()
        current = self.mask & (np.arange(self.mask.shape[1]) + self.policy.window.action_offset >= 0)
        errors, components = _prediction_errors(
            self.values, current, _last_actions(self.test, target, average)[self.values["index"]], average, names,
            constant, self.is_discrete)
        changing = [c for c in components if not c.is_constant]
        mean = None if not changing else (
            _mean_of_components(changing),
            self.interval(errors[:, ~constant].mean(1), self.episode[np.nonzero(current)[0]]))
        return components, mean, int(current.any(0).sum())


def _batch_errors(
    batch: Batch, plans: Tensor, scale: Tensor, baseline: Tensor, is_discrete: bool, counted: Tensor
) -> dict[str, np.ndarray]:
    """Computes the errors of one batch. Each row of the batch is a window. See `Head.counted`."""
    K, target, mask = plans.shape[1], batch.action.unsqueeze(1), (batch.mask.unsqueeze(-1) & counted).unsqueeze(1)
    if is_discrete:
        gap, off = (plans.round() != target).float(), (baseline != batch.action).float()
        # The fraction of differing pairs, 1 - sum p^2 over the K draws. A draw is compared with K - 1 other draws.
        same = (plans.round().unsqueeze(2) == plans.round().unsqueeze(1)).float().mean((1, 2))
        spread = (1 - same) * K / max(K - 1, 1)
    else:
        gap, off = plans - target, (baseline - batch.action) / scale
        spread = plans.var(1) if K > 1 else torch.zeros_like(plans[:, 0])
    unit = gap / scale
    count = mask.sum((2, 3)).clamp(min=1)
    error = ((unit.square() * mask).sum((2, 3)) / count).sqrt()  # (B, K)
    score = energy_score(plans if is_discrete else plans / scale, error, mask, is_discrete)
    average = ((off.square() * mask[:, 0]).sum((1, 2)) / count[:, 0]).sqrt()
    inside = ((plans.amin(1) <= batch.action) & (batch.action <= plans.amax(1))).float().mean(-1)
    kept = {"index": batch.extra["index"][:, 0], "mask": batch.mask, "square": gap.square().mean(1), "spread": spread,
            "prediction": gap.mean(1) if is_discrete else plans.mean(1), "target": batch.action,
            "energy": score, "mean": error.mean(1), "best": error.amin(1), "apart": 2 * (error.mean(1) - score),
            "average": average, "inside": inside}
    real = batch.mask.any(1)  # a window may lie beyond its episode's end altogether
    return {k: (v.double() if v.is_floating_point() else v)[real].cpu().numpy() for k, v in kept.items()}


def _prediction_errors(rows: Mapping[str, np.ndarray], current: np.ndarray, last_action: np.ndarray,
                       average: np.ndarray, names: Sequence[str], constant: np.ndarray,
                       is_discrete: bool) -> tuple[np.ndarray, tuple[PredictionError, ...]]:
    """Computes errors of the predicted action and of two predictions without a policy.

    Args:
        current: True for steps that count, (N, H).
        last_action: The last recorded action before each window, (N, A).
        average: (A,).
        constant: Whether a component never changes, (A,).

    Returns:
        Errors of the policy at the steps that count, (M, A), and the mean errors of each component.
    """
    target = rows["target"][current]
    repeated = np.broadcast_to(last_action[:, None], rows["target"].shape)[current]
    if is_discrete:  # the prediction is the fraction of wrong samples
        errors = np.stack([rows["prediction"][current], average != target, repeated != target])
    else:
        predictions = np.stack([rows["prediction"][current], np.broadcast_to(average, target.shape), repeated])
        errors = np.abs(predictions - target)
    squares = np.square(errors).sum(1)  # (3, A)
    components = tuple(PredictionError(
        name, *errors[..., a].mean(1).tolist(),
        None if is_discrete or constant[a] or not squares[1, a] else 1 - float(squares[0, a] / squares[1, a]),
        bool(constant[a])) for a, name in enumerate(names))
    return errors[0], components


def _mean_of_components(components: Sequence[PredictionError]) -> PredictionError:
    r2 = [c.r2 for c in components if c.r2 is not None]
    policy, average, last_action = np.mean([(c.policy, c.average, c.last_action) for c in components], 0).tolist()
    return PredictionError("all", policy, average, last_action, float(np.mean(r2)) if r2 else None, False)


def _last_actions(data: Dataset, target: str, average: np.ndarray) -> np.ndarray:
    """Returns the recorded action before each step, (T, A). Before the first step this is the average action."""
    before = [np.concatenate([average[None], np.asarray(e.steps[target], np.float64).reshape(
        len(e.steps[target]), -1)[:len(e) - 1]])[:len(e)] for e in data]
    return np.concatenate(before)


def _constant_components(data: Dataset, target: str) -> np.ndarray:
    """Returns which components have the same value at every step, up to rounding, (A,) bool."""
    x = np.concatenate([np.asarray(e.steps[target], np.float64).reshape(len(e.steps[target]), -1) for e in data])
    return np.ptp(x, axis=0) <= 1e-6 * np.maximum(np.abs(x).max(0), 1e-6)


def _root_mean(x: np.ndarray, mask: np.ndarray, is_discrete: bool) -> float:
    """Returns the root mean over unmasked values. For discrete actions a plain mean, as their squares are 0 and 1."""
    mean = float(x[mask].mean()) if mask.any() else float("nan")
    return mean if is_discrete else mean**0.5


def _baseline_action(data: Dataset, target: str, is_discrete: bool) -> Tensor:
    """Returns the prediction without a policy: the mean of each component, or its most frequent class, (A,)."""
    x = np.concatenate([np.asarray(e.steps[target]).reshape(len(e.steps[target]), -1) for e in data])
    if is_discrete:
        return torch.tensor([float(np.bincount(c.astype(np.int64)).argmax()) for c in x.T])
    return torch.from_numpy(x.astype(np.float64).mean(0)).float()


def _component_names(policy: Policy, of_latents: bool) -> list[str]:
    if of_latents:
        return [f"latent[{i}]" for i in range(policy.action_dim)]
    return list(policy.target.names or (f"{policy.config.target}[{i}]" for i in range(policy.action_dim)))


def _plan_samples(policy: Policy, data: Dataset, i: int, number: int, validation: Validation,
                  executor: Executor | None) -> EpisodePlanSamples:
    one = data.select([i])
    actions = np.asarray(one[0].steps[policy.config.target]).reshape(-1, policy.action_dim)
    horizon = max(policy.window.horizon, 1)
    count = min(max(len(one[0]) // horizon + 1, 4), 12)
    batches = replace(validation, n_windows=count).sampled_plans(policy, one, executor=executor)
    return EpisodePlanSamples(number, actions, tuple(
        PlanSamples(step, plan) for batch, plans in batches
        for step, plan in zip(batch.extra["index"][:, 0].tolist(), plans.cpu().numpy(), strict=True)))
