"""Methods that collect episodes while they train."""

from __future__ import annotations

from ..data.window import Window
from ..execute.chunking import RecedingHorizon
from ..heads.regression import Regression
from ..improve.collection import CollectionRounds, GaussianExploration, RolloutCollector, SupervisorLabels
from ..improve.gates import RandomGate
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..learn.off_policy_actor_critic import OffPolicyActorCritic
from ..learn.optimizer import OptimizerConfig
from ..nets.mlp import MLP
from ..policy import PolicyConfig


def dagger(n_rounds: int = 10, n_episodes: int = 5, probability: float = 0.5, supervisor: str = "expert") -> Method:
    """DAgger: the policy acts, the supervisor says what it would have done, and the policy learns that.

    Args:
        n_rounds: Number of collection rounds.
        n_episodes: Number of episodes in each round.
        probability: Probability that the supervisor acts at a step of the first round. It halves after each round.
        supervisor: "expert" for the environment's own, or "person".
    """
    collector = RolloutCollector(n_episodes, supervisor=supervisor, gate=RandomGate(probability, decay=0.5))
    return Method(
        PolicyConfig(Regression(), window=Window(1, 1)),
        RecedingHorizon(),
        BehaviorCloning(steps=10_000, optimizer=OptimizerConfig(lr_schedule="constant")),
        collection=CollectionRounds(
            n_rounds, collector, relabel=(SupervisorLabels(),), updates_per_step=5.0, initial_updates=2000),
    )


def td3_bc(n_rounds: int = 50, n_episodes: int = 4, noise: float = 0.1, bc_weight: float = 0.4) -> Method:
    """TD3+BC, first on the demonstrations and then on what the policy does itself.

    Args:
        n_rounds: Number of collection rounds.
        n_episodes: Number of episodes in each round.
        noise: Standard deviation of the noise on the actions while collecting, in the units of the action.
        bc_weight: Weight of the distance to stored actions. 0 is TD3.
    """
    return Method(
        PolicyConfig(Regression(), MLP(256, 2), window=Window(1, 1)),
        RecedingHorizon(),
        OffPolicyActorCritic(bc_weight=bc_weight),
        collection=CollectionRounds(
            n_rounds, RolloutCollector(n_episodes, GaussianExploration(noise)), initial_updates=5000),
    )
