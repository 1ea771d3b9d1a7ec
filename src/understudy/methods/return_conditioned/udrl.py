from ...core import Schema
from ...data.column_changes import ReturnToGo, TimeLeft
from ...heads.likelihood.categorical import Categorical, choose_head
from ...heads.likelihood.gaussian import Gaussian
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, REWARDS
from ..registry import method


@method("Srivastava et al. 2019, arXiv 1912.02877; Arulkumaran et al. 2022, arXiv 2202.11960, whose networks are gated "
        "by the commands and recurrent; here offline, without new episodes", rows=("188",),
        needs=(NUMBERS_OR_CLASSES, REWARDS, "while acting: a desired return, and the number of steps until then"),
        when="if the data are of mixed quality with rewards, and both a return and a time limit are given while "
             "acting.")
def udrl(target_return: float | None = None, target_length: int | None = None, temperature: float = 1.0,
         features: Schema | None = None) -> Method:
    """Upside-down reinforcement learning: clone every action, given the return and the time that were left.

    Args:
        target_return: Desired return while acting. None: --condition return_to_go=NUMBER gives it.
        target_length: Number of steps in which it is to be reached. None: --condition time_left=NUMBER gives it.
        temperature: 1 samples actions, as the authors do, and 0 takes the most likely ones.
    """
    head = choose_head(features, Gaussian(temperature=temperature), Categorical(temperature))
    policy = PolicyConfig(head, FeedForward((128, 128)), ConcatEncoder())
    return Method(policy, learner=BehaviorCloning(steps=5000),
                  transforms=(ReturnToGo(target=target_return), TimeLeft(length=target_length)))
