"""DynaMo: the encoder also learns from recordings without actions."""

from dataclasses import replace

import numpy as np
import pytest

from understudy.core import Feature
from understudy.data.mixture import mix
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.testing import random_dataset

FEATURES = {"observation.images.top": Feature("uint8", (16, 16, 3), "image"),
            "observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,))}


@pytest.mark.parametrize("columns", [("observation.state",), ("observation.images.top",)])
def test_videos_train_the_encoder_and_demonstrations_the_rest(columns, tmp_path):
    data = random_dataset({name: FEATURES[name] for name in (*columns, "action")}, steps=8)
    videos = data.map(lambda e: e.replace({"action": None}))
    mixture, weights = mix(task=(data[:3], 0.5), prior=(videos[3:], 0.5))
    method = find_method("dynamo", mixture.features())
    (stage,) = method.stages
    short = replace(stage, method=replace(stage.method, learner=replace(stage.method.learner, steps=3, batch_size=8)))
    method = replace(method, stages=(short,), learner=replace(method.learner, steps=2, batch_size=8))
    policy = train(method, mixture, tmp_path / "run", device="cpu", progress=False, val_fraction=0,
                   sampling_weights=weights)
    assert not any(p.requires_grad for p in policy.encoder.parameters())
    assert policy.action_dim == 2 and np.isfinite(policy.action_scale).all()
