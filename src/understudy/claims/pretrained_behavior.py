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
from .base import Above, Arm, Claim, Every, Experiment, Part, Sabotage, Source
from .curated import cloning, once
from .sectors import demonstrations, ran, trained

OTHERS, NEW = (6, 7, 0, 1, 2), (4,)  # directions: to the right and half to the sides; to the left
LEARN, BEFORE = cloning(3e-3, steps=800), cloning(3e-3, steps=2000)


@dataclass(frozen=True)
class Tasks(Source):
    """`others` demonstrations of other tasks, and `new` of the one that is judged."""

    others: int = 200
    new: int = 40

    @once
    def load(self, seed):
        sets = {"others": demonstrations(Expert(), OTHERS, self.others, seed, 0),
                "new": demonstrations(Expert(), NEW, self.new, seed, 1)}
        return Dataset([replace(e, meta={**e.meta, "set": name}) for name, some in sets.items() for e in some])


@dataclass(frozen=True)
class From:
    """Learns from the first `episodes` of the new task's demonstrations (0: nothing), from scratch or from what was
    learned of the other tasks (`before`). mixed: of those, the actions are exchanged between steps."""

    episodes: int
    before: bool
    mixed: bool = False


_before: dict[tuple, Policy] = {}  # of this process, by what was learned from


def learned(experiment, method: From, data: Dataset, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """success on the new task."""
    policy = _pretrained(method, data.where(lambda e: e.meta["set"] == "others"), seed) if method.before else None
    if method.episodes:
        new = data.where(lambda e: e.meta["set"] == "new")[: method.episodes]
        policy = trained(LEARN, new, seed, policy)
    return {"success": [float(e.meta["success"]) for e in ran(policy, LEARN, NEW, episodes, starts)]}


def _pretrained(method: From, others: Dataset, seed: int) -> Policy:
    key = others.fingerprint(), method.mixed, seed
    if key not in _before:
        rng = np.random.default_rng(seed)
        if method.mixed:
            others = Dataset([e.but({"action": rng.permutation(e.steps["action"])}) for e in others])
        _before[key] = trained(BEFORE, others, seed)
    return _before[key]


def mixed(experiment: Experiment) -> Experiment:
    return replace(experiment, arms=tuple(replace(a, options=tuple(replace(o, mixed=o.before) for o in a.options))
                                          for a in experiment.arms))


PUSH = Experiment(Tasks(), "push", tuple(Arm(name, (option,)) for name, option in {
    "scratch, 20": From(20, False), "scratch, 40": From(40, False), "pretrained, 20": From(20, True),
    "pretrained, 40": From(40, True), "pretrained, 0": From(0, True)}.items()), learned,
    seeds=tuple(range(120, 134)))

CLAIM = Claim(
    name="pretrained-behavior", rows=("317",),
    paper="TRI LBM Team 2025, A Careful Examination of Large Behavior Models for Multitask Dexterous Manipulation, "
          "arXiv 2507.05331",
    statement="We find that multi-task pretraining makes the policies more successful and robust, and enables teaching "
              "complex new tasks more quickly, using a fraction of the data when compared to single-task baselines.",
    here="push, an MLP of 64 x 1 blocks, which learns to push to the left from 20 or 40 demonstrations in 800 updates. "
         "If before that it has learned from 200 demonstrations of five of the other directions in 2,000 updates, it "
         "succeeds more often with the same demonstrations (with 20, and with 40); and with half of them, 20, at most "
         "0.05 less often than from scratch with 40. What it does with none of them is reported beside.",
    parts=(Part("push", PUSH, Every((
        Above("success", "pretrained, 20", "scratch, 20"), Above("success", "pretrained, 40", "scratch, 40"),
        Above("success", "pretrained, 20", "scratch, 40", -0.05)))),),
    sabotage=Sabotage("of the other tasks' demonstrations, the actions exchanged between the steps of each", mixed,
                      "push"),
)
