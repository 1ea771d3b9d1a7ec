"""One network as policy, world model and inverse dynamics, and the column that it learns."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import Context, Feature, HeadSpec, UserError
from understudy.data.episode import Episode
from understudy.data.relabel import ConcatColumns
from understudy.data.window import Window
from understudy.heads.denoising.joint_diffusion import JointDiffusion
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_head

EMPTY = Context(torch.zeros(1, 0, 1), torch.zeros(1, 0, dtype=torch.bool))


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_loss_of_both_parts():
    """Each part has its own time; an unknown action is left as noise and has no loss."""
    head, inputs = JointDiffusion(action_size=2), {}
    action = torch.randn(6, 3, 6, generator=rng(1))  # action 2, observation 3, known 1
    action[:, :, -1] = torch.tensor([1.0, 1, 1, -1, -1, -1]).unsqueeze(1)
    action[0, 2, -1] = -1  # unknown at one step: no action of the chunk is shown

    def net(x, t, context):
        inputs.update(x=x, t=t)
        return torch.zeros_like(x)
    loss = head.loss(net, EMPTY, action, torch.ones(6, 3, dtype=torch.bool), rng(2))
    noise = torch.randn(6, 3, 5, generator=rng(2))
    t_action, t_observation = inputs["t"].split(1, -1)
    assert (t_action == t_action[:, :1]).all() and (t_observation == t_observation[:, :1]).all()
    assert (t_action[[0, 3, 4, 5]] == 0).all() and (t_action[1:3] > 0).all() and (t_observation > 0).all()
    assert not torch.equal(t_action[1:3], t_observation[1:3])
    torch.testing.assert_close(inputs["x"][..., :2], t_action * action[..., :2] + (1 - t_action) * noise[..., :2])
    torch.testing.assert_close(inputs["x"][..., 2:],
                               t_observation * action[..., 2:5] + (1 - t_observation) * noise[..., 2:])
    error = (action[..., :5] - noise).square()
    is_known = action[..., -1] > 0
    torch.testing.assert_close(loss, error[..., :2].mean(-1) * is_known + error[..., 2:].mean(-1))


def test_a_shared_time_is_two_equal_times(monkeypatch):
    action, read = torch.randn(4, 3, 6, generator=rng(1)), []
    action[..., -1] = torch.tensor([1.0, 1, 1, -1]).unsqueeze(1)

    def net(x, t, context):
        read.append((x, t))
        return torch.zeros_like(x)
    shared = JointDiffusion(2, times="shared").loss(net, EMPTY, action, torch.ones(4, 3, dtype=torch.bool), rng(2))
    (_, t), = read
    assert torch.equal(t[:3, :, 0], t[:3, :, 1]) and len(t[:, 0, 1].unique()) == 4
    assert (t[3, :, 0] == 0).all()  # an unknown action is noise at any time
    monkeypatch.setattr(torch, "rand", lambda *shape, **options: t[:, :1, 1:].expand(-1, -1, 2))
    each = JointDiffusion(2).loss(net, EMPTY, action, torch.ones(4, 3, dtype=torch.bool), rng(2))
    assert torch.equal(each, shared) and all(map(torch.equal, *read))


@pytest.mark.parametrize("mode", ["policy", "world_model", "inverse_dynamics"])
def test_a_shared_time_reaches_the_joint_mode_alone(mode):
    with pytest.raises(UserError, match=f"one time for both parts.*{mode}"):
        JointDiffusion(2, mode, times="shared")


def test_unknown_actions_may_be_nan():
    """Loss and gradients are those of zeros in their place."""
    head, action = JointDiffusion(action_size=2), torch.randn(4, 3, 6, generator=rng(1))
    action[..., -1] = torch.tensor([1.0, -1, 1, -1]).unsqueeze(1)
    action[0, 2, -1] = -1
    is_unknown = (action[..., -1:] < 0).expand_as(action[..., :2])
    results = []
    for value in (0.0, float("nan")):
        action[..., :2][is_unknown] = value
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = head.build(MLP(8, 1), 6, HeadSpec(3, 1, 1))
        context = Context(torch.zeros(4, 1, 1), torch.ones(4, 1, dtype=torch.bool))
        loss = head.loss(net, context, action, torch.ones(4, 3, dtype=torch.bool), rng(2))
        results.append([loss, *torch.autograd.grad(loss.sum(), list(net.parameters()))])
    assert all(torch.isfinite(value).all() for value in results[1])
    torch.testing.assert_close(*results, rtol=0, atol=0)


@pytest.mark.parametrize("mode, times", [("joint", [(0, 0), (0.5, 0.5)]), ("policy", [(0, 0), (0.5, 0)]),
                                         ("world_model", [(1, 0), (1, 0.5)]), ("inverse_dynamics", [(0, 1), (0.5, 1)])])
def test_modes_differ_in_their_times(mode, times):
    times_read = []

    def net(x, t, context):
        times_read.append(tuple(t[0, 0].tolist()))
        return torch.ones_like(x)
    noise = torch.randn(4, 3, 5, generator=rng())
    out = JointDiffusion(2, mode, n_steps=2).sample(net, EMPTY, noise)
    assert times_read == times
    sampled = torch.tensor([mode != "world_model"] * 2 + [mode in ("joint", "world_model")] * 3)
    torch.testing.assert_close(out[..., :5], noise + sampled)  # a velocity of 1 for a time of 1
    assert not out[..., 5].any() and out.shape == (4, 3, 6)


def test_the_last_component_is_needed():
    with pytest.raises(UserError, match="leaves no observation"):
        JointDiffusion(action_size=2).build(MLP(8), 3, HeadSpec(4, 1, 4))


@pytest.mark.slow
def test_three_models_in_one():
    """The action goes left or right by a coin, and the next observation is 0.2 - action. A third of the actions are
    unknown and recorded as nonsense."""
    head, B = JointDiffusion(action_size=1), 256
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = head.build(MLP(64, 1), 3, HeadSpec(1, 1, 1))
    context = Context(torch.zeros(B, 1, 1), torch.ones(B, 1, dtype=torch.bool))
    optimizer, draw, mask = torch.optim.Adam(net.parameters(), 3e-3), rng(1), torch.ones(B, 1, dtype=torch.bool)
    is_known = torch.arange(B).reshape(B, 1, 1) % 3 > 0
    for _ in range(700):
        action = torch.randint(2, (B, 1, 1), generator=draw) * 1.4 - 0.7 + 0.05 * torch.randn(B, 1, 1, generator=draw)
        target = torch.cat([torch.where(is_known, action, 5.0), 0.2 - action, torch.where(is_known, 1.0, -1.0)], -1)
        loss = head.loss(net, context, target, mask, draw).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    given_actions = torch.cat([torch.full((B // 2, 1, 1), v) for v in (-0.7, 0.7)])
    noise = torch.randn(B, 1, 2, generator=draw)

    @torch.no_grad()
    def sample(mode, noise):
        return replace(head, mode=mode).sample(net, context, noise)[..., :2].unbind(-1)
    action, observation = sample("world_model", torch.cat([given_actions, noise[..., 1:]], -1))
    assert torch.equal(action, given_actions.squeeze(-1))
    assert float((observation - (0.2 - action)).abs().mean()) < 0.15
    action, observation = sample("inverse_dynamics", torch.cat([noise[..., :1], 0.2 - given_actions], -1))
    assert float((action - given_actions.squeeze(-1)).abs().mean()) < 0.15
    action, observation = sample("policy", noise)
    assert float(((action.abs() - 0.7).abs() < 0.25).float().mean()) > 0.85
    assert 0.35 < float((action > 0).float().mean()) < 0.65
    assert torch.equal(observation, noise[..., 1])
    action, observation = sample("joint", noise)
    assert float(((action.abs() - 0.7).abs() < 0.25).float().mean()) > 0.85
    assert float((observation - (0.2 - action)).abs().mean()) < 0.2


# -- the column -----------------------------------------------------------------------------------------------------


def episode(**columns):
    steps = {"action": np.arange(8, dtype=np.float32).reshape(4, 2),
             "observation.state": np.arange(100, 105, dtype=np.float64)[:, None]}  # with the observation after the last
    return Episode({**steps, **columns}, {"number": 3})


@pytest.mark.parametrize("offset, later", [(0, [100, 101, 102, 103]), (1, [101, 102, 103, 104]),
                                           (3, [103, 104, 104, 104]), (9, [104, 104, 104, 104])])
def test_columns_are_joined(offset, later):
    original = episode()
    joined = ConcatColumns(("action", "observation.state"), offset=offset)(original)
    column = joined.steps["joint"]
    assert column.dtype == np.float32
    assert column.tolist() == [[2 * t, 2 * t + 1, later[t], 1] for t in range(4)]
    assert set(original.steps) == {"action", "observation.state"} and set(joined.steps) == {*original.steps, "joint"}
    feature = joined.features()["joint"]
    assert (feature.shape, feature.kind) == ((4,), "vector")


def test_unknown_actions_are_marked():
    action_known = np.array([1, 0, 1, 0])
    joined = ConcatColumns(("action", "observation.state"), known_column="action_known", into="both")(
        episode(action_known=action_known))
    assert joined.steps["both"][:, -1].tolist() == action_known.tolist()


def test_only_numbers_can_be_joined():
    image = np.zeros((5, 4, 4, 3), np.uint8)
    with pytest.raises(UserError, match="observation.images.front"):
        ConcatColumns(("action", "observation.images.front"))(episode(**{"observation.images.front": image}))
    with pytest.raises(UserError, match="nothing"):
        ConcatColumns(("action", "nothing"))(episode())


def test_a_policy_learns_the_joined_column():
    config = PolicyConfig(JointDiffusion(action_size=2, n_steps=2), trunk=MLP(16, 1), window=Window(2, 4),
                          target="joint")
    check_head(config, Feature("float32", (6,)))
