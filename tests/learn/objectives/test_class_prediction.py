"""Auxiliary prediction of a column of classes: what the column may be."""

from __future__ import annotations

import numpy as np
import pytest

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.class_prediction import ClassPrediction
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig


def train(num_classes: tuple[int, ...], shape: tuple[int, ...], first: int = 0, dtype: type = np.int64) -> None:
    """With a column of the classes `first` to `first + 3`."""
    label = (first + np.arange(8).reshape(8, *[1] * len(shape)) % 4 + np.zeros((8, *shape), np.int64)).astype(dtype)
    data = Dataset([Episode({"observation.state": np.zeros((8, 2), np.float32), "action": np.zeros((8, 1), np.float32),
                             "goal": label})])
    learner = BehaviorCloning(1, 32, auxiliary_losses=(ClassPrediction("goal", num_classes),))
    fit_method(Method(PolicyConfig(Regression(), MLP(8, 1)), learner=learner), data, 0)


def test_the_column_has_any_shape():
    for num_classes, shape in (((4,), ()), ((4,), (1,)), ((4, 5), (2,)), ((4,) * 4, (2, 2))):
        train(num_classes, shape)
    train((300,), (), dtype=np.uint8)  # more classes than the type can hold


@pytest.mark.parametrize("num_classes, shape, first", [((3,), (), 0), ((4, 4), (), 0), ((4,), (2,), 0), ((4,), (), -1)])
def test_other_classes_than_those_of_the_column_are_refused(num_classes, shape, first):
    with pytest.raises(UserError, match="column 'goal': the column has [12] components with classes from (0|-1) to "):
        train(num_classes, shape, first)
