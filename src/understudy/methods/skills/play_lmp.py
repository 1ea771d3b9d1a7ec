from ...checkpoint import FromStage
from ...data.codec import Normalizer
from ...data.column_changes import ConstantColumn
from ...data.window import Goal, Window
from ...execute.wrappers import SkillWrapper
from ...heads.likelihood.gaussian import Gaussian
from ...heads.likelihood.gmm import GMM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.cloning.latent_labels import SKILL, LatentLabels
from ...learn.cloning.skill_autoencoder import SkillAutoencoder
from ...learn.method import InitializeFrom, Method, Stage
from ...policy import PolicyConfig
from ..needs import GIVEN_GOAL, NUMBERS
from ..registry import method


@method("Lynch et al. 2019, arXiv 1903.01973, with pieces of 16 to 32 steps, recurrent networks and mixtures of "
        "logistics", rows=("114",), needs=(NUMBERS, GIVEN_GOAL),
        when="if the data are play without tasks and a goal is given while acting.")
def play_lmp(column: str = "observation.state", period: int = 30, latent_dim: int = 32, beta: float = 0.01) -> Method:
    """Latent plans from play: a prior draws a plan for the goal, and a policy carries it out step by step.

    Args:
        period: Number of steps of a plan.
        beta: Weight of the KL divergence of the autoencoder.
    """
    window = Window(goals=(Goal(column, max_steps=period),))
    low = PolicyConfig(GMM(10, temperature=1.0), codec=Normalizer(unscaled=(SKILL,)), window=window)
    prior = PolicyConfig(Gaussian(temperature=1.0), codec=Normalizer(target="identity"), window=window)
    plans = Method(low, learner=SkillAutoencoder(period, beta, prior),
                   transforms=(ConstantColumn(SKILL, (0.0,) * latent_dim),))
    return Method(prior, learner=BehaviorCloning(steps=1),  # the prior is trained in the stage
                  transforms=(LatentLabels(FromStage("plans", "posterior")),), stages=(Stage("plans", plans),),
                  initialize_from=(InitializeFrom(FromStage("plans", "prior"), train=()),),
                  wrapper=SkillWrapper(FromStage("plans"), period))
