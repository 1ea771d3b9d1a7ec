"""Checks whether the recorded actions explain the recorded motion, with linear one-step models of the data.

A step deserves a look if the error of its prediction is much larger than the errors of other steps. So does an episode
in which the actions do not help the prediction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy.ndimage import maximum_filter1d, minimum_filter1d

from ..core import role
from ..data.episode import Dataset, Episode, concat_columns
from ..data.formats.parts.column_names import format_list
from ..hints import pluralize
from .base import Finding, Location, component_names, correction_command, finding_of_episodes, is_numeric
from .compatibility import unit_of_ratio
from .motion import (
    LAGGED_STEPS,
    STEPS,
    WIDEST,
    LeastSquares,
    MotionFit,
    best_lag,
    columns_of_kind,
    fit_lags,
    state_change,
    transitions,
)

SHIFTS = range(-8, 9)  # steps between a motion and its image
_WATCHED = 50_000  # steps in which images are compared with states, in evenly spaced episodes
_UNEXPLAINED_SHIFT = 0.7  # largest unexplained fraction of the image change at the best shift
_USUAL = 0.25  # fraction of episodes; if more have such a stretch, the camera normally sees the task like this
_SUSPECTS = 50  # number of stretches of equal images that are examined, the longest first
_ALIKE = 20  # stretches with similar motion that are needed for a finding
_CHANGES = 0.95  # fraction of them in which the image has to change
_FEWEST = 10  # smallest number of steps per fitted parameter
_JUMP = 12.0  # times the 99th percentile of the error
_GAP = 2.5  # times the next smaller error
_FITS, _FAILS = 0.7, 0.3  # fraction explained: at least in the model's own episodes, at most in other episodes
_MINORITY = 0.4  # largest fraction of episodes that are called the unusual ones
_TIGHT = 0.9  # correlation of a component of the action with a component of the motion
_FLOOR = 0.01  # fraction of a component's usual change: smaller errors count as rounding


def has_motion(episode: Episode, first: int, last: int) -> bool:
    """Whether any numeric vector observation changes between the steps `first` and `last`, both included."""
    for name in episode.steps:
        if role(name) == "observation" and not name.startswith("observation.images"):
            values = np.asarray(episode.steps[name][first:last + 1])
            if values.dtype.kind in "fiu" and (values.ndim < 4) and len(values) > 1:
                spread = np.ptp(values.reshape(len(values), -1).astype(np.float64), axis=0)
                if (spread > 1e-3 * (np.abs(values).max() + 1e-9)).any():
                    return True
    return False


def check_jumps(data: Dataset) -> Iterator[Finding]:
    """Finds steps with a much larger prediction error than all other steps."""
    model = _fit(data)
    if model is None:
        return
    sample = [np.abs(r).astype(np.float32) for _, _, r in _residuals(data, model, STEPS // 4)]
    scale = np.maximum(np.quantile(np.concatenate(sample), 0.99, axis=0), _FLOOR * model.change + 1e-9)
    large, steps = [], 0
    for e, _, missed in _residuals(data, model):
        size = (np.abs(missed) / scale).max(1)
        size[_segment_ends(data[e], len(size))] = 0
        large += [(float(size[t]), e, int(t)) for t in np.flatnonzero(size > _JUMP / 3)]
        steps += len(size)
    if jumps := _gap_outliers(sorted(large, reverse=True), max(3, steps // 200)):
        size, e, t = jumps[0]
        yield Finding(
            "jump",
            "warning",
            f"{pluralize(len({e for _, e, _ in jumps}), 'episode')} with a step unlike all "
            f"others, the largest in episode {e}, from step {t} to {t + 1}: {size:.0f} times the largest "
            "error of a linear model in the other steps",
            "a frame may be missing, something was moved by hand, or the episode should have ended there",
            Location(None, e, t),
            tuple(dict.fromkeys(e for _, e, _ in jumps)),
        )


def _segment_ends(episode: Episode, n: int) -> np.ndarray:
    """Returns the last step of the first segment of a comparison of two segments (`understudy judge`), as an array."""
    if not {"segment", "preference"} <= set(episode.steps):
        return np.array([], int)
    return np.flatnonzero(np.diff(np.reshape(episode.steps["segment"], -1)[:n + 1]))


def check_unrelated_actions(data: Dataset) -> Iterator[Finding]:
    """Finds episodes in which actions do not have the same effect as in most episodes.

    The contribution of the action to the prediction is regressed on what happened. The slope is near 1 if the actions
    belong to the episode, and near 0 or below if not. Episodes with fewer than 12 steps are too short to judge.
    """
    model = _fit(data)
    if model is None or len(data) < 5 or model.unexplained > 0.98:
        return
    scale = np.sqrt(model.state_only.residual_variance) + _FLOOR * model.change + 1e-9
    slopes = {}
    for e, without, missed in _residuals(data, model):
        adds, happened = (without - missed) / scale, without / scale
        if len(adds) >= 12:
            slopes[e] = float((adds * happened).sum() / max(np.square(adds).sum(), 1e-12))
    usual = float(np.median(list(slopes.values()))) if slopes else 0.0
    unrelated = [e for e, slope in slopes.items() if slope < 0.5 * usual]
    if unrelated and len(unrelated) <= 0.2 * len(slopes):
        yield finding_of_episodes("action-unrelated", "warning", unrelated,
                                  "whose actions do not have the same effect as elsewhere",
                                  "check that the actions belong to this episode and to this robot", "action")


def _gap_outliers(sizes: list[tuple[float, int, int]], most: int) -> list[tuple[float, int, int]]:
    """Returns the errors (size, episode, step), sorted by size, that lie above a wide gap in size."""
    values = np.array([size for size, _, _ in sizes] + [_JUMP / 3])
    gaps = values[:-1] / values[1:] if len(values) > 1 else np.empty(0)
    gaps[(values[:-1] < _JUMP) | (np.arange(len(gaps)) >= most)] = 0
    return sizes[:int(np.argmax(gaps)) + 1] if len(gaps) and gaps.max() > _GAP else []


def _residuals(data, model, most=None):
    """Yields (episode, errors of the model of states (n, D), errors of the model of states and actions (n, D))."""
    for e, s, a in _transitions(data, 1, most):
        change = state_change(s)
        yield (
            e,
            model.state_only.residual(s[:-1], change),
            model.state_action.residual(_state_action(s[:-1], a), change),
        )


def check_action_lag(data: Dataset) -> Iterator[Finding]:
    """Finds the delay of the actions: the number of steps at which they explain the motion best."""
    fits = fit_lags((s, a) for _, s, a in _transitions(data, 1, LAGGED_STEPS))
    if 0 not in fits:
        return
    best, clear = best_lag(fits)
    explained = {lag: 1 - fit.unexplained for lag, fit in fits.items()}
    correction = ("--shift", f"action={best}")
    if best < 0 and (clear or best < -1 and explained[best] > max(0.1, 1.15 * explained[0])):
        yield Finding(
            "action-lag",
            "warning",
            f"the motion of a step is explained best by the action "
            f"{pluralize(-best, 'step')} later ({explained[best]:.0%} of what the state leaves open, "
            f"{explained[0]:.0%} by its own action): the actions are stored late, or are what was reached",
            "shift the actions, so that each is in the row of the observation it was chosen from: "
            + correction_command(data, correction),
            Location(feature="action"),
            correction=correction,
        )
    elif best > 0 and clear:
        yield Finding(
            "action-lag",
            "warning" if best > 2 else "note",
            f"the motion follows the action after "
            f"{pluralize(best, 'step')} ({explained[best]:.0%} of what the state leaves open, "
            f"{explained[0]:.0%} at once)",
            "a slow robot, or observations stored late",
            Location(feature="action"),
        )


class CameraLag:
    """Finds the delay of a camera: the shift at which changes of the state explain changes of the image best.

    An image is represented by the mean brightness of a coarse grid, and the model is linear. The episodes are divided
    into two halves. The model of each half is tested on the episodes that it was not fitted to. There is no finding if
    the camera sees too little of the robot for a model, or if the shifts do not differ clearly.
    """

    def __init__(self, data: Dataset, name: str):
        features = data[0].features()
        self.data, self.name, self._brightness = data, name, []
        self._states = columns_of_kind(features, "observation")
        self._width = sum(features[n].size for n in self._states)
        self._each = max(1, -(-int(data.lengths.sum()) // _WATCHED))

    def needs_episode(self, e: int) -> bool:
        """Whether episode `e` is in the sample that is tested."""
        return 0 < self._width <= WIDEST and e % self._each == 0

    def add(self, e: int, brightness: list[np.ndarray]) -> None:
        """Adds an episode, with `grid_brightness` of each frame, in order."""
        s = concat_columns(self.data[e], self._states)
        n = min(len(s), len(brightness))
        if n > 2 * max(SHIFTS) + 8 and np.isfinite(s[:n]).all():
            self._brightness.append((state_change(s[:n]), np.diff(np.stack(brightness[:n]), axis=0)))

    def findings(self) -> Iterator[Finding]:
        """Findings of all added episodes."""
        steps = sum(len(brightness) for _, brightness in self._brightness)
        if len(self._brightness) < 6 or steps < max(100, _FEWEST * self._width):
            return
        unexplained, whole = {k: self._unexplained(k) for k in SHIFTS}, self._unexplained(None).sum()
        if whole < 1e-6 * steps:
            return
        missed = {k: each.sum() / whole for k, each in unexplained.items()}
        best = min(missed, key=missed.__getitem__)
        plain = missed[best] < _UNEXPLAINED_SHIFT and missed[0] > 1.1 * missed[best]
        if 2 <= abs(best) < max(SHIFTS) and plain and np.mean(unexplained[best] < unexplained[0]) > 0.8:
            correction = ("--shift", f"{self.name}={-best}")
            then, stored = ("before", "late") if best > 0 else ("after", "early")
            yield Finding("camera-lag", "note" if best == 2 else "warning",  # many cameras have a delay of two frames
                          f"{self.name}: the image changes as the state does {abs(best)} steps {then} (which "
                          f"explains {1 - missed[best]:.0%} of its change, the state of the same row "
                          f"{1 - missed[0]:.0%}): the images are stored {stored}",
                          "shift them, so that images and states of the same time are in the same row: "
                          + correction_command(self.data, correction),
                          Location(feature=self.name), correction=correction)

    def _unexplained(self, k: int | None) -> np.ndarray:
        """Returns the squared image changes of each episode that state changes k steps earlier do not explain, (E,)."""
        margin, pairs = max(SHIFTS), []
        for moved, brightness in self._brightness:
            n = len(brightness)
            pairs.append((moved[margin - (k or 0):n - margin - (k or 0)], brightness[margin:n - margin]))
        if k is None:
            return np.array([np.square(brightness).sum() for _, brightness in pairs])
        unexplained = np.zeros(len(pairs))
        for half in (0, 1):
            model = LeastSquares()
            for pair in pairs[1 - half::2]:
                model.add(*pair)
            model.solve()
            unexplained[half::2] = [np.square(model.residual(*pair)).sum() for pair in pairs[half::2]]
        return unexplained


class Stillness:
    """Finds stretches in which the images of a camera are bit-identical while the states move.

    Such a stretch alone is weak evidence: a small image does not show slow motion, and the camera may not see what
    moves. The evidence that the camera froze comes from the rest of the data. There, images change in almost all
    stretches with similar or less motion.
    """

    def __init__(self, data: Dataset, name: str):
        self.data, self.name, self.equal = data, name, {}
        self._states = columns_of_kind(data[0].features(), "observation")

    def add(self, e: int, equal: list[bool]) -> None:
        """Adds an episode, with whether each frame equals the previous one, (T,)."""
        self.equal[e] = np.array(equal, bool)

    def findings(self) -> Iterator[Finding]:
        """Findings of all added episodes."""
        suspected = []
        for e, equal in self.equal.items():
            start, n = _longest_run(equal)
            if n >= max(4, 0.2 * len(self.data[e])) and self._states and has_motion(self.data[e], start, start + n):
                suspected.append((n, e, start))
        if not suspected:
            return
        windows, frozen = self._sample(), []
        often = len(suspected) > max(1, _USUAL * len(self.equal))
        usual = np.median([np.linalg.norm(self._moved(*s)) for s in suspected]) if often else 0.0
        for n, e, start in sorted(suspected, key=lambda s: (-s[0], s[1]))[:_SUSPECTS]:
            moved = self._moved(n, e, start)
            if np.linalg.norm(moved) > 10 * usual:
                changed, of = self._elsewhere(windows, moved, e, start, n)
                if of >= _ALIKE and changed >= _CHANGES * of:
                    frozen.append((n, e, start, changed / of))
        if often and not frozen:
            never = all(equal[1:].all() for equal in self.equal.values())  # no frame differs from the one before it
            yield Finding("image-frozen", "warning" if never else "note",
                          f"{self.name}: the picture stands still while something moves in "
                          f"{pluralize(len(suspected), 'episode')} of {len(self.equal)}: the camera does not see what "
                          "moves, the motion is too small for it, or it hangs often", "look at some of these stretches",
                          Location(feature=self.name) if never else Location(
                              None, suspected[0][1], suspected[0][2], self.name))
        if frozen:
            n, e, start, share = frozen[0]
            yield Finding("image-frozen", "warning", f"{self.name}: the picture stands still while something moves in "
                          f"{pluralize(len(frozen), 'episode')}, longest in episode {e}, for {n + 1} frames from step "
                          f"{start} on; elsewhere, it changes in {share:.0%} of the stretches with similar motion",
                          "the camera hung: leave the stretch out", Location(None, e, start, self.name),
                          tuple(e for _, e, _, _ in frozen))

    def _sample(self) -> dict[int, np.ndarray]:
        """Returns standardized states (T, D) of evenly spaced episodes, with only the components that vary."""
        each = max(1, -(-sum(map(len, self.equal.values())) // _WATCHED))
        chosen = {
            e: concat_columns(self.data[e], self._states)[: len(self.equal[e])] for e in list(self.equal)[::each]
        }
        spread = np.std(np.concatenate(list(chosen.values())), 0)
        self._spread = np.where(np.isfinite(spread) & (spread > 0), spread, np.inf)
        return {e: s / self._spread for e, s in chosen.items()}

    def _moved(self, n: int, e: int, start: int) -> np.ndarray:
        """Returns how far each component of the state moves in a stretch of steps, (D,)."""
        return np.ptp((concat_columns(self.data[e], self._states) / self._spread)[start:start + n + 1], axis=0)

    def _elsewhere(self, states: dict[int, np.ndarray], moved: np.ndarray, e: int, start: int,
                   n: int) -> tuple[int, int]:
        """Returns in how many stretches with a similar motion the image changes, and the number of such stretches."""
        most, changed, of = np.linalg.norm(moved), 0, 0
        for length in sorted({max(1, n >> k) for k in range(6)}):
            for other, s in states.items():
                if len(s) <= length:
                    continue
                at = np.arange(len(s) - length)
                span = _span(s, length)
                alike = (np.linalg.norm(span, axis=1) >= 0.5 * most) & (
                    np.linalg.norm(np.maximum(span - moved, 0), axis=1) <= 0.2 * most)
                if other == e:
                    alike &= (at + length <= start) | (at >= start + n)
                still = np.concatenate([[0], np.cumsum(self.equal[other])])
                changes = still[at + length + 1] - still[at + 1] < length
                changed, of = changed + int((alike & changes).sum()), of + int(alike.sum())
        return changed, of


def _longest_run(equal: np.ndarray) -> tuple[int, int]:
    """Returns first frame and length of the longest run of frames that equal the previous one."""
    edges = np.diff(np.concatenate([[0], equal.astype(np.int8), [0]]))
    first, last = np.flatnonzero(edges > 0), np.flatnonzero(edges < 0)
    if not len(first):
        return 0, 0
    k = int(np.argmax(last - first))
    return int(first[k]) - 1, int(last[k] - first[k])


def _span(s: np.ndarray, length: int) -> np.ndarray:
    """Returns the largest minus the smallest value of each component in the steps t to t + length, (T - length, D)."""
    size, middle = length + 1, (length + 1) // 2
    return (maximum_filter1d(s, size, axis=0) - minimum_filter1d(s, size, axis=0))[middle:middle + len(s) - length]


def grid_brightness(frame: np.ndarray) -> np.ndarray:
    """Returns the mean brightness of the cells of a 4 x 4 grid over an image, (H, W, C) -> (16,)."""
    every = max(1, min(frame.shape[:2]) // 64)
    cells = frame[::every, ::every]
    for axis, n in enumerate(cells.shape[:2]):
        starts = np.arange(4) * n // 4
        sizes = np.maximum(np.diff(starts, append=n), 1).reshape((4, 1, 1) if axis == 0 else (4, 1))
        cells = np.add.reduceat(cells, starts, axis, np.float64) / sizes
    return cells.mean(-1).ravel()


def check_action_convention(data: Dataset) -> Iterator[Finding]:
    """Finds actions that are positions in some episodes and differences or velocities in other episodes.

    The values alone are only a hint: with slow motion, a scaled velocity or a long delay, positions and velocities look
    alike. The evidence is a linear model of the motion, fitted to the larger group of episodes. If all actions follow
    one convention, the model predicts the smaller group as well. There is a finding only if it clearly does not.
    """
    kinds = _conventions(data)
    if "positions" in kinds.values() and (rates := _rates(data)).any():
        kinds = _conventions(data, rates)
    fewer = min(("positions", "differences"), key=lambda kind: sum(k == kind for k in kinds.values()))
    few = [e for e, kind in kinds.items() if kind == fewer]
    if not few or len(few) == len(kinds):
        return
    others = [e for e, kind in kinds.items() if kind != fewer]
    if (explained := _cross_explained(data, others, few)) is None or explained[0] < _FITS or explained[1] > _FAILS:
        return
    yield Finding(
        "convention-mixed",
        "warning",
        f"the actions look like {fewer} in {pluralize(len(few), 'episode')} of "
        f"{len(kinds)}, and not in the others: {format_list(few)}. A linear model of the others explains "
        f"{explained[0]:.0%} of what the state leaves open of their motion, and {explained[1]:.0%} in these",
        "compare the actions with the states in one episode of each group before you convert any",
        Location(episode=few[0], feature="action"),
        tuple(few),
    )


def _conventions(data: Dataset, rates: np.ndarray | None = None) -> dict[int, str]:
    """Returns for each episode whether its actions are "positions" or "differences" (velocities), if either fits."""
    kinds: dict[int, str] = {}
    for e, s, a in _transitions(data, 8):
        after, change = s[1:], state_change(s)
        moving = (np.std(change, 0) > 1e-9 * (1 + np.abs(after).max(0)))
        places = moving if rates is None else moving & ~rates
        if not moving.any() or not (np.std(a, 0) > 0).any():
            continue
        live = np.flatnonzero(np.std(a, 0) > 0)
        spread = np.std(after, 0)[places] + 1e-12
        error = np.sqrt(np.mean(np.square(a[:, live, None] - after[:, None, places]), 0)) / spread
        absolute = (error.min(1, initial=np.inf) < 0.5)
        delta = np.abs(_correlation(a[:, live], change[:, moving])).max(1) > 0.9
        if absolute.mean() > 0.5:
            kinds[e] = "positions"
        elif (delta & ~absolute).mean() > 0.5:
            kinds[e] = "differences"
    return kinds


def _rates(data: Dataset) -> np.ndarray:
    """Returns which state components are velocities (proportional to the change of another component), (D,) bool."""
    sums = 0.0
    for _, s, _ in _transitions(data, 8, STEPS):
        change = state_change(s)
        if change.shape[1] > WIDEST:
            return np.zeros(change.shape[1], bool)
        one = np.ones((len(change), 1))
        x = np.concatenate([s[1:], change, one], 1)
        sums = sums + x.T @ x
    if isinstance(sums, float):
        return np.zeros(0, bool)
    wide = (len(sums) - 1) // 2

    def alike(moments):
        size = np.sqrt(np.maximum(np.diag(moments), 1e-18))
        return (moments / size / size[:, None])[:wide, wide:2 * wide]
    mean = sums[-1] / sums[-1, -1]
    both = np.minimum(alike(sums), alike(sums - np.outer(mean, mean) * sums[-1, -1]))  # without offset, and with one
    both[np.diag_indices(wide)] = 0
    return both.max(1, initial=0) > 0.9


def check_component_pairs(data: Dataset) -> Iterator[Finding]:
    """Finds episodes in which a component of the action is flipped, scaled or exchanged, compared with most episodes.

    The check correlates action components with state components, and compares their spreads, to find unusual episodes.
    A linear model of the motion is fitted to the usual episodes. There is a finding only if the model predicts the
    unusual episodes badly, and predicts them well after the correction: another sign or size, or two components
    exchanged.
    """
    if (pairs := _pairs(data)) is None:
        return
    features = data[0].features()
    names = [f"{column}[{part}]" for column in columns_of_kind(features, "action")
             for part in component_names(features[column])]
    episodes, (correlations, ratios) = np.array(list(pairs)), np.stack(list(pairs.values()), 1)  # (E,), (E, A, D) each
    tight = np.abs(correlations) > _TIGHT
    usual = tight.mean(0).argmax(1)
    each = np.arange(len(usual)), usual
    yield from _size_findings(data, episodes, np.where(tight[:, *each], np.log(ratios[:, *each]), np.nan), usual, names)
    for j, k in enumerate(usual):
        many, few = _sign_groups(correlations[:, j] * tight[:, j], k)
        if _is_explained(data, episodes[many], episodes[few], k, lambda a, j=j: _with_sign(a, j)):
            yield finding_of_episodes("sign-differs", "warning", episodes[few], f"in which {names[j]} has the other "
                                      "sign: its motion is explained by the other episodes if it is turned around",
                                      "compare the calibration in one episode of each group", "action")
        for other in range(j + 1, len(usual)):
            own, crossed = (tight[:, j, a] & tight[:, other, b] & ~tight[:, j, b] & ~tight[:, other, a]
                            for a, b in ((k, usual[other]), (usual[other], k)))
            order = np.arange(len(usual))
            order[[j, other]] = other, j
            if _is_explained(data, episodes[own], episodes[crossed], k, lambda a, order=order: a[:, order]):
                yield finding_of_episodes("components-swapped", "warning", episodes[crossed], f"in which {names[j]} "
                                          f"and {names[other]} are exchanged: their motion is explained by the other "
                                          "episodes if they change places", "check the order of the components",
                                          "action")


def _size_findings(data: Dataset, episodes: np.ndarray, sizes: np.ndarray, usual: np.ndarray,
                   names: list[str]) -> Iterator[Finding]:
    """Finds components of the action that are far larger or smaller than elsewhere for the same motion.

    Where most components are, `check_units` says so.

    Args:
        sizes: Logarithm of the size of each component relative to its motion, NaN where they are not related, (E, A).
    """
    middle = np.array([np.median(s[np.isfinite(s)]) if np.isfinite(s).any() else np.nan for s in sizes.T])
    off = np.abs(sizes - middle) > np.log(10)
    off &= off.sum(1, keepdims=True) <= len(usual) / 2
    for j in np.flatnonzero(off.any(0)):
        few, many = off[:, j], np.isfinite(sizes[:, j]) & ~off[:, j]
        factor = float(np.exp(np.mean(sizes[few, j]) - middle[j]))
        usual_size = np.where(np.arange(len(usual)) == j, 1 / factor, 1.0)
        if few.sum() <= _MINORITY * len(episodes) and _is_explained(
                data, episodes[many], episodes[few], usual[j], lambda a, size=usual_size: a * size):
            unit = f", as between {unit}" if (unit := unit_of_ratio(factor)) else ""
            yield finding_of_episodes("scale", "warning", episodes[few], f"in which {names[j]} has {factor:.3g} times "
                                      f"its usual size for the same motion{unit}", "check for degrees and radians, "
                                      "millimeters and meters, or 0 to 1 and 0 to 100", "action")


def _sign_groups(correlations: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns two groups of episodes, larger first, in which an action component moves state component k up or down.

    The second group is empty if the action component moves any other state component in the same direction in both
    groups. Then its sign is the same in all episodes, and its different relation to k comes from the task.

    Args:
        correlations: Correlations of the action component with each state component, 0 where they are loose, (E, D).
    """
    few, many = sorted((correlations[:, k] < 0, correlations[:, k] > 0), key=np.count_nonzero)
    if few.any() and (np.sign(correlations[few]).mean(0) * np.sign(correlations[many]).mean(0)).max() > 0.25:
        return many, np.zeros_like(few)
    return many, few


