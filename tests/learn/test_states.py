"""The state of each learner after 20 updates is that of the version in which it was stored."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch
from folders import TESTS
from torch import Tensor

from understudy.core import Batch, Feature
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import training_data
from understudy.methods import find_method, method_files
from understudy.policy import Policy
from understudy.testing.methods import example_columns, example_data, with_trained_stages

FILE = TESTS / "fixtures" / "states.json"
STORED = json.loads(FILE.read_text()) if FILE.exists() else {}
UPDATES = 20


def doubled(value):
    """The same with numbers of 64 bits, which agree on all processors to far below 1e-6."""
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    if isinstance(value, Batch):
        return Batch(**{f.name: doubled(getattr(value, f.name)) for f in fields(value)})
    return {k: doubled(v) for k, v in value.items()} if isinstance(value, dict) else value


def digest(tensors: dict[str, Tensor]) -> dict[str, list[float]]:
    """Of each group of tensors, such as "networks.critic": their sum, and one in which places differ."""
    groups: dict[str, list[Tensor]] = {}
    for name, tensor in tensors.items():
        groups.setdefault(".".join(name.split(".")[:2]), []).append(tensor.double().flatten())
    joined = {name: torch.cat(parts) for name, parts in groups.items()}
    return {name: [value.sum().item(), (value * torch.arange(len(value)).cos()).sum().item()]
            for name, value in joined.items()}


def state_after_updates(name: str) -> dict[str, list[float]]:
    columns = example_columns(name)
    method = find_method(name, columns)
    data = example_data({**{k: Feature("float32", ()) for k in ("next.reward", *method.learner.extra)}, **columns})
    method = with_trained_stages(method, data)
    data = training_data(data, method)
    torch.manual_seed(0)
    policy = Policy(method.policy, data.features()).fit_statistics(data).double()
    learner = method.learner.build(policy, 0, UPDATES, data)
    sampler = learner.batch_sampler(learner.annotate(data, None))
    for step in range(UPDATES):
        learner.update(doubled(sampler.batch(8, step)))
    return digest(learner.state()[0])


@pytest.fixture(autouse=True)
def double_precision():
    with pytest.MonkeyPatch.context() as changes:
        compute_in_double_precision(changes)
        yield
    torch.set_default_dtype(torch.float32)


def compute_in_double_precision(changes: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float64)
    changes.setattr(Tensor, "float", Tensor.double)  # learners compute losses as float32


@pytest.mark.parametrize("name", STORED)
def test_state(name):
    state = state_after_updates(name)
    assert list(state) == list(STORED[name])
    for group, numbers in STORED[name].items():
        assert state[group] == pytest.approx(numbers, rel=1e-6, abs=1e-6), group


if __name__ == "__main__":  # writes the file again: python tests/learn/test_states.py
    compute_in_double_precision(pytest.MonkeyPatch())
    names = [n for n in method_files() if not isinstance(find_method(n, example_columns(n)).learner, BehaviorCloning)]
    lines = [f" {json.dumps(name)}: {json.dumps(state_after_updates(name))}" for name in names]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n")
