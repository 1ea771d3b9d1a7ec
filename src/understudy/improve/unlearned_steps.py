"""Steps of a takeover that are stored and never learned: those of a handover, and those that the person takes back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import nn

from ..core import Unsupported, part
from ..data.episode import Episode
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.method import Method
from ..learn.sample_weights import SampleWeights, UniformWeights, WeightFunction

HANDOVER = "handover"  # column: True while the robot and the device of a person go to the same pose
UNDONE = "undone"  # column: True at the steps of a takeover that the person does not want to be learned
UNLEARNED = (HANDOVER, UNDONE)


@dataclass(frozen=True)
class UnlearnedColumns:
    """A column change: episodes without a person get the columns `handover` and `undone`, which are false."""

    def __call__(self, episode: Episode) -> Episode:
        return episode.replace({name: np.zeros(len(episode), bool) for name in UNLEARNED if name not in episode.steps})


@part
class LearnedStepWeights(SampleWeights):
    """The given weights, and 0 at the steps of a handover and of a takeover that was undone."""

    weights: SampleWeights = field(default_factory=UniformWeights)

    @property
    def columns(self):
        return tuple(dict.fromkeys((*self.weights.columns, *UNLEARNED)))

    def build(self, policy, data):
        function = self.weights.build(policy, data)
        if isinstance(function, nn.Module):
            raise Unsupported(f"{type(self.weights).__name__} has networks of its own", where="LearnedStepWeights",
                              hint="use weights that are computed from columns")
        return _LearnedSteps(function)


class _LearnedSteps(WeightFunction):
    def __init__(self, function: WeightFunction):
        self.function, self.fit, self.after_update = function, function.fit, function.after_update

    def __call__(self, batch, policy):
        weights = self.function(batch, policy)
        unlearned = sum(batch.extra[name].reshape(batch.mask.shape).float() for name in UNLEARNED)
        return torch.where(torch.as_tensor(unlearned) > 0, 0.0, weights.reshape(len(batch), -1))


def without_unlearned_steps(method: Method) -> Method:
    """Returns a method of behavior cloning that learns no step of a handover, and none that was undone."""
    learner = method.learner
    assert isinstance(learner, BehaviorCloning)
    return replace(method, transforms=(*method.transforms, UnlearnedColumns()),
                   learner=replace(learner, sample_weights=LearnedStepWeights(learner.sample_weights)))