def _pairs(data: Dataset) -> dict[int, np.ndarray] | None:
    """Correlation of each action component with the position or the change of each state component, and the ratio of
    their spreads, (2, A, D), by episode.

    Whichever of position and change correlates more closely in most episodes is used. None if there are too few
    episodes.
    """
    kinds: tuple[dict[int, np.ndarray], dict[int, np.ndarray]] = {}, {}
    for e, s, a in _transitions(data, 8):
        if s.shape[1] + a.shape[1] > WIDEST:
            return None
        for pairs, motion in zip(kinds, (s[1:], state_change(s)), strict=True):
            pairs[e] = np.stack([_correlation(a, motion), (a.std(0)[:, None] + 1e-12) / (motion.std(0) + 1e-12)])
    if len(kinds[0]) < 5:
        return None
    return max(kinds, key=lambda pairs: float(np.median([np.abs(p[0]).max(1) for p in pairs.values()])))


def _with_sign(a: np.ndarray, j: int) -> np.ndarray:
    return a * np.where(np.arange(a.shape[1]) == j, -1.0, 1.0)


def _is_explained(data: Dataset, many: np.ndarray, few: np.ndarray, component: int,
                  change: Callable[[np.ndarray], np.ndarray]) -> bool:
    """Returns whether a linear model of `many` explains a component of the motion in `few` with changed actions.

    It must explain it in `many`, and not in `few` as they are.
    """
    if not len(few) or len(many) < 3:
        return False
    model = _fit(data.select(many.tolist()))
    if model is None:
        return False
    missed = []
    for _, s, a in _transitions(data.select(few.tolist()), 8, STEPS):
        motion = state_change(s)
        missed.append([model.state_only.residual(s[:-1], motion)[:, component], *(
            model.state_action.residual(_state_action(s[:-1], actions), motion)[:, component]
            for actions in (a, change(a)))])
    unexplained, as_is, changed = np.var(np.concatenate(missed, 1), 1)
    own, before, after = (1 - part / max(whole, 1e-18) for part, whole in (
        (model.state_action.residual_variance[component], model.state_only.residual_variance[component]),
        (as_is, unexplained), (changed, unexplained)))
    return own > _FITS and before < _FAILS and after > _FITS


