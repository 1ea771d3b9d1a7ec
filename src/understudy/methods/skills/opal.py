from ...checkpoint import FromStage
from ...data.codec import Normalizer
from ...data.column_changes import ConstantColumn
from ...execute.wrappers import SkillWrapper
from ...heads.likelihood.gaussian import Gaussian
from ...heads.likelihood.gmm import GMM
from ...learn.cloning.latent_labels import SKILL, LatentLabels
from ...learn.cloning.skill_autoencoder import SkillAutoencoder
from ...learn.method import Method, Stage
from ...policy import PolicyConfig
from ..registry import method


@method("Ajay et al. 2021, arXiv 2010.13611, its imitation learning, whose networks are recurrent",
        when="if episodes are long and made of pieces that return.")
def opal(period: int = 10, latent_dim: int = 8, beta: float = 0.1) -> Method:
    """An autoencoder learns skills of ten steps, and a policy learns which skill to begin.

    Args:
        period: Number of steps of a skill.
        beta: Weight of the KL divergence of the autoencoder.
    """
    low = PolicyConfig(Gaussian(), codec=Normalizer(unscaled=(SKILL,)))
    skills = Method(low, learner=SkillAutoencoder(period, beta),
                    transforms=(ConstantColumn(SKILL, (0.0,) * latent_dim),))
    return Method(PolicyConfig(GMM()), transforms=(LatentLabels(FromStage("skills", "posterior")),),
                  stages=(Stage("skills", skills),), wrapper=SkillWrapper(FromStage("skills"), period))
