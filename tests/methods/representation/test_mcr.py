"""MCR: images alone train the encoder, and the policy keeps it."""

from dataclasses import replace

import pytest
import torch

from understudy.core import Feature, UserError
from understudy.learn.fit_method import fit_method
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.testing import random_dataset

FEATURES = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,)),
            "observation.images.top": Feature("uint8", (24, 24, 3), "image")}


def short(method, steps):
    stages = tuple(replace(s, method=short(s.method, steps)) for s in method.stages)
    return replace(method, learner=replace(method.learner, steps=steps, batch_size=10), stages=stages)


def test_the_encoder_learns_from_images_and_the_policy_keeps_it(tmp_path):
    data = random_dataset(FEATURES, episodes=3, steps=20)
    method = find_method("mcr", data.features())
    old, new = (fit_method(short(method.stages[0].method, steps), data, 0).policy.encoder for steps in (0, 3))
    kept = train(short(method, 3), data, tmp_path / "run", device="cpu", progress=False, val_fraction=0).encoder
    names = {name: i for i, name in enumerate(old.names)}
    for name, changes in (("observation.images.top", True), ("observation.state", False)):
        for a, b, c in zip(*(x.maps[names[name]].parameters() for x in (old, new, kept)), strict=True):
            assert torch.equal(a, b) != changes and torch.equal(b, c)


@pytest.mark.parametrize(("dropped", "message"), [("observation.images.top", "no camera"),
                                                  ("observation.state", "observation.state")])
def test_other_data_are_refused(dropped, message):
    data = random_dataset({**{k: f for k, f in FEATURES.items() if k != dropped}, "observation.b": FEATURES["action"]})
    with pytest.raises(UserError, match=message):
        fit_method(short(find_method("mcr", data.features()), 1), data, 0)
