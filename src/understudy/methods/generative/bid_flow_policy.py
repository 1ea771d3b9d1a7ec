from dataclasses import replace

from ...checkpoint import FromStage
from ...execute.bidirectional import BidirectionalDecoding
from ...learn.method import Method, Stage
from ..registry import method
from .flow_policy import flow_policy


@method("Liu et al. 2024, arXiv 2408.17355, whose base is a diffusion policy, and whose weak policy is an early "
        "checkpoint of the same run",
        when="if the robot must look after every action and yet keep to one way, and 30 plans a step are affordable.")
def bid_flow_policy(n_obs_steps: int = 2, horizon: int = 16, n_action_steps: int = 1, n: int = 15) -> Method:
    """A flow policy with bidirectional decoding: 15 plans, compared with the last chunk and with a weak policy.

    The weak policy is trained for a third of the updates. In the paper it is a checkpoint after a third of them.

    Args:
        n: Number of plans drawn from each policy. A third of them are kept as candidates.
    """
    strong = flow_policy(n_obs_steps, horizon, n_action_steps)
    weak = replace(strong, learner=replace(strong.learner, steps=strong.learner.steps // 3))
    decoding = BidirectionalDecoding(weak=FromStage("weak"), n=n, n_kept=max(2, n // 3))
    return replace(strong, stages=(Stage("weak", weak),), inference=(decoding,))
