"""What actions do: the motion in recorded episodes against the motion in new ones.

A linear model predicts the change of the state in a step, s' - s, from s and the action. Each action component has a
component of the state that it drives. New episodes that repeat recorded actions from other starts tell the effect of an
action from that of the state, which episodes of the policy cannot: its actions follow from the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from ..audit.base import Location
from ..audit.compatibility import unit_of_ratio
from ..data.formats.parts.column_names import format_list
from .base import RunFinding

Episodes = Sequence[tuple[np.ndarray, np.ndarray]]  # states (n + 1, D) and actions (n, A) of each

LAGS = range(-2, 5)  # steps from an action to the motion that it explains
DELAYS = range(-2, 21)  # steps that the motion in new episodes may be later than in the data
DRIVEN = 0.2  # largest unexplained fraction of the change of a driven component
CLEAR = 0.5  # factor by which another lag or order has to reduce what is unexplained
EXACT = 0.01  # of the usual change: a smaller error of its prediction leaves nothing to explain
GAINS = (0.6, 1.6)  # effect of an action in new episodes, as a multiple of that in the data
HARDLY = 0.05  # effect of an action of another joint, or of a motor that is off
OFFSET = 0.25  # of the standard deviation of the action
STRONG = 0.3  # effect of an action component on what it drives, see `_LagFit.strongest`
BLOCKED = 1e-3  # of the usual change of a component: one that changes less is at a wall
NEAR, AGREE, RANGE = 0.1, 0.3, 0.5  # see _constant_difference
CONVENTION = 0.5  # of the dependence on the position that another convention would bring


@dataclass(frozen=True)
class MotionModel:
    """A linear model of the motion in the data.

    Attributes:
        lag: Steps from an action to the motion that it explains.
        unexplained: For each lag, the unexplained fraction of the change of the driven components.
        driven: For each action component that drives one, the component of the state.
        weights: Of 1, the state and the action, (1 + D + A, D).
    """

    lag: int
    unexplained: dict[int, float]
    driven: dict[int, int]
    weights: np.ndarray
    action_mean: np.ndarray
    action_std: np.ndarray
    state_mean: np.ndarray
    change_std: np.ndarray

    def error(self, states: np.ndarray, actions: np.ndarray, changes: np.ndarray) -> float:
        """Error of the predicted changes: usual changes, the mean of the driven components.

        It is the median of the steps in which a component moves, so that speed limits and contacts matter little.
        """
        missed = np.abs(changes - self.weights[0] - np.concatenate([states, actions], 1) @ self.weights[1:])
        return float(np.mean([_median_error(missed[:, d], self.is_free(changes, d)) / self.change_std[d]
                              for d in sorted(set(self.driven.values()))]))

    def is_free(self, changes: np.ndarray, d: int) -> np.ndarray:
        """Steps in which a component of the state moves, (N,): it neither rests nor is at a wall."""
        return np.abs(changes[:, d]) > BLOCKED * self.change_std[d]


@dataclass(frozen=True)
class _Effect:
    """What a component of the action does in new episodes, see `_compare_effect`.

    Attributes:
        error: As that of `MotionModel`.
        moved_by: The component of the action that moves what this one moves in the data.
    """

    gain: float
    offset: float
    convention: float
    error: float
    moved_by: int


def fit_motion(episodes: Episodes) -> MotionModel | None:
    """Fits the model. None without enough steps, or if actions explain no motion."""
    fits = {lag: _fit_lag(episodes, lag) for lag in LAGS}
    best = {lag: fit for lag, fit in fits.items() if fit is not None}
    if not best:
        return None
    lag = min(best, key=lambda k: np.sort(best[k].unexplained)[:best[k].n_actions].mean())
    if lag != 0 and 0 in best and not _is_clear(best[lag].unexplained, best[0].unexplained, best[0].n_actions):
        lag = 0
    fit = best[lag]
    driven = {i: d for i, (d, effect) in enumerate(fit.strongest()) if fit.unexplained[d] < DRIVEN and effect > STRONG}
    if not driven:
        return None
    components = sorted(set(driven.values()))
    unexplained = {k: float(f.unexplained[components].mean()) for k, f in best.items()}
    return MotionModel(lag, unexplained, driven, fit.weights, fit.actions.mean(0), fit.actions.std(0),
                       fit.states.mean(0), fit.change_std)


def check_recorded_lag(model: MotionModel) -> Iterator[RunFinding]:
    """Finds recorded actions that are stored some steps too late or too early."""
    if model.lag == 0:
        return
    late = "late" if model.lag < 0 else "early"
    yield RunFinding(
        "action-shift", "fault", f"in the data, the motion of a step is explained best by the action "
        f"{abs(model.lag)} step{'s' * (abs(model.lag) > 1)} {'later' if model.lag < 0 else 'before'} "
        f"({1 - model.unexplained[model.lag]:.0%} of what the state leaves open, {1 - model.unexplained[0]:.0%} by its "
        f"own action): the actions are stored {late}, or the robot reacts late", model.lag, (0, 0),
        "shift the actions so that each is in the row of the observation it was chosen from, and train again",
        ("audit", "DATA"), Location(feature="action"))


def check_motion(model: MotionModel, probes: Episodes, action_names: Sequence[str], state_names: Sequence[str]
                 ) -> Iterator[RunFinding]:
    """Compares the motion in new episodes with the model of the data.

    Args:
        probes: Episodes with recorded actions from other starts.
        action_names: (A,).
        state_names: (D,).
    """
    states, actions, changes = _rows(probes, model.lag)
    effects = {}
    for i, d in model.driven.items():
        free = model.is_free(changes, d)
        if free.sum() < _least_rows(model):
            continue
        open_change = changes[free, d] - model.weights[0, d] - states[free] @ model.weights[1:1 + states.shape[1], d]
        effects[i] = _compare_effect(model, i, d, open_change, states[free], actions[free])
    fitted = float(np.mean([e.error for e in effects.values()])) if len(effects) == len(model.driven) else np.inf
    finding = (_check_rearranged(model, probes, fitted, action_names, state_names)
               or _check_refitted_lag(model, probes))
    yield from _gain_findings(effects, model, action_names, state_names) if finding is None else (finding,)


def _least_rows(model: MotionModel) -> int:
    return 5 * (2 + len(model.action_std))


def _check_rearranged(model: MotionModel, probes: Episodes, fitted: float, action_names: Sequence[str],
                      state_names: Sequence[str]) -> RunFinding | None:
    """Another delay or another order of the components, if the model of the data predicts the new motion so.

    Nothing is fitted: with another scale, offset or convention, each delay and each order leaves a large error.

    Args:
        fitted: Error with the best scale, offset and convention of each component. If it is much smaller, these explain
            the motion.
    """
    own = _rows(probes, model.lag, range(model.lag, model.lag + 1))
    if len(own[0]) < _least_rows(model):
        return None
    order, ordered = _best_order(model, *own)
    changes: list[tuple[float, float, dict[int, int] | int]] = [(ordered, model.error(*own), order)]
    for delay in DELAYS:
        lags = range(model.lag + min(delay, 0), model.lag + max(delay, 0) + 1)
        later, usual = (_rows(probes, lag, lags) for lag in (model.lag + delay, model.lag))
        if len(later[0]) >= _least_rows(model):
            changes.append((model.error(*later), model.error(*usual), delay))
    clear = [each for each in changes if each[1] > EXACT and each[0] < CLEAR * each[1]]
    error, usual, change = min(clear or changes, key=lambda each: each[0])
    if not clear or CLEAR * error > max(fitted, EXACT):
        return None
    evidence = (f"so, what the data say of a step is wrong by {error:.0%} of the usual step, and otherwise by "
                f"{usual:.0%}")
    return (_latency(change, evidence) if isinstance(change, int)
            else _order_finding(model, change, evidence, action_names, state_names))


def _best_order(model: MotionModel, states: np.ndarray, actions: np.ndarray, changes: np.ndarray
                ) -> tuple[dict[int, int], float]:
    """The order of the components of the action, or of the state that they drive, with the least error.

    Each step exchanges two.

    Returns:
        For each component of the action the one that moves what it moves in the data, and the error.
    """
    def error(order: dict[int, int], of_state: bool) -> float:
        if not of_state:
            exchanged = actions.copy()
            exchanged[:, list(order)] = actions[:, list(order.values())]
            return model.error(states, exchanged, changes)
        observed, places = ([model.driven[i] for i in part] for part in (order, order.values()))
        own_states, own_changes = states.copy(), changes.copy()
        own_states[:, places], own_changes[:, places] = states[:, observed], changes[:, observed]
        return model.error(own_states, actions, own_changes)
    best = []
    for of_state in (False, True):
        order = {i: i for i in model.driven}
        least = error(order, of_state)
        while True:
            swapped = [{**order, i: order[j], j: order[i]} for i, j in combinations(order, 2)]
            errors = [error(each, of_state) for each in swapped]
            if not errors or min(errors) >= least:
                break
            order, least = swapped[int(np.argmin(errors))], min(errors)
        best.append((order, least))
    return min(best, key=lambda each: each[1])


def _order_finding(model: MotionModel, order: dict[int, int], evidence: str, action_names: Sequence[str],
                   state_names: Sequence[str]) -> RunFinding:
    moved = {i: other for i, other in order.items() if i != other}
    pairs = ", ".join(f"{action_names[other]} moves {state_names[model.driven[i]]}"
                      for i, other in list(moved.items())[:8])
    return RunFinding(
        "component-order", "fault", "the components of the action, or those of the state, have another order than in "
        f"the data: action {pairs} ({evidence})", len(moved), (0, 0),
        "bring the components of actions and observations into the order of the data", ("replay", "DATA", "ENV"),
        Location(feature="action"))


def _check_refitted_lag(model: MotionModel, probes: Episodes) -> RunFinding | None:
    """Another delay, if a model that is fitted to the new motion explains much more with it."""
    components = sorted(set(model.driven.values()))
    fits = {lag: fit for lag in LAGS if (fit := _fit_lag(probes, lag)) is not None}
    if model.lag not in fits:
        return None
    unexplained = {lag: float(f.unexplained[components].mean()) for lag, f in fits.items()}
    lag = min(unexplained, key=unexplained.__getitem__)
    if lag == model.lag or unexplained[lag] >= min(CLEAR * unexplained[model.lag], DRIVEN):
        return None
    return _latency(lag - model.lag, f"{1 - unexplained[lag]:.0%} of what the state leaves open is explained so, "
                    f"{1 - unexplained[model.lag]:.0%} with the delay of the data")


def _latency(steps: int, evidence: str) -> RunFinding:
    later = "later" if steps > 0 else "earlier"
    return RunFinding(
        "latency", "fault", f"the motion follows the action {'at least ' * (steps == DELAYS[-1])}{abs(steps)} "
        f"step{'s' * (abs(steps) > 1)} {later} than in the data ({evidence}): observations arrive late, or actions are "
        "executed late", steps, (0, 0),
        "remove the delay, or act with an executor that plans for it, such as real-time-chunking",
        ("replay", "DATA", "ENV"), Location(feature="action"))


def _compare_effect(model: MotionModel, i: int, d: int, open_change: np.ndarray, states: np.ndarray,
                    actions: np.ndarray) -> _Effect:
    """The gain of an action component, its offset in standard deviations, and how much more it depends on the state.

    1 more means that what acts adds the state to the action, -1 that it subtracts it. Only what many steps have in
    common is an offset: an average would also have the pushes of contacts.
    """
    weights_of_actions = model.weights[1 + states.shape[1]:, d]
    effect = weights_of_actions[i]
    spread = max(model.action_std[i], 1e-9)
    executed = (open_change - actions @ weights_of_actions) / effect + actions[:, i]
    if (constant := _constant_difference(executed / spread, actions[:, i] / spread)) is not None:
        missed = np.abs(effect * (executed - actions[:, i] - spread * constant))
        return _Effect(1.0, constant, 0.0, float(np.median(missed) / model.change_std[d]), i)
    place = actions - model.action_mean
    position = states[:, d] - model.state_mean[d]
    columns = np.column_stack([np.ones(len(place)), place, position])
    weights, errors = trimmed_least_squares(columns, open_change)
    gain, extra = weights[1 + i] / effect, weights[-1] / effect
    convention = float(extra) if abs(extra) > 4 * errors[-1] / abs(effect) else 0.0
    missed = np.abs(open_change - columns @ weights)
    more = np.abs(weights[1:-1] - weights_of_actions) / np.abs(effect)  # what each component does beyond the data
    more[i] = abs(gain)
    other = int(np.argmax(more))
    return _Effect(float(gain), 0.0, convention, float(np.median(missed) / model.change_std[d]),
                   other if more[other] > GAINS[0] / 2 else i)


def _constant_difference(executed: np.ndarray, actions: np.ndarray) -> float | None:
    """The constant by which many executed actions differ from the commanded ones, in standard deviations.

    The others are contacts and limits. It is a constant if a fraction `AGREE` of the steps differ by it, within `NEAR`,
    and if these actions have a fraction `RANGE` of the spread of all.
    """
    difference = executed - actions
    ordered = np.sort(difference)
    counts = np.searchsorted(ordered, ordered + 2 * NEAR) - np.arange(len(ordered))
    first = int(np.argmax(counts))
    agree = (difference >= ordered[first]) & (difference <= ordered[first] + 2 * NEAR)
    if agree.mean() < AGREE or actions[agree].std() < RANGE * actions.std():
        return None
    return float(np.median(difference[agree]))


def _gain_findings(effects: dict[int, _Effect], model: MotionModel, names: Sequence[str], state_names: Sequence[str]
                   ) -> Iterator[RunFinding]:
    if not effects:
        return
    gains, offsets, conventions = ({i: getattr(e, part) for i, e in effects.items()}
                                   for part in ("gain", "offset", "convention"))
    flipped = [i for i, g in gains.items() if g < -GAINS[0] / 2]
    changed = [i for i, g in gains.items() if i not in flipped and not GAINS[0] <= g <= GAINS[1]]
    related = [i for i, extra in conventions.items() if i not in flipped and abs(extra) > CONVENTION]
    if flipped:
        i = flipped[0]
        yield RunFinding(
            "sign-flip", "fault", f"action {format_list(names[k] for k in flipped)} moves "
            f"{format_list(state_names[model.driven[k]] for k in flipped)} in the opposite direction of the data",
            gains[i], GAINS, "turn the sign of this joint around, where it is read or where it is sent",
            ("replay", "DATA", "ENV"), Location(feature=names[i]))
    elif len(related) > len(gains) / 2:
        extra = float(np.median([conventions[i] for i in related]))
        kinds = ("relative", "absolute") if extra > 0 else ("absolute", "relative")
        yield RunFinding(
            "action-convention", "fault", f"what acts takes the actions as {kinds[0]} ones, and in the data they are "
            f"{kinds[1]}: the position is {'added to' if extra > 0 else 'subtracted from'} them (action "
            f"{format_list(names[k] for k in related)})", extra, (-CONVENTION, CONVENTION),
            "use the same convention in the data and where the policy acts", ("replay", "DATA", "ENV"),
            Location(feature="action"))
    elif changed and (moved_by := {i: effects[i].moved_by for i in changed if effects[i].moved_by != i}):
        yield _order_finding(model, moved_by, "as a model of the new motion says", names, state_names)
    elif changed:
        yield _scale_finding(gains, changed, names)
    else:
        drifted = [i for i, offset in offsets.items() if abs(offset) > OFFSET]
        if drifted:
            worst = max(drifted, key=lambda k: abs(offsets[k]))
            yield RunFinding(
                "calibration-drift", "fault", f"actions act as if a constant were added to "
                f"{format_list(names[k] for k in drifted)}: "
                + ", ".join(f"{offsets[k] * model.action_std[k]:.3g}" for k in drifted[:8])
                + f", {abs(offsets[worst]):.2g} standard deviations of the recorded ones", offsets[worst],
                (-OFFSET, OFFSET), "calibrate again, or remove the offset", ("robot", "check", "--data", "DATA"),
                Location(feature=names[worst]))


def _scale_finding(gains: dict[int, float], changed: list[int], names: Sequence[str]) -> RunFinding:
    i = max(changed, key=lambda k: abs(np.log(max(abs(gains[k]), 1e-9))))
    unit = unit_of_ratio(gains[i])
    if unit is None and abs(gains[i]) < HARDLY:
        return RunFinding(
            "action-scale", "fault", f"an action hardly moves what it moves in the data "
            f"({format_list(names[k] for k in changed)}): {gains[i]:.2g} times as far", gains[i], GAINS,
            "check that the joint moves at all, that actions and observations have the order of the data, and that the "
            f"motion is not more than {DELAYS[-1]} steps late: longer delays are not tried",
            ("replay", "DATA", "ENV"), Location(feature=names[i]))
    text = f"an action has {gains[i]:.3g} times the effect that it has in the data"
    return RunFinding(
        "action-units" if unit else "action-scale", "fault",
        f"{text} ({format_list(names[k] for k in changed)})" + (f", as between {unit}" if unit else ""), gains[i],
        GAINS, "bring the actions of the policy and of what acts to one unit and range", ("replay", "DATA", "ENV"),
        Location(feature=names[i]))


def trimmed_least_squares(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares without the tenth of the rows with the largest errors, which contacts cause.

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


@dataclass(frozen=True)
class _LagFit:
    """A linear model of the motion for one lag. Unexplained: fraction of the error without the action, (D,)."""

    weights: np.ndarray
    unexplained: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    open_std: np.ndarray
    change_std: np.ndarray

    @property
    def n_actions(self) -> int:
        return self.actions.shape[1]

    def strongest(self) -> list[tuple[int, float]]:
        """For each action component, the component of the state on which it has the largest effect, and that effect.

        Effects are standard deviations, as fractions of what the state leaves open.
        """
        effect = np.abs(self.weights[1 + self.states.shape[1]:]) * self.actions.std(0)[:, None]
        return [(int(np.argmax(row)), float(row.max())) for row in effect / self.open_std]


def _median_error(missed: np.ndarray, free: np.ndarray) -> float:
    return float(np.median(missed[free])) if free.any() else 0.0


def _is_clear(candidate: np.ndarray, usual: np.ndarray, count: int) -> bool:
    return np.sort(candidate)[:count].mean() < CLEAR * np.sort(usual)[:count].mean()


def _fit_lag(episodes: Episodes, lag: int) -> _LagFit | None:
    if not episodes:
        return None
    states, actions, changes = _rows(episodes, lag)
    if len(states) < max(50, 5 * (1 + states.shape[1] + actions.shape[1])):
        return None
    one = np.ones((len(states), 1))
    without = np.concatenate([one, states], 1)
    plain = changes - without @ np.linalg.lstsq(without, changes, rcond=1e-9)[0]
    both = np.concatenate([without, actions], 1)
    weights = np.linalg.lstsq(both, changes, rcond=1e-9)[0]
    missed = changes - both @ weights
    open_std = plain.std(0)
    # otherwise the state alone predicts the motion, or nothing moves, or it is a flag
    live = (open_std > 1e-6 + 1e-3 * changes.std(0)) & [len(np.unique(column[:1000])) > 3 for column in states.T]
    unexplained = np.where(live, np.square(missed).mean(0) / np.maximum(np.square(plain).mean(0), 1e-18), 1.0)
    return _LagFit(weights, unexplained, states, actions, np.where(live, open_std, np.inf), changes.std(0))


def _rows(episodes: Episodes, lag: int, lags: range = LAGS) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States, actions `lag` steps before, and changes of the states, at the same steps for each lag of `lags`."""
    first, last = max(0, *lags), max(0, *(-each for each in lags))
    parts = [(s[first:len(a) - last], a[first - lag:len(a) - last - lag], np.diff(s, axis=0)[first:len(a) - last])
             for s, a in episodes if len(a) > first + last]
    if not parts:
        (s, a), *_ = episodes
        return np.zeros((0, s.shape[1])), np.zeros((0, a.shape[1])), np.zeros((0, s.shape[1]))
    states, actions, changes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return states, actions, changes
