"""Weights of cloning from learned progress: their formula, and understudy train --progress."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from fixtures.advancing import advancing
from fixtures.staged import call

from understudy.core import Batch, DataError, DataWarning
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.window import Window
from understudy.learn.method import Method, load_modules, load_policy
from understudy.learn.rewards.learned_reward import LearnedReward
from understudy.learn.rewards.progress_weights import PROGRESS_WEIGHT, ProgressWeights, gains_ahead, weights_of_gains
from understudy.learn.sample_weights import StoredWeights
from understudy.learn.train import train

STATE = "observation.state"


def test_the_gain_of_a_step_is_what_it_and_the_next_steps_earn():
    assert gains_ahead(np.array([1.0, 2, 4, -8]), 2).tolist() == [3, 6, -4, -8]
    assert gains_ahead(np.array([1.0, 2, 4]), 9).tolist() == [7, 6, 4]


def test_weights_are_those_by_hand():
    """The mean is 0.02 and the standard deviation 0.04, so that the weight rises from -0.06 to 0.1."""
    gains = np.array([-0.04, 0.0, 0.02, 0.04, 0.08])
    assert (gains.mean(), gains.std()) == pytest.approx((0.02, 0.04))
    np.testing.assert_allclose(weights_of_gains(gains, 0.03), [0, 0.06 / 0.16, 0.08 / 0.16, 1, 1], atol=1e-4)
    for kappa in (0.08, 0.09):
        np.testing.assert_allclose(weights_of_gains(gains, kappa), [0, 0.375, 0.5, 0.625, 0.875], atol=1e-4)
    falling = np.array([-0.3, -0.1, 0.1])  # the mean counts as 0
    std = falling.std()
    np.testing.assert_allclose(weights_of_gains(falling, 0.2)[2], (0.1 + 2 * std) / (4 * std), atol=1e-4)
    assert weights_of_gains(np.zeros(3), 0.01).tolist() == pytest.approx([2 / 5] * 3)  # both are 1e-6 at least


@pytest.mark.parametrize("window, step", [(Window(horizon=4), 0), (Window(2, 4, -1), 1), (Window(1, 4, 1), 0)])
def test_the_weight_of_a_window_is_that_of_its_step(window, step):
    class SomePolicy:
        pass
    SomePolicy.window = window
    stored = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.5, 0.6, 0.7, 0.8]])
    batch = Batch({}, torch.zeros(2, 4, 1), torch.ones(2, 4, dtype=torch.bool), {"w": stored})
    assert torch.equal(StoredWeights("w")(batch, SomePolicy), stored[:, step])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Episodes, some of which go back, and a run of sarm on the others."""
    folder = tmp_path_factory.mktemp("progress")
    data = advancing(12)
    write_dataset(data, folder / "data")
    write_dataset(data.select(i for i, e in enumerate(data) if not e.metadata["goes_back"]), folder / "good")
    status, text = call("train", "sarm", folder / "good", "--out", folder / "sarm", "--steps", 3, "--device", "cpu")
    assert status == 0 and "update 3: loss" in text and "update 3: error" not in text, text
    return folder


def true_model(folder, monkeypatch, scale: float = 1.0):
    """The model of the run, as if it had learned the place."""
    model = load_modules(folder / "sarm")["reward"]
    monkeypatch.setattr(model, "progress", lambda obs: scale * obs[STATE][:, -1, 0])
    return model


def test_steps_are_weighed_by_the_progress_that_the_model_predicts(place, monkeypatch):
    data = open_dataset(place / "data")
    weighted = ProgressWeights(true_model(place, monkeypatch), 4, 0.05).apply(data)
    places = [e.steps[STATE][:, 0] for e in data]
    gains = [p[np.minimum(np.arange(len(p) - 1) + 4, len(p) - 1)] - p[:-1] for p in places]
    expected = weights_of_gains(np.concatenate(gains), 0.05)
    np.testing.assert_allclose(np.concatenate([e.steps[PROGRESS_WEIGHT] for e in weighted]), expected, atol=1e-3)
    assert 0.2 < expected.mean() < 0.9 and PROGRESS_WEIGHT in weighted.features() and weighted.metadata == data.metadata


def test_weights_that_say_nothing_are_told(place, monkeypatch):
    data = open_dataset(place / "good")
    with pytest.warns(DataWarning, match="nearly plain cloning: progress in 20 steps is 0.4"):
        ProgressWeights(true_model(place, monkeypatch), 20).apply(data)
    always_back = data.map(lambda e: e.replace({STATE: np.arange(len(e) + 1, dtype=np.float32)[:, None].repeat(2, 1)}))
    with pytest.raises(DataError, match="no step has a weight above 0: progress in 2 steps is -"):
        ProgressWeights(true_model(place, monkeypatch, scale=-1.0), 2).apply(always_back)


