"""A toy grid with things in it, and a mission in words that says to which of them to go."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import Feature, UserError, uniform
from ...data.tasks import decode_text
from ...data.text_columns import TaskText
from ...execute.actor import Actor
from ..grid import MOVES, cost_by_move, cost_to_go
from ..raster import COLOR_OF_ROLE, Drawable
from ..toy import Toy, named_vector

SIZE, THINGS = 6, 4  # cells along each side; how many things lie there
COLORS = {"red": (214, 84, 72), "green": (104, 174, 110), "blue": (88, 120, 190), "yellow": (232, 190, 80)}
KINDS = ("ball", "box", "key")
PHRASES = ("go to the {}", "find the {}", "the {}, please")
LENGTH = 32  # bytes of a mission


class Words(Toy, Drawable):
    """Toy in which a point walks on a grid to the thing that a mission names, and must step on no other thing.

    The grid has 6 x 6 cells and is observed as a whole. Four different things lie in it, never at the edge, so that
    each of them can be reached. The mission is worded in one of three ways.

    observation.task (32): the mission as UTF-8 bytes padded with 0, as `TaskText` encodes tasks. observation.state (2):
    the cell, counted from 0. observation.environment_state (36): cell, color and kind (one-hot) of each thing. action
    (1): 0 right, 1 up, 2 left, 3 down. A step off the grid stays. Stepping on the named thing ends the episode with
    reward 1, on another thing with -1. info["mission"]: number of the named thing, color by kind.

    Best possible success: 1.0. `WordsExpert(noise=0)` attains it.

    References:
        Chevalier-Boisvert et al. (2019), BabyAI: A Platform to Study the Sample Efficiency of Grounded Language
        Learning, arXiv:1810.08272.
    """

    low, high = 0.0, 3.0
    state_columns = ("observation.state", "observation.environment_state", "observation.task")

    def __init__(self, rows: int = 1, limit: int = 30):
        each = ("x", "y", *COLORS, *KINDS)
        self.features = {
            "observation.task": Feature("uint8", (LENGTH,), "text"), "observation.state": named_vector("x", "y"),
            "observation.environment_state": named_vector(*(f"{i}.{name}" for i in range(THINGS) for name in each)),
            "action": Feature("int64", (1,), "discrete", num_classes=(4,))}
        self.metadata = {"env": "words", "version": 1, "fps": 5, "limit": limit, "optimum": 1.0,
                         "success": "on the thing that the mission names"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        inner = np.array([(i, j) for i in range(1, SIZE - 1) for j in range(1, SIZE - 1)])
        lots = uniform(key, torch.zeros_like(key), (len(inner) + len(COLORS) * len(KINDS),)).numpy()
        things = inner[lots[:, :len(inner)].argsort(1)[:, :THINGS]]
        looks = lots[:, len(inner):].argsort(1)[:, :THINGS]
        free = uniform(key, torch.zeros_like(key), (SIZE**2 + 2,), stream=1).numpy()
        taken = (things * [SIZE, 1]).sum(2)
        np.put_along_axis(free, taken, 2.0, 1)
        at = np.stack(np.divmod(free[:, :SIZE**2].argmin(1), SIZE), 1)
        aim, saying = (free[:, -2:] * [THINGS, len(PHRASES)]).astype(np.int64).T
        meant = looks[np.arange(len(key)), aim]
        return {"at": at, "things": things, "looks": looks, "meant": meant, "said": _ENCODED_MISSIONS[meant, saying]}

    def observe(self):
        s = self.state
        color, kind = (s["looks"][..., None] // len(KINDS) == range(len(COLORS)),
                       s["looks"][..., None] % len(KINDS) == range(len(KINDS)))
        things = np.concatenate([s["things"], color, kind], 2).reshape(self.rows, -1)
        return {"observation.task": s["said"], "observation.state": s["at"].astype(np.float32),
                "observation.environment_state": things.astype(np.float32)}

    def state_from_columns(self, steps):
        things = steps["observation.environment_state"].reshape(-1, THINGS, 2 + len(COLORS) + len(KINDS))
        color, kind = things[..., 2:2 + len(COLORS)].argmax(2), things[..., 2 + len(COLORS):].argmax(2)
        return {"at": np.rint(steps["observation.state"]).astype(np.int64), "looks": len(KINDS) * color + kind,
                "things": np.rint(things[..., :2]).astype(np.int64), "said": steps["observation.task"],
                "meant": parse_missions(steps["observation.task"])}

    def advance(self, action):
        s = self.state
        s["at"] = np.clip(s["at"] + MOVES[np.rint(action[:, 0]).astype(np.int64)], 0, SIZE - 1)
        on = (s["things"] == s["at"][:, None]).all(2)
        success = (on & (s["looks"] == s["meant"][:, None])).any(1)
        failure = on.any(1) & ~success
        return success.astype(np.float32) - failure, success, failure

    def numbers(self):
        return {"mission": self.state["meant"]}

    def expert(self):
        return WordsExpert()

    def map(self):
        return {"x": (-0.5, SIZE - 0.5), "y": (-0.5, SIZE - 0.5), "path": ("observation.state", 0, 1), "shapes": []}

    @property
    def square(self):
        return (-0.5, -0.5), SIZE

    def draw(self, surface, row):
        s = {k: v[row] for k, v in self.state.items()}
        flat = np.array([[1, 0]], np.float32)
        for line, middle in ((n - 0.5, SIZE / 2 - 0.5) for n in range(1, SIZE)):
            surface.box(np.array([[line, middle]], np.float32), flat, (0.01, SIZE / 2), COLOR_OF_ROLE["start"])
            surface.box(np.array([[middle, line]], np.float32), flat, (SIZE / 2, 0.01), COLOR_OF_ROLE["start"])
        for place, look in zip(s["things"], s["looks"], strict=True):
            at, color = np.array([place], np.float32), tuple(COLORS.values())[look // len(KINDS)]
            if (kind := KINDS[look % len(KINDS)]) == "ball":
                surface.circle(at, 0.3, color)
            elif kind == "box":
                surface.box(at, flat, (0.28, 0.28), color)
            else:
                surface.circle(at - [0, -0.16], 0.15, color)
                surface.box(at - [0, 0.12], flat, (0.05, 0.2), color)
                surface.box(at - [-0.08, 0.24], flat, (0.08, 0.05), color)
        surface.circle(np.array([s["at"]], np.float32), 0.16, COLOR_OF_ROLE["obstacle"])


def _thing_name(look: int) -> str:
    return f"{tuple(COLORS)[look // len(KINDS)]} {KINDS[look % len(KINDS)]}"


_ENCODED_MISSIONS = np.stack([[TaskText(LENGTH).encode(text.format(_thing_name(m))) for text in PHRASES]
                              for m in range(len(COLORS) * len(KINDS))])


def parse_missions(task: np.ndarray) -> np.ndarray:
    """Returns the number of the thing that each mission names, (n,) int64.

    Args:
        task: Missions as UTF-8 bytes, (n, LENGTH) uint8.
    """
    numbers = []
    for text in map(decode_text, task):
        named_things = [m for m in range(len(COLORS) * len(KINDS)) if _thing_name(m) in text]
        if len(named_things) != 1:
            raise UserError(f"the mission must name one thing, but is {text!r}", where="words",
                            hint=f"name a color ({', '.join(COLORS)}) and a kind ({', '.join(KINDS)})")
        numbers += named_things
    return np.array(numbers, np.int64)


@dataclass(frozen=True)
class WordsExpert(Actor):
    """Reads the mission and walks a shortest way around the other things. Of equally good steps it prefers one by its
    key.

    Args:
        noise: Fraction of steps in a random direction, unless they lead to another thing.
    """

    noise: float = 0.05

    def start(self, obs, key):
        rows = np.arange(len(key))
        things = obs["observation.environment_state"].numpy().reshape(len(key), THINGS, -1)
        place, looks = np.rint(things[..., :2]).astype(np.int64), things[..., 2:]
        number = len(KINDS) * looks[..., :len(COLORS)].argmax(2) + looks[..., len(COLORS):].argmax(2)
        aim = (number == parse_missions(obs["observation.task"].numpy())[:, None]).argmax(1)
        goal, free = place[rows, aim], np.full((len(key), SIZE, SIZE), 0.0, np.float32)
        for i in range(THINGS):
            free[rows, place[:, i, 0], place[:, i, 1]] = np.where(i == aim, 0, np.inf)
        cost = cost_by_move(np.ones((len(key), 4, SIZE, SIZE), np.float32), free)
        liked = uniform(key, torch.zeros_like(key), cost.shape[1:], stream=6).numpy()
        remaining_cost = cost_by_move(cost, cost_to_go(cost, goal)) + 0.5 * liked
        return {"key": key, "count": torch.zeros_like(key), "best": torch.from_numpy(remaining_cost.argmin(1)),
                "may": torch.from_numpy(np.isfinite(cost))}

    def act(self, obs, state):
        cell = obs["observation.state"].round().clamp(0, SIZE - 1)  # what is sensed may be off the grid
        (i, j), rows = cell.long().T, torch.arange(len(state["key"]))
        drawn = uniform(state["key"], state["count"], (2,), stream=2)
        anyhow = (4 * drawn[:, 1]).long()
        stray = (drawn[:, 0] < self.noise) & state["may"][rows, anyhow, i, j]
        action = torch.where(stray, anyhow, state["best"][rows, i, j])
        return action.unsqueeze(1), {**state, "count": state["count"] + 1}
