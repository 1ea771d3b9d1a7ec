"""The parts of the comparison of stored steps do what their names say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from claims.task_sequence import what_to_store as sequence

from evidence.families.task_sequence.what_to_store import OfflineSequence, Steps, learned_weights, observed_in, world
from understudy.core import keys
from understudy.data.episode import Dataset, Episode

STATE = "observation.state"


def episode(task, number, n=4, success=False):
    """A walk that ends at the second goal if it succeeds. Actions name the task and the episode."""
    first, second = np.array(world(task, 1).goals, np.float32)
    at = np.linspace(first, second if success else first + 0.1, n + 1)
    state = np.concatenate([at, 0 * at, first + 0 * at, second + 0 * at, np.ones((n + 1, 1))], 1).astype(np.float32)
    return Episode({STATE: state, "action": np.tile(np.float32([task, number]), (n, 1)),
                    "next.terminated": np.arange(n) == n - 1 if success else np.zeros(n, bool)})


def small_data():
    return Dataset([episode(task, number, success=number == 1) for task in range(4) for number in range(3)])


def test_goals_are_at_the_same_places_in_the_frames_of_all_tasks():
    for task in range(4):
        state = world(task, 1).reset(torch.tensor([0]), keys(0, [0]))[STATE]
        observed = observed_in(torch.tensor([2 * task]), state)[0]
        assert observed[4:8].tolist() == pytest.approx([0.35, 0.0, 0.0, 0.35], abs=1e-6)


def test_rewards_add_up_to_the_way_to_the_goals():
    steps = Steps(small_data())
    way = 0.35 * 2**0.5
    for task in range(4):
        rewards = steps.reward[steps.begin[task]:steps.begin[task + 1]].unflatten(0, (3, 4))
        assert rewards[1].sum().item() == pytest.approx(way, abs=1e-5)
        assert rewards[0].sum() < 0.5 * way
    assert (steps.discount == 0).nonzero().flatten().tolist() == [7, 19, 31, 43]
    best = sum(way / 4 * 0.95**t for t in range(4))
    assert steps.episode_return[4:8].tolist() == pytest.approx([best] * 4, abs=1e-5)


def test_weights_grow_with_what_an_action_gains():
    """Episodes of one step from one place, whose actions say where it ends."""
    rng, data = np.random.default_rng(0), []
    for task in range(4):
        for action in rng.uniform(0.2, 0.8, (60, 2)).astype(np.float32):
            e = episode(task, 0, n=1)
            state = np.stack([np.append([0.5, 0.5], e.steps[STATE][0, 2:]), np.append(action, e.steps[STATE][0, 2:])])
            data.append(e.replace({STATE: state.astype(np.float32), "action": action[None],
                                   "next.terminated": np.ones(1, bool)}))
    steps = Steps(Dataset([Episode(dict(e.steps)) for e in data]))
    weights = learned_weights(steps, 150, 0)
    for begin in steps.begin[:-1]:
        own = slice(begin, begin + 60)
        ranks = [np.argsort(np.argsort(x[own].numpy())) for x in (weights, steps.reward)]
        assert np.corrcoef(*ranks)[0, 1] > 0.9
        assert weights[own].mean().item() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("arm", [OfflineSequence("random"), OfflineSequence("top return"), OfflineSequence("none"),
                                 OfflineSequence("random", dual=False), OfflineSequence("random", relabel=True),
                                 OfflineSequence(joint=True)])
def test_batches_have_the_new_task_and_stored_steps(monkeypatch, arm):
    batches = []

    def record(nets, x, action, weight):
        batches.append((x[..., 9:].argmax(-1) // 2, action, weight))
        return nets.parameters[0].sum() * 0
    labels = torch.full((48, 2), 9.0)
    monkeypatch.setattr(sequence, "distance", record)
    monkeypatch.setattr(sequence, "learned_weights", lambda steps, updates, seed: 2 + torch.arange(48.0))
    monkeypatch.setattr(sequence, "learned_actions", lambda steps, weights, updates, seed: labels)
    for name in ("WEIGHTS", "ACTIONS"):
        monkeypatch.setattr(sequence, name, sequence.Memo())
    replace(arm, updates=1, n_stored=4).learn(small_data(), 0)
    past, n_new = [set() for _ in range(3)], 128 if arm.joint else 64
    for number, (task, action, weight) in enumerate(batches):
        assert task.shape == (3, n_new + 64 * (number > 0 and arm.selection != "none"))
        new, old = slice(None, n_new), slice(n_new, None)
        assert (weight[:, new] == 1).all() if arm.dual else (weight[:, new] >= 2).all()
        assert (action[:, new] == 9).all() if arm.dual else (action[:, new, 0] == task[:, new]).all()
        assert (weight[:, old] == 1).all()
        assert all(len(set(row)) == (4 if arm.joint else 1) for row in task[:, new].tolist())
        if task.shape[1] > n_new:
            assert all(set(row) == tasks for row, tasks in zip(task[:, old].tolist(), past, strict=True))
            assert (action[:, old, 0] == task[:, old]).all() != arm.relabel
            assert arm.selection != "top return" or (action[:, old, 1] == 1).all()
        for tasks, row in zip(past, task[:, new].tolist(), strict=True):
            tasks.add(row[0])
    assert len(batches) == 4


def test_success_is_that_of_a_network_which_knows_the_goals():
    def expert(x):
        goal = torch.where(x[..., 8:9] > 0.5, x[..., 6:8], x[..., 4:6])
        angle = x[..., 9:].argmax(-1) * -(2 * torch.pi / 8)
        cos, sin = angle.cos(), angle.sin()
        return 0.5 + torch.stack([cos * goal[..., 0] - sin * goal[..., 1], sin * goal[..., 0] + cos * goal[..., 1]], -1)
    assert sequence.successes(expert, 2, 10, 3).min() == 1
    assert sequence.successes(lambda x: x[..., :2] * 0 + 0.5, 2, 10, 3).max() < 0.2
