"""Exploration noise in the directions in which demonstrations differ from the policy (DGN)."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Above, AtLeast, Unsupported, part
from ..data.codec import Normalizer
from ..data.episode import Dataset
from ..execute.actor import Actor, PolicyActor, pass_record
from ..execute.planners import FixedBatch
from ..heads.base import LikelihoodHead
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.fit_method import ROWS, fit_method
from ..learn.method import Method
from ..learn.optimizer import OptimizerConfig
from ..nets.base import Trunk
from ..nets.mlp import MLP
from ..policy import Policy, PolicyConfig, camera_sizes
from .collection import Exploration, GaussianExploration

DEVIATION = "deviation"  # column: demonstrated minus planned actions, in units of the policy's codec
OPTIMIZER = OptimizerConfig(lr=3e-4, weight_decay=3e-2, lr_schedule="constant")  # as published


@part
class DataGuidedExploration(Exploration):
    """Adds Gaussian noise in the directions in which demonstrations differ from the policy (DGN).

    Before each round a new network learns the covariance, given the observation, of the difference between demonstrated
    actions and the actions that the policy plans without noise. The mean of the noise is 0. Actions have the same
    limits as in `GaussianExploration`.

    Args:
        n_updates: Number of updates of this network, on batches of 128.
        decay: Number of updates of the policy after which the noise has 1/e of the learned size.

    References:
        Dong et al. (2025), Reinforcement Learning via Implicit Imitation Guidance, arXiv:2506.07505.
    """

    trunk: Trunk = MLP(256, 2, dropout=0.5)
    n_updates: Annotated[int, AtLeast(1)] = 300
    decay: Annotated[float, Above(0)] = 30_000

    def build(self, actor, env, training):
        if training.processes.count > 1:
            raise Unsupported("the noise is learned by one process", where="DataGuidedExploration",
                              hint="train with one process, or use GaussianExploration")
        policy, noise = training.learner.trained_policy, self.noise_policy(training)
        noise_actor = PolicyActor(FixedBatch(noise, ROWS), image_sizes=camera_sizes(noise.features))
        scale = math.exp(-training.n_updates / self.decay) * policy.action_scale.cpu()
        return GaussianExploration(0.0).build(_GuidedActor(actor, noise_actor, scale), env, training)  # adds the limits

    def noise_policy(self, training) -> Policy:
        """Trains the network whose plans serve as exploration noise, in normalized actions."""
        policy = training.learner.trained_policy
        config = PolicyConfig(ZeroMeanGaussian(), self.trunk, policy.config.encoder, Normalizer(target="identity"),
                              replace(policy.window, horizon=1), policy.inputs, DEVIATION)
        method = Method(config, learner=BehaviorCloning(self.n_updates, 128, OPTIMIZER))
        return fit_method(method, deviations(policy, training.data), training.seed, device=policy.device).policy


@torch.no_grad()
def deviations(policy: Policy, data: Dataset) -> Dataset:
    """Adds a column with the differences between the demonstrated and the policy's actions to demonstrations."""
    episodes, policy = [], policy.with_head(policy.config.head)  # plans without the dropout of training
    for episode in data:
        batch = next(policy.windows(Dataset([episode])).scan(len(episode))).to(policy.device)
        plan = policy.plan(batch.obs, torch.zeros(len(batch), *policy.noise_shape, device=policy.device))
        episodes.append(episode.replace({DEVIATION: ((batch.action - plan)[:, 0] / policy.action_scale).cpu().numpy()}))
    return Dataset(episodes, data.metadata)


@part
class ZeroMeanGaussian(LikelihoodHead):
    """Gaussian head with mean 0, whose network predicts a full covariance for each step."""

    def build(self, trunk, coded_dim, spec):
        return trunk.build(0, coded_dim**2, 0, spec)

    def loss(self, net, context, action, mask, rng):
        """Returns the negative log-density of each step, (B, H)."""
        factor = self.factor(net, context, action)
        whitened = torch.linalg.solve_triangular(factor, action.unsqueeze(-1), upper=False).squeeze(-1)
        return (0.5 * (whitened.square() + math.log(2 * math.pi)) + factor.diagonal(dim1=-2, dim2=-1).log()).sum(-1)

    def sample(self, net, context, noise):
        return (self.factor(net, context, noise) @ noise.unsqueeze(-1)).squeeze(-1)

    def factor(self, net, context, like: Tensor) -> Tensor:
        """Returns the lower Cholesky factor of the covariance, (B, H, A, A), with a diagonal of at least 1e-5."""
        raw = net(like[..., :0], like[..., :0], context).to(like).unflatten(-1, (like.shape[-1], -1))
        return raw.tril(-1) + torch.diag_embed(F.softplus(raw.diagonal(dim1=-2, dim2=-1)) + 1e-5)


@dataclass(frozen=True)
class _GuidedActor(Actor):
    """Actor that adds the plans of a noise policy, times a scale, to the actions of another actor."""

    actor: Actor
    noise: PolicyActor
    scale: Tensor

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "noise": self.noise.start(obs, key ^ 1)}  # independent of plans

    def act(self, obs, state):
        noise, own_state = self.noise.act(obs, state["noise"])
        action, inner = self.actor.act(obs, state["inner"])
        return action + self.scale * noise, pass_record({"noise": own_state}, inner)
