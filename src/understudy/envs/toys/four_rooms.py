"""A toy for goal-conditioned learning: four rooms with four doors, and goals anywhere in them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...core import UserError, normal, uniform, unknown_name
from ...execute.actor import Actor
from ..grid import MOVES, cost_by_move, cost_to_go
from ..toy import MapToy, distance, length, named_vector
from .maze import RADIUS, SPEED, cell_of, closed, sides, walk, wall_shapes

CELLS, HALF = 8, 4  # along each side; where the rooms part
DOORS = ((3, 1, 0), (3, 6, 0), (1, 3, 1), (6, 3, 1))  # openings, as `maze.sides` names walls
REACH = 4  # cells: how far a waypoint of the style "stitch" lies from the first cell


class FourRooms(MapToy):
    """Toy in which a point walks through four rooms of 4 x 4 m to a goal. The layout never changes.

    The style says who records. "navigate": the expert walks to the goal of the episode. "mixed": the same, but every
    second episode walks at random. The other styles have no goal, and their episodes last until the limit, as in the
    data of OGBench (Park et al. 2025, arXiv 2410.20092).

    Methods such as `gcbc` choose goals from such data. "play" walks from one random place to another. In "play-40" and
    "play-80" this share of the episodes walks at random instead, in percent. The places of "stitch" lie at most four
    cells from where its episode began, so that long ways must be put together from pieces. "noisy" is "play" with large
    noise.

    observation.state (2): position, m. observation.goal (2), where there is one: where to go, m. action (2): velocity,
    m/s, clipped to [-2, 2]; a step is 0.1 s. Walls stop the point. Reaching the goal ends the episode with reward 1.

    Best possible success: 1.0. `FourRoomsExpert(noise=0)` attains it by a shortest way from cell to cell.

    Args:
        style: One of `STYLES`.
        goal: The goal of all episodes, m, which is not observed. None for another one in each episode.
        walls: "end": touching a wall ends the episode as a failure. "stop": walls only stop the point.
    """

    low, high = -SPEED, SPEED

    def __init__(self, rows: int = 1, limit: int = 150, style: str = "navigate",
                 goal: tuple[float, float] | None = None, walls: str = "stop"):
        if style not in STYLES:
            raise unknown_name("style", style, STYLES, "four_rooms")
        if walls not in ("stop", "end"):
            raise UserError(f"walls is {walls!r}", where="four_rooms", hint='choose "stop" or "end"')
        self.style, self.goal, self.walls = style, goal, walls
        self.solvable = style in ("navigate", "mixed")
        self.state_columns = ("observation.state", "observation.goal")[:1 + (self.solvable and goal is None)]
        self.features = {**{column: named_vector("x", "y", unit="m") for column in self.state_columns},
                         "action": named_vector("x", "y", unit="m/s")}
        self.metadata = {"env": "four_rooms" if style == "navigate" else f"four_rooms:{style}", "version": 1,
                         "fps": 10, "limit": limit, "optimum": 1.0 if self.solvable else None,
                         "success": f"within {RADIUS} m of the goal" if self.solvable else None}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (6,)).numpy()
        start = (drawn[:, 0] * CELLS**2).astype(np.int64)
        goal = (start + 1 + (drawn[:, 1] * (CELLS**2 - 1)).astype(np.int64)) % CELLS**2  # in another cell
        start, goal = (np.stack(np.divmod(cell, CELLS), 1) + 0.5 for cell in (start, goal))
        goal = goal + 0.5 * (drawn[:, 4:] - 0.5) if self.goal is None else np.full_like(goal, self.goal)
        return {"at": (start + 0.5 * (drawn[:, 2:4] - 0.5)).astype(np.float32), "goal": goal.astype(np.float32)}

    def observe(self):
        return dict(zip(self.state_columns, (self.state["at"], self.state["goal"]), strict=False))

    def state_from_columns(self, steps):
        state = dict(zip(("at", "goal"), (steps[column] for column in self.state_columns), strict=False))
        return state if self.goal is None else {**state, "goal": np.full_like(state["at"], self.goal)}

    def advance(self, action):
        s = self.state
        intended = s["at"] + np.float32(0.1) * action
        s["at"] = walk(s["at"], action, np.broadcast_to(SHUT, (self.rows, *SHUT.shape)))
        success = (distance(s["at"], s["goal"]) < RADIUS) & self.solvable
        touched = (np.abs(s["at"] - intended).max(1) > 1e-3) & ~success
        return success, success, touched & (self.walls == "end")

    def expert(self):
        return STYLES[self.style] if self.goal is None else replace(STYLES[self.style], goal=self.goal)

    def map(self):
        hidden_goal = [] if self.goal is None else [
            {"kind": "circle", "at": self.goal, "radius": RADIUS, "role": "goal"}]
        return {"x": (0.0, float(CELLS)), "y": (0.0, float(CELLS)), "path": ("observation.state", 0, 1),
                "shapes": [*wall_shapes(WALLS, CELLS), *hidden_goal],
                "marks": [{"kind": "circle", "column": (column, 0, 1), "radius": RADIUS, "role": "goal"}
                          for column in self.state_columns[1:]]}

    def state_shapes(self, row):
        at, goal = (tuple(self.state[k][row]) for k in ("at", "goal"))
        goal_shapes = [{"kind": "circle", "at": goal, "radius": RADIUS, "role": "goal"}] if self.solvable else []
        return [*goal_shapes, {"kind": "circle", "at": at, "radius": 0.15, "role": "agent"}]


WALLS = np.array([(i, j)[k] == HALF - 1 and (i, j, k) not in DOORS for i, j, k in sides(CELLS)])
SHUT = closed(WALLS[None])[0]
_COST = np.where(SHUT, np.inf, 1).astype(np.float32)
_GOALS = np.stack(np.divmod(np.arange(CELLS**2), CELLS), 1)
STEPS = cost_to_go(np.broadcast_to(_COST, (CELLS**2, *_COST.shape)), _GOALS)  # (goal, x, y): cells to walk
_TO_GO = cost_by_move(_COST, STEPS)  # (goal, move, x, y)
_BEST = torch.from_numpy(_TO_GO.min(1, keepdims=True) == _TO_GO)


@dataclass(frozen=True)
class FourRoomsExpert(Actor):
    """Expert of `FourRooms`: walks by shortest ways from cell to cell, chosen at random if equally short.

    Args:
        noise: Standard deviation of its unsteadiness, m/s.
        waypoints: Chooses its own places to go to, and a new one on arrival, instead of walking to the goal.
        reach: Waypoints lie at most this many cells from where the episode began. 0 for anywhere.
        aimless: Fraction of episodes that walk at random.
        goal: Where to go, if the goal is not observed.
    """

    noise: float = 0.3
    waypoints: bool = False
    reach: int = 0
    aimless: float = 0.0
    goal: tuple[float, float] | None = None

    def start(self, obs, key):
        zero = torch.zeros_like(key)
        drawn = uniform(key, zero, (5,), stream=6)
        home = torch.from_numpy(cell_of(obs["observation.state"].numpy(), CELLS))
        state = {"key": key, "count": zero, "liked": drawn[:, :4], "aimless": drawn[:, 4] < self.aimless,
                 "home": CELLS * home[:, 0] + home[:, 1]}
        if self.waypoints:
            return {**state, "aim": self._waypoint(state)}
        return {**state, "aim": obs["observation.goal"] if self.goal is None else torch.tensor(self.goal).repeat(
            len(key), 1)}

    def act(self, obs, state):
        position, aim = obs["observation.state"], state["aim"]
        if self.waypoints:
            arrived = length(position - aim) < RADIUS
            aim = torch.where(arrived, self._waypoint(state), aim)
        cell, last = (torch.from_numpy(cell_of(x.numpy(), CELLS)) for x in (position, aim))
        best = _BEST[CELLS * last[:, 0] + last[:, 1], :, cell[:, 0], cell[:, 1]]
        onward = cell + torch.from_numpy(MOVES)[(best * state["liked"]).argmax(1)] + 0.5
        offset = torch.where((cell == last).all(1, keepdim=True), aim, onward.float()) - position
        action = SPEED * offset / length(offset).clamp(min=0.2)
        action = action + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        if self.aimless:
            wander = 2 * SPEED * (uniform(state["key"], state["count"] // 8, (2,), stream=3) - 0.5)
            action = torch.where(state["aimless"][:, None], wander, action)
        return action.float(), {**state, "aim": aim, "count": state["count"] + 1}

    def _waypoint(self, state) -> Tensor:
        """Returns the middle of a random cell, (rows, 2)."""
        drawn = uniform(state["key"], state["count"], (CELLS**2,), stream=5)
        if self.reach:
            within_reach = torch.from_numpy(STEPS[state["home"].numpy()].reshape(-1, CELLS**2) <= self.reach)
            drawn = drawn * within_reach
        cell = drawn.argmax(1)
        return torch.stack([cell // CELLS, cell % CELLS], 1).float() + 0.5


STYLES = {"navigate": FourRoomsExpert(), "play": FourRoomsExpert(waypoints=True),
          "play-40": FourRoomsExpert(waypoints=True, aimless=0.4),
          "play-80": FourRoomsExpert(waypoints=True, aimless=0.8),
          "stitch": FourRoomsExpert(waypoints=True, reach=REACH),
          "noisy": FourRoomsExpert(noise=1.5, waypoints=True), "mixed": FourRoomsExpert(aimless=0.5)}
