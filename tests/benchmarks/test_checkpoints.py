"""benchmarks/checkpoints.py: the rule on cells that are made up, the average of the weights, and how a person shows."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from folders import BENCHMARKS

from understudy.core import keys
from understudy.execute.actor import Actor

TASKS = ("fork", "push", "people")


@pytest.fixture
def checkpoints(monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process again
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import checkpoints

    yield checkpoints
    sys.modules.pop("checkpoints")


def cell(task: str, method: str, seed: int, last: list[int], least: list[int]) -> dict:
    """A cell in which every choice but "least error" acts as the last checkpoint."""
    success = dict.fromkeys(("last", "rollouts", "averaged", "unaveraged"), last) | {"least error": least}
    return {"task": task, "method": method, "seed": seed, "updates": 2000, "success": success,
            "chosen": {"last": 2000, "least error": 400, "rollouts": 2000}, "seconds": {"all": 36.0},
            "curve": [[400, 0.5, 0.5], [2000, 0.6, 0.5]]}


def cells(better: float, push: float) -> list[dict]:
    """Trainings of `bc`. Of 100 starts 50 succeed with the last checkpoint, and with the one of least error this share
    more, on push another share more."""
    def row(more):
        return [1] * (50 + round(100 * more)) + [0] * (50 - round(100 * more))
    return [cell(task, "bc", seed, row(0), row(push if task == "push" else better + 0.01 * seed))
            for seed in range(6) for task in TASKS]


@pytest.mark.parametrize(("better", "push", "takes_place"), [
    (0.2, 0.2, True), (0.2, -0.04, True), (0.2, -0.06, False), (0.0, 0.0, False), (-0.2, 0.2, False)])
def test_another_checkpoint_must_be_better_and_nowhere_much_worse(checkpoints, better, push, takes_place):
    some = cells(better, push)
    assert checkpoints.is_better(some, "least error") == takes_place
    assert not checkpoints.is_better(some, "rollouts")  # the same as the last
    expected = np.mean([np.mean(c["success"]["least error"]) - 0.5 for c in some])
    assert checkpoints.difference(some, "least error").estimate == pytest.approx(expected)
    if push < better:
        assert checkpoints.least_difference(some, "least error") == (pytest.approx(push), "push")


def test_the_page_says_what_a_run_means_and_how_often_the_error_had_risen(checkpoints, monkeypatch):
    monkeypatch.setattr(checkpoints, "cells_of", lambda size: cells(0.2, 0.2))
    text = checkpoints.page_text(checkpoints.TINY)
    assert "In 18 of them the held-out error had risen at the end, and was lowest after 20%" in text
    assert "they took 0.2 CPU hours" in text
    assert "`RUN` means `RUN/best` for regression, others, otherwise `RUN/last`" in text
    assert "With rollouts it means `RUN/last` for every kind." in text


def test_the_mean_of_the_weights_is_that_since_half_of_the_training(checkpoints):
    watch, layer = checkpoints.Watch(None, 10, 4), torch.nn.Linear(1, 1)
    for step in range(1, 5):
        torch.nn.init.constant_(layer.weight, float(step))
        watch(step, SimpleNamespace(policy=layer), {"loss": 0.0})
        watch(step, SimpleNamespace(policy=torch.nn.Linear(1, 1)), {"validation/energy": 0.0})  # counts nothing
    assert watch.mean.module.weight.item() == pytest.approx(3.5) and watch.unaveraged.weight.item() == 4.0


@dataclass(frozen=True)
class Always(Actor):
    """An expert that always acts the same."""

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        return torch.ones(len(obs["x"]), 1), state


def test_a_person_is_late_pauses_and_has_a_speed(checkpoints):
    person, obs = checkpoints.Person(Always(), tremor=0.0, pause=0.1, paused=3), {"x": torch.zeros(200, 1)}
    state, actions = person.start(obs, keys(0, range(200))), []
    for _ in range(40):
        action, state = person.act(obs, state)
        actions.append(action[:, 0])
    positions = torch.stack(actions, 1)
    speed = positions.amax(1)
    assert (positions[:, 0] == 0).all() and 0.5 < speed.min() < 0.55 and 0.95 < speed.max() < 1
    moves = positions == speed[:, None]
    assert ((positions == 0) | moves).all()
    assert 0.6 < moves[:, 1:].float().mean() < 0.85  # 3 steps of each 13 are pauses
