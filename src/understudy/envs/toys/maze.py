"""A toy with a point in a maze. Each episode may show another maze."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from ...core import Feature, UserError, keys, normal, uniform
from ...execute.actor import Actor
from ..grid import MOVES, cost_by_move, cost_to_go
from ..toy import MapToy, distance, length, named_vector

MARGIN = 0.1  # m: as near to a wall the point comes
RADIUS = 0.25  # m, of the goal
SPEED = 2.0  # m/s
LOOPS = 0.3  # the fraction of walls that a maze without loops has, and ours does not
LAYOUTS = 20_231  # the seed of numbered mazes


class Maze(MapToy):
    """Toy in which a point walks to a goal in a maze, by one of several ways.

    A maze is a random spanning tree of `cells` x `cells` squares of 1 m, with 30 % of the remaining walls removed.

    observation.state (4): position and goal, m. observation.environment_state (24 for 4 x 4 cells): which walls stand,
    0 or 1, first the walls to the right of each cell and then the walls above each cell. action (2): velocity, m/s,
    clipped to [-2, 2]. A step is 0.1 s. Walls stop the point. Reaching the goal ends the episode with reward 1.
    info["level"] is the number of the maze, -1 if it has none.

    Best possible success: 1.0. `MazeExpert(noise=0)` attains it.

    Args:
        cells: Number of cells along each side.
        levels: Number of mazes. Each episode draws one. Policies can learn in some mazes and be evaluated in
            others. 0 draws a new maze for each episode.
        first: Number of the first maze.

    References:
        Cobbe et al. (2020), Leveraging Procedural Generation to Benchmark Reinforcement Learning (Procgen),
        arXiv:1912.01588.
    """

    low, high = -SPEED, SPEED
    state_columns = ("observation.state", "observation.environment_state")

    def __init__(self, rows: int = 1, limit: int = 100, cells: int = 4, levels: int = 0, first: int = 0):
        if cells < 2 or levels < 0 or first < 0:
            raise UserError(f"a maze needs at least 2 x 2 cells and numbers from 0 up, but cells={cells}, "
                            f"levels={levels}, first={first}", where="maze", hint="such as cells=4, levels=0, first=0")
        self.cells, self.levels, self.first = cells, levels, first
        names = tuple(f"wall.{i}.{j}.{('right', 'up')[k]}" for i, j, k in sides(cells))
        self.features = {"observation.state": named_vector("x", "y", "goal.x", "goal.y", unit="m"),
                         "observation.environment_state": Feature("float32", (len(names),), names=names),
                         "action": named_vector("x", "y", unit="m/s")}
        self.metadata = {"env": f"maze:{levels}" if levels and not first else "maze", "version": 1, "fps": 10,
                         "limit": limit, "optimum": 1.0, "success": f"within {RADIUS} m of the goal"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (6,)).numpy()
        level = self.first + (self.levels * drawn[:, 0]).astype(np.int64) if self.levels else np.full(len(key), -1)
        walls, n = layout(keys(LAYOUTS, level) if self.levels else key, self.cells), self.cells**2
        start = (drawn[:, 1] * n).astype(np.int64)
        goal = (start + 1 + (drawn[:, 2] * (n - 1)).astype(np.int64)) % n  # in another cell
        start, goal = (np.stack(np.divmod(cell, self.cells), 1) for cell in (start, goal))
        at = start + 0.5 + 0.5 * (drawn[:, 3:5] - 0.5)
        return {"at": at.astype(np.float32), "goal": (goal + 0.5).astype(np.float32), "walls": walls, "level": level}

    def observe(self):
        s = self.state
        return {"observation.state": np.concatenate([s["at"], s["goal"]], 1),
                "observation.environment_state": s["walls"].astype(np.float32)}

    def state_from_columns(self, steps):
        at, goal = np.split(steps["observation.state"], 2, 1)
        return {"at": at, "goal": goal, "walls": steps["observation.environment_state"] > 0.5,
                "level": np.full(len(at), -1)}

    def advance(self, action):
        s = self.state
        s["at"] = walk(s["at"], action, closed(s["walls"]))
        success = distance(s["at"], s["goal"]) < RADIUS
        return success, success, np.zeros_like(success)

    def numbers(self):
        return {"level": self.state["level"]}

    def expert(self):
        return MazeExpert()

    def map(self):
        span = (0.0, float(self.cells))
        return {"x": span, "y": span, "path": ("observation.state", 0, 1), "shapes": [], "marks": [
            {"kind": "circle", "column": ("observation.state", 2, 3), "radius": RADIUS, "role": "goal"}]}

    def state_shapes(self, row):
        s = {k: v[row] for k, v in self.state.items()}
        return [
            {"kind": "circle", "at": tuple(s["goal"]), "radius": RADIUS, "role": "goal"},
            *wall_shapes(s["walls"], self.cells),
            {"kind": "circle", "at": tuple(s["at"]), "radius": 0.12, "role": "agent"}]


def sides(cells: int) -> list[tuple[int, int, int]]:
    """Lists the walls of a maze: the cell (i, j) and 0 for the wall to its right, or 1 for the wall above it."""
    return [(i, j, 0) for i in range(cells - 1) for j in range(cells)] + [
        (i, j, 1) for i in range(cells) for j in range(cells - 1)]


def wall_shapes(walls: np.ndarray, cells: int) -> list[dict]:
    """Returns the shapes that a map draws for walls and the edge.

    Args:
        walls: True where a wall stands, (walls,), in the order of `sides`.

    Returns:
        Boxes of a map, see `map`.
    """
    inner = [((i + 1, j + 0.5), (0.04, 0.54)) if k == 0 else ((i + 0.5, j + 1), (0.54, 0.04))
             for (i, j, k), stands in zip(sides(cells), walls, strict=True) if stands]
    half, ends = cells / 2, (0, cells)
    edge = [((x, half), (0.08, half)) for x in ends] + [((half, y), (half, 0.08)) for y in ends]
    return [{"kind": "box", "at": at, "half": size, "role": "obstacle"} for at, size in (*inner, *edge)]


def layout(key: torch.Tensor, cells: int) -> np.ndarray:
    """Draws one random maze per key: a random spanning tree with additional openings.

    Args:
        key: Keys of the mazes, (n,).

    Returns:
        True where a wall stands, (n, walls), in the order of `sides`.

    References:
        Kruskal (1956), On the Shortest Spanning Subtree of a Graph and the Traveling Salesman Problem.
    """
    parted = np.array([(cells * i + j, cells * (i + (k == 0)) + j + (k == 1)) for i, j, k in sides(cells)])
    drawn = uniform(key, torch.zeros_like(key), (2, len(parted)), stream=1).numpy()
    rows = np.arange(len(key))
    region = np.tile(np.arange(cells**2), (len(key), 1))
    walls = drawn[:, 1] > LOOPS
    for wall in drawn[:, 0].argsort(1).T:
        a, b = (region[rows, parted[wall, k]] for k in (0, 1))
        walls[rows[a != b], wall[a != b]] = False
        region = np.where(region == b[:, None], a[:, None], region)
    return walls


def closed(walls: np.ndarray) -> np.ndarray:
    """Returns which of `grid.MOVES` are blocked in each cell, (n, 4, cells, cells) bool, for walls (n, walls)."""
    half = walls.shape[1] // 2
    cells = math.isqrt(half) + 1
    shut = np.ones((len(walls), 4, cells, cells), bool)
    right, up = walls[:, :half].reshape(-1, cells - 1, cells), walls[:, half:].reshape(-1, cells, cells - 1)
    shut[:, 0, :-1], shut[:, 1, :, :-1], shut[:, 2, 1:], shut[:, 3, :, 1:] = right, up, right, up
    return shut


def walk(at: np.ndarray, velocity: np.ndarray, shut: np.ndarray) -> np.ndarray:
    """Moves points for one step of 0.1 s. Walls stop them.

    Args:
        at: Positions, (n, 2), m.
        velocity: Velocities, (n, 2), m/s.
        shut: Moves by which a cell cannot be left, (n, 4, W, H), see `closed`.

    Returns:
        The new positions, (n, 2).
    """
    at, rows = at.copy(), np.arange(len(at))
    for axis in (0, 1):  # first along one axis, then along the other, so that no corner is cut
        cell = cell_of(at, shut.shape[2])
        (i, j), cell = cell.T, cell[:, axis].astype(np.float32)
        below, above = shut[rows, 2 + axis, i, j], shut[rows, axis, i, j]
        low, high = cell + np.where(below, MARGIN, -1), cell + np.where(above, 1 - MARGIN, 2)
        moved = at[:, axis] + np.float32(0.1) * velocity[:, axis]
        at[:, axis] = np.minimum(np.maximum(moved, low), high)
    return at


def cell_of(at: np.ndarray, cells: int) -> np.ndarray:
    """Returns the cell of each position.

    Args:
        at: Positions, (n, 2), m.

    Returns:
        Cells, (n, 2) int64.
    """
    return np.clip(np.floor(at), 0, cells - 1).astype(np.int64)


@dataclass(frozen=True)
class MazeExpert(Actor):
    """Expert of `Maze`: takes a shortest way to the goal.

    Each move from cell to cell is longer by a random preference of the episode, so that different episodes take
    different ways of equal length.

    Args:
        taste: Largest preference, as a fraction of a cell.
        noise: Standard deviation of Gaussian noise on the action, m/s.
    """

    taste: float = 0.5
    noise: float = 0.2

    def start(self, obs, key):
        shut = closed(obs["observation.environment_state"].numpy() > 0.5)
        liked = uniform(key, torch.zeros_like(key), shut.shape[1:], stream=6).numpy()
        cost = np.where(shut, np.inf, 1 + self.taste * liked).astype(np.float32)
        goal = cell_of(obs["observation.state"][:, 2:].numpy(), shut.shape[2])
        best = cost_by_move(cost, cost_to_go(cost, goal)).argmin(1)
        return {"key": key, "count": torch.zeros_like(key), "best": torch.from_numpy(best)}

    def act(self, obs, state):
        position, goal = obs["observation.state"].split(2, 1)
        cell, last = (torch.from_numpy(cell_of(x.numpy(), state["best"].shape[1])) for x in (position, goal))
        is_last_cell = (cell == last).all(1, keepdim=True)
        best = state["best"][torch.arange(len(cell)), cell[:, 0], cell[:, 1]]
        next_center = cell + torch.from_numpy(MOVES)[best] + 0.5
        aim = torch.where(is_last_cell, goal, next_center.float()) - position
        action = SPEED * aim / length(aim).clamp(min=0.2)
        action = action + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1}
