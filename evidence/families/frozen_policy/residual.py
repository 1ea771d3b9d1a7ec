"""Row 263: a frozen policy is not precise enough. Correct its actions, or clone more demonstrations?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from evidence.experiment import Experiment
from evidence.worlds.frozen_base import Practised, practised
from evidence.worlds.peg import PegDemonstrations
from understudy.data.episode import Dataset
from understudy.execute.wrappers import BASE_ACTION
from understudy.improve.practice import Practice, residual_ppo
from understudy.learn.method import Method

TOLERANCE, OUTLINES = 0.005, (0,)


@dataclass(frozen=True)
class Imprecise(Practised):
    """How the policy of the peg is improved.

    Args:
        learns: "corrections" is `residual-ppo` of `understudy improve`.
        times: How many times the demonstrations it is cloned from.
        sees_state: Whether corrections depend on the state, and not on the action of the policy alone.
    """

    n_rounds: int = 10
    n_episodes: int = 200
    n_updates: int | None = None
    learns: Literal["nothing", "corrections"] = "nothing"
    times: int = 1
    sees_state: bool = True

    def method(self, practice: Practice, base: Method) -> Method:
        if self.learns == "nothing":
            return base
        method = residual_ppo(practice, base)
        return method if self.sees_state else replace(method, policy=replace(method.policy, inputs=(BASE_ACTION,)))


def refined(experiment, option: Imprecise, data: Dataset, seed: int, episodes: int, starts: int):
    """`practised`, with as many demonstrations as the arm has."""
    if option.times > 1:
        source = replace(experiment.source, episodes=option.times * experiment.source.episodes)
        experiment = replace(experiment, source=source)
        data = source.load(seed)
    return practised(experiment, option, data, seed, episodes, starts)


PPO = Imprecise(learns="corrections")
TABLE = Experiment(PegDemonstrations(20, TOLERANCE, OUTLINES), env="peg_insertion",
                   env_options=(("tolerance", TOLERANCE), ("outlines", OUTLINES)), measure=refined, first_seed=1640,
                   episodes=300, levels={"base": 0.3, "10 times the demonstrations": 0.7}, arms={
    "base": Imprecise(),
    "residual PPO": PPO,
    "10 times the demonstrations": Imprecise(times=10),
    "state hidden": replace(PPO, sees_state=False)})
