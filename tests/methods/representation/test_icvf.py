"""ICVF: the encoder also learns from recordings without actions."""

from dataclasses import replace

import pytest
import torch

from understudy.core import DataError, Feature
from understudy.data.mixture import mix
from understudy.data.window import Goal
from understudy.learn.objectives.value_objectives import INTENT, OUTCOME
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.policy import Policy
from understudy.testing import random_dataset


def test_recordings_train_the_encoder_which_stays_as_it_is(tmp_path):
    data = random_dataset({"observation.environment_state": Feature("float32", (3,)),
                           "observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,))}, steps=8)
    mixture, weights = mix(task=(data[:3], 0.5), prior=(data[3:].map(lambda e: e.replace({"action": None})), 0.5))
    method = find_method("icvf", mixture.features(), column="observation.environment_state", discount=0.9)
    (stage,) = method.stages
    assert [(g.column, g.into) for g in stage.method.policy.window.goals if isinstance(g, Goal)] == [
        ("observation.environment_state", OUTCOME), ("observation.environment_state", INTENT)]
    short = replace(stage, method=replace(stage.method, learner=replace(stage.method.learner, steps=3, batch_size=8)))
    method = replace(method, stages=(short,), learner=replace(method.learner, steps=2, batch_size=8))
    policy = train(method, mixture, tmp_path / "run", device="cpu", progress=False, val_fraction=0,
                   sampling_weights=weights)
    encoder = Policy.load(tmp_path / "run" / "stages" / "encoder").encoder
    assert policy.inputs == ("observation.environment_state",) and policy.action_dim == 2
    for frozen, stored in zip(policy.encoder.parameters(), encoder.parameters(), strict=True):
        assert torch.equal(frozen, stored) and not frozen.requires_grad


def test_data_without_the_column_are_told_which_can_be_read():
    columns = {"observation.images.front": Feature("uint8", (8, 8, 3), "image"), "action": Feature("float32", (2,))}
    with pytest.raises(DataError, match="(?s)no column 'observation.state'; .*observation.images.front.*--col"):
        find_method("icvf", columns)
    assert find_method("icvf", columns, column="observation.images.front").policy.inputs == (*columns,)[:1]
