from ...data.codec import Normalizer
from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...execute.temporal_ensemble import TemporalEnsemble
from ...heads.likelihood.cvae import CVAE
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.transformer import Transformer
from ...policy import PolicyConfig
from ..registry import method


@method("Zhao et al. 2023, arXiv 2304.13705, whose chunks are 100 steps at 50 Hz, with a network four times as "
        "wide that is normalized after each layer, and a posterior that reads no images",
        rows=("158",),
        when="if long and smooth chunks suit the task; averaging overlapping chunks (--ensemble) harmed in the "
             "toy here.")
def act(horizon: int = 30, ensemble: bool = False) -> Method:
    """Action chunking transformer: a conditional autoencoder of long chunks, which --ensemble averages where
    they overlap.

    Args:
        ensemble: Average the chunks where they overlap, with a plan at every step.
    """
    trunk = Transformer(128, 1, 8, encoder_depth=4)
    policy = PolicyConfig(CVAE(), trunk=trunk, codec=Normalizer(target="zscore"), window=Window(1, horizon))
    learner = BehaviorCloning(
        steps=4000, batch_size=32, optimizer=OptimizerConfig(lr=3e-4, weight_decay=1e-4, warmup_steps=500)
    )
    return Method(policy, TemporalEnsemble(0.01) if ensemble else RecedingHorizon(horizon), learner)
