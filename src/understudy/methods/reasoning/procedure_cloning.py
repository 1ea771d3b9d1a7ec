from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from ...checkpoint import FromStage
from ...core import DataError, Feature, Schema, role
from ...data.episode import Dataset, Episode
from ...data.operations import Operation
from ...data.window import Window
from ...execute.planners import Hierarchical, IteratedPlanner
from ...heads.likelihood.categorical import Categorical, choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...nets.feed_forward import FeedForward
from ...nets.grid import GridEncoder, PerToken
from ...policy import PolicyConfig
from ..needs import CELLS, NUMBERS_OR_CLASSES
from ..registry import method

PROCEDURE = "observation.procedure"  # the column of intermediate results, unless another is named


class Procedure(ABC):
    """Config of a procedure, which computes an expert's intermediate results. Subclasses are frozen dataclasses."""

    @abstractmethod
    def feature(self, episode: Episode) -> Feature:
        """Returns the feature (dtype and shape) of each intermediate result of the computation."""

    @abstractmethod
    def results(self, episode: Episode, step: int) -> np.ndarray:
        """Returns the intermediate results of the computation at one observation, (L + 1, *shape).

        Args:
            episode: The episode.
            step: Number of the observation.

        Returns:
            The results in order. The first one is zero, and the last one is the end of the computation.
        """


@dataclass(frozen=True)
class GridSearch(Procedure):
    """Procedure: breadth-first search from a goal over a grid of cells.

    An intermediate result gives each cell a class: 0 if the search has not reached the cell, and ``1 + m`` if move m
    leads towards the goal by a shortest way. Each step of the search reaches the neighbors of the cells that were
    reached before. Of several shortest ways it takes the first in the order of `moves`. The goal and the walls stay 0.

    Args:
        grid: Column with the class of each cell, (W, H).
        wall: Class of cells that cannot be entered.
        goal: Class of the goal.
        moves: Displacement of each action, in the order of the actions.

    References:
        Yang et al. (2022), Chain of Thought Imitation with Procedure Cloning, arXiv:2205.10816.
    """

    grid: str = "observation.grid"
    wall: int = 1
    goal: int = 2
    moves: tuple[tuple[int, int], ...] = ((1, 0), (0, 1), (-1, 0), (0, -1))

    def feature(self, episode):
        shape = self._grid(episode).shape[1:]
        return Feature("int64", shape, "discrete", num_classes=(1 + len(self.moves),) * int(np.prod(shape)))

    def results(self, episode, step):
        grid = self._grid(episode)
        if not (grid[step] == self.goal).any() and not (grid == self.goal).any():
            raise DataError(f"no cell of {self.grid!r} has the class {self.goal} of the goal at any step; there are "
                            f"the classes {', '.join(map(str, np.unique(grid)))}", where="GridSearch.goal",
                            hint=f"store the goal as {self.goal} and walls as {self.wall}, or give GridSearch the "
                                 "classes of your data")
        return self.search(grid[step])

    def search(self, grid: np.ndarray) -> np.ndarray:
        """Returns the move of each cell after each step of a breadth-first search from the goal, (L + 1, W, H) int64.

        Moves count from 1, and 0 is a cell that the search has not reached. Do not change the maps, which are cached.

        Args:
            grid: Class of each cell, (W, H).
        """
        return _search(np.asarray(grid, np.int64).tobytes(), grid.shape, self.wall, self.goal, self.moves)

    def _grid(self, episode: Episode) -> np.ndarray:
        if self.grid not in episode.steps:
            raise DataError(f"there is no column {self.grid!r} with the map of cells that the search runs on",
                            where="GridSearch.grid", hint="name a column of shape (W, H), the class of each cell")
        grid = np.asarray(episode.steps[self.grid])
        if grid.ndim != 3:
            raise DataError(f"the column {self.grid!r} has the shape {grid.shape[1:]}, but a map of cells has (W, H)",
                            where="GridSearch.grid", hint="name a column with the class of each cell")
        return grid


