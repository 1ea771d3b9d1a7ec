"""Computes shortest ways over a grid of cells, for many grids at once."""

from __future__ import annotations

import numpy as np

MOVES = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # right, up, left, down


def cost_to_go(cost: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """Computes the cost of the cheapest way from each cell to a goal.

    Args:
        cost: Cost of leaving a cell by each of `MOVES`, (rows, 4, W, H). Infinite if the move is not possible.
        goal: Cell of the goal, (rows, 2).

    Returns:
        Costs, (rows, W, H). Infinite if no way leads to the goal.
    """
    rows = np.arange(len(goal))
    costs = np.full((len(goal), *cost.shape[2:]), np.inf, np.float32)
    costs[rows, goal[:, 0], goal[:, 1]] = 0
    while True:
        better = np.minimum(costs, cost_by_move(cost, costs).min(1))
        if (better == costs).all():
            return costs
        costs = better


def cost_by_move(cost: np.ndarray, cost_to_goal: np.ndarray) -> np.ndarray:
    """Computes the cost to the goal if a cell is left by each of `MOVES`.

    Args:
        cost: Cost of each move, (rows, 4, W, H).
        cost_to_goal: Cost to the goal from each cell, (rows, W, H).

    Returns:
        Costs, (rows, 4, W, H).
    """
    wide = np.pad(cost_to_goal, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
    w, h = cost_to_goal.shape[1:]
    return cost + np.stack([wide[:, 1 + i:1 + i + w, 1 + j:1 + j + h] for i, j in MOVES], 1)
