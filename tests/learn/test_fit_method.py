"""One way to train: in memory, in a folder, with stages and from a policy."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import mix
from understudy.data.relabel import SelectColumns
from understudy.data.window import Window
from understudy.execute.actor import PolicyActor
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.heads.memory.neighbors import Neighbors
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import FitResult, fit_method
from understudy.learn.method import FromStage, InitializeFrom, Method, Stage
from understudy.learn.train import train
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.nets.vision import SmallConv
from understudy.policy import PolicyConfig

STATE = "observation.state"


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)

    def episode(n):
        state = rng.normal(size=(n + 1, 3)).astype(np.float32)
        return Episode({STATE: state, "observation.unused": state[:, :1], "action": np.tanh(state[:-1, :2])})
    return Dataset([episode(n) for n in (17, 9, 23, 12)], {"path": "made_up"})


def method(head=None, steps=6, **fields) -> Method:
    policy = PolicyConfig(head or Regression(), trunk=MLP(16, 1, dropout=0.1), window=Window(2, 3))
    return Method(policy, learner=BehaviorCloning(steps, 8), **fields)


def weights(policy) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in policy.state_dict().items()}


def same(one, other) -> bool:
    one, other = weights(one), weights(other)
    return one.keys() == other.keys() and all(torch.equal(v, other[k]) for k, v in one.items())


@pytest.mark.parametrize("head", [Flow(n_steps=2), Neighbors()], ids=["flow", "neighbors"])
def test_training_in_memory_and_in_a_folder_give_the_same_numbers(data, tmp_path, head):
    trained_method = method(head, transforms=(SelectColumns((STATE, "action")),))
    losses = []
    before = torch.get_rng_state()
    result = fit_method(trained_method, data, 3, callbacks=[lambda n, learner, metrics: losses.append(metrics["loss"])])
    assert torch.equal(torch.get_rng_state(), before)
    trained = train(trained_method, data, tmp_path / "run", seed=3, val_fraction=0.0, progress=False, device="cpu")
    assert same(result.policy, trained) and len(losses) == 6
    assert result.policy.inputs == (STATE,) and not result.policy.training
    assert isinstance(result.actor, PolicyActor) and set(result.modules) == {"policy"}
    assert not same(result.policy, fit_method(trained_method, data, 4).policy) or isinstance(head, Neighbors)


def test_training_goes_on_from_a_policy_and_keeps_its_statistics(data):
    first = fit_method(method(), data, 0).policy
    kept = weights(first)
    shifted = data.map(lambda e: e.replace({STATE: e.steps[STATE] + 100}))
    second = fit_method(method(), shifted, 0, policy=first).policy
    assert all(torch.equal(v, kept[k]) for k, v in first.state_dict().items())  # it is copied
    statistics = [k for k in kept if k.startswith("codec.")]
    assert statistics and all(torch.equal(second.state_dict()[k], kept[k]) for k in statistics)
    assert not same(first, second)


def test_training_goes_on_from_an_average_and_leaves_frozen_networks_as_they_are():
    rng = np.random.default_rng(0)
    pictures = Dataset([Episode({"observation.image": rng.integers(0, 256, (12, 16, 16, 3), np.uint8),
                                 "action": rng.normal(size=(12, 2)).astype(np.float32)}) for _ in range(2)])
    encoder = ConcatEncoder(SmallConv((8, 8, 8, 8), 2))
    seeing = Method(PolicyConfig(Regression(), MLP(16, 1), encoder), learner=BehaviorCloning(3, 8))
    first = fit_method(seeing, pictures, 0).policy
    second = fit_method(seeing, pictures, 0, policy=first).policy
    assert same(first.encoder, second.encoder) and len(list(first.encoder.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(first.net.parameters(), second.net.parameters(), strict=True))


def test_weights_of_sampling_choose_the_steps(data):
    index = []

    @dataclass(frozen=True)
    class FirstEpisode:
        def __call__(self, episode):
            return np.full(len(episode), float(len(episode) == 17))
    drawn = []
    fit_method(method(), data, 0, sampling_weights=FirstEpisode(),
               callbacks=[lambda n, learner, metrics: drawn.append(
                   learner.batch_sampler(data, FirstEpisode()).batch(8, n - 1, 0).extra["index"])])
    index = torch.cat(drawn)
    assert index.max() < 17 and len(index) == 48


def test_stages_are_trained_first_and_may_be_given(data, tmp_path):
    base = method(steps=4)
    tuned = method(steps=2, stages=(Stage("base", base),), initialize_from=(
        InitializeFrom(FromStage("base"), train=("net",)),))
    whole = fit_method(tuned, data, 5)
    stage = fit_method(base, data, 5)
    assert same(whole.policy, fit_method(tuned, data, 5, stages={"base": stage}).policy)
    encoder = {k: v for k, v in stage.policy.state_dict().items() if k.startswith(("encoder.", "codec."))}
    assert encoder and all(torch.equal(v, whole.policy.state_dict()[k]) for k, v in encoder.items())
    assert not same(whole.policy, stage.policy)
    train(base, data, tmp_path / "base", seed=5, val_fraction=0.0, progress=False, device="cpu")
    assert same(whole.policy, fit_method(tuned, data, 5, stages={"base": tmp_path / "base"}).policy)
    run = train(tuned, data, tmp_path / "run", seed=5, val_fraction=0.0, progress=False, device="cpu")
    assert same(whole.policy, run)


def test_a_stage_trains_on_its_part_of_a_mixture(data):
    both, shares = mix(demos=(data[:2], 0.5), play=(data[2:], 0.5))
    assert [part["name"] for part in both.metadata["mix"]] == ["demos", "play"]
    staged = method(steps=2, stages=(Stage("base", method(steps=3), dataset="play"),),
                    initialize_from=(InitializeFrom(FromStage("base"), train=()),))
    result = fit_method(staged, both, 0, sampling_weights=shares)
    assert same(result.policy, fit_method(method(steps=3), data[2:], 0).policy)
    missing = replace(staged, stages=(replace(staged.stages[0], dataset="others"),))
    with pytest.raises(UserError, match="no part 'others'; they have demos, play"):
        fit_method(missing, both, 0)


def test_what_cannot_be_trained_is_refused(data):
    part = InitializeFrom(FromStage("base", "critic"))
    results = {"base": FitResult(method(), {"policy": fit_method(method(steps=1), data, 0).policy})}
    with pytest.raises(UserError, match="'base' has no module 'critic'; it has policy"):
        fit_method(method(initialize_from=(part,)), data, 0, stages=results)
