"""Three demonstrations, and many walks without a task that hardly visit the places of the demonstrations."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.measures import closed_loop
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import EXPERT
from understudy.data.operations import Filter
from understudy.envs import make
from understudy.envs.toys.four_rooms import FourRooms
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.algorithm import prepare
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.fit import LearnerConfig
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.methods.behavior_cloning.iswbc import ISWBC
from understudy.methods.offline_rl.recoil import ReCOIL
from understudy.methods.reward_matching.iq_learn import IQLearn
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

STATE, TERMINATED, IS_FIRST = "observation.state", "next.terminated", "first"
GOAL = (2.5, 6.5)  # m, which is not observed
N_UPDATES = 10_000
FAST = OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


class FirstRoom(FourRooms):
    """Four rooms with one goal, in which episodes begin in the room at the origin."""

    def __init__(self, rows: int):
        super().__init__(rows, goal=GOAL, walls="end")

    def initial_state(self, key):
        drawn = super().initial_state(key)
        return {**drawn, "at": (0.5 + 3 * drawn["at"] / 8).astype(np.float32)}


@dataclass(frozen=True)
class DemonstrationsAndWalks(DemonstrationSource):
    """Three walks of the expert to the goal, and the parts of walks between random places that lie in other cells.

    `IS_FIRST` of an episode is False for 47 further demonstrations, with which the task can be learned.
    """

    n_walks: int = 200

    def load(self, seed):
        env, play = FirstRoom(25), make("four_rooms:play", rows=25)
        anywhere = make("four_rooms", rows=25, goal=GOAL, walls="end")
        first = [part(e, 0, len(e), True, True) for e in rollout(env.expert(), env, 3, recording_seed(seed))]
        others = [part(e, 0, len(e), False, True)
                  for e in rollout(expert_of(anywhere), anywhere, 47, recording_seed(seed))]
        cells = {tuple(c) for e in first for c in cells_of(e)}
        walks = rollout(expert_of(play), play, self.n_walks, recording_seed(seed), first=100_000)
        return Dataset([*first, *others, *(piece for walk in walks for piece in pieces(walk, cells))])


def cells_of(episode: Episode) -> np.ndarray:
    """The cell of each step, (T, 2)."""
    return np.floor(episode.steps[STATE][:len(episode)]).astype(int)


def pieces(walk: Episode, cells: set[tuple[int, int]]) -> list[Episode]:
    """The longest parts of a walk whose steps all begin outside of these cells."""
    inside = np.array([tuple(cell) in cells for cell in cells_of(walk)])
    ends = [*np.flatnonzero(np.diff(inside)) + 1, len(walk)]
    return [part(walk, begin, end, True, False) for begin, end in zip([0, *ends[:-1]], ends, strict=True)
            if not inside[begin]]


def part(episode: Episode, begin: int, end: int, is_first: bool, is_expert: bool) -> Episode:
    """Some steps of an episode, with the observation after the last one."""
    return Episode({STATE: episode.steps[STATE][begin:end + 1], "action": episode.steps["action"][begin:end],
                    TERMINATED: episode.steps[TERMINATED][begin:end]}, {IS_FIRST: is_first, EXPERT: is_expert})


class ExchangedReCOIL(ReCOIL):
    """`ReCOIL` that takes the walks for demonstrations, and the demonstrations for walks."""

    @prepare
    def scored(self, nets, batch, rng):
        walks = batch.replace(others={})
        return super().scored(nets, batch.others["expert"].replace(others={"expert": walks}), rng)


def method(learner: LearnerConfig, *transforms: Filter) -> Method:
    head = SquashedGaussian() if isinstance(learner, IQLearn) else Gaussian()
    return Method(PolicyConfig(head, FeedForward((128, 128)), inputs=(STATE,)), RecedingHorizon(), learner, transforms)


def recoil(learner: type[ReCOIL] = ReCOIL) -> Method:
    return method(learner(N_UPDATES, 128, FAST, CriticConfig((128, 128)), expectile=0.8), FIRST)


CLONING = BehaviorCloning(N_UPDATES, 128, FAST)
FIRST, ONLY_EXPERT = Filter(IS_FIRST, equals=(True,)), Filter(EXPERT, equals=(True,))
TABLE = Experiment(
    DemonstrationsAndWalks(), measure=closed_loop, env="four_rooms", env_options=(("goal", GOAL), ("walls", "end")),
    first_seed=820, episodes=300, levels={"50 demonstrations": 0.8}, arms={
        "demonstrations": method(CLONING, FIRST, ONLY_EXPERT),
        "50 demonstrations": method(CLONING, ONLY_EXPERT),
        "all steps, 0 %": method(CLONING, FIRST),
        "discriminator, 0 %": method(
            ISWBC(N_UPDATES, 128, FAST, DiscriminatorReward(hidden=(128, 128))), FIRST),
        "IQ-Learn, 0 %": method(IQLearn(N_UPDATES, 128, FAST, FAST, CriticConfig((128, 128))), FIRST),
        "ReCOIL, 0 %": recoil(),
        "exchanged": recoil(ExchangedReCOIL)})
