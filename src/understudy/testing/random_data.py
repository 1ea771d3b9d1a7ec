"""Random data for contract tests."""

from __future__ import annotations

import numpy as np
import torch

from ..core import Batch, Feature, Schema
from ..data.episode import Dataset, Episode
from ..policy import Policy, PolicyConfig
from .base import STATE


def random_dataset(features: Schema, episodes: int = 6, steps: int = 24, seed: int = 0) -> Dataset:
    """Builds episodes with random values: numbers, images, bytes and classes, as the features require.

    Args:
        steps: Number of steps of the first episode. Each further episode is one step longer.
    """
    rng = np.random.default_rng(seed)

    def column(name, f, rows):
        if f.kind == "discrete":
            return rng.integers(0, np.array(f.num_classes).reshape(f.shape), (rows, *f.shape)).astype(f.dtype)
        if f.kind in ("image", "text"):
            return rng.integers(0, 256, (rows, *f.shape)).astype(np.uint8)
        if f.kind == "string":
            return np.array(["left", "right", "up"])[rng.integers(0, 3, (rows, *f.shape))]
        walk = rng.normal(size=(rows, *f.shape)).cumsum(0) if name.startswith("observation") else rng.normal(
            size=(rows, *f.shape))
        return (walk * 3 + 1).astype(f.dtype)
    return Dataset([Episode({k: column(k, f, steps + i) for k, f in features.items()}, {"number": i},
                            schema=dict(features)) for i in range(episodes)])


def random_batch(policy_config: PolicyConfig, size: int = 5, seed: int = 0, target: Feature | None = None,
                 inputs: Schema | None = None) -> tuple[Policy, Batch]:
    """A policy with the statistics of random data, and a batch of these data. Its last windows extend past the end of
    an episode.

    Args:
        target: Feature of the target. By default two numbers.
        inputs: Features of the inputs. By default three numbers in each column that the configuration names.
    """
    named = (*policy_config.inputs, *(g.column for g in policy_config.window.goals))
    if inputs is None:
        inputs = {k: Feature("float32", (3,)) for k in named or (STATE, "observation.environment_state")}
    features = {**inputs, policy_config.target: target or Feature("float32", (2,))}
    window = policy_config.window
    data = random_dataset(features, steps=3 * (window.horizon + window.n_obs_steps), seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Policy(policy_config, data.features()).fit_statistics(data)
    windows = policy.windows(data)
    end = int(windows.episode_ends[0])
    late = [end - 1 - i for i in range(size // 2)]
    return policy.eval(), windows.gather(np.array([*range(size - len(late)), *late]), np.random.default_rng(seed))
