"""Behavior metrics of a policy: what its rollouts show besides success.

Do the rollouts use several ways, stay near the demonstrations, move smoothly and quickly? How near did failures come,
and does the policy decide in time?
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from ..data.episode import Dataset, Episode
from ..envs.base import Env
from . import stats
from .behavior import clearance, modes, motion
from .behavior.demo_distance import (
    DemonstrationIndex,
    DistributionDistance,
    discriminator_accuracy,
    distribution_distance,
)
from .behavior.latency import LatencySummary
from .behavior.scaling import TrajectoryScaling, evenly_spaced, evenly_spaced_indices
from .behavior.support import SuccessBySupport, success_by_support
from .failures import FailureGroup, FailurePictures, group_failures
from .stats import LEVEL, Interval

SCALED_METRICS = ("smoothness", "log_jerk", "action_jerk", "state_distance", "action_distance")


@dataclass(frozen=True)
class BehaviorMetric:
    """A behavior metric: its mean over episodes, and the same mean over the demonstrations.

    `n_episodes` is the number of episodes in the mean.
    """

    key: str  # in JSON
    name: str
    unit: str
    better_direction: str  # "less", "more", or "" where it depends
    value: Interval
    n_episodes: int
    demonstrations: Interval | None = None

    def to_json(self) -> dict[str, Any]:
        return {
            **asdict(self.value),
            "episodes": self.n_episodes,
            "unit": self.unit,
            "better": self.better_direction or None,
            "demonstrations": self.demonstrations and asdict(self.demonstrations),
        }


@dataclass(frozen=True)
class BehaviorModes:
    """The ways of doing the task (modes): their number, their source, and how many successful episodes used each."""

    n_modes: int
    source: str
    counts: Mapping[str, int]
    entropy: float  # over all starts, as over `counts`
    demonstrations: Mapping[str, int] | None = None
    conditional_entropy: Interval | None = None  # over the starts with at least one success
    n_starts: int = 0
    n_repeats: int = 0

    @property
    def overlap(self) -> float | None:
        return None if self.demonstrations is None else modes.mode_overlap(self.counts, self.demonstrations)

    @property
    def n_modes_found(self) -> int | None:
        """Number of the demonstrators' ways that were used at least once."""
        return None if self.demonstrations is None else sum(self.counts.get(w, 0) > 0 for w in self.demonstrations)

    @property
    def expected_entropy(self) -> float | None:
        return modes.expected_entropy(self.n_modes, self.n_repeats) if self.n_repeats else None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "n_modes_found": self.n_modes_found, "overlap": self.overlap,
                "expected_entropy": self.expected_entropy}


@dataclass(frozen=True)
class BehaviorMetrics:
    """The behavior metrics of one policy.

    Attributes:
        missing: For each missing part, what would be needed.
        scaled_by: The data that give the standard deviations, the units of all components: "demonstrations" or
            "episodes" (the rollouts themselves).
        support: Success from starts that demonstrations show, and from other starts. None if there are too few starts
            of one kind.
        failure_figures: One figure for each group of failures, or None (`failures.failure_figures`).
    """

    metrics: tuple[BehaviorMetric, ...]
    modes: BehaviorModes | None
    discriminator_accuracy: Interval | None
    distribution_distance: DistributionDistance | None
    latency: LatencySummary | None
    failures: tuple[FailureGroup, ...]
    missing: tuple[str, ...]
    seed: int
    scaled_by: Literal["demonstrations", "episodes"] = "episodes"
    support: SuccessBySupport | None = None
    failure_figures: tuple[FailurePictures, ...] = ()

    def to_json(self) -> dict[str, Any]:
        return {
            "metrics": {m.key: m.to_json() for m in self.metrics},
            "modes": self.modes and self.modes.to_json(),
            "discriminator_accuracy": self.discriminator_accuracy and asdict(self.discriminator_accuracy),
            "earth_movers_distance": self.distribution_distance and self.distribution_distance.to_json(),
            "support": self.support and self.support.to_json(),
            "latency": self.latency and self.latency.to_json(),
            "failures": [g.to_json() for g in self.failures],
            "missing": list(self.missing),
            "scaled_by": self.scaled_by,
        }

    def describe(self) -> list[str]:
        """Describes, in sentences, the results that are not means over episodes."""
        out = []
        if any(m.key in SCALED_METRICS for m in self.metrics):
            data = "the demonstrations" if self.scaled_by == "demonstrations" else "its own episodes"
            out.append("Smoothness, jerk and distances: each component is divided by its standard deviation over "
                       f"{data}. With other demonstrations, or with none, the figures differ.")
        if (m := self.modes) is not None:
            succeeded = any(x.key == "time_to_success" for x in self.metrics) or not any(m.counts.values())
            out.append(_describe_modes(m, "successes" if succeeded else "episodes"))
        if (t := self.discriminator_accuracy) is not None:
            out.append(f"A classifier tells its motion from demonstrations in {t.estimate:.0%} [{t.low:.0%}, "
                       f"{t.high:.0%}] of cases (chance: 50%).")
        if (e := self.distribution_distance) is not None:
            each = [
                f"{distance:.2g} deviations of {what} ({reference:.2g} between halves of the demonstrations)"
                for distance, reference, what in (
                    (e.states, e.between_demonstrations[0], "where it is"),
                    (e.state_changes, e.between_demonstrations[1], "how actions change"),
                )
                if math.isfinite(distance)
            ]
            out += [f"Earth mover's distance from the demonstrations: {', '.join(each)}."] if each else []
        out += [part.describe() for part in (self.support, self.latency) if part is not None]
        return out

    def summary_lines(self) -> list[str]:
        """All results that are not means over episodes, in sentences."""
        return [*self.describe(), *self.failure_lines()]

    def failure_lines(self) -> list[str]:
        """A sentence for each group of failures, the largest first, with what to record against it."""
        n_failures = sum(map(len, self.failures))
        of_all = f"of {n_failures} {'failure' if n_failures == 1 else 'failures'}"
        return [f"{len(g)} {of_all}: {g.describe()}. {g.remedy(self.seed)}" for g in self.failures]


