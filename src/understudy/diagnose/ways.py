"""Checks whether a policy averages what the demonstrations do in several ways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from scipy.spatial import cKDTree

from ..audit.base import Location
from ..core import keys
from ..data.episode import Dataset
from ..policy import Policy
from .base import RunFinding

WINDOWS, ASKED = 4000, 300  # recorded windows among which neighbors are looked for, and plans that are compared
NEIGHBORS = 16
NEIGHBOR_DISTANCE_FRACTION = 0.3  # distance of the neighbors, as a fraction of the distance of two random windows
FEWEST = 3  # actions in a group
APART = 2.0  # gap between two groups of actions, as a multiple of their standard deviation
MIDDLE = 0.15  # fraction of the gap, on each side: plans that are nearer to a group belong to it
AVERAGED = 0.1  # fraction of the plans that average ways
CELLS = 6  # a side of the grid of colors that stands for an image


@torch.no_grad()
def check_averaged_ways(policy: Policy, data: Dataset) -> Iterator[RunFinding]:
    """Finds plans that lie between groups of actions that were recorded for nearly the same observation.

    Args:
        data: Episodes that the policy was trained on, after the transforms of the method.
    """
    if policy.target.kind != "vector" or policy.window.goals:
        return
    windows = policy.windows(data)
    numbers = np.arange(len(windows))[::max(1, len(windows) // WINDOWS)]
    batch = windows.gather(numbers)
    whole = batch.mask.all(1).cpu().numpy()
    if whole.sum() < 4 * NEIGHBORS:
        return
    points = _observation_rows(policy, batch.obs)[whole]
    chunks = batch.action.flatten(1).double().cpu().numpy()[whole]
    scale = np.maximum(chunks.std(0), 1e-9)
    asked = np.arange(len(points))[::max(1, len(points) // ASKED)]
    obs = {name: values[np.flatnonzero(whole)[asked]].to(policy.device) for name, values in batch.obs.items()}
    noise = policy.noise(keys(0, range(len(asked))).to(policy.device),
                         torch.zeros(len(asked), dtype=torch.int64, device=policy.device))
    plans = policy.plan(obs, noise).flatten(1).double().cpu().numpy() / scale
    distances, neighbors = cKDTree(points).query(points[asked], NEIGHBORS)
    random = float(np.median(np.linalg.norm(points[asked] - points[np.roll(asked, len(asked) // 2)], axis=1)))
    is_near = distances[:, -1] < NEIGHBOR_DISTANCE_FRACTION * random
    is_between = np.array([_is_between(plan, chunks[row] / scale) for plan, row in zip(plans, neighbors, strict=True)])
    share = float(np.mean(is_near & is_between))
    if share > AVERAGED:
        yield RunFinding(
            "averaged-ways", "fault", f"for {share:.0%} of the recorded observations, the demonstrations act in "
            "several ways from nearly the same place, and the plan of the policy lies between them: it averages the "
            "ways", share, (0, AVERAGED), "train a method that can learn several ways, such as flow-policy",
            ("train", "flow-policy", "DATA", "--out", "RUN-flow"), Location(feature="action"))


def _is_between(plan: np.ndarray, actions: np.ndarray) -> bool:
    """Returns whether recorded actions (K, D) form two groups with the planned action (D,) in the gap between them.

    Both are projected on the direction in which the actions differ most.
    """
    center = actions.mean(0)
    axis = np.linalg.svd(actions - center, full_matrices=False)[2][0]
    places, own = np.sort((actions - center) @ axis), float((plan - center) @ axis)
    gaps = np.diff(places)[FEWEST - 1:len(places) - FEWEST]
    n = FEWEST + int(np.argmax(gaps))
    low, high = places[:n], places[n:]
    gap = high[0] - low[-1]
    inside = low[-1] + MIDDLE * gap < own < high[0] - MIDDLE * gap
    return bool(inside and gap > APART * np.sqrt((low.var() * n + high.var() * len(high)) / len(places)))


def _observation_rows(policy: Policy, obs: Mapping[str, torch.Tensor]) -> np.ndarray:
    """Returns the observation that the policy reads at the last step, (B, D), in units of the spread of each column."""
    rows = []
    for name, values in obs.items():
        last = values[:, -1].float()
        if policy.features[name].kind == "image":
            last = torch.nn.functional.adaptive_avg_pool2d(last.movedim(-1, 1), CELLS)
        elif policy.features[name].kind != "vector":
            continue
        flat = last.flatten(1).double().cpu().numpy()
        rows.append((flat - flat.mean(0)) / np.maximum(flat.std(0), 1e-6 * (1 + np.abs(flat).max(0)))
                    / np.sqrt(flat.shape[1]))
    return np.concatenate(rows, 1) if rows else np.zeros((len(next(iter(obs.values()))), 0))
