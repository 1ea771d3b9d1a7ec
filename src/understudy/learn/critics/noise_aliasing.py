"""DSRL-NA: noise of a frozen policy, chosen by a critic of the chunks that it leads to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, replace
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor

from ...checkpoint import FromStage
from ...core import Above, Batch, ConfigError, Unsupported, part
from ...data.episode import Dataset, Episode
from ...execute.wrappers import NoiseSteeringWrapper, every_nth_step, wrapped_env_name
from ...policy import Policy
from ..algorithm import Net, first, loss
from ..critic import CriticSpec, QFunction
from ..rewards.reward_models import RewardedEngine
from .sac import SAC

CHUNK = "executed_chunk"  # column of the actions that were executed in one step of the wrapper, (period * A,)
DISTILL_EVERY = 2  # updates, as in the authors' code


@part
class NoiseAliasing(SAC):
    """SAC of the noise of a frozen policy, whose critic scores the chunks that are executed (DSRL-NA).

    The first critic scores chunks. A second critic learns from it the score of noise, for noise as the frozen policy
    draws it, and the trained policy chooses noise by this score. What is learned of a chunk therefore holds for every
    noise that leads to it. Episodes without noise, such as demonstrations, can be learned from, too: see
    `demonstrated_chunks`.

    Args:
        steering: The wrapper of the method.

    References:
        Wagenmaker et al. (2025), Steering Your Diffusion Policy with Latent Space Reinforcement Learning,
        arXiv:2506.15799.
    """

    temperature: Annotated[float, Above(0)] = 0.1
    target_entropy: float | None = 0.0
    steering: NoiseSteeringWrapper = field(default_factory=lambda: NoiseSteeringWrapper(FromStage("base")))

    def __post_init__(self):
        super().__post_init__()
        if self.bc_weight:
            raise ConfigError("what was demonstrated has no noise to stay near to", where="NoiseAliasing.bc_weight",
                              hint="leave it at 0")

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> NoiseAliasingEngine:
        return NoiseAliasingEngine(self, policy, seed, steps, data)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        return {**super().networks(policy, data), "noise_critic": Net(self.critic.build(policy), self.optimizer)}

    def build_critic(self, policy):
        base = self.steering.policy
        assert isinstance(base, Policy)
        if missing := set(base.inputs) - set(policy.inputs):
            raise Unsupported(f"the frozen policy reads {', '.join(sorted(missing))}, which the policy of its noise "
                              "does not", where="NoiseAliasing.steering", hint="train both on the same columns")
        window = replace(base.window, horizon=self.steering.period)
        spec = CriticSpec(self.critic, base.config.codec, window, base.inputs, base.config.target)
        return QFunction(spec, base.features, base.codec).to(policy.device)

    @first
    @loss("noise_critic", when=lambda method, n_updates, steps: n_updates % DISTILL_EVERY == 0)
    def distillation_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns the squared difference between the score of drawn noise and that of its chunk, (B,), summed over the
        critic networks."""
        with torch.no_grad():
            noise, chunks = self.draw_chunks(batch.obs, rng)
            scores = nets.critic.scores(batch.obs, chunks)
        return (nets.noise_critic.scores(batch.obs, noise.unsqueeze(1)) - scores).square().sum(0)

    def draw_chunks(self, obs: Mapping[str, Tensor], rng: Generator) -> tuple[Tensor, Tensor]:
        """Returns noise as the frozen policy draws it, (B, D), and the chunks to which it leads, (B, period, A)."""
        key = torch.randint(2**62, (len(next(iter(obs.values()))),), generator=rng, device=rng.device)
        noise = self.steering.draw_noise(key).flatten(1)
        return noise, self.steering.chunks(obs, noise)

    @loss("critic")
    def critic_loss(self, nets, batch, rng):
        chunk = batch.extra[CHUNK][:, 0].unflatten(1, (self.steering.period, -1))
        return super().critic_loss(nets, batch.replace(action=chunk), rng)

    def executed_plan(self, nets, coded, obs):
        return self.steering.chunks(obs, super().executed_plan(nets, coded, obs)[:, 0])

    def followed_critic(self, nets):
        return nets.noise_critic


class NoiseAliasingEngine(RewardedEngine):
    """Learner of `NoiseAliasing`, which first adds the executed chunks to episodes."""

    config: NoiseAliasing
    annotates = True

    @property
    def batch_columns(self):
        return (*super().batch_columns, CHUNK)

    def annotate(self, episodes, round):
        return with_chunks(super().annotate(episodes, round), self.config.steering)


def with_chunks(episodes: Dataset, steering: NoiseSteeringWrapper) -> Dataset:
    """Adds the column of executed chunks to episodes whose actions are noise.

    Episodes that have the column are returned as they are.
    """
    return Dataset([_with_chunks(e, steering) for e in episodes], episodes.metadata)


def _with_chunks(episode: Episode, steering: NoiseSteeringWrapper) -> Episode:
    if CHUNK in episode.steps:
        return episode
    obs = {k: torch.from_numpy(np.array(episode.steps[k][:len(episode)])).unsqueeze(1)
           for k in episode.steps if k.startswith("observation.")}
    chunks = steering.chunks(obs, torch.from_numpy(np.array(episode.steps["action"][:len(episode)])))
    return episode.replace({CHUNK: chunks.flatten(1).cpu().numpy()})


def demonstrated_chunks(data: Dataset, steering: NoiseSteeringWrapper) -> Dataset:
    """Converts episodes of the environment to episodes of a steered policy, with executed chunks.

    No noise is known that would have led to them. It is 0, and `NoiseAliasing` does not read it.
    """
    episodes = []
    for episode in data:
        action = np.asarray(episode.steps["action"][:len(episode)], np.float32).reshape(len(episode), -1)
        padded = np.pad(action, ((0, -len(action) % steering.period), (0, 0)), mode="edge")
        chunks = padded.reshape(-1, steering.period * action.shape[1])
        noise = steering.features(episode.features())["action"]
        columns = {"action": np.zeros((len(chunks), *noise.shape), np.float32), CHUNK: chunks}
        wrapped = every_nth_step(episode, steering.period, columns, noise)
        env = wrapped_env_name(str(episode.metadata.get("env", "")), steering)
        episodes.append(replace(wrapped, metadata={**episode.metadata, "env": env}))
    return Dataset(episodes, data.metadata)
