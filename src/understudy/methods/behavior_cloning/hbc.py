from __future__ import annotations

from typing import Annotated

import numpy as np

from ...checkpoint import FromStage
from ...core import AtLeast, DataError, Feature, part
from ...data.episode import Episode
from ...data.window import Subgoal, Window
from ...execute.chunking import RecedingHorizon
from ...execute.planners import Hierarchical
from ...heads.likelihood.cvae import CVAE
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS
from ..registry import method

SUBGOAL = "subgoal"  # what the policy of subgoals predicts


@part
class LaterObservation:
    """Adds the observation `n_steps` later, or the last one of the episode, as a column."""

    column: str = "observation.state"
    n_steps: Annotated[int, AtLeast(1)] = 10
    into: str = SUBGOAL

    def __call__(self, episode: Episode) -> Episode:
        feature = episode.schema.get(self.column) or Feature.from_array(episode.steps[self.column])
        if (kind := feature.kind) != "vector":
            raise DataError(f"a subgoal must be numbers, but this column has the kind {kind!r}", where=self.column,
                            hint="name a column of numbers, such as --column observation.state")
        later = np.minimum(np.arange(len(episode)) + self.n_steps, len(episode) - 1)
        return episode.replace({self.into: np.asarray(episode.steps[self.column])[later]})


@method("Mandlekar et al. 2020 (IRIS), arXiv 1911.05321, without its values; HBC of robomimic, arXiv 2108.03298, where "
        "an LSTM acts and the prior of subgoals is a mixture", needs=(NUMBERS,),
        when="if demonstrations act in several ways that differ by where they go.")
def hbc(column: str = "observation.state", subgoal_steps: int = 10, n_action_steps: int = 10) -> Method:
    """Hierarchical behavior cloning: one policy predicts where to be some steps later, and another one goes there.

    Args:
        column: The column whose later values are subgoals.
        subgoal_steps: Number of steps to a subgoal, and of the actions of a plan. An episode should have several times
            as many.
        n_action_steps: Number of actions executed before the next subgoal is drawn.
    """
    trunk, learner = FeedForward((512, 512)), BehaviorCloning(4000)
    high = PolicyConfig(CVAE(16, beta=0.01, temperature=1.0), trunk, target=SUBGOAL)
    low = PolicyConfig(Regression(), trunk, window=Window(horizon=subgoal_steps,
                                                          goals=(Subgoal(column, n_steps=subgoal_steps),)))
    subgoals = Method(high, learner=learner, transforms=(LaterObservation(column, subgoal_steps),))
    return Method(low, RecedingHorizon(n_action_steps), learner, stages=(Stage("subgoals", subgoals),),
                  inference=(Hierarchical(FromStage("subgoals")),))
