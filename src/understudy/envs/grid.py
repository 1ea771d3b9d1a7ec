"""Shortest ways over a grid of cells, for many grids at once."""

from __future__ import annotations

import numpy as np

MOVES = np.array([[1, 0], [0, 1], [-1, 0], [0, -1]])  # right, up, left, down


def cost_to_go(cost: np.ndarray, goal: np.ndarray) -> np.ndarray:
    """(rows, W, H): what the cheapest way from each cell to `goal` (rows, 2) costs; inf where none leads there.

    cost: (rows, 4, W, H), of leaving a cell by each of MOVES; inf where that is not possible.
    """
    rows = np.arange(len(goal))
    left = np.full((len(goal), *cost.shape[2:]), np.inf, np.float32)
    left[rows, goal[:, 0], goal[:, 1]] = 0
    while True:
        better = np.minimum(left, cost_by_move(cost, left).min(1))
        if (better == left).all():
            return left
        left = better


def cost_by_move(cost: np.ndarray, left: np.ndarray) -> np.ndarray:
    """(rows, 4, W, H): what is to go if a cell is left by each of MOVES."""
    wide = np.pad(left, ((0, 0), (1, 1), (1, 1)), constant_values=np.inf)
    w, h = left.shape[1:]
    return cost + np.stack([wide[:, 1 + i:1 + i + w, 1 + j:1 + j + h] for i, j in MOVES], 1)
