from ...heads.likelihood.regression import Regression
from ...learn.method import Method
from ...learn.rewards.preference_reward import PreferenceLearning
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import COMPARISONS, NUMBERS
from ..registry import method


@method("Christiano et al. 2017, arXiv 1706.03741, with one network in place of an ensemble",
        needs=(NUMBERS, COMPARISONS),
        when="if you can say which of two motions is better, and nobody can demonstrate or write a reward; then train "
             "`iql`, `sac` or another method with `--reward`.")
def preference_reward() -> Method:
    """A reward that explains which of two segments a person prefers, and a policy that clones the better ones."""
    return Method(PolicyConfig(Regression(), FeedForward()), learner=PreferenceLearning())
