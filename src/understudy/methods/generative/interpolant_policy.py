from ...data.codec import Normalizer
from ...data.column_changes import LastAction
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.interpolant import Interpolant
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Albergo et al. 2023, arXiv 2303.08797; Chen et al. 2024 (BRIDGeR), arXiv 2402.16075, whose source is another "
        "policy",
        when="if chunks have to continue the last executed action, and a plan may take five network evaluations.")
def interpolant_policy(n_steps: int = 5, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow whose chunks start at the last executed action and some noise, and not at pure noise.

    Args:
        n_steps: Number of integration steps of a plan.
    """
    head = Interpolant(n_steps=n_steps)
    encoder, codec = TokenEncoder(named=(head.source,)), Normalizer(obs="minmax")
    policy = PolicyConfig(head, MLP(512, 3), encoder, codec, Window(n_obs_steps, horizon))
    return Method(
        policy,
        RecedingHorizon(n_action_steps),
        BehaviorCloning(4000, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100)),
        transforms=(LastAction(into=head.source),),
    )
