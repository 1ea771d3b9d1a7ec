"""Detects failures while a policy acts: scores of doubt, and thresholds that keep a stated rate of errors."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

from .. import config
from ..checkpoint import find_checkpoint
from ..core import Above, AtLeast, Batch, Below, Unsupported, UserError, part, role, take
from ..data.episode import Dataset, Episode
from ..envs.base import Env, StepResult
from ..execute.actor import Actor
from ..execute.base import check_numeric_actions, check_samples, sample_noise, sample_plans
from ..execute.doubt import DOUBT, DoubtActor, DoubtMeasure
from ..execute.followed import wrap_policy
from ..execute.planners import FixedBatch
from ..files import read_json, write_json
from ..heads.base import LikelihoodHead
from ..hints import command_line
from ..learn.run import Run
from ..policy import Planner, Policy
from . import stats
from .behavior.demo_distance import DemonstrationIndex
from .behavior.scaling import TrajectoryScaling, evenly_spaced

DETECTOR_FILE = "detector.json"  # in the folder of a run
NOVELTY = "use another score: novelty (--score novelty)"


class DoubtScore(ABC):
    """A number per step that is larger where a policy is more likely to fail. Subclasses are frozen dataclasses."""

    @abstractmethod
    def build(self, planner: Planner, demonstrations: Dataset) -> DoubtMeasure:
        """Returns the function that measures the doubt at a step.

        Args:
            planner: What plans while acting.
            demonstrations: What the policy was trained on, with the columns that it reads.

        Raises:
            Unsupported: The score cannot be computed for this planner or these data.
        """


@part
class SampleSpread(DoubtScore):
    """Doubt score: standard deviation of sampled plans, over components and steps, in normalized units.

    Args:
        n_samples: Number of plans that are sampled at each step.

    References:
        Agia et al. (2024), Unpacking Failure Modes of Generative Policies (Sentinel), arXiv:2410.04640, which compares
        samples of consecutive plans.
    """

    n_samples: Annotated[int, AtLeast(2)] = 8

    def build(self, planner, demonstrations):
        check_samples(planner, "SampleSpread", NOVELTY)
        check_numeric_actions(planner, "SampleSpread", "measures how far planned actions are apart", NOVELTY)

        def measure(obs, key, count):
            plans = sample_plans(planner, obs, sample_noise(planner, key, count, self.n_samples), self.n_samples)
            return (plans / planner.action_scale).var(1).mean((1, 2)).sqrt()
        return measure


@part
class ObservationNovelty(DoubtScore):
    """Doubt score: distance of the current observation from the nearest demonstrated one: see `DemonstrationIndex`."""

    def build(self, planner, demonstrations):
        features = demonstrations.features()
        names = [n for n in planner.inputs if n in features and features[n].kind == "vector" and features[n].size]
        read = {*names, *(n + "?" for n in names)}
        points = Dataset([Episode(_sensed({n: np.asarray(e.steps[n])[:len(e)] for n in e.steps if n in read}, names))
                          for e in evenly_spaced(demonstrations)] if names else [])
        index = DemonstrationIndex.from_data(points, TrajectoryScaling.from_data(points)) if names else None
        if index is None:
            raise Unsupported("the policy reads no numbers, and the distance of images says little",
                              where="ObservationNovelty", hint="use another score: spread or loss")

        def measure(obs, key, count):
            rows = Episode(_sensed({n: c[:, -1].cpu().numpy() for n, c in obs.items() if n in read}, names))
            return torch.from_numpy(index.distances(rows, count=1)[0]).float()
        return measure


def _sensed(columns: dict[str, np.ndarray], names: Sequence[str]) -> dict[str, np.ndarray]:
    """The columns of these names, (T, ...), with 0 where a mask ``name?`` says that nothing was sensed, as a policy
    reads them. They may hold anything there, such as NaN, which has no distance and would never raise an alarm."""
    masks = {n: columns[n + "?"].reshape(-1, *(1,) * (columns[n].ndim - 1)) for n in names if n + "?" in columns}
    return {n: np.where(masks[n], columns[n], 0) if n in masks else columns[n] for n in names}


@part
class PolicyLoss(DoubtScore):
    """Doubt score: training loss of the policy at its own plan, with the same noise at every step.

    Args:
        n_noise_samples: Number of noise draws, over which the loss is averaged. A `LikelihoodHead` needs none.

    References:
        Lee and Kuo (2024), Diff-DAgger: Uncertainty Estimation with Diffusion Policy for Robotic Manipulation,
        arXiv:2410.14868.
    """

    n_noise_samples: Annotated[int, AtLeast(1)] = 16

    def build(self, planner, demonstrations):
        check_samples(planner, "PolicyLoss", NOVELTY)
        policy = planner.planner if isinstance(planner, FixedBatch) else planner
        if not isinstance(policy, Policy):
            raise Unsupported(f"{type(policy).__name__} has no loss of its own", where="PolicyLoss",
                              hint="use another score: spread or novelty")

        def loss(context, obs, plan):
            batch = Batch(obs, plan, torch.ones(plan.shape[:2], dtype=torch.bool, device=plan.device))
            rng = Generator(plan.device).manual_seed(0)
            return policy.loss_given_context(context, batch, rng, n_noise_samples=n_noise_samples).mean(1)

        is_exact = isinstance(policy.config.head, LikelihoodHead)  # its loss has no noise
        n_noise_samples = 1 if is_exact else self.n_noise_samples

        def measure(obs, key, count):
            plan, context = planner.plan(obs, planner.noise(key, count)), planner.context(obs)
            if is_exact:
                group = planner.in_groups if isinstance(planner, FixedBatch) else lambda f, n, *trees: f(*trees)
                return group(loss, len(plan), context, obs, plan)
            rows = torch.arange(len(plan), device=plan.device).unsqueeze(1)  # one by one: all have the same noise
            return torch.cat([loss(take(context, row), take(obs, row), plan[row]) for row in rows])
        return measure


SCORES: dict[str, DoubtScore] = {"spread": SampleSpread(), "novelty": ObservationNovelty(), "loss": PolicyLoss()}


def with_doubt(actor: Actor, score: DoubtScore, demonstrations: Dataset) -> Actor:
    """Wraps the actor of a policy so that it records its doubt.

    Raises:
        Unsupported: The actor is not a policy that plans here, or the score does not fit it.
    """
    doubting = wrap_policy(actor, lambda policy: DoubtActor(policy, score.build(policy.planner, demonstrations)))
    if doubting is not None:
        return doubting
    raise Unsupported(f"{type(actor).__name__} does not say how its actions are planned", where="failure detection",
                      hint="use the run itself, and not an exported file or a served policy")


class RecordedEnv(Env):
    """Environment that replays what recorded episodes observed, episode by episode, whatever the action is.

    A rollout of a policy in it has the doubts that the policy has in these episodes.

    Args:
        episodes: Episodes of which "success" is known.
    """

    rows = 1

    def __init__(self, episodes: Dataset, name: str):
        self.episodes = episodes
        self.features = {name: feature for name, feature in episodes.features().items()
                         if role(name) == "observation" and feature.kind != "string" or name == "action"}
        self.metadata = {"env": name, "limit": max(map(len, episodes)), "success": "as it was recorded"}
        self._number, self._step = -1, 0

    def _observe(self) -> dict[str, Tensor]:
        steps = self.episodes[self._number].steps
        columns = {name: steps[name] for name in self.features if name != "action"}
        return {name: torch.as_tensor(np.asarray(column[min(self._step, len(column) - 1)]))[None]
                for name, column in columns.items()}

    def reset(self, which, key):
        self._number, self._step = self._number + 1, 0
        return self._observe()

    def step(self, action):
        self._step += 1
        episode = self.episodes[self._number]
        over = torch.tensor([self._step >= len(episode)])
        return StepResult(self._observe(), torch.zeros(1), over, torch.zeros_like(over),
                          {"success": over & bool(episode.metadata["success"])})


def conformal_quantile(scores: Sequence[float] | np.ndarray, rate: float) -> float:
    """Returns the smallest score that a further, exchangeable score exceeds with a probability of at most `rate`.

    It is the k-th smallest of the n scores, k = ceil((n + 1) (1 - rate)).

    Raises:
        UserError: There are fewer than 1 / rate - 1 scores, so that none has this property.
    """
    n = len(scores)
    k = math.ceil(round((n + 1) * (1 - rate), 9))
    if k > n:
        raise UserError(f"a rate of {rate:g} needs at least {needed_scores(rate)} rollouts of the kind that it is "
                        f"about, and there are {n}", where="conformal threshold",
                        hint="give more rollouts, or a larger rate")
    return float(np.sort(np.asarray(scores, float))[k - 1])


def needed_scores(rate: float) -> int:
    """Returns the smallest number of scores that `conformal_quantile` accepts."""
    return math.ceil(round(1 / rate - 1, 9))


@part
class ConformalThreshold:
    """A threshold of the doubt that keeps a rate of errors, for any distribution of the doubt (conformal).

    An alarm is raised at the first step in which the doubt reaches the threshold. The rate holds for episodes that are
    exchangeable with the calibration episodes, on average over calibrations.

    Args:
        score: What is measured at each step.
        rate: Largest probability of the error.
        error: What the rate is about. "missed-failures": a failed episode without an alarm. "false-alarms": a
            successful episode with one.

    References:
        Diquigiovanni et al. (2021), The Importance of Being a Band: Finite-Sample Exact Distribution-Free Prediction
        Sets for Functional Data, arXiv:2102.06746. Xu et al. (2025), Can We Detect Failures Without Failure Data?
        (FAIL-Detect), arXiv:2503.08558, which bounds false alarms so.
    """

    score: DoubtScore
    rate: Annotated[float, Above(0), Below(1)] = 0.1
    error: Literal["missed-failures", "false-alarms"] = "missed-failures"

    def fit(self, episodes: Dataset, checkpoint: str = "", is_recorded: bool = False) -> FailureDetector:
        """Chooses the threshold by calibration rollouts, and returns the failure detector.

        Args:
            episodes: Rollouts with the column `doubt`, of which "success" is known.
            checkpoint: Digest of the checkpoint that acted.
            is_recorded: Whether the rollouts were recorded before, as on a robot, so that more must be recorded.
        """
        largest, failed = largest_doubts(episodes), failures(episodes)
        misses = self.error == "missed-failures"
        chosen = largest[failed] if misses else largest[~failed]
        if len(chosen) < needed_scores(self.rate):
            kind, what = ("failures", "failed") if misses else ("successes", "succeeded")
            raise UserError(f"a rate of {self.rate:g} of {self.error.replace('-', ' ')} needs at least "
                            f"{needed_scores(self.rate)} {kind}, and {len(chosen)} of {len(failed)} rollouts {what}",
                            where="calibration", hint=self._more_episodes(len(chosen), len(failed), is_recorded))
        threshold = (-conformal_quantile(-chosen, self.rate) if misses
                     else float(np.nextafter(conformal_quantile(chosen, self.rate), np.inf)))
        return FailureDetector(self, threshold, len(chosen), str(episodes[0].metadata["env"]), checkpoint)

    def _more_episodes(self, n_chosen: int, n_episodes: int, is_recorded: bool) -> str:
        if not n_chosen:
            return "calibrate where both happen, or choose the other --error"
        enough = 2 * math.ceil(needed_scores(self.rate) * n_episodes / n_chosen)
        if is_recorded:
            record = command_line("act", "RUN", "--robot", "TYPE", "--out", "DATA", "--episodes", enough)
            return f"record more, such as {enough} in all ({record}), or choose a larger --rate"
        return f"such as --episodes {enough}, or a larger --rate"


@dataclass(frozen=True)
class FailureDetector:
    """A calibrated detector of failures: a doubt score with a threshold.

    Args:
        threshold: Doubt at which an alarm is raised.
        n_calibration: Number of rollouts that set the threshold: failures, or successes for false alarms.
        env: Environment of the calibration.
        checkpoint: Digest of the checkpoint that acted.
        options: Options of acting with which it was calibrated, such as an executor.
        demonstrations: Fingerprint of the demonstrations that the score reads. Empty if it reads none.
        data: Path of these demonstrations, where they are named because the policy does not say them.
    """

    method: ConformalThreshold
    threshold: float
    n_calibration: int
    env: str
    checkpoint: str = ""
    options: tuple[str, ...] = ()
    demonstrations: str = ""
    data: str = ""

    def save(self, file: Path) -> None:
        """Writes the detector into a file, such as `DETECTOR_FILE` in the folder of a run."""
        write_json(file, config.dump(self))

    @staticmethod
    def load(run: Path, trust: tuple[str, ...] = ()) -> FailureDetector:
        """Reads the detector of a run, or of one of its checkpoints."""
        checkpoint = find_checkpoint(run)
        folder = checkpoint.parents[1] if checkpoint.parent.name == "checkpoints" else checkpoint
        detector = FailureDetector.read(folder / DETECTOR_FILE, trust)
        detector.check_checkpoint(Run.fingerprint(checkpoint), run)
        return detector

    @staticmethod
    def read(file: Path, trust: tuple[str, ...] = ()) -> FailureDetector:
        """Reads the detector that `save` wrote."""
        if not file.exists():
            is_of_run = file.name == DETECTOR_FILE
            raise UserError("the run has no failure detector" if is_of_run else "there is no such file", where=file,
                            hint="calibrate one: " + command_line("calibrate", file.parent if is_of_run else "RUN",
                                                                  "ENV"))
        detector = config.load(read_json(file), ("understudy", *trust), str(file))
        if not isinstance(detector, FailureDetector):
            raise UserError("is not a failure detector", where=file, hint="calibrate one again")
        return detector

    def check_checkpoint(self, digest: str, run: Path) -> None:
        """Raises UserError if the detector was calibrated for another checkpoint than the one with this digest."""
        if self.checkpoint != digest:
            raise UserError("the failure detector was calibrated for another checkpoint", where=run,
                            hint=command_line("calibrate", run, self.env, *self.options))

    def first_alarm(self, episode: Episode) -> int | None:
        """Returns the step of the first alarm in an episode with the column `doubt`, or None."""
        steps = np.flatnonzero(_doubts(episode) >= self.threshold)
        return int(steps[0]) if len(steps) else None

    def evaluate(self, episodes: Dataset) -> Detection:
        """Returns how often the detector is right on rollouts with the column `doubt`."""
        alarms, failed = [self.first_alarm(e) for e in episodes], failures(episodes)
        alarmed = np.array([a is not None for a in alarms])
        when = [a / len(e) for a, e, f in zip(alarms, episodes, failed, strict=True) if f and a is not None]
        return Detection(int((failed & ~alarmed).sum()), int(failed.sum()), int((~failed & alarmed).sum()),
                         int((~failed).sum()), float(np.mean(when)) if when else None)


@dataclass(frozen=True)
class Detection:
    """The result of a failure detector on a set of episodes.

    Args:
        alarm_time: Mean time of the first alarm in failed episodes, as a fraction of the episode. None without any.
    """

    missed: int
    n_failures: int
    false_alarms: int
    n_successes: int
    alarm_time: float | None

    def rate_of(self, error: str) -> tuple[int, int]:
        """Returns the number of errors of this kind, and of episodes in which it could happen."""
        return ((self.missed, self.n_failures) if error == "missed-failures"
                else (self.false_alarms, self.n_successes))

    def describe(self, detector: FailureDetector) -> str:
        """Describes the result in a few lines."""
        lines = []
        for error, text in (("missed-failures", "failures without an alarm"),
                            ("false-alarms", "successes with an alarm")):
            count, total = self.rate_of(error)
            r = stats.clopper_pearson(count, total) if total else None
            sure = "" if r is None else f" ({r.estimate:.1%}, 95% interval {r.low:.1%} to {r.high:.1%})"
            method = detector.method
            stated = f"; the stated rate is {method.rate:.1%}" if error == method.error else ""
            lines.append(f"{count} of {total} {text}{sure}{stated}.")
        if self.alarm_time is not None:
            lines.append(f"The first alarm of a failure comes after {self.alarm_time:.0%} of the episode on average.")
        return "\n".join(lines)

    def to_json(self, detector: FailureDetector) -> dict[str, Any]:
        """Returns the result as JSON, for the key `detection` of `understudy eval --json`."""
        out: dict[str, Any] = {"threshold": detector.threshold, "rate": detector.method.rate,
                               "error": detector.method.error, "alarm_time": self.alarm_time}
        for error, name in (("missed-failures", "missed"), ("false-alarms", "false_alarms")):
            count, total = self.rate_of(error)
            r = stats.clopper_pearson(count, total) if total else None
            out[name] = {"count": count, "episodes": total, "estimate": r and r.estimate, "low": r and r.low,
                         "high": r and r.high}
        return out


def largest_doubts(episodes: Dataset) -> np.ndarray:
    """Returns the largest doubt score of the policy in each episode, (episodes,)."""
    return np.array([_doubts(e).max() for e in episodes])


def failures(episodes: Dataset) -> np.ndarray:
    """Returns whether each episode failed, (episodes,) bool."""
    if any("success" not in e.metadata for e in episodes):
        raise UserError("failures are not known: the environment defines no success", where="failure detection",
                        hint='use an environment whose info has "success"')
    return np.array([not e.metadata["success"] for e in episodes])


def _doubts(episode: Episode) -> np.ndarray:
    return np.asarray(episode.steps[DOUBT], float)[:len(episode)]
