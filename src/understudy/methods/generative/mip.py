from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.mip import MIP
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Pan et al. 2025, arXiv 2512.01809", rows=("264",),
        when="if there is one way to act and motions are precise; no gain over regression is known here.")
def mip(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """Minimal iterative policy: a regression, and a second one that reads the first answer. No randomness."""
    policy = PolicyConfig(MIP(), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )
