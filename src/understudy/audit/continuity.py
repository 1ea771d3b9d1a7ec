"""Checks that find several rollouts written as one episode, and rotations that change their sign."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..core import role
from ..data.episode import Dataset, Episode, concat_columns
from ..data.formats.parts.column_names import format_list
from ..data.resampling import find_rotations
from ..hints import pluralize
from .base import Finding, Location, component_names, correction_command

_WIDEST, _FIT_STEPS = 160, 50_000  # components of states and actions, and steps, from which a model is fitted
_USUAL = 0.8  # quantile of the errors: more than this fraction of the steps continue the same rollout
_FLOOR = 0.01  # fraction of a component's usual change: smaller errors count as rounding
_JUMP, _GAP = 8.0, 2.5  # times the usual error, and times the next smaller error
_LISTED = 20  # rows that a command names; for more, the audit finds them again


def find_resets(data: Dataset) -> dict[int, list[int]]:
    """Finds the rows at which another rollout begins inside an episode. Returns them by the number of the episode.

    Another rollout begins at a row if a flag of the row before says that the episode ended, or if most components of
    the state jump. A component jumps if a linear model of the state and the action explains its change far worse than
    in usual steps. A single jump in the data is not counted.
    """
    resets = {e: rows for e, episode in enumerate(data) if (rows := _flagged_ends(episode))}
    jumps = _jumps(data)
    for e, t in jumps if len(jumps) > 1 else []:
        resets[e] = sorted({*resets.get(e, ()), t})
    return dict(sorted(resets.items()))


def check_resets(data: Dataset) -> Iterator[Finding]:
    """Finds episodes that consist of several rollouts, of any length."""
    jumps = _jumps(data)
    if len(jumps) < 2:
        return
    resets: dict[int, list[int]] = {}
    for e, t in jumps:
        resets.setdefault(e, []).append(t)
    first, rows = next(iter(resets.items()))
    correction = ("--cut", *_cuts(resets, data))
    yield Finding("resets", "warning", f"the state jumps at {pluralize(len(jumps), 'row')} of "
                  f"{pluralize(len(resets), 'episode')}, as if another rollout began there: in episode {first}, at "
                  f"{format_list(rows)}", f"cut the episodes there: {correction_command(data, correction)}",
                  Location(episode=first, step=rows[0]), tuple(resets), correction)


def _cuts(resets: dict[int, list[int]], data: Dataset) -> list[str]:
    """Builds the arguments of `understudy view make --cut` that cut episodes at these rows."""
    lengths, every = data.lengths, min(rows[0] for rows in resets.values())
    if all(resets.get(e, []) == list(range(every, int(n), every)) for e, n in enumerate(lengths)):
        return [f"every={every}"]
    if sum(map(len, resets.values())) > _LISTED:
        return ["resets"]
    texts = [f"{e}={','.join(map(str, rows))}" for e, rows in resets.items()]
    return [word for text in texts for word in ("--cut", text)][1:]


def _flagged_ends(episode: Episode) -> list[int]:
    """Returns the rows that follow a step with a flag of termination or truncation inside an episode."""
    ends = np.zeros(len(episode), bool)
    for name in ("next.terminated", "next.truncated"):
        if name in episode.steps:
            ends |= np.asarray(episode.steps[name], bool).reshape(-1)[:len(episode)]
    return (np.flatnonzero(ends[:-1]) + 1).tolist()


def _jumps(data: Dataset) -> list[tuple[int, int]]:
    """Returns the places (episode, row) where most components of the state change in an unusual way.

    If the actions do not explain the motion, the model predicts each change from the change of the step before. In the
    row after a jump, the step before is the jump itself, so that this row seems to jump as well. It is left out.
    """
    jumps = _unexplained_changes(data, with_last_change=False)
    if len(jumps) < 2:
        jumps = _unexplained_changes(data, with_last_change=True)
        jumps = [(e, t) for e, t in jumps if (e, t - 1) not in jumps]
    return jumps if len(jumps) > 1 and _are_starts(data, jumps) else []


def _are_starts(data: Dataset, jumps: list[tuple[int, int]]) -> bool:
    """Returns whether states after jumps are like states at starts of episodes, and jumps are not events of the task.

    With fewer than five episodes, too few starts are known, and several jumps in an episode are enough.
    """
    if len(data) < 5:
        return len(jumps) > len({e for e, _ in jumps})
    columns = [n for n, f in data[0].features().items() if role(n) == "observation" and f.kind == "vector" and f.size]
    starts = np.stack([concat_columns(episode, columns)[0] for episode in data])
    after = np.array([concat_columns(data[e], columns)[t] for e, t in jumps]).reshape(-1, starts.shape[1])
    some = [concat_columns(data[e], columns) for e in range(0, len(data), 1 + len(data) // 50)]
    spread = np.std(np.concatenate(some), 0)
    starts, after = (rows / np.where(spread > 0, spread, np.inf) for rows in (starts, after))
    between = np.linalg.norm(starts[:, None] - starts, axis=2) + np.diag(np.full(len(starts), np.inf))
    distance = np.linalg.norm(after[:, None] - starts, axis=2).min(1)
    return bool(np.median(distance) <= 3 * np.median(between.min(1)) + 0.1)


def _unexplained_changes(data: Dataset, with_last_change: bool) -> list[tuple[int, int]]:
    """Returns (episode, row) where most state components change in a way that the motion model does not explain."""
    states, actions = ([n for n, f in data[0].features().items() if role(n) == kind and f.kind == "vector"
                        and f.dtype != "bool" and f.size] for kind in ("observation", "action"))
    features = data[0].features()
    if not states or sum(features[n].size for n in (*states, *actions)) > _WIDEST or data.lengths.max() < 12:
        return []
    each = max(1, -(-int(data.lengths.sum()) // _FIT_STEPS))
    sample = [_changes(data[e], states, actions, with_last_change) for e in range(0, len(data), each)]
    x, d = (np.concatenate(column) for column in zip(*sample, strict=True))
    is_finite = np.isfinite(x).all(1) & np.isfinite(d).all(1)
    x, d = x[is_finite], d[is_finite]
    if len(x) < 5 * x.shape[1]:
        return []
    moving = np.median(np.abs(d), 0) > 1e-9 * (1 + np.abs(x[:, 1:1 + d.shape[1]]).max(0, initial=0))
    if not moving.any():
        return []
    d = d[:, moving]
    floor, chosen = _FLOOR * np.median(np.abs(d), 0), np.ones(len(d), bool)
    for _ in range(3):  # without the steps of the largest errors, among which are the jumps
        weights = np.linalg.lstsq(x[chosen], d[chosen], rcond=1e-9)[0]
        error = np.abs(d - x @ weights)
        scale = np.quantile(error, _USUAL, axis=0) + floor
        size = np.square(error / scale).mean(1)
        chosen = size <= np.quantile(size, _USUAL)
    sizes: list[tuple[float, int, int]] = []
    for e, episode in enumerate(data):
        x, d = _changes(episode, states, actions, with_last_change)
        size = _joint_size(np.abs(d[:, moving] - x @ weights) / scale)
        first = len(episode) - len(size)  # row that the first change leads to
        sizes += [(float(size[t]), e, int(t) + first) for t in np.flatnonzero(size > _JUMP / _GAP)]
    sizes.sort(reverse=True)
    values = np.array([size for size, _, _ in sizes] + [_JUMP / _GAP])
    apart = np.flatnonzero((values[:-1] >= _JUMP) & (values[:-1] > _GAP * values[1:]))
    n = int(apart[-1]) + 1 if len(apart) else 0
    return sorted((e, t) for _, e, t in sizes[:n]) if n <= (1 - _USUAL) * data.lengths.sum() else []


def _joint_size(size: np.ndarray) -> np.ndarray:
    """Returns the root mean square of errors, (T, D) -> (T,). It is 0 if at most half of the components are unusual."""
    typical = np.sort(size, 1)[:, (size.shape[1] - 1) // 2]
    return np.where(typical > _GAP, np.sqrt(np.square(size).mean(1)), 0)


def _changes(episode: Episode, states: list[str], actions: list[str],
             with_last_change: bool) -> tuple[np.ndarray, np.ndarray]:
    """Returns the inputs [1, state, action, last change] and the output, the change of the state, of a motion model."""
    s, a = (concat_columns(episode, names)[:len(episode)] for names in (states, actions))
    d = np.diff(s, axis=0)
    wraps = (np.abs(d) > np.pi) & (np.abs(s).max(0, initial=0) <= 2 * np.pi + 1e-3)
    d = np.where(wraps, d - 2 * np.pi * np.sign(d), d)
    last, first = (d[:-1], 1) if with_last_change else (np.zeros((len(d), 0)), 0)
    return np.concatenate([np.ones((len(d[first:]), 1)), s[first:-1], a[first:len(d)], last], 1), d[first:]


def check_rotations(data: Dataset) -> Iterator[Finding]:
    """Finds quaternions that change their sign, and angles that jump by a full turn, inside an episode."""
    for name, f in data[0].features().items():
        if role(name) not in ("observation", "action") or f.kind != "vector" or len(f.shape) != 1 or f.size > _WIDEST:
            continue
        flips: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        for e, episode in enumerate(data):
            values = np.asarray(episode.steps[name], np.float64)
            rotations = find_rotations(name, f, values)
            for components in rotations.quaternions:
                q = values[:, components]
                cosine = (q[1:] * q[:-1]).sum(1) / np.maximum(np.linalg.norm(q[1:], axis=1)
                                                              * np.linalg.norm(q[:-1], axis=1), 1e-12)
                flips.setdefault(components, []).extend((e, int(t) + 1) for t in np.flatnonzero(cosine < -0.5))
            for i, turn in rotations.angles.items():
                jumps = np.flatnonzero(np.abs(np.diff(values[:, i])) > turn / 2)
                flips.setdefault((i,), []).extend((e, int(t) + 1) for t in jumps)
        for components, steps in flips.items():
            if not steps:
                continue
            (e, t), labels = steps[0], ", ".join(component_names(f)[i] for i in components)
            is_angle = len(components) == 1
            what, same, advice = (
                ("the angle", "jumps by a full turn", "store sine and cosine, or count turns") if is_angle else
                ("the quaternion", "changes its sign", "give each the sign that is nearer to the step before"))
            yield Finding("sign-flips", "note" if is_angle and role(name) == "observation" else "warning",
                          f"{name}: {what} {labels} {same} at {pluralize(len(steps), 'step')}, the first in episode "
                          f"{e}, step {t}: the rotation is the same, but a policy gets other numbers",
                          f"{advice} where it is recorded; view make --fps --rule linear takes it into account",
                          Location(None, e, t, name), tuple(dict.fromkeys(e for e, _ in steps)))
