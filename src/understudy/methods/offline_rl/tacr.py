from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from ...core import AtLeast, Batch, ConfigError, Schema, Unsupported, part
from ...data.column_changes import LastAction
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.regression import Regression
from ...learn.algorithm import loss
from ...learn.critic import CriticSpec, QFunction
from ...learn.critics.off_policy_actor_critic import policy_is_due
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ...learn.targets import REWARD, TERMINATED
from ...nets.encoders import TokenEncoder, simplest_encoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


def single_steps(batch: Batch) -> Batch:
    """Returns the steps of windows, (B, H, ...), as windows of one step, (B * H, 1, ...)."""
    rewarded = batch.replace(extra={name: batch.extra[name] for name in (REWARD, TERMINATED)}, others={})
    return rewarded.map(lambda x: x.flatten(0, 1).unsqueeze(1))


@method("Lee and Moon 2023 (TACR), AAMAS, with two critics, noise on target actions, and no rewards in the history",
        needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards and no environment, and a history tells what to do.")
@part
class TACR(TD3):
    """Transformer actor-critic: a causal transformer over observations and actions, trained as in TD3+BC at each step.

    The critic scores single steps. The inverse of `bc_weight` is the paper's alpha.

    References:
        Lee and Moon (2023), Transformer Actor-Critic with Regularization: Automated Stock Trading using Reinforcement
        Learning, AAMAS.
    """

    steps: Annotated[int, AtLeast(0)] = 10_000
    batch_size: Annotated[int, AtLeast(1)] = 64
    policy_delay: Annotated[int, AtLeast(1)] = 1
    bc_weight: Annotated[float, AtLeast(0)] = 0.4

    def __post_init__(self):
        super().__post_init__()
        if self.n_step or self.critic_bc_weight:
            raise ConfigError("the targets of TACR are those of TD3 after single steps", where="TACR",
                              hint="leave n_step and critic_bc_weight out, or train another method")

    def method(self, n_obs_steps: int = 20, features: Schema | None = None) -> Method:
        """Builds a method with a transformer over several steps.

        Args:
            n_obs_steps: Number of steps of the history.
        """
        past, critic = n_obs_steps - 1, replace(self.critic, encoder=simplest_encoder(features))
        trunk = Transformer(128, 1, 1, "block_causal", encoder_depth=3, dropout=0.1)
        window = Window(n_obs_steps, n_obs_steps, action_offset=-past, obs_pad_mask=True)  # a loss at every step
        policy = PolicyConfig(Regression(), trunk, TokenEncoder(128), window=window)
        return Method(policy, RecedingHorizon(1, skip=past), replace(self, critic=critic), (LastAction(),))

    def build_critic(self, policy):
        config, window = policy.config, policy.window
        is_aligned = window.horizon == window.n_obs_steps and window.action_offset == 1 - window.horizon
        if policy.target.kind == "discrete" or not is_aligned:
            raise Unsupported("the policy must give an action of numbers for each step that it reads", where="TACR",
                              hint="use Window(K, K, action_offset=1 - K), or train td3-bc")
        spec = CriticSpec(self.critic, config.codec, Window(), policy.inputs, config.target)
        return QFunction(spec, policy.features, policy.codec)

    @loss("critic")
    def critic_loss(self, nets, batch, rng):
        """Returns the loss of the critic at each step, (B, H)."""
        error, values = super().critic_loss(nets, single_steps(batch), rng)
        return error.reshape(batch.mask.shape), values

    @loss("policy", when=policy_is_due)
    def policy_loss(self, nets, batch, rng):
        """Returns the loss of the policy at each step, (B, H)."""
        return super().policy_loss(nets, single_steps(batch), rng).reshape(batch.mask.shape)

    def sample(self, policy, obs, rng):
        windows = {name: x[:, 0].unflatten(0, (-1, policy.window.horizon)) for name, x in obs.items()}
        return super().sample(policy, windows, rng).flatten(0, 1).unsqueeze(1)
