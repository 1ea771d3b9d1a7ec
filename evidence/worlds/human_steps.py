"""Corrections that cost equally many steps of a person."""

from __future__ import annotations

from dataclasses import dataclass, replace

from understudy.data.episode import Dataset, Episode
from understudy.envs.base import Env
from understudy.evaluate.recording import expert_actor
from understudy.evaluate.rollout import rollout
from understudy.improve.collection import COSTS, EpisodeCollector, RolloutCollector
from understudy.improve.gates import BuiltGate, Gate


@dataclass(frozen=True)
class HumanStepsCollector(EpisodeCollector):
    """Collects whole episodes until the supervisor has acted or labeled a number of steps in the round.

    Args:
        collector: Collects with a supervisor. Its number of episodes does not count.
        n_steps: The number of steps, at least, because the last episode is complete.
        n_most: Largest number of episodes of a round.
    """

    collector: RolloutCollector
    n_steps: int
    n_most: int = 40

    def check(self, env, person):
        self.collector.check(env, person)

    def collect(self, actor, number, training):
        gate = self.collector.gate
        if gate is not None:  # one gate for the whole round
            gate = _GateOfRound(gate.build(training, number))
        collector, episodes = replace(self.collector, n_episodes=1, gate=gate), []
        while len(episodes) < self.n_most and sum(map(human_steps, episodes)) < self.n_steps:
            episodes += collector.collect(actor, self.n_most * number + len(episodes), training)
        return Dataset(episodes)


@dataclass(frozen=True)
class _GateOfRound(Gate):
    built: BuiltGate

    @property
    def needs_attention(self):
        return self.built.needs_attention

    def build(self, training, number):
        return self.built


def human_steps(episode: Episode) -> int:
    """The number of steps at which the supervisor acted, or said what to do."""
    acted, labeled, _ = (episode.metadata[name] for name in COSTS)
    return acted + labeled


def expert_steps(env: Env, n_steps: int, seed: int, first: int) -> list[Episode]:
    """Demonstrations of the expert of an environment with at least `n_steps` steps in all.

    Args:
        first: Number of the first episode.
    """
    episodes: list[Episode] = []
    while sum(map(len, episodes)) < n_steps:
        episodes += rollout(expert_actor(env), env, 1, seed, first=first + len(episodes))
    return episodes