def measure_behavior(
    episodes: Dataset,
    env: Env | None = None,
    demonstrations: Dataset | None = None,
    *,
    repeated: Dataset | None = None,
    latency: LatencySummary | None = None,
    level: float = LEVEL,
) -> BehaviorMetrics:
    """Computes the behavior metrics of rollouts.

    The unit of every interval is the episode; for the entropy it is the start.

    Args:
        env: The environment of the rollouts. It may report modes and margins.
        demonstrations: The training data of the policy, or other data to compare with. If they share no numeric column
            with the rollouts, the result says so and nothing is compared.
    """
    missing: list[str] = []
    view, index = TrajectoryScaling.from_data(episodes), None
    if demonstrations is not None and len(demonstrations):
        shared = TrajectoryScaling.from_data(demonstrations, episodes)
        index = DemonstrationIndex.from_data(demonstrations, shared)
        if index is None:
            missing.append("distance to the demonstrations: they share no column of numbers with the rollouts")
        else:
            view = shared
    else:
        missing.append("distance to the demonstrations, and their ways: not given (--demonstrations DATA)")
    if index is None:
        demonstrations = None
    fps = float((env.metadata.get("fps") if env is not None else None) or episodes.fps or 0) or None
    metrics = _episode_metrics(episodes, demonstrations, env, view, index, fps, level)
    ways = _behavior_modes(episodes, demonstrations, repeated, env, view, level)
    if ways is None:
        missing.append("several ways: the environment names none, and the trajectories form no clear groups")
    elif ways.conditional_entropy is None:
        missing.append("several ways from one and the same start: not rolled out (--repeats 8)")
    alike = apart = support = None
    if demonstrations is not None:
        alike = discriminator_accuracy(episodes, demonstrations, view, fps or 1.0, level) if view.n_components else None
        apart = distribution_distance(episodes, demonstrations, view)
        support = success_by_support(episodes, demonstrations, view, level)
        if alike is None:
            missing.append("whether it passes for a demonstration: fewer than 10 episodes of each")
    return BehaviorMetrics(metrics, ways, alike, apart, latency, group_failures(episodes, env, index), tuple(missing),
                           int(episodes[0].metadata.get("seed", 0)),
                           "episodes" if demonstrations is None else "demonstrations", support)


