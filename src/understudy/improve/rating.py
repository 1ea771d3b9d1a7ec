"""Ratings of whole episodes: a learned rater, and a rule that keeps the episodes that it rates high."""

from __future__ import annotations

import warnings
from collections import defaultdict
from typing import Annotated

import numpy as np
import torch

from ..checkpoint import FromStage
from ..core import AtLeast, DataWarning, UserError, part
from ..data.episode import Dataset, Episode
from ..data.mixture import ROUND
from ..data.operations import Operation
from ..data.shown_demonstration import task_of
from ..data.window import Window
from ..heads.likelihood.regression import Regression
from ..hints import command_line
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..policy import Policy, PolicyConfig
from .retention import RetentionRule

SCORE, IS_RATED = "score", "is_rated"  # columns: the rating of the episode at each step; 1 at the last step


@part
class EpisodeRating(Operation):
    """Adds the rating of an episode to each of its steps, in the column `score` (T, 1), and marks the last step.

    Args:
        rating: Name of the rating in the metadata of the episode: a number, or true and false for 1 and 0.
    """

    rating: str = "success"

    def __call__(self, episode: Episode) -> Episode:
        if self.rating not in episode.metadata:
            raise self._unrated("")
        if isinstance(rating := episode.metadata[self.rating], str):
            raise UserError(f"the rating {self.rating!r} is the text {rating!r}, and not a number",
                            where="EpisodeRating", hint="give numbers, or true and false")
        n = len(episode)
        score = np.full((n, 1), rating, np.float32)
        return episode.replace({SCORE: score, IS_RATED: (np.arange(n) == n - 1).astype(np.float32)})

    def apply(self, data):
        ratings = [episode.metadata.get(self.rating) for episode in data]
        if None in ratings:
            raise self._unrated(f", episode {list(data.indices)[ratings.index(None)]}")
        if len(ratings) > 1 and len(set(ratings)) == 1:
            warnings.warn(f"all {len(ratings)} episodes have the same {self.rating!r}, {ratings[0]}: a rater learns "
                          "nothing from them but that number", DataWarning, stacklevel=2)
        return data.map(self)

    def _unrated(self, place: str) -> UserError:
        keys = "with y and n while it is recorded, or " if self.rating == "success" else ""
        return UserError(f"the episode has no {self.rating!r} in its metadata", where=f"EpisodeRating{place}",
                         hint=f"rate every episode, {keys}by views: "
                              + command_line("view", "make", "DATA", "--select", 0, 1, "--label",
                                             f"{self.rating}=VALUE", "--out", "VIEW")
                              + " for each value, and understudy merge for all of them")


def episode_rater(rating: str = "success", n_obs_steps: Annotated[int, AtLeast(1)] = 1) -> Method:
    """Builds a method that trains a rater of whole episodes (for `understudy improve --rater RUN`).

    Args:
        rating: Name of the rating in the metadata of the episodes that it learns from.
        n_obs_steps: Number of observations at the end of an episode that it reads.
    """
    return Method(PolicyConfig(Regression(), target=SCORE, window=Window(n_obs_steps, obs_offset=1)),
                  transforms=(EpisodeRating(rating),), learner=BehaviorCloning(steps=1000, sampling_column=IS_RATED))


def check_rater(config: PolicyConfig) -> None:
    """Raises UserError if a policy was not trained with `episode_rater`."""
    if config.target != SCORE:
        raise UserError("this run rates neither episodes nor steps", where="--rater",
                        hint="understudy train understudy.improve.rating:episode_rater DATA --out RUN trains one, and "
                             "understudy.improve.step_rating:step_rater one of steps")


@torch.no_grad()
def episode_scores(rater: Policy, data: Dataset) -> np.ndarray:
    """Returns the score that a trained `episode_rater` gives each episode, (n,)."""
    check_rater(rater.config)
    windows = rater.window.windows(data, rater.inputs)
    batch = windows.gather(windows.episode_ends - 1).to(rater.device)
    zero = torch.zeros(len(batch), dtype=torch.int64, device=rater.device)
    return rater.plan(batch.obs, rater.noise(zero, zero))[:, 0, 0].double().cpu().numpy()


@part
class ScoreThreshold(RetentionRule):
    """Retention rule: collected episodes stay if their score is high enough. Earlier episodes always stay.

    It is high enough above `threshold`, or above the mean score that the first episodes of the same task have. So a
    task at which also the demonstrator has low scores keeps episodes.

    Args:
        score: The rater, the stage that trained it, or the name of the score in the metadata of episodes.

    References:
        Wang et al. (2024), SOTOPIA-pi: Interactive Learning of Socially Intelligent Language Agents, arXiv:2403.08715.
    """

    score: FromStage | Policy | str = "score"
    threshold: float = 0.5

    def keep(self, data):
        scores, first = self.scores(data), defaultdict(list)
        tasks = [task_of(episode) for episode in data]
        is_first = [ROUND not in episode.metadata for episode in data]
        for i in np.flatnonzero(is_first):
            first[tasks[i]].append(scores[i])
        least = {task: min(self.threshold, np.mean(values)) for task, values in first.items()}
        return data.select(i for i, task in enumerate(tasks)
                           if is_first[i] or scores[i] > least.get(task, self.threshold))

    def scores(self, data: Dataset) -> np.ndarray:
        """Returns the score of each episode, (n,)."""
        if isinstance(self.score, Policy):
            return episode_scores(self.score, data)
        assert isinstance(self.score, str)  # a method's references are resolved before it collects
        if missing := [i for i, episode in enumerate(data) if self.score not in episode.metadata]:
            raise UserError(f"the episode has no {self.score!r} in its metadata",
                            where=f"ScoreThreshold, episode {missing[0]}",
                            hint="give every episode a score, or name a rater")
        return np.array([float(episode.metadata[self.score]) for episode in data])
