"""Row 015: is a takeover worth more as a penalty than as a demonstration, if the supervisor acts badly?"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import grid_sample

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS, flags, rollout_policy
from evidence.memo import Memo
from understudy.checkpoint import Scorer
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.relabel import InterventionPenalty
from understudy.envs.toys.four_rooms import CELLS, FourRooms, FourRoomsExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout, rollout_steps
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import (
    CollectionRounds,
    DemonstrationsAsInterventions,
    GaussianExploration,
    RolloutCollector,
)
from understudy.improve.corrections import EndAtSuccess
from understudy.improve.gates import INTERVENTION, ValueGate
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

GOAL, LIMIT, STATE, GRID = (2.5, 6.5), 80, "observation.state", 80
KNOWS = FourRoomsExpert(noise=0.0, goal=GOAL)
EPISODES, N_ROUNDS = 10, 20  # episodes of a round, and rounds
HALF = 2  # demonstrations from which the supervisor was cloned, who succeeds in 0.58 of the pilot's starts
N_STEPS, RANDOM_RATE = 7000, 0.5  # steps and rate of takeovers of the pilot, for the arms that take as many
ACTED = "steps of the supervisor"
CONSTANT = OptimizerConfig(lr=1e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
POLICY = PolicyConfig(Regression(), FeedForward((128, 128)), ConcatEncoder(), codec=Normalizer(obs="identity"),
                      inputs=(STATE,))  # one demonstration says little about the scale of positions
CLONE = BehaviorCloning(800, optimizer=OptimizerConfig(lr=1e-3, lr_schedule="constant"))


class Rooms(FourRooms):
    """Four rooms with one goal, in which a supervisor takes the place of the expert."""

    def __init__(self, rows: int = 1, supervisor: Actor = KNOWS):
        super().__init__(rows, LIMIT, goal=GOAL)
        self.supervisor = supervisor

    def expert(self):
        return self.supervisor


@dataclass(frozen=True)
class Trembling(DemonstrationSource):
    """Episodes of an expert whose hand trembles, so that there are actions in all directions."""

    episodes: int

    def load(self, seed):
        data = rollout(replace(KNOWS, noise=1.0), Rooms(), self.episodes, recording_seed(seed))
        return data.map(lambda e: e.replace({"action": np.clip(e.steps["action"], Rooms.low, Rooms.high)}))


class StepsToGo(Scorer):
    """Minus the number of steps that `KNOWS` needs: one simulated step, and then a table, which is interpolated."""

    def __init__(self):
        super().__init__()
        self.inputs, self.features = (STATE,), {}
        side, env, rows = (torch.arange(GRID) + 0.5) * CELLS / GRID, Rooms(GRID**2), torch.arange(GRID**2)
        obs = env.restore(rows, {STATE: torch.cartesian_prod(side, side)})
        state, steps = KNOWS.start(obs, torch.zeros_like(rows)), torch.full((GRID**2,), float(LIMIT))
        for n in range(LIMIT):
            action, state = KNOWS.act(obs, state)
            result = env.step(action)
            obs, steps = result.obs, torch.where(result.info["success"], steps.clamp(max=n + 1), steps)
        self.table = steps.reshape(1, 1, GRID, GRID)

    def forward(self, obs, plan):
        env = Rooms(len(plan))
        env.restore(torch.arange(len(plan)), {STATE: obs[STATE][:, -1]})
        result = env.step(plan[:, 0])
        at = (result.obs[STATE] * 2 / CELLS - 1).flip(1)[None, :, None]
        steps = grid_sample(self.table, at, padding_mode="border", align_corners=False).flatten()
        return -1 - torch.where(result.info["success"], 0.0, steps)

    def save(self, folder):
        raise NotImplementedError("it is computed from the world again")

    @staticmethod
    def load(folder, trust=(), device="cpu"):
        raise NotImplementedError("it is computed from the world again")


@dataclass(frozen=True)
class Clumsy(Actor):
    """A supervisor who knows what is right, and does something else."""

    does: Actor

    def start(self, obs, key):
        first_choice = torch.zeros_like(key)  # of equally short ways, which `StepsToGo` takes as well
        return {"knows": KNOWS.start(obs, first_choice), "does": self.does.start(obs, key)}

    def act(self, obs, state):
        best, knows = KNOWS.act(obs, state["knows"])
        action, does = self.does.act(obs, state["does"])
        return action, {"knows": knows, "does": does, "record": {"best_action": best}}


@dataclass(frozen=True)
class MovedPenalty(InterventionPenalty):
    """Each penalty is moved to a random step of its episode."""

    def __call__(self, episode):
        episode = super().__call__(episode)
        rewards = np.random.default_rng(episode.metadata["number"]).permutation(episode.steps[self.into])
        return episode.replace({self.into: rewards})


@dataclass(frozen=True)
class Assisted:
    """How a supervisor improves a cloned policy in rounds.

    Args:
        learns: "rlif", "hg-dagger", "more" demonstrations of the supervisor, or "nothing" more. "" is the supervisor.
        random_rate: Probability of a takeover at a step where the policy may act. None for a gate by value.
        moved: Whether penalties are moved to random steps.
    """

    learns: str = "rlif"
    random_rate: float | None = None
    moved: bool = False
    n_rounds: int = N_ROUNDS
    n_updates: int = 150


    def method(self) -> Method:
        steps = self.n_rounds * self.n_updates
        if self.learns == "more":
            return Method(POLICY, learner=replace(CLONE, steps=CLONE.steps + steps))
        gate = ValueGate(StepsToGo(), 0.5, delay=1)
        if self.random_rate is not None:
            gate = replace(gate, margin=math.inf, slip=self.random_rate)
        transforms = (DemonstrationsAsInterventions(),)
        learner, exploration = replace(CLONE, steps=steps, sample_weights=ColumnWeights(INTERVENTION, 1.0, 0.0),
                                       sampling_column=INTERVENTION), None
        if self.learns == "rlif":
            learner = TD3(
                steps, optimizer=CONSTANT, critic=CriticConfig((128, 128), layer_norm=True),
                discount=0.9, target_decay=0.99, critic_warmup_updates=300)
            transforms = (*transforms, MovedPenalty() if self.moved else InterventionPenalty(), EndAtSuccess())
            exploration = GaussianExploration(1.5)
        rounds = CollectionRounds(
            self.n_rounds, RolloutCollector(EPISODES, exploration, "expert", gate), updates=PerRound(self.n_updates),
            sampling_weights=without_first_steps if self.learns == "rlif" else None)
        return Method(POLICY, learner=learner, transforms=transforms, collection=rounds)


def without_first_steps(episode: Episode) -> np.ndarray:
    """Of a takeover only the last step counts, as in the release. Demonstrations count as a whole."""
    acts = np.asarray(episode.steps[INTERVENTION][:len(episode)], bool).reshape(-1)
    return (~acts | ~np.append(acts[1:], False) | acts.all()).astype(float)


_clones = Memo()


def clone(data: Dataset, seed: int) -> Policy:
    """The policy that all arms of a training seed begin with."""
    return _clones.get((seed, len(data)), lambda: fit_method(Method(POLICY, learner=CLONE), data, seed).policy)


def supervisor() -> Actor:
    return Clumsy(PolicyActor(FixedBatch(clone(Trembling(HALF).load(60), 60), ROWS)))


def assisted(experiment, option: Assisted, data: Dataset, seed: int, episodes: int, starts: int):
    """Success, and how many steps the supervisor acted in how many takeovers."""
    actor, method = supervisor(), option.method()
    if not option.learns:
        return flags(rollout(actor, Rooms(ROWS), episodes, seed=starts))
    if option.learns == "nothing":
        return flags(rollout_policy(experiment, clone(data, seed), method, episodes, starts))
    if option.learns == "more":
        more = rollout_steps(actor, Rooms(ROWS), N_STEPS, recording_seed(seed), first=500_000)
        policy = fit_method(method, Dataset([*data, *(e for e in more if e.metadata["success"])]), seed).policy
        return flags(rollout_policy(experiment, policy, method, episodes, starts))
    acted = []

    def watch(n_updates, learner, metrics):
        acted.append(metrics.get("round/acted", 0.0))
    env, start = Rooms(EPISODES, actor), clone(data, seed)
    policy = fit_method(method, data, seed, env=env, policy=start, callbacks=[watch]).policy
    return {**flags(rollout_policy(experiment, policy, method, episodes, starts)), ACTED: [float(sum(acted))]}


TABLE = Experiment(
    Trembling(4), env=f"{__name__}:Rooms", measure=assisted, first_seed=1520, n_seeds=8,
    episodes=200, looks=((5, 0.02), (8, 0.03)),
    arms={
        "RLIF": Assisted(),
        "HG-DAgger": Assisted("hg-dagger"),
        "supervisor": Assisted(""),
        "first policy": Assisted("nothing"),
        "more demonstrations": Assisted("more"),
        "random takeovers": Assisted(random_rate=RANDOM_RATE),
        "moved": Assisted(moved=True)})
REPORTED = "first policy", "more demonstrations", "random takeovers"
