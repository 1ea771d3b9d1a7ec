"""Row 055: what imitating a stronger model brings, and where.

The published students are language models; here all are the same small network, and a task is a direction in which a
block is to be pushed. A first run, on the seeds 100 to 105, was undecided by the spread of so few and is a pilot:
fourteen others judge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from claims.worlds.curation import cached_load, cloning_method
from claims.worlds.directed_push import direction_demonstrations, rollout_policy
from understudy.claims.base import (
    RATE,
    SCORE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.memo import Memo
from understudy.data.episode import Dataset
from understudy.envs.toys.push import PushExpert
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.policy import Policy

# the half of the directions about the x axis, and the other
SEEN_DIRECTIONS, UNSEEN_DIRECTIONS = (6, 7, 0, 1), (2, 3, 4, 5)
WEAK_EXPERT, STRONG_EXPERT = PushExpert(noise=0.1), PushExpert(noise=0.0)
BASE_METHOD = cloning_method(3e-3, steps=1500)


@dataclass(frozen=True)
class WeakAndStrongDemonstrations(DemonstrationSource):
    """`base` demonstrations of all tasks by an unsteady demonstrator, `more` of these, as many by a steady one of the
    tasks inside alone (wide: of all), and `held` further ones by the steady one, which are not trained on."""

    n_base: int = 40
    n_more: int = 160
    n_held_out: int = 40
    cover_all_directions: bool = False
    probe_sizes = {"n_base": 20, "n_more": 40, "n_held_out": 10}

    @cached_load
    def load(self, seed):
        every = SEEN_DIRECTIONS + UNSEEN_DIRECTIONS
        sets = {
            "base": direction_demonstrations(WEAK_EXPERT, every, self.n_base, seed, 0),
            "broader": direction_demonstrations(WEAK_EXPERT, every, self.n_more, seed, 1),
            "imitation": direction_demonstrations(
                STRONG_EXPERT, every if self.cover_all_directions else SEEN_DIRECTIONS, self.n_more, seed, 2
            ),
            "held": direction_demonstrations(STRONG_EXPERT, SEEN_DIRECTIONS, self.n_held_out, seed, 3),
        }
        return Dataset([replace(e, metadata={**e.metadata, "set": name}) for name, some in sets.items() for e in some])


@dataclass(frozen=True)
class FineTunedMethod:
    """base: trained on the base set. imitation, broader: trained on from there by `learn`, on the set of that name."""

    kind: Literal["base", "imitation", "broader"]
    method: Method


_base_policies = Memo()  # by set and seed


def success_and_agreement(experiment, method: FineTunedMethod, data: Dataset, seed: int, episodes: int, starts: int
                          ) -> dict[str, list[float]]:
    """alike: the fraction of the variance of the steady demonstrator's actions that is explained, in the states of its
    held demonstrations. success inside and outside: on the tasks that it showed, and on the others."""
    sets = {name: data.filter(lambda e, name=name: e.metadata["set"] == name) for name in (
        "base", "broader", "imitation", "held")}
    key = sets["base"].fingerprint(), seed
    policy = _base_policies.get(key, lambda: fit_method(BASE_METHOD, sets["base"], seed).policy)
    if method.kind != "base":
        policy = fit_method(method.method, sets[method.kind], seed, policy=policy).policy
    return {
        "alike": [explained_variance(policy, sets["held"])],
        **{
            f"success {region}": [
                float(e.metadata["success"]) for e in rollout_policy(policy, BASE_METHOD, tasks, episodes, starts)
            ]
            for region, tasks in (("inside", SEEN_DIRECTIONS), ("outside", UNSEEN_DIRECTIONS))
        },
    }


@torch.no_grad()
def explained_variance(policy: Policy, data: Dataset) -> float:
    states = torch.as_tensor(np.concatenate([e.steps["observation.state"][: len(e)] for e in data]))
    did = np.concatenate([e.steps["action"] for e in data])
    none = torch.zeros(len(states), dtype=torch.int64)
    predictions = policy.plan({"observation.state": states.unsqueeze(1)}, policy.noise(none, none))[:, 0].numpy()
    return float(1 - np.square(predictions - did).mean() / did.var(0).mean())


def all_directions(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, cover_all_directions=True))


METHODS = cloning_method(3e-3, steps=1000), cloning_method(1e-3, steps=1000)
PUSH = Experiment(
    WeakAndStrongDemonstrations(),
    "push",
    tuple(Arm(kind, tuple(FineTunedMethod(kind, o) for o in METHODS)) for kind in ("base", "imitation", "broader")),
    success_and_agreement,
    tuned_by="success inside",
    seeds=tuple(range(120, 134)),
    measures=(("alike", SCORE), ("success inside", RATE), ("success outside", RATE)),
)

CLAIM = Claim(
    name="imitation-promise",
    rows=("055",),
    parts=(
        ClaimPart(
            "push",
            PUSH,
            AllOf(
                (
                    GreaterThan("alike", "imitation", "base", 0.1),
                    GreaterThan("success inside", "imitation", "base", 0.2),
                    GreaterThan("success outside", "base", "imitation", -0.1),
                    GreaterThan("success outside", "broader", "imitation", 0.1),
                )
            ),
        ),
    ),
    negative_control=NegativeControl(
        all_directions, "push", removes=(GreaterThan("success outside", "base", "imitation", -0.1),)
    ),
)
