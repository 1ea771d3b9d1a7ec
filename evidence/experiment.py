"""The parts of an experiment: where demonstrations come from, and arms that are trained and measured on equal terms."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from understudy.data.episode import Dataset, Episode
from understudy.envs import make
from understudy.envs.base import Env, HasExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor

TRUSTED = ("evidence",)  # packages besides understudy that may define environments
Measure = Callable[["Experiment", Any, Dataset, int, int, int], dict[str, list[float]]]


class DemonstrationSource(ABC):
    """Where the demonstrations of an experiment come from. Subclasses are frozen dataclasses."""

    @abstractmethod
    def load(self, seed: int) -> Dataset:
        """The demonstrations that training seed `seed` learns from."""


def expert_of(env: Env) -> Actor:
    """The environment's own expert."""
    assert isinstance(env, HasExpert), f"{env.metadata['env']} has no expert"
    return env.expert()


@dataclass(frozen=True)
class ExpertDemonstrations(DemonstrationSource):
    """Successful episodes of the environment's own expert, new ones for each training seed.

    Args:
        env: Name of the environment, or "module:Class" of one that `evidence` defines.
        filter: Tells which of the successful episodes to keep. By default all.
    """

    env: str
    episodes: int
    filter: Callable[[Episode], bool] | None = None
    options: tuple[tuple[str, Any], ...] = ()

    def load(self, seed):
        env = make(self.env, rows=min(self.episodes, 16), trust=TRUSTED, **dict(self.options))
        episodes = rollout(expert_of(env), env, self.episodes, recording_seed(seed))
        successes = episodes.filter(lambda e: e.metadata["success"])
        return successes if self.filter is None else successes.filter(self.filter)


@dataclass(frozen=True)
class Experiment:
    """Arms that are trained and measured with the same seeds, demonstrations and starts.

    Args:
        source: The demonstrations. Each training seed has its own.
        arms: What `measure` trains, by the names of arms: a `Method`, or a dataclass of the module. An arm that removes
            the mechanism of another one is an arm like the others.
        first_seed: The first training seed, and the seed of the starts. Pilots use seeds below 100.
        measure: Called with (experiment, option, data, seed, episodes, starts). It trains `option` with training seed
            `seed`, rolls it out on the starts of seed `starts`, and returns the values of each measure: one per
            episode, or one per training run. Their mean is the figure of the seed.
        env: Name of the environment. By default that of the source.
        n_seeds: Number of training seeds.
        episodes: Starts of each training seed.
        levels: Least success by the names of arms. The slow tests train one arm of each family and check its level.
    """

    source: DemonstrationSource
    arms: Mapping[str, Any]
    first_seed: int
    measure: Measure
    env: str = ""
    n_seeds: int = 5
    episodes: int = 500
    levels: Mapping[str, float] = field(default_factory=dict)
    env_options: tuple[tuple[str, Any], ...] = ()

    def __post_init__(self):
        if self.first_seed < 100:
            raise ValueError(f"first_seed is {self.first_seed}; seeds below 100 are those of pilots")
        if unknown := sorted(set(self.levels) - set(self.arms)):
            raise ValueError(f"levels name arms that the experiment lacks: {', '.join(unknown)}")
        if not self.env:
            object.__setattr__(self, "env", vars(self.source)["env"])

    @property
    def seeds(self) -> tuple[int, ...]:
        """The training seeds."""
        return tuple(range(self.first_seed, self.first_seed + self.n_seeds))
