from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, Any

import torch
from torch import Generator, Tensor, nn

from ...core import AtLeast, AtMost, Batch, Schema, UserError, part
from ...data.episode import Dataset
from ...data.window import Goal
from ...execute.planners import Unresolved
from ...learn.algorithm import Net, first, loss, prepare
from ...learn.critics.goal_conditioned import (
    GoalVector,
    Observations,
    Representation,
    ScoreMaximizing,
    goal_of,
    goal_vector_method,
    on_sphere,
)
from ...learn.method import Method
from ...policy import Policy
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method

LATENT = "observation.latent"  # z, which the policy reads
NOISE, MAX_NOISE = 0.2, 0.3  # on actions of targets, in coded units: standard deviation, and where it is clipped


@method("Touati et al. 2023 (forward-backward representation), arXiv 2209.14935", rows=("064",),
        needs=(NUMBERS, GIVEN_GOAL),
        when="if one network shall reach goals, visit what clips show and maximize rewards, all named later. For goals "
             "or clips alone try `gcivl` first.")
@part
class FB(ScoreMaximizing):
    """Forward-backward representation: a policy for each reward, whose vector z is a weighted mean over states.

    F(s, a, z) . B(s') learns how much more often than in the data the policy of z visits s' after a step, in discounted
    visits. This policy maximizes F(s, a, z) . z, the value of the reward B(s') . z. While acting, z is the B of the
    goal. `infer_latent` gives z for a set of states or a reward.

    B reads the goal's column alone. z and B have the norm sqrt(D). Ends of episodes do not count.

    Args:
        discount: Discount per step.
        target_decay: Fraction of the target networks that each update keeps.
        orthonormality_weight: Weight of the loss that makes the components of B uncorrelated.
        p_goal: Fraction of the vectors z that are the B of a step in the batch. The others are drawn uniformly.
        alpha: Weight of the loss of the stored actions, relative to a score of mean absolute value 1. As published it
            is 0, for data that cover the actions.

    References:
        Touati and Ollivier (2021), Learning One Representation to Optimize All Rewards, arXiv:2103.07945.
        Touati et al. (2023), Does Zero-Shot Reinforcement Learning Exist?, arXiv:2209.14935.
    """

    discount: Annotated[float, AtLeast(0), AtMost(1)] = 0.98
    target_decay: Annotated[float, AtLeast(0), AtMost(1)] = 0.99
    orthonormality_weight: Annotated[float, AtLeast(0)] = 1.0
    p_goal: Annotated[float, AtLeast(0), AtMost(1)] = 0.5
    alpha: Annotated[float, AtLeast(0)] = 0.0

    validates = False

    def method(self, features: Schema | None = None, column: str = "observation.state", latent_dim: int = 50) -> Method:
        """Returns the method of this learner.

        Args:
            column: The column whose later values are goals.
            latent_dim: Number of components of z.
        """
        planner = GoalLatent(column=column, goal=Goal(column).into)
        return goal_vector_method(self, column, features, LATENT, latent_dim, planner)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        declared, networks, size = super().networks(policy, data), self.critic, policy.features[LATENT].size
        networks.check_own_encoders()
        forward = Representation.of(policy, networks, policy.inputs, size, n_actions=policy.codec.width,
                                    n_networks=networks.n_critics)
        backward = Representation.of(policy, networks, (goal_of(policy).column,), size)
        both = nn.ModuleList([forward, backward])
        return {**declared, "representation": Net(both, self.optimizer, target=self.target_decay),
                "backward": Net(backward)}  # to be saved by itself

    def score(self, nets, obs, coded_action):
        return (nets.representation[0](obs, coded_action) * obs[LATENT].squeeze(1)).sum(-1).amin(0)

    def noisy_action(self, policy: Policy, obs: Observations, rng: Generator) -> Tensor:
        """Returns coded actions of the policy with clipped noise, (B, 1, A)."""
        coded = policy.sample(policy.context(obs), rng)
        noise = NOISE * torch.randn(coded.shape, generator=rng, device=coded.device)
        return policy.clip(coded + noise.clamp(-MAX_NOISE, MAX_NOISE))

    @first
    @prepare
    def with_latents(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Gives each row a random vector z: uniform on the sphere, or the representation B of another step."""
        assert batch.next is not None
        n, device = len(batch), batch.mask.device
        uniform = torch.randn(n, nets.policy.features[LATENT].size, generator=rng, device=device)
        states = embed(nets.backward, batch.next)[torch.randperm(n, generator=rng, device=device)]
        is_state = torch.rand(n, 1, generator=rng, device=device) < self.p_goal
        latent = {LATENT: torch.where(is_state, states, on_sphere(uniform)).unsqueeze(1)}
        return batch.replace(obs={**batch.obs, **latent}, next={**batch.next, **latent})

    @first
    @loss("representation")
    def representation_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of F and B, (B,). Its mean compares each step with the next states of all others."""
        assert batch.next is not None
        (forward, backward), (target_forward, target_backward) = nets.representation, nets.target.representation
        with torch.no_grad():
            action = self.noisy_action(nets.policy, batch.next, rng)
            target = target_forward(batch.next, action) @ embed(target_backward, batch.next).mT
        states = embed(backward, batch.next)
        visits = forward(batch.obs, nets.policy.encode_batch(batch)) @ states.mT  # (networks, steps, states)
        own_visits = visits.diagonal(dim1=1, dim2=2)
        error = visits - self.discount * target.amin(0)
        # The squared norms in the published loss of orthonormality are constant, because B has the norm sqrt(D).
        orthonormality = _mean_of_others((states @ states.mT).square())
        return (0.5 * _mean_of_others(error.square()) - own_visits).sum(0) + (
            self.orthonormality_weight * orthonormality), {"own_visits": own_visits.mean(0)}


def _mean_of_others(pairs: Tensor) -> Tensor:
    """Returns the mean of each row of a square matrix (..., B, B) without the diagonal, (..., B)."""
    return (pairs.sum(-1) - pairs.diagonal(dim1=-2, dim2=-1)) / max(pairs.shape[-1] - 1, 1)


def embed(backward: Representation, obs) -> Tensor:
    """Returns the backward representation of observations, (B, D)."""
    return on_sphere(backward(obs)[0])


@torch.no_grad()
def infer_latent(backward: Representation, states: Tensor, rewards: Tensor | None = None) -> Tensor:
    """Returns the vector z, (D,), that makes the policy maximize a reward, or visit a set of states.

    Args:
        backward: The module "backward" of a checkpoint.
        states: States from anywhere, or states of the data where there are rewards, (N, ...).
        rewards: The reward of each state, (N,).

    Example:
        >>> from understudy.learn.method import TrainedRun
        >>> modules = TrainedRun.load("runs/fb").modules
        >>> z = infer_latent(modules["backward"], torch.as_tensor(clip.steps["observation.state"]))
        >>> actor = PolicyActor(modules["policy"])      # its observations have z as "observation.latent"
    """
    states = states.to(next(backward.parameters()).device)
    obs = {name: states.new_zeros(len(states), 1, *backward.features[name].shape)
           for name in backward.about.critic.inputs}
    vectors = embed(backward, {**obs, backward.about.columns[0]: states.unsqueeze(1)})
    total = vectors.mean(0) if rewards is None else rewards.to(vectors) @ vectors
    if not total.any() or not total.isfinite().all():
        raise UserError("no policy follows from them", where="infer_latent: states and rewards",
                        hint="give at least one state, and finite rewards that are not all 0")
    return on_sphere(total)


@dataclass(frozen=True)
class GoalLatent(GoalVector):
    """Planner that gives a policy the vector z of the goal.

    Args:
        backward: The network B.
    """

    backward: Representation | Unresolved = "backward"

    module_types = MappingProxyType({"backward": Representation})
    vector = LATENT

    def with_vector(self, obs):
        return {**obs, LATENT: embed(self.backward, {**obs, self.column: obs[self.goal]}).unsqueeze(1)}
