from ...data.codec import Normalizer
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.tokens.fast import FAST
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..registry import method


@method("Pertsch et al. 2025, arXiv 2501.09747, which fine-tunes a vision-language model on chunks of one second",
        when="if actions are to be tokens, as for a language model; its plans are slow, and coarse where motions are "
             "precise.")
def fast(horizon: int = 16, n_action_steps: int = 8, max_tokens: int | None = None, temperature: float = 0.0) -> Method:
    """Action tokens: the cosine transform of a chunk as a few tokens, each predicted from those before it.

    Args:
        max_tokens: Largest number of tokens of a chunk. None allows one for each number. Fewer make plans faster.
        temperature: 0 takes the most likely token each time, 1 samples.
    """
    policy = PolicyConfig(FAST(max_tokens=max_tokens, temperature=temperature), trunk=Transformer(128, 4, 4),
                          codec=Normalizer(target="quantile"), window=Window(1, horizon))
    learner = BehaviorCloning(4000, optimizer=OptimizerConfig(lr=3e-4, warmup_steps=100))
    return Method(policy, RecedingHorizon(n_action_steps), learner)
