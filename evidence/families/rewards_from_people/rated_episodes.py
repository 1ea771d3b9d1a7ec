"""Row 223: a policy clones its episodes that a rater likes. Does success grow, or only what the rater says?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import flags, train_once
from evidence.worlds.curation import cached_load
from understudy.checkpoint import FromStage
from understudy.core import Feature, part
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.envs.toy import named_vector
from understudy.envs.toys.gridworld_tasks import ORDERS, GridworldTasks
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.categorical import Categorical
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.rating import ScoreThreshold, episode_rater, episode_scores
from understudy.improve.retention import AllEpisodes, SuccessfulEpisodes
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import FitResult, fit_method
from understudy.learn.method import InitializeFrom, Method, Stage, build_actor, with_steps
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
STATE, AROUND, ORDER, DONE = (f"observation.{n}" for n in ("state", "environment_state", "order", "first_stages"))
BASE, RATER = FromStage("base"), FromStage("rater")
OVERRATING = "rating minus success"
FAST = OptimizerConfig(lr=2e-3)
CLONE, LABELED = 200_000, 300_000  # numbers of the first episodes of the clone, and of those that the rater learns from
FURTHER = 400_000  # number of the first further demonstration


class JudgedTasks(GridworldTasks):
    """Three missions of `GridworldTasks` with slips. The order of the stages, and which of the first three are done,
    are columns, so that somebody can judge who does not see the last stage."""

    def __init__(self, rows: int = 1):
        super().__init__(rows, slip=0.1, missions=(0, 1, 2))
        self.features = {ORDER: Feature("int64", (4,), "discrete", num_classes=(4,) * 4),
                         DONE: named_vector("first", "second", "third"), **self.features}

    def observe(self):
        order = np.array(ORDERS)[self.state["mission"]]
        done = np.take_along_axis(self.state["done"], order[:, :3], 1).astype(np.float32)
        return {ORDER: order, DONE: done, **super().observe()}


def cloning(updates: int) -> Method:
    policy = PolicyConfig(Categorical(temperature=1.0), FeedForward((128, 128)), ConcatEncoder(),
                          inputs=(ORDER, STATE, AROUND))
    return Method(policy, RecedingHorizon(), BehaviorCloning(updates, 64, FAST))


def roll_out(trained: FitResult, episodes: int, seed: int, first: int = 0) -> Dataset:
    rows = min(ROWS, episodes)
    actor = build_actor(trained.method, trained.modules, rows, features=trained.features)
    return rollout(actor, JudgedTasks(rows), episodes, seed, first=first)


def demonstrations(n_steps: int, seed: int) -> list[Episode]:
    """Further episodes of the expert, with at least as many steps."""
    env = JudgedTasks(ROWS)
    episodes = rollout(env.expert(), env, n_steps // 10, recording_seed(seed), first=FURTHER)  # which have 20 steps
    return list(episodes)[:1 + np.searchsorted(np.cumsum(episodes.lengths), n_steps)]


@dataclass(frozen=True)
class MixedQuality(DemonstrationSource):
    """Episodes of the expert, and half as many of a clone of these after a short training, failures too."""

    episodes: int = 200
    updates: int = 600

    @cached_load
    def load(self, seed):
        env = JudgedTasks(min(ROWS, self.episodes))
        expert = rollout(env.expert(), env, self.episodes, recording_seed(seed))
        clone = fit_method(cloning(self.updates), expert, seed)
        return Dataset([*expert, *roll_out(clone, self.episodes // 2, recording_seed(seed), CLONE)], expert.metadata)


@part
class PermutedScores(ScoreThreshold):
    """The scores of the newest round are permuted among its episodes of each mission. As many stay."""

    def scores(self, data):
        scores, rounds = super().scores(data), [e.metadata.get(ROUND, -1) for e in data]
        scores = np.where([0 <= r < max(rounds) for r in rounds], np.inf, scores)  # these have stayed before
        missions, rng = np.array([e.metadata["mission"] for e in data]), np.random.default_rng(max(rounds))
        for mission in np.unique(missions):
            newest = np.flatnonzero((missions == mission) & (np.array(rounds) == max(rounds)))
            scores[newest] = rng.permutation(scores[newest])
        return scores


@dataclass(frozen=True)
class Practice:
    """How a clone practises: in each round it learns from its first data and from those of its episodes that stay.

    Args:
        keeps: Which of its episodes stay. With "demonstrations" it does not practise, but clones more of the expert:
            as many steps as the rater learns from, and with as many updates as all rounds have.
    """

    keeps: Literal["none", "rated", "successes", "all", "permuted", "demonstrations"]
    n_rounds: int = 5
    n_episodes: int = 200
    n_updates: int = 400
    first: int = 2000
    n_labeled: int = 60

    @property
    def method(self) -> Method:
        base = cloning(self.first)
        if self.keeps == "none":
            return base
        if self.keeps == "demonstrations":
            return with_steps(base, self.first + self.n_rounds * self.n_updates)
        retention = {"rated": ScoreThreshold, "permuted": PermutedScores}
        rule = (retention[self.keeps](RATER) if self.keeps in retention else
                SuccessfulEpisodes() if self.keeps == "successes" else AllEpisodes())
        rounds = CollectionRounds(self.n_rounds, RolloutCollector(self.n_episodes), updates=PerRound(self.n_updates),
                                  retention=rule)
        learner = BehaviorCloning(self.first, 64, replace(FAST, lr_schedule="constant"))
        return replace(base, learner=learner, collection=rounds, initialize_from=(InitializeFrom(BASE),),
                       stages=(Stage(BASE.stage, base), Stage(RATER.stage, blind_rater())))


def blind_rater() -> Method:
    """A rater that sees which of the first three stages are done at the end."""
    rater = with_steps(episode_rater(), 500)
    policy = replace(rater.policy, trunk=FeedForward((32,)), encoder=ConcatEncoder(), inputs=(DONE,))
    return replace(rater, policy=policy)


def practised(experiment, option: Practice, data: Dataset, seed: int, episodes: int, starts: int):
    """Trains the clone and the rater, lets the clone practise, and measures success and what the rater says of it."""
    base = train_once(experiment, cloning(option.first), data, seed)
    labeled = roll_out(base, option.n_labeled, recording_seed(seed), LABELED)
    rater = fit_method(blind_rater(), labeled, seed)
    if option.keeps == "none":
        result = base
    elif option.keeps == "demonstrations":
        result = fit_method(option.method, Dataset([*data, *demonstrations(sum(labeled.lengths), seed)]), seed)
    else:
        result = fit_method(option.method, data, seed, stages={BASE.stage: base, RATER.stage: rater},
                            env=JudgedTasks(ROWS))
    rollouts = roll_out(result, episodes, starts)
    values = flags(rollouts)
    return {**values, OVERRATING: (episode_scores(rater.policy, rollouts) - values["success"]).tolist()}


TABLE = Experiment(
    MixedQuality(), env=f"{JudgedTasks.__module__}:JudgedTasks", measure=practised, first_seed=1800, episodes=300,
    levels={"cloning": 0.3}, arms={
    "cloning": Practice("none"),
    "rater, 1 round": Practice("rated", n_rounds=1),
    "rater": Practice("rated"),
    "successes": Practice("successes"),
    "all": Practice("all"),
    "more demonstrations": Practice("demonstrations"),
    "permuted, 1 round": Practice("permuted", n_rounds=1),
    "permuted": Practice("permuted")})
