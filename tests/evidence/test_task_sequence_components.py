"""The parts of the comparison of components of lifelong learning do what their names say."""

import json

import numpy as np
import torch

from evidence.families.task_sequence import which_components as components
from evidence.families.task_sequence.which_components import ContextDemonstrations, Course, Reservoir
from understudy import config


def test_every_arm_is_configuration_with_other_entries():
    arms = list(components.TABLE.arms.values())
    documents = [json.loads(json.dumps(config.dump(arm))) for arm in arms]
    assert [config.load(document, ("evidence",)) for document in documents] == arms
    assert len({tuple(sorted(document)) for document in documents}) == 1
    assert {(a.replay, a.elastic > 0, a.numbers) for a in arms if not a.joint} >= {
        (replay, elastic, numbers) for replay in (0, 1) for elastic in (0, 1) for numbers in ("none", "detected")}


def test_a_reservoir_keeps_all_steps_equally_likely():
    reservoir = Reservoir(np.random.default_rng(0))
    for start in range(0, 1000, 50):
        numbers = torch.arange(start, start + 50.0).expand(components.N_ORDERS, 50)[..., None]
        reservoir.add(numbers.expand(-1, -1, 17), numbers.expand(-1, -1, 2))
    x, action = reservoir.stored
    assert (x[..., :2] == action).all() and len(action[0, :, 0].unique()) == 200
    assert abs(action[0, :, 0].mean() - 499.5) < 3 * 1000 / 12**0.5 / 200**0.5


def test_networks_choose_the_number_that_predicts_the_expert_best():
    """Networks that know the way to the goals under each number, and contexts under other numbers than their own."""
    numbers, order = np.array([3, 4]), torch.tensor([3, 0, 2, 1, 4])  # the first network has not reached number 4

    def nets(x):
        angle = -order[x[..., 9:].argmax(-1).clamp(max=4)] * (2 * torch.pi / 8)
        cos, sin = angle.cos(), angle.sin()
        first, second = (torch.stack([cos * p[..., 0] - sin * p[..., 1], sin * p[..., 0] + cos * p[..., 1]], -1) + 0.5
                         for p in (x[..., 4:6], x[..., 6:8]))
        return torch.where(x[..., 8:9] > 0.5, second, first)
    rates = components.successes(nets, numbers, 10, 3)
    assert rates[0, :4].min() == rates[1].min() == 1 and rates[0, 4] == 0


def test_detectors_find_contexts_and_random_numbers_grow_at_random():
    data = ContextDemonstrations(4).load(0)
    highest = []
    Course(numbers="detected").learn(data, 0, lambda nets, number: highest.append(number) or np.zeros((3, 5)))
    assert all((number == max(i - 1, 0)).all() for i, number in enumerate(highest))
    _, number = Course(numbers="random", updates=2).learn(data, 0, lambda nets, number: np.zeros((3, 5)))
    assert (number == 4).all()
