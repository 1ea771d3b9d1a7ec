"""Row 079: with few demonstrations, is retrieving actions better than learning them?"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..data.window import Window
from ..execute.chunking import RecedingHorizon
from ..heads.neighbors import Neighbors
from ..heads.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..learn.optimizer import OptimizerConfig
from ..nets.encoders import ConcatEncoder
from ..policy import PolicyConfig
from .base import (
    RATE,
    Arm,
    Claim,
    ClaimPart,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
    RecordedDemonstrations,
)
from .measures import closed_loop


@dataclass(frozen=True)
class ShuffleActions:
    """Actions of an episode in another order: what is looked up no longer belongs to what was seen."""

    def __call__(self, episode):
        order = np.random.default_rng(0).permutation(len(episode))
        return episode.replace({"action": np.asarray(episode.steps["action"])[order]})


WINDOW = Window(n_obs_steps=1, horizon=1)
NEIGHBOR_METHODS = tuple(
    Method(
        PolicyConfig(Neighbors(n_neighbors=count), encoder=ConcatEncoder(), window=WINDOW),
        RecedingHorizon(1),
        BehaviorCloning(steps=1),
    )
    for count in (5, 1)
)
CLONING_METHODS = tuple(Method(PolicyConfig(Regression(), encoder=ConcatEncoder(), window=WINDOW), RecedingHorizon(1),
                      BehaviorCloning(steps=3000, optimizer=OptimizerConfig(lr=rate))) for rate in (1e-3, 3e-4))
ARMS = (Arm("neighbours", NEIGHBOR_METHODS), Arm("cloning", CLONING_METHODS))


def shuffled_actions(experiment: Experiment) -> Experiment:
    return replace(
        experiment,
        arms=tuple(
            replace(a, options=tuple(replace(o, transforms=(ShuffleActions(),)) for o in a.options))
            if a.name == "neighbours"
            else a
            for a in experiment.arms
        ),
    )


SEEDS: dict[str, Any] = {"seeds": (200, 201, 202, 203, 204), "tuning_seeds": (901,)}
DOOR = Experiment(
    RecordedDemonstrations("hand_dapg/adroit_door_human.npz", "4327ef5cb5147403", 20),
    "AdroitHandDoor-v1",
    ARMS,
    closed_loop,
    tuned_by="opened",
    episodes=50,
    measures=(("opened", RATE),),
    **SEEDS,
)
HOPPER = Experiment(
    RecordedDemonstrations("cs285/hopper_expert.npz", "e404b3f271bab534", 1),
    "Hopper-v4",
    ARMS,
    closed_loop,
    tuned_by="return",
    measures=(("return", Measure("real", "hopper return")),),
    episodes=25,
    tuning_episodes=25,
    **SEEDS,
)

CLAIM = Claim(
    name="vinn-few-demonstrations",
    rows=("079",),
    paper="Pari et al. 2021, The Surprising Effectiveness of Representation Learning for Visual Imitation, "
    "arXiv 2112.01511",
    statement="We experimentally show that this simple decoupling improves the performance of visual imitation models "
    "on both offline demonstration datasets and real-robot door opening compared to prior work in visual "
    "imitation.",
    setup="the retrieval half only, on states: 20 of 25 demonstrations by people of the Adroit door (does the door "
          "open "
    "past 1.0 rad within 300 steps?) and 1 of 2 episodes of a trained Hopper (return). Locally weighted "
    "averages of the 5 nearest neighbors (as on the robot), or the nearest alone, do better than cloning with an "
    "MLP of 256 x 2 blocks and 3,000 updates, on both.",
    parts=(
        ClaimPart("door", DOOR, GreaterThan("opened", "neighbours", "cloning")),
        ClaimPart("hopper", HOPPER, GreaterThan("return", "neighbours", "cloning")),
    ),
    negative_control=NegativeControl("the neighbors' actions shuffled within their episodes", shuffled_actions, "door"),
    needs=("the sim extra", "recorded demonstrations (UNDERSTUDY_DATA)"),
)
