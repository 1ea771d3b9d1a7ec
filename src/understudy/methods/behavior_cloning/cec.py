from ...core import Schema
from ...data.episode_concat import EpisodeConcat
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.gmm import GMM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.encoders import TokenEncoder
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method


@method("Shi et al. 2023 (CEC), arXiv 2310.08549, with images, a longer context, and episodes of a level that were "
        "recorded one after another", rows=("136",),
        needs=(NUMBERS_OR_CLASSES, "a field of the episodes that orders the demonstrators"),
        when="if demonstrators of different skill did the same tasks, and the policy improves over several "
             "trials.")
def cec(field: str = "proficiency", n_obs_steps: int = 64, width: int = 128, depth: int = 3, n_episodes: int = 1000,
        features: Schema | None = None) -> Method:
    """Cross-episodic curriculum: a transformer over several episodes, the worst demonstrators first.

    Args:
        field: Metadata field of the episodes that orders the demonstrators, worst first.
        n_obs_steps: Number of observations that the transformer reads, over several episodes.
        depth: Number of its layers over the observations.
        n_episodes: Number of sequences of episodes that it learns from.
    """
    head = choose_head(features, GMM(5, joint=False))
    trunk = Transformer(width, 1, 1, "block_causal", encoder_depth=depth)
    window = Window(n_obs_steps, n_obs_steps, action_offset=1 - n_obs_steps, obs_pad_mask=True)
    return Method(PolicyConfig(head, trunk, TokenEncoder(width), window=window),
                  RecedingHorizon(1, n_obs_steps - 1), BehaviorCloning(5000, 32),
                  (EpisodeConcat(field, n_episodes=n_episodes, into=""),))
