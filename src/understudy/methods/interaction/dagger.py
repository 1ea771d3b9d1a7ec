from ...heads.likelihood.regression import Regression
from ...improve.collection import CollectionRounds, RolloutCollector, SupervisorLabels
from ...improve.gates import RandomGate
from ...improve.updates import PerNewStep
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method


@method("Ross et al. 2011, arXiv 1011.0686, where each round trains a new policy (reset_learner)",
        needs=(NUMBERS, "an environment with an expert, or a person"),
        when="if a policy drifts away from the demonstrations, and an expert or a person can say what to do there.")
def dagger(n_rounds: int = 10, n_episodes: int = 5, probability: float = 0.5, supervisor: str = "expert") -> Method:
    """DAgger: the policy acts, the supervisor says what it would have done, and the policy learns that.

    Args:
        probability: Probability that the supervisor acts at a step of the first round. It halves after each round.
        supervisor: "expert" for the environment's own, or "person".
    """
    collector = RolloutCollector(n_episodes, supervisor=supervisor, gate=RandomGate(probability, decay=0.5))
    return Method(
        PolicyConfig(Regression()),
        learner=BehaviorCloning(steps=10_000, optimizer=OptimizerConfig(lr_schedule="constant")),
        collection=CollectionRounds(
            n_rounds, collector, relabel=(SupervisorLabels(),), updates=PerNewStep(5.0), initial_updates=2000),
    )
