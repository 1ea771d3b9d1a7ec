from ...core import Schema
from ...execute.chunking import RecedingHorizon
from ...heads.gaussian import Gaussian
from ...learn.advantage_weighted_actor_critic import AWAC
from ...learn.critic import CriticConfig
from ...learn.method import Method
from ...nets.encoders import simplest_encoder
from ...nets.mlp import MLP
from ...policy import PolicyConfig
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("Nair et al. 2020 (AWAC), arXiv 2006.09359", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, and training goes on with episodes of the policy's own.")
def awac(temperature: float = 1.0, n_samples: int = 1, features: Schema | None = None) -> Method:
    """Advantage weighted actor-critic: clones the stored actions that are better than the policy's own.

    Args:
        temperature: Temperature of the weights, in units of return. Large values are cloning.
        n_samples: Number of actions of the policy that each stored action is compared with.
    """
    encoder = simplest_encoder(features)
    return Method(
        PolicyConfig(Gaussian(), MLP(256, 2), encoder),
        RecedingHorizon(),
        AWAC(temperature=temperature, n_samples=n_samples, critic=CriticConfig(encoder=encoder)),
    )
