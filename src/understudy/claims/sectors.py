"""Tasks that are alike, for claims: push, with goals in some directions from the block only."""

from __future__ import annotations

import copy
import math

import numpy as np
import torch

from ..core import keys
from ..data.episode import Dataset, Episode
from ..envs.push import Push
from ..evaluate.judge import recording
from ..evaluate.rollout import rollout
from ..execute.actor import Actor, Plays
from ..execute.planners import Fixed
from ..learn.fit import fit
from ..learn.method import Method
from ..policy import Policy

ROWS, SECTORS = 100, 8  # environments side by side; results do not depend on it


class Towards(Push):
    """Push, with the goal in one of `sectors` (0 to 7, from the x axis on) as seen from the block's first place."""

    def __init__(self, rows: int, sectors: tuple[int, ...], limit: int = 100):
        self.sectors = sectors
        super().__init__(rows, limit)

    def fresh(self, key):
        drawn = super().fresh(key)
        for n in range(1, 1000):
            ahead = drawn["goal"] - drawn["block"]
            sector = np.floor(np.arctan2(ahead[:, 1], ahead[:, 0]) % (2 * math.pi) / (2 * math.pi / SECTORS))
            (others,) = (~np.isin(sector, self.sectors)).nonzero()
            if not len(others):
                break
            again = super().fresh(torch.cat([keys(k, [n]) for k in key[others].tolist()]))
            for name, value in again.items():
                drawn[name][others] = value
        return drawn


def demonstrations(actor: Actor, sectors: tuple[int, ...], episodes: int, seed: int, part: int = 0,
                   limit: int = 100) -> list[Episode]:
    """The first `episodes` rollouts of `actor` that succeed; `part` keeps several draws of a seed apart."""
    env, found = Towards(min(ROWS, episodes), sectors, limit), []
    for more in range(20):
        ran = rollout(actor, env, episodes, recording(seed), first=100_000 * part + 1000 * more)
        found += [e for e in ran if e.meta["success"]]
        if len(found) >= episodes:
            return found[:episodes]
    raise RuntimeError("hardly any demonstration succeeds")


def trained(method: Method, data: Dataset, seed: int, policy: Policy | None = None) -> Policy:
    """From `policy`, whose statistics of the data stay as they are, or from scratch."""
    torch.manual_seed(seed)
    policy = Policy(method.policy, data.features()).fit(data) if policy is None else (
        copy.deepcopy(policy).requires_grad_(True))
    learner = method.learn.build(policy, seed, method.learn.steps)
    windows = policy.windows(data)
    fit(learner, lambda n: windows.batch(method.learn.batch, n, seed), method.learn.steps)
    return learner.trained.eval()


def ran(policy: Policy, method: Method, sectors: tuple[int, ...], episodes: int, starts: int) -> Dataset:
    rows = min(ROWS, episodes)
    return rollout(Plays(Fixed(policy, rows), method.run), Towards(rows, sectors), episodes, seed=starts)
