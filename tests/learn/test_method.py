"""Methods learn as data, and what they refuse before training."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import pytest

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.preflight import episode_findings
from understudy.learn.sample_weights import ColumnWeights
from understudy.learn.train import train
from understudy.learn.training_episodes import TrainingEpisodes
from understudy.methods.behavior_cloning.bc import bc
from understudy.nets.ema import ConstantDecay
from understudy.policy import Policy, PolicyConfig


def test_methods_learn_as_data():
    from understudy import config
    from understudy.learn.method import Method

    learning = BehaviorCloning(
        steps=7,
        optimizer=OptimizerConfig(grad_clip_norm=None, betas=(0.8, 0.9)),
        ema=ConstantDecay(0.5),
        sample_weights=ColumnWeights("x"),
    )
    method = replace(Method(PolicyConfig(Flow())), learner=learning)
    assert config.load(json.loads(json.dumps(config.dump(method)))) == method


def test_a_choice_that_was_never_shown_is_refused():
    def data(most):
        steps = {"observation.state": np.zeros((4, 2), np.float32), "action": np.array([[0], [1], [most], [0]])}
        return Dataset([Episode(steps)])
    policy = Policy(bc(features=data(1).features()).policy, data(1).features())
    policy.windows(data(1))
    with pytest.raises(UserError, match=r"knows \(2,\) classes.*\(4,\)"):
        policy.windows(data(3))


@dataclass(frozen=True)
class Looks(BehaviorCloning):
    """Asks for what follows, and learns as cloning does."""

    next_obs: bool = True


def test_what_follows_a_chunk_has_to_come_after_it_was_chosen(tmp_path):
    data = Dataset([Episode({"observation.state": np.zeros((6, 2)), "action": np.zeros((6, 1))}) for _ in range(2)])
    for ahead, horizon in ((-2, 1), (-3, 2)):
        method = Method(PolicyConfig(Regression(), window=Window(1, horizon, ahead)), learner=Looks(steps=1))
        with pytest.raises(UserError, match=f"action_offset={ahead} and horizon={horizon}"):
            train(method, data, tmp_path / "no", val_fraction=0)
    method = Method(PolicyConfig(Regression(), window=Window(1, 3, -2)), RecedingHorizon(1, skip=2), Looks(steps=1))
    train(method, data, tmp_path / "yes", val_fraction=0)


@pytest.mark.parametrize(("window", "target", "there"), [
    (Window(1, 2, action_offset=5), "action", False), (Window(1, 2, action_offset=3), "action", True),
    (Window(1, 1, action_offset=4), "observation.state", True),  # which has one row more
    (Window(1, 1, action_offset=-4), "action", False), (Window(1, 1, action_offset=-3), "action", True)])
def test_targets_beyond_every_episode_are_refused_before_training(window, target, there):
    data = Dataset([Episode({"observation.state": np.zeros((n + 1, 2), np.float32), "action": np.zeros((n, 2))})
                    for n in (2, 4)])
    method = Method(PolicyConfig(Regression(), window=window, target=target, inputs=("observation.state",)))
    expectation = (
        nullcontext()
        if there
        else pytest.raises(UserError, match=f"action_offset={window.action_offset}.*\n  -> look less far")
    )
    with expectation:
        assert not list(episode_findings(method, TrainingEpisodes(data, data)))
    if there:
        assert next(window.windows(data, ("observation.state",), target).scan()).mask.any()
    else:
        assert not next(window.windows(data, ("observation.state",), target).scan()).mask.any()
