"""A linear one-step model of how actions change the state, with which audits and diagnoses judge actions.

The change of the state in a step, s' - s, is predicted from s and the action by least squares over all episodes, in one
pass. Most robots are not linear, but the error of the model is similar everywhere in clean data.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from ..core import Schema, role
from ..data.episode import Dataset, concat_columns

Transitions = tuple[np.ndarray, np.ndarray]  # states (n + 1, D) and actions (n, A) of an episode

LAGS = range(-21, 22)  # steps from an action to the motion that it explains; negative: the motion comes first
WIDEST = 160  # largest number of components of states and actions for which a model is fitted
STEPS = 200_000  # number of steps for fitting a model, in evenly spaced episodes
LAGGED_STEPS = 50_000  # number of steps for fitting models of many lags
CLEAR = 0.5  # factor by which another lag has to reduce what is unexplained
EXACT = 0.01  # fraction of the change left open by the state: a smaller error counts as none
_EPISODES_PER_SUM = 100  # episodes in one sum of squares
_FEWEST = 10  # smallest number of steps per fitted parameter
_SHARE = 0.2  # fraction of the steps; a larger lag leaves only the ends of episodes


def columns_of_kind(features: Schema, kind: str) -> list[str]:
    """Returns the numeric columns with a role (such as observation or action), without flags."""
    return [n for n, f in features.items() if role(n) == kind and f.kind == "vector" and f.dtype != "bool" and f.size]


def transitions(data: Dataset, states: Sequence[str], actions: Sequence[str], fewest: int = 1, most: int | None = None
                ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (episode, states (n + 1, D), actions (n, A)) for the n steps with a known next state.

    Args:
        fewest: Episodes with fewer steps are left out.
        most: About the largest number of steps, in evenly spaced episodes. None for all.
    """
    if not states or not actions:
        return
    each = 1 if most is None else max(1, -(-int(data.lengths.sum()) // most))
    for e in range(0, len(data), each):
        episode = data[e]
        s, a = concat_columns(episode, states), concat_columns(episode, actions)
        n = min(len(s) - 1, len(a), len(episode))
        if n >= fewest and np.isfinite(s[:n + 1]).all() and np.isfinite(a[:n]).all():
            yield e, s[:n + 1], a[:n]


def state_change(s: np.ndarray) -> np.ndarray:
    """Returns the change of the state to the next step, s' - s. Angles that wrap take the short way around."""
    change = np.diff(s, axis=0)
    wraps = (np.abs(change) > np.pi) & (np.abs(change) <= 2 * np.pi + 1e-3) & (np.abs(s).max(0) <= 2 * np.pi + 1e-3)
    return np.where(wraps, change - 2 * np.pi * np.sign(change), change)


class LeastSquares:
    """Linear least-squares model of y given [1, x], to which data are added piece by piece."""

    def __init__(self):
        self.xx = self.xy = self.yy = self.y = np.zeros(())
        self.n, self.shift = 0, np.zeros(0)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        if self.n == 0:  # close to the mean, so that squares keep their precision
            self.shift = x.mean(0)
        x = np.concatenate([np.ones((len(x), 1)), x - self.shift], 1)
        self.xx, self.xy = self.xx + x.T @ x, self.xy + x.T @ y
        self.yy, self.y, self.n = self.yy + np.square(y).sum(0), self.y + y.sum(0), self.n + len(x)

    def solve(self) -> LeastSquares:
        scale = 1 / np.sqrt(np.maximum(np.diag(self.xx), 1e-12 * self.n))
        small = self.xx * scale[:, None] * scale
        small[np.diag_indices_from(small)] += 1e-9
        self.weights = scale[:, None] * np.linalg.solve(small, scale[:, None] * self.xy)
        self.variance = np.maximum(self.yy / self.n - np.square(self.y / self.n), 0)
        return self

    def residual(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Returns the errors of the model's predictions of y."""
        return y - self.weights[0] - (x - self.shift) @ self.weights[1:]

    @property
    def residual_variance(self) -> np.ndarray:
        """Mean squared error of each output on the data of the fit, (D,)."""
        return np.maximum(self.yy - 2 * (self.weights * self.xy).sum(0)
                          + np.einsum("ij,ik,kj->j", self.weights, self.xx, self.weights), 0) / self.n

    @property
    def spread(self) -> np.ndarray:
        """Standard deviations of the inputs x."""
        moments = np.diag(self.xx)[1:] / self.n - np.square(self.xx[0, 1:] / self.n)
        return np.sqrt(np.maximum(moments, 0))


@dataclass
class MotionFit:
    """Linear models that predict the change of the state, without and with the action of some steps ago (the lag).

    Attributes:
        state_only: Predicts the change of the state from the state alone.
        state_action: From the state and the action.
        live: Components that are judged, (D,). Flags are not.
    """

    live: np.ndarray
    state_only: LeastSquares = field(default_factory=LeastSquares)
    state_action: LeastSquares = field(default_factory=LeastSquares)

    def add(self, states: np.ndarray, actions: np.ndarray, changes: np.ndarray) -> None:
        self.state_only.add(states, changes)
        self.state_action.add(np.concatenate([states, actions], 1), changes)

    @property
    def n_actions(self) -> int:
        """Number of components of the action."""
        return len(self.state_action.weights) - len(self.state_only.weights)

    @property
    def change(self) -> np.ndarray:
        """Standard deviations of the changes, (D,)."""
        return np.sqrt(self.state_only.variance)

    @property
    def left_open(self) -> np.ndarray:
        """Standard deviations of the error of predicting the motion from the state alone, (D,). Infinite for flags."""
        variance = self.state_only.residual_variance
        return np.where(self.live & (variance > 1e-6 * self.state_only.variance + 1e-18), np.sqrt(variance), np.inf)

    @property
    def unexplained_parts(self) -> np.ndarray:
        """Fraction of the motion that the action leaves unexplained, of what the state alone does not explain, (D,)."""
        is_open = np.isfinite(self.left_open)
        return np.where(is_open, self.state_action.residual_variance / np.where(is_open, self.left_open**2, 1), 1.0)

    @property
    def unexplained(self) -> float:
        """Mean of `unexplained_parts` over the best explained components, as many as there are action components."""
        return float(np.sort(self.unexplained_parts)[:self.n_actions].mean())

    def strongest(self) -> list[tuple[int, float]]:
        """Returns, for each action component, the state component on which it has the largest effect, and that effect.

        Effects are standard deviations, as fractions of what the state leaves open.
        """
        weights, spread = self.state_action.weights[-self.n_actions:], self.state_action.spread[-self.n_actions:]
        effect = np.abs(weights) * spread[:, None] / self.left_open
        return [(int(np.argmax(row)), float(row.max())) for row in effect]


def fit_lags(episodes: Iterable[Transitions], lags: Iterable[int] = LAGS) -> dict[int, MotionFit]:
    """Fits the models of all lags with enough steps, in one pass. Without lag 0 there is none."""
    fits: dict[int, MotionFit] = {}
    waiting: dict[int, list[tuple[np.ndarray, ...]]] = {lag: [] for lag in lags}

    def add(lag):
        parts = waiting[lag]
        if sum(len(changes) for _, _, changes in parts):  # no episode may be longer than the lag
            if lag not in fits:
                fits[lag] = MotionFit(_is_number(parts))
            fits[lag].add(*(np.concatenate(column) for column in zip(*parts, strict=True)))
        parts.clear()
    for s, a in episodes:
        if s.shape[1] + a.shape[1] > WIDEST:
            return {}
        changes = state_change(s)
        for lag, parts in waiting.items():
            parts.append(lagged(s, a, changes, lag))
            if len(parts) == _EPISODES_PER_SUM:
                add(lag)
    for lag in waiting:
        add(lag)
    for fit in fits.values():
        fit.state_only.solve()
        fit.state_action.solve()
    usual = fits[0].state_only.n if 0 in fits else np.inf
    return {lag: fit for lag, fit in fits.items()
            if fit.state_only.n >= max(100, _FEWEST * len(fit.state_action.shift), _SHARE * usual)}


def lagged(states: np.ndarray, actions: np.ndarray, changes: np.ndarray, lag: int, lags: Iterable[int] = ()
           ) -> tuple[np.ndarray, ...]:
    """Returns states, the actions `lag` steps before, and state changes, at steps for which all of `lags` exist."""
    lags = (0, lag, *lags)
    first = max(lags)
    last = max(first, len(actions) + min(lags))
    return states[first:last], actions[first - lag:last - lag], changes[first:last]


def best_lag(fits: Mapping[int, MotionFit]) -> tuple[int, bool]:
    """Returns the lag at which actions explain the motion best, and whether it explains clearly more than lag 0.

    The largest and the smallest lag are never clear: the next one may be better.
    """
    unexplained = {lag: fit.unexplained for lag, fit in fits.items()}
    best = min(unexplained, key=unexplained.__getitem__)
    return best, (unexplained[0] > EXACT and unexplained[best] < CLEAR * unexplained[0]
                  and {best - 1, best + 1} <= set(fits))


def _is_number(parts: Sequence[tuple[np.ndarray, ...]]) -> np.ndarray:
    """Returns which components of the state have more than three values, (D,) bool."""
    states = np.concatenate([states for states, _, _ in parts])[:1000]
    return np.array([len(np.unique(column)) > 3 for column in states.T], bool)
