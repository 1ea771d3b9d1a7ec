"""Published scores of demonstrations with one interface: Score(data) returns one number per episode, higher is better.

The scores in `SCORES` have defaults and need only the data. The scores that `NETWORK_SCORES` names train small
networks. All other scores in `SCORES` take seconds for 100,000 steps. The scores in `ENV_SCORES` need the name of an
environment. Scores that need more (a policy and its rollouts, episodes that are known to be good, a function that
trains and evaluates) must be constructed: `Influence`, `ValidationWeights`, `FilterLikeYouTest`, `Datamodel`.
"""

from .alignment import Alignment
from .critical_steps import MarkCriticalSteps
from .dependence import ActionDependence, action_dependence
from .episode_stats import (
    Brevity,
    Criticality,
    Motion,
    Novelty,
    Return,
    Smoothness,
    state_action_coverage,
    trajectory_quality,
)
from .influence import Datamodel, FilterLikeYouTest, Influence, ValidationWeights, soft_capped_counts
from .information import MutualInformation
from .keyframes import MarkKeyframes
from .neighbors import (
    ActionConsistency,
    ActionVariance,
    LocalUnimodality,
    StateDiversity,
    StateSimilarity,
    TransitionDiversity,
    Typicality,
    Unimodality,
)
from .network_scores import Compatibility, Expertise
from .registry import ENV_SCORES, NETWORK_SCORES, SCORE_MEANINGS, SCORES
from .selection import select_within_budget
from .transferability import Transferability

__all__ = [
    "ENV_SCORES",
    "NETWORK_SCORES",
    "SCORES",
    "SCORE_MEANINGS",
    "ActionConsistency",
    "ActionDependence",
    "ActionVariance",
    "Alignment",
    "Compatibility",
    "Criticality",
    "Datamodel",
    "Expertise",
    "FilterLikeYouTest",
    "Brevity",
    "Influence",
    "MarkCriticalSteps",
    "MarkKeyframes",
    "Motion",
    "MutualInformation",
    "Novelty",
    "Return",
    "Smoothness",
    "StateDiversity",
    "StateSimilarity",
    "Transferability",
    "TransitionDiversity",
    "ValidationWeights",
    "LocalUnimodality",
    "Typicality",
    "Unimodality",
    "action_dependence",
    "select_within_budget",
    "soft_capped_counts",
    "state_action_coverage",
    "trajectory_quality",
]
