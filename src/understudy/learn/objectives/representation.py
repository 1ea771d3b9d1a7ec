"""Representation learning: trains the encoder of a policy on its own, for the stages that follow."""

from __future__ import annotations

from dataclasses import field, replace
from typing import Annotated, Any

import torch
from torch import Generator

from ...core import AtLeast, Batch, ConfigError, Unsupported, part
from ...data.batch_sampler import BatchSampler
from ...data.episode import Dataset
from ...data.window import SamplingWeights
from ...heads.base import MemoryHead
from ...nets.base import capture_intermediates, record_intermediate
from ...nets.ema import EMADecay, WarmupDecay
from ...policy import Policy
from ..algorithm import Algorithm, Net, loss
from ..behavior_cloning import AuxiliaryLoss, update_lagged
from ..optimizer import OptimizerConfig
from .ordered_frames import OrderedFrames
from .representation_objectives import InverseDynamics


@part
class RepresentationLearning(Algorithm):
    """Trains the encoder of a policy on a list of objectives, for later stages.

    It is the learner of a stage. The policy of a later stage takes over the encoder with `InitializeFrom`, and trains
    it further or keeps it frozen. Both policies need the same encoder, inputs and number of observation steps.

    Data without actions train an encoder too, with objectives that read none. The policy of the stage then has no
    target (`PolicyConfig.target` is empty), and a later stage takes over its encoder and ``"codec.obs_transforms"``.

    The head of the stage's policy is a probe. It learns to predict the target from encodings, without gradient to the
    encoder. The validation error of the stage is then the error of a policy on the frozen encoder. With a `MemoryHead`,
    the policy of the stage retrieves neighbors in the features of the encoder.

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

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if self.next_obs and len(data) and self.lookahead > max(data.lengths):
            raise ConfigError(f"no episode has {self.lookahead} steps, but the longest {max(data.lengths)}, so that "
                              "every later observation would be the last one", where="RepresentationLearning.lookahead",
                              hint="look less far ahead")
        if not any(p.requires_grad for p in policy.encoder.parameters()):
            raise ConfigError(f"{type(policy.config.encoder).__name__} has no weights to train",
                              where="RepresentationLearning", hint="use an encoder that has, such as TokenEncoder")
        if self.optimizer.compile:
            raise Unsupported("compiled networks offer no activations to the objectives",
                              where="RepresentationLearning", hint="set optimizer.compile to False")
        if readers := [o for o in self.objectives if o.reads_actions and not policy.config.target]:
            raise ConfigError(f"{type(readers[0]).__name__} reads actions, and the policy has no target",
                              where="RepresentationLearning.objectives",
                              hint="use an objective without actions, such as TimeContrastive()")
        objectives = tuple(objective.build_for(policy, data) for objective in self.objectives)
        return {"policy": Net(policy, self.optimizer, average=self.ema),
                "objectives": Net(objectives, trained_with="policy")}

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler:
        windows = policy.training_windows(data, extra=self.extra, next_obs=self.next_obs, lookahead=self.lookahead,
                                          sampling_weights=weights)
        return OrderedFrames(windows) if any(o.ordered_frames for o in self.objectives) else windows

    def end_update(self, nets: Any) -> None:
        update_lagged(nets.objectives, nets.policy)

    @loss("policy")
    def losses(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Any, ...]:
        """Returns the loss of the probe, (B, H), then the loss of each objective, (B,)."""
        with capture_intermediates({name for objective in self.objectives for name in objective.captures}) as captured:
            context = nets.policy.training_context(batch.obs, rng)
            record_intermediate("context", context.tokens)
            record_intermediate("context_mask", context.mask)
        tokens, config = context.tokens.detach(), nets.policy.config
        # A memory head has no weights, and its memory is of an older encoder.
        if isinstance(config.head, MemoryHead) or not config.target:
            probe = batch.mask.new_zeros(batch.mask.shape, dtype=torch.float32)
        else:
            probe = nets.policy.loss_given_context(replace(context, tokens=tokens), batch, rng)
        # Encodings that become equal are a failure that no loss shows.
        return (probe, *(objective(nets.policy, batch, rng, captured) for objective in nets.objectives),
                {"encoding_std": tokens.flatten(1).std(0, correction=0).mean()})
