"""What to collect next, with a budget."""

from __future__ import annotations

import numpy as np

from ...core import UserError
from ...data.episode import Dataset
from .table import Table


def choose(candidates: np.ndarray | Dataset, budget: float, *, have: np.ndarray | Dataset | None = None,
           cost: np.ndarray | None = None, worth: np.ndarray | None = None) -> list[int]:
    """Numbers of the candidates to collect, in order, whose costs together are at most `budget`.

    Each time that one is taken whose distance from everything that is there or was chosen, times its worth, is the
    largest for its cost (1 each, without): the farthest first, so that nothing stays far from what is known (Gonzalez
    1985; as active learning: Sener and Savarese 2018, A Core-Set Approach). `worth` may be how unsure a policy is
    there, or how often it fails.

    candidates, have: points (N, D) in the same units, or data sets, of which the first states are compared in units of
    the standard deviation of both.
    """
    if isinstance(candidates, Dataset):
        if have is not None and not isinstance(have, Dataset):
            raise UserError("expected both to be data sets or both points, found one of each", where="choose",
                            do="give `have` in the form that the candidates are in")
        table = Table.of(candidates if have is None else candidates + have)
        starts = table.state[np.cumsum(table.length) - table.length]
        candidates, have = starts[: len(candidates)], starts[len(candidates):]
    points = np.asarray(candidates, float)
    price = np.ones(len(points)) if cost is None else np.asarray(cost, float)
    value = np.ones(len(points)) if worth is None else np.asarray(worth, float)
    if price.shape != (len(points),) or value.shape != price.shape or not (price > 0).all():
        raise UserError(f"expected a cost above 0 and a worth for each of {len(points)} candidates, found costs of "
                        f"shape {price.shape}, the least {price.min(initial=np.inf):g}, and worths of shape "
                        f"{value.shape}", where="choose",
                        do="give one number of each for every candidate, or none for all alike")
    known = np.zeros((0, points.shape[1])) if have is None else np.asarray(have, float)
    # With nothing there yet, all are equally far, and the worth decides.
    away = np.min([np.linalg.norm(points - k, axis=1) for k in known], 0) if len(known) else np.ones(len(points))
    first, left, chosen = not len(known), float(budget), []
    while True:
        able = (price <= left + 1e-12) & ~np.isin(np.arange(len(points)), chosen)
        if not able.any():
            return chosen
        best = int(np.argmax(np.where(able, away * value / price, -np.inf)))
        chosen.append(best)
        left -= price[best]
        step = np.linalg.norm(points - points[best], axis=1)
        away, first = (step if first else np.minimum(away, step)), False
