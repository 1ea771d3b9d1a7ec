"""The arms and the control of the claim about scenes that the encoding must draw."""

from dataclasses import replace

import numpy as np
import torch
from claims.features_of_pictures import drawn_scenes as claim

from understudy.nets.base import capture_intermediates
from understudy.policy import Policy

DATA = claim.PushesToGoals(12, 4, 4).load(5)


def methods():
    return {arm.name: arm.options[0] for arm in claim.TABLE.experiment.arms} | {
        name: ablation.option for name, ablation in claim.TABLE.ablations}


def test_arms_differ_in_the_drawn_scenes_alone():
    plain, drawn = methods()["none"], {}
    for name, method in methods().items():
        assert replace(method, learner=replace(method.learner, auxiliary_losses=())) == plain
        drawn[name] = [(type(loss).__name__, loss.present, loss.future) for loss in method.learner.auxiliary_losses]
    weight = claim.WEIGHT
    assert drawn == {"none": [], "present": [("ScenePrediction", weight, 0)],
                     "future": [("ScenePrediction", 0, weight)],
                     "present and future": [("ScenePrediction", weight, weight)],
                     "scenes of other windows": [("OtherScenes", weight, weight)]}


def test_the_control_draws_the_scenes_of_other_windows():
    losses = {}
    for name in ("present and future", "scenes of other windows"):
        method = methods()[name]
        torch.manual_seed(0)
        policy = Policy(method.policy, DATA.features()).fit_statistics(DATA)
        (config,) = method.learner.auxiliary_losses
        batch = policy.windows(DATA, next_obs=True).gather(np.arange(0, 60, 10))
        with capture_intermediates(config.captures) as captured:
            policy.loss(batch, torch.Generator().manual_seed(1))
        scene = config.build(policy)
        losses[name] = scene(policy, batch, torch.Generator(), captured)
        rolled = replace(batch, obs={k: v.roll(1, 0) for k, v in batch.obs.items()},
                         next={k: v.roll(1, 0) for k, v in batch.next.items()})
    torch.testing.assert_close(losses["scenes of other windows"],
                               claim.ScenePrediction.loss(config, scene, policy, rolled, None, captured))
    assert not torch.allclose(*losses.values())
