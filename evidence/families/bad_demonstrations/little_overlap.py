"""Row 020: three demonstrations, and many walks without a task that hardly visit the places of the demonstrations."""

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

STATE, TERMINATED, DRAW = "observation.state", "next.terminated", "draw"
GOAL = (2.5, 6.5)  # m, which is not observed
OVERLAPS = (100, 0)  # percent
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
    """Walks of the expert to the goal, and pieces of walks between random places.

    A piece lies in the cells of the first demonstrations, or outside. `DRAW` of an episode is a uniform number for the
    pieces inside, 0 for those outside and for the first demonstrations, and 2 for the other demonstrations.

    Args:
        n_first: Number of the first demonstrations.
        n_others: Number of other demonstrations, with which the task can be learned.
        n_walks: Number of walks, of 150 steps.
    """

    n_first: int = 3
    n_others: int = 47
    n_walks: int = 200

    def load(self, seed):
        env, play, rng = FirstRoom(25), make("four_rooms:play", rows=25), np.random.default_rng(seed)
        anywhere = make("four_rooms", rows=25, goal=GOAL, walls="end")
        first = [part(e, 0, len(e), 0.0, True) for e in rollout(env.expert(), env, self.n_first, recording_seed(seed))]
        others = [part(e, 0, len(e), 2.0, True)
                  for e in rollout(expert_of(anywhere), anywhere, self.n_others, recording_seed(seed))]
        cells = {tuple(c) for e in first for c in cells_of(e)}
        walks = rollout(expert_of(play), play, self.n_walks, recording_seed(seed), first=100_000)
        return Dataset([*first, *others, *(piece for walk in walks for piece in pieces(walk, cells, rng))])


def cells_of(episode: Episode) -> np.ndarray:
    """The cell of each step, (T, 2)."""
    return np.floor(episode.steps[STATE][:len(episode)]).astype(int)


def pieces(walk: Episode, cells: set[tuple[int, int]], rng: np.random.Generator) -> list[Episode]:
    """The longest parts of a walk whose steps all begin in these cells, or all outside."""
    inside = np.array([tuple(cell) in cells for cell in cells_of(walk)])
    ends = [*np.flatnonzero(np.diff(inside)) + 1, len(walk)]
    return [part(walk, begin, end, rng.uniform() if inside[begin] else 0.0, False)
            for begin, end in zip([0, *ends[:-1]], ends, strict=True)]


def part(episode: Episode, begin: int, end: int, draw: float, is_expert: bool) -> Episode:
    """Some steps of an episode, with the observation after the last one."""
    return Episode({STATE: episode.steps[STATE][begin:end + 1], "action": episode.steps["action"][begin:end],
                    TERMINATED: episode.steps[TERMINATED][begin:end]}, {DRAW: draw, EXPERT: is_expert})


class ExchangedReCOIL(ReCOIL):
    """`ReCOIL` that takes the walks for demonstrations, and the demonstrations for walks."""

    @prepare
    def scored(self, nets, batch, rng):
        walks = batch.replace(others={})
        return super().scored(nets, batch.others["expert"].replace(others={"expert": walks}), rng)


def offline(overlap: int, learner: LearnerConfig, *more: Filter) -> Method:
    """A learner of the first demonstrations, and of the walks with this overlap in percent."""
    head = SquashedGaussian() if isinstance(learner, IQLearn) else Gaussian()
    return Method(PolicyConfig(head, FeedForward((128, 128)), inputs=(STATE,)), RecedingHorizon(), learner,
                  (Filter(DRAW, at_most=overlap / 100), *more))


def recoil(overlap: int, learner: type[ReCOIL] = ReCOIL) -> Method:
    return offline(overlap, learner(N_UPDATES, 128, FAST, CriticConfig((128, 128)), expectile=0.8))


def discriminator(overlap: int) -> Method:
    return offline(overlap, ISWBC(N_UPDATES, 128, FAST, DiscriminatorReward(hidden=(128, 128))))


def iq_learn(overlap: int) -> Method:
    return offline(overlap, IQLearn(N_UPDATES, 128, FAST, FAST, CriticConfig((128, 128))))


CLONING = BehaviorCloning(N_UPDATES, 128, FAST)
ONLY_EXPERT = Filter(EXPERT, equals=(True,))


@dataclass(frozen=True)
class GrowsWithoutOverlap(Rule):
    """The lead in success of ReCOIL over the discriminator is larger without overlap than with it."""

    arms = ("ReCOIL, 0 %", "discriminator, 0 %", "ReCOIL, 100 %", "discriminator, 100 %")

    def judge(self, measurements, measures=MEASURES, level=LEVEL):
        values = [np.array(measurements[arm]["success"]) for arm in self.arms]
        lead = difference(values[0] - values[1], values[2] - values[3], "real", level)
        condition = Condition("success: growth of the lead over the discriminator", lead.estimate, lead.low, lead.high,
                              "above", 0.0, smallest_effect("success", measures))
        return RuleResult(condition.verdict, (condition,))


TABLE = Experiment(
    DemonstrationsAndWalks(), measure=closed_loop, env="four_rooms", env_options=(("goal", GOAL), ("walls", "end")), first_seed=820,
    episodes=300, levels={"50 demonstrations": 0.8}, arms={
        "demonstrations": offline(0, CLONING, ONLY_EXPERT),
        "50 demonstrations": offline(200, CLONING, ONLY_EXPERT),
        "all steps, 0 %": offline(0, CLONING),
        **{f"discriminator, {p} %": discriminator(p) for p in OVERLAPS},
        "IQ-Learn, 0 %": iq_learn(0),
        **{f"ReCOIL, {p} %": recoil(p) for p in OVERLAPS},
        "exchanged": recoil(0, ExchangedReCOIL)})
