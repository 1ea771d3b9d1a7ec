"""CLASS: the encoder learns from images alone, and the policy trains it on."""

from dataclasses import replace

import torch

from understudy.core import Feature
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method
from understudy.testing import random_dataset

FEATURES = {"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,)),
            "observation.images.top": Feature("uint8", (24, 24, 3), "image")}


def weights_of(policy):
    """Of the maps of the encoder, by the name of the column."""
    encoder = policy.encoder
    return {name: torch.cat([p.detach().flatten() for p in module.parameters()])
            for name, module in zip(encoder.names, encoder.maps, strict=True)}


def test_the_encoder_learns_from_images_and_the_policy_begins_there():
    data = random_dataset(FEATURES, episodes=3, steps=20)
    method = find_method("class-contrastive", data.features())

    def short(method, steps):
        return replace(method, learner=replace(method.learner, steps=steps, batch_size=16))
    (stage,) = method.stages
    before, after = (fit_method(short(stage.method, steps), data, 0).policy for steps in (0, 3))
    old, new = weights_of(before), weights_of(after)
    assert not torch.equal(old["observation.images.top"], new["observation.images.top"])
    assert torch.equal(old["observation.state"], new["observation.state"])
    stages = replace(method, stages=(replace(stage, method=short(stage.method, 3)),))
    start, trained = (weights_of(fit_method(short(stages, steps), data, 0).policy) for steps in (0, 3))
    assert all(torch.equal(new[name], start[name]) for name in new)
    assert not any(torch.equal(start[name], trained[name]) for name in start)
