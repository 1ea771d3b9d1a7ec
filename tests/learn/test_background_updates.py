"""Updates in another process are those of this one, and a process that fails or dies says so."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest
import torch

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.heads.likelihood.regression import Regression
from understudy.learn.background_updates import update_meanwhile
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.td3 import TD3
from understudy.learn.fit import fit
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


def _learner(reward: float = 1.0, device: str = "cpu"):
    rng = np.random.default_rng(0)
    data = Dataset([Episode({
        STATE: rng.normal(size=(21, 1)).astype(np.float32), "action": rng.uniform(-1, 1, (20, 1)).astype(np.float32),
        "next.reward": np.full(20, reward, np.float32), "next.terminated": np.arange(20) == 19})])
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1), inputs=(STATE,)), data.features()).to(device)
    policy.fit_statistics(data)
    learner = TD3(batch_size=8, critic=CriticConfig((16,))).build(policy, 0, 10, data)
    return learner, learner.batch_sampler(data)


def _bits(learner) -> dict[str, bytes]:
    return {name: tensor.cpu().numpy().tobytes() for name, tensor in learner.state()[0].items()}


@pytest.mark.parametrize("device", DEVICES)
def test_updates_in_another_process_are_bit_equal_and_the_learner_acts_as_before_meanwhile(device):
    (here, sampler), (learner, _) = _learner(device=device), _learner(device=device)
    lines, other, before, during = [], [], _bits(learner), []
    fit(here, lambda n: sampler.batch(8, n, 5), 3)
    fit(learner, lambda n: sampler.batch(8, n, 5), 1)
    start = _bits(learner)
    update_meanwhile(learner, sampler, range(1, 3), 5, lambda: during.append(_bits(learner)),
                     [lambda step, learner, line: lines.append((step, sorted(line), _bits(learner)))])
    fit(_learner(device=device)[0], lambda n: sampler.batch(8, n, 5), 3, callbacks=[
        lambda step, learner, line: other.append((step, sorted(line)))])
    assert during == [start] and start != before
    assert _bits(learner) == _bits(here) and learner.state()[1] == here.state()[1]
    assert [line[:2] for line in lines] == other[1:] and all(line[2] == _bits(here) for line in lines)
    assert not multiprocessing.active_children()


def test_an_update_that_fails_is_named():
    learner, sampler = _learner(reward=np.nan)
    with pytest.raises(UserError, match=r"update 1.*nan"):
        update_meanwhile(learner, sampler, range(3), 0, lambda: None)


def test_a_process_that_is_killed_leaves_the_learner_as_it_was():
    learner, sampler = _learner()
    before = _bits(learner)

    def kill():
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)
    with pytest.raises(UserError, match=r"updates 0 to 999999: .* ended: killed by SIGKILL[\s\S]*same command again"):
        update_meanwhile(learner, sampler, range(1_000_000), 0, kill)
    assert _bits(learner) == before


def test_what_stops_this_process_stops_the_other():
    learner, sampler = _learner()

    def stop():
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        update_meanwhile(learner, sampler, range(1_000_000), 0, stop)
    assert not multiprocessing.active_children()
