"""Row 068: do policies that learn each step of a search find the way in mazes that they have never seen?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

from understudy.claims.base import (
    RATE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_once
from understudy.core import Feature, keys, uniform
from understudy.data.episode import Dataset
from understudy.envs.raster import COLOR_OF_ROLE, Canvas
from understudy.envs.toy import Toy
from understudy.envs.toys.maze import LAYOUTS, layout, sides
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from understudy.learn.method import Method, build_actor
from understudy.learn.objectives.class_prediction import ClassPrediction
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.reasoning.procedure_cloning import (
    PROCEDURE,
    GridSearch,
    ProcedureEpisodes,
    ProcedureResult,
    procedure_cloning,
)
from understudy.nets.feed_forward import FeedForward
from understudy.nets.grid import GridEncoder, PerToken
from understudy.policy import PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
GRID, CELL = "observation.grid", "observation.cell"
FREE, WALL, GOAL = range(3)
MOVES = np.array(GridSearch().moves)
ROOMS, LIMIT = 5, 40
SIZE = 2 * ROOMS - 1  # cells along each side: rooms and what is between them
OTHERS = 20_568  # the seed of the mazes of the negative control
CHANNELS, STEPS, READING_STEPS, N_STEPS = (24,) * 5, 2000, 300, 50


class GridMaze(Toy):
    """A walker goes to the goal of a maze, which it sees as a whole.

    A maze is a random spanning tree of 5 x 5 rooms, with 30 % of the remaining walls removed. Rooms, walls and openings
    are cells of a grid of 9 x 9.

    observation.grid (9, 9): 0 free, 1 wall, 2 goal. observation.cell (2): where the walker is. action (1): 0 right,
    1 up, 2 left, 3 down. A step into a wall or beyond the edge does nothing. Reaching the goal ends the episode with
    reward 1.

    Best possible success: 1.0. `GridMazeExpert()` attains it.

    Args:
        limit: Number of steps of an episode.
        levels: Number of mazes. Each episode draws one. 0 draws a new maze for each episode.
        first: Number of the first maze.
    """

    state_columns = (GRID, CELL)
    low, high = 0.0, 3.0

    def __init__(self, rows: int = 1, limit: int = LIMIT, levels: int = 0, first: int = 0):
        self.levels, self.first = levels, first
        self.features = {GRID: Feature("int64", (SIZE, SIZE), "discrete", num_classes=(3,) * SIZE**2),
                         CELL: Feature("int64", (2,), "discrete", num_classes=(SIZE, SIZE)),
                         "action": Feature("int64", (1,), "discrete", num_classes=(len(MOVES),))}
        self.metadata = {"env": "grid_maze", "version": 1, "fps": 5, "limit": limit, "optimum": 1.0,
                         "success": "the walker is at the goal"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn, n = uniform(key, torch.zeros_like(key), (3,)).numpy(), ROOMS**2
        level = keys(LAYOUTS, self.first + (self.levels * drawn[:, 0]).astype(np.int64)) if self.levels else key
        start = (drawn[:, 1] * n).astype(np.int64)
        goal = (start + 1 + (drawn[:, 2] * (n - 1)).astype(np.int64)) % n  # in another room
        start, goal = (2 * np.stack(np.divmod(room, ROOMS), 1) for room in (start, goal))
        return {"grid": draw_grid(level, ROOMS, goal), "at": start}

    def observe(self):
        return {GRID: self.state["grid"], CELL: self.state["at"]}

    def state_from_columns(self, steps):
        return {"grid": steps[GRID], "at": steps[CELL]}

    def advance(self, action):
        s, rows = self.state, np.arange(self.rows)
        onward = s["at"] + MOVES[np.rint(action[:, 0]).astype(np.int64)]
        inside = ((onward >= 0) & (onward < SIZE)).all(1)
        onward = np.where(inside[:, None], onward, s["at"])
        shut = s["grid"][rows, onward[:, 0], onward[:, 1]] == WALL
        s["at"] = np.where(shut[:, None], s["at"], onward)
        success = s["grid"][rows, s["at"][:, 0], s["at"][:, 1]] == GOAL
        return success.astype(np.float32), success, np.zeros_like(success)

    def expert(self):
        return GridMazeExpert()

    def map(self):
        return {"x": (-0.5, SIZE - 0.5), "y": (-0.5, SIZE - 0.5), "path": (CELL, 0, 1), "shapes": []}

    def frame(self, row):
        canvas, flat = Canvas(1, 252, (-0.5, -0.5), SIZE), np.array([[1, 0]], np.float32)
        colors = {WALL: COLOR_OF_ROLE["obstacle"], GOAL: COLOR_OF_ROLE["goal"]}
        for i, j in np.argwhere(self.state["grid"][row] != FREE):
            canvas.box(np.array([[i, j]], np.float32), flat, (0.5, 0.5), colors[self.state["grid"][row, i, j]])
        canvas.circle(self.state["at"][row:row + 1].astype(np.float32), 0.3, COLOR_OF_ROLE["agent"])
        return canvas.image[0]


def draw_grid(key: torch.Tensor, rooms: int, goal: np.ndarray) -> np.ndarray:
    """Draws one maze per key.

    Args:
        key: Keys of the mazes, (n,).
        rooms: Number of rooms along each side.
        goal: Cell of each goal, (n, 2).

    Returns:
        Class of each cell, (n, W, W) int64.
    """
    walls, size = layout(key, rooms), 2 * rooms - 1
    grid = np.full((len(key), size, size), WALL, np.int64)
    grid[:, ::2, ::2] = FREE
    for number, (i, j, k) in enumerate(sides(rooms)):
        grid[:, 2 * i + (k == 0), 2 * j + (k == 1)] = np.where(walls[:, number], WALL, FREE)
    grid[np.arange(len(key)), goal[:, 0], goal[:, 1]] = GOAL
    return grid


@dataclass(frozen=True)
class GridMazeExpert(Actor):
    """Takes the shortest way that breadth-first search finds."""

    def start(self, obs, key):
        maps = np.stack([GridSearch().search(grid)[-1] for grid in obs[GRID].numpy()])
        return {"map": torch.from_numpy(maps)}

    def act(self, obs, state):
        rows, cell = torch.arange(len(obs[CELL])), obs[CELL].long()
        return (state["map"][rows, cell[:, 0], cell[:, 1]] - 1).clamp(min=0).unsqueeze(1), state


@dataclass(frozen=True)
class MazeDemonstrations(DemonstrationSource):
    """Episodes of the expert in mazes that each seed draws anew.

    Args:
        mazes: Number of mazes.
        per_maze: Number of episodes for each of them, on average.
    """

    mazes: int
    per_maze: int
    probe_sizes = {"mazes": 5}

    def load(self, seed):
        env = training_mazes(self, seed)
        return rollout(env.expert(), env, self.mazes * self.per_maze, recording_seed(seed))


def training_mazes(source: MazeDemonstrations, seed: int, rows: int = ROWS) -> GridMaze:
    """The mazes that a seed learns in."""
    return GridMaze(rows, LIMIT, levels=source.mazes, first=1000 * seed)


@dataclass(frozen=True)
class OtherMazeSearch(GridSearch):
    """Searches another maze, with the same goal: steps of a procedure that do not belong to what is observed."""

    def search(self, grid):
        digest = hashlib.blake2b(np.ascontiguousarray(grid).tobytes(), digest_size=7).digest()
        key = keys(OTHERS, np.array([int.from_bytes(digest, "little")]))
        return super().search(draw_grid(key, (len(grid) + 1) // 2, np.argwhere(grid == GOAL)[:1])[0])


def maze_successes(
    experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        0 or 1 per episode. "success": in unseen mazes, a new one for each start. "demonstrated": from the starts of the
        demonstrations, in their mazes.
    """
    trained, measures = train_once(experiment, method, data, seed), {}
    rows = min(ROWS, episodes)
    actor = build_actor(trained.method, trained.modules, rows, features=trained.features)
    for name, env, n, key in (("success", GridMaze(rows, LIMIT), episodes, starts),
                              ("demonstrated", training_mazes(experiment.source, seed, rows), len(data),
                               recording_seed(seed))):
        measures[name] = [float(e.metadata["success"]) for e in rollout(actor, env, n, seed=key)]
    return measures


