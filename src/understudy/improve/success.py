"""A classifier of success, learned from labeled episodes, for environments that do not report success."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ..core import AtLeast, UserError, part
from ..data.episode import Dataset, Episode
from ..envs.base import Env, EnvWrapper
from ..execute.planners import FixedBatch
from ..heads.likelihood.regression import Regression
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..policy import Planner, PolicyConfig

SUCCEEDS = "succeeds"  # column: 1 at the frames that show success, otherwise 0


@part
class SuccessLabels:
    """Turns labeled episodes into training data of a success classifier: each frame gets the label `succeeds` (T, 1).

    The labels are `next.success` if the episode has it. Otherwise a person has called the whole episode a success, and
    its last frames show it. If the episode has no observation after its last step, each frame is the one before.

    Args:
        n_last: Number of frames at the end of a successful episode that show success.
    """

    n_last: Annotated[int, AtLeast(1)] = 5

    def __call__(self, episode: Episode) -> Episode:
        n = len(episode)
        if "next.success" in episode.steps:
            labels = np.asarray(episode.steps["next.success"])[:n].astype(np.float32).reshape(n, 1)
        else:
            labels = np.zeros((n, 1), np.float32)
            labels[n - self.n_last if n > self.n_last else 0:] = float(bool(episode.metadata.get("success")))
        frames = {name: np.asarray(column)[1:n + 1] for name, column in episode.steps.items()
                  if name.startswith("observation.") and len(column) > n}
        return episode.replace({**frames, SUCCEEDS: labels})


def success_classifier(n_last: int = 5) -> Method:
    """Builds a method that trains a classifier of success from observations (`understudy improve --success RUN`).

    Args:
        n_last: Number of frames at the end of an episode that was called a success, and has no labels of single steps.
    """
    return Method(PolicyConfig(Regression(), target=SUCCEEDS), transforms=(SuccessLabels(n_last),),
                  learner=BehaviorCloning(steps=1000))


class SuccessClassifier:
    """A trained classifier that tells from an observation whether it shows success.

    Args:
        policy: A policy that was trained with the method `success_classifier`.
    """

    def __init__(self, policy: Planner):
        if policy.window.n_obs_steps != 1 or SUCCEEDS not in policy.features:
            raise UserError("this is not a classifier of success", where="--success",
                            hint="understudy train understudy.improve.success:success_classifier DATA --out RUN trains "
                                 "one")
        self.planner = FixedBatch(policy)

    @torch.no_grad()
    def __call__(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns whether each row shows success, (B,) bool."""
        planner = self.planner
        windows = {name: obs[name].unsqueeze(1).to(planner.device) for name in planner.inputs}
        zero = torch.zeros(len(next(iter(windows.values()))), dtype=torch.int64, device=planner.device)
        return planner.plan(windows, planner.noise(zero, zero))[:, 0, 0].cpu() > 0.5


@dataclass(frozen=True)
class FrameRates:
    """How often a classifier is wrong on held-out frames.

    Args:
        n_failures: Number of frames without success.
        n_false: Number of these frames that the classifier takes for a success.
        n_successes: Number of frames with success.
        n_recognized: Number of these frames that the classifier takes for a success.
    """

    n_failures: int
    n_false: int
    n_successes: int
    n_recognized: int

    def __str__(self) -> str:
        rate = f" ({self.n_false / self.n_failures:.1%})" if self.n_failures else ""
        return (f"{self.n_false} of {self.n_failures} held-out frames without success are false positives{rate}, "
                f"{self.n_recognized} of {self.n_successes} with success are recognized")


def held_out_rates(classifier: SuccessClassifier, episodes: Dataset) -> FrameRates:
    """Counts the errors of a classifier on labeled episodes that it was not trained on.

    Args:
        episodes: Episodes after `SuccessLabels`.
    """
    counts = np.zeros(4, int)
    for episode in episodes:
        n = len(episode)
        labels = np.asarray(episode.steps[SUCCEEDS])[:n, 0] > 0.5
        positive = classifier({name: torch.as_tensor(np.array(episode.steps[name][:n]))
                               for name in classifier.planner.inputs}).numpy()
        counts += [(~labels).sum(), (positive & ~labels).sum(), labels.sum(), (positive & labels).sum()]
    return FrameRates(*counts.tolist())


class ClassifiedSuccess(EnvWrapper):
    """Wraps an environment so that a classifier decides success, which ends an episode.

    Args:
        env: An environment that does not define success.
    """

    def __init__(self, env: Env, classifier: SuccessClassifier):
        if env.metadata.get("success"):
            raise UserError(f"{env.metadata['env']} says itself what success is", where="--success",
                            hint="leave it out")
        super().__init__(env)
        self.metadata, self.classifier = {**env.metadata, "success": "as a classifier says"}, classifier

    def step(self, action):
        out = self.env.step(action)
        success = self.classifier(out.obs)
        return replace(out, terminated=out.terminated | success, info={**out.info, "success": success})
