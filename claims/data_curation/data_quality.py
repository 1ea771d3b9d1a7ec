"""Row 185: are demonstrations good if their states vary, or if actions in the same state are the same?

A person's unsteadiness and gusts of wind spread the visited states equally. Only unsteadiness is in recorded actions.
"""

from dataclasses import dataclass, replace

import numpy as np

from claims.worlds.curation import cached_load, curated_arms, curated_success, successful_rollouts, with_keep_columns
from understudy.audit.scores import ActionVariance
from understudy.claims.base import (
    AllOf,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.fork import ForkExpert

CELL_SIZE = 0.05  # m
STEP_SECONDS = 0.1  # of fork


@dataclass(frozen=True)
class NoisyDemonstrations(DemonstrationSource):
    """Demonstrations by an expert that always goes left: steady, pushed by gusts, or unsteady by as much itself.

    Args:
        n_steps: Steps of each set.
        noise: Standard deviation of gusts and of unsteadiness, m/s.
        record_gusts: The actions of the pushed expert are recorded with the gusts, as they were executed.
    """

    n_steps: int
    noise: float
    record_gusts: bool = False

    @cached_load
    def load(self, seed):
        n = self.n_steps // 8 + 1
        sets = {"steady": successful_rollouts(ForkExpert(side=1, noise=0.0), "fork", n, seed, 0),
                "gusts": successful_rollouts(ForkExpert(side=1, noise=0.0), "fork", n, seed, 1, gust=self.noise),
                "unsteady": successful_rollouts(ForkExpert(side=1, noise=self.noise), "fork", n, seed, 2)}
        if self.record_gusts:
            sets["gusts"] = Dataset([e.replace({"action": executed_actions(e)}) for e in sets["gusts"]])
        episodes, marks, figures = [], {k: [] for k in sets}, {}
        for name, data in sets.items():
            remaining_steps, kept = self.n_steps, []
            for e in data:
                # As many steps of each, not as many episodes.
                keep = (np.arange(len(e)) < remaining_steps).astype(np.float32)
                remaining_steps = max(remaining_steps - len(e), 0)
                if keep.any():
                    episodes.append(e)
                    kept.append(e)
                    for other in marks:
                        marks[other].append(keep if other == name else 0.0)
            state = np.concatenate([e.steps["observation.state"][: len(e)] for e in kept])[: self.n_steps]
            figures[f"cells.{name}"] = len(np.unique(np.floor(state / CELL_SIZE), axis=0))
            spread = np.concatenate([e.steps["action"] for e in kept]).var(0).mean()  # of the units of the score
            figures[f"consistency.{name}"] = float(spread * np.mean(ActionVariance(inputs=("observation.state",))(
                Dataset(kept))))
        return with_keep_columns(episodes, marks, {"figures": figures})


def executed_actions(episode: Episode) -> np.ndarray:
    """The velocity that moved the point in each step, with the gust: the difference of positions, m/s, (T, 2)."""
    at = np.asarray(episode.steps["observation.state"], np.float32)
    return np.diff(at, axis=0) / STEP_SECONDS


def recorded_gusts(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, record_gusts=True))


SEEDS = tuple(range(200, 240))
WINDY = Experiment(
    NoisyDemonstrations(60, 1.0),
    "fork",
    curated_arms("gusts", "unsteady"),
    curated_success,
    seeds=SEEDS,
    tuning_seeds=(910,),
    episodes=400,
    starts_seed=200,
    env_options=(("gust", 0.5),),
    measures=(("cells", Measure("real", "cells")), ("consistency", Measure("real", "variance"))),
    sanity=(("gusts", "success", 0.5), ("unsteady", "success", 0.5)),
)
CALM = replace(
    WINDY,
    arms=curated_arms("steady", "unsteady"),
    env_options=(),
    sanity=(("steady", "success", 0.5), ("unsteady", "success", 0.5)),
)

CLAIM = Claim(
    name="data-quality",
    rows=("185",),
    parts=(
        ClaimPart(
            "the same variety",
            WINDY,
            AllOf((GreaterThan("success", "gusts", "unsteady"), GreaterThan("consistency", "gusts", "unsteady"))),
        ),
        ClaimPart(
            "less variety",
            CALM,
            AllOf((GreaterThan("success", "steady", "unsteady"), GreaterThan("cells", "unsteady", "steady"))),
        ),
    ),
    negative_control=NegativeControl(
        recorded_gusts, "the same variety", removes=(GreaterThan("success", "gusts", "unsteady"),)
    ),
)
