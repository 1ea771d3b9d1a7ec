from __future__ import annotations

from typing import Annotated, cast

from torch import Tensor

from ...core import AtLeast, Batch, ConfigError, Schema, Unsupported, part
from ...data.column_changes import LastAction
from ...data.episode import Dataset
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.regression import Regression
from ...learn.critic import CriticConfig, CriticSpec, QFunction
from ...learn.critics.off_policy_actor_critic import OffPolicyActorCritic, OffPolicyActorCriticLearner
from ...learn.method import Method
from ...learn.targets import REWARD, TERMINATED
from ...nets.encoders import TokenEncoder, simplest_encoder
from ...nets.transformer import Transformer
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@part
class TACR(OffPolicyActorCritic):
    """TD3+BC at each step of the history that a policy reads. The critic scores single steps.

    References:
        Lee and Moon (2023), Transformer Actor-Critic with Regularization: Automated Stock Trading using Reinforcement
        Learning, AAMAS.
    """

    policy_delay: Annotated[int, AtLeast(1)] = 1

    def __post_init__(self):
        super().__post_init__()
        if self.n_step or self.critic_bc_weight or self.temperature is not None:
            raise ConfigError("the targets of TACR are those of TD3 after single steps", where="TACR",
                              hint="leave n_step, critic_bc_weight and temperature out, or train another method")

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> TACRLearner:
        return TACRLearner(self, policy, seed, steps, data)


class TACRLearner(OffPolicyActorCriticLearner):
    """Learner of `TACR`."""

    config: TACR

    def build_critic(self, policy):
        config, window = policy.config, policy.window
        is_aligned = window.horizon == window.n_obs_steps and window.action_offset == 1 - window.horizon
        if policy.target.kind == "discrete" or not is_aligned:
            raise Unsupported("the policy must give an action of numbers for each step that it reads", where="TACR",
                              hint="use Window(K, K, action_offset=1 - K), or train td3-bc")
        spec = CriticSpec(self.config.critic, config.codec, Window(), policy.inputs, config.target)
        return QFunction(spec, policy.features, policy.codec)

    def critic_loss(self, batch, rng):
        """Returns the loss of the critic at each step, (B, H)."""
        return super().critic_loss(single_steps(batch), rng).reshape(batch.mask.shape)

    def policy_loss(self, batch, rng):
        """Returns the loss of the policy at each step, (B, H)."""
        return cast(Tensor, super().policy_loss(single_steps(batch), rng)).reshape(batch.mask.shape)

    def sample(self, policy, obs, rng):
        windows = {name: x[:, 0].unflatten(0, (-1, policy.window.horizon)) for name, x in obs.items()}
        return super().sample(policy, windows, rng).flatten(0, 1).unsqueeze(1)


def single_steps(batch: Batch) -> Batch:
    """Returns the steps of windows, (B, H, ...), as windows of one step, (B * H, 1, ...)."""
    rewarded = batch.replace(extra={name: batch.extra[name] for name in (REWARD, TERMINATED)}, others={})
    return rewarded.map(lambda x: x.flatten(0, 1).unsqueeze(1))


@method("Lee and Moon 2023 (TACR), AAMAS, with two critics, noise on target actions, and no rewards in the history",
        needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and a history tells what to do; no claim has tested it here.")
def tacr(n_obs_steps: int = 20, bc_weight: float = 0.4, features: Schema | None = None) -> Method:
    """Transformer actor-critic: a causal transformer over observations and actions, trained as in TD3+BC at each step.

    Args:
        n_obs_steps: Number of steps of the history.
        bc_weight: Weight of the policy's mean squared distance to stored actions, relative to a score of 1 (1 / alpha).
    """
    past, critic = n_obs_steps - 1, CriticConfig(encoder=simplest_encoder(features))
    trunk = Transformer(128, 1, 1, "block_causal", encoder_depth=3, dropout=0.1)
    window = Window(n_obs_steps, n_obs_steps, action_offset=-past, obs_pad_mask=True)  # a loss at every step
    policy = PolicyConfig(Regression(), trunk, TokenEncoder(128), window=window)
    learner = TACR(steps=10_000, batch_size=64, critic=critic, bc_weight=bc_weight)
    return Method(policy, RecedingHorizon(1, skip=past), learner, (LastAction(),))
