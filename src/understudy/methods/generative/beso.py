from ...data.augment import ConditionDropout
from ...data.window import Goal, Window
from ...execute.chunking import RecedingHorizon
from ...execute.planners import Guided
from ...heads.edm import EDM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import ClassifierFreeGuidance, PolicyConfig
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method


@method("Reuss et al. 2023, arXiv 2304.02532, with a causal transformer over the history", rows=("090",),
        needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting and several ways of reaching it count; regression (`gcbc`) "
             "succeeded as often here.")
def beso(column: str = "observation.state", scale: float = 2.0, n_steps: int = 3, n_obs_steps: int = 5) -> Method:
    """Goal-conditioned diffusion with classifier-free guidance towards a later observation of the episode.

    Args:
        column: The column whose later values are goals.
        scale: Guidance scale. 1 is the plain policy, 0 the policy without a goal.
        n_steps: Number of sampling steps of one action.
    """
    goal = "observation.goal"
    head = EDM(n_steps, sigma_min=0.005, sigma_max=1.0, log_sigma_mean=-0.69, log_sigma_std=0.9)
    window = Window(n_obs_steps, horizon=1, goals=(Goal(column, into=goal),))
    policy = PolicyConfig(head, trunk=MLP(512, 3), window=window, augmentations=(ConditionDropout(goal, 0.1),))
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100))
    guided = Guided(guides=(ClassifierFreeGuidance((goal,), scale),))
    return Method(policy, RecedingHorizon(1), learner, inference=(guided,))
