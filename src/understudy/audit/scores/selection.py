"""Selects which demonstrations to collect next, within a budget."""

from __future__ import annotations

import numpy as np

from ...core import UserError
from ...data.episode import Dataset
from .step_table import StepTable


def select_within_budget(
    candidates: np.ndarray | Dataset,
    budget: float,
    *,
    existing: np.ndarray | Dataset | None = None,
    cost: np.ndarray | None = None,
    value_of: np.ndarray | None = None,
) -> list[int]:
    """Selects which of several demonstrations to collect next, within a budget.

    Each time, the candidate with the largest distance from everything existing or selected, times its value and divided
    by its cost, is taken. This is the farthest-first rule, after which nothing is far from the known data.

    Args:
        candidates: Points (N, D), or a data set. Of a data set, the first states are the points, in standard
            deviations.
        budget: Largest total cost.
        existing: Existing points in the same units, or a data set.
        cost: Cost of each candidate, (N,). The default is 1.
        value_of: Value of each candidate, such as the uncertainty or the failure rate of a policy there, (N,). The
            default is 1.

    Returns:
        Indices of the candidates to collect, in order of their selection, with a total cost of at most `budget`.

    References:
        Gonzalez (1985), Clustering to Minimize the Maximum Intercluster Distance. Sener and Savarese (2018), Active
        Learning for Convolutional Neural Networks: A Core-Set Approach.
    """
    if isinstance(candidates, Dataset):
        if existing is not None and not isinstance(existing, Dataset):
            raise UserError("both must be data sets or both points", where="select_within_budget",
                            hint="give `existing` in the form that the candidates are in")
        table = StepTable.from_data(candidates if existing is None else candidates + existing)
        starts = table.state[np.cumsum(table.length) - table.length]
        candidates, existing = starts[: len(candidates)], starts[len(candidates):]
    points = np.asarray(candidates, float)
    price = np.ones(len(points)) if cost is None else np.asarray(cost, float)
    value = np.ones(len(points)) if value_of is None else np.asarray(value_of, float)
    if price.shape != (len(points),) or value.shape != price.shape or not (price > 0).all():
        raise UserError(f"each of the {len(points)} candidates needs a cost above 0 and a value, but costs have shape "
                        f"{price.shape} and are at least {price.min(initial=np.inf):g}, and values have shape "
                        f"{value.shape}", where="select_within_budget",
                        hint="give one number of each for every candidate, or none if all are alike")
    existing_points = np.zeros((0, points.shape[1])) if existing is None else np.asarray(existing, float)
    # Without existing data, all are equally far, and the value decides.
    away = np.ones(len(points))
    if len(existing_points):
        away = np.min([np.linalg.norm(points - k, axis=1) for k in existing_points], 0)
    first, remaining_budget, chosen = not len(existing_points), float(budget), []
    while True:
        able = (price <= remaining_budget + 1e-12) & ~np.isin(np.arange(len(points)), chosen)
        if not able.any():
            return chosen
        best = int(np.argmax(np.where(able, away * value / price, -np.inf)))
        chosen.append(best)
        remaining_budget -= price[best]
        step = np.linalg.norm(points - points[best], axis=1)
        away, first = (step if first else np.minimum(away, step)), False
