"""Row 317: does a policy that has learned other tasks need fewer demonstrations of a new one?

The published policies are of many hundred tasks on real robots; here a task is a direction in which a block is to be
pushed. The half of their statistics that plans and judges comparisons is `evaluate`, not a claim. A first run, on the
seeds 100 to 104, was undecided by the spread of so few and is a pilot: fourteen others judge.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..data.episode import Dataset
from ..envs.push import Expert
from ..policy import Policy
from .base import AllOf, Arm, Claim, ClaimPart, DemonstrationSource, Experiment, GreaterThan, NegativeControl
from .curation import cached_load, cloning_method
from .goal_directions import direction_demonstrations, rollout_policy, train_policy

OTHER_DIRECTIONS, NEW_DIRECTION = (6, 7, 0, 1, 2), (4,)  # directions: to the right and half to the sides; to the left
TRAINING, PRETRAINING = cloning_method(3e-3, steps=800), cloning_method(3e-3, steps=2000)


@dataclass(frozen=True)
class MultiTaskDemonstrations(DemonstrationSource):
    """`others` demonstrations of other tasks, and `new` of the one that is judged."""

    n_others: int = 200
    n_new: int = 40

    @cached_load
    def load(self, seed):
        sets = {"others": direction_demonstrations(Expert(), OTHER_DIRECTIONS, self.n_others, seed, 0),
                "new": direction_demonstrations(Expert(), NEW_DIRECTION, self.n_new, seed, 1)}
        return Dataset([replace(e, metadata={**e.metadata, "set": name}) for name, some in sets.items() for e in some])


@dataclass(frozen=True)
class TransferMethod:
    """Learns from the first `episodes` of the new task's demonstrations (0: nothing), from scratch or from what was
    learned of the other tasks (`before`). mixed: of those, the actions are exchanged between steps."""

    episodes: int
    pretrained: bool
    shuffle_pretraining: bool = False


_pretrained_policies: dict[tuple, Policy] = {}  # of this process, by what was learned from


def new_task_success(
    experiment, method: TransferMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """success on the new task."""
    policy = (
        _pretrain(method, data.filter(lambda e: e.metadata["set"] == "others"), seed) if method.pretrained else None
    )
    if method.episodes:
        new = data.filter(lambda e: e.metadata["set"] == "new")[: method.episodes]
        policy = train_policy(TRAINING, new, seed, policy)
    assert policy is not None  # every arm is pretrained or has episodes
    return {
        "success": [
            float(e.metadata["success"]) for e in rollout_policy(policy, TRAINING, NEW_DIRECTION, episodes, starts)
        ]
    }


def _pretrain(method: TransferMethod, others: Dataset, seed: int) -> Policy:
    key = others.fingerprint(), method.shuffle_pretraining, seed
    if key not in _pretrained_policies:
        rng = np.random.default_rng(seed)
        if method.shuffle_pretraining:
            others = Dataset([e.replace({"action": rng.permutation(e.steps["action"])}) for e in others])
        _pretrained_policies[key] = train_policy(PRETRAINING, others, seed)
    return _pretrained_policies[key]


def shuffled_pretraining(experiment: Experiment) -> Experiment:
    return replace(
        experiment,
        arms=tuple(
            replace(a, options=tuple(replace(o, shuffle_pretraining=o.pretrained) for o in a.options))
            for a in experiment.arms
        ),
    )


PUSH = Experiment(
    MultiTaskDemonstrations(),
    "push",
    tuple(
        Arm(name, (option,))
        for name, option in {
            "scratch, 20": TransferMethod(20, False),
            "scratch, 40": TransferMethod(40, False),
            "pretrained, 20": TransferMethod(20, True),
            "pretrained, 40": TransferMethod(40, True),
            "pretrained, 0": TransferMethod(0, True),
        }.items()
    ),
    new_task_success,
    seeds=tuple(range(120, 134)),
)

CLAIM = Claim(
    name="pretrained-behavior",
    rows=("317",),
    paper="TRI LBM Team 2025, A Careful Examination of Large Behavior Models for Multitask Dexterous Manipulation, "
    "arXiv 2507.05331",
    statement="We find that multi-task pretraining makes the policies more successful and robust, and enables teaching "
    "complex new tasks more quickly, using a fraction of the data when compared to single-task baselines.",
    setup="push, an MLP of 64 x 1 blocks, which learns to push to the left from 20 or 40 demonstrations in 800 "
    "updates. If before that it has learned from 200 demonstrations of five of the other directions in 2,000 "
    "updates, it succeeds more often with the same demonstrations (with 20, and with 40); and with half of "
    "them, 20, at most 0.05 less often than from scratch with 40. Its success without any of them is reported "
    "too.",
    parts=(
        ClaimPart(
            "push",
            PUSH,
            AllOf(
                (
                    GreaterThan("success", "pretrained, 20", "scratch, 20"),
                    GreaterThan("success", "pretrained, 40", "scratch, 40"),
                    GreaterThan("success", "pretrained, 20", "scratch, 40", -0.05),
                )
            ),
        ),
    ),
    negative_control=NegativeControl(
        "of the other tasks' demonstrations, the actions exchanged between the steps of each",
        shuffled_pretraining,
        "push",
        removes=(GreaterThan("success", "pretrained, 20", "scratch, 20"),
                 GreaterThan("success", "pretrained, 40", "scratch, 40")),
    ),
)
