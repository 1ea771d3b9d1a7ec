"""Row 004: two policies succeed alike. Do they know as many ways?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from ..core import keys
from ..data.window import Window
from ..envs import make
from ..evaluate.rollout import rollout
from ..execute.actor import Actor, Plays
from ..execute.chunked import Receding
from ..execute.planners import Fixed
from ..heads.gmm import GMM
from ..heads.neighbors import Neighbors
from ..learn.clone import Cloning
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.encoders import Flat
from ..nets.mlp import MLP
from ..policy import Recipe
from .base import Above, Arm, Claim, Every, Experiment, Near, Part, Sabotage, Shown
from .measures import ROWS, trained

TIMES = 10  # that each start is met


@dataclass(frozen=True)
class Again(Actor):
    """The same start met once more: the environment keeps its key, the actor gets another."""

    actor: Actor
    time: int

    def start(self, obs, key):
        return self.actor.start(obs, keys(self.time, key))

    def act(self, obs, state):
        return self.actor.act(obs, state)


def variety(experiment, method, data, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """success, one value a rollout. entropy, one a start: of the side on which successful rollouts from it pass the
    pillar, in units of its largest value (Jia et al. 2024, section 4: of behaviours per initial state, with the number
    of behaviours as the base of the logarithm)."""
    actor = Plays(Fixed(trained(experiment, method, data, seed), ROWS), method.run)
    env = make(experiment.env, rows=min(ROWS, episodes // TIMES))
    runs = [rollout(Again(actor, time), env, episodes // TIMES, seed=starts) for time in range(TIMES)]
    entropy = []
    for met in zip(*runs, strict=True):
        sides = Counter(left(e) for e in met if e.meta["success"])
        share = np.array(list(sides.values())) / max(sides.total(), 1)
        entropy.append(float(-(share * np.log2(share)).sum()) + 0.0)
    return {"success": [float(e.meta["success"]) for run in runs for e in run], "entropy": entropy}


def left(episode) -> bool:
    return bool(episode.steps["observation.state"][:, 1].mean() > 0)


def one_way(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, keep=left))


WINDOW = Window(obs=1, horizon=8)
MIXTURE = tuple(Method(Recipe(GMM(), trunk=MLP(64, 1), encoder=Flat(), window=WINDOW), Receding(4),
                       Cloning(steps=800, optim=Optim(rate=rate))) for rate in (3e-3, 1e-3))
NEAREST = tuple(Method(Recipe(Neighbors(count=count), encoder=Flat(), window=WINDOW), Receding(4), Cloning(steps=1))
                for count in (1, 2))
FORK = Experiment(Shown("fork", 60), "fork", (Arm("mixture", MIXTURE), Arm("nearest", NEAREST)), variety,
                  seeds=(100, 101, 102, 103, 104, 105), episodes=200, tuning_episodes=50,
                  kinds=(("entropy", "bounded"),))

CLAIM = Claim(
    name="behaviour-entropy", rows=("004",),
    paper="Jia et al. 2024, Towards Diverse Behaviors: A Benchmark for Imitation Learning with Human Demonstrations, "
          "arXiv 2402.14606",
    statement="To address the challenge of diversity quantification, we introduce tractable metrics that provide "
              "valuable insights into a model's ability to acquire and reproduce diverse behaviors.",
    here="fork: 60 scripted demonstrations that pass a pillar left or right at even odds. A mixture of Gaussians (an "
         "MLP of 64 x 1 blocks, 800 updates) and a nearest neighbour, which always answers alike, both in chunks of 8, "
         "succeed within 0.15 of each other; their behaviour entropy, of the side over 10 rollouts from each of 20 "
         "starts, is more than 0.4 apart. So the metric says what the success rate does not.",
    parts=(Part("fork", FORK, Every((Near("success", "mixture", "nearest", 0.15),
                                     Above("entropy", "mixture", "nearest", 0.4)))),),
    sabotage=Sabotage("only demonstrations that pass on the left", one_way, "fork"),
)
