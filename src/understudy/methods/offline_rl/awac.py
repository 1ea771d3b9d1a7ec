from ...core import Schema
from ...heads.likelihood.gaussian import Gaussian
from ...learn.critics.advantage_weighted_actor_critic import AWAC
from ...learn.critics.critic_learning import critic_method
from ...learn.method import Method
from ..needs import NUMBERS, STEP_REWARDS
from ..registry import method


@method("Nair et al. 2020 (AWAC), arXiv 2006.09359", needs=(NUMBERS, STEP_REWARDS),
        when="if there are rewards, and training then continues with episodes that the policy collects, which takes a "
             "`collection` in Python.")
def awac(temperature: float = 1.0, n_samples: int = 1, features: Schema | None = None) -> Method:
    """Advantage weighted actor-critic: clones the stored actions that are better than the policy's own.

    Args:
        temperature: Temperature of the weights, in units of return. Large values are cloning.
        n_samples: Number of actions of the policy that each stored action is compared with.
    """
    return critic_method(Gaussian(), AWAC(temperature=temperature, n_samples=n_samples), features)
