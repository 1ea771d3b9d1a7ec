"""The published scores of demonstrations, over one interface: Score(data) -> one number an episode, higher is better.

SCORES have defaults and need nothing but the data; those of TRAINED train small networks, the others are done in
seconds on 100,000 steps. What needs more (a policy and its rollouts, episodes known to be good, a function that trains
and judges) is made by hand: Influence, Validated, Datamodel.
"""

from __future__ import annotations

from collections.abc import Callable

from ..base import Score
from .alignment import Alignment
from .choice import choose
from .influence import Datamodel, Influence, Validated, soft_cap
from .information import MutualInformation
from .neighbours import (
    ActionConsistency,
    ActionVariance,
    StateDiversity,
    StateSimilarity,
    TransitionDiversity,
    Typicality,
    Unimodality,
)
from .simple import Criticality, Length, Motion, Novelty, Return, Smoothness, coverage, quality
from .trained import Compatibility, Expertise

__all__ = ["SCORES", "TRAINED", "ActionConsistency", "ActionVariance", "Alignment", "Compatibility", "Criticality",
           "Datamodel", "Expertise", "Influence", "Length", "Motion", "MutualInformation", "Novelty", "Return",
           "Smoothness", "StateDiversity", "StateSimilarity", "Validated", "TransitionDiversity", "Typicality",
           "Unimodality", "choose", "coverage", "quality", "soft_cap"]

SCORES: dict[str, Callable[[], Score]] = {
    "action-variance": ActionVariance,
    "action-consistency": ActionConsistency,
    "state-diversity": StateDiversity,
    "state-similarity": StateSimilarity,
    "transition-diversity": TransitionDiversity,
    "mutual-information": MutualInformation,
    "typicality": Typicality,
    "unimodality": Unimodality,
    "novelty": Novelty,
    "return": Return,
    "brevity": Length,
    "smoothness": Smoothness,
    "motion": Motion,
    "compatibility": Compatibility,
    "expertise": Expertise,
    "alignment": Alignment,
}
TRAINED = frozenset({"compatibility", "expertise", "alignment"})  # seconds to minutes each
