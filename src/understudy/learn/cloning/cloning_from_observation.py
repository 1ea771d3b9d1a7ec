"""Behavior cloning from observation: an inverse dynamics model of own practice tells the actions of demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ...core import AtLeast, Batch, DataError, Unsupported, part
from ...data.batch_sampler import SourcesSampler
from ...data.episode import Dataset, Episode
from ...data.mixture import expert_episodes
from ...data.window import SamplingWeights, Window
from ...nets.ema import EMADecay, WarmupDecay
from ...policy import Policy
from ..fit import LearnerConfig
from ..gradient_learner import GradientLearner
from ..optimizer import OptimizerConfig

ERROR_DECAY = 0.99  # of the running error of the inverse dynamics model
NOISELESS = 0.1  # last fraction of the updates, in which labels have no noise


@part
class BehaviorCloningFromObservation(LearnerConfig):
    """Clones demonstrations whose actions are unknown, with actions that an inverse dynamics model tells.

    The inverse dynamics model learns from practice. That is every episode that is no demonstration (see
    `mixture.expert_episodes`): the part "prior", and those that the policy collects. Both networks make one update per
    batch. Of demonstrations that have actions, these count in the statistics of the codec alone.

    Args:
        batch_size: Windows of practice per batch, and as many of demonstrations.
        optimizer: Optimizer of both networks.
        ema: Decay of the averaged weights, which act.
        balance_classes: Draw all classes of the actions of the practice equally often.
        label_noise: Standard deviation of the noise of labels, in mean squared errors of the inverse dynamics model.
            From nine tenths of `steps` updates on, labels have none. A training that collects episodes makes any number
            of updates: give their number as `steps`. 0 for no noise.

    References:
        Torabi et al. (2018), Behavioral Cloning from Observation, arXiv:1805.01954, who train the inverse dynamics
        model until it has converged, and then the policy.
        Gavenski et al. (2024), Explorative Imitation Learning: A Path Signature Approach for Continuous Environments,
        arXiv:2407.04856: the noise of labels.
    """

    steps: Annotated[int, AtLeast(0)] = 5000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))
    balance_classes: bool = False
    label_noise: Annotated[float, AtLeast(0)] = 0.0

    next_obs = compares = True

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> CloningFromObservationLearner:
        return CloningFromObservationLearner(self, policy, seed, steps)


class CloningFromObservationLearner(GradientLearner):
    """Learner of `BehaviorCloningFromObservation`. Its module "inverse" is the inverse dynamics model."""

    config: BehaviorCloningFromObservation

    def __init__(self, config: BehaviorCloningFromObservation, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        if policy.window.horizon != 1 or policy.window.goals:
            raise Unsupported("one action is told between two observations, and there are no goals in the window",
                              where="BehaviorCloningFromObservation", hint="use Window(n_obs_steps), with horizon 1")
        if config.balance_classes and policy.target.kind != "discrete":
            raise Unsupported("the actions are numbers, and not classes, which could be drawn equally often",
                              where="BehaviorCloningFromObservation.balance_classes", hint="leave it out")
        self.register("policy", policy, config.optimizer)
        self.average_weights("policy", config.ema)
        inverse = Policy(replace(policy.config, window=Window(2, obs_offset=1)), policy.features)
        inverse.codec.load_state_dict(policy.codec.state_dict())
        self.inverse = self.register("inverse", inverse, config.optimizer)
        self.error = self.register("error", _RunningError(policy.codec.width))

    def batch_sampler(self, data, sampling_weights=None):
        """Batches of practice, with demonstrations beside them. The weights are not used."""
        expert, windows = expert_episodes(data), partial(self.policy.training_windows, next_obs=True)
        practice = data.select(sorted(set(range(len(data))) - set(expert)))
        if not expert or not len(practice):
            raise DataError(f"{len(expert)} of {len(data)} episodes are demonstrations, and {len(practice)} are "
                            "practice with actions", where=data.metadata.get("path", "data set"),
                            hint="record practice and train on both: understudy record ENV --actor random --out "
                                 "PRACTICE; understudy train METHOD DATA --prior PRACTICE")
        return SourcesSampler(windows(practice, sampling_weights=self.practice_weights(practice)),
                              {"expert": windows(data.select(expert))})

    def practice_weights(self, practice: Dataset) -> SamplingWeights | None:
        """The relative rate at which each step of the practice is drawn. None for all steps equally often."""
        return ClassBalance.of(practice) if self.config.balance_classes else None

    def update(self, batch: Batch) -> dict[str, float]:
        batch = batch.to(self.device)
        demonstrations = batch.others["expert"]
        with self.evaluation():
            labeled = demonstrations.replace(action=self.labels(demonstrations, self.generator()))
            error = self.inverse_error(batch).mean(0)
            self.processes.all_reduce([error])
            self.error.mean.lerp_(error / self.processes.count, 1 - ERROR_DECAY)
        self.minimize("inverse", self.inverse_loss, batch)
        self.minimize("policy", self.policy.loss, labeled)
        return self.end_update(label_error=float(self.error.mean.mean()))

    def transitions(self, batch: Batch) -> dict[str, Tensor]:
        """The present and the next observation of each window, (B, 2, ...)."""
        assert batch.next is not None
        return {name: torch.cat([x[:, -1:], batch.next[name][:, -1:]], 1) for name, x in batch.obs.items()}

    def labels(self, batch: Batch, rng: Generator) -> Tensor:
        """The action that the inverse dynamics model tells for each window, (B, 1, A), in world units."""
        obs = self.transitions(batch)
        label = self.inverse.plan(obs, torch.zeros(len(batch), *self.inverse.noise_shape, device=self.device))
        if not self.config.label_noise or self.n_updates >= (1 - NOISELESS) * self.steps:
            return label
        coded = self.inverse.encode(label, obs)
        noise = torch.randn(coded.shape, generator=rng, device=self.device)
        return self.inverse.decode(coded + self.config.label_noise * self.error.mean * noise, obs)

    def inverse_error(self, batch: Batch) -> Tensor:
        """Squared error of the inverse dynamics model for each window, (B, width), in coded units."""
        plan = self.inverse.plan(obs := self.transitions(batch),
                                 torch.zeros(len(batch), *self.inverse.noise_shape, device=self.device))
        return (self.inverse.encode(plan, obs) - self.inverse.encode(batch.action, obs))[:, 0].square()

    def inverse_loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the inverse dynamics model at each step, (B, 1), not reduced."""
        return self.inverse.loss(batch.replace(obs=self.transitions(batch)), rng)


class _RunningError(nn.Module):
    """The running mean of the squared error of each component, (width,)."""

    mean: Tensor

    def __init__(self, width: int):
        super().__init__()
        self.register_buffer("mean", torch.ones(width))


@dataclass(frozen=True)
class ClassBalance:
    """Sampling weights that draw all actions of a discrete column equally often."""

    counts: Mapping[tuple[int, ...], int]  # number of steps with each action

    @staticmethod
    def of(data: Dataset) -> ClassBalance:
        actions = np.concatenate([action_classes(episode) for episode in data])
        classes, counts = np.unique(actions, axis=0, return_counts=True)
        return ClassBalance({tuple(c.tolist()): int(n) for c, n in zip(classes, counts, strict=True)})

    def __call__(self, episode: Episode) -> np.ndarray:
        return np.array([1 / self.counts[tuple(action.tolist())] for action in action_classes(episode)])


def action_classes(episode: Episode) -> np.ndarray:
    """The classes that were chosen at each step, (T, n)."""
    return np.asarray(episode.steps["action"])[:len(episode)].reshape(len(episode), -1).astype(np.int64)
