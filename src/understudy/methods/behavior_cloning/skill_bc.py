from __future__ import annotations

from typing import Annotated

import numpy as np

from ...checkpoint import FromStage
from ...core import AtLeast, DataError, Feature, Schema, part
from ...data.column_changes import get_column, with_column
from ...data.episode import Episode
from ...execute.planners import Hierarchical
from ...heads.likelihood.categorical import Categorical, choose_head
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...nets.feed_forward import FeedForward
from ...policy import PolicyConfig
from ..needs import NUMBERS_OR_CLASSES, SKILLS
from ..registry import method

PREDICTED, OBSERVED = "skill.class", "observation.skill_class"


@part
class SkillClass:
    """Replaces the number of the skill of each step by a column of classes.

    Args:
        into: The new column, with one class for each step.
        column: Column with the numbers.
        n_skills: Numbers are from 0 to `n_skills - 1`.
    """

    into: str
    column: str = "skill"
    n_skills: Annotated[int, AtLeast(2)] = 8

    def __call__(self, episode: Episode) -> Episode:
        numbers = get_column(episode, self.column)[:len(episode)].reshape(len(episode), -1)
        outside = numbers[~np.isin(numbers, np.arange(self.n_skills))]
        if numbers.shape[1] != 1 or len(outside):
            problem = f"{outside[0]!r} is none" if len(outside) else f"a step has {numbers.shape[1]} numbers"
            raise DataError(f"the skill of a step is a number from 0 to {self.n_skills - 1}, and {problem}",
                            where=self.column, hint="choose a larger --n-skills, or name another --column; thought-"
                                                    "cloning learns skills that are text")
        feature = Feature("int64", (1,), "discrete", num_classes=(self.n_skills,))
        return with_column(episode.replace({self.column: None}), self.into, numbers.astype(np.int64), feature)


@method("Luo et al. 2024 (FMB), arXiv 2401.08553, where cameras are read by networks of their own", rows=("025",),
        needs=(NUMBERS_OR_CLASSES, SKILLS),
        when="if a task has stages that are done one after the other, and the demonstrations say which one is due.")
def skill_bc(column: str = "skill", n_skills: int = 8, width: int = 256, steps: int = 5000,
             features: Schema | None = None) -> Method:
    """Behavior cloning with skills: one policy chooses which skill is due, and another one reads it and acts.

    Args:
        column: Column with the number of the skill of each step, from 0. Neither policy observes it.
        n_skills: Numbers of skills are below this one.
        width: Width of the two hidden layers of both policies.
        steps: Number of updates of each of them.
    """
    trunk, learner = FeedForward((width, width)), BehaviorCloning(steps)
    choose = Method(PolicyConfig(Categorical(), trunk, target=PREDICTED), learner=learner,
                    transforms=(SkillClass(PREDICTED, column, n_skills),))
    act = PolicyConfig(choose_head(features, Regression()), trunk)
    return Method(act, learner=learner, transforms=(SkillClass(OBSERVED, column, n_skills),),
                  stages=(Stage("skills", choose),), inference=(Hierarchical(FromStage("skills"), as_key=OBSERVED),))
