"""Skill autoencoder: a latent space of pieces of episodes, with a policy that carries a skill out and a prior over
skills."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from ...checkpoint import BuiltModule
from ...core import AtLeast, Batch, ConfigError, HeadSpec, Schema, Unsupported, part, role
from ...data.batch_sampler import BatchSampler
from ...data.codec import CodecModule, Normalizer
from ...data.column_changes import Rename
from ...data.episode import Dataset
from ...data.tasks import SHOWN_TASK
from ...data.window import SamplingWeights, Window
from ...heads.base import LikelihoodHead
from ...heads.likelihood.gaussian import Gaussian
from ...nets.base import Trunk
from ...nets.ema import EMADecay, WarmupDecay
from ...nets.mlp import MLP
from ...nets.quantization import FSQ
from ...policy import Policy, PolicyConfig
from ..algorithm import Algorithm, Net, loss, prepare
from ..optimizer import OptimizerConfig
from .latent_labels import SKILL, LatentEncoder

MIN_STD = 1e-4  # of a skill, given its piece


@part
class SkillAutoencoder(Algorithm):
    """Learns skills (latents of pieces of episodes), from which a policy reproduces the actions of the piece.

    Three modules are trained together. The posterior reads a whole piece and gives a distribution of its skill. The
    policy is the decoder: at each step of the piece it reads the observation and the skill. The prior predicts the
    skill from the first observation alone. The loss of a piece is the negative evidence lower bound: the loss of the
    policy, summed over the steps, plus `beta` times the KL divergence of the posterior from the prior.

    With a `quantizer`, skills are codes instead: the posterior gives one code for each piece, there is no prior, and
    only the loss of the policy remains. A code holds little information about its piece. `SkillWrapper` with the same
    quantizer lets a high-level policy choose the level of each component.

    The policy reads the skill in a column of the same width. The data need this column, with any values:
    ``ConstantColumn(SKILL, (0.0,) * 8)`` adds it. The codecs must leave skills as they are:
    ``Normalizer(unscaled=(SKILL,))`` for the policy and ``Normalizer(target="identity")`` for the prior.

    A checkpoint has the modules "policy", "posterior" and, without a quantizer, "prior". Behind
    ``SkillWrapper(FromStage(...), period)`` the prior is a high-level policy, and `LatentLabels` writes the skills of
    the posterior into the data, for a high-level policy that learns from them.

    Validation plans with the skills in the column of the data. Its error says little, in contrast to the metrics
    "reconstruction" and "kl" of training.

    Args:
        length: Number of steps of a piece. At the end of an episode pieces are shorter.
        beta: Weight of the KL divergence, which is a sum over the components of the skill.
        prior: The prior. Its head is a distribution, and it has the window of the policy. It reads the policy's
            observations without the skill.
        posterior: Network of the posterior. It reads the actions of the piece, and all its observations as the encoder
            of the policy encodes them.
        column: Column in which the policy reads the skill.
        batch_size: Pieces per batch.
        optimizer: Optimizer of all three modules.
        ema: Decay of the averaged weights, which act.
        quantizer: Makes skills codes. It has as many components as the skill. None for skills from a distribution.

    References:
        Lynch et al. (2019), Learning Latent Plans from Play, arXiv:1903.01973.
        Ajay et al. (2021), OPAL: Offline Primitive Discovery for Accelerating Offline Reinforcement Learning,
        arXiv:2010.13611.
        Pertsch et al. (2020), Accelerating Reinforcement Learning with Learned Skill Priors (SPiRL), arXiv:2010.11944.
        Wang et al. (2024), OmniJARVIS: Unified Vision-Language-Action Tokenization Enables Open-World Instruction
        Following Agents, arXiv:2407.00114 (`quantizer`).
    """

    length: Annotated[int, AtLeast(1)] = 10
    beta: Annotated[float, AtLeast(0)] = 0.1
    prior: PolicyConfig = field(
        default_factory=lambda: PolicyConfig(Gaussian(temperature=1.0), codec=Normalizer(target="identity")))
    posterior: Trunk = field(default_factory=MLP)
    column: str = SKILL
    steps: Annotated[int, AtLeast(0)] = 5000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    ema: EMADecay = field(default_factory=lambda: WarmupDecay(0.995))
    quantizer: FSQ | None = None

    def __post_init__(self):
        if not isinstance(self.prior.head, LikelihoodHead):
            raise ConfigError(f"the head of the prior is {type(self.prior.head).__name__}, which has no density",
                              where="SkillAutoencoder.prior", hint="use Gaussian or GMM")

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        _check_policy(self, policy)
        networks: dict[str, nn.Module] = {"policy": policy}
        if self.quantizer is None:
            columns = {k: policy.features[k] for k in policy.inputs if k != self.column}
            prior = Policy(self.prior, {**columns, "action": policy.features[self.column]})
            networks["prior"] = prior.fit_statistics(data.map(Rename(self.column, "action")))
        spec = SkillPosteriorSpec(self.posterior, self.length, self.column, policy.config, self.quantizer)
        networks["posterior"] = SkillPosterior(spec, policy.features, policy.codec)
        return {"policy": Net(nn.ModuleDict(networks), self.optimizer, average=self.ema)}

    def sampler(self, policy: Policy, data: Dataset, weights: SamplingWeights | None) -> BatchSampler:
        inputs = tuple(k for k in policy.inputs if k != self.column)
        window = replace(_piece_window(policy.window, self.length), goals=policy.window.goals)
        return window.windows(data, inputs, policy.config.target, extra=self.extra_columns(data),
                              sampling_weights=weights)

    def extra_columns(self, data: Dataset) -> tuple[str, ...]:
        """Returns the columns that batches have besides what the policy reads."""
        return ()

    @prepare(when=lambda method, n_updates, steps: n_updates == 0)
    def checked(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Raises ConfigError if a codec changes skills, which have no statistics yet."""
        size = nets.policy.features[self.column].size
        skill = torch.linspace(-2, 2, len(batch) * size, device=batch.mask.device).reshape(len(batch), size)
        obs = self.decoder_batch(nets, batch, skill).obs
        if not torch.equal(nets.policy.codec.encode_obs(obs)[self.column], obs[self.column]):
            raise ConfigError("the codec of the policy changes the skill", where="PolicyConfig.codec",
                              hint=f"use Normalizer(unscaled=({self.column!r},))")
        first, target = {k: v[:, : nets.policy.window.n_obs_steps] for k, v in batch.obs.items()}, skill.unsqueeze(1)
        if self.quantizer is None and not torch.equal(nets.prior.encode(target, first), target):
            raise ConfigError("the codec of the prior changes the skill", where="SkillAutoencoder.prior",
                              hint='use Normalizer(target="identity")')
        return batch

    @loss("policy")
    def skill_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the negative evidence lower bound of each piece, (B,). For codes it is the loss of the policy.

        Args:
            batch: Pieces: observations (B, length + n_obs_steps - 1, ...) and actions (B, length, A).
        """
        if self.quantizer is not None:
            reconstruction = self.reconstruction(nets, batch, nets.posterior.code(batch), rng)
            return reconstruction, {"reconstruction": reconstruction}
        mean, std = nets.posterior.distribution(batch)
        skill = mean + std * torch.randn(mean.shape, generator=rng, device=mean.device)
        reconstruction = self.reconstruction(nets, batch, skill, rng)
        divergence = self.kl_divergence(nets, std, skill, batch, rng)
        return reconstruction + self.beta * divergence, {"reconstruction": reconstruction, "kl": divergence}

    def reconstruction(self, nets: Any, batch: Batch, skill: Tensor, rng: Generator) -> Tensor:
        """Returns the loss of the policy with skills (B, D), summed over the steps of each piece, (B,)."""
        steps = nets.policy.loss(self.decoder_batch(nets, batch, skill), rng)
        return steps.unflatten(0, batch.mask.shape).sum((1, 2))

    def kl_divergence(self, nets: Any, std: Tensor, skill: Tensor, batch: Batch, rng: Generator) -> Tensor:
        """Returns an unbiased estimate of the KL divergence of the posterior from the prior, (B,).

        It is minus the entropy of the posterior, which is exact, minus the log-density of the sampled skill under the
        prior. The prior may therefore be any distribution. `std` and `skill`, (B, D each), come from the posterior.
        """
        first = {k: v[:, : nets.policy.window.n_obs_steps] for k, v in batch.obs.items()}
        mask = torch.ones_like(batch.mask[:, :1])
        surprise = nets.prior.loss(Batch(first, skill.unsqueeze(1), mask), rng).sum(1)
        entropy = (std.log() + 0.5 * math.log(2 * math.pi * math.e)).sum(-1)
        return surprise - entropy

    def decoder_batch(self, nets: Any, batch: Batch, skill: Tensor) -> Batch:
        """Returns the B * length windows of the policy at each step of each piece, with the skill of the piece, (B, D).

        The windows of a piece are adjacent.
        """
        n = nets.policy.window.n_obs_steps
        column = skill.repeat_interleave(self.length, 0).unsqueeze(1).expand(-1, n, -1)
        obs = {**_steps_of(batch.obs, n), self.column: column}
        return Batch(obs, batch.action.flatten(0, 1).unsqueeze(1), batch.mask.flatten().unsqueeze(1))


def inputs_without_words(features: Schema | None) -> tuple[str, ...]:
    """Returns the inputs of a policy that carries skills out: all observations but the task in words, and the skill.

    With None for the columns of the data, these are all observations (an empty tuple).
    """
    if features is None:
        return ()
    observed = {k for k, f in features.items() if role(k) == "observation" and f.kind != "string"}
    return tuple(sorted({*observed, SKILL} - {SHOWN_TASK, SHOWN_TASK + "?"}))


@dataclass(frozen=True)
class SkillPosteriorSpec:
    """Settings and columns that determine a `SkillPosterior`, without its weights.

    Attributes:
        length: Number of steps of a piece.
        policy: The policy that carries skills out. The posterior has the same kinds of codec and encoder.
    """

    trunk: Trunk
    length: int
    column: str
    policy: PolicyConfig
    quantizer: FSQ | None = None


class SkillPosterior(BuiltModule, LatentEncoder):
    """Network that infers the distribution of the skill from the observations and actions of a piece.

    It reads no goals, because a batch draws them at random. What is after the end of the episode is left out.
    """

    kind, description = "posterior", SkillPosteriorSpec

    def __init__(self, about: SkillPosteriorSpec, features: Schema, codec: CodecModule | None = None):
        super().__init__(about, features)
        policy, n = about.policy, about.policy.window.n_obs_steps
        observed = tuple(k for k in features if k != policy.target)
        self.latent = features[about.column]
        self.codec = policy.codec.build(features, observed, policy.target) if codec is None else codec
        drawn = {about.column, *(goal.into for goal in policy.window.goals)}
        self.inputs = tuple(k for k in observed if k not in drawn)
        self.encoder = policy.encoder.build({k: features[k] for k in self.inputs}, about.length + n - 1)
        spec = HeadSpec(about.length, self.encoder.tokens, self.encoder.width, (), None, self.encoder.token_obs_steps,
                        n - 1)
        outputs = self.latent.size * (2 if about.quantizer is None else 1)
        self.net = about.trunk.build(self.codec.width + 1, outputs, 0, spec)

    def windows(self, data):
        window = _piece_window(self.about.policy.window, self.about.length)
        return window.windows(data, self.inputs, self.about.policy.target)

    def distribution(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns mean and standard deviation of the skill of each piece, (B, D) each, from the columns in `inputs`."""
        mean, raw_std = self._mean_output(batch).chunk(2, -1)
        return mean, F.softplus(raw_std) + MIN_STD

    def code(self, batch: Batch) -> Tensor:
        """Returns the code of each piece, (B, D), from the columns in `inputs`. Gradients pass the rounding."""
        assert self.about.quantizer is not None
        return self.about.quantizer.quantize(self._mean_output(batch))

    def _mean_output(self, batch: Batch) -> Tensor:
        """Returns the mean of the network's outputs over the steps of each piece."""
        n, mask = self.about.policy.window.n_obs_steps, batch.mask
        present = torch.cat([mask.new_ones(len(batch), n - 1), mask], 1)
        # The codec may read any column of the policy, also columns that are not read here.
        obs = {**{k: torch.zeros(*present.shape, *f.shape, dtype=f.torch_dtype, device=mask.device)
                  for k, f in self.features.items() if k != self.about.policy.target}, **batch.obs}
        coded = self.codec.encode_obs(obs)
        coded = {k: coded[k] for k in self.inputs}
        coded |= {k + "?": present & batch.obs.get(k + "?", present) for k in self.inputs}
        action = self.codec.encode(batch.action.flatten(0, 1).unsqueeze(1), _steps_of(obs, n))
        step_mask = mask.unsqueeze(-1).float()
        x = torch.cat([action.squeeze(1).unflatten(0, mask.shape) * step_mask, step_mask], -1)
        return (self.net(x, x[..., :0], self.encoder(coded)) * step_mask).sum(1) / step_mask.sum(1)

    def forward(self, batch):
        skill = self.distribution(batch)[0] if self.about.quantizer is None else self.code(batch)
        return skill.unflatten(1, self.latent.shape)


