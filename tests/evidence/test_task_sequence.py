"""The parts of the comparison of task sequences do what their names say."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from evidence.families.task_sequence import what_to_keep as sequence
from evidence.families.task_sequence.what_to_keep import Networks, Sequence, observed_in, rehearsal
from understudy.data.episode import Dataset, Episode


def test_laws_of_rehearsal():
    age = np.array([1.0, 2.0, 7.0])
    assert rehearsal("power", 0.0, age).tolist() == rehearsal("uniform", 1.0, age).tolist() == [1 / 3] * 3
    assert rehearsal("power", 1.0, age).tolist() == pytest.approx([14 / 23, 7 / 23, 2 / 23])
    assert rehearsal("power", -1.0, age).tolist() == pytest.approx([0.1, 0.2, 0.7])
    assert rehearsal("exponential", np.log(2), age).tolist() == pytest.approx([64 / 97, 32 / 97, 1 / 97])


def test_tasks_turn_positions_about_the_center_and_velocities_about_zero():
    state = torch.tensor([0.8, 0.5, 0.1, 0.0, 0.5, 0.5, 0.5, 0.9, 1.0])
    turned = observed_in(torch.tensor(2), state)  # by 90 degrees
    expected = [0.0, 0.3, 0.0, 0.1, 0.0, 0.0, -0.4, 0.0, 1.0, *np.eye(8)[2]]
    assert turned.tolist() == pytest.approx(expected, abs=1e-6)


def test_the_fisher_information_is_the_mean_of_squared_gradients():
    rng = torch.Generator().manual_seed(0)
    nets, x, action = Networks(2, 0), torch.randn(2, 5, 17, generator=rng), torch.randn(2, 5, 2, generator=rng)
    for parameter, fisher in zip(nets.parameters, nets.fisher(x, action), strict=True):
        squares = [torch.autograd.grad((nets(x[:, i:i + 1]) - action[:, i:i + 1]).square().sum(), parameter)[0].square()
                   for i in range(5)]
        torch.testing.assert_close(fisher, torch.stack(squares).mean(0))


@pytest.mark.parametrize("arm", [Sequence(), Sequence("power"), Sequence("uniform", kept=1), Sequence(joint=True)])
def test_batches_have_the_new_task_and_earlier_ones(monkeypatch, arm):
    """Actions name the task and the episode from which a step comes."""
    arm = replace(arm, updates=1)
    data = Dataset([Episode({"observation.state": np.zeros((4, 9), np.float32),
                             "action": np.array([[task, number]] * 3, np.float32)})
                    for task in range(8) for number in range(2)])
    batches = []
    monkeypatch.setattr(Sequence, "_update", lambda self, nets, x, action, anchors: batches.append((x, action)))
    orders, _, _ = arm.learn(data, 0, lambda nets, tasks: np.zeros(tasks.shape))
    assert len(batches) == 80
    for session, (x, action) in enumerate(batches):
        new = torch.from_numpy(orders[:, session // 10])
        assert (x[..., 9:].argmax(-1) == action[..., 0]).all()
        if arm.joint:
            continue
        is_new = action[..., 0] == new[:, None]
        assert is_new[:, :64].all()
        assert is_new[:, 64:].all() if arm.law == "none" or session < 10 else not is_new[:, 64:].any()
        for order, tasks in zip(orders[:, :session // 10], action[:, 64:, 0], strict=True):
            assert arm.law == "none" or session < 10 or tasks.unique().tolist() in [[t] for t in order]
        if arm.kept:
            assert not action[..., 1][~is_new].any()
            assert action[..., 1][is_new].any()


def test_success_is_that_of_a_network_which_knows_the_frames(monkeypatch):
    """The expert, told in which frame it is, succeeds in all tasks, and a resting policy in none."""
    def expert(x):
        angle = x[..., 9:].argmax(-1) * -(2 * torch.pi / 8)
        cos, sin = angle.cos(), angle.sin()
        at, first, second = ((torch.stack([cos * p[..., 0] - sin * p[..., 1], sin * p[..., 0] + cos * p[..., 1]], -1)
                              + 0.5) for p in (x[..., 0:2], x[..., 4:6], x[..., 6:8]))
        return torch.where(x[..., 8:9] > 0.5, second, first) + 0 * at
    tasks = np.array([[0, 3], [7, 5]])
    assert sequence.successes(expert, tasks, 10, 3).min() == 1
    assert sequence.successes(lambda x: x[..., :2] * 0 + 0.5, tasks, 10, 3).max() < 0.2
