"""Which demonstrations to learn from.

A source gives every step a weight for every arm. An arm learns from the steps with its weights, with the same number of
updates on batches of the same size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from evidence.measures import ROWS
from evidence.memo import Memo
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.base import Head
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig


@dataclass(frozen=True)
class CuratedMethod:
    """A method that learns from steps sampled in proportion to the column "keep.CURATION".

    Args:
        curation: Name of the curation.
    """

    method: Method
    curation: str


def cloning_method(
    lr: float, head: Head | None = None, window: Window | None = None, n_action_steps: int = 1, steps: int = 500
) -> Method:
    """A small behavior cloning method on vectors.

    Args:
        head: The head. By default a regression.
        window: The window. By default one step.
        n_action_steps: Number of actions of each chunk that are executed.
    """
    policy = PolicyConfig(head or Regression(), trunk=MLP(64, 1), encoder=ConcatEncoder(), window=window or Window())
    return Method(
        policy, RecedingHorizon(n_action_steps), BehaviorCloning(steps=steps, optimizer=OptimizerConfig(lr=lr))
    )


def successful_rollouts(actor: Actor, env: str, episodes: int, seed: int, split: int = 0, **options) -> Dataset:
    """The first `episodes` rollouts of an actor that succeed.

    Args:
        split: Different numbers give independent draws with the same seed.
    """
    world, successes = make(env, rows=ROWS, **options), list[Episode]()
    for more in range(20):
        first = 100_000 * split + 1000 * more
        rollouts = rollout(actor, world, max(episodes, 5), recording_seed(seed), first=first)
        successes += [e for e in rollouts if e.metadata["success"]]
        if len(successes) >= episodes:
            return Dataset(successes[:episodes], rollouts.metadata)
    raise RuntimeError(f"{env}: hardly any demonstration succeeds")


def with_keep_columns(
    data: Sequence[Episode], weights: Mapping[str, Sequence[np.ndarray | float] | np.ndarray]
) -> Dataset:
    """Adds a column "keep.NAME" for each name: one weight per episode, or one array of weights per step, (T,)."""
    return Dataset([e.replace({f"keep.{name}": np.broadcast_to(np.asarray(values[i], np.float32), (len(e),)).copy()
                               for name, values in weights.items()}) for i, e in enumerate(data)])


_loaded_datasets = Memo(12)


def cached_load(load_function: Callable[[Any, int], Dataset]) -> Callable[[Any, int], Dataset]:
    """Wraps the `load` of a source in a cache, because every arm loads the same seeds."""
    def load(self, seed):
        return _loaded_datasets.get((self, seed), lambda: load_function(self, seed))
    return load


def train_curated(method: CuratedMethod, data: Dataset, seed: int) -> Policy:
    """Trains on the steps that have a weight for this arm. Statistics for normalization exclude episodes without such a
    step.

    Args:
        method: The method, and the name of its curation.
        data: Demonstrations with columns "keep.NAME".
    """
    column, inner = f"keep.{method.curation}", method.method
    weighted_episodes = data.filter(lambda e: bool(np.any(e.steps[column] > 0)))
    of_state = replace(inner, policy=replace(inner.policy, inputs=("observation.state",)))
    return fit_method(of_state, weighted_episodes, seed, sampling_weights=lambda e: e.steps[column]).policy