def _episode_metrics(
    episodes, demonstrations, env, view, demonstration_index, fps, level
) -> tuple[BehaviorMetric, ...]:
    demos = [] if demonstrations is None else evenly_spaced(demonstrations)
    second, rate = ("s", fps) if fps else ("steps", 1.0)
    out: list[BehaviorMetric] = []

    def put(key: str, name: str, unit: str, better: str, of_rollouts: Iterable, of_demos: Iterable = ()) -> None:
        values, demo_values = ([v for v in samples if v is not None and math.isfinite(v)]
                               for samples in (of_rollouts, of_demos))
        if values:
            out.append(BehaviorMetric(key, name, unit, better, stats.bootstrap_mean(values, level), len(values),
                                      stats.bootstrap_mean(demo_values, level) if demo_values else None))

    def each(value: Callable[[Episode], float | None], of: Iterable[Episode] = episodes):
        return map(value, of), map(value, demos)

    def mean_distances(e, without=None):
        """Returns the mean distances of an episode's states, and of its actions, from demonstrations."""
        return [
            float(np.nanmean(a)) if np.isfinite(a).any() else math.nan
            for a in demonstration_index.distances(e, exclude=without)
        ]

    def pace(e):
        return motion.speed(view.states(e), rate)
    done = modes.successful_episodes(episodes)  # complete movements only: one that a crash cuts short would look smooth
    failures = [e for e in episodes if e.metadata.get("success") is False]
    whole = "successes: " if all("success" in e.metadata for e in episodes) else ""
    put("time_to_success", "time to success", second, "less", *each(lambda e: motion.success_step(e) / rate))
    put("smoothness", f"{whole}smoothness (SPARC)", "", "more",
        *each(lambda e: motion.spectral_arc_length(pace(e), rate), done))
    put("log_jerk", f"{whole}smoothness (LDLJ)", "", "more",
        *each(lambda e: motion.log_dimensionless_jerk(pace(e), rate), done))
    if view.action_scale is not None:
        put("action_jerk", "jerk of actions", "deviations", "less", *each(lambda e: motion.action_jerk(
            view.actions(e))))
    if demonstration_index is not None:
        distances = [mean_distances(e) for e in episodes]
        demo_distances = [mean_distances(demos[i], int(i)) for i in evenly_spaced_indices(len(demos), 20)]
        for i, (key, name) in enumerate((("state_distance", "states from demonstrated ones"),
                                         ("action_distance", "actions from those done there"))):
            put(key, name, "deviations", "less", (v[i] for v in distances), (v[i] for v in demo_distances))
    put("failures_margin", "failures: how near they came", clearance.distance_unit(env), "less",
        (clearance.success_margin(e, env) for e in failures))
    put("clearance", f"{whole}clear of obstacles by", clearance.distance_unit(env), "more",
        *each(lambda e: clearance.obstacle_clearance(e, env), done))
    return tuple(out)


def _behavior_modes(episodes, demonstrations, repeated, env, view, level) -> BehaviorModes | None:
    detected = modes.find_mode_function(env, episodes, demonstrations, view)
    if detected is None:
        return None
    way, ways, source = detected
    counts = modes.mode_counts(episodes, way)
    demonstration_counts = None
    if demonstrations is not None:
        demonstration_counts = modes.mode_counts(Dataset(evenly_spaced(demonstrations)), way)
    again = None if repeated is None else modes.mode_counts(repeated, way)
    ways = max(ways, len(set(counts) | set(demonstration_counts or ()) | set(again or ())))
    starts = len({e.metadata["start"] for e in repeated}) if repeated is not None else 0
    return BehaviorModes(ways, source, dict(sorted(counts.items())), modes.mode_entropy(list(counts.values()), ways),
                         dict(sorted(demonstration_counts.items())) if demonstration_counts else None,
                         None if repeated is None else modes.conditional_entropy(repeated, way, ways, level), starts,
                         len(repeated) // starts if starts else 0)


def _describe_modes(m: BehaviorModes, of: str) -> str:
    def tally(counts):
        return ", ".join(f"{n} {w}" for w, n in counts.items()) or "none"
    text = f"Ways of the {sum(m.counts.values())} {of} ({m.n_modes} ways, by {m.source}): {tally(m.counts)}"
    if m.demonstrations is not None:
        text += f"; demonstrations {tally(m.demonstrations)}"
    text += (f". Behavior entropy {m.entropy:.2f} over the {of} of all starts" if math.isfinite(m.entropy) else
             ". No behavior entropy: nothing succeeded")
    if m.conditional_entropy is not None:
        p = m.conditional_entropy
        limits = f" [{p.low:.2f}, {p.high:.2f}]" if math.isfinite(p.low) else ""  # none for few starts
        text += (
            f", {p.estimate:.2f}{limits} from the same start ({m.n_starts} starts, {m.n_repeats} "
            f"rollouts each, in which a policy that takes all ways alike gets {m.expected_entropy:.2f})"
            if math.isfinite(p.estimate)
            else ", none of the same start, where nothing succeeded"
        )
    if m.overlap is not None and m.demonstrations is not None:
        text += (f". It uses {m.n_modes_found} of the demonstrators' {len(m.demonstrations)} ways"
                 + (f"; the shares overlap by {m.overlap:.0%}" if math.isfinite(m.overlap) else ""))
    return text + "."
