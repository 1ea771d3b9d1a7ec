"""Checks whether the parts of a split share episodes: copies, complete or cropped, and almost equal trajectories.

If a test set shares episodes with the training set, it measures how well a policy remembers.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

import numpy as np

from ..core import role
from ..data.episode import Dataset, Episode, concat_columns
from .base import Finding, Location

NEAR_DISTANCE = 0.1  # standard deviations, root mean square; distinct recordings are rarely nearer
TRAJECTORY_POINTS = 16  # points per trajectory, evenly spaced in time
MIN_SHARED_FRACTION = 0.5  # fraction of the steps of the shorter episode
_COMMON = 20  # a row that this many episodes share is a rest position, and no sign of a copy
_AXES, _CANDIDATES = 8, 50


def find_leakage(parts: Mapping[str, Dataset]) -> list[Finding]:
    """Finds episodes that two parts of a split (such as training and test) share. All findings are warnings.

    `same-episode`: at least half of the distinct steps of an episode are also in an episode of an earlier part, with
    bit-identical observations and actions. `near-duplicate`: the distance to an episode of an earlier part is below
    `NEAR_DISTANCE`.

    For the distance, each episode is linearly interpolated to `TRAJECTORY_POINTS` points over its time, and each
    component is divided by its standard deviation over all parts. The distance is the root mean square over points and
    components. Cameras are not compared. Every number is read once. 8 bytes per step, and the points, stay in memory.
    """
    names, sets = list(parts), list(parts.values())
    columns = _common_columns(sets)
    if not columns:
        return []
    owner = np.repeat(np.arange(len(sets)), [len(d) for d in sets])
    number = np.concatenate([np.arange(len(d)) for d in sets])
    hashes, points = _hash_episodes((e for data in sets for e in data), columns)
    same, near_distances = find_copies(hashes), _near_duplicates(points, owner)
    findings = []
    for a, b in combinations(range(len(sets)), 2):
        twice = {j: i for i, j in same if owner[i] == a and owner[j] == b}
        close = {j: (i, d) for (i, j), d in near_distances.items()
                 if owner[i] == a and owner[j] == b and j not in twice}
        for code, copies, what in (
                ("same-episode", twice, "the same steps as"),
                ("near-duplicate", close, f"a trajectory less than {NEAR_DISTANCE:g} standard deviations from")):
            if copies:
                j, i = next((j, i[0] if isinstance(i, tuple) else i) for j, i in sorted(copies.items()))
                distance_text = f" (distance {close[j][1]:.2g})" if code == "near-duplicate" else ""
                findings.append(Finding(
                    code, "warning",
                    f"{len(copies)} of {len(sets[b])} episodes of {names[b]} have {what} an episode of {names[a]}; the "
                    f"first is episode {number[j]}, as episode {number[i]} there{distance_text}",
                    "leave them out of one part (understudy view make DATA --delete N), or split by what they have in "
                    "common", Location(names[b], int(number[j]))))
    return findings


def find_copies(distinct: Sequence[np.ndarray]) -> list[tuple[int, int]]:
    """Returns the pairs (i, j), i < j, of episodes that share at least half of the rows of the shorter one.

    Args:
        distinct: Sorted hashes of the distinct rows of each episode. If more than 20 episodes are equal, each is paired
            with the first of them.
    """
    whole, pairs = defaultdict(list), set()
    for i, h in enumerate(distinct):
        whole[h.tobytes()].append(i)
    for group in whole.values():
        pairs.update(combinations(group, 2) if len(group) <= _COMMON else ((group[0], j) for j in group[1:]))
    first = sorted(g[0] for g in whole.values())
    hashes = np.concatenate([distinct[i] for i in first] or [np.empty(0, np.uint64)])
    owner = np.repeat(first, [len(distinct[i]) for i in first])
    order = np.argsort(hashes, kind="stable")
    hashes, owner = hashes[order], owner[order]
    begins = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1])) if len(hashes) else np.empty(0, np.int64)
    ends = np.append(begins[1:], len(hashes))
    shared: Counter = Counter()
    for b, e in zip(begins, ends, strict=True):
        if 1 < e - b <= _COMMON:
            shared.update(combinations(owner[b:e].tolist(), 2))
    pairs.update(
        (i, j) for (i, j), n in shared.items() if n >= MIN_SHARED_FRACTION * min(len(distinct[i]), len(distinct[j]))
    )
    groups = {g[0]: g for g in whole.values()}
    return sorted({(min(a, b), max(a, b)) for i, j in pairs for a in groups.get(i, [i]) for b in groups.get(j, [j])
                   if a != b})


def _hash_episodes(episodes: Iterable[Episode], columns: Sequence[str]) -> tuple[list[np.ndarray], np.ndarray]:
    """Returns hashes of the distinct rows of each episode, and one point per episode for finding near duplicates."""
    hashes, points, total, shift = [], [], [], None
    for e in episodes:
        rows = concat_columns(e, columns)[:len(e)]
        hashes.append(np.unique(_row_hashes(rows)))
        rows = np.nan_to_num(rows, posinf=0.0, neginf=0.0)
        shift = rows[0] if shift is None else shift
        total.append((len(rows), (rows - shift).sum(0), np.square(rows - shift).sum(0)))
        at = np.linspace(0, len(rows) - 1, TRAJECTORY_POINTS)  # `resample_rows` would import PyTorch
        low = at.astype(int)
        share = (at - low)[:, None]
        points.append(rows[low] * (1 - share) + rows[np.minimum(low + 1, len(rows) - 1)] * share - shift)
    count, mean, square = (sum(part) for part in zip(*total, strict=True))
    spread = np.sqrt(np.maximum(square / count - np.square(mean / count), 0))
    assert shift is not None
    moving = spread > 1e-7 * (1 + np.abs(shift))
    out = (np.stack(points)[:, :, moving] / spread[moving]).astype(np.float32)
    return hashes, out.reshape(len(out), -1) / np.sqrt(max(out[0].size, 1))


def _near_duplicates(points, owner) -> dict[tuple[int, int], float]:
    """Returns {(i, j): distance} of each episode j and the most similar episode i of each earlier part, if similar."""
    from scipy.spatial import cKDTree

    if not points.shape[1]:
        return {}
    points = points - points.mean(0)
    # Distances along some orthogonal axes are lower bounds: nothing is missed, and few pairs are compared in full.
    sample = points[np.linspace(0, len(points) - 1, min(len(points), 500)).astype(int)]
    axes = np.linalg.svd(sample, full_matrices=False)[2][:_AXES]
    projected, duplicates = points @ axes.T, {}
    for a in np.unique(owner)[:-1]:
        members, others = np.flatnonzero(owner == a), np.flatnonzero(owner > a)
        tree = cKDTree(projected[members])
        for chunk in np.array_split(others, -(-len(others) // 4096)):
            _, neighbors = tree.query(projected[chunk], k=min(_CANDIDATES, len(members)),
                                      distance_upper_bound=NEAR_DISTANCE * 1.01)
            for j, those in zip(chunk, neighbors.reshape(len(chunk), -1), strict=True):
                those = members[those[those < len(members)]]
                if len(those):
                    d = np.sqrt(np.square(points[those] - points[j]).sum(1))
                    if d.min() < NEAR_DISTANCE:
                        duplicates[int(those[d.argmin()]), int(j)] = float(d.min())
    return duplicates


def _common_columns(sets) -> list[str]:
    """Returns the numeric columns that all data sets have, with the same shape."""
    schemas = [data.features() for data in sets if len(data)]
    return [n for n, f in (schemas[0] if schemas else {}).items()
            if role(n) in ("observation", "action") and f.kind in ("vector", "discrete")
            and all(n in s and s[n].shape == f.shape for s in schemas)]


def _row_hashes(rows: np.ndarray) -> np.ndarray:
    """Returns hashes of rows (T, D) by their bits, (T,) uint64. 0 and -0 have the same hash."""
    bits = np.ascontiguousarray(rows + 0.0).view(np.uint64)
    factors = np.random.default_rng(0).integers(1 << 62, size=bits.shape[1], dtype=np.uint64) * 2 + 1
    with np.errstate(over="ignore"):
        mixed = (bits ^ (bits >> np.uint64(31))) * np.uint64(0x9E3779B97F4A7C15)  # a float32 has no low bits
        return ((mixed ^ (mixed >> np.uint64(29))) * factors).sum(1, dtype=np.uint64)