def _cross_explained(data: Dataset, many: list[int], few: list[int]) -> tuple[float, float] | None:
    """Returns the fractions of the motion in `many` and in `few` that a linear model of `many` explains, or None."""
    pairs = list(_transitions(data.select(many), 8, STEPS))
    if not pairs or (width := pairs[0][1].shape[1] + pairs[0][2].shape[1]) > WIDEST:
        return None
    plain, full = LeastSquares(), LeastSquares()
    for _, s, a in pairs:
        plain.add(s[:-1], state_change(s))
        full.add(_state_action(s[:-1], a), state_change(s))
    if full.n < _FEWEST * width:
        return None
    plain.solve(), full.solve()
    moved = (full.residual_variance < 0.5 * plain.residual_variance) & (full.variance > 1e-18)
    if not moved.any():
        return None
    missed, open_, n = np.zeros(1), np.zeros(1), 0
    for _, s, a in _transitions(data.select(few), 8, STEPS):
        change = state_change(s)
        missed = missed + np.square(full.residual(_state_action(s[:-1], a), change)).sum(0)
        open_, n = open_ + np.square(plain.residual(s[:-1], change)).sum(0), n + len(change)
    # in slow motion, a small error must not count as a large one
    scale = np.maximum(open_ / n, plain.residual_variance)[moved]
    own = 1 - full.residual_variance[moved] / plain.residual_variance[moved]
    cross = 1 - missed[moved] / n / scale
    return float(np.mean(own)), float(np.mean(np.clip(cross, 0, 1)))