def clone_procedure(search: GridSearch) -> Method:
    """Procedure cloning of a search, with small networks and few updates."""
    method = procedure_cloning(GRID, CELL, N_STEPS, CHANNELS[0], len(CHANNELS), features=GridMaze().features)
    stage = method.stages[0]
    step = replace(stage.method, learner=learner(STEPS - READING_STEPS), transforms=(ProcedureEpisodes(search),))
    return replace(method, learner=learner(READING_STEPS), transforms=(ProcedureResult(search),),
                   stages=(replace(stage, method=step),))


def clone_actions(n_rounds: int = 1, *auxiliary_losses: AuxiliaryLoss) -> Method:
    """Behavior cloning with convolutions of the same size, from the features at the walker's cell."""
    policy = PolicyConfig(Categorical(), FeedForward((64,)), GridEncoder(CHANNELS, CELL, n_rounds),
                          inputs=(GRID, CELL))
    return Method(policy, RecedingHorizon(), replace(learner(STEPS), auxiliary_losses=auxiliary_losses),
                  (ProcedureResult(GridSearch()),) if auxiliary_losses else ())


def learner(steps: int) -> BehaviorCloning:
    return BehaviorCloning(steps, 16, OptimizerConfig(lr=2e-3, warmup_steps=50))


def with_other_mazes(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(Arm("procedure cloning", (clone_procedure(OtherMazeSearch()),)))


MAP = ClassPrediction(PROCEDURE, (1 + len(MOVES),) * SIZE**2, PerToken(FeedForward(())), 1 / SIZE**2, "cells",
                      (SIZE**2, CHANNELS[-1]))
MAZES = Experiment(
    MazeDemonstrations(20, 4),
    "grid_maze",
    (
        Arm("procedure cloning", (clone_procedure(GridSearch()),)),
        Arm("actions", (clone_actions(),)),
        Arm("actions, map as auxiliary", (clone_actions(1, MAP),)),
    ),
    maze_successes,
    seeds=tuple(range(680, 685)),
    episodes=100,
    measures=(("success", RATE), ("demonstrated", RATE)),
    starts_seed=680,
    looks=((3, 0.02), (5, 0.03)),
    sanity=(("procedure cloning", "demonstrated", 0.8), ("actions", "demonstrated", 0.7),
            ("actions, map as auxiliary", "demonstrated", 0.7)),
)
RECURRENT = replace(MAZES, looks=(), sanity=(), arms=(
    MAZES.arms[0], Arm("actions, recurrent", (clone_actions(4),))))
OVER_ACTIONS = GreaterThan("success", "procedure cloning", "actions", 0.1)
OVER_AUXILIARY = GreaterThan("success", "procedure cloning", "actions, map as auxiliary", 0.1)

CLAIM = Claim(
    name="procedure-cloning",
    rows=("068",),
    parts=(
        ClaimPart("unseen mazes", MAZES, AllOf((OVER_ACTIONS, OVER_AUXILIARY))),
        ClaimPart("recurrent network", RECURRENT,
                  GreaterThan("success", "procedure cloning", "actions, recurrent", 0.1), is_decisive=False),
    ),
    negative_control=NegativeControl(with_other_mazes, "unseen mazes", removes=(OVER_ACTIONS, OVER_AUXILIARY)),
)
