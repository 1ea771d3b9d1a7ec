from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.energy.energy import AutoregressiveEnergy, EnergyModel
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..registry import method


@method("Florence et al. 2021, arXiv 2109.00137, with 256 negatives and 16,384 candidates",
        when="if single actions of few components jump between observations that are alike; for chunks only with "
             "--autoregressive (docs/heads.md).")
def ibc(horizon: int = 1, n_negatives: int = 64, autoregressive: bool = False) -> Method:
    """Implicit behavioral cloning: learn an energy of observation and action, and search its minimum.

    Args:
        horizon: Number of actions in a chunk. All of them are executed.
        n_negatives: Number of random actions that a demonstrated one is compared with in training.
        autoregressive: Search one number of the chunk after the other, each with its own energy, instead of all
            at once. It takes longer to train, and suits chunks and actions of many components.
    """
    head = AutoregressiveEnergy(n_negatives) if autoregressive else EnergyModel(n_negatives)
    policy = PolicyConfig(head, trunk=MLP(256, 3), window=Window(2, horizon))
    learner = BehaviorCloning(4000, 64, optimizer=OptimizerConfig(lr=1e-3, warmup_steps=100))
    return Method(policy, RecedingHorizon(horizon), learner)
