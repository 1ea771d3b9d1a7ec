from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.information_bottleneck import InformationBottleneck
from ...learn.method import Method
from ...nets.bottleneck import BottleneckEncoder
from ...policy import PolicyConfig
from ..registry import method


@method("Alemi et al. 2017, arXiv 1612.00410; as a part of Wen et al. 2020, arXiv 2010.14876, who also train an "
        "adversary that looks for the last action in the code",
        when="if a policy with a history repeats its last action and no steps shall be marked; it did not help in the "
             "toy of docs/history.md.")
def bottleneck_bc(n_obs_steps: int = 5, width: int = 32, weight: float = 0.01) -> Method:
    """Behavior cloning from a history through a noisy code that keeps little besides what tells the action.

    Args:
        n_obs_steps: Number of observations that the policy reads.
        width: Width of the code.
        weight: Weight of the penalty on the information in the code.
    """
    policy = PolicyConfig(Regression(), encoder=BottleneckEncoder(width), window=Window(n_obs_steps, 1))
    return Method(policy, RecedingHorizon(),
                  BehaviorCloning(steps=5000, auxiliary_losses=(InformationBottleneck(weight),)))
