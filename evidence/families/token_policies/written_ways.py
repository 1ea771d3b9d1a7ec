"""Row 005: a policy writes the way to a goal. Cloning, with and without a bound on the reward that its logits imply."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import train_policy
from understudy.core import Feature
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import TERMINATED
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critics.action_values import InverseActionValues
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

TASK, WRITTEN = "observation.task", "observation.written"
MOVES = np.array([(1, 0), (0, 1), (-1, 0), (0, -1)])
END, N_TOKENS = len(MOVES), len(MOVES) + 1
FARTHEST = 3  # cells to the goal in each direction
LIMIT = 2 * FARTHEST + 2  # tokens; a longer text fails
N_TASKS, N_DRAWS = 50, 32  # tasks of a test, and texts for each
RATE = OptimizerConfig(lr=1e-3)
FEATURES = {TASK: Feature("float32", (4,)), WRITTEN: Feature("float32", (LIMIT * N_TOKENS,)),
            "action": Feature("int64", (1,), "discrete", num_classes=(N_TOKENS,))}
Cell = tuple[int, int]


@cache
def next_cells(at: Cell, goal: Cell, hole: Cell) -> dict[int, Cell]:
    """The cell after each move that is on a shortest way to the goal, past the hole."""
    cells = {i: (at[0] + int(dx), at[1] + int(dy)) for i, (dx, dy) in enumerate(MOVES)}
    return {i: cell for i, cell in cells.items() if math.dist(cell, goal) < math.dist(at, goal) and n_ways(
        cell, goal, hole)}


@cache
def n_ways(at: Cell, goal: Cell, hole: Cell) -> int:
    """Number of shortest ways from a cell to the goal, past the hole."""
    if at in (goal, hole):
        return int(at == goal)
    return sum(n_ways(cell, goal, hole) for cell in next_cells(at, goal, hole).values())


def draw_task(rng: np.random.Generator) -> tuple[Cell, Cell]:
    """A goal and a hole, with at least 3 ways."""
    while True:
        drawn = rng.integers(-FARTHEST, FARTHEST + 1, size=(2, 2))
        goal, hole = ((int(x), int(y)) for x, y in drawn)
        if hole not in ((0, 0), goal) and n_ways((0, 0), goal, hole) >= 3:
            return goal, hole


def written(tokens: list[int]) -> np.ndarray:
    """One-hot vectors of the tokens so far, side by side, and zeros after them."""
    rows = np.zeros((LIMIT, N_TOKENS), np.float32)
    rows[np.arange(len(tokens)), tokens] = 1
    return rows.ravel()


@dataclass(frozen=True)
class WrittenWays(DemonstrationSource):
    """Texts of an expert who draws evenly among the shortest ways, and writes the end at the goal."""

    env: str = "written_ways"
    episodes: int = 200

    def load(self, seed):
        rng = np.random.default_rng([seed, 1])
        return Dataset([self.episode(rng, *draw_task(rng)) for _ in range(self.episodes)])

    def episode(self, rng: np.random.Generator, goal: Cell, hole: Cell) -> Episode:
        at, tokens = (0, 0), []
        while at != goal:
            cells = next_cells(at, goal, hole)
            ways = np.array([n_ways(cell, goal, hole) for cell in cells.values()])
            tokens.append(int(rng.choice(list(cells), p=ways / ways.sum())))
            at = cells[tokens[-1]]
        tokens.append(END)
        n = len(tokens)
        return Episode({TASK: np.tile(np.array([*goal, *hole], np.float32), (n + 1, 1)),
                        WRITTEN: np.stack([written(tokens[:t]) for t in range(n + 1)]),
                        "action": np.array(tokens)[:, None], TERMINATED: np.arange(n) == n - 1}, schema=FEATURES)


def succeeds(tokens: list[int], goal: Cell, hole: Cell) -> bool:
    """Whether a text leads to the goal, past the hole, and ends there."""
    if END not in tokens:
        return False
    ways = np.cumsum(MOVES[tokens[:tokens.index(END)]], 0) if tokens[0] != END else np.zeros((1, 2))
    return tuple(ways[-1]) == goal and hole not in set(map(tuple, ways))


def texts(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int) -> dict[str, list[float]]:
    """Trains a policy, and draws texts for new tasks.

    Returns:
        For each text "success". For each task "ways": the number of different successful texts, divided by the number
        of shortest ways, or of texts if that is smaller.
    """
    trained, rng = train_policy(experiment, method, data, seed), np.random.default_rng([starts, 2])
    tasks = [task for task in [draw_task(rng) for _ in range(N_TASKS)] for _ in range(N_DRAWS)]
    obs, so_far = torch.tensor([[*goal, *hole] for goal, hole in tasks]).float(), [[] for _ in tasks]
    keys = torch.arange(len(tasks)) + len(tasks) * starts
    for step in range(LIMIT):
        columns = {TASK: obs[:, None], WRITTEN: torch.from_numpy(np.stack(list(map(written, so_far))))[:, None]}
        with torch.no_grad():
            plan = trained.plan(columns, trained.noise(keys, torch.full_like(keys, step)))
        for tokens, token in zip(so_far, plan[:, 0, 0].tolist(), strict=True):
            tokens.append(int(token))
    success = [succeeds(tokens, *task) for tokens, task in zip(so_far, tasks, strict=True)]
    shares = []
    for i in range(0, len(tasks), N_DRAWS):
        different = {tuple(so_far[k][:so_far[k].index(END)]) for k in range(i, i + N_DRAWS) if success[k]}
        shares.append(len(different) / min(N_DRAWS, n_ways((0, 0), *tasks[i])))
    return {"success": [float(s) for s in success], "ways": shares}


def policy(temperature: float = 1.0) -> PolicyConfig:
    return PolicyConfig(Categorical(temperature=temperature), FeedForward((128, 128)), ConcatEncoder(),
                        Normalizer(obs="identity"))


def cloned(steps: int = 2000, temperature: float = 1.0) -> Method:
    return Method(policy(temperature), learner=BehaviorCloning(steps, 128, RATE, ConstantDecay(0.0)))


def rewarded(weight: float) -> Method:
    """Cloning plus `weight` times the square of the reward that the logits imply."""
    return Method(policy(), learner=InverseActionValues(2000, 128, RATE, discount=1.0, temperature=1.0,
                                                        divergence_weight=1 / (4 * weight)))


TABLE = Experiment(WrittenWays(), measure=texts, first_seed=5680, n_seeds=10, levels={"cloning": 0.7}, arms={
    "cloning": cloned(),
    "cloning, half the updates": cloned(1000),
    "cloning, temperature 1.3": cloned(temperature=1.3),
    "IQL-MLE": rewarded(0.1)})
