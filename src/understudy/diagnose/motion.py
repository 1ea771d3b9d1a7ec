"""Compares what actions do to the state in recorded episodes with what they do in new ones.

A linear model predicts the change of the state in a step, s' - s, from s and the action. Each action component has a
component of the state that it drives. New episodes repeat recorded actions from other starts, so that the effect of an
action can be told from the effect of the state. Episodes of the policy cannot show this, because its actions follow
from the state.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np

from ..audit.base import Location
from ..audit.compatibility import unit_factor, unit_of_ratio
from ..audit.motion import CLEAR, MotionFit, Transitions, best_lag, fit_lags, lagged, state_change
from ..data.formats.parts.column_names import format_list
from ..hints import pluralize
from .base import RunFinding, correct_data, correct_order
from .effects import (
    GAINS,
    OFFSET,
    Effect,
    MotionModel,
    explain_effect,
    is_as_commanded,
    is_stuck,
    least_rows,
    regress_effect,
)

Episodes = Sequence[Transitions]

DELAYS = range(-2, 21)  # steps that the motion in new episodes may be later than in the data
DRIVEN = 0.2  # largest unexplained fraction of the change of a driven component
EXACT = 0.01  # fraction of the usual change: a smaller error of its prediction leaves nothing to explain
MAX_OFF_EFFECT = 0.05  # largest effect of an action of another joint, or of a motor that is off
STRONG = 0.3  # effect of an action component on what it drives, see `MotionFit.strongest`
CONVENTION = (0.5, 2.0)  # fraction of the dependence on the position that another convention would bring
JUDGED = 0.2  # fraction of the effect in the model: a component with a smaller effect in the data is not judged
SELDOM = 0.1  # multiple of the usual fraction of steps in which a component moves: below, it hardly moves
NOISE = 0.5  # noise of an observation, as a fraction of its usual change
SLOW = 1  # steps by which most robots react late


def motion_model(fits: Mapping[int, MotionFit]) -> MotionModel | None:
    """Fits the model of the motion at the lag that fits clearly best. None if actions explain no motion."""
    if 0 not in fits:
        return None
    lag = clear_lag(fits)
    fit = fits[lag]
    driven = {i: d for i, (d, effect) in enumerate(fit.strongest())
              if fit.unexplained_parts[d] < DRIVEN and effect > STRONG}
    return MotionModel(fit, lag, driven) if driven else None


def clear_lag(fits: Mapping[int, MotionFit]) -> int:
    """Returns the lag at which actions explain the motion clearly better than without a lag, or else 0."""
    best, is_clear = best_lag(fits)
    return best if is_clear else 0


def check_recorded_lag(fits: Mapping[int, MotionFit], new: Mapping[int, MotionFit]) -> Iterator[RunFinding]:
    """Finds recorded actions that are stored some steps too late or too early.

    Where the robot reacts late, actions explain a later motion, although they are in the right rows. Where the policy
    acts the same actions then explain a motion that is as late.

    Args:
        fits: Fits of the motion in the data, by their lag.
        new: Fits of the motion in episodes that repeat the actions where the policy acts. Empty for none.
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
    """Compares the motion in new episodes with the motion in the data.

    Both are estimated in the same way. So what a linear model gets wrong, such as walls, is wrong in both.

    Args:
        recorded: Episodes of the data.
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
    """Returns the standard deviation of the noise of an observation, estimated from errors of subsequent steps."""
    missed = model.missed(states, actions, changes)[:, d]
    return float(np.sqrt(max(-np.mean(missed[1:] * missed[:-1]), 0))) if len(missed) > 1 else 0.0


def _effects(model: MotionModel, usual: tuple[np.ndarray, ...], own: tuple[np.ndarray, ...]) -> dict[int, Effect]:
    """Returns the effects of the action components in new episodes, relative to their effects in the data."""
    effects = {}
    for i, d in model.driven.items():
        free, usually_free = (model.is_free(rows[2], d) for rows in (own, usual))
        expected = usually_free.mean() * len(free)
        if usually_free.sum() < least_rows(model):
            continue
        usual_rows, own_rows = ([column[part] for column in rows]
                                for rows, part in ((usual, usually_free), (own, free)))
        reference = regress_effect(model, i, d, *usual_rows)
        if reference.gain < JUDGED:
            continue
        if free.sum() < SELDOM * expected and expected > least_rows(model):
            effects[i] = Effect(0.0, 0.0, 0.0, np.inf, i, is_stuck(usual[0][:, d], own[0][:, d]))
        elif free.sum() >= least_rows(model):
            effect = (explain_effect(model, i, d, *own_rows)
                      if is_as_commanded(explain_effect(model, i, d, *usual_rows)) else None)
            if effect is None:
                effect = regress_effect(model, i, d, *own_rows)
                effect = replace(effect, gain=effect.gain / reference.gain,
                                 convention=effect.convention - reference.convention)
            effects[i] = effect
    return effects


def _check_rearranged(model: MotionModel, probes: Episodes, fitted: float, action_names: Sequence[str],
                      state_names: Sequence[str]) -> RunFinding | None:
    """Finds another delay, or another order of components, with which the model of the data predicts the new motion.

    Nothing is fitted: with another scale, offset or convention, each delay and each order leaves a large error.

    Args:
        fitted: Error with the best scale, offset and convention of each component. If it is much smaller, these explain
            the motion.
    """
    own = _rows(probes, model.lag)
    if len(own[0]) < least_rows(model):
        return None
    order, ordered = _best_order(model, *own)
    changes: list[tuple[float, float, dict[int, int] | int]] = [(ordered, model.error(*own), order)]
    for delay in DELAYS:
        lags = range(model.lag + min(delay, 0), model.lag + max(delay, 0) + 1)
        later, usual = (_rows(probes, lag, lags) for lag in (model.lag + delay, model.lag))
        if len(later[0]) >= least_rows(model):
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
    """Returns the order of the action components, or of the state components they drive, with the least error.

    Each step exchanges two.

    Returns:
        For each action component, the action component that now moves what it moves in the data; and the error.
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
    """Finds another delay of the actions if a model that is fitted to the new motion explains much more with it."""
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


