"""Ratings of single steps: a rater that learns which steps are good, and a change that marks them in new episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch

from ..checkpoint import FromStage
from ..core import AtLeast, UserError, part, role
from ..data.column_changes import with_column
from ..data.episode import Dataset, Episode
from ..data.operations import Operation
from ..data.window import Window
from ..heads.likelihood.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..policy import Policy, PolicyConfig
from .gates import INTERVENTION

IS_GOOD, SHARE = "is_good", "share"  # columns: 1 at a good step, 0 at others; how often a step is drawn
MARKED = "marked"  # column: True at the steps of an episode that are learned
TAKEN = "observation.taken"  # column: the action that led to the observation


@part
class StepRating(Operation):
    """Adds the columns that a rater of steps learns from: which steps are good, and the action before each observation.

    If more than half of the rated steps are bad, bad steps are drawn less often, so that they are half of a batch.

    Args:
        rating: Column with 1 at good steps, 0 at bad steps, and NaN at steps that nobody has rated.
    """

    rating: str = "good"

    def apply(self, data):
        if missing := [i for i, episode in zip(data.indices, data, strict=True) if self.rating not in episode.steps]:
            raise UserError(f"there is no column {self.rating!r} with a rating of each step",
                            where=f"StepRating, episode {missing[0]}",
                            hint="add it to every episode, with NaN at the steps that nobody has rated")
        ratings = [np.asarray(e.steps[self.rating][:len(e)], float).reshape(len(e)) for e in data]
        n_good, n_bad = (int(sum((r == value).sum() for r in ratings)) for value in (1, 0))
        if not (n_good and n_bad):
            raise UserError(f"{n_good} steps are rated good (1) and {n_bad} bad (0), and a rater learns to tell them "
                            "apart", where=f"StepRating, column {self.rating!r}", hint="rate some of each")
        shares = [np.select([r == 1, r == 0], [1.0, min(1.0, n_good / n_bad)]) for r in ratings]
        return Dataset([with_taken_actions(e).replace({IS_GOOD: np.nan_to_num(r)[:, None].astype(np.float32), SHARE: s})
                        for e, r, s in zip(data, ratings, shares, strict=True)], data.metadata)


def step_rater(rating: str = "good", n_obs_steps: Annotated[int, AtLeast(2)] = 2) -> Method:
    """Builds a method that trains a rater of single steps from the observations before and after, and the action.

    `understudy improve --with filtered --rater RUN` then learns the steps that it rates good.

    Args:
        rating: Column of ratings: see `StepRating`.
        n_obs_steps: Number of observations that it reads, the one after the step included.
    """
    return Method(PolicyConfig(Regression(), target=IS_GOOD, window=Window(n_obs_steps, obs_offset=1)),
                  transforms=(StepRating(rating),), learner=BehaviorCloning(steps=2000, sampling_column=SHARE))


def with_taken_actions(episode: Episode) -> Episode:
    """Adds the column with the action that led to each observation. The first row repeats the first action."""
    action = np.asarray(episode.steps["action"][:len(episode)])
    rows = max(len(column) for name, column in episode.steps.items() if role(name) == "observation")
    return with_column(episode, TAKEN, np.concatenate([action[:1], action])[:rows], episode.schema.get("action"))


@torch.no_grad()
def step_scores(rater: Policy, episode: Episode) -> np.ndarray:
    """Returns the score that a rater gives each step, (T,): near 1 if the step is good."""
    windows = rater.window.windows(Dataset([with_taken_actions(episode)]), rater.inputs)
    batch = windows.gather(np.arange(len(episode))).to(rater.device)
    zero = torch.zeros(len(batch), dtype=torch.int64, device=rater.device)
    return rater.plan(batch.obs, rater.noise(zero, zero))[:, 0, 0].double().cpu().numpy()


@part
class MarkGoodSteps:
    """Marks, in collected episodes, the steps that a rater scores above 0.5, and the steps in which a person acted.

    References:
        Zhong et al. (2024), Policy Improvement using Language Feedback Models, arXiv:2402.07876.
    """

    rater: FromStage | Policy

    def __call__(self, episode: Episode) -> Episode:
        assert isinstance(self.rater, Policy)  # a method's references are resolved before it collects
        marked = step_scores(self.rater, episode) > 0.5
        if INTERVENTION in episode.steps:
            marked |= np.asarray(episode.steps[INTERVENTION][:len(episode)], bool).reshape(-1)
        return episode.replace({MARKED: marked})


@dataclass(frozen=True)
class MarkDemonstrations:
    """Marks all steps of demonstrations, and the steps of collected episodes in which a person acted."""

    def __call__(self, episode: Episode) -> Episode:
        if MARKED in episode.steps:
            return episode
        marked = np.asarray(episode.steps.get(INTERVENTION, np.ones(len(episode))))[:len(episode)]
        return episode.replace({MARKED: marked.astype(bool).reshape(-1)})