def check_units(data: Dataset) -> Iterator[Finding]:
    """Finds episodes in other units: a whole column is far larger or far smaller than in all other episodes."""
    if len(data) < 5:
        return
    for name, f in data[0].features().items():
        if role(name) not in ("observation", "action") or not is_numeric(f) or not f.size or f.size > 4096:
            continue
        size = np.array([_column_scale(episode.steps[name]) for episode in data])  # (E, D) log of the largest value
        whole = np.array([np.median(finite) if len(finite := s[np.isfinite(s)]) else np.nan for s in size])
        outliers = _minority_beyond_gap(whole) or next(
            (o for d in range(size.shape[1]) if (o := _minority_beyond_gap(size[:, d], True))), []
        )
        if outliers:
            unsure = "; these or the others are in other units" if len(outliers) > _MINORITY * len(data) else ""
            episodes = pluralize(len(outliers), "episode")
            yield Finding("scale", "warning",
                          f"{name}: {episodes} of another magnitude than the others: {format_list(outliers)}{unsure}",
                          "check for degrees and radians, or millimeters and meters",
                          Location(episode=outliers[0], feature=name), tuple(outliers))


# -- small things ---------------------------------------------------------------------------------------------------


def _column_scale(values) -> np.ndarray:
    """Returns the log of the largest absolute value of each component, (D,). NaN for a component that is always 0."""
    flat = np.abs(np.asarray(values, np.float64).reshape(len(values), -1))
    largest = np.max(np.where(np.isfinite(flat), flat, 0), axis=0, initial=0)
    return np.where(largest > 0, np.log(np.maximum(largest, 1e-4)), np.nan)