def _piece_window(window: Window, length: int) -> Window:
    """Builds the window over a piece of an episode, with the history that a policy needs at its first step."""
    return Window(window.n_obs_steps + length - 1, length, obs_offset=length - 1, obs_pad_mask=window.obs_pad_mask)


def _steps_of(obs: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """Cuts pieces, (B, length + n - 1, ...), into the observation windows of each step, (B * length, n, ...)."""
    return {k: v.unfold(1, n, 1).movedim(-1, 2).flatten(0, 1) for k, v in obs.items()}


def _check_policy(config: SkillAutoencoder, policy: Policy) -> None:
    window, name = policy.window, config.column
    if name not in policy.inputs:
        raise ConfigError(f"the policy does not read {name!r}; it reads {', '.join(policy.inputs)}",
                          where="SkillAutoencoder.column",
                          hint=f"add the column to the data: ConstantColumn({name!r}, (0.0,) * 8)")
    if policy.features[name].kind != "vector" or len(policy.features[name].shape) != 1:
        raise ConfigError(f"the column {name!r} has kind {policy.features[name].kind!r} and shape "
                          f"{policy.features[name].shape}, but a skill is a vector", where="SkillAutoencoder.column",
                          hint=f"use ConstantColumn({name!r}, (0.0,) * 8)")
    if (window.horizon, window.action_offset, window.obs_offset) != (1, 0, 0):
        raise Unsupported(f"the policy carries a skill out step by step, but its window is {window}",
                          where="PolicyConfig.window", hint="use Window(n_obs_steps), with a horizon of 1")
    if config.quantizer is not None and len(config.quantizer.levels) != policy.features[name].size:
        raise ConfigError(f"the column {name!r} has {policy.features[name].size} components, but the quantizer has "
                          f"levels of {len(config.quantizer.levels)}", where="SkillAutoencoder.quantizer",
                          hint=f"use ConstantColumn({name!r}, (0.0,) * {len(config.quantizer.levels)})")
    if config.quantizer is None and config.prior.window != window:
        raise ConfigError(f"the window of the prior is {config.prior.window}, and that of the policy {window}",
                          where="SkillAutoencoder.prior", hint="give both the same window")
