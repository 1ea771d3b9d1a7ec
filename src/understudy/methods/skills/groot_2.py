from ...checkpoint import FromStage
from ...core import Schema
from ...data.codec import Normalizer
from ...data.column_changes import ConstantColumn
from ...data.text_columns import SHOWN_TASK, TaskText
from ...execute.chunking import RecedingHorizon
from ...execute.wrappers import SkillWrapper
from ...heads.gaussian import Gaussian
from ...heads.gmm import GMM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.instructed_autoencoder import InstructedAutoencoder
from ...learn.latent_labels import SKILL, LatentLabels
from ...learn.method import InitializeFrom, Method, Stage
from ...learn.skill_autoencoder import inputs_without_words
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@method("Cai et al. 2024 (GROOT-2), arXiv 2412.10410, with transformers and images; the form of the alignment is not "
        "published in code", rows=("309",), needs=(NUMBERS, "a task in words for some episodes"),
        when="if few of many episodes are described in words; words from a classifier for the others did no worse in a "
             "toy (claim weakly-labeled-skills).")
def groot_2(period: int = 100, latent_dim: int = 16, beta: float = 0.1, alignment: float = 0.1, max_bytes: int = 64,
            features: Schema | None = None) -> Method:
    """Follows words that few episodes have: they give places in a space of latents that all episodes teach.

    Args:
        period: Number of steps of a piece, and while acting of a latent.
        latent_dim: Number of components of a latent.
        beta: Weight of the KL divergence of the autoencoder.
        alignment: Weight of the likelihood of a piece's latent, given its words.
        max_bytes: Number of bytes of the words.
        features: The columns of the data. None: the words are the column "instruction", which no environment shows.
    """
    words = TaskText(max_bytes, "instruction" if features is None else SHOWN_TASK, optional=True)
    low = PolicyConfig(GMM(10, temperature=1.0), codec=Normalizer(unscaled=(SKILL,)),
                       inputs=inputs_without_words(features))
    high = PolicyConfig(Gaussian(), codec=Normalizer(target="identity"), inputs=(words.into,))
    latents = Method(low, learner=InstructedAutoencoder(period, beta, instruction=high, alignment=alignment),
                     transforms=(words, ConstantColumn(SKILL, (0.0,) * latent_dim)))
    return Method(high, RecedingHorizon(), BehaviorCloning(steps=1),  # it is trained in the stage
                  (LatentLabels(FromStage("latents", "posterior")), words), (Stage("latents", latents),),
                  (InitializeFrom(FromStage("latents", "instruction"), train=()),),
                  wrapper=SkillWrapper(FromStage("latents"), period))