def _minority_beyond_gap(size: np.ndarray, above: bool = False) -> list[int]:
    """Returns the members of the smaller of two groups of values, if a wide gap separates the groups.

    Groups of about equal size may be two tasks. So nothing is returned for them unless the ratio of their values is the
    ratio of two known units, such as degrees and radians.
    """
    finite = np.flatnonzero(np.isfinite(size))
    order = finite[np.argsort(size[finite], kind="stable")]
    if len(order) < 5:
        return []
    gaps = np.diff(size[order])
    at = int(np.argmax(gaps))
    few = order[at + 1:] if at + 1 > len(order) / 2 else order[:at + 1]
    ratio = float(np.exp(np.median(size[order[at + 1:]]) - np.median(size[order[:at + 1]])))
    if len(few) > _MINORITY * len(order) and (above or unit_of_ratio(ratio) is None):
        return []
    if gaps[at] < np.log(10) or (above and few[0] == order[0]):
        return []
    return sorted(map(int, few))


def _transitions(data: Dataset, fewest: int, most: int | None = None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields the states and actions of each episode as `transitions` does, for all numeric columns."""
    features = data[0].features()
    return transitions(data, columns_of_kind(features, "observation"), columns_of_kind(features, "action"), fewest,
                       most)


def _fit(data: Dataset) -> MotionFit | None:
    """Fits the linear model of the motion to the data. Returns None if the data have too few steps."""
    return fit_lags(((s, a) for _, s, a in _transitions(data, 1, STEPS)), (0,)).get(0)


def _state_action(s, a):
    return np.concatenate([s, a], 1)


def _correlation(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns the correlation of each column of a (T, A) with each column of b (T, B), as an array (A, B)."""
    a, b = ((x - x.mean(0)) / (x.std(0) + 1e-12) for x in (a, b))
    return a.T @ b / len(a)
