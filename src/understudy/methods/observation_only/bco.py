from ...core import Schema
from ...data.missing_actions import PlaceholderActions
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.regression import Regression
from ...improve.collection import CollectionRounds, RolloutCollector
from ...learn.cloning.cloning_from_observation import BehaviorCloningFromObservation
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...policy import PolicyConfig
from ..needs import PRACTICE, SOME_ACTIONS
from ..registry import method


@method("Torabi et al. 2018 (BCO), arXiv 1805.01954; both networks learn together", rows=("204",),
        needs=(SOME_ACTIONS, PRACTICE, "an environment"),
        when="if demonstrations have no actions, and there is an environment to practice in.")
def bco(n_rounds: int = 10, n_episodes: int = 10, features: Schema | None = None) -> Method:
    """Behavior cloning from observation: an inverse dynamics model of own practice tells the actions of demonstrations.

    Args:
        n_rounds: Number of rounds in which the policy collects further practice.
    """
    learner = BehaviorCloningFromObservation(optimizer=OptimizerConfig(lr=1e-3, lr_schedule="constant"))
    rounds = CollectionRounds(n_rounds, RolloutCollector(n_episodes), initial_updates=2000)
    return Method(PolicyConfig(choose_head(features, Regression())), learner=learner,
                  transforms=(PlaceholderActions(),), collection=rounds)
