"""A finite Markov decision process as an environment: learners can be compared with exact values."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ...core import Feature, UserError, uniform, unknown_name
from ...execute.actor import CountingActor
from ..toy import MapToy, named_vector
from .mdp import MDP, bandit, combination_lock, hidden_grid, object_world, slippery_grid, tightrope

TASKS = {"slippery-grid": slippery_grid, "bandit": bandit, "tightrope": tightrope,
         "combination-lock": combination_lock, "object-world": object_world, "hidden-grid": hidden_grid}


class Tabular(MapToy):
    """Environment of a finite Markov decision process: one of `TASKS`, or your own `MDP`.

    Its exact values are `env.mdp`'s.

    observation.state: what is seen of the state, by default a one-hot vector. simulator.state (5): the number of the
    state, the place where it is drawn, and two numbers that decide chance: a random number of the episode, and the
    step. action (1): the number of the action.

    Best possible success: computed (`metadata["optimum"]`, rounded to six digits). `TabularExpert(noise=0)` has the
    largest expected discounted return within the limit.

    Args:
        task: A name of `TASKS`, or the process itself.
        discount: Factor per step of the return that the expert maximizes.
        **options: Options of the task, such as `slip=0.2`. See the functions of `understudy.envs.toys.mdp`.
    """

    state_columns = ("simulator.state",)

    def __init__(self, rows: int = 1, limit: int = 60, task: str | MDP = "slippery-grid", discount: float = 0.99,
                 **options):
        if isinstance(task, str) and task not in TASKS:
            raise unknown_name("task", task, TASKS, "tabular")
        name = task if isinstance(task, str) else "own"
        self.mdp = TASKS[task](**options) if isinstance(task, str) else task
        self.discount = discount
        self.features = {
            "observation.state": named_vector(*(f"seen.{i}" for i in range(self.mdp.visible_numbers.shape[1]))),
            "simulator.state": named_vector("number", "x", "y", "chance", "clock"),
            "action": Feature("int64", (1,), "discrete", num_classes=(self.mdp.actions,))}
        ends = self.mdp.success.any()
        self.metadata = {"env": f"tabular:{name}", "version": 1, "fps": 5, "limit": limit,
                         "optimum": round(self.mdp.best_success(limit), 6) if ends else None,
                         "success": "in a state that counts as success" if ends else None}
        self.low, self.high = 0.0, self.mdp.actions - 1.0
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (2,)).numpy()
        return {"number": _draw(self.mdp.start[None], drawn[:, :1]), "chance": np.floor(2**23 * drawn[:, 1]),
                "clock": np.zeros(len(key))}

    def observe(self):
        s, number = self.state, self.state["number"]
        simulator_state = np.concatenate(
            [number[:, None], self.mdp.places[number], s["chance"][:, None], s["clock"][:, None]], 1)
        return {"observation.state": self.mdp.visible_numbers[number],
                "simulator.state": simulator_state.astype(np.float32)}

    def state_from_columns(self, steps):
        number = np.rint(steps["simulator.state"][:, 0]).astype(np.int64)
        if len(invalid_numbers := number[(number < 0) | (number >= self.mdp.states)]):
            raise UserError(f"there is no state {invalid_numbers[0]}, only 0 to {self.mdp.states - 1}",
                            where=f"{self.metadata['env']}, column 'simulator.state'",
                            hint="restore from steps recorded in this environment")
        chance, clock = steps["simulator.state"][:, 3:].astype(np.float64).T
        return {"number": number, "chance": chance, "clock": clock}

    def advance(self, action):
        mdp, before = self.mdp, self.state["number"]
        chosen = np.rint(action[:, 0]).astype(np.int64)
        self.state["clock"] = self.state["clock"] + 1
        chance, clock = (torch.from_numpy(self.state[k].astype(np.int64)) for k in ("chance", "clock"))
        drawn = uniform(chance, clock, (1,)).numpy()
        after = _draw(mdp.transitions[before, chosen], drawn)
        after = np.where(mdp.final[before], before, after)
        reward = np.where(mdp.final[before], 0, mdp.rewards[before, chosen, after])
        self.state["number"] = after
        return reward, mdp.success[after], mdp.final[after] & ~mdp.success[after]

    def expert(self):
        best = self.mdp.best_policy(self.limit, self.discount) > 0
        return TabularExpert(torch.from_numpy(best))

    def map(self):
        (x_min, y_min), (x_max, y_max) = self.mdp.places.min(0) - 0.6, self.mdp.places.max(0) + 0.6
        roles = np.select([self.mdp.success, self.mdp.final], ["goal", "obstacle"], "start")
        return {"x": (float(x_min), float(x_max)), "y": (float(y_min), float(y_max)), "path": ("simulator.state", 1, 2),
                "shapes": [{"kind": "box", "at": tuple(map(float, at)), "half": (0.45, 0.45), "role": str(role)}
                           for at, role in zip(self.mdp.places, roles, strict=True)]}

    def state_shapes(self, row):
        at = self.mdp.places[self.state["number"][row]]
        return [{"kind": "circle", "at": tuple(at), "radius": 0.3, "role": "agent"}]


def _draw(p: np.ndarray, drawn: np.ndarray) -> np.ndarray:
    """Draws next states from cumulative probabilities p (n, states) by numbers (n, 1), (n,) int64."""
    total = p.cumsum(1)
    total[:, -1] = np.inf
    outcome = (total <= drawn).sum(1)
    return np.where(np.take_along_axis(p, outcome[:, None], 1)[:, 0] > 0, outcome, p.argmax(1))


@dataclass(frozen=True, eq=False)
class TabularExpert(CountingActor):
    """Expert of `Tabular`: takes an action of the largest expected return, chosen at random if several are.

    Args:
        best: Which actions are best, (steps to go less 1, states, actions) bool.
        noise: Fraction of steps at which it takes any action instead.
    """

    best: Tensor
    noise: float = 0.05

    def act(self, obs, state):
        mdp_state = obs["simulator.state"][:, 0].round().long()
        drawn = uniform(state["key"], state["count"], (1 + self.best.shape[2],), stream=2)
        to_go = (len(self.best) - 1 - state["count"]).clamp(min=0)
        scores = drawn[:, 1:] * (self.best[to_go, mdp_state] | (drawn[:, :1] < self.noise))
        return scores.argmax(1, keepdim=True), {**state, "count": state["count"] + 1}
