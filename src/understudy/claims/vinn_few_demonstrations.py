"""Row 079: is looking up what people did better than learning it, when they did it only a few times?

An earlier run tuned neither arm. It counts as a pilot: here both have two trials, and seeds that judge for the first
time.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..data.window import Window
from ..execute.chunked import Receding
from ..heads.neighbors import Neighbors
from ..heads.regression import Regression
from ..learn.clone import Cloning
from ..learn.method import Method
from ..learn.optim import Optim
from ..nets.encoders import Flat
from ..policy import Recipe
from .base import Above, Arm, Claim, Experiment, Part, Recorded, Sabotage
from .measures import closed_loop


@dataclass(frozen=True)
class Shuffled:
    """Actions of an episode in another order: what is looked up no longer belongs to what was seen."""

    def __call__(self, episode):
        order = np.random.default_rng(0).permutation(len(episode))
        return episode.but({"action": np.asarray(episode.steps["action"])[order]})


WINDOW = Window(obs=1, horizon=1)
LOOKS = tuple(Method(Recipe(Neighbors(count=count), encoder=Flat(), window=WINDOW), Receding(1), Cloning(steps=1))
              for count in (5, 1))
LEARNS = tuple(Method(Recipe(Regression(), encoder=Flat(), window=WINDOW), Receding(1),
                      Cloning(steps=3000, optim=Optim(rate=rate))) for rate in (1e-3, 3e-4))
ARMS = (Arm("neighbours", LOOKS), Arm("cloning", LEARNS))


def shuffled(experiment: Experiment) -> Experiment:
    return replace(experiment, arms=tuple(
        replace(a, options=tuple(replace(o, data=(Shuffled(),)) for o in a.options)) if a.name == "neighbours" else a
        for a in experiment.arms))


SEEDS = {"seeds": (200, 201, 202, 203, 204), "tuning": (901,)}
DOOR = Experiment(Recorded("hand_dapg/adroit_door_human.npz", "4327ef5cb5147403", 20), "AdroitHandDoor-v1", ARMS,
                  closed_loop, tuned_by="opened", episodes=50, kinds=(("opened", "rate"),), **SEEDS)
HOPPER = Experiment(Recorded("cs285/hopper_expert.npz", "e404b3f271bab534", 1), "Hopper-v4", ARMS, closed_loop,
                    tuned_by="return", episodes=25, tuning_episodes=25, **SEEDS)

CLAIM = Claim(
    name="vinn-few-demonstrations", rows=("079",),
    paper="Pari et al. 2021, The Surprising Effectiveness of Representation Learning for Visual Imitation, "
          "arXiv 2112.01511",
    statement="We experimentally show that this simple decoupling improves the performance of visual imitation models "
              "on both offline demonstration datasets and real-robot door opening compared to prior work in visual "
              "imitation.",
    here="the retrieval half only, on states: 20 of 25 demonstrations by people of the Adroit door (does the door open "
         "past 1.0 rad within 300 steps?) and 1 of 2 episodes of a trained Hopper (return). Locally weighted "
         "averages of the 5 nearest neighbours (as on the robot), or the nearest alone, do better than cloning with an "
         "MLP of 256 x 2 blocks and 3,000 updates, on both.",
    parts=(Part("door", DOOR, Above("opened", "neighbours", "cloning")),
           Part("hopper", HOPPER, Above("return", "neighbours", "cloning"))),
    sabotage=Sabotage("the neighbours' actions shuffled within their episodes", shuffled, "door"),
    needs=("the sim extra", "recorded demonstrations (UNDERSTUDY_DATA)"),
)