def test_the_rewards_of_an_episode_add_up_to_its_progress(place):
    data, model = open_dataset(place / "good"), load_modules(place / "sarm")["reward"]
    for episode, rewarded in zip(data, LearnedReward(model).apply(data), strict=True):
        rows = np.clip(np.arange(-7, 1) + np.array([[0], [len(episode)]]), 0, None)
        with torch.no_grad():
            first, last = model.progress({STATE: torch.from_numpy(episode.steps[STATE][rows])}).tolist()
        assert 0 < first < 1 and rewarded.steps["next.reward"].sum() == pytest.approx(last - first, abs=1e-5)


@pytest.mark.parametrize(("name", "options", "n_steps", "kappa"), [
    ("act", ("--horizon", 6), 6, 0.01), pytest.param("diffusion-policy", (), 15, 0.01, marks=pytest.mark.slow),
    ("bc", ("--progress-steps", 5, "--progress-kappa", 0.2), 5, 0.2)])
def test_the_command_weighs_by_the_progress_over_a_chunk(name, options, n_steps, kappa, place, tmp_path):
    command = ("train", name, place / "data", "--progress", place / "sarm", "--out", tmp_path, "--steps", 1, "--device",
               "cpu", "--batch-size", 4, *options)
    status, text = call(*command)
    assert status == 0 and "stage learned-progress: taken from its run" in text, text
    method = Method.load(tmp_path)
    weights = method.transforms[0]
    assert (weights.n_steps, weights.kappa) == (n_steps, kappa)
    assert method.learner.sample_weights == StoredWeights(PROGRESS_WEIGHT)
    assert load_policy(tmp_path).inputs == (STATE,)


def test_a_weighted_run_that_was_stopped_continues(place, tmp_path):
    assert call("train", "bc", place / "data", "--progress", place / "sarm", "--out", tmp_path / "run", "--steps", 4,
                "--device", "cpu", "--progress-steps", 4)[0] == 0
    method, data = Method.load(tmp_path / "run"), open_dataset(place / "data")

    def stop(step, learner, metrics):
        if step == 2:
            raise KeyboardInterrupt
    stages = {"learned-progress": place / "sarm"}
    with pytest.raises(KeyboardInterrupt):
        train(method, data, tmp_path / "stopped", stages=stages, callbacks=(stop,), device="cpu")
    train(method, data, tmp_path / "stopped", stages=stages, device="cpu")
    weights = [load_policy(tmp_path / name).state_dict() for name in ("run", "stopped")]
    assert all(torch.equal(weights[0][k], v) for k, v in weights[1].items())


@pytest.mark.parametrize(("name", "options", "message"), [
    ("iql", ("--progress", "sarm"), "--progress: iql does not clone all steps alike"),
    ("bc", ("--progress-kappa", 0.2), "--progress-kappa: needs --progress RUN"),
    ("bc", ("--progress", "bc"), "--progress .*bc: the run has no model of progress\n.*train sarm .*data --out RUN"),
    ("bc", ("--progress", "nowhere"), "nowhere: this is not a trained run"),
])
def test_what_cannot_be_weighed_is_refused(name, options, message, place, tmp_path, monkeypatch):
    monkeypatch.chdir(place)
    if "bc" in options and not (place / "bc").exists():
        assert call("train", "bc", "data", "--out", "bc", "--steps", 1, "--device", "cpu")[0] == 0
    status, text = call("train", name, "data", "--out", tmp_path / "run", "--steps", 1, *options)
    assert status == 2 and re.search(message, text), text
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_cloning_by_progress_does_not_go_back(tmp_path):
    """Steps that go back are a third of those between 0.33 and 0.9 in the bad episodes, which are a third of all."""
    data = advancing(40)
    write_dataset(data, tmp_path / "data")
    write_dataset(data.select(i for i, e in enumerate(data) if not e.metadata["goes_back"]), tmp_path / "good")
    cpu = ("--device", "cpu")
    assert call("train", "sarm", tmp_path / "good", "--out", tmp_path / "sarm", "--steps", 300, *cpu)[0] == 0
    weighted = ProgressWeights(load_modules(tmp_path / "sarm")["reward"], 4).apply(data)
    weights, actions = (np.concatenate([e.steps[name].reshape(-1) for e in weighted])
                        for name in (PROGRESS_WEIGHT, "action"))
    assert weights[actions < 0].mean() < 0.2 < 0.9 < weights[actions > 0].mean()
    for name, options in (("plain", ()), ("weighted", ("--progress", tmp_path / "sarm", "--progress-steps", 4))):
        status, text = call("train", "bc", tmp_path / "data", "--out", tmp_path / name, "--steps", 200, *cpu, *options)
        assert status == 0, text
    place = torch.linspace(0.4, 0.8, 9)
    obs = {STATE: torch.stack([place, (3 * place).sin()], 1)[:, None]}
    plain, by_progress = (load_policy(tmp_path / name).plan(obs, torch.zeros(9, 1, 0)).mean().item()
                          for name in ("plain", "weighted"))
    assert plain < 0.8 and by_progress > 0.95
