"""What actions do: the motion in recorded episodes against the motion in new ones.

A linear model predicts the change of the state in a step, s' - s, from s and the action. Each action component has a
component of the state that it drives. New episodes that repeat recorded actions from other starts tell the effect of an
action from that of the state, which episodes of the policy cannot: its actions follow from the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from ..audit.base import Location
from ..audit.compatibility import unit_factor, unit_of_ratio
from ..audit.motion import CLEAR, MotionFit, Transitions, best_lag, fit_lags, state_change
from ..data.formats.parts.column_names import format_list
from ..hints import pluralize
from .base import RunFinding, correct_data, correct_order

Episodes = Sequence[Transitions]

DELAYS = range(-2, 21)  # steps that the motion in new episodes may be later than in the data
DRIVEN = 0.2  # largest unexplained fraction of the change of a driven component
EXACT = 0.01  # of the usual change: a smaller error of its prediction leaves nothing to explain
GAINS = (0.6, 1.6)  # effect of an action in new episodes, as a multiple of that in the data
HARDLY = 0.05  # effect of an action of another joint, or of a motor that is off
OFFSET = 0.25  # of the standard deviation of the action
STRONG = 0.3  # effect of an action component on what it drives, see `MotionFit.strongest`
BLOCKED = 1e-3  # of the usual change of a component: one that changes less is at a wall
NEAR, AGREE, RANGE = 0.1, 0.3, 0.5  # see _constant_difference
CONVENTION = (0.5, 2.0)  # of the dependence on the position that another convention would bring
JUDGED = 0.2  # smallest effect in the data, as that of the model: a component with less is not judged
SELDOM = 0.1  # of the usual fraction of steps in which a component moves: it hardly moves
NOISE = 0.5  # noise of an observation, as a fraction of its usual change
SLOW = 1  # steps by which most robots react late


@dataclass(frozen=True)
class MotionModel:
    """A linear model of the motion in the data.

    Attributes:
        lag: Steps from an action to the motion that it explains.
        driven: For each action component that drives one, the component of the state.
    """

    fit: MotionFit
    lag: int
    driven: dict[int, int]

    @property
    def weights_of_states(self) -> np.ndarray:
        """The change by the state, (D, D)."""
        return self.fit.state_action.weights[1:-self.fit.n_actions]

    @property
    def weights_of_actions(self) -> np.ndarray:
        """The change by the action, (A, D)."""
        return self.fit.state_action.weights[-self.fit.n_actions:]

    @property
    def action_std(self) -> np.ndarray:
        return self.fit.state_action.spread[-self.fit.n_actions:]

    @property
    def unexplained(self) -> float:
        """Unexplained fraction of the change of the driven components."""
        return float(self.fit.unexplained_parts[sorted(set(self.driven.values()))].mean())

    def missed(self, states: np.ndarray, actions: np.ndarray, changes: np.ndarray) -> np.ndarray:
        """Errors of the predicted changes, (N, D)."""
        return self.fit.state_action.residual(np.concatenate([states, actions], 1), changes)

    def error(self, states: np.ndarray, actions: np.ndarray, changes: np.ndarray) -> float:
        """Error of the predicted changes: usual changes, the mean of the driven components.

        It is the median of the steps in which a component moves, so that speed limits and contacts matter little.
        """
        missed = np.abs(self.missed(states, actions, changes))
        return float(np.mean([_median_error(missed[:, d], self.is_free(changes, d)) / self.fit.change[d]
                              for d in sorted(set(self.driven.values()))]))

    def is_free(self, changes: np.ndarray, d: int) -> np.ndarray:
        """Steps in which a component of the state moves, (N,): it neither rests nor is at a wall."""
        return np.abs(changes[:, d]) > BLOCKED * self.fit.change[d]


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


def motion_model(fits: Mapping[int, MotionFit]) -> MotionModel | None:
    """The model with the clear lag. None without enough steps, or if actions explain no motion."""
    if 0 not in fits:
        return None
    lag = clear_lag(fits)
    fit = fits[lag]
    driven = {i: d for i, (d, effect) in enumerate(fit.strongest())
              if fit.unexplained_parts[d] < DRIVEN and effect > STRONG}
    return MotionModel(fit, lag, driven) if driven else None


def clear_lag(fits: Mapping[int, MotionFit]) -> int:
    """The lag at which actions explain the motion clearly better than at once, or else 0."""
    best, is_clear = best_lag(fits)
    return best if is_clear else 0


def check_recorded_lag(fits: Mapping[int, MotionFit], new: Mapping[int, MotionFit]) -> Iterator[RunFinding]:
    """Finds recorded actions that are stored some steps too late or too early.

    Where the robot reacts late, actions explain a later motion, although they are in the right rows. Where the policy
    acts the same actions then explain a motion that is as late.

    Args:
        fits: Those of the data, by their lag.
        new: Those of episodes that repeat the actions where the policy acts. Empty for none.
    """
    if 0 not in fits or (lag := clear_lag(fits)) == 0:
        return
    usual = clear_lag(new) if 0 in new else 0
    steps = lag - max(usual, 0)
    if lag > 0 and steps == 0:
        return
    is_certain = lag < 0 or 0 in new
    explained = {k: f"{1 - fits[k].unexplained:.0%}" for k in (0, lag)}
    yield RunFinding(
        "action-shift", "fault" if is_certain else "warning" if lag > SLOW else "note",
        f"in the data, the motion of a step is explained best by the action {pluralize(abs(lag), 'step')} "
        f"{'later' if lag < 0 else 'before'} ({explained[lag]} of what the state leaves open, {explained[0]} by its "
        f"own action): the actions are stored {'late' if lag < 0 else 'early'}"
        + ("" if lag < 0 else f", because here the motion follows after {pluralize(usual, 'step')}" if is_certain else
           ", or the robot reacts late"), steps, (0, 0),
        "shift the actions so that each is in the row of the observation it was chosen from, and train again",
        correct_data("--shift", f"action={steps}"), Location(feature="action"))


def check_motion(model: MotionModel, recorded: Episodes, probes: Episodes, action_names: Sequence[str],
                 state_names: Sequence[str]) -> Iterator[RunFinding]:
    """Compares the motion in new episodes with that in the data.

    Both are estimated in the same way. So what a linear model gets wrong, such as walls, is wrong in both.

    Args:
        recorded: Those of the data.
        probes: Episodes with recorded actions from other starts.
        action_names: (A,).
        state_names: (D,).
    """
    usual, own = (_rows(episodes, model.lag) for episodes in (recorded, probes))
    effects = _effects(model, usual, own)
    fitted = float(np.mean([e.error for e in effects.values()])) if len(effects) == len(model.driven) else np.inf
    finding = (_check_rearranged(model, probes, fitted, action_names, state_names)
               or _check_refitted_lag(model, probes) or _check_noise(model, usual, own, state_names))
    yield from _gain_findings(effects, model, action_names, state_names) if finding is None else (finding,)


def _check_noise(model: MotionModel, usual: tuple[np.ndarray, ...], own: tuple[np.ndarray, ...],
                 state_names: Sequence[str]) -> RunFinding | None:
    noise = {}
    for d in sorted(set(model.driven.values())):
        before, after = (_noise(model, d, *rows) / model.fit.change[d] for rows in (usual, own))
        if after > max(NOISE, 3 * before):
            noise[d] = after
    if not noise:
        return None
    worst = max(noise, key=noise.__getitem__)
    return RunFinding(
        "observation-noise", "fault", f"{format_list(state_names[d] for d in noise)} jumps back and forth: its noise "
        f"is {noise[worst]:.3g} times the usual step, and in the data there is much less", noise[worst], (0, NOISE),
        "look at the sensor, and filter it as in the recording", ("inspect", "DATA"),
        Location(feature=state_names[worst]))


def _noise(model: MotionModel, d: int, states: np.ndarray, actions: np.ndarray, changes: np.ndarray) -> float:
    """Standard deviation of the noise of an observation, by which the errors of subsequent steps are opposite."""
    missed = model.missed(states, actions, changes)[:, d]
    return float(np.sqrt(max(-np.mean(missed[1:] * missed[:-1]), 0))) if len(missed) > 1 else 0.0


def _effects(model: MotionModel, usual: tuple[np.ndarray, ...], own: tuple[np.ndarray, ...]) -> dict[int, _Effect]:
    """Effects of the components of the action in new episodes, relative to those in the data."""
    effects = {}
    for i, d in model.driven.items():
        free, usually_free = (model.is_free(rows[2], d) for rows in (own, usual))
        expected = usually_free.mean() * len(free)
        if usually_free.sum() < _least_rows(model):
            continue
        reference = _compare_effect(model, i, d, *(column[usually_free] for column in usual))
        if reference.gain < JUDGED:
            continue
        if free.sum() < SELDOM * expected and expected > _least_rows(model):
            effects[i] = _Effect(0.0, 0.0, 0.0, np.inf, i)
        elif free.sum() >= _least_rows(model):
            effect = _compare_effect(model, i, d, *(column[free] for column in own))
            effects[i] = replace(effect, gain=effect.gain / reference.gain, offset=effect.offset - reference.offset,
                                 convention=effect.convention - reference.convention)
    return effects


def _least_rows(model: MotionModel) -> int:
    return 5 * (2 + model.fit.n_actions)


def _check_rearranged(model: MotionModel, probes: Episodes, fitted: float, action_names: Sequence[str],
                      state_names: Sequence[str]) -> RunFinding | None:
    """Another delay or another order of the components, if the model of the data predicts the new motion so.

    Nothing is fitted: with another scale, offset or convention, each delay and each order leaves a large error.

    Args:
        fitted: Error with the best scale, offset and convention of each component. If it is much smaller, these explain
            the motion.
    """
    own = _rows(probes, model.lag)
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
    is_order = {*moved} == {*moved.values()}
    command = (correct_order("action", action_names, {other: i for i, other in moved.items()}) if is_order
               else ("replay", "DATA", "ENV"))
    return RunFinding(
        "component-order", "fault", "the components of the action, or those of the state, have another order than in "
        f"the data: action {pairs} ({evidence})", len(moved), (0, 0),
        "bring the components into the order of the data where the policy acts. If that of the data is wrong, correct "
        "the data, and train again", command, Location(feature="action"))


def _check_refitted_lag(model: MotionModel, probes: Episodes) -> RunFinding | None:
    """Another delay, if a model that is fitted to the new motion explains much more with it."""
    components = sorted(set(model.driven.values()))
    unexplained = {lag: float(fit.unexplained_parts[components].mean()) for lag, fit in fit_lags(probes).items()}
    if model.lag not in unexplained:
        return None
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


def _compare_effect(model: MotionModel, i: int, d: int, states: np.ndarray, actions: np.ndarray, changes: np.ndarray
                    ) -> _Effect:
    """The gain of an action component, its offset in standard deviations, and how much more it depends on the state.

    1 more means that what acts adds the state to the action, -1 that it subtracts it. Only what many steps have in
    common is an offset: an average would also have the pushes of contacts.
    """
    weights_of_actions = model.weights_of_actions[:, d]
    effect, usual = weights_of_actions[i], model.fit.change[d]
    spread = max(model.action_std[i], 1e-9)
    missed = model.missed(states, actions, changes)[:, d]
    executed = missed / effect + actions[:, i]
    if (constant := _constant_difference(executed / spread, actions[:, i] / spread)) is not None:
        missed = np.abs(effect * (executed - actions[:, i] - spread * constant))
        return _Effect(1.0, constant, 0.0, float(np.median(missed) / usual), i)
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
    return _Effect(float(gain), 0.0, convention, float(np.median(missed) / usual),
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
    related = [i for i, extra in conventions.items() if i not in flipped and CONVENTION[0] < abs(extra) < CONVENTION[1]]
    if flipped:
        i = flipped[0]
        yield RunFinding(
            "sign-flip", "fault", f"action {format_list(names[k] for k in flipped)} moves "
            f"{format_list(state_names[model.driven[k]] for k in flipped)} in the opposite direction of the data",
            gains[i], GAINS, "turn the sign of this joint around, where it is read or where it is sent. If that of the "
            "data is wrong, correct the data, and train again",
            correct_data("--sign", f"action[{','.join(names[k] for k in flipped)}]"), Location(feature=names[i]))
    elif len(related) > len(gains) / 2:
        extra = float(np.median([conventions[i] for i in related]))
        kinds = ("relative", "absolute") if extra > 0 else ("absolute", "relative")
        yield RunFinding(
            "action-convention", "fault", f"what acts takes the actions as {kinds[0]} ones, and in the data they are "
            f"{kinds[1]}: the position is {'added to' if extra > 0 else 'subtracted from'} them (action "
            f"{format_list(names[k] for k in related)})", extra, (-CONVENTION[0], CONVENTION[0]),
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
        GAINS, "bring the actions of the policy and of what acts to one unit and range. If those of the data are "
        "wrong, correct the data, and train again",
        correct_data("--scale", f"action[{','.join(names[k] for k in changed)}]={1 / unit_factor(1 / gains[i]):.3g}"),
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


def _median_error(missed: np.ndarray, free: np.ndarray) -> float:
    return float(np.median(missed[free])) if free.any() else 0.0


def _rows(episodes: Episodes, lag: int, lags: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """States, actions `lag` steps before, and changes of the states, at the same steps for each lag of `lags`."""
    first, last = max(0, lag, *lags), max(0, -lag, *(-each for each in lags))
    parts = [(s[first:len(a) - last], a[first - lag:len(a) - last - lag], state_change(s)[first:len(a) - last])
             for s, a in episodes if len(a) > first + last]
    if not parts:
        (s, a), *_ = episodes
        return np.zeros((0, s.shape[1])), np.zeros((0, a.shape[1])), np.zeros((0, s.shape[1]))
    states, actions, changes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return states, actions, changes
