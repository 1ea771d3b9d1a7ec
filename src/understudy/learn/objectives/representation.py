"""Representation learning: trains the encoder of a policy on its own, for the stages that follow."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, cast

import torch
from torch import Generator, Tensor, nn

from ...core import AtLeast, Batch, ConfigError, Unsupported, part
from ...data.episode import Dataset
from ...data.ordered_frames import OrderedFrames
from ...data.window import Windows
from ...heads.base import MemoryHead
from ...nets.base import capture_intermediates, record_intermediate
from ...nets.ema import EMADecay, WarmupDecay
from ...policy import Policy
from ..behavior_cloning import AuxiliaryLoss, update_lagged
from ..fit import LearnerConfig
from ..gradient_learner import GradientLearner
from ..optimizer import OptimizerConfig
from .representation_objectives import InverseDynamics


@part
class RepresentationLearning(LearnerConfig):
    """Trains the encoder of a policy on a list of objectives.

    It is the learner of a stage. The policy of a later stage takes over the encoder with `InitializeFrom`, and trains
    it further or keeps it frozen. Both policies need the same encoder, inputs and number of observation steps.

    Data without actions train an encoder too, with objectives that read none. The policy of the stage then has no
    target (`PolicyConfig.target` is empty), and a later stage takes over its encoder and ``"codec.obs_transforms"``.

    The head of the stage's policy is a probe. It learns to predict the target from encodings, without gradient to the
    encoder. The validation error of the stage is then that of a policy on the frozen encoder. With a `MemoryHead`, the
    stage is itself retrieval in the features of the encoder.

    Args:
        objectives: The losses of the encoder, which are added.
        lookahead: Number of rows from an observation to the later one that objectives compare it with. 0 means the
            horizon of the policy.
        optimizer: Optimizer of the encoder, of the networks of the objectives and of the probe.
        ema: Decay of the averaged weights, which later stages take over.

    Example:
        >>> policy = PolicyConfig(Regression(), encoder=TokenEncoder(crop=4))
        >>> pretraining = Stage("encoder", Method(policy, learner=RepresentationLearning((InverseDynamics(),))))
        >>> frozen = InitializeFrom(FromStage("encoder"), load=("codec", "encoder"), train=())
        >>> method = Method(policy, stages=(pretraining,), initialize_from=(frozen,))
    """

    objectives: tuple[AuxiliaryLoss, ...] = field(default_factory=lambda: (InverseDynamics(),))
    steps: Annotated[int, AtLeast(0)] = 5000
    batch_size: Annotated[int, AtLeast(1)] = 256
    lookahead: Annotated[int, AtLeast(0)] = 0
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))

    def __post_init__(self):
        if not self.objectives:
            raise ConfigError("there are no objectives, so that nothing would train the encoder",
                              where="RepresentationLearning.objectives", hint="add one, such as InverseDynamics()")

    @property
    def extra(self):
        return tuple(dict.fromkeys(column for objective in self.objectives for column in objective.columns))

    @property
    def next_obs(self):
        return any(objective.next_obs for objective in self.objectives)

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> RepresentationLearner:
        if self.next_obs and len(data) and self.lookahead > max(data.lengths):
            raise ConfigError(f"no episode has {self.lookahead} steps, but the longest {max(data.lengths)}, so that "
                              "every later observation would be the last one", where="RepresentationLearning.lookahead",
                              hint="look less far ahead")
        return RepresentationLearner(self, policy, seed, steps)


class RepresentationLearner(GradientLearner):
    """Learner of `RepresentationLearning`."""

    config: RepresentationLearning

    def __init__(self, config: RepresentationLearning, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        if not any(p.requires_grad for p in policy.encoder.parameters()):
            raise ConfigError(f"{type(policy.config.encoder).__name__} has no weights to train",
                              where="RepresentationLearning", hint="use an encoder that has, such as TokenEncoder")
        if config.optimizer.compile:
            raise Unsupported("compiled networks offer no activations to the objectives",
                              where="RepresentationLearning", hint="set optimizer.compile to False")
        if readers := [o for o in config.objectives if o.reads_actions and not policy.config.target]:
            raise ConfigError(f"{type(readers[0]).__name__} reads actions, and the policy has no target",
                              where="RepresentationLearning.objectives",
                              hint="use an objective without actions, such as TimeContrastive()")
        self.objectives = tuple(objective.build(policy) for objective in config.objectives)
        self.captures = {name for objective in config.objectives for name in objective.captures}
        self.register("policy", policy, config.optimizer,
                      auxiliary=[objective for objective in self.objectives if isinstance(objective, nn.Module)])
        self.average_weights("policy", config.ema)
        self.spread = 0.0

    def batch_sampler(self, data, sampling_weights=None):
        windows = cast(Windows, super().batch_sampler(data, sampling_weights))
        return OrderedFrames(windows) if any(o.ordered_frames for o in self.config.objectives) else windows

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("policy", self.losses, batch)
        metrics = self.end_update(encoding_std=self.spread)
        update_lagged(self.objectives, self.policy)
        return metrics

    def losses(self, batch: Batch, rng: Generator) -> tuple[Tensor, ...]:
        """Returns the loss of the probe, (B, H), then the loss of each objective, (B,), not reduced."""
        with capture_intermediates(self.captures) as captured:
            context = self.policy.training_context(batch.obs, rng)
            record_intermediate("context", context.tokens)
            record_intermediate("context_mask", context.mask)
        tokens = context.tokens.detach()
        # Encodings that become equal are a failure that no loss shows.
        self.spread = float(tokens.flatten(1).std(0, correction=0).mean())
        policy_config = self.policy.config
        # A memory head has no weights, and its memory is of an older encoder.
        if isinstance(policy_config.head, MemoryHead) or not policy_config.target:
            probe = batch.mask.new_zeros(batch.mask.shape, dtype=torch.float32)
        else:
            probe = self.policy.loss_given_context(replace(context, tokens=tokens), batch, rng)
        return probe, *(objective(self.policy, batch, rng, captured) for objective in self.objectives)
