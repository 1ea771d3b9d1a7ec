"""Row 165: does conditioning on a return promise luck, and does a latent without luck keep its promise?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    SCORE,
    AboveBound,
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
from understudy.core import Feature, uniform
from understudy.data.column_changes import ReturnToGo
from understudy.data.episode import Dataset
from understudy.envs.toys.tabular import Tabular
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import CountingActor
from understudy.execute.planners import BestOfN
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import Critic
from understudy.learn.fit_method import FitResult, fit_method
from understudy.learn.method import Method
from understudy.methods.return_conditioned.dichotomy_of_control import DichotomyOfControl
from understudy.methods.return_conditioned.udrl import udrl
from understudy.policy import Policy

WINS = (0.5, 0.3)  # probability that each arm wins
DEMONSTRATED = (0.2, 0.8)  # how often the data choose each arm
UPDATES, ROWS = 400, 50  # ROWS: environments side by side; results do not depend on it
BEST_OF = 20
ARM = Feature("int64", (1,), "discrete", num_classes=(2,))


@dataclass(frozen=True)
class Gambler(CountingActor):
    """Chooses arm 0 with probability `share`, and arm 1 otherwise."""

    share: float = DEMONSTRATED[0]

    def act(self, obs, state):
        drawn = uniform(state["key"], state["count"], (1,), stream=2)
        return (drawn >= self.share).long(), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class BanditEpisodes(DemonstrationSource):
    """Choices between the two arms, mostly the worse one."""

    episodes: int
    probe_sizes = {"episodes": 200}

    @cached_load
    def load(self, seed):
        return rollout(Gambler(), bandit(), self.episodes, recording_seed(seed))


def bandit() -> Tabular:
    return Tabular(ROWS, 1, "bandit", probabilities=WINS)


def expected_and_promised(
    experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and lets it choose.

    Returns:
        "return": for each episode, the exact probability that the chosen arm wins. "promise": what the policy promised
        on average. A policy that is asked for a return promises it. Dichotomy of Control promises the value of its
        latent. "gap": the distance of the promise from the mean return.
    """
    result = fit_method(method, data, seed)
    rollouts = rollout(result.actor, bandit(), episodes, seed=starts)
    expected = np.array(WINS)[[int(e.steps["action"][0, 0]) for e in rollouts]]
    promised = _promise(result, episodes, starts)
    return {"return": expected.tolist(), "promise": [promised],
            "gap": [min(abs(promised - float(np.mean(expected))), 1.0)]}


def _promise(result: FitResult, episodes: int, starts: int) -> float:
    """The mean of what is promised at the start."""
    for part in result.method.transforms:
        if isinstance(part, ReturnToGo):
            assert part.target is not None
            return part.target
    prior, value = result.modules["prior"], result.modules["value"]
    assert isinstance(prior, Policy) and isinstance(value, Critic)
    obs = {"observation.state": torch.eye(3)[:1].expand(episodes, 1, 3)}
    key = torch.arange(episodes) + 1000 * starts
    best = BestOfN(prior, value, BEST_OF)
    with torch.no_grad():
        latent = best.plan(obs, best.noise(key, torch.zeros_like(key)))
        return float(value(obs, latent).mean())


def future_conditioned(information_weight: float) -> Method:
    """Dichotomy of Control whose latent shall also say the return, as in the authors' tabular code."""
    learner = DichotomyOfControl(information_weight=information_weight, value_weight=0.1, hidden=(32, 32),
                                 n_negatives=8, energy_updates=2, steps=UPDATES)
    return learner.method({"action": ARM}, latent_dim=2, n=BEST_OF)


def without_constraint(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(Arm("dichotomy", (future_conditioned(0.0),)))


RETURN_CONDITIONED = replace(udrl(target_return=1.0, target_length=1, features={"action": ARM}),
                             learner=BehaviorCloning(steps=UPDATES))
BANDIT = Experiment(
    BanditEpisodes(1000),
    "tabular:bandit",
    (Arm("dichotomy", (future_conditioned(5.0),)), Arm("return-conditioned", (RETURN_CONDITIONED,))),
    expected_and_promised,
    tuned_by="return",
    seeds=tuple(range(600, 615)),
    looks=((5, 0.01), (10, 0.015), (15, 0.025)),
    episodes=200,
    measures=(("return", SCORE), ("promise", Measure("real", "score")), ("gap", SCORE)),
    starts_seed=600,
    sanity=(("return-conditioned", "return", 0.33),),
)
CONSISTENT = BelowBound("gap", "dichotomy", 0.15)
HIGHER = GreaterThan("return", "dichotomy", "return-conditioned")
BETTER_THAN_CHANCE = AboveBound("return", "dichotomy", 0.4)
OVER_OPTIMISTIC = AboveBound("gap", "return-conditioned", 0.3)

CLAIM = Claim(
    name="dichotomy-of-control",
    rows=("165",),
    parts=(ClaimPart("bandit", BANDIT, AllOf((CONSISTENT, HIGHER, BETTER_THAN_CHANCE, OVER_OPTIMISTIC))),),
    negative_control=NegativeControl(without_constraint, "bandit", removes=(CONSISTENT,)),
)
