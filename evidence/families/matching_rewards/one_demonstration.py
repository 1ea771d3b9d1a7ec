"""Row 186: one demonstration without actions. Which distance from it is the reward that leads practice along it?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from evidence.experiment import TRUSTED, DemonstrationSource, Experiment
from evidence.families.matching_rewards.growing_discount import CONSTANT, GOALS, NOISE, Detour, Practice
from understudy.core import part
from understudy.data.episode import Dataset, Episode
from understudy.envs import make
from understudy.envs.episode_wrappers import FixedHorizonEnv
from understudy.envs.toys.particle import ParticleExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit_method import fit_method
from understudy.learn.objectives.representation_objectives import warping_distances
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.learn.rewards.transport_reward import EpisodeReward, EpisodeRewardConfig
from understudy.methods.reward_matching.virl import VIRL, SiameseReward, mean_square

STATE = "observation.state"
ERROR, FOLLOWED = "tracking error", 0.3  # below it an episode follows the demonstration


class TimedDetour(Detour):
    """The last component of the state is the elapsed fraction of the episode, not whether the first goal was visited.

    A video shows how much time has passed, and not what has been visited.
    """

    def observe(self):
        obs = super().observe()
        obs[STATE][:, -1] = self.clock.numpy() / self.limit
        return obs


class TimedGoals(FixedHorizonEnv):
    """All episodes have 50 steps."""

    def __init__(self, rows: int = 1):
        super().__init__(TimedDetour(rows, fully_observed=True, stay=True, goals=GOALS))


@dataclass(frozen=True)
class OneWithoutActions(DemonstrationSource):
    """The first successful episode of a noisy expert. In place of its actions it has uniformly random ones."""

    episodes: int = 10

    def load(self, seed):
        recorded = rollout(ParticleExpert(noise=NOISE), TimedGoals(self.episodes), self.episodes, recording_seed(seed))
        first = recorded.filter(lambda e: e.metadata["success"])[0]
        actions = np.random.default_rng(seed).random(first.steps["action"].shape, np.float32)
        return Dataset([first.replace({"action": actions})], recorded.metadata)


@part
class SquaredDistance(EpisodeRewardConfig):
    """``exp(-d)``, where d is the mean squared difference from the step of the demonstration with the same number."""

    inputs = "next"

    def build(self, policy, data):
        return _SquaredDistance.of(self, policy, data)


class _SquaredDistance(EpisodeReward):
    def rewards(self, steps):
        return (-mean_square(steps, self.points[:len(steps)])).exp()


@dataclass(frozen=True)
class OneStepPractice(Practice):
    """The practice of row 012 with targets of one step, since a discriminator has no rewards of later steps."""

    @property
    def method(self):
        learner = replace(self.learner, discount=0.9, bc_weight=0.0, batch_size=128, optimizer=CONSTANT,
                          critic=CriticConfig((64, 64)))
        return replace(Practice(TD3(), self.n_rounds).method, learner=learner)


def positions(episode: Episode) -> np.ndarray:
    """Where the particle is before each step and after the last one, (T + 1, 2)."""
    return np.asarray(episode.steps[STATE])[:, :2]


def tracking_errors(rollouts: Dataset, demonstration: Episode) -> np.ndarray:
    """The distance from the path of a demonstration by dynamic time warping, in units of that of standing still, (n,).

    Distances are the square roots of the sums of squares of aligned steps.
    """
    paths = np.stack([positions(e) for e in rollouts])
    expert = torch.from_numpy(positions(demonstration)).expand(len(paths), -1, -1)
    standing = paths[:, :1].repeat(paths.shape[1], 1)
    moved, still = (warping_distances(torch.from_numpy(x), expert) for x in (paths, standing))
    return (moved / still).sqrt().numpy()


def practiced(experiment, option: OneStepPractice, data: Dataset, seed: int, episodes: int, starts: int
              ) -> dict[str, list[float]]:
    """The tracking error after all rounds of the later half, in the mean, and the fraction of episodes that follow."""
    env, test_env = (make(experiment.env, rows=rows, trust=TRUSTED) for rows in (4, episodes))
    errors = []

    def test(policy):
        actor = PolicyActor(FixedBatch(policy, episodes), method.executor)
        errors.append(tracking_errors(rollout(actor, test_env, episodes, starts), data[0]))

    def watch(n_updates, learner, metrics):
        if metrics.get("round", 0) > option.n_rounds // 2:
            test(learner.trained_policy)

    method = option.method
    test(fit_method(method, data, seed, env=env, callbacks=[watch]).policy)
    return {ERROR: [float(np.mean(errors))], "success": np.mean(np.stack(errors) < FOLLOWED, 0).tolist()}


TABLE = Experiment(
    OneWithoutActions(), env=f"{__name__}:TimedGoals", measure=practiced, first_seed=1940, episodes=100,
    levels={"squared distance": 0.5}, arms={
    "frame + sequence": OneStepPractice(VIRL()),
    "frame": OneStepPractice(VIRL(reward=SiameseReward(sequence_weight=0.0))),
    "sequence": OneStepPractice(VIRL(reward=SiameseReward(frame_weight=0.0))),
    "squared distance": OneStepPractice(TD3(reward=SquaredDistance())),
    "GAIfO": OneStepPractice(TD3(
        reward=DiscriminatorReward(inputs="next", one_sided=True, hidden=(64, 64)))),
    "shuffled": OneStepPractice(VIRL(reward=SiameseReward(is_shuffled=True)))})
