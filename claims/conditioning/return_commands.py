"""Row 188: does a policy that is cloned under commands reach more if it is asked for more, and more than plain cloning?
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    AllOf,
    Arm,
    BelowBound,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.claims.measures import train_once
from understudy.core import Feature, normal
from understudy.data.column_changes import ConstantColumn, ReturnToGo, TimeLeft
from understudy.data.episode import Dataset
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.learn.method import Method, build_actor
from understudy.methods.return_conditioned.udrl import udrl

ENV, LONGEST, ROWS = "CartPole-v1", 500, 50  # ROWS: environments side by side; results do not depend on it
UPDATES = 1000


@dataclass(frozen=True)
class RandomController(Actor):
    """Pushes by the sign of a weighted sum of the state. The weights are drawn for each episode.

    Args:
        scale: Standard deviations of the weights of position, velocity, angle and angular velocity.
    """

    scale: tuple[float, ...] = (0.3, 0.6, 1.0, 1.0)

    def start(self, obs, key):
        return {"weights": normal(key, torch.zeros_like(key), (4,), stream=5) * torch.tensor(self.scale)}

    def act(self, obs, state):
        total: Tensor = (obs["observation.state"] * state["weights"]).sum(1, keepdim=True)
        return (total > 0).long(), state


@dataclass(frozen=True)
class RandomControllers(DemonstrationSource):
    """Episodes of controllers with random weights, most of which fall at once."""

    episodes: int
    probe_sizes = {"episodes": 20}

    @cached_load
    def load(self, seed):
        env = make(ENV, rows=ROWS)
        try:
            return rollout(RandomController(), env, self.episodes, recording_seed(seed))
        finally:
            env.close()


@dataclass(frozen=True)
class ReturnRequest:
    """A method, and the number of steps that it is asked to stay upright, which is also the return."""

    method: Method
    steps: int


def balanced_fraction(
    experiment, request: ReturnRequest, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method, asks it for a return in as many steps, and rolls it out.

    Returns:
        For each episode, "return" in units of the largest possible one, and "miss": how far it is from the request.
    """
    trained = train_once(experiment, request.method, data, seed)
    asked = tuple(replace(part, target=float(request.steps)) if isinstance(part, ReturnToGo) else
                  replace(part, length=float(request.steps)) if isinstance(part, TimeLeft) else part
                  for part in request.method.transforms)
    env = make(ENV, rows=ROWS)
    try:
        rollouts = rollout(build_actor(replace(request.method, transforms=asked), trained.modules, ROWS), env, episodes,
                           seed=starts)
    finally:
        env.close()
    returns = np.array([float(e.steps["next.reward"].sum()) for e in rollouts])
    return {"return": (returns / LONGEST).tolist(), "miss": (np.abs(returns - request.steps) / LONGEST).tolist()}


def commanded_method(*commands, temperature: float = 1.0) -> Method:
    """The method `udrl` for pushes to the left or right, with these columns as its commands."""
    push = Feature("int64", (1,), "discrete", num_classes=(2,))
    method = udrl(temperature=temperature, features={"action": push})
    return replace(method, transforms=commands, learner=replace(method.learner, steps=UPDATES))


def without_commands(experiment: Experiment) -> Experiment:
    return experiment.change_options(lambda request: replace(request, method=CLONING))


COMMANDED = commanded_method(ReturnToGo(), TimeLeft())
NO_COMMANDS = (ConstantColumn("observation.return_to_go", 1.0), ConstantColumn("observation.time_left", 1.0))
CLONING = commanded_method(*NO_COMMANDS)
CART = Experiment(
    RandomControllers(400),
    ENV,
    (
        Arm("asked for 500", (ReturnRequest(COMMANDED, 500),)),
        Arm("asked for 100", (ReturnRequest(COMMANDED, 100),)),
        Arm("cloning", (ReturnRequest(CLONING, 500),)),
    ),
    balanced_fraction,
    tuned_by="return",
    seeds=(400, 401, 402, 403, 404),
    episodes=50,
    measures=(("return", Measure("bounded", "return fraction")), ("miss", Measure("bounded", "return fraction"))),
    starts_seed=400,
    sanity=(("cloning", "return", 0.1),),
)
REQUESTS = replace(
    CART, arms=tuple(Arm(f"asked for {n}", (ReturnRequest(COMMANDED, n),)) for n in (500, 300, 100)), sanity=())
MOST_LIKELY = replace(
    CART, arms=(CART.arms[0], Arm(
        "most likely action", (ReturnRequest(commanded_method(*NO_COMMANDS, temperature=0.0), 500),))),
    sanity=())
OVER_CLONING = GreaterThan("return", "asked for 500", "cloning")
MORE_FOR_MORE = GreaterThan("return", "asked for 500", "asked for 100", 0.2)

CLAIM = Claim(
    name="return-commands",
    rows=("188",),
    parts=(
        ClaimPart("offline", CART, AllOf((OVER_CLONING, MORE_FOR_MORE))),
        ClaimPart("calibration", REQUESTS, AllOf(tuple(
            BelowBound("miss", f"asked for {n}", 0.1) for n in (500, 300, 100))), is_decisive=False),
        ClaimPart("most likely action", MOST_LIKELY, GreaterThan("return", "asked for 500", "most likely action"),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(without_commands, "offline", removes=(OVER_CLONING, MORE_FOR_MORE)),
)
