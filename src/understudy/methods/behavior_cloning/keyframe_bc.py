from ...audit.scores.keyframes import KEYFRAME, MarkKeyframes
from ...data.window import Window
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.sample_weights import ColumnWeights
from ...policy import PolicyConfig
from ..registry import method


@method("Wen et al. 2021, arXiv 2106.06452, with images and a larger network",
        when="if a policy with a history repeats its last action instead of reacting; it did not help in the toy of "
             "docs/history.md.")
def keyframe_bc(n_obs_steps: int = 5, fraction: float = 0.1, weight: float = 5.0) -> Method:
    """Behavior cloning from a history that weights keyframes: steps whose action the last actions do not predict.

    Args:
        fraction: Fraction of the steps that are keyframes.
        weight: Weight of a keyframe. Other steps have weight 1.
    """
    learner = BehaviorCloning(steps=5000, sample_weights=ColumnWeights(KEYFRAME, weight))
    return Method(PolicyConfig(Regression(), window=Window(n_obs_steps)), learner=learner,
                  transforms=(MarkKeyframes(fraction),))
