from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.flow import Flow
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.pooled_history import PooledHistoryEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..registry import method


@method("Jang et al. 2025 (ContextVLA), arXiv 2510.04246, which does this in a pretrained vision-language model, with "
        "tokens of words that are not pooled", rows=("304",),
        when="if what to do depends on the last observations, and reading all of them in each layer is too slow.")
def contextvla(
    n_obs_steps: int = 8, horizon: int = 16, n_action_steps: int = 8, depth: int = 4, pool_after: int | None = 2,
) -> Method:
    """A flow policy with a history: after two blocks of a transformer, all past observations become one token.

    Args:
        n_obs_steps: Number of observations that the policy reads, one in each step.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
        depth: Number of blocks of the transformer that reads the observations.
        pool_after: Number of blocks before the past becomes one token. None keeps all tokens in all blocks.
    """
    encoder = PooledHistoryEncoder(depth, pool_after, 4, encoder=TokenEncoder(128))
    window = Window(n_obs_steps, horizon, obs_pad_mask=True)
    policy = PolicyConfig(Flow(), Transformer(128, 2, 4), encoder, window=window)
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=100)
    return Method(policy, RecedingHorizon(n_action_steps), BehaviorCloning(4000, optimizer=optimizer))
