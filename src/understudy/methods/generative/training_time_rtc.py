from dataclasses import replace

from ...execute.prefix_chunking import PrefixChunking
from ...heads.base import PrefixTimes
from ...heads.denoising.flow import Flow
from ...learn.method import Method
from ..registry import method
from .flow_policy import flow_policy


@method("Black et al. 2025, arXiv 2512.05964, with a transformer; delays are drawn uniformly, as for its robots",
        when="if plans are late on a robot and there are updates enough; in two toys it was no better than "
             "real-time-chunking, which needs no training (docs/execution.md).")
def training_time_rtc(horizon: int = 16, n_action_steps: int = 4, max_delay: int = 4) -> Method:
    """Training-time RTC: flow matching that learns to continue the actions that are executed while it plans.

    Args:
        max_delay: Largest number of steps that a plan may take.
    """
    base = flow_policy(horizon=horizon, n_action_steps=n_action_steps)
    head = Flow(times=PrefixTimes(max_delay))
    return replace(base, policy=replace(base.policy, head=head), executor=PrefixChunking(n_action_steps))
