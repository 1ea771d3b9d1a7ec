from ...core import Schema
from ...heads.likelihood.categorical import Categorical
from ...improve.collection import CollectionRounds, EpsilonGreedy, RolloutCollector
from ...improve.updates import PerNewStep
from ...learn.critics.action_values import ActionValues
from ...learn.method import Method
from ...nets.encoders import simplest_encoder
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import AN_ENVIRONMENT_FOR_ROUNDS, CLASSES, STEP_REWARDS
from ..registry import method


@method("Van Hasselt et al. 2016 (double DQN), arXiv 1509.06461, with a target network that is updated slowly",
        needs=(CLASSES, STEP_REWARDS, AN_ENVIRONMENT_FOR_ROUNDS),
        when="if actions are classes, and there are rewards and an environment in which steps are cheap.")
def dqn(n_rounds: int = 100, n_steps: int = 200, updates_per_step: float = 1.0, last_epsilon: float = 0.05,
        features: Schema | None = None) -> Method:
    """Double deep Q-learning: learns the return of each class of action, and takes the best.

    Args:
        n_rounds: Number of collection rounds. 0 to learn from stored episodes alone.
        last_epsilon: Fraction of random actions after the first 4,000 updates.
    """
    collector = RolloutCollector(n_steps=n_steps, exploration=EpsilonGreedy(last_epsilon))
    rounds = CollectionRounds(n_rounds, collector, updates=PerNewStep(updates_per_step)) if n_rounds else None
    policy = PolicyConfig(Categorical(), FeedForward((256, 256)), simplest_encoder(features))
    return Method(policy, learner=ActionValues(), collection=rounds)
