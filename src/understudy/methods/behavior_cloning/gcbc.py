from ...core import Schema
from ...data.window import Goal, Window
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.ema import ConstantDecay
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method


@method("Lynch et al. 2019 (Play-GCBC), arXiv 1903.01973; as the baseline of Park et al. 2025, arXiv 2410.20092",
        rows=("114",), needs=(NUMBERS, GIVEN_GOAL),
        when="if a goal is given while acting and one way leads to it; the simplest policy with goals.")
def gcbc(column: str = "observation.state", features: Schema | None = None) -> Method:
    """Goal-conditioned behavior cloning: the goal of each step is a later observation of its episode."""
    policy = PolicyConfig(Regression(), trunk=FeedForward((512, 512, 512), "gelu"), encoder=simplest_encoder(features),
                          window=Window(goals=(Goal(column),)))
    return Method(
        policy,
        learner=BehaviorCloning(
            steps=20_000,
            batch_size=1024,
            ema=ConstantDecay(0.0),
            optimizer=OptimizerConfig(lr=3e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None),
        ),
    )
