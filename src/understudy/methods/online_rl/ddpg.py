from ...core import Schema
from ...execute.chunking import RecedingHorizon
from ...heads.squashed_gaussian import SquashedGaussian
from ...improve.collection import CollectionRounds, GaussianExploration, RolloutCollector
from ...improve.updates import PerNewStep
from ...learn.critic import CriticConfig
from ...learn.method import Method
from ...learn.off_policy_actor_critic import OffPolicyActorCritic
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS, REWARDS
from ..registry import method


@method("Lillicrap et al. 2016 (DDPG), arXiv 1509.02971, with white noise and scores divided by their mean size",
        needs=(NUMBERS, REWARDS, "an environment"),
        when="if a comparison with DDPG is wanted; td3 is the same with two critics and steadier targets.")
def ddpg(n_rounds: int = 100, n_steps: int = 200, updates_per_step: float = 1.0, noise: float = 0.1,
         features: Schema | None = None) -> Method:
    """Deep deterministic policy gradient: one critic and a policy that follows its gradient.

    Args:
        n_steps: Number of steps in each round, at least. Its last episode is complete.
        noise: Standard deviation of the noise on the actions while collecting, in the units of the action.
    """
    collector = RolloutCollector(n_steps=n_steps, exploration=GaussianExploration(noise))
    policy = PolicyConfig(SquashedGaussian("free"), FeedForward((256, 256)), simplest_encoder(features))
    learner = OffPolicyActorCritic(bc_weight=0.0, policy_delay=1, target_noise=0.0, critic=CriticConfig(n_critics=1))
    return Method(policy, RecedingHorizon(), learner,
                  collection=CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step)))
