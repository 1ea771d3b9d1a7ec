"""Which observed numbers are independent of the action, so that they cannot be a cause of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...core import UserError
from ...data.episode import Dataset
from .step_table import standardized

_GROUPS = 20  # number of groups of episodes, for the standard error
_Z = 1.645  # one-sided 95 %


@dataclass(frozen=True)
class ActionDependence:
    """The result for one observation component: how much it and the action depend on each other at the first steps.

    Attributes:
        component: Its number. Of a group of components, the first of them.
        estimate: Squared distance correlation over episodes at each step, (n_steps,), without bias: about 0 for
            independent numbers and 1 for a linear function.
        upper: Upper 95 % confidence limit of each, (n_steps,).
        floor: Below this, two numbers count as independent.
    """

    column: str
    component: int
    estimate: np.ndarray
    upper: np.ndarray
    floor: float

    @property
    def may_be_cause(self) -> bool:
        """Whether this component may be a cause of the action, because no test found it independent."""
        return bool((self.upper >= self.floor).all())


def action_dependence(data: Dataset, column: str = "observation.state", n_steps: int = 4, floor: float = 0.1,
                      action: str = "action", groups: Sequence[Sequence[int]] | None = None) -> list[ActionDependence]:
    """Tests which components of an observation can be causes of the action.

    A cause of the action depends on it at every step. A component that is independent of the action at one step is
    therefore none, and a policy that does not read it cannot rely on it by mistake.

    Demonstrations that start from randomized states make such components visible: a lamp that shows the last action,
    for example, must show something random at the first step. The test errs on the safe side. With few episodes nothing
    is found to be independent.

    It assumes that each component means one thing, that episodes are independent, and that a cause already acts in
    the first steps: what matters only later (a wall) looks independent there.

    Args:
        data: Demonstrations from randomized starts.
        column: The observation, a vector.
        n_steps: Number of first steps to test. Episodes that are shorter are left out.
        floor: A component is independent at a step if the upper confidence limit of the dependence is below this.
        action: The action, a vector.
        groups: Components that together mean one thing, such as the pixels of a camera. They are tested together, and
            have one dependence. It is smaller than the dependence of a single number, so use a lower `floor`. None
            tests each component alone.

    References:
        Pfrommer et al. (2023), Initial State Interventions for Deconfounded Imitation Learning, arXiv:2307.15980,
        for the idea. The test is our own.
        Székely and Rizzo (2013), The distance correlation t-test of independence in high dimension.

    Example:
        >>> found = action_dependence(data)
        >>> keep = tuple(f.component for f in found if f.may_be_cause)
        >>> method = replace(method, transforms=(SelectComponents("observation.state", keep),))
    """
    features, place = data.features(), str(data.metadata.get("path", "data set"))
    for name in (column, action):
        if name not in features or features[name].kind != "vector" or len(features[name].shape) != 1:
            raise UserError(f"there is no vector column {name!r} among {', '.join(sorted(features))}", where=place,
                            hint="name the columns (column=..., action=...)")
    if n_steps < 1:
        raise UserError(f"n_steps is {n_steps}, but a test needs at least one step", where="n_steps",
                        hint="use 1 or more, such as 4")
    long = [i for i, length in enumerate(data.lengths) if length >= n_steps]
    if len(long) < 2 * _GROUPS:
        raise UserError(f"{len(long)} episodes have {n_steps} steps, but a test needs {2 * _GROUPS}", where=place,
                        hint="record more episodes, or test fewer steps (n_steps=...)")
    read = [data[i].steps for i in long]
    observations = np.stack([np.asarray(steps[column][:n_steps], np.float64) for steps in read], 1)  # (n_steps, E, S)
    done = np.stack([np.asarray(steps[action][:n_steps], np.float64) for steps in read], 1)  # (n_steps, E, A)
    if not (np.isfinite(observations).all() and np.isfinite(done).all()):
        raise UserError("there are values that are not finite", where=place, hint="understudy audit names the steps")
    acted = [_centered_distances(standardized(a)) for a in done]
    dependences = []
    for group in groups or [[i] for i in range(observations.shape[2])]:
        limits = [_dependence(_centered_distances(standardized(s[:, list(group)])), a)
                  for s, a in zip(observations, acted, strict=True)]
        estimate, upper = np.array(limits).T
        dependences.append(ActionDependence(column, group[0], estimate, upper, floor))
    return dependences


def _centered_distances(x: np.ndarray) -> np.ndarray:
    """Returns the U-centered distances of all pairs of points, (N, D) -> (N, N)."""
    n = len(x)
    d = np.linalg.norm(x[:, None] - x[None], axis=-1)
    rows = d.sum(0) / (n - 2)
    centered = d - rows - rows[:, None] + d.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centered, 0.0)
    return centered


def _dependence(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    """Returns the squared distance correlation of two sets of points, and its upper limit (jackknife over groups)."""
    if not a.any() or not b.any():
        return 0.0, 1.0
    group = np.arange(len(a)) % _GROUPS

    def correlation(kept: np.ndarray) -> float:
        x, y = a[np.ix_(kept, kept)], b[np.ix_(kept, kept)]
        scale = np.sqrt((x * x).sum() * (y * y).sum())
        return float((x * y).sum() / scale) if scale > 0 else 0.0
    estimate = correlation(np.arange(len(a)))
    without = np.array([correlation(np.flatnonzero(group != g)) for g in range(_GROUPS)])
    error = np.sqrt((_GROUPS - 1) / _GROUPS * np.square(without - without.mean()).sum())
    return estimate, estimate + _Z * float(error)
