"""Behavior cloning from observation: an inverse dynamics model infers the actions of demonstrations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ...core import AtLeast, Batch, DataError, Unsupported, part
from ...data.batch_sampler import BatchSampler, SourcesSampler
from ...data.episode import Dataset, Episode
from ...data.mixture import expert_episodes
from ...data.window import SamplingWeights, Window
from ...nets.ema import EMADecay, WarmupDecay
from ...policy import Policy
from ..algorithm import Algorithm, Net, loss, prepare
from ..devices import Processes
from ..optimizer import OptimizerConfig

ERROR_DECAY = 0.99  # of the running error of the inverse dynamics model
NOISELESS = 0.1  # last fraction of the updates, in which labels have no noise


@part
class BehaviorCloningFromObservation(Algorithm):
    """Clones demonstrations without actions, which an inverse dynamics model infers after learning from practice.

    The inverse dynamics model learns from practice. Practice is every episode that is not a demonstration (see
    `mixture.expert_episodes`): the part "prior", and the episodes that the policy collects. Both networks make one
    update per batch. If demonstrations have actions, these actions count only in the statistics of the codec.

    Args:
        batch_size: Windows of practice per batch, and as many of demonstrations.
        optimizer: Optimizer of both networks.
        ema: Decay of the averaged weights, which act.
        balance_classes: Draw all classes of the actions of the practice equally often.
        label_noise: Standard deviation of the noise of labels, in mean squared errors of the inverse dynamics model.
            After nine tenths of `steps` updates, labels have no noise. A training that collects episodes makes any
            number of updates: give their number as `steps`. 0 for no noise.

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

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if policy.window.horizon != 1 or policy.window.goals:
            raise Unsupported("one action is told between two observations, and there are no goals in the window",
                              where=type(self).__name__, hint="use Window(n_obs_steps), with horizon 1")
        if self.balance_classes and policy.target.kind != "discrete":
            raise Unsupported("the actions are numbers, and not classes, which could be drawn equally often",
                              where=f"{type(self).__name__}.balance_classes", hint="leave it out")
        inverse = Policy(replace(policy.config, window=Window(2, obs_offset=1)), policy.features)
        inverse.codec.load_state_dict(policy.codec.state_dict())
        return {"policy": Net(policy, self.optimizer, average=self.ema), "inverse": Net(inverse, self.optimizer),
                "error": Net(_RunningError(policy.codec.width))}

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler:
        """Returns a sampler of practice steps, with demonstrations besides. `weights` is not used."""
        expert, windows = expert_episodes(data), partial(policy.training_windows, next_obs=True)
        practice = data.select(sorted(set(range(len(data))) - set(expert)))
        if not expert or not len(practice):
            raise DataError(f"{len(expert)} of {len(data)} episodes are demonstrations, and {len(practice)} are "
                            "practice with actions", where=data.metadata.get("path", "data set"),
                            hint="record practice and train on both: understudy record ENV --actor random --out "
                                 "PRACTICE; understudy train METHOD DATA --prior PRACTICE")
        return SourcesSampler(windows(practice, sampling_weights=self.practice_weights(practice)),
                              {"expert": windows(data.select(expert))})

    def practice_weights(self, practice: Dataset) -> SamplingWeights | None:
        """Returns the relative rate at which each step of the practice is drawn. None for all steps equally often."""
        return ClassBalance.of(practice) if self.balance_classes else None

    @prepare
    def labeled(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Labels each demonstration with the action that the inverse dynamics model infers."""
        return _with_labels(batch, inverse_plan(nets, batch.others["expert"]))

    @prepare(when=lambda method, n_updates, steps: method.label_noise and n_updates < (1 - NOISELESS) * steps)
    def noisy(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Adds noise to the labeled actions of the demonstrations."""
        demonstrations = batch.others["expert"]
        coded = nets.inverse.encode(demonstrations.action, obs := transitions(demonstrations))
        noise = torch.randn(coded.shape, generator=rng, device=coded.device)
        return _with_labels(batch, nets.inverse.decode(coded + self.label_noise * nets.error.mean * noise, obs))

    @prepare
    def followed(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Batch, dict[str, Tensor]]:
        """Updates the running error of the inverse dynamics model in practice."""
        P, obs = Processes.current(), transitions(batch)
        error = nets.inverse.encode(inverse_plan(nets, batch), obs) - nets.inverse.encode(batch.action, obs)
        P.all_reduce([mean := error[:, 0].square().mean(0)])
        nets.error.mean.lerp_(mean / P.count, 1 - ERROR_DECAY)
        return batch, {"label_error": nets.error.mean}

    @loss("inverse")
    def inverse_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the loss of the inverse dynamics model at each step, (B, 1)."""
        return nets.inverse.loss(batch.replace(obs=transitions(batch)), rng)

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.policy.loss(batch.others["expert"], rng)


def transitions(batch: Batch) -> dict[str, Tensor]:
    """Returns the present and the next observation of each window, (B, 2, ...)."""
    assert batch.next is not None
    return {name: torch.cat([x[:, -1:], batch.next[name][:, -1:]], 1) for name, x in batch.obs.items()}


def inverse_plan(nets: Any, batch: Batch) -> Tensor:
    """Returns the action that the inverse dynamics model infers for each window, (B, 1, A), in world units."""
    noise = torch.zeros(len(batch), *nets.inverse.noise_shape, device=batch.mask.device)
    return nets.inverse.plan(transitions(batch), noise)


def _with_labels(batch: Batch, action: Tensor) -> Batch:
    return batch.replace(others={"expert": batch.others["expert"].replace(action=action)})


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
    """Returns the classes that were chosen at each step, (T, n)."""
    return np.asarray(episode.steps["action"])[:len(episode)].reshape(len(episode), -1).astype(np.int64)