@lru_cache(maxsize=256)  # all observations of an episode usually show the same grid
def _search(cells: bytes, shape: tuple[int, int], wall: int, goal: int, moves: tuple[tuple[int, int], ...]
            ) -> np.ndarray:
    """Returns the maps of `GridSearch.search`, (L + 1, W, H), which must not be changed."""
    grid, (width, height) = np.frombuffer(cells, np.int64).reshape(shape), shape
    maps, margin = [np.zeros(shape, np.int64)], max(abs(d) for move in moves for d in move)
    while True:
        labels = np.zeros_like(maps[-1])
        reached = np.pad((grid == goal) | (maps[-1] > 0), margin)
        for number, (i, j) in reversed(list(enumerate(moves))):  # so that the first move counts
            labels[reached[margin + i:margin + i + width, margin + j:margin + j + height]] = 1 + number
        new = np.where((maps[-1] == 0) & (grid != wall) & (grid != goal), labels, maps[-1])
        if (new == maps[-1]).all():
            result = np.stack(maps)
            result.flags.writeable = False
            return result
        maps.append(new)


@dataclass(frozen=True)
class ProcedureResult:
    """Adds a column with the result of a procedure at each observation, from which a policy can read the action.

    While acting, a policy that repeats the procedure gives the column: see `execute.planners.IteratedPlanner`.
    """

    procedure: Procedure
    into: str = PROCEDURE

    def __call__(self, episode: Episode) -> Episode:
        feature = self.procedure.feature(episode)
        rows = max(len(column) for name, column in episode.steps.items() if role(name) == "observation")
        column = np.stack([self.procedure.results(episode, t)[-1] for t in range(rows)]).astype(feature.dtype)
        episode = episode.replace({self.into: column})
        return replace(episode, schema={**episode.schema, self.into: feature})


@dataclass(frozen=True)
class ProcedureEpisodes(Operation):
    """Makes an episode of the procedure's intermediate results for each step of the data.

    Its observations stay as they were at that step, and the column `into` has the intermediate results in order. A
    policy with ``Window(action_offset=1)`` and the target `into` learns to compute each result from the one before.
    The last step repeats the end of the computation. The policy thus also learns to change nothing after the end.
    """

    procedure: Procedure
    into: str = PROCEDURE

    def apply(self, data: Dataset) -> Dataset:
        return Dataset([self._computation(episode, t) for episode in data for t in range(len(episode))], data.metadata)

    def _computation(self, episode: Episode, step: int) -> Episode:
        results = self.procedure.results(episode, step)
        results = np.concatenate([results, results[-1:]])
        schema = {k: f for k, f in episode.features().items() if role(k) == "observation"}
        observed = {k: np.asarray(episode.steps[k])[step] for k in schema}
        columns = {k: np.broadcast_to(value, (len(results), *value.shape)) for k, value in observed.items()}
        feature = self.procedure.feature(episode)
        return Episode({**columns, self.into: results.astype(feature.dtype)}, episode.metadata, len(results) - 1,
                       {**schema, self.into: feature})


@method("Yang et al. 2022, arXiv 2205.10816, whose search ends at the agent, with 128 to 256 channels and 500,000 "
        "updates", rows=("068",), needs=(NUMBERS_OR_CLASSES, CELLS),
        when="if the expert plans on a map of cells and new maps must be solved.")
def procedure_cloning(grid: str = "observation.grid", cell: str = "observation.cell", n_steps: int = 100,
                      channels: int = 64, n_layers: int = 5, steps: int = 20_000, features: Schema | None = None
                      ) -> Method:
    """Procedure cloning: predict each step of the expert's search over a grid, and read the action from the last.

    Args:
        grid: Column with the class of each cell: 0 free, 1 wall, 2 goal.
        cell: Column with the cell of the agent.
        n_steps: Largest number of steps of the search while acting.
        channels: Channels of each convolution of the network that predicts a step of the search from the one before.
        steps: Number of updates of that network.
    """
    search = GridSearch(grid)
    step = PolicyConfig(Categorical(), PerToken(FeedForward(())), GridEncoder((channels,) * n_layers),
                        inputs=(grid, PROCEDURE), target=PROCEDURE, window=Window(action_offset=1))
    stage = Stage("procedure", Method(step, learner=BehaviorCloning(steps, 32),
                                      transforms=(ProcedureEpisodes(search),)))
    action = PolicyConfig(choose_head(features, Regression()), FeedForward((64,)), GridEncoder((), cell),
                          inputs=(PROCEDURE, cell))
    return Method(action, learner=BehaviorCloning(1000, 32), transforms=(ProcedureResult(search),), stages=(stage,),
                  inference=(Hierarchical(IteratedPlanner(FromStage("procedure"), PROCEDURE, n_steps),
                                          as_key=PROCEDURE),))
