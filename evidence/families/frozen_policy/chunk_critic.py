"""Row 271, second part: the noise of a policy is steered after a dozen episodes. Is a critic of its chunks worth it?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from evidence.experiment import Experiment
from evidence.families.frozen_policy.steering import Ambiguous
from evidence.worlds.frozen_base import BothSides, practised
from understudy.core import part
from understudy.data.episode import Dataset
from understudy.envs.base import Env
from understudy.improve.practice import Practice, dsrl, dsrl_na, steered_episodes
from understudy.learn.critics.noise_aliasing import NoiseAliasing
from understudy.learn.method import Method
from understudy.policy import Policy


@part
class OtherChunks(NoiseAliasing):
    """Noise gets the score of the chunk to which other noise leads."""

    def draw_chunks(self, obs, rng):
        noise, chunks = super().draw_chunks(obs, rng)
        return noise.roll(1, 0), chunks


@dataclass(frozen=True)
class AFewEpisodes(Ambiguous):
    """How the policy of the fork is improved in one round.

    Args:
        first_steps: Steps of random noise before it.
        critic: "chunks" is `dsrl-na` of `understudy improve`, "noise" is `dsrl`.
        without_demonstrations: The critic of chunks learns from the policy's own episodes alone.
        other_chunks: See `OtherChunks`.
    """

    n_rounds: int = 1
    n_episodes: int = 5
    n_updates: int | None = 1200
    first_steps: int = 40
    critic: Literal["chunks", "noise"] = "chunks"
    without_demonstrations: bool = False
    other_chunks: bool = False

    def method(self, practice: Practice, base: Method) -> Method:
        if self.learns != "noise":
            return super().method(practice, base)
        if self.critic == "noise":
            return dsrl(practice, base)
        method = dsrl_na(practice, base)
        return replace(method, learner=OtherChunks(**vars(method.learner))) if self.other_chunks else method

    def first_episodes(self, method: Method, policy: Policy, env: Env, data: Dataset, seed: int) -> Dataset:
        episodes = steered_episodes(method, policy, env, data, seed, self.first_steps)
        return episodes.select(range(len(episodes) - len(data))) if self.without_demonstrations else episodes


TABLE = Experiment(BothSides(50), measure=practised, first_seed=2980, n_seeds=10, episodes=300,
                   arms={
    "base": AFewEpisodes(learns="nothing"),
    "critic of chunks": AFewEpisodes(),
    "critic of noise": AFewEpisodes(critic="noise"),
    "without demonstrations": AFewEpisodes(without_demonstrations=True),
    "other chunks": AFewEpisodes(other_chunks=True)})
