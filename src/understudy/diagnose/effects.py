"""A linear model of the motion, which shows whether the robot executes something else than the commanded action."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..audit.motion import MotionFit
from .observations import AT_END

BLOCKED = 1e-3  # fraction of the usual change of a component: a component that changes less is at a wall
FEWER = 0.5  # factor by which a less simple explanation has to reduce the unexplained steps
MAX_ERROR_FRACTION = 0.1  # largest error of a change, of its usual size or its spread by the action
MIN_AGREEING_FRACTION = 0.3  # fraction of the steps that an explanation has to explain
MIN_SPREAD_FRACTION = 0.5  # spread of the actions in these steps, as a fraction of the spread in all steps
END = 0.005  # quantile of the changes that is a limit
SCALES = [sign * size for size in np.geomspace(1 / 16, 16, 65) for sign in (1, -1) if sign * size != 1]
OFFSET = 0.25  # fraction of the standard deviation of the action
GAINS = (0.6, 1.6)  # effect of an action in new episodes, as a multiple of its effect in the data


@dataclass(frozen=True)
class MotionModel:
    """A linear model of the motion in the data.

    Attributes:
        lag: Steps from an action to the motion that it explains.
        driven: For each action component that drives a state component, the number of this state component.
    """

    fit: MotionFit
    lag: int
    driven: dict[int, int]

    @property
    def weights_of_actions(self) -> np.ndarray:
        """Change of the state for each unit of the action, (A, D)."""
        return self.fit.state_action.weights[-self.fit.n_actions:]

    @property
    def action_std(self) -> np.ndarray:
        return self.fit.state_action.spread[-self.fit.n_actions:]

    @property
    def unexplained(self) -> float:
        """Fraction of the state change that the model does not explain, of the components that actions drive."""
        return float(self.fit.unexplained_parts[sorted(set(self.driven.values()))].mean())

    def missed(self, states: np.ndarray, actions: np.ndarray, changes: np.ndarray) -> np.ndarray:
        """Returns the errors of the predicted state changes, (N, D)."""
        return self.fit.state_action.residual(np.concatenate([states, actions], 1), changes)

    def error(self, states: np.ndarray, actions: np.ndarray, changes: np.ndarray) -> float:
        """Returns the mean error of the predicted changes, in units of the usual change, over the driven components.

        It is the median of the steps in which a component moves, so that speed limits and contacts matter little.
        """
        missed = np.abs(self.missed(states, actions, changes))
        return float(np.mean([_median_error(missed[:, d], self.is_free(changes, d)) / self.fit.change[d]
                              for d in sorted(set(self.driven.values()))]))

    def is_free(self, changes: np.ndarray, d: int) -> np.ndarray:
        """Returns the steps in which a component of the state moves, neither at rest nor at a wall, (N,) bool."""
        return np.abs(changes[:, d]) > BLOCKED * self.fit.change[d]


@dataclass(frozen=True)
class Effect:
    """The measured effect of one action component in new episodes, such as its gain and offset.

    Attributes:
        error: Median error of the predicted changes, in units of the usual change.
        moved_by: The component of the action that moves what this one moves in the data.
        is_stuck: Whether what it moves in the data has one value, within its range, in all new episodes.
    """

    gain: float
    offset: float
    convention: float
    error: float
    moved_by: int
    is_stuck: bool = False


def explain_effect(model: MotionModel, i: int, d: int, states: np.ndarray, actions: np.ndarray, changes: np.ndarray
                   ) -> Effect | None:
    """Finds what is executed instead of an action component, such as a constant or another scale, from the motion.

    A constant, another convention, and another scale compete. A less simple one has to leave clearly fewer steps
    unexplained. Actions that the environment clips do not count against an explanation: predictions are clipped to the
    range of changes.

    Returns:
        None if no explanation holds in many steps.
    """
    effect, spread = model.weights_of_actions[i, d], max(model.action_std[i], 1e-9)
    commanded, usual, change = actions[:, i], model.fit.change[d], changes[:, d]
    missed = model.missed(states, actions, changes)[:, d]
    executed, margin = missed / effect + commanded, MAX_ERROR_FRACTION * min(spread * abs(effect), usual)
    tolerance, (low, high) = margin / abs(effect), np.quantile(change, (END, 1 - END))
    if high - low < 4 * margin:  # it hardly moves
        return None

    def judge(instead: np.ndarray) -> tuple[float, np.ndarray, float]:
        """The explained fraction, the explained steps without limits, and the error, if this is executed instead."""
        predicted = change - missed + effect * (instead - commanded)
        error = np.abs(np.clip(predicted, low, high) - change)
        agrees, is_open = error <= margin, (predicted >= low - margin) & (predicted <= high + margin)
        tells = (agrees & is_open).sum() >= max(MIN_AGREEING_FRACTION * is_open.sum(), least_rows(model))
        holds = tells and min(is_open.mean(), agrees.mean()) >= MIN_AGREEING_FRACTION and (
            commanded[agrees].std() >= MIN_SPREAD_FRACTION * commanded.std())
        return float(agrees.mean()) if holds else 0.0, agrees & is_open, float(np.median(error) / usual)

    def with_constant(gain: float) -> np.ndarray:
        return gain * commanded + _most_common(executed - gain * commanded, tolerance)
    share, _, error = judge(with_constant(1.0))
    best = Effect(1.0, float((with_constant(1.0) - commanded)[0] / spread), 0.0, error, i)
    for convention in (1.0, -1.0):
        other, _, error = judge(commanded + convention * states[:, d])
        if 1 - other < FEWER * (1 - share):
            share, best = other, Effect(1.0, 0.0, convention, error, i)
    other, gain = max((judge(with_constant(gain))[0], gain) for gain in SCALES)
    if 1 - other < FEWER * (1 - share):
        if judge(with_constant(0.0))[0] >= other:  # whatever is commanded
            return None
        rows = judge(with_constant(gain))[1]
        line = np.column_stack([np.ones(rows.sum()), commanded[rows]])
        constant, gain = np.linalg.lstsq(line, executed[rows], rcond=1e-9)[0]
        share, _, error = judge(gain * commanded + constant)
        best = Effect(float(gain), float(((gain - 1) * commanded.mean() + constant) / spread), 0.0, error, i)
    return best if share > 0 else None


def _most_common(values: np.ndarray, tolerance: float) -> float:
    """Returns the value that most values have, within `tolerance`."""
    ordered = np.sort(values)
    counts = np.searchsorted(ordered, ordered + 2 * tolerance) - np.arange(len(ordered))
    first = int(np.argmax(counts))
    return float(np.median(ordered[first:first + counts[first]]))


def regress_effect(model: MotionModel, i: int, d: int, states: np.ndarray, actions: np.ndarray, changes: np.ndarray
                   ) -> Effect:
    """Fits the gain of an action component, and how much more its effect depends on the state.

    1 more means that the environment or robot adds the state to the action, -1 that it subtracts it.
    """
    weights_of_actions = model.weights_of_actions[:, d]
    effect, usual = weights_of_actions[i], model.fit.change[d]
    missed = model.missed(states, actions, changes)[:, d]
    center = model.fit.state_action.shift
    place = actions - center[-actions.shape[1]:]
    moved = [d, *sorted({*model.driven.values()} - {d})]
    columns = np.column_stack([np.ones(len(place)), states[:, moved] - center[moved], place])
    open_change = missed + actions @ weights_of_actions
    weights, errors = trimmed_least_squares(columns, open_change)
    gain, extra = weights[1 + len(moved) + i] / effect, weights[1] / effect
    convention = float(extra) if abs(extra) > 4 * errors[1] / abs(effect) else 0.0
    missed = np.abs(open_change - columns @ weights)
    more = np.abs(weights[1 + len(moved):] - weights_of_actions) / np.abs(effect)  # beyond the data
    more[i] = abs(gain)
    other = int(np.argmax(more))
    return Effect(float(gain), 0.0, convention, float(np.median(missed) / usual),
                  other if more[other] > GAINS[0] / 2 else i)


def is_stuck(usual: np.ndarray, own: np.ndarray) -> bool:
    """Returns whether a component of the state never changes, at a value within its range in the data."""
    low, high = usual.min(), usual.max()
    return bool(np.ptp(own) < 1e-6 * (1 + np.abs(own).max())
                and min(own[0] - low, high - own[0]) > AT_END * (high - low))


def is_as_commanded(effect: Effect | None) -> bool:
    """Returns whether the robot executes this action component as commanded."""
    return effect is not None and effect.gain == 1 and effect.convention == 0 and abs(effect.offset) < OFFSET


def least_rows(model: MotionModel) -> int:
    """Returns the smallest number of steps from which effects are estimated."""
    return 5 * (2 + model.fit.n_actions)


def trimmed_least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Fits least squares without the tenth of the rows with the largest errors, which contacts cause.

    Returns:
        The weights and their standard errors, (K,) each.
    """
    kept = np.ones(len(y), bool)
    for _ in range(3):
        weights = np.linalg.lstsq(x[kept], y[kept], rcond=1e-9)[0]
        error = np.abs(y - x @ weights)
        kept = error <= np.quantile(error, 0.9)
    variance = np.square(error[kept]).sum() / max(kept.sum() - x.shape[1], 1)
    inverse = np.linalg.pinv(x[kept].T @ x[kept])
    return weights, np.sqrt(np.maximum(np.diag(inverse), 0) * variance)


def _median_error(missed: np.ndarray, free: np.ndarray) -> float:
    return float(np.median(missed[free])) if free.any() else 0.0
