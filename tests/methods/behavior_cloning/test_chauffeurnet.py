"""Bent paths, losses of distances, and imitation dropout."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import Batch, DataWarning, UserError
from understudy.data.episode import Dataset, Episode
from understudy.envs.toys.lane_driving import BOX_HALF, HALF_WIDTH, RADIUS, clearance
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.sample_weights import ColumnWeights
from understudy.methods.behavior_cloning.chauffeurnet import (
    Bend,
    CollisionLoss,
    ImitationDropout,
    LaneLoss,
    TrajectoryPerturbation,
)
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, check_method

STATE, STEPS = "observation.state", (3, 6, 9)


@pytest.fixture
def straight():
    """A car that drives 0.5 m per step along the center: offset, heading, past offsets, box."""
    path = np.array([0.5 * k if i == 0 else 0 for k in STEPS for i in range(2)], np.float32)
    return Dataset([Episode({STATE: np.zeros((41, 6), np.float32), "action": np.tile(path, (40, 1))})])


def test_the_ends_of_a_bent_path_stay_and_it_passes_the_new_pose():
    bend = Bend(0.4, -0.1, 15, 9)
    np.testing.assert_allclose(bend(np.array([-20, -15, 0, 9, 12])), [0, 0, 0.4, 0, 0], atol=1e-12)
    h = 1e-4
    slopes = [(bend(np.array([t + h])) - bend(np.array([t - h])))[0] / (2 * h) for t in (-15, 0, 9)]
    np.testing.assert_allclose(slopes, [0, -0.1, 0], atol=1e-4)
    t = np.concatenate([np.linspace(-15, -0.01, 500), np.linspace(0.01, 9, 500)])
    second = np.abs(bend(t + h) - 2 * bend(t) + bend(t - h)) / h**2
    assert bend.curvature() == pytest.approx(second[(t < -0.01) | (t > 0.01)].max(), rel=0.05)


def test_made_steps_are_bent_as_their_labels_are(straight):
    made = TrajectoryPerturbation(STEPS, past=(2, 3), max_curvature=0.3).apply(straight)
    assert not made[0].steps["made"].any() and 20 < len(made) < 200
    for e in made[1:]:
        (state, action), slope = (e.steps[k][0] for k in (STATE, "action")), 0.5 * math.tan(e.steps[STATE][0, 1])
        bend = Bend(float(state[0]), slope, 15, 9)
        np.testing.assert_allclose(action[1::2], bend(np.array(STEPS)), atol=1e-5)
        np.testing.assert_allclose(state[2:4], bend(np.array([-1, -2])), atol=1e-5)
        assert action[0::2].tolist() == [1.5, 3.0, 4.5] and not state[4:].any() and action[-1] == pytest.approx(0)
        assert abs(state[0]) <= 0.5 and bend.curvature() / 0.25 <= 0.3 and e.steps["made"].tolist() == [[1]]
    all_turns = TrajectoryPerturbation(STEPS, past=(2, 3), max_curvature=1e6).apply(straight)
    assert len(all_turns) == 201 and max(e.steps[STATE][0, 1] for e in all_turns[1:]) > 1
    with pytest.raises(UserError, match=r"shape \(6,\), but 2 points are \(4,\)"):
        TrajectoryPerturbation((3, 6)).apply(straight)


def test_what_names_no_component_is_refused_and_data_without_a_made_step_are_told(straight):
    with pytest.raises(UserError, match=r"shape \(6,\), and no component 6"):
        TrajectoryPerturbation(STEPS, past=(2, 6)).apply(straight)
    with pytest.raises(UserError, match=r"\(9, 6, 3\) do not increase"):
        TrajectoryPerturbation(STEPS[::-1]).apply(straight)
    policy = Policy(PolicyConfig(Regression()), straight.features())
    with pytest.raises(UserError, match=r"CollisionLoss.box: .* has the shape \(6,\), and no component 7"):
        CollisionLoss((4, 7), BOX_HALF).build(policy)
    with pytest.warns(DataWarning, match="no step is made.*all paths bend more than 1e-06"):
        assert len(TrajectoryPerturbation(STEPS, max_curvature=1e-6).apply(straight)) == 1


def test_the_losses_are_distances_of_points_as_the_world_measures_them():
    rng = np.random.default_rng(0)
    points, box = rng.uniform(-3, 3, (500, 1, 2)).astype(np.float32), np.array([[0.5, 0.9]], np.float32)
    obs = {STATE: torch.zeros(500, 1, 6)}
    obs[STATE][..., 4:] = torch.from_numpy(box)
    collision, lane = CollisionLoss((4, 5), BOX_HALF, RADIUS), LaneLoss(HALF_WIDTH, RADIUS)
    nearest = torch.minimum(*(loss.clearance(torch.from_numpy(points), obs) for loss in (collision, lane)))
    expected = clearance(points[:, 0, 1], box - points[:, 0] * [1, 0])
    np.testing.assert_allclose(nearest[:, 0] - RADIUS, expected, atol=1e-5)


def test_plans_are_penalized_by_how_far_they_leave_the_lane(straight):
    torch.manual_seed(0)
    policy = Policy(PolicyConfig(Regression(), inputs=(STATE,)), straight.features()).fit_statistics(straight)
    batch = Batch({STATE: torch.zeros(1, 1, 6)}, torch.zeros(1, 1, 6), torch.ones(1, 1).bool())
    context, rng = policy.context(batch.obs), torch.Generator()
    planned = policy.codec.decode(policy.sample(context, rng), batch.obs)[0, 0].reshape(3, 2)
    loss = LaneLoss(0.01, 0.3, weight=2.0).build(policy)(policy, batch, rng, {"context": context.tokens,
                                                                             "context_mask": context.mask})
    assert loss.item() == pytest.approx(2 * (0.29 + planned[:, 1].abs()).clamp(min=0).mean().item(), rel=1e-5)


def test_imitation_dropout_tosses_a_coin_per_window_and_update():
    config = ImitationDropout(0.3, ColumnWeights("made", 0.1))
    batch = Batch({}, torch.zeros(2000, 1, 1), torch.ones(2000, 1).bool(),
                  {"index": torch.arange(2000)[:, None], "made": (torch.arange(2000) % 2).reshape(-1, 1, 1)})
    weights, draws = config.build(None, None), []
    for _ in range(2):
        draws.append(weights(batch, None)[:, 0])
        assert torch.equal(weights(batch, None)[:, 0], draws[-1])
        weights.after_update(None)
    for draw in draws:
        assert set(np.round(draw.tolist(), 3)) == {0, 0.1, 1}
        assert (draw == 0).float().mean() == pytest.approx(0.3, abs=0.04)
    assert ((draws[0] == 0) != (draws[1] == 0)).float().mean() == pytest.approx(0.42, abs=0.04)
    learner = BehaviorCloning(batch_size=8, sample_weights=replace(config, weights=ImitationDropout().weights))
    check_learner(learner)


def test_the_method_keeps_its_contract():
    check_method("chauffeurnet")
