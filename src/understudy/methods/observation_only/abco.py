from dataclasses import replace

from ...core import Schema
from ...heads.categorical import Categorical
from ...improve.collection import CollectionRounds
from ...improve.retention import BalancedSuccess
from ...learn.method import Method
from ..needs import PRACTICE, SOME_ACTIONS
from ..registry import method
from .bco import bco


@method("Monteiro et al. 2020 (ABCO), arXiv 2004.13529, without attention, which is a linear layer for one vector",
        rows=("204",), needs=(SOME_ACTIONS, PRACTICE, "an environment that tells success"),
        when="if demonstrations have no actions, and the environment says whether an episode succeeded.")
def abco(n_rounds: int = 10, n_episodes: int = 10, features: Schema | None = None) -> Method:
    """BCO whose inverse dynamics model learns from successful practice, with all classes of actions equally often.

    Actions that are numbers are not balanced.

    Args:
        n_rounds: Number of rounds in which the policy collects further practice.
    """
    method = bco(n_rounds, n_episodes, features)
    assert isinstance(method.collection, CollectionRounds)
    discrete = isinstance(method.policy.head, Categorical)
    return replace(method, learner=replace(method.learner, balance_classes=discrete),
                   collection=replace(method.collection, retention=BalancedSuccess()))
