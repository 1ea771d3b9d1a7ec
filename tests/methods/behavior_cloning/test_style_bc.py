"""Styles of places: the contrast against its closed form, and which parts adapt to a new place."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.checkpoint import FromStage
from understudy.core import Batch, DataError, Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Stage, with_steps
from understudy.methods import find_method
from understudy.methods.behavior_cloning.style_bc import NumberTasks, StyleContrast, StyleEncoder

STATE = "observation.state"


def test_the_contrast_is_the_cross_entropy_of_the_others_of_the_same_place():
    rng = np.random.default_rng(0)
    styles = rng.normal(size=(5, 3))
    styles /= np.linalg.norm(styles, axis=1, keepdims=True)
    places = [2, 7, 2, 2, 9]  # the last is alone
    expected = []
    for i in range(5):
        similar = {j: np.exp(styles[i] @ styles[j] / 0.5) for j in range(5) if j != i}
        alike = [j for j in similar if places[j] == places[i]]
        expected.append(-np.mean([np.log(similar[j] / sum(similar.values())) for j in alike]) if alike else 0.0)
    batch = Batch({}, torch.zeros(5, 1, 1), torch.ones(5, 1, dtype=torch.bool),
                  {"place": torch.tensor(places).reshape(5, 1, 1)})
    loss = StyleContrast(weight=3.0, temperature=0.5).build(None)
    actual = loss(None, batch, torch.Generator(), {"style": torch.from_numpy(styles).unsqueeze(1)})
    np.testing.assert_allclose(actual, 3 * np.array(expected), rtol=1e-6, atol=1e-9)


def places(numbers, part: str) -> list[Episode]:
    """Two episodes of each place, whose number is added to the action."""
    rng = np.random.default_rng(0)
    data = []
    for place in np.repeat(numbers, 2):
        state = rng.normal(size=(8, 2)).astype(np.float32)
        data.append(Episode({STATE: state, "action": (state[:, :1] + place).astype(np.float32)},
                            {"task": f"place {place}", DATASET_NAME: part}))
    return data


def test_a_new_place_trains_the_parts_of_the_style_alone():
    data = Dataset([*places([0, 1, 2], "known"), *places([5], "new")])
    method = with_steps(find_method("style-bc", data.features()), 2)
    adapted = replace(
        method, transforms=(Filter(DATASET_NAME, equals=("new",)), *method.transforms),
        stages=(Stage("base", method, dataset="known"),),
        initialize_from=(InitializeFrom(FromStage("base"), train=("encoder",), frozen=("encoder.content",)),))
    base = fit_method(method, data.select(range(6)), 0)
    weights = fit_method(adapted, data, 0, stages={"base": base}).policy.state_dict()
    changed = {name.split(".")[1] for name, value in base.policy.state_dict().items()
               if name.startswith("encoder.") and not torch.equal(value, weights[name])}
    assert changed == {"style", "blocks"}
    assert all(torch.equal(value, weights[name]) for name, value in base.policy.state_dict().items()
               if name.startswith("net."))


def test_tasks_are_numbered_by_their_names():
    data = NumberTasks("number").apply(Dataset([*places([7], "new"), *places([0, 1], "known")]))
    assert [int(e.steps["number"][0, 0]) for e in data] == [2, 2, 0, 0, 1, 1]


def test_the_style_changes_the_tokens_and_is_recorded_with_length_one():
    vector = Feature("float32", (2,))
    torch.manual_seed(0)
    encoder = StyleEncoder(width=8, style_width=3).build({STATE: vector, "observation.demonstration.0": vector}, 1)
    obs = {STATE: torch.zeros(2, 1, 2), "observation.demonstration.0": torch.tensor([[[0.0, 1.0]], [[1.0, 0.0]]])}
    first, second = encoder(obs).tokens
    assert first.shape == (1, 8) and not torch.allclose(first, second)
    with pytest.raises(DataError, match="the policy reads no frames of a demonstration"):
        StyleEncoder().build({STATE: vector}, 1)
    with pytest.raises(DataError, match="the policy reads nothing besides frames of a demonstration"):
        StyleEncoder().build({"observation.demonstration.0": vector}, 1)
