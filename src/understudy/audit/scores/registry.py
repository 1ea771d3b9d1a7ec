"""Lists the scores by name: `SCORES` need nothing but the data, and `ENV_SCORES` also need an environment."""

from __future__ import annotations

from collections.abc import Callable

from ..base import Score
from .alignment import Alignment
from .episode_stats import (
    Brevity,
    Motion,
    Novelty,
    Return,
    Smoothness,
)
from .information import MutualInformation
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
from .transferability import Transferability

_TABLE: dict[str, tuple[Callable[[], Score], str]] = {  # each score, and what a high one means
    "action-variance": (ActionVariance, "all episodes act alike in this state"),
    "action-consistency": (ActionConsistency, "this episode acts like the others in this state"),
    "state-diversity": (StateDiversity, "no other episode visits this state"),
    "state-similarity": (StateSimilarity, "many episodes visit this state"),
    "transition-diversity": (TransitionDiversity, "the same action led to different states: noise of the system"),
    "mutual-information": (MutualInformation, "varied states, predictable actions"),
    "typicality": (Typicality, "the episode is not an outlier"),
    "unimodality": (Unimodality, "there is one way of acting in this state, not two"),
    "local-unimodality": (LocalUnimodality, "there is one way of acting in this state, not two, after a linear "
                                            "function of the state was subtracted"),
    "novelty": (Novelty, "pairs of state and action that no other episode has"),
    "return": (Return, "high reward"),
    "brevity": (Brevity, "few steps"),
    "smoothness": (Smoothness, "little jerk"),
    "motion": (Motion, "something moves in most steps"),
    "compatibility": (Compatibility, "acts like a base policy, or where the base policy is uncertain"),
    "expertise": (Expertise, "the demonstrator acts like the experts, learned without labels"),
    "alignment": (Alignment, "other episodes have similar steps in the same order"),
}
SCORES = {name: make for name, (make, _) in _TABLE.items()}
SCORE_MEANINGS = {name: meaning for name, (_, meaning) in _TABLE.items()}
NETWORK_SCORES = frozenset({"compatibility", "expertise", "alignment"})  # seconds to minutes each
ENV_SCORES = {"transferability": Transferability}  # scores that let a policy act in an environment
