"""Limits of actions: what an environment executes, and what the data contain."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from torch import Tensor

from ..core import DataWarning
from ..data.episode import Dataset
from ..envs.base import Env


def action_limits(env: Env, data: Dataset) -> tuple[Tensor, Tensor] | None:
    """Returns the lowest and highest actions that an environment or data have, (size,) each. None without limits."""
    if (limits := _executed(env)) is None:
        return None
    low, high = limits
    if len(rows := _recorded(data, len(low))):
        low, high = np.fmin(low, np.nanmin(rows, 0)), np.fmax(high, np.nanmax(rows, 0))
    return torch.as_tensor(low).float(), torch.as_tensor(high).float()


def warn_of_action_units(env: Env, data: Dataset) -> None:
    """Warns if most actions of the data are beyond the limits of an environment by more than their whole range."""
    if (limits := _executed(env)) is None or not len(rows := _recorded(data, len(limits[0]))):
        return
    low, high = limits
    share = (np.fmax(low - rows, rows - high) > high - low).mean(0)
    if share[i := int(share.argmax())] > 0.5:
        least, most = (bound(rows[:, i]) for bound in (np.nanmin, np.nanmax))
        warnings.warn(f"component {i} of the actions is {least:.3g} to {most:.3g} in the data, and "
                      f"{env.metadata['env']} executes {low[i]:.3g} to {high[i]:.3g}. Bring both into one unit, or "
                      "practice shows nothing but actions that were cut off", DataWarning, stacklevel=2)


def _executed(env: Env) -> tuple[np.ndarray, np.ndarray] | None:
    if "low" not in env.metadata:
        return None
    size = env.features["action"].size
    low, high = (np.broadcast_to(np.asarray(env.metadata[k], float), size) for k in ("low", "high"))
    return low, high


def _recorded(data: Dataset, size: int) -> np.ndarray:
    """Returns the actions of all steps, (N, size). Empty if they have another size."""
    recorded = [np.asarray(e.steps["action"][:len(e)], float).reshape(len(e), -1) for e in data if "action" in e.steps]
    return np.concatenate(recorded) if recorded and recorded[0].shape[1] == size else np.zeros((0, size))
