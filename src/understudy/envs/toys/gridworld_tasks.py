"""A toy with tasks of several stages: a key, a door, a ball and a pad, to be used in an order that words give."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise, permutations

import numpy as np
import torch

from ...core import Feature, UserError, uniform
from ...data.tasks import decode_text
from ...data.text_columns import TaskText
from ...execute.actor import Actor
from ..grid import MOVES
from ..raster import COLOR_OF_ROLE, Drawable
from ..toy import Toy, named_vector

WIDTH, HEIGHT, WALL = 9, 6, 4  # cells; the column of the wall, which has one door
KEY, DOOR, BALL, PAD = range(4)
STAGES = ("take the key", "open the door", "take the ball", "put the ball on the pad")
ORDERS = tuple(order for order in permutations(range(4))
               if order.index(KEY) < order.index(DOOR) and order.index(BALL) < order.index(PAD))
MISSIONS = tuple(", ".join(STAGES[stage] for stage in order) for order in ORDERS)
LENGTH = 80  # bytes of a mission
USE = len(MOVES)  # the action that is not a move
FARTHEST = 4 * (WIDTH + 2 * HEIGHT)  # steps: no mission needs more walking


class GridworldTasks(Toy, Drawable):
    """Two rooms with a locked door between them. A mission names four stages and their order: take the key, open the
    door, take the ball, put the ball on the pad. What a stage needs can be reached when its turn comes. Doing a stage
    before its turn ends the episode with reward -1, and the last stage ends it with reward 1.

    observation.task (80): the mission as UTF-8 bytes, as `TaskText` makes them of a task. observation.state (6): the
    cell, and for each stage whether it is done. observation.environment_state (7): the cells of the key, the ball and
    the pad, and the row of the door.

    simulator.subgoal (1): the stage whose turn it is, which the expert follows and a policy does not read.
    simulator.state (2): the number and step that decide the chances. action (1): 0 right, 1 up, 2 left, 3 down, 4 use.
    Use acts on what lies in the same cell, or on the door from the cell to its left. info["mission"]: its number in
    `MISSIONS`.

    Best possible success: `metadata["optimum"]`, the exact mean over all places of things and all slips. It is 1.0
    without `slip` if there is time for the farthest ways. `GridworldTasksExpert(noise=0)` attains it.

    Args:
        slip: Probability that a use fails and must be tried again.
        missions: Which of `MISSIONS` are drawn. Train on some and evaluate on others.
    """

    state_columns = ("observation.task", "observation.state", "observation.environment_state", "simulator.state")

    def __init__(self, rows: int = 1, limit: int = 120, slip: float = 0.0, missions: tuple[int, ...] = tuple(range(6))):
        if not 0 <= slip < 1:
            raise UserError(f"slip is {slip}", where="gridworld_tasks", hint="give a probability below 1, such as 0.2")
        if not missions or not set(missions) <= set(range(len(MISSIONS))):
            raise UserError(f"missions are {list(missions)}", where="gridworld_tasks",
                            hint=f"give some of the numbers 0 to {len(MISSIONS) - 1}")
        self.slip, self.missions = slip, np.array(missions)
        self.features = {
            "observation.task": Feature("uint8", (LENGTH,), "text"),
            "observation.state": named_vector("x", "y", "key", "door", "ball", "pad"),
            "observation.environment_state": named_vector("key.x", "key.y", "ball.x", "ball.y", "pad.x", "pad.y",
                                                          "door.y"),
            "simulator.subgoal": Feature("int64", (1,), "discrete", num_classes=(len(STAGES),)),
            "simulator.state": named_vector("chance", "clock"),
            "action": Feature("int64", (1,), "discrete", num_classes=(USE + 1,))}
        self.metadata = {"env": "gridworld_tasks", "version": 1, "fps": 5, "limit": limit,
                         "optimum": _best_success(limit, slip, tuple(missions)),
                         "success": "all four stages are done in the order of the mission"}
        self.low, self.high = 0.0, float(USE)
        super().__init__(rows, limit)

    def initial_state(self, key):
        n = len(key)
        drawn = uniform(key, torch.zeros_like(key), (3,)).numpy()
        mission = self.missions[(drawn[:, 0] * len(self.missions)).astype(np.int64)]
        door = (drawn[:, 1] * HEIGHT).astype(np.int64)
        turn = np.argsort(np.array(ORDERS), 1)[mission]  # (n, stages): when a stage has its turn
        free = uniform(key, torch.zeros_like(key), (WIDTH, HEIGHT), stream=1).numpy()
        x = np.arange(WIDTH)[:, None]
        before = (x == WALL - 1) & (np.arange(HEIGHT) == door[:, None, None])  # where the door is opened from
        first_room = (x < WALL) & ~before
        both_rooms = first_room | (x > WALL)
        places = []
        either = (np.where((turn[:, s] > turn[:, DOOR])[:, None, None], both_rooms, first_room) for s in (BALL, PAD))
        for allowed in (first_room, first_room, *either):  # the walker, the key, the ball, the pad
            cell = np.where(allowed, free, -1.0).reshape(n, -1).argmax(1)
            places.append(np.stack(np.divmod(cell, HEIGHT), 1))
            free = free.copy()
            free.reshape(n, -1)[np.arange(n), cell] = -1.0
        return {"at": places[0], "things": np.stack(places[1:], 1), "door": door, "mission": mission,
                "done": np.zeros((n, len(STAGES)), bool), "chance": np.floor(2**23 * drawn[:, 2]),
                "clock": np.zeros(n)}

    def observe(self):
        s = self.state
        around = np.concatenate([s["things"].reshape(self.rows, -1), s["door"][:, None]], 1)
        return {"observation.task": _TEXTS[s["mission"]],
                "observation.state": np.concatenate([s["at"], s["done"]], 1).astype(np.float32),
                "observation.environment_state": around.astype(np.float32),
                "simulator.subgoal": _subgoal(s["mission"], s["done"])[:, None],
                "simulator.state": np.stack([s["chance"], s["clock"]], 1).astype(np.float32)}

    def state_from_columns(self, steps):
        around = np.rint(steps["observation.environment_state"]).astype(np.int64)
        chance, clock = steps["simulator.state"].astype(np.float64).T
        return {"at": np.rint(steps["observation.state"][:, :2]).astype(np.int64),
                "done": steps["observation.state"][:, 2:] > 0.5, "things": around[:, :6].reshape(-1, 3, 2),
                "door": around[:, 6], "mission": parse_missions(steps["observation.task"]), "chance": chance,
                "clock": clock}

    def advance(self, action):
        s, chosen = self.state, np.rint(action[:, 0]).astype(np.int64)
        s["clock"] = s["clock"] + 1
        onward = s["at"] + np.concatenate([MOVES, [[0, 0]]])[chosen]
        inside = ((onward >= 0) & (onward < [WIDTH, HEIGHT])).all(1)
        shut = (onward[:, 0] == WALL) & ~((onward[:, 1] == s["door"]) & s["done"][:, DOOR])
        s["at"] = np.where((inside & ~shut)[:, None], onward, s["at"])
        chance, clock = (torch.from_numpy(s[k].astype(np.int64)) for k in ("chance", "clock"))
        works = (chosen == USE) & (uniform(chance, clock, (1,)).numpy()[:, 0] >= self.slip)
        here = (_places(s["things"], s["door"]) == s["at"][:, None]).all(2) & ~s["done"] & works[:, None]
        turn = np.arange(len(STAGES)) == _subgoal(s["mission"], s["done"])[:, None]
        failure = (here & ~turn).any(1)
        s["done"] = s["done"] | (here & turn)
        success = s["done"].all(1)
        return success.astype(np.float32) - failure, success, failure

    def numbers(self):
        return {"mission": self.state["mission"]}

    def expert(self):
        return GridworldTasksExpert()

    def map(self):
        return {"x": (-0.5, WIDTH - 0.5), "y": (-0.5, HEIGHT - 0.5), "path": ("observation.state", 0, 1), "shapes": []}

    @property
    def square(self):
        return (-0.5, -0.5 - (WIDTH - HEIGHT) / 2), WIDTH

    def draw(self, surface, row):
        s = {k: v[row] for k, v in self.state.items()}
        flat = np.array([[1, 0]], np.float32)

        def box(x, y, half, color):
            surface.box(np.array([[x, y]], np.float32), flat, half, color)
        for x in range(WIDTH):
            for y in range(HEIGHT):
                box(x, y, (0.47, 0.47), COLOR_OF_ROLE["obstacle"] if x == WALL and y != s["door"] else (226, 229, 233))
        box(WALL, s["door"], (0.47, 0.47) if not s["done"][DOOR] else (0.06, 0.47), (176, 128, 84))
        (key, ball, pad), done = s["things"], s["done"]
        box(*pad, (0.4, 0.4), COLOR_OF_ROLE["goal"])
        if not done[BALL] or done[PAD]:
            surface.circle(np.array([pad if done[PAD] else ball], np.float32), 0.25, COLOR_OF_ROLE["block"])
        if not done[KEY]:
            box(key[0], key[1], (0.28, 0.08), COLOR_OF_ROLE["waypoint"])
            surface.circle(np.array([key - [0.2, 0]], np.float32), 0.16, COLOR_OF_ROLE["waypoint"])
        surface.circle(np.array([s["at"]], np.float32), 0.2, COLOR_OF_ROLE["agent"])


_TEXTS = np.stack([TaskText(LENGTH).encode(text) for text in MISSIONS])


def parse_missions(task: np.ndarray) -> np.ndarray:
    """Returns the number of each mission from its text.

    Args:
        task: Missions as bytes, (n, LENGTH) uint8.

    Returns:
        (n,) int64.
    """
    same = (np.asarray(task)[:, None] == _TEXTS).all(2)
    if len(unknown_rows := np.flatnonzero(~same.any(1))):
        text = decode_text(np.asarray(task)[unknown_rows[0]])
        raise UserError(f"{text!r} is not a mission", where="gridworld_tasks, column 'observation.task'",
                        hint=f"such as {MISSIONS[0]!r}")
    return same.argmax(1)


def _subgoal(mission: np.ndarray, done: np.ndarray) -> np.ndarray:
    """Returns the first stage of each row's order that is not done, (n,) int64, or the last one if all are."""
    order = np.array(ORDERS)[mission]
    waiting = ~np.take_along_axis(done, order, 1)
    waiting[:, -1] = True
    return order[np.arange(len(order)), waiting.argmax(1)]


