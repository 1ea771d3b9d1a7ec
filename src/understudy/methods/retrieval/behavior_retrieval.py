from ...checkpoint import FromStage
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.gmm import GMM
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...learn.retrieval import SAMPLING_WEIGHT, Retrieve
from ...learn.state_action_vae import StateActionVAE
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@method("Du et al. 2023, arXiv 2304.08742, which retrieves above a threshold and has a recurrent policy",
        needs=(NUMBERS, "prior data (--prior)", "no cameras in the embedding"),
        when="if the task has few demonstrations and much unlabeled prior data contains it; its gain is undecided "
             "here.")
def behavior_retrieval(
    fraction: float = 0.25, latent_dim: int = 14, beta: float = 1e-4, n_obs_steps: int = 1, horizon: int = 1
) -> Method:
    """Behavior cloning of a task's demonstrations and of the steps of prior data that are most like them.

    Args:
        fraction: Fraction of the prior steps to learn from.
        latent_dim: Number of components of the embedding in which steps are compared.
        beta: Weight of the KL divergence of the embedding.
        n_obs_steps: Number of observations that the policy reads.
        horizon: Number of actions in a chunk. All are executed before the next plan.
    """
    policy = PolicyConfig(GMM(), window=Window(n_obs_steps, horizon))
    embedding = Stage("embedding", Method(policy, learner=StateActionVAE(latent_dim, beta)), dataset="prior")
    return Method(policy, RecedingHorizon(horizon), BehaviorCloning(sampling_column=SAMPLING_WEIGHT),
                  (Retrieve(FromStage("embedding", "embedding"), fraction=fraction),), (embedding,))
