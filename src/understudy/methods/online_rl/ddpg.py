from dataclasses import replace

from ...core import Schema
from ...learn.critic import CriticConfig
from ...learn.critics.td3 import TD3
from ...learn.method import Method
from ..needs import NUMBERS, REWARDS
from ..registry import method
from .td3 import td3


@method("Lillicrap et al. 2016 (DDPG), arXiv 1509.02971, with white noise and scores divided by their mean size",
        needs=(NUMBERS, REWARDS, "an environment"),
        when="if a comparison with DDPG is wanted; td3 is the same with two critics and steadier targets.")
def ddpg(n_rounds: int = 100, n_steps: int = 200, updates_per_step: float = 1.0, noise: float = 0.1,
         features: Schema | None = None) -> Method:
    """Deep deterministic policy gradient: one critic and a policy that follows its gradient."""
    learner = TD3(policy_delay=1, target_noise=0.0, critic=CriticConfig(n_critics=1))
    return replace(td3(n_rounds, n_steps, updates_per_step, noise, features), learner=learner)
