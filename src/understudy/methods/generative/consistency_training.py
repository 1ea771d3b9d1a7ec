from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.consistency import Consistency
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Song and Dhariwal 2023, arXiv 2310.14189, with 80 equally likely noise levels, as in Consistency Policy, and "
        "a larger constant in its distance",
        when="if a plan must take one network evaluation without a teacher, and motions need little precision; several "
             "evaluations help.")
def consistency_training(n_steps: int = 1, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A network that jumps from any noise level to the action in one step, trained on the demonstrations alone."""
    policy = PolicyConfig(Consistency(n_steps), trunk=MLP(512, 3), window=Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
    )
