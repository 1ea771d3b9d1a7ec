"""Compares what a policy observes where it acts with the recorded observations: columns, units, sensors, starts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import scipy.optimize
import scipy.stats
from scipy.spatial import cKDTree

from ..audit.base import Location
from ..audit.compatibility import unit_factor, unit_of_ratio
from ..core import Schema
from ..data.formats.parts.column_names import format_list
from ..hints import nearest_names, unit_hint
from .base import RunFinding, correct_data, correct_order

SPREAD = (1 / 3, 3.0)  # spread of the first observations, as a multiple of their spread in the data
CHANCE = 1e-3  # largest p-value of equal spreads for which another spread counts
OUTSIDE = 0.25  # fraction of the episodes that start outside of the range of the recorded starts
MARGIN_OF_STARTS = 0.1  # fraction of the spread: starts that are less outside count as inside
FAR_AWAY = 6.0  # multiple of the spread: the margin for one or two starts
ALIKE = 0.01  # p-value from which components have the same distribution
AT_END = 0.02  # fraction of the recorded range: a component that rests there may be held by a limit
VARIES = 0.05  # fraction of the spread over all steps: components that spread less at the start begin alike
RESTING = 10.0  # size of a single observation, as a multiple of the size of recorded observations
MOVES = 0.95  # fraction of the recorded episodes in which a component moves, if its sensor may be judged
SOON = 10  # steps within which it moves
NOVEL = 0.8  # fraction of the steps with novel observations
CLIPPED, EXCEEDS = 0.1, 0.5  # fractions of the recorded actions, and of the policy's actions, outside the limits
OTHER_UNIT_RATIO = 5.0  # recorded actions, as a multiple of the limits, from which on their unit is another one
MARGIN = 0.1  # fraction of the range of a component: experts and noisy policies exceed limits by less
WIDEST_ORDER = 30  # largest number of components of which the order is compared
POINTS = 20_000  # recorded steps among which neighbors are looked for


def check_columns(inputs: Schema, observed: Schema, sizes: Mapping[str, Sequence[int]]) -> Iterator[RunFinding]:
    """Finds columns that the policy reads and the environment lacks, and columns of another size.

    Args:
        inputs: Columns that the policy reads from what it acts in.
        observed: Columns that it shows.
        sizes: Height and width of each camera in the recording.
    """
    for name, feature in inputs.items():
        location = Location(feature=name)
        if name not in observed:
            spare = [n for n in observed if observed[n].kind == feature.kind and n not in inputs]
            similar = next(iter(nearest_names(name, spare)), None)
            yield RunFinding(
                "missing-column", "fault", f"the policy reads {name}, which is not shown; "
                f"{', '.join(n for n in observed if n != 'action')} are", 0, (1, 1),
                f"give {similar} the name that it had in training, if it is the same" if similar
                else "show it, or train without it", ("inspect", "DATA"), location)
        elif feature.kind == "image" and name in sizes and tuple(sizes[name]) != observed[name].shape[:2]:
            (height, width), (own_height, own_width) = observed[name].shape[:2], sizes[name]
            yield RunFinding(
                "camera-size", "fault", f"{name} has {height} x {width} pixels, and was recorded with {own_height} x "
                f"{own_width}: the policy sees another part of the scene, or a distorted one", height / own_height,
                (1, 1), "set the camera to the size of the recording", ("inspect", "DATA"), location)
        elif feature.kind != "image" and feature.shape != observed[name].shape:
            yield RunFinding(
                "missing-column", "fault", f"the policy reads {name} with shape {feature.shape}, but it has "
                f"{observed[name].shape}", observed[name].size, (feature.size, feature.size),
                "show the components that were recorded", ("inspect", "DATA"), location)
        elif (problem := feature.disagreement(observed[name])) is not None:
            yield RunFinding(
                "observation-units", "fault", f"{name} was recorded with {problem}", 0, (1, 1),
                unit_hint(feature.unit, observed[name].unit, "bring the components into one order and unit"),
                ("inspect", "DATA"), location)


def check_starts(name: str, parts: Sequence[str], recorded: Sequence[np.ndarray], observed: Sequence[np.ndarray]
                 ) -> Iterator[RunFinding]:
    """Compares the first observations of new episodes, which no action has changed yet, with the recorded ones.

    Args:
        parts: Names of its components, (D,).
        recorded: The column in recorded episodes, (T, D) each.
        observed: The same where the policy acts.
    """
    first, begins = (np.array([e[0] for e in episodes], np.float64) for episodes in (recorded, observed))
    total = np.concatenate(recorded).std(0)
    mean, spread = first.mean(0), first.std(0)
    shift, own_spread = begins.mean(0) - mean, begins.std(0)
    chance = _chance_of_spread(own_spread, len(begins), spread, len(first))
    outside = _outside(first, begins, np.maximum(spread, VARIES * total))
    speed, own_speed = (np.mean([np.abs(np.diff(e, axis=0)).mean(0) for e in episodes if len(e) > 1] or [total * 0],
                                axis=0) for episodes in (recorded, observed))
    constant = _constant(recorded, observed)
    size = float(np.sqrt(np.mean(begins**2) / max(np.mean(np.concatenate(recorded)**2), 1e-18)))
    if len(begins) == 1 and size > RESTING:  # a robot that rests anywhere
        unit = unit_of_ratio(size)
        yield RunFinding(
            "observation-units", "fault", f"{name} is {size:.3g} times as large as in the data"
            + (f", as between {unit}" if unit else ""), size, (0, RESTING),
            "convert the observation to the unit of the data", ("inspect", "DATA"), Location(feature=name))
        return
    if order := _order_of_starts(first, begins):
        pairs = ", ".join(f"{name}[{parts[i]}] begins as {name}[{parts[j]}] does in the data" for i, j in order.items())
        yield RunFinding(
            "component-order", "fault", f"components have another order than in the data: {pairs}", len(order), (0, 0),
            "bring the components into the order of the data where the policy acts. If that of the data is wrong, "
            "correct the data, and train again", correct_order(name, parts, order), Location(feature=name))
    for d in np.flatnonzero((total > 1e-9) & ~constant & ~np.isin(np.arange(len(total)), list(order))):
        varies = spread[d] > VARIES * total[d] and len(begins) > 2
        ratio = (own_spread[d] / spread[d] if varies else (mean[d] + shift[d]) / mean[d] if abs(mean[d]) > total[d]
                 else 1.0)
        unit, location = unit_of_ratio(ratio), Location(feature=f"{name}[{parts[d]}]")
        scaled = (abs(mean[d] + shift[d] - ratio * mean[d]) < 2 * own_spread[d] if varies  # the mean too
                  else abs(shift[d]) > 3 * total[d])
        scaled &= not varies or chance[d] < CHANCE
        if min(speed[d], own_speed[d]) > 0:  # another unit changes the steps as it does the starts
            faster = np.log(own_speed[d] / speed[d])
            scaled &= abs(faster - np.log(max(abs(ratio), 1e-9))) < abs(faster)
        if not SPREAD[0] <= abs(ratio) <= SPREAD[1] and own_spread[d] > 0 and scaled:
            yield RunFinding(
                "observation-units", "fault", f"{location}: the first observations are {abs(ratio):.3g} times as "
                f"{'wide' if varies else 'large'} as in the data" + (f", as between {unit}" if unit else ""),
                float(ratio), SPREAD, "convert the observation to the unit of the data. If that of the data is wrong, "
                "correct the data, and train again",
                correct_data("--scale", f"{location.feature}={unit_factor(ratio):.3g}"), location)
        elif abs(2 * mean[d] + shift[d]) < 0.25 * abs(mean[d]) and abs(mean[d]) > 2 * max(spread[d], VARIES * total[d]):
            yield RunFinding("sign-flip", "fault", f"{location} begins at {mean[d] + shift[d]:.3g}, and in the data at "
                             f"{mean[d]:.3g}: its sign is turned around", float(ratio), SPREAD,
                             "turn the sign of this joint around, where it is read. If that of the data is wrong, "
                             "correct the data, and train again", correct_data("--sign", str(location.feature)),
                             location)
        elif outside[d] > OUTSIDE:
            size = abs(shift[d]) / max(spread[d], VARIES * total[d])
            yield RunFinding(
                "start-states", "fault", f"{location} begins at {mean[d] + shift[d]:.3g} on average, and in the data "
                f"at {mean[d]:.3g}, {size:.2g} standard deviations apart, and {outside[d]:.0%} begin outside "
                "of the recorded range: episodes start where none was recorded", float(outside[d]), (0, OUTSIDE),
                "start as in the data, or record episodes that start so",
                ("record", "ENV", "--out", "more", "--episodes", "20"), location)
    yield from _constant_findings(name, parts, constant, begins.mean(0), np.concatenate(recorded))


def _constant_findings(name: str, parts: Sequence[str], constant: np.ndarray, mean: np.ndarray, recorded: np.ndarray
                       ) -> Iterator[RunFinding]:
    low, high = recorded.min(0), recorded.max(0)
    is_held = constant & (np.minimum(np.abs(mean - low), np.abs(mean - high)) < AT_END * (high - low))
    for level, which, reason in (("fault", constant & ~is_held, "the sensor hangs, or is not connected"),
                                 ("warning", is_held, "it rests at an end of its range, or the sensor hangs")):
        if which.any():
            d = int(np.argmax(which))
            names = format_list(f"{name}[{parts[k]}]" for k in np.flatnonzero(which))
            yield RunFinding(
                "constant-sensor", level, f"{names} never changes, and moves in the recorded episodes: {reason}", 0,
                (MOVES, 1), "look at the sensor and at what reads it", ("inspect", "DATA"),
                Location(feature=f"{name}[{parts[d]}]"))


def _outside(first: np.ndarray, begins: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Returns the fraction of new values outside of the range of recorded values, (D,). 0 where that may be chance.

    Of values with one distribution, the number outside has a beta-binomial distribution. One or two values, such as the
    position of a robot that rests, have to be far away.
    """
    if len(begins) < 3:
        return (np.abs(begins - first.mean(0)).min(0) > FAR_AWAY * spread).astype(float)
    margin = MARGIN_OF_STARTS * spread
    count = ((begins < first.min(0) - margin) | (begins > first.max(0) + margin)).sum(0)
    if len(first) < 2:
        return np.zeros(first.shape[1])
    chance = scipy.stats.betabinom(len(begins), 2, len(first) - 1).sf(count - 1)
    return np.where(chance < CHANCE, count / len(begins), 0.0)


def _order_of_starts(first: np.ndarray, begins: np.ndarray) -> dict[int, int]:
    """Finds components that start like another component in the data, so that they may be in another order."""
    n = first.shape[1]
    if n < 2 or n > WIDEST_ORDER or min(len(first), len(begins)) < 8:
        return {}
    tests = [[scipy.stats.ks_2samp(begins[:, i], first[:, j]) for j in range(n)] for i in range(n)]
    order = scipy.optimize.linear_sum_assignment([[test.statistic for test in row] for row in tests])[1]
    moved = {i: int(j) for i, j in enumerate(order) if tests[i][i].pvalue < CHANCE and tests[i][j].pvalue > ALIKE}
    return moved if {*moved} == {*moved.values()} else {}


def _chance_of_spread(own: np.ndarray, n_own: int, usual: np.ndarray, n_usual: int) -> np.ndarray:
    """Returns p-values of equal spreads of two normal samples (F test), (D,). 1 for fewer than two values."""
    if min(n_own, n_usual) < 2:
        return np.ones(len(own))
    ratio = own**2 * n_own / (n_own - 1) / np.maximum(usual**2 * n_usual / (n_usual - 1), 1e-18)
    below = scipy.stats.f.cdf(ratio, n_own - 1, n_usual - 1)
    return 2 * np.minimum(below, 1 - below)


def _constant(recorded: Sequence[np.ndarray], observed: Sequence[np.ndarray]) -> np.ndarray:
    """Finds components that move soon in the recorded episodes, and never in the observed ones, (D,) bool."""
    def moves(episodes):
        return np.mean([np.ptp(e, axis=0) > 1e-6 * (1 + np.abs(e).max(0)) for e in episodes], axis=0)
    judged = [e for e in observed if len(e) >= SOON]
    if not judged:
        return np.zeros(recorded[0].shape[1], bool)
    return (moves([e[:SOON] for e in recorded]) >= MOVES) & (moves(judged) == 0)


def check_novelty(trained: Sequence[np.ndarray], held_out: Sequence[np.ndarray], observed: Sequence[np.ndarray]
                  ) -> Iterator[RunFinding]:
    """Finds that most new observations are farther from trained observations than held-out observations are.

    Args:
        trained: Observations of each episode, (T, D).
        held_out: Observations of each episode that was not trained on, (T, D).
        observed: Observations of each episode of the policy, (T, D).
    """
    points = np.concatenate(trained)
    points = points[::max(1, len(points) // POINTS)]
    spread = points.std(0)
    scale = np.where(spread > 1e-6 * (1 + np.abs(points).max(0)), spread, np.inf)
    tree = cKDTree(points / scale)
    usual = float(np.quantile(tree.query(np.concatenate(held_out) / scale)[0], 0.95))
    novel = [tree.query(e / scale)[0] > usual for e in observed]
    share = float(np.mean(np.concatenate(novel)))
    if share > NOVEL:
        when = [int(np.argmax(n)) for n in novel if n.any()]
        yield RunFinding(
            "novel-states", "warning", f"{share:.0%} of the observations are farther from the trained ones than 95 % "
            f"of the held-out ones are, usually from step {int(np.median(when))} on: the policy leaves its data",
            share, (0, NOVEL), "record demonstrations from where it goes, or correct it there",
            ("train", "dagger", "DATA", "--out", "RUN-dagger", "--env", "ENV"), Location(feature="observation"))


def check_limits(recorded: np.ndarray, commanded: np.ndarray, low: np.ndarray, high: np.ndarray,
                 names: Sequence[str]) -> Iterator[RunFinding]:
    """Finds action limits of a robot or environment that clip the actions of the policy.

    Args:
        recorded: Recorded actions, (N, A).
        commanded: Actions of the policy, (M, A). Empty for none.
        low: Lowest actions, (A,).
        high: Highest actions, (A,).
        names: (A,).
    """
    reach = np.quantile(np.abs(recorded), 0.95, axis=0) / np.maximum(np.abs(low), np.abs(high))
    if reach.max() > OTHER_UNIT_RATIO:
        beyond = np.flatnonzero(reach > OTHER_UNIT_RATIO)
        size = float(np.median(reach[beyond]))
        unit = unit_of_ratio(size)
        yield RunFinding(
            "action-units", "fault", f"recorded actions ({format_list(names[i] for i in beyond)}) go to {size:.3g} "
            "times the limits of the environment or robot" + (f", as between {unit}" if unit else ""),
            unit_factor(size), (0, OTHER_UNIT_RATIO),
            "bring the actions of the data and of the environment or robot to one unit. If those of the data are "
            "wrong, correct the data, and train again",
            correct_data("--scale", f"action[{','.join(names[i] for i in beyond)}]={1 / unit_factor(size):.3g}"),
            Location(feature="action"))
        return
    share, clipped = clipped_share(recorded, low, high)
    own_share, own_clipped = clipped_share(commanded, low, high) if len(commanded) else (0.0, clipped)
    binds = share > CLIPPED
    if binds or own_share > EXCEEDS:
        yield RunFinding(
            "limits-bind", "fault" if binds else "warning",
            (f"{share:.0%} of the recorded actions" if binds else f"{own_share:.0%} of the actions of the policy, and "
             f"{share:.0%} of the recorded ones,") + f" lie outside the limits by more than {MARGIN:.0%} of the range, "
            f"and are clipped, most often component {names[int(np.argmax(clipped if binds else own_clipped))]}",
            share if binds else own_share, (0, CLIPPED if binds else EXCEEDS),
            "widen the limits as far as is safe, or record within them" if binds else
            "look at the other findings: the policy commands what was never recorded", ("inspect", "DATA"),
            Location(feature="action"))


def clipped_share(actions: np.ndarray, low: np.ndarray, high: np.ndarray) -> tuple[float, np.ndarray]:
    """Returns the fraction of actions that the limits change, and the fraction for each component, (A,)."""
    margin = MARGIN * (high - low)
    outside = (actions < low - margin) | (actions > high + margin)
    return float(outside.any(1).mean()), outside.mean(0)