def _gain_findings(effects: dict[int, Effect], model: MotionModel, names: Sequence[str], state_names: Sequence[str]
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
            "action-convention", "fault", f"the environment or robot takes the actions as {kinds[0]} ones, and in the "
            f"data they are {kinds[1]}: the position is {'added to' if extra > 0 else 'subtracted from'} them (action "
            f"{format_list(names[k] for k in related)})", extra, (-CONVENTION[0], CONVENTION[0]),
            "use the same convention in the data and where the policy acts", ("replay", "DATA", "ENV"),
            Location(feature="action"))
    elif stuck := [i for i in changed if effects[i].is_stuck]:
        parts = format_list(state_names[model.driven[i]] for i in stuck)
        yield RunFinding(
            "constant-sensor", "fault", f"{parts} never changes, and in the data action "
            f"{format_list(names[i] for i in stuck)} moves it: the sensor hangs, or is not connected", 0,
            (GAINS[0], None), "look at the sensor and at what reads it", ("inspect", "DATA"),
            Location(feature=state_names[model.driven[stuck[0]]]))
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
    if unit is None and abs(gains[i]) < MAX_OFF_EFFECT:
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
        GAINS, "bring the actions of the policy and of the environment or robot to one unit and range. If those of the "
        "data are wrong, correct the data, and train again",
        correct_data("--scale", f"action[{','.join(names[k] for k in changed)}]={1 / unit_factor(1 / gains[i]):.3g}"),
        Location(feature=names[i]))


def _rows(episodes: Episodes, lag: int, lags: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns states, actions `lag` steps before, and state changes of all episodes, where all of `lags` exist."""
    parts = [lagged(s, a, state_change(s), lag, lags) for s, a in episodes]
    states, actions, changes = (np.concatenate(column) for column in zip(*parts, strict=True))
    return states, actions, changes
