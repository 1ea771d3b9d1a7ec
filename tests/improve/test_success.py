"""A classifier of success: its labels, its errors on held-out frames, and the environment in which it decides."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.cli import refused
from fixtures.collections import Constant

from understudy import make
from understudy.cli import main
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.envs.base import EnvWrapper
from understudy.evaluate.rollout import rollout
from understudy.improve.success import (
    ClassifiedSuccess,
    SuccessClassifier,
    SuccessLabels,
    held_out_rates,
    success_classifier,
)
from understudy.learn.fit_method import fit_method
from understudy.learn.method import load_policy, with_steps

STATE = "observation.state"


def episode(n=4, rows=5, **columns):
    steps = {STATE: np.arange(rows, dtype=np.float32)[:, None], "action": np.zeros((n, 1), np.float32), **columns}
    return Episode(steps, {"success": True})


def test_the_frame_after_each_step_is_labeled():
    labeled = SuccessLabels(2)(episode(**{"next.success": np.array([False, False, True, False])}))
    assert labeled.steps[STATE][:4, 0].tolist() == [1, 2, 3, 4]
    assert labeled.steps["succeeds"][:, 0].tolist() == [0, 0, 1, 0] and len(labeled) == 4
    judged = SuccessLabels(3)(episode())  # by a person, as a whole
    assert judged.steps["succeeds"][:, 0].tolist() == [0, 1, 1, 1]
    assert SuccessLabels(9)(episode()).steps["succeeds"].all()
    short = SuccessLabels(1)(episode(rows=4))  # without the frame after the last step
    assert short.steps[STATE][:, 0].tolist() == [0, 1, 2, 3] and short.steps["succeeds"][:, 0].tolist() == [0, 0, 0, 1]
    failed = Episode(episode().steps, {"success": False})
    assert not SuccessLabels(3)(failed).steps["succeeds"].any()


def trained(n_episodes=40):
    """A classifier of states above 1, and labeled episodes that it has not seen."""
    rng = np.random.default_rng(0)

    def labeled():
        state = rng.uniform(-1, 3, (21, 1)).astype(np.float32)
        state += 0.2 * np.sign(state - 1)  # none is near the limit
        return Episode({STATE: state, "action": np.zeros((20, 1), np.float32), "next.success": state[1:, 0] > 1}, {})
    data = [labeled() for _ in range(n_episodes)]
    policy = fit_method(with_steps(success_classifier(), 300), Dataset(data[:30], {}), seed=0).policy
    return SuccessClassifier(policy), Dataset(data[30:], {}).map(SuccessLabels())


def test_errors_are_counted_on_labels():
    classifier, data = trained()
    labels = np.concatenate([e.steps["succeeds"][:, 0] for e in data]) > 0.5
    rates = held_out_rates(classifier, data)
    assert (rates.n_failures, rates.n_successes) == ((~labels).sum(), labels.sum())
    assert rates.n_false == 0 and rates.n_recognized == rates.n_successes
    wrong = data.map(lambda e: e.replace({"succeeds": 1 - e.steps["succeeds"]}))  # every answer is an error
    swapped = held_out_rates(classifier, wrong)
    assert (swapped.n_failures, swapped.n_false) == (labels.sum(), labels.sum()) and swapped.n_recognized == 0
    assert "100.0%" in str(swapped) and f"0 of {(~labels).sum()} with success" in str(swapped)
    state = torch.linspace(-1, 3, 50)[:, None]  # an answer does not depend on the other rows
    assert torch.equal(classifier({STATE: state}), torch.cat([classifier({STATE: row[None]}) for row in state]))


class Silent(EnvWrapper):
    """The fork, which does not say what success is."""

    def __init__(self):
        super().__init__(make("fork", 1))
        self.metadata = {**self.env.metadata, "env": "silent", "success": None}

    def step(self, action):
        out = self.env.step(action)
        out.info.pop("success")
        return out


def test_an_episode_ends_with_the_first_success_that_the_classifier_sees():
    calls = []

    def classify(obs):
        calls.append(obs[STATE])
        return torch.tensor([len(calls) == 5])
    data = rollout(Constant(0.0), ClassifiedSuccess(Silent(), classify), 1)
    assert len(data[0]) == 5 and data[0].metadata["success"] is True
    assert data[0].steps["next.success"].tolist() == [False] * 4 + [True] and data[0].steps["next.terminated"][-1]
    assert np.array_equal(torch.cat(calls), data[0].steps[STATE][1:])  # it sees what a step has led to
    with pytest.raises(UserError, match="says itself what success is"):
        ClassifiedSuccess(make("fork", 1), classify)


ENV = """
from understudy import make as build
from understudy.envs.base import EnvWrapper

class Silent(EnvWrapper):
    def __init__(self, rows):
        super().__init__(build("fork", rows))
        self.metadata = {**self.env.metadata, "env": "silent", "success": None}

    def step(self, action):
        out = self.env.step(action)
        out.info.pop("success")
        return out

def make(rows=1):
    return Silent(rows)
"""


@pytest.mark.slow
def test_a_policy_practices_where_only_a_classifier_says_what_success_is(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "silent_fork.py").write_text(ENV)
    assert main(["record", "fork", "--out", "demos", "--episodes", "30"]) == 0
    tiny = ["--device", "cpu", "--policy.trunk.width", "32", "--policy.trunk.depth", "1"]
    assert main(["train", "bc", "demos", "--out", "run", "--steps", "200", *tiny]) == 0
    name = "understudy.improve.success:success_classifier"
    assert main(["train", name, "demos", "--out", "success", "--steps", "500", *tiny]) == 0

    def improve(*args):
        capsys.readouterr()
        return main(["improve", "run", "--with", "filtered", "--rounds", "1", "--episodes", "3", "--steps", "3",
                     "--compare", "20", "--device", "cpu", *args]), *capsys.readouterr()
    silent = ["--env", "silent_fork:make", "--trust", "silent_fork"]
    assert main(["view", "make", "demos", "--out", "other.json", "--rename", f"{STATE}=observation.other"]) == 0
    assert main(["train", name, "other.json", "--out", "other", "--steps", "500", *tiny]) == 0
    assert main(["train", name, "demos", "--out", "untrained", "--steps", "1", *tiny]) == 0
    refused(improve("--out", "no", *silent), "needs a success signal", "--success RUN")
    refused(improve("--out", "no", *silent, "--success", "run"), "not a classifier of success",
            "success_classifier DATA")
    refused(improve("--out", "no", *silent, "--success", "other"), "--success other", "episodes of this environment")
    refused(improve("--out", "no", *silent, "--success", "untrained"), "does not tell success from failure: ",
            "train it longer")
    refused(improve("--out", "no", "--success", "success"), "fork says itself what success is")
    status, _, err = improve("--out", "better", *silent, "--success", "success")
    assert status == 0, err
    classifier = SuccessClassifier(load_policy("success"))
    episodes = list(open_dataset("better/collection/000000/episodes.npz"))
    for each in episodes:
        answers = classifier({STATE: torch.as_tensor(each.steps[STATE][1:])}).tolist()
        assert answers == each.steps["next.success"].tolist() and any(answers) == each.metadata["success"]
    assert "held-out frames without success are false positives" in err and not (tmp_path / "no").exists()
