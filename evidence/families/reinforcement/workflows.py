"""Row 300: demonstrations as outlines of what to do, which explore where the only reward comes at the end."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy, one_hot

from evidence.experiment import DemonstrationSource, Experiment
from evidence.families.reinforcement.few_demonstrations import N_EPISODES, ROWS, VIEW
from evidence.measures import flags
from understudy.checkpoint import FromStage
from understudy.core import Feature, uniform
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.envs.observation_wrappers import ObservationTransform
from understudy.envs.toys.gridworld_tasks import DOOR, HEIGHT, STAGES, USE, WALL, WIDTH, GridworldTasks, parse_missions
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import CountingActor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.categorical import Categorical
from understudy.improve.collection import CollectionRounds, RolloutCollector, TemperatureExploration
from understudy.improve.practice import SuccessReward
from understudy.improve.retention import LastRounds
from understudy.improve.updates import Epochs
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critics.ppo import PPO
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

LIMIT, BATCH = 10, 10  # choices of an episode; episodes between updates of the workflows
FIRST_EXPLORED = 100_000  # the number of the first episode, which is that of no demonstration
N_CELLS, DEMONSTRATION = WIDTH * HEIGHT, "demonstration"
STAGE = "simulator.subgoal"
X, Y = np.divmod(np.arange(N_CELLS), HEIGHT)


class Choices(GridworldTasks):
    """Two missions in which an action is one of 54 cells: the walker goes there, if the way is open, and uses what lies
    there."""

    def __init__(self, rows: int = 1, limit: int = LIMIT):
        super().__init__(rows, limit, missions=(0, 1))
        self.features = {**self.features, "action": Feature("int64", (1,), "discrete", num_classes=(N_CELLS,))}
        self.metadata, self.high = {**self.metadata, "optimum": 1.0}, float(N_CELLS - 1)

    def advance(self, action):
        s, cell = self.state, np.stack(np.divmod(np.rint(action[:, 0]).astype(np.int64), HEIGHT), 1)
        is_open = ((cell[:, 0] < WALL) == (s["at"][:, 0] < WALL)) | s["done"][:, DOOR]
        s["at"] = np.where((is_open & (cell[:, 0] != WALL))[:, None], cell, s["at"])
        return super().advance(np.full_like(action, USE))


def places(obs) -> np.ndarray:
    """The cells of the key, the door's front, the ball and the pad, (n, 4, 2)."""
    around = np.rint(np.asarray(obs["observation.environment_state"])).astype(np.int64)
    key, ball, pad = np.moveaxis(around[:, :6].reshape(-1, 3, 2), 1, 0)
    return np.stack([key, np.stack([np.full(len(around), WALL - 1), around[:, 6]], 1), ball, pad], 1)


class OneHot(ObservationTransform):
    """Where each thing lies, what is done, and the mission, each as 0s and 1s."""

    def __init__(self, rows: int = 1):
        super().__init__(Choices(rows))

    def transform_features(self, features):
        return {VIEW: Feature("float32", (4 * N_CELLS + 6,)), "action": features["action"]}

    def transform_obs(self, obs):
        at = torch.from_numpy(places(obs))
        mission = torch.from_numpy(parse_missions(obs["observation.task"].numpy()))
        return {VIEW: torch.cat([one_hot(at[..., 0] * HEIGHT + at[..., 1], N_CELLS).flatten(1),
                                 obs["observation.state"][:, 2:], one_hot(mission, 2)], 1).float()}


class Demonstrator(CountingActor):
    """Chooses the cell of the stage whose turn it is."""

    def act(self, obs, state):
        cell = places(obs)[np.arange(len(state["key"])), obs[STAGE][:, 0].numpy()]
        return torch.from_numpy(cell @ [HEIGHT, 1])[:, None], state


@dataclass(frozen=True)
class Missions(DemonstrationSource):
    """Episodes in layouts that all differ."""

    episodes: int = 1000

    def load(self, seed):
        return rollout(Demonstrator(), Choices(ROWS), self.episodes, recording_seed(seed))


def constraints(obs) -> np.ndarray:
    """Which cells satisfy each constraint, (n, constraints, 54) bool.

    For each of four things: its cell, the cells next to it, in its column, and in its row. The two rooms, any cell, and
    each cell by its own coordinates.
    """
    dx, dy = X - places(obs)[..., :1], Y - places(obs)[..., 1:]
    fixed = np.concatenate([np.stack([X < WALL, X > WALL, np.ones(N_CELLS, bool)]), np.eye(N_CELLS, dtype=bool)])
    return np.concatenate([(dx == 0) & (dy == 0), abs(dx) + abs(dy) == 1, dx == 0, dy == 0,
                           np.broadcast_to(fixed, (len(dx), *fixed.shape))], 1)


ANY = 4 * len(STAGES) + 2  # the number of the constraint that all cells satisfy


def chosen(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    """Which cells satisfy each constraint at each step, and which constraints the choice satisfies."""
    satisfying = constraints(episode.steps)[:len(episode)]  # the last observation follows the last choice
    return satisfying, satisfying[np.arange(len(episode)), :, np.asarray(episode.steps["action"])[:, 0]]


@dataclass(eq=False)
class Workflows(CountingActor):
    """At each step draws a constraint that the choice of a demonstration satisfies, and then a cell that satisfies it.

    Args:
        demonstrations: One of the same mission is drawn for each episode.
        rate: Of learning from successes and failures. 0 keeps the first probabilities, which are larger
            for the constraints that the fewest cells satisfy.
        any_cell: Whether the only constraint is that which all cells satisfy.
    """

    demonstrations: Dataset
    rate: float = 0.8
    any_cell: bool = False

    def __post_init__(self):
        self.missions = np.array([e.metadata["mission"] for e in self.demonstrations])
        satisfying, met = map(np.stack, zip(*map(chosen, self.demonstrations), strict=True))
        if self.any_cell:
            met = met & (np.arange(met.shape[-1]) == ANY)
        size = np.where(met, satisfying.sum(-1), N_CELLS + 1)
        is_narrowest = size == size.min(-1, keepdims=True)
        # (demonstrations, steps, constraints)
        self.weights = np.where(met, 1.0 * is_narrowest, -np.inf)
        self.baseline = np.zeros(met.shape[:2])

    def probabilities(self, demonstration, step) -> np.ndarray:
        weight = np.exp(self.weights[demonstration, step])
        return weight / weight.sum(-1, keepdims=True)

    def start(self, obs, key):
        state, drawn = super().start(obs, key), uniform(key, torch.zeros_like(key), self.missions.shape, stream=11)
        is_same = parse_missions(obs["observation.task"].numpy())[:, None] == self.missions
        return {**state, DEMONSTRATION: torch.from_numpy(np.where(is_same, drawn.numpy(), -1.0).argmax(1))}

    def act(self, obs, state):
        demonstration, drawn = state[DEMONSTRATION], uniform(state["key"], state["count"], (1 + N_CELLS,), stream=5)
        likely = self.probabilities(demonstration.numpy(), state["count"].numpy()).cumsum(-1)
        constraint = (likely >= likely[:, -1:] * drawn[:, :1].numpy()).argmax(1)
        allowed = constraints(obs)[np.arange(len(constraint)), constraint]
        cell = torch.from_numpy(np.where(allowed, drawn[:, 1:].numpy(), -1.0).argmax(1))
        return cell[:, None], {**state, "count": state["count"] + 1,
                               "record": {DEMONSTRATION: demonstration[:, None]}}

    def learn(self, episode: Episode) -> None:
        """Makes the constraints that explain the choices of a success more likely, and those of a failure less."""
        number, outcome = episode.steps[DEMONSTRATION][0, 0], 1.0 if episode.metadata["success"] else -1.0
        for step, (satisfying, met) in enumerate(zip(*chosen(episode), strict=True)):
            prior, gain = self.probabilities(number, step), outcome - self.baseline[number, step]
            explaining = prior * met / satisfying.sum(-1)
            self.weights[number, step] += self.rate * gain * (explaining / max(explaining.sum(), 1e-5) - prior)
            self.baseline[number, step] += 0.1 * gain


@dataclass(eq=False)
class ScoredCells(CountingActor):
    """Chooses the cell whose constraints have the largest sum of weights, which logistic regression finds for each
    stage."""

    demonstrations: Dataset

    def __post_init__(self):
        satisfying = torch.from_numpy(np.concatenate([chosen(e)[0] for e in self.demonstrations])).float()
        stage, action = (torch.from_numpy(np.concatenate([np.asarray(e.steps[k])[:len(e), 0]
                                                          for e in self.demonstrations])) for k in (STAGE, "action"))
        self.weights = torch.zeros(len(STAGES), satisfying.shape[1], requires_grad=True)
        optimizer = torch.optim.LBFGS([self.weights], max_iter=100)

        def loss():
            optimizer.zero_grad()
            scores = torch.einsum("nc,ncx->nx", self.weights[stage], satisfying)
            total = cross_entropy(scores, action) + 1e-3 * self.weights.square().sum()
            total.backward()
            return total
        optimizer.step(loss)

    def act(self, obs, state):
        satisfying, weights = torch.from_numpy(constraints(obs)).float(), self.weights.detach()[obs[STAGE][:, 0]]
        return torch.einsum("nc,ncx->nx", weights, satisfying).argmax(1, keepdim=True), state


@dataclass(frozen=True)
class Exploring:
    """How a policy is found from demonstrations.

    Args:
        how: "learned", "fixed" or "any cell" for workflows, whose successes are cloned next to the demonstrations,
            "cloned" for the demonstrations alone, and "scored" for `ScoredCells`.
        n_demonstrations: Number of demonstrations.
        n_rounds: Rounds of PPO after the cloning, of 200 episodes each.
    """

    how: str = "learned"
    n_demonstrations: int = 10
    n_explored: int = 6000
    n_rounds: int = 0
    n_updates: int = 3000

    @property
    def probe_sizes(self):
        return {"n_explored": 40, "n_rounds": min(self.n_rounds, 1), "n_updates": 50}

    def explored(self, demonstrations: Dataset, seed: int) -> list[Episode]:
        """The successes of the workflows."""
        workflows = Workflows(demonstrations, 0.8 * (self.how == "learned"), self.how == "any cell")
        env, successes = Choices(BATCH, len(STAGES)), []
        for first in range(FIRST_EXPLORED, FIRST_EXPLORED + self.n_explored, BATCH):
            for episode in (episodes := rollout(workflows, env, BATCH, recording_seed(seed), first=first)):
                workflows.learn(episode)
            successes += [e.replace({DEMONSTRATION: None}) for e in episodes if e.metadata["success"]]
        return successes

    @property
    def method(self) -> Method:
        policy = PolicyConfig(Categorical(temperature=float(self.n_rounds > 0)), FeedForward((512,)),
                              codec=Normalizer(obs="identity"))
        alone = Method(policy, RecedingHorizon(), BehaviorCloning(self.n_updates, 64, constant(3e-3)))
        if not self.n_rounds:
            return alone
        rounds = CollectionRounds(self.n_rounds, RolloutCollector(200, TemperatureExploration()),
                                  retention=LastRounds(1), updates=Epochs(4))
        return Method(policy, RecedingHorizon(), PPO(batch_size=256, optimizer=constant(1e-3), entropy_weight=0.01),
                      (SuccessReward(),), stages=(Stage("clone", alone),), collection=rounds,
                      initialize_from=(InitializeFrom(FromStage("clone")),))


def constant(rate: float) -> OptimizerConfig:
    return OptimizerConfig(lr=rate, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=0.5)


def explore(experiment, option: Exploring, data: Dataset, seed: int, episodes: int, starts: int):
    """Whether the policy that is found does each mission."""
    demonstrations, view = data[:option.n_demonstrations], OneHot()
    if option.how == "scored":
        return flags(rollout(ScoredCells(demonstrations), Choices(ROWS), episodes, seed=starts))
    successes = [] if option.how == "cloned" else option.explored(demonstrations, seed)
    recorded = Dataset([view.transform_episode(e) for e in (*demonstrations, *successes)])
    policy = fit_method(option.method, recorded, seed, env=OneHot(N_EPISODES) if option.n_rounds else None).policy
    return flags(rollout(PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon()), OneHot(ROWS), episodes,
                         seed=starts))


TABLE = Experiment(Missions(), env=f"{__name__}:OneHot", measure=explore, first_seed=3000, episodes=300, arms={
    "learned workflows": Exploring(),
    "fixed workflows": Exploring("fixed"),
    "cloned, then PPO": Exploring("cloned", n_rounds=150),
    "cloned": Exploring("cloned"),
    "cloned by constraints": Exploring("scored"),
    "1,000 cloned": Exploring("cloned", 1000),
    "1,000 cloned, then PPO": Exploring("cloned", 1000, n_rounds=150),
    "any cell": Exploring("any cell")})
