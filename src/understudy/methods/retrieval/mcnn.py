from ...data.window import Window
from ...execute.chunking import RecedingHorizon
from ...heads.memory.mcnn import MCNN
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@method("Sridhar et al. 2024, arXiv 2310.06171, which chooses the examples by growing neural gas and trains 1,000,000 "
        "updates", rows=("249",), needs=(NUMBERS, "no cameras"),
        when="if motions are precise and `knn` is too coarse; over its network alone no gain was found with 20 "
             "demonstrations.")
def mcnn(memory_fraction: float = 0.1, decay: float = 10.0, n_obs_steps: int = 1, horizon: int = 1) -> Method:
    """Memory-consistent network: near a stored example its action, farther away a bounded network.

    Args:
        memory_fraction: Number of stored examples, as a fraction of the steps of the data.
        decay: Inverse distance at which the weight of a stored example is 1 / e.
        horizon: Number of actions in a chunk. All are executed before the next plan.
    """
    policy = PolicyConfig(MCNN(memory_fraction, decay), trunk=FeedForward(), encoder=ConcatEncoder(),
                          window=Window(n_obs_steps, horizon))
    return Method(policy, RecedingHorizon(horizon), BehaviorCloning(steps=5000, batch_size=256))