def _places(things: np.ndarray, door: np.ndarray) -> np.ndarray:
    """Returns the cell in which each stage is done, (n, stages, 2)."""
    before = np.stack([np.full_like(door, WALL - 1), door], 1)
    return np.stack([things[:, 0], before, things[:, 1], things[:, 2]], 1)


def _best_success(limit: int, slip: float, missions: tuple[int, ...]) -> float:
    """Computes the probability that the best policy succeeds within `limit` steps."""
    from scipy.special import nbdtr

    if not slip and limit >= FARTHEST + len(STAGES):
        return 1.0
    failures = limit - len(STAGES) - np.arange(FARTHEST + 1)  # how many fit into the limit, for each length of the way
    in_time = np.where(failures >= 0, nbdtr(np.maximum(failures, 0), len(STAGES), 1 - slip), 0.0)
    return round(float(np.mean([_walk_distribution(mission) @ in_time for mission in missions])), 6)


@lru_cache
def _walk_distribution(mission: int) -> np.ndarray:
    """Computes the probability of each length of the shortest way, (FARTHEST + 1,), over random starts."""
    order, x, y = ORDERS[mission], *np.divmod(np.arange(WIDTH * HEIGHT), HEIGHT)
    distribution = np.zeros(FARTHEST + 1)
    for door in range(HEIGHT // 2):  # the doors in the other half are mirror images
        to_door = np.abs(x - WALL) + np.abs(y - door)
        apart = np.abs(x[:, None] - x) + np.abs(y[:, None] - y)
        apart = np.where((x[:, None] < WALL) == (x < WALL), apart, to_door[:, None] + to_door).astype(np.int8)
        before = (WALL - 1) * HEIGHT + door
        first_room = np.flatnonzero((x < WALL) & (np.arange(len(x)) != before))
        second_room = np.flatnonzero(x > WALL)
        late = [order.index(thing) > order.index(DOOR) for thing in (BALL, PAD)]
        for sides, probability in _side_probabilities(*late, len(first_room), len(second_room)).items():
            walker, key, ball, pad = things = np.ix_(
                first_room, first_room, *(second_room if side else first_room for side in sides))
            place = {KEY: key, DOOR: np.int64(before), BALL: ball, PAD: pad}
            length = sum(apart[a, b] for a, b in pairwise((walker, *(place[stage] for stage in order))))
            distinct = np.logical_and.reduce(np.broadcast_arrays(
                *(things[i] != things[j] for i in range(4) for j in range(i))))
            count = np.bincount(length[distinct], minlength=len(distribution))
            distribution += probability * count / count.sum() / (HEIGHT // 2)
    return distribution


def _side_probabilities(ball_late: bool, pad_late: bool, n_first: int, n_second: int) -> dict[tuple[bool, bool], float]:
    """Computes the probability that ball and pad lie behind the door.

    `initial_state` gives every cell a number. Walker and key take the cells before the door that have the largest
    numbers. Then ball and pad take the cells with the largest numbers of all cells that are left. So they lie behind
    the door more often than not.
    """
    # The first n cells are in the first room.
    three, four = (np.prod([(n_first - i) / (n_first + n_second - i) for i in range(n)]) for n in (3, 4))
    if not pad_late:
        return {(False, False): 1.0}
    if not ball_late:
        return {(False, False): four, (False, True): 1 - four}
    # Exactly one cell of the second room comes before the third of the first room.
    one = 3 * three * n_second / (n_first + n_second - 3)
    return {(False, False): four, (False, True): three - four, (True, False): one, (True, True): 1 - three - one}


@dataclass(frozen=True)
class GridworldTasksExpert(Actor):
    """Does the stages in the order of the mission, by shortest ways; in each episode it prefers to walk first across or
    first up and down.

    Args:
        noise: Fraction of steps at which it walks anywhere.
    """

    noise: float = 0.05

    def start(self, obs, key):
        across = uniform(key, torch.zeros_like(key), (1,), stream=6)[:, 0] < 0.5
        return {"key": key, "count": torch.zeros_like(key), "across": across}

    def act(self, obs, state):
        own_state = np.rint(obs["observation.state"].numpy()).astype(np.int64)
        environment_state = np.rint(obs["observation.environment_state"].numpy()).astype(np.int64)
        position, done, door = own_state[:, :2], own_state[:, 2:] > 0, environment_state[:, 6]
        subgoal = _subgoal(parse_missions(obs["observation.task"].numpy()), done)
        goal = _places(environment_state[:, :6].reshape(-1, 3, 2), door)[np.arange(len(position)), subgoal]
        best = torch.from_numpy(_way(position, goal, door, state["across"].numpy()))
        drawn = uniform(state["key"], state["count"], (2,), stream=2)
        action = torch.where(drawn[:, 0] < self.noise, (len(MOVES) * drawn[:, 1]).long(), best)
        return action.unsqueeze(1), {**state, "count": state["count"] + 1}


def _way(at, goal, door, across) -> np.ndarray:
    """Returns the next action of a shortest way to `goal`, and `USE` there, (n,) int64."""
    side, other = np.sign(at[:, 0] - WALL), np.sign(goal[:, 0] - WALL)
    through = np.stack([WALL + np.where(side == 0, other, 0), door], 1)  # into the door, and out of it
    at_door = (at[:, 1] == door) & (np.abs(at[:, 0] - WALL) <= 1)
    beside = np.stack([WALL + side, door], 1)
    aim = np.where((side == other)[:, None], goal, np.where(at_door[:, None], through, beside))
    x, y = (aim - at).T
    sideways = np.where(across, x != 0, (x != 0) & (y == 0))
    move = np.where(sideways, np.where(x > 0, 0, 2), np.where(y > 0, 1, 3))
    return np.where((at == goal).all(1), USE, move)
