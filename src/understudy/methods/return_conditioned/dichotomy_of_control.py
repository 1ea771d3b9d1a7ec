from ...core import Schema
from ...data.codec import Normalizer
from ...data.column_changes import ConstantColumn
from ...execute.chunking import RecedingHorizon
from ...execute.planners import BestOfN, Hierarchical
from ...heads.categorical import Categorical
from ...heads.gaussian import Gaussian
from ...learn.dichotomy_of_control import FUTURE, DichotomyOfControl
from ...learn.method import Method
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, OBSERVED_NUMBERS, REWARDS
from ..registry import method


@method("Yang et al. 2023, arXiv 2210.13435, with a transformer over the history, and latents of the whole future",
        rows=("165",), needs=(NUMBERS_OR_CLASSES, REWARDS, OBSERVED_NUMBERS),
        when="if rewards depend on luck that no action can change; its gain in the toy here is undecided.")
def dichotomy_of_control(lookahead: int = 1, latent_dim: int = 4, information_weight: float = 1.0, n: int = 100,
                         features: Schema | None = None) -> Method:
    """Dichotomy of Control: a policy reads a latent of the future that holds what actions decide, and not luck.

    Args:
        lookahead: Number of steps that the latent describes.
        latent_dim: Number of components of the latent.
        information_weight: Weight of what the latent says about rewards and transitions. 0 removes the constraint.
        n: Number of latents that are compared while acting.
        features: The columns of the data. Discrete actions get a categorical head.
    """
    discrete = features is not None and features["action"].kind == "discrete"
    head = Categorical(temperature=1.0) if discrete else Gaussian(temperature=1.0)
    policy = PolicyConfig(head, FeedForward((128, 128)), ConcatEncoder(), Normalizer(unscaled=(FUTURE,)))
    return Method(policy, RecedingHorizon(), DichotomyOfControl(lookahead, information_weight),
                  (ConstantColumn(FUTURE, (0.0,) * latent_dim),),
                  inference=(Hierarchical(BestOfN("prior", "value", n), as_key=FUTURE),))
