"""Objectives that reconstruct the observation or predict a later one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import torch
from torch import Generator, Tensor, nn

from ...core import Above, AtLeast, Batch, ConfigError, Schema, Unsupported, part
from ...data.codec import CodecModule, Normalizer
from ...data.episode import Dataset
from ...data.window import Window
from ...nets.feed_forward import feed_forward_layers
from ...policy import NO_TARGET, Policy
from ..targets import REWARD
from .representation_objectives import NetworkObjective, encoding_size, flat_encoding


def observation_vector(policy: Policy, obs: Mapping[str, Tensor]) -> Tensor:
    """Returns the observation of each window as one vector, (B, D): coded numbers, and pixels from 0 to 1."""
    if cached := list(policy.encoder.cached_features):
        raise Unsupported(f"pixels of {cached[0]!r} are predicted, and batches have its cached features",
                          where="TokenEncoder.cache_features", hint="use cache_features=False")
    return _column_vector(policy.codec, {name: policy.features[name] for name in policy.inputs}, obs)


def _column_vector(codec: CodecModule, features: Schema, obs: Mapping[str, Tensor]) -> Tensor:
    coded = codec.encode_obs(obs)
    columns = [coded[name] / 255 if f.kind == "image" else coded[name] for name, f in features.items()]
    return torch.cat([column.float().flatten(1) for column in columns], -1)


def _target_size(policy: Policy) -> int:
    return policy.window.n_obs_steps * sum(policy.features[name].size for name in policy.inputs)


@part
class Reconstruction(NetworkObjective):
    """Objective that reconstructs the observation from its encoding (an autoencoder), or other columns.

    Other columns teach the encoder what they show: another camera, a map of depths or classes, the state of a
    simulator. They are needed in training alone.

    Args:
        weight: Factor of the loss: the mean squared error of coded numbers, and of pixels from 0 to 1.
        columns: Columns to reconstruct instead of the inputs of the policy, numbers or images.

    References:
        Ze et al. (2023), GNFactor: Multi-Task Real Robot Learning with Generalizable Neural Feature Fields,
        arXiv:2308.16891, which renders other cameras from its voxels.
    """

    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (256,)
    weight: float = 1.0
    columns: tuple[str, ...] = ()

    def build_for(self, policy, data):
        return _ColumnReconstruction(self, policy, data) if self.columns else self.build(policy)

    def networks(self, policy):
        return {"decoder": feed_forward_layers((encoding_size(policy), *self.hidden, _target_size(policy)))}

    def loss(self, networks, policy, batch, rng, captured):
        error = networks.decoder(flat_encoding(captured)) - observation_vector(policy, batch.obs)
        return self.weight * error.square().mean(-1)


class _ColumnReconstruction(nn.Module):
    """Objective that reconstructs columns that the policy does not read, with a codec of their own."""

    def __init__(self, objective: Reconstruction, policy: Policy, data: Dataset):
        super().__init__()
        self.weight, features = objective.weight, data.features()
        self.features = {name: features[name] for name in objective.columns}
        if unfit := [name for name, f in self.features.items() if f.kind not in ("vector", "image")]:
            raise ConfigError(f"{unfit[0]} contains {self.features[unfit[0]].kind}, and numbers or images can be "
                              "reconstructed", where="Reconstruction.columns", hint="leave it out")
        if not 0 <= -policy.window.action_offset < policy.window.horizon:
            raise ConfigError(f"the chunks of the policy (action_offset={policy.window.action_offset}, "
                              f"horizon={policy.window.horizon}) do not contain the observed step, whose columns are "
                              "reconstructed", where="Reconstruction.columns", hint="set window.action_offset to 0")
        numbers = tuple(name for name, f in self.features.items() if f.kind == "vector")
        self.codec = Normalizer().build({**self.features, "": NO_TARGET}, numbers, "")
        self.codec.fit_statistics(lambda: Window().windows(data, numbers, None).scan())
        size = sum(f.size for f in self.features.values())
        self.decoder = feed_forward_layers((encoding_size(policy), *objective.hidden, size))

    def forward(self, policy: Policy, batch: Batch, rng: Generator, captured: Mapping[str, Tensor]) -> Tensor:
        row = -policy.window.action_offset
        target = _column_vector(self.codec, self.features, {n: batch.extra[n][:, row:row + 1] for n in self.features})
        return self.weight * (self.decoder(flat_encoding(captured)) - target).square().mean(-1)


@part
class ObservationPrediction(NetworkObjective):
    """Objective that predicts the observation after a chunk from the encoding before it and the chunk's actions.

    With a reward as a further target, a history must keep what the reward depends on, even if no later observation
    shows it.

    Args:
        reward_weight: Factor of the squared error of the sum of the chunk's rewards. 0: rewards are not predicted.
        weight: Factor of the loss: the mean squared error of coded numbers, and of pixels from 0 to 1, plus the error
            of the rewards.

    References:
        Kwon et al. (2024), Future Prediction Can be a Strong Evidence of Good History Representation in Partially
        Observable Environments, arXiv:2402.07102.
    """

    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (256,)
    reward_weight: Annotated[float, AtLeast(0)] = 0.0
    weight: float = 1.0

    next_obs = reads_actions = True

    @property
    def columns(self):
        return (REWARD,) if self.reward_weight else ()

    def networks(self, policy):
        n_read = encoding_size(policy) + policy.window.horizon * policy.codec.width
        size = sum(policy.features[name].size for name in policy.inputs)
        return {"predictor": feed_forward_layers((n_read, *self.hidden, size + 1))}  # the last output is the reward

    def loss(self, networks, policy, batch, rng, captured):
        assert batch.next is not None
        actions = policy.encode_batch(batch).flatten(1)
        prediction = networks.predictor(torch.cat([flat_encoding(captured), actions], -1))
        later = observation_vector(policy, {name: column[:, -1:] for name, column in batch.next.items()})
        loss = (prediction[:, :-1] - later).square().mean(-1)
        if self.reward_weight:
            mask = batch.extra.get("lookahead_mask", batch.mask)
            reward = (batch.extra[REWARD].flatten(1) * mask).sum(1)
            loss = loss + self.reward_weight * (prediction[:, -1] - reward).square()
        return self.weight * loss


@part
class VAE(NetworkObjective):
    """Objective of a variational autoencoder, which reconstructs the observation from a random latent.

    The loss is ``|x - decode(z)|^2 / 2 + beta * KL(q(z | x) || N(0, 1))``. With linear networks and ``beta`` as the
    variance of noise, its optimum is probabilistic principal component analysis.

    Args:
        latent: Number of components of the latent, whose mean is a linear map of the encoding. 0: the encoding is
            itself the mean, so that what takes over the encoder has latents.
        beta: Weight of the divergence. If it is too large, latents carry nothing.
        weight: Factor of the loss.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, arXiv:1312.6114.
        Nair et al. (2018), Visual Reinforcement Learning with Imagined Goals, arXiv:1807.04742.
    """

    latent: Annotated[int, AtLeast(0)] = 4
    beta: Annotated[float, Above(0)] = 1.0
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (256,)
    weight: float = 1.0

    def networks(self, policy):
        size = encoding_size(policy)
        n_read = 2 * self.latent or size  # means and log-variances, or log-variances alone
        return {"to_latent": feed_forward_layers((size, n_read)),
                "decoder": feed_forward_layers((self.latent or size, *self.hidden, _target_size(policy)))}

    def loss(self, networks, policy, batch, rng, captured):
        encoding = flat_encoding(captured)
        read = networks.to_latent(encoding)
        mean, log_variance = read.chunk(2, -1) if self.latent else (encoding, read)
        noise = torch.randn(mean.shape, generator=rng, device=mean.device)
        decoded = networks.decoder(mean + (log_variance / 2).exp() * noise)
        error = (decoded - observation_vector(policy, batch.obs)).square().sum(-1) / 2
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / 2
        return self.weight * (error + self.beta * divergence)
