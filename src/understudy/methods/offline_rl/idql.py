from ...checkpoint import FromStage
from ...core import Schema
from ...execute.planners import BestOfN
from ...heads.denoising.flow import Flow
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...nets.encoders import simplest_encoder
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method
from .iql import IQL


@method("Hansen-Estruch et al. 2023 (IDQL), arXiv 2304.10573, with flow matching and the best of n plans",
        needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, and the demonstrators act in several ways, which one Gaussian would average.")
def idql(n: int = 32, expectile: float = 0.7, features: Schema | None = None) -> Method:
    """The critic of implicit Q-learning chooses among actions of a policy that clones all of the data.

    Args:
        n: Number of actions of which the best is taken. 1 is cloning.
        expectile: As in iql.
    """
    return Method(
        PolicyConfig(Flow(), MLP(256, 2), simplest_encoder(features)), learner=BehaviorCloning(steps=10_000),
        stages=(Stage("critic", IQL(expectile=expectile).method(features)),),
        inference=(BestOfN(scorer=FromStage("critic", "critic"), n=n),),
    )
