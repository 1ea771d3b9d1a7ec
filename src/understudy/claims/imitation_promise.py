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

from ..data.episode import Dataset
from ..envs.push import Expert
from ..learn.method import Method
from ..policy import Policy
from .base import Above, Arm, Claim, Every, Experiment, Part, Sabotage, Source
from .curated import cloning, once
from .sectors import demonstrations, ran, trained

INSIDE, OUTSIDE = (6, 7, 0, 1), (2, 3, 4, 5)  # the half of the directions about the x axis, and the other
WEAK, STRONG = Expert(noise=0.1), Expert(noise=0.0)
BASE = cloning(3e-3, steps=1500)


@dataclass(frozen=True)
class Lessons(Source):
    """`base` demonstrations of all tasks by an unsteady demonstrator, `more` of these, as many by a steady one of the
    tasks inside alone (wide: of all), and `held` of those by the latter, of which nobody learns."""

    base: int = 40
    more: int = 160
    held: int = 40
    wide: bool = False

    @once
    def load(self, seed):
        every = INSIDE + OUTSIDE
        sets = {"base": demonstrations(WEAK, every, self.base, seed, 0),
                "broader": demonstrations(WEAK, every, self.more, seed, 1),
                "imitation": demonstrations(STRONG, every if self.wide else INSIDE, self.more, seed, 2),
                "held": demonstrations(STRONG, INSIDE, self.held, seed, 3)}
        return Dataset([replace(e, meta={**e.meta, "set": name}) for name, some in sets.items() for e in some])


@dataclass(frozen=True)
class Student:
    """base: trained on the base set. imitation, broader: trained on from there by `learn`, on the set of that name."""

    kind: Literal["base", "imitation", "broader"]
    learn: Method


_base: dict[tuple, Policy] = {}  # of this process, by set and seed


def promise(experiment, method: Student, data: Dataset, seed: int, episodes: int, starts: int
            ) -> dict[str, list[float]]:
    """alike: the share of the variance of the steady demonstrator's actions that is explained, in the states of its
    held demonstrations. success inside and outside: on the tasks that it showed, and on the others."""
    sets = {name: data.where(lambda e, name=name: e.meta["set"] == name) for name in (
        "base", "broader", "imitation", "held")}
    key = sets["base"].fingerprint(), seed
    if key not in _base:
        _base[key] = trained(BASE, sets["base"], seed)
    policy = _base[key]
    if method.kind != "base":
        policy = trained(method.learn, sets[method.kind], seed, policy)
    return {"alike": [alike(policy, sets["held"])],
            **{f"success {where}": [float(e.meta["success"]) for e in ran(policy, BASE, tasks, episodes, starts)]
               for where, tasks in (("inside", INSIDE), ("outside", OUTSIDE))}}


@torch.no_grad()
def alike(policy: Policy, data: Dataset) -> float:
    seen = torch.as_tensor(np.concatenate([e.steps["observation.state"][: len(e)] for e in data]))
    did = np.concatenate([e.steps["action"] for e in data])
    none = torch.zeros(len(seen), dtype=torch.int64)
    said = policy.plan({"observation.state": seen.unsqueeze(1)}, policy.noise(none, none))[:, 0].numpy()
    return float(1 - np.square(said - did).mean() / did.var(0).mean())


def wide(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, wide=True))


OPTIONS = cloning(3e-3, steps=1000), cloning(1e-3, steps=1000)
PUSH = Experiment(Lessons(), "push", tuple(Arm(kind, tuple(Student(kind, o) for o in OPTIONS)) for kind in (
    "base", "imitation", "broader")), promise, tuned_by="success inside", seeds=tuple(range(120, 134)),
    kinds=(("alike", "bounded"), ("success inside", "rate"), ("success outside", "rate")))

CLAIM = Claim(
    name="imitation-promise", rows=("055",),
    paper="Gudibande et al. 2023, The False Promise of Imitating Proprietary LLMs, arXiv 2305.15717",
    statement="When conducting more targeted automatic evaluations, we find that imitation models close little to none "
              "of the gap from the base LM to ChatGPT on tasks that are not heavily supported in the imitation data.",
    here="not with language models: push, whose tasks are the directions to the goal. The base, an MLP of 64 x 1 "
         "blocks, learns from 40 demonstrations of all directions by an unsteady expert. Trained on with 160 by a "
         "steady one of half of the directions, it looks more like that one there (of the variance of the actions in "
         "demonstrations held back it explains more by 0.1), and succeeds more often there by 0.2; in the other "
         "directions it gains less than 0.1. Trained on as long with 160 of all directions by the unsteady expert, it "
         "succeeds more often there, by 0.1, than the imitator.",
    parts=(Part("push", PUSH, Every((
        Above("alike", "imitation", "base", 0.1), Above("success inside", "imitation", "base", 0.2),
        Above("success outside", "base", "imitation", -0.1), Above("success outside", "broader", "imitation", 0.1)))),),
    sabotage=Sabotage("the steady expert shows all directions", wide, "push"),
)
