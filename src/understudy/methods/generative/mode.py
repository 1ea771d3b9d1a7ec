from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.edm import EDM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.load_balancing import LoadBalancing
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.mixture_of_experts import MoEFeedForward
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..registry import method


@method("Reuss et al. 2025, arXiv 2412.12953, with a network eight times as wide, language goals and log-logistic "
        "noise levels", rows=("307",),
        when="if a diffusion transformer shall grow without slower plans: its experts can be fused before it acts.")
def mode(
    n_experts: int = 4, top_k: int = 2, n_obs_steps: int = 2, horizon: int = 10, n_action_steps: int = 5
) -> Method:
    """Mixture of expert denoisers: diffusion by a transformer whose experts are chosen by the noise level.

    Args:
        n_experts: Number of experts in each layer.
        top_k: Number of experts that are used at a noise level.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk.
        n_action_steps: Number of actions that are executed before the next plan.
    """
    trunk = Transformer(128, 4, 4, "joint", causal=True, feed_forward=MoEFeedForward(n_experts, top_k))
    policy = PolicyConfig(EDM(10, sigma_min=0.001), trunk, TokenEncoder(128), window=Window(n_obs_steps, horizon))
    optimizer = OptimizerConfig(lr=3e-4, weight_decay=0.05, betas=(0.9, 0.95), warmup_steps=100)
    learner = BehaviorCloning(4000, optimizer=optimizer, auxiliary_losses=(LoadBalancing(0.01),))
    return Method(policy, RecedingHorizon(n_action_steps), learner)
