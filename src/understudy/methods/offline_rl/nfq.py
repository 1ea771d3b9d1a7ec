from ...core import Schema
from ...heads.likelihood.categorical import Categorical
from ...learn.critics.action_values import ActionValues
from ...learn.method import Method
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import CLASSES, STEP_REWARDS
from ..registry import method


@method("Riedmiller 2005, Neural Fitted Q Iteration, with one update of a batch in place of an iteration over all data",
        needs=(CLASSES, STEP_REWARDS),
        when="if actions are classes, there are rewards, and the data have all actions.")
def nfq(features: Schema | None = None) -> Method:
    """Neural fitted Q iteration: Q-learning from stored episodes alone, without a lagged network."""
    policy = PolicyConfig(Categorical(), FeedForward((256, 256)), simplest_encoder(features))
    return Method(policy, learner=ActionValues(target_decay=0.0, double=False))
