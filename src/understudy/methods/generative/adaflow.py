from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.adaflow import AdaFlow
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Hu et al. 2024, arXiv 2402.04292, which trains velocity and variance by one likelihood", rows=("267",),
        when="if a flow policy is too slow and most states have one right action; it saved steps, but less than "
             "promised.")
def adaflow(n_steps: int = 5, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow that chooses its steps: one where the action is certain, and more where demonstrations differ.

    Args:
        n_steps: Largest number of network evaluations of a plan.
    """
    policy = PolicyConfig(AdaFlow(n_steps), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )
