"""Finite Markov decision processes, solved exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core import UserError
from ..grid import MOVES


@dataclass(frozen=True, eq=False)
class MDP:
    """A finite Markov decision process, whose values can be computed exactly.

    Args:
        transitions: Probability of the next state, (states, actions, states).
        rewards: Reward of each transition, (states, actions, states).
        start: Probability of the first state, (states,).
        final: States in which an episode ends, (states,) bool. Nothing happens after them.
        success: Final states that count as success, (states,) bool. No state counts where all are False.
        places: Where each state is drawn, (states, 2).
        observations: What a policy sees of each state, (states, numbers). None for a one-hot vector. Two states that
            are seen alike make the process partially observed.
    """

    transitions: np.ndarray
    rewards: np.ndarray
    start: np.ndarray
    final: np.ndarray
    success: np.ndarray
    places: np.ndarray
    observations: np.ndarray | None = None

    def __post_init__(self):
        states = len(self.start)
        if self.transitions.ndim != 3 or self.transitions.shape[::2] != (states, states):
            raise UserError(f"transitions have shape {self.transitions.shape}, but there are {states} states",
                            where="MDP", hint="give them as (states, actions, states)")
        for name, shape in (("rewards", self.transitions.shape), ("final", (states,)), ("success", (states,)),
                            ("places", (states, 2)), ("visible_numbers", (states, *self.visible_numbers.shape[1:]))):
            if getattr(self, name).shape != shape:
                raise UserError(f"{name} have shape {getattr(self, name).shape}, but must have shape {shape}",
                                where="MDP", hint="give one entry for each state (and action, and next state)")
        for name, p in (("transitions", self.transitions), ("start", self.start)):
            invalid_rows = np.argwhere((p < 0).any(-1) | ~np.isclose(p.sum(-1), 1, atol=1e-9, rtol=0))
            if len(invalid_rows):
                raise UserError(f"probabilities sum to {p[tuple(invalid_rows[0])].sum():.6g}, or one is below 0",
                                where=f"MDP, {name}{[int(i) for i in invalid_rows[0]] or ''}",
                                hint="let each row be at least 0 everywhere and sum to 1")
        if (self.success & ~self.final).any():
            raise UserError(f"state {int(np.argmax(self.success & ~self.final))} counts as success but is not final",
                            where="MDP", hint="let success end the episode")

    @property
    def visible_numbers(self) -> np.ndarray:
        """Observation of each state, (states, numbers) float32."""
        if self.observations is None:
            return np.eye(self.states, dtype=np.float32)
        return self.observations.astype(np.float32)

    @property
    def states(self) -> int:
        """Number of states."""
        return len(self.start)

    @property
    def actions(self) -> int:
        """Number of actions."""
        return self.transitions.shape[1]

    def action_values(self, horizon: int, discount: float = 1.0, policy: np.ndarray | None = None,
                      rewards: np.ndarray | None = None) -> np.ndarray:
        """Computes the expected discounted return of each action, backward from the end.

        Args:
            horizon: Number of steps.
            discount: Factor per step.
            policy: Probability of each action afterwards, (states, actions), or (horizon, states, actions) with the
                number of steps to go, less 1, first. None for the best actions.
            rewards: Other rewards, (states, actions, states). None for the process's own.

        Returns:
            (horizon, states, actions). Entry [h] is for h + 1 steps to go.
        """
        rewards = self.rewards if rewards is None else rewards
        going = (~self.final)[:, None]
        at_once = going * np.einsum("sat,sat->sa", self.transitions, rewards)
        values = np.zeros((horizon, self.states, self.actions))
        value = np.zeros(self.states)
        for h in range(horizon):
            values[h] = at_once + discount * going * (self.transitions @ value)
            if policy is None:
                value = values[h].max(1)
            else:
                value = ((policy if policy.ndim == 2 else policy[h]) * values[h]).sum(1)
        return values

    def expected_return(self, policy: np.ndarray, horizon: int, discount: float = 1.0) -> float:
        """Computes the expected discounted return of a policy exactly.

        Args:
            policy: Probability of each action, as for `action_values`.
        """
        last = self.action_values(horizon, discount, policy)[-1]
        return float(self.start @ ((policy if policy.ndim == 2 else policy[horizon - 1]) * last).sum(1))

    def best_policy(self, horizon: int, discount: float = 1.0) -> np.ndarray:
        """Computes the policy of largest expected discounted return. All best actions have equal probability.

        Returns:
            Probabilities, (horizon, states, actions). Entry [h] is for h + 1 steps to go.
        """
        values = self.action_values(horizon, discount)
        best = values >= values.max(2, keepdims=True) - 1e-9
        return best / best.sum(2, keepdims=True)

    def best_success(self, horizon: int) -> float:
        """Computes the largest probability of success within `horizon` steps of any policy."""
        reached = np.broadcast_to(self.success.astype(float), self.transitions.shape)
        return float(self.start @ self.action_values(horizon, rewards=reached)[-1].max(1))


def bandit(probabilities: Sequence[float] = (0.9, 0.5, 0.1)) -> MDP:
    """Builds an MDP with one choice: action i wins, with reward 1, with probability `probabilities[i]`."""
    p = np.asarray(probabilities, float)
    if p.ndim != 1 or not len(p) or (p < 0).any() or (p > 1).any():
        raise UserError(f"the probabilities are {probabilities}", where="bandit", hint="give numbers from 0 to 1")
    transitions = np.zeros((3, len(p), 3))
    transitions[0, :, 1], transitions[0, :, 2] = p, 1 - p
    transitions[1, :, 1] = transitions[2, :, 2] = 1
    won, ended = np.array([False, True, False]), np.array([False, True, True])
    return MDP(transitions, np.broadcast_to(won.astype(float), transitions.shape), np.eye(3)[0], ended, won,
               np.array([[0.0, 0.0], [1.0, 1.0], [1.0, -1.0]]))


def tightrope(length: int = 20, recoverable: bool = False, seed: int = 0) -> MDP:
    """Builds an MDP of a rope of `length` steps, where one of two actions is right at each step.

    Each right step has reward 1. A wrong action is a fall.

    Args:
        recoverable: If False, nothing is gained after a fall, so that one error at step t costs the rewards of all
            remaining steps. If True, a fall costs only the reward of its step.
        seed: Decides which action is right at each step.

    References:
        Ross and Bagnell (2010), Efficient Reductions for Imitation Learning.
    """
    _at_least(1, length, "length", "tightrope")
    right = np.random.default_rng(seed).integers(2, size=length)
    end, fallen, states = length, length + 1, length + 2
    transitions, rewards = np.zeros((states, 2, states)), np.zeros((states, 2, states))
    for i in range(length):
        transitions[i, right[i], i + 1] = transitions[i, 1 - right[i], i + 1 if recoverable else fallen] = 1
        rewards[i, right[i]] = 1
    transitions[end, :, end] = transitions[fallen, :, fallen] = 1
    final = np.isin(np.arange(states), (end, fallen))
    places = np.stack([np.arange(states, dtype=float), np.zeros(states)], 1)
    places[fallen] = length / 2, -max(length / 4, 1)
    return MDP(transitions, rewards, np.eye(states)[0], final, np.arange(states) == end, places)


def combination_lock(length: int = 8, actions: int = 3, resets: bool = True, seed: int = 0) -> MDP:
    """Builds an MDP of a lock that opens, with reward 1, after one right action at each of `length` positions.

    Random actions need about ``actions**length`` episodes.

    Args:
        resets: If True, a wrong action leads back to the start. If False, it leads to a dead end.
        seed: Decides which actions are right.

    References:
        Swamy et al. (2023), Inverse Reinforcement Learning without Reinforcement Learning, arXiv:2303.14623. Its tree
        is this process without `resets`.
    """
    _at_least(1, length, "length", "combination-lock")
    _at_least(2, actions, "actions", "combination-lock")
    right = np.random.default_rng(seed).integers(actions, size=length)
    opened, dead, states = length, length + 1, length + 2
    transitions = np.zeros((states, actions, states))
    transitions[:length, :, 0 if resets else dead] = 1
    transitions[np.arange(length), right] = 0
    transitions[np.arange(length), right, np.arange(length) + 1] = 1
    transitions[opened, :, opened] = transitions[dead, :, dead] = 1
    rewards = np.zeros_like(transitions)
    rewards[:length, :, opened] = 1
    places = np.stack([np.arange(states, dtype=float), np.zeros(states)], 1)
    places[dead] = length / 2, -max(length / 4, 1)
    return MDP(transitions, rewards, np.eye(states)[0], np.arange(states) >= length, np.arange(states) == opened,
               places)


OPEN = ("......", "..##..", "......", ".#..#.", "......", "....#G")
FROZEN_LAKE = ("S...", ".H.H", "...H", "H..G")


def slippery_grid(layout: Sequence[str] = OPEN, slip: float = 0.1) -> MDP:
    """Builds an MDP of a walk over a slippery grid to a goal. Actions: 0 right, 1 up, 2 left, 3 down.

    `FROZEN_LAKE` with slip 2/3 is Gymnasium's slippery FrozenLake-v1.

    Args:
        layout: Rows of the grid, top first. `#` is a wall. The goal G has reward 1 and ends the episode. A hole H ends
            it too. Episodes start at S, or in any free cell (`.`) if no cell is S.
        slip: Probability that a step goes to one of the two sides instead.
    """
    rows, cell = _cells(layout, "SHG.#", "slippery-grid")
    transitions = _walk(cell, slip)
    kinds = np.array([rows[len(rows) - 1 - y][x] for x, y in cell])
    goal, hole = kinds == "G", kinds == "H"
    if not goal.any():
        raise UserError("no cell is G", where="slippery-grid, layout", hint="mark the goal with G")
    starts = kinds == "S" if (kinds == "S").any() else kinds == "."
    final = goal | hole
    transitions[final] = np.eye(len(cell))[final][:, None]
    rewards = np.broadcast_to(goal.astype(float), transitions.shape) * ~final[:, None, None]
    return MDP(transitions, rewards, starts / starts.sum(), final, goal, cell.astype(float))


def object_world(size: int = 8, colors: int = 2, objects: int = 6, slip: float = 0.3, seed: int = 0) -> MDP:
    """Builds an MDP of a grid with objects of several colors, of which a policy observes distances.

    The reward of a cell is 1 if an object of the first color is within 3 cells and one of the second color within 2
    cells. It is -1 if only an object of the first color is that near, and 0 elsewhere. Episodes do not end, so that
    there is no success, only a return.

    Args:
        colors: Number of colors, at least 2.
        objects: Number of objects, at least one per color.
        slip: Probability that a step goes to one of the two sides instead.
        seed: Decides places and colors of the objects.

    References:
        Levine, Popovic and Koltun (2011), Nonlinear Inverse Reinforcement Learning with Gaussian Processes.
    """
    _at_least(2, colors, "colors", "object-world")
    _at_least(colors, objects, "objects", "object-world")
    _, cell = _cells(("." * size,) * size, ".", "object-world")
    rng = np.random.default_rng(seed)
    at = cell[rng.choice(len(cell), objects, replace=False)]
    color = np.concatenate([np.arange(colors), rng.integers(colors, size=objects - colors)])
    apart = np.linalg.norm(cell[:, None] - at, axis=2)
    nearest = np.stack([apart[:, color == c].min(1) for c in range(colors)], 1)
    reward = np.where(nearest[:, 0] <= 3, np.where(nearest[:, 1] <= 2, 1.0, -1.0), 0.0)
    transitions, states = _walk(cell, slip), len(cell)
    none = np.zeros(states, bool)
    return MDP(transitions, np.broadcast_to(reward[:, None, None], transitions.shape), np.full(states, 1 / states),
               none, none, cell.astype(float), nearest.astype(np.float32))


def hidden_grid(layout: Sequence[str] = OPEN, slip: float = 0.0) -> MDP:
    """Builds `slippery_grid` with partial observation: a policy sees which of the four neighboring cells are walls.

    Many cells look alike, so that a policy needs its history.

    Args:
        layout: Rows of the grid, as for `slippery_grid`.
        slip: Probability that a step goes to one of the two sides instead.
    """
    whole = slippery_grid(layout, slip)
    free = {tuple(c) for c in whole.places.astype(int)}
    walls = np.array([[tuple(c + move) not in free for move in MOVES] for c in whole.places.astype(int)])
    return MDP(whole.transitions, whole.rewards, whole.start, whole.final, whole.success, whole.places,
               walls.astype(np.float32))


def _at_least(least, value, name, where):
    if value < least:
        raise UserError(f"{name} is {value}, but must be at least {least}", where=where,
                        hint=f"such as {name}={least}")


def _cells(layout, valid_cells, where) -> tuple[list[str], np.ndarray]:
    """Parses a layout: its rows, top first, and the cells (n, 2) that are not walls, as x and y with y up."""
    rows = list(layout)
    if not rows or len({len(r) for r in rows}) != 1 or not rows[0]:
        raise UserError("its rows differ in length, or there are none", where=f"{where}, layout",
                        hint="give strings of equal length")
    if strange := set("".join(rows)) - set(valid_cells):
        raise UserError(f"it contains {sorted(strange)[0]!r}", where=f"{where}, layout", hint=f"use only {valid_cells}")
    return rows, np.array([(x, y) for x in range(len(rows[0])) for y in range(len(rows)) if rows[-1 - y][x] != "#"])


def _walk(cell, slip):
    """Returns the transitions of steps by MOVES over cells (n, 2), where a step into a wall stays."""
    if not 0 <= slip <= 1:
        raise UserError(f"slip is {slip}", where="grid", hint="give a probability, from 0 to 1")
    index = {tuple(c): i for i, c in enumerate(cell)}
    lands = np.array([[index.get(tuple(c + move), i) for move in MOVES] for i, c in enumerate(cell)])
    transitions = np.zeros((len(cell), 4, len(cell)))
    every = np.arange(len(cell))
    for a in range(4):
        for turned, p in ((0, 1 - slip), (1, slip / 2), (3, slip / 2)):
            transitions[every, a, lands[:, (a + turned) % 4]] += p
    return transitions
