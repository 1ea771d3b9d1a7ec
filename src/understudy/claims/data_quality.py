"""Row 185: is it the variety of states that makes demonstrations good, or that the same is done in the same place?

A person's unsteadiness and gusts of wind spread the visited states alike; only the first is in what was recorded.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..audit.scores import ActionVariance
from ..data.episode import Dataset
from ..envs.fork import Expert
from .base import AllOf, Claim, ClaimPart, DemonstrationSource, Experiment, GreaterThan, Measure, NegativeControl
from .curation import arms, cached_load, curated_success, successful_rollouts, with_keep_columns

CELL_SIZE = 0.05  # m


@dataclass(frozen=True)
class NoisyDemonstrations(DemonstrationSource):
    """`steps` steps by an expert that always goes left: steady, pushed by gusts of `noise` m/s, or unsteady by as much
    itself. blur: the same unsteadiness is added to what the pushed expert is recorded to have done."""

    n_steps: int
    noise: float
    blur_noise: bool = False

    @cached_load
    def load(self, seed):
        n = self.n_steps // 8 + 1
        sets = {"steady": successful_rollouts(Expert(side=1, noise=0.0), "fork", n, seed, 0),
                "gusts": successful_rollouts(Expert(side=1, noise=0.0), "fork", n, seed, 1, gust=self.noise),
                "unsteady": successful_rollouts(Expert(side=1, noise=self.noise), "fork", n, seed, 2)}
        if self.blur_noise:
            rng = np.random.default_rng(seed)
            sets["gusts"] = Dataset([e.replace({"action": (e.steps["action"] + self.noise * rng.standard_normal(
                e.steps["action"].shape)).astype(np.float32)}) for e in sets["gusts"]])
        episodes, marks, figures = [], {k: [] for k in sets}, {}
        for name, data in sets.items():
            left, kept = self.n_steps, []
            for e in data:
                keep = (np.arange(len(e)) < left).astype(np.float32)  # as many steps of each, not as many episodes
                left = max(left - len(e), 0)
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


def blurred_noise(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, blur_noise=True))


SEEDS = tuple(range(100, 110))
WINDY = Experiment(
    NoisyDemonstrations(60, 1.0),
    "fork",
    arms("gusts", "unsteady"),
    curated_success,
    seeds=SEEDS,
    env_options=(("gust", 0.5),),
    measures=(("cells", Measure("real", "cells")), ("consistency", Measure("real", "variance"))),
)
CALM = replace(WINDY, arms=arms("steady", "unsteady"), env_options=())

CLAIM = Claim(
    name="data-quality",
    rows=("185",),
    paper="Belkhale et al. 2023, Data Quality in Imitation Learning, arXiv 2306.02437",
    statement="We show that state diversity is not always beneficial, and we demonstrate how action divergence and "
    "transition diversity interact in practice.",
    setup="fork, always on the left: 60 steps, 4 or 5 demonstrations, by an expert that is steady, pushed by gusts of "
    "1 m/s, or itself unsteady by as much; an MLP of 64 x 1 blocks, 500 updates. Gusts and unsteadiness spread the "
    "states alike, but only the unsteadiness is recorded as an action. The claim holds if two comparisons hold. "
    "Judged in gusts of 0.5 m/s, cloning the expert in gusts succeeds more often than cloning the unsteady one. "
    "Judged in calm air, cloning the steady expert succeeds more often than cloning the unsteady one. Two other rules "
    "are true nearly by construction and describe the sets: the score action variance is better for the gusts than "
    "for the unsteady expert, and the states of the unsteady expert fill more cells of 5 cm than those of the steady "
    "one. Caveats: the negative control adds noise to the recorded actions that was never executed. This makes the "
    "arm worse than the loss of the mechanism would: success is 0.39 with it, where unsteady actions of the same "
    "variance leave 0.82. So the control would also pass if gusts had an advantage of 0.25, and action variance alone "
    "does not rank teachers. How action divergence and transition diversity interact is not tested. No arm has a "
    "level that it must reach.",
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
        "the same unsteadiness added to what is recorded under gusts", blurred_noise, "the same variety",
        removes=(GreaterThan("success", "gusts", "unsteady"),),
    ),
)
