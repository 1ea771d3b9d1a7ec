"""Row 274: is it more data that carry a clone to new mazes, or other data?

A first run, on the seeds 100 to 105, took mazes of other numbers for new ones: of so few cells, 44 % of them had the
walls of a maze that who saw 250 had seen. It counts as a pilot; now walls decide, and the seeds that judge are new.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from ..data.episode import Dataset, Episode
from ..data.window import Window
from ..envs import make
from ..evaluate.judge import recording
from ..evaluate.rollout import rollout
from ..execute.actor import Plays
from ..execute.chunked import Receding
from ..execute.planners import Fixed
from ..heads.regression import Regression
from ..learn.clone import Cloning
from ..learn.fit import fit
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.encoders import Flat
from ..nets.mlp import MLP
from ..policy import Policy, Recipe
from .base import Above, Arm, Claim, Every, Exceeds, Experiment, Part, Sabotage, Source
from .curated import once

ROWS, CELLS = 100, 3  # side by side; along a side of a maze
NEW = {"levels": 1000, "first": 10**6}  # mazes of other numbers than any arm's, some of them alike all the same
TRIES = 8  # episodes in these for each that is judged


@dataclass(frozen=True)
class Mazes(Source):
    """For each arm (name, mazes, demonstrations), marked by the fact "of"; each demonstration is in one of the mazes,
    by lot. Every training seed has mazes of its own, and arms with as many mazes have the same ones."""

    arms: tuple[tuple[str, int, int], ...]

    @once
    def load(self, seed):
        episodes = []
        for name, mazes, count in self.arms:
            env = make("maze", min(ROWS, count), cells=CELLS, **own(mazes, seed))
            ran = rollout(env.expert(), env, count, recording(seed)).where(lambda e: e.meta["success"])
            episodes += [replace(e, meta={**e.meta, "of": name}) for e in ran]
        return Dataset(episodes)


def own(mazes: int, seed: int) -> dict[str, int]:
    return {"levels": mazes, "first": 1000 * seed}


@dataclass(frozen=True)
class Of:
    """`method`, which learns from what is marked for this arm."""

    method: Method
    arm: str


def inside_and_out(experiment, method: Of, data: Dataset, seed: int, episodes: int, starts: int
                   ) -> dict[str, list[float]]:
    """success: in new mazes; under the option "own", in those that the arm was shown. gap: the rate in its own less the
    rate in new ones."""
    outside, inside = rates(experiment, method, data, seed, episodes, starts)
    judged = inside if dict(experiment.options).get("own") else outside
    return {"success": judged, "gap": [float(np.mean(inside) - np.mean(outside))]}


_rates: dict = {}  # the twin looks at the same trainings


def rates(experiment, method: Of, data: Dataset, seed: int, episodes: int, starts: int) -> list[list[float]]:
    """Success of each episode in new mazes, and in the arm's own."""
    key = experiment.source, method, seed, episodes, starts
    if key not in _rates:
        mine, inner = data.where(lambda e: e.meta["of"] == method.arm), method.method
        torch.manual_seed(seed)
        policy = Policy(inner.policy, mine.features()).fit(mine)
        learner, windows = inner.learn.build(policy, seed, inner.learn.steps), policy.windows(mine)
        fit(learner, lambda n: windows.batch(inner.learn.batch, n, seed), inner.learn.steps)
        actor = Plays(Fixed(learner.trained.eval(), ROWS), inner.run)
        mazes = next(n for name, n, _ in experiment.source.arms if name == method.arm)
        seen = {walls(e) for e in data}  # by any arm: all are judged in the same mazes
        _rates[key] = []
        for levels, tries in ((NEW, TRIES * episodes), (own(mazes, seed), episodes)):
            env = make(experiment.env, ROWS, cells=CELLS, limit=40, **levels)
            ran = rollout(actor, env, tries, starts)
            kept = [e for e in ran if levels is not NEW or walls(e) not in seen][:episodes]
            if len(kept) < episodes:
                raise RuntimeError(f"hardly any maze is new: {len(kept)} of {tries}")
            _rates[key].append([float(e.meta["success"]) for e in kept])
    return _rates[key]


def walls(episode: Episode) -> bytes:
    """What a maze is: two of different numbers may be alike, of so few cells."""
    return np.asarray(episode.steps["observation.environment_state"][0]).tobytes()


def at_home(experiment: Experiment) -> Experiment:
    return replace(experiment, options=(("own", True),))


BASE = Method(Recipe(Regression(), trunk=MLP(64, 1), encoder=Flat(), window=Window()), Receding(1),
              Cloning(steps=600, batch=64, optim=Optim(rate=3e-3)))
SETS = (("few", 8, 250), ("more demonstrations", 8, 1000), ("more mazes", 250, 250))
MAZES = Experiment(Mazes(SETS), "maze", tuple(Arm(name, (Of(BASE, name),)) for name, _, _ in SETS), inside_and_out,
                   seeds=tuple(range(120, 132)), episodes=200, kinds=(("gap", "real"),))

CLAIM = Claim(
    name="generalization-gap", rows=("274",),
    paper="Mediratta et al. 2023, The Generalization Gap in Offline Reinforcement Learning, arXiv 2312.05742",
    statement="Finally, we find that increasing the diversity of the data, rather than its size, improves performance "
              "on new environments for all offline learning algorithms.",
    here="cloning alone: mazes of 3 x 3 cells; 250 demonstrations in 8 mazes, 1,000 in the same 8, or 250 each "
         "in one of 250. An MLP of 64 x 1 blocks sees the walls; 600 updates on 64 steps for each; nothing is tuned. "
         "In mazes whose walls none of them saw, who saw more mazes succeeds more often than who saw few, and than who "
         "saw four times as many demonstrations; who saw few mazes does their own more than 0.1 more often than new "
         "ones.",
    parts=(Part("mazes", MAZES, Every((Above("success", "more mazes", "few"),
                                       Above("success", "more mazes", "more demonstrations"),
                                       Exceeds("gap", "few", 0.1)))),),
    sabotage=Sabotage("judged in the mazes that each arm was shown", at_home, "mazes"),
)
