from ...core import Schema
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.cloning.attention_supervision import MemorySupervision
from ...learn.method import Method
from ...nets.encoders import TokenEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, RECALLED_STEPS
from ..registry import method


@method("Yue et al. 2024 (AttentionTuner), arXiv 2411.07954, whose loss also covers the other steps", rows=("213",),
        needs=(NUMBERS_OR_CLASSES, RECALLED_STEPS),
        when="if what to do depends on a step long ago, and a script or a person can say which one.")
def attention_tuner(column: str = "recalled", n_obs_steps: int = 32, width: int = 128, depth: int = 4,
                    weight: float = 10.0, features: Schema | None = None) -> Method:
    """Behavior cloning with a transformer whose attention learns from the data which earlier steps to recall.

    Args:
        column: Column with the distances to the recalled steps: see `attention_supervision.steps_since_recalled`.
        n_obs_steps: Number of observations that the transformer reads. Earlier steps cannot be recalled.
        depth: Number of its layers over the observations.
        weight: Weight of the loss that trains the attention.
    """
    trunk = Transformer(width, 1, 2, "block_causal", encoder_depth=depth)
    window = Window(n_obs_steps, n_obs_steps, action_offset=1 - n_obs_steps, obs_pad_mask=True)
    policy = PolicyConfig(choose_head(features, Regression()), trunk, TokenEncoder(width), window=window)
    learner = BehaviorCloning(5000, 64, auxiliary_losses=(MemorySupervision(column, weight=weight),))
    return Method(policy, RecedingHorizon(1, n_obs_steps - 1), learner)
