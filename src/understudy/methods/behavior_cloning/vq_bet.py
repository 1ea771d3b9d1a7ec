from typing import Literal

from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.tokens.vq_bet import VQBeT
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.encoders import TokenEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..registry import method


@method("Lee et al. 2024, arXiv 2403.03181, with a loss at every observation of the history",
        when="if demonstrations act in several ways, and the clusters of whole chunks are to be learned.")
def vq_bet(n_obs_steps: int = 5, horizon: int = 5, n_action_steps: int = 1,
           offset_codes: Literal["sampled", "encoded"] = "sampled") -> Method:
    """Vector-quantized behavior transformer: choose the codes of a chunk, decode them, and correct the result.

    Args:
        n_obs_steps: Number of observations that the policy reads. Its history keeps it in the mode that it chose.
        offset_codes: For which codes offsets are trained. "sampled" is the paper's, "encoded" keeps rare ways.
    """
    policy = PolicyConfig(VQBeT(offset_codes=offset_codes), trunk=Transformer(120, 6, 6), encoder=TokenEncoder(120),
                          window=Window(n_obs_steps, horizon))
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=3e-4, weight_decay=2e-4, warmup_steps=100))
    return Method(policy, RecedingHorizon(n_action_steps), learner)
