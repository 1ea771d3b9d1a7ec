from dataclasses import replace

from ...data.codec import Normalizer
from ...data.column_changes import LastAction
from ...heads.denoising.interpolant import Interpolant
from ...learn.method import Method
from ...nets.encoders import TokenEncoder
from ..registry import method
from .flow_policy import flow_policy


@method("Albergo et al. 2023, arXiv 2303.08797; Chen et al. 2024 (BRIDGeR), arXiv 2402.16075, whose source is another "
        "policy",
        when="if chunks have to continue the last executed action, and a plan may take five network evaluations.")
def interpolant_policy(n_steps: int = 5, n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 8) -> Method:
    """A flow whose chunks start at the last executed action and some noise, and not at pure noise.

    Args:
        n_steps: Number of integration steps of a plan.
    """
    base, head = flow_policy(n_obs_steps, horizon, n_action_steps), Interpolant(n_steps=n_steps)
    policy = replace(base.policy, head=head, encoder=TokenEncoder(named=(head.source,)), codec=Normalizer(obs="minmax"))
    return replace(base, policy=policy, transforms=(LastAction(into=head.source),))
