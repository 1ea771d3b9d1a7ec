"""Row 317: does a policy that has learned other tasks need fewer demonstrations of a new one?

The published policies learn hundreds of tasks on real robots. Here a task is a direction in which a block is pushed.
Training from scratch makes as many updates as pre-training and fine-tuning together. The published procedure of
evaluation is in `evaluate`, and is not part of this claim.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from claims.worlds.curation import cached_load, cloning_method
from claims.worlds.directed_push import direction_demonstrations, rollout_policy
from understudy.claims.base import (
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

OTHER_DIRECTIONS, NEW_DIRECTION = (6, 7, 0, 1, 2), (4,)  # directions: to the right and half to the sides; to the left
PRETRAINING_STEPS, FINETUNING_STEPS = 600, 300  # updates; from scratch as many as both together
LEARNING_RATE = 1e-2  # the best of four for every arm in pilots


@dataclass(frozen=True)
class MultiTaskDemonstrations(DemonstrationSource):
    """`others` demonstrations of other tasks, and `new` of the one that is judged."""

    n_others: int = 200
    n_new: int = 40
    probe_sizes = {"n_others": 20}

    @cached_load
    def load(self, seed):
        sets = {"others": direction_demonstrations(PushExpert(), OTHER_DIRECTIONS, self.n_others, seed, 0),
                "new": direction_demonstrations(PushExpert(), NEW_DIRECTION, self.n_new, seed, 1)}
        return Dataset([replace(e, metadata={**e.metadata, "set": name}) for name, some in sets.items() for e in some])


@dataclass(frozen=True)
class TransferMethod:
    """Learn the new task from scratch or from a policy that has learned the other tasks.

    Args:
        episodes: Number of demonstrations of the new task.
        pretrained: Start from the pre-trained policy.
        shuffle_pretraining: Permute the actions of all steps of the pre-training demonstrations.
    """

    episodes: int
    pretrained: bool
    shuffle_pretraining: bool = False

    @property
    def training(self) -> Method:
        """Training on the new task."""
        return cloning_method(LEARNING_RATE, steps=FINETUNING_STEPS + (0 if self.pretrained else PRETRAINING_STEPS))


_pretrained_policies = Memo()  # by what was learned from


def new_task_success(
    experiment, method: TransferMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Success on the new task."""
    policy = (
        _pretrain(method, data.filter(lambda e: e.metadata["set"] == "others"), seed) if method.pretrained else None
    )
    new = data.filter(lambda e: e.metadata["set"] == "new")[: method.episodes]
    policy = fit_method(method.training, new, seed, policy=policy).policy
    rollouts = rollout_policy(policy, method.training, NEW_DIRECTION, episodes, starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts]}


def _pretrain(method: TransferMethod, others: Dataset, seed: int) -> Policy:
    key = others.fingerprint(), method.shuffle_pretraining, seed

    def train() -> Policy:
        learned = _shuffled_actions(others, seed) if method.shuffle_pretraining else others
        return fit_method(cloning_method(LEARNING_RATE, steps=PRETRAINING_STEPS), learned, seed).policy
    return _pretrained_policies.get(key, train)


def _shuffled_actions(data: Dataset, seed: int) -> Dataset:
    """The actions of all steps permuted. Within an episode would not do: the mean action tells the direction."""
    actions = np.random.default_rng(seed).permutation(np.concatenate([e.steps["action"] for e in data]))
    ends = np.cumsum([len(e) for e in data])[:-1]
    return Dataset([e.replace({"action": a}) for e, a in zip(data, np.split(actions, ends), strict=True)])


def shuffled_pretraining(experiment: Experiment) -> Experiment:
    return experiment.change_options(lambda o: replace(o, shuffle_pretraining=o.pretrained))


PUSH = Experiment(
    MultiTaskDemonstrations(),
    "push",
    (
        Arm("scratch, 20", (TransferMethod(20, False),)),
        Arm("scratch, 40", (TransferMethod(40, False),)),
        Arm("pretrained, 20", (TransferMethod(20, True),)),
        Arm("pretrained, 40", (TransferMethod(40, True),)),
    ),
    new_task_success,
    seeds=tuple(range(320, 340)),
    episodes=200,
    starts_seed=320,
    sanity=(("scratch, 40", "success", 0.2), ("pretrained, 40", "success", 0.2)),
)
BETTER_WITH_20 = GreaterThan("success", "pretrained, 20", "scratch, 20")
BETTER_WITH_40 = GreaterThan("success", "pretrained, 40", "scratch, 40")

CLAIM = Claim(
    name="pretrained-behavior",
    rows=("317",),
    parts=(
        ClaimPart(
            "push",
            PUSH,
            AllOf((BETTER_WITH_20, BETTER_WITH_40, GreaterThan("success", "pretrained, 20", "scratch, 40", -0.05))),
        ),
    ),
    negative_control=NegativeControl(shuffled_pretraining, "push", removes=(BETTER_WITH_20, BETTER_WITH_40)),
)
