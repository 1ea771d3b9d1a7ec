from ...checkpoint import FromStage
from ...data.codec import Normalizer
from ...data.column_changes import ConstantColumn
from ...execute.wrappers import SkillWrapper
from ...heads.likelihood.gaussian import Gaussian
from ...heads.likelihood.gmm import GMM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.cloning.latent_labels import SKILL, LatentLabels
from ...learn.cloning.retrieval import SAMPLING_WEIGHT, Retrieve
from ...learn.cloning.skill_autoencoder import SkillAutoencoder
from ...learn.method import Method, Stage
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@method("Nasiriany et al. 2022, arXiv 2210.11435 (SAILOR), without the losses that make skills predictable and the "
        "input that tells retrieved pieces from the task's", rows=("178",), needs=(NUMBERS, "prior data (--prior)"),
        when="if the task is long, has few demonstrations, and shares pieces with prior data.")
def skill_retrieval(fraction: float = 0.1, period: int = 10, latent_dim: int = 8, beta: float = 0.1) -> Method:
    """Skills from prior data, chosen by a policy that learns from a task and from the prior pieces most like it.

    Args:
        fraction: Fraction of the prior pieces to learn from.
        period: Number of steps of a skill.
        beta: Weight of the KL divergence of the autoencoder.
    """
    low = PolicyConfig(Gaussian(), codec=Normalizer(unscaled=(SKILL,)))
    skills = Method(low, learner=SkillAutoencoder(period, beta),
                    transforms=(ConstantColumn(SKILL, (0.0,) * latent_dim),))
    posterior = FromStage("skills", "posterior")
    return Method(PolicyConfig(GMM()), learner=BehaviorCloning(sampling_column=SAMPLING_WEIGHT),
                  transforms=(Retrieve(posterior, fraction=fraction), LatentLabels(posterior)),
                  stages=(Stage("skills", skills, dataset="prior"),), wrapper=SkillWrapper(FromStage("skills"), period))
