"""UWM and PAD: one network of actions and later states learns also from episodes without actions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from understudy.core import DataError, Feature, Unsupported, UserError, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.missing_actions import KnownActions
from understudy.data.window import Window
from understudy.evaluate.action_prediction import evaluate_action_prediction
from understudy.execute.joint_plans import JointPlanner
from understudy.execute.planners import FixedBatch
from understudy.heads.denoising.joint_diffusion import JointDiffusion
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.method import training_data, with_steps
from understudy.learn.train import train
from understudy.learn.validation import Validation
from understudy.methods import find_method
from understudy.nets.mlp import MLP
from understudy.policy import Inpaint, Policy, PolicyConfig

STATE = "observation.state"


def walk(seed, kept=True, steps=20):
    """Each action moves halfway to the middle, and a little at random."""
    rng, position = np.random.default_rng(seed), [np.zeros(2)]
    position[0] = rng.uniform(-1, 1, 2)
    for _ in range(steps):
        position.append(0.5 * position[-1] + rng.uniform(-0.1, 0.1, 2))
    states = np.array(position, np.float32)
    return Episode({STATE: states, **({"action": np.diff(states, axis=0)} if kept else {})})


HALF = Dataset([walk(i, i % 2 == 0) for i in range(60)])


def small_uwm(steps, name="uwm"):
    method = find_method(name, HALF.features(), n_obs_steps=1, horizon=1, n_action_steps=1)
    return with_steps(replace(method, policy=replace(method.policy, trunk=MLP(64, 2))), steps)


# -- acting -----------------------------------------------------------------------------------------------------------


class ActionFollowsState(nn.Module):
    """The velocity of the action is the noisy state, and that of the state is 1."""

    def forward(self, x, t, context):
        return torch.cat([x[..., 2:], torch.ones_like(x[..., 2:])], -1)


@torch.no_grad()
@pytest.mark.parametrize("mode, rise", [("policy", 0.0), ("joint", (0 + 0.25 + 0.5 + 0.75) / 4)])
def test_the_state_is_noise_or_is_sampled_too(mode, rise):
    data = training_data(HALF, find_method("uwm", HALF.features()))
    config = PolicyConfig(JointDiffusion(2, n_steps=4), MLP(8, 1), target="joint", window=Window(1, 3))
    policy = Policy(config, data.features()).fit_statistics(data).eval()
    planner, obs, noise = JointPlanner(policy, mode), {STATE: torch.zeros(5, 1, 2)}, torch.rand(5, 3, 4) / 4
    plan = planner.plan(obs, noise)
    assert torch.equal(plan, policy.with_head(replace(config.head, mode=mode)).plan(obs, noise)[..., :2])
    torch.testing.assert_close(FixedBatch(planner, 2).plan(obs, noise), plan)
    policy.net = ActionFollowsState()
    plan, coded = planner.plan(obs, noise), noise[..., :2] + noise[..., 2:] + rise
    torch.testing.assert_close(plan, policy.decode(torch.cat([coded, torch.zeros(5, 3, 3)], -1), obs)[..., :2])
    assert planner.action_dim == 2 and torch.equal(planner.action_scale, policy.action_scale[:2])
    with pytest.raises(Unsupported, match="actions and observations"):
        planner.plan(obs, noise, (Inpaint(torch.zeros(5, 3, 2), torch.ones(5, 3)),))
    with pytest.raises(Unsupported, match="no codec"):
        planner.encode(plan, obs)


def test_a_policy_of_actions_alone_is_refused():
    policy = Policy(PolicyConfig(Regression()), {STATE: Feature("float32", (2,)), "action": Feature("float32", (2,))})
    with pytest.raises(UserError, match="head JointDiffusion, and not Regression"):
        JointPlanner(policy)
    with pytest.raises(UserError, match="not JointPlanner"):
        JointPlanner(JointPlanner(Policy(small_uwm(1).policy, training_data(HALF, small_uwm(1)).features())))


# -- what it learns from ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", ["absent", "nan"])
def test_each_action_stands_beside_the_state_that_follows_it(unknown):
    """Without an observation after the last action, an episode without actions ends one step earlier."""
    whole, partly, hidden = walk(0), walk(1), walk(2)
    action = partly.steps["action"].copy()
    action[[0, 3]] = np.nan
    hidden = hidden.replace({"action": None if unknown == "absent" else np.full_like(action, np.nan)})
    short = hidden.replace({STATE: hidden.steps[STATE][:20]})
    data = Dataset([whole, partly.replace({"action": action}), hidden, short])
    joined = training_data(data, find_method("uwm", data.features()))
    assert [len(e) for e in joined] == [20, 20, 20, 19]
    for episode in joined:
        n = len(episode)
        assert episode.steps["joint"].shape == (n, 5) and np.isfinite(episode.steps["joint"]).all()
        np.testing.assert_array_equal(episode.steps["joint"][:, 2:4], episode.steps[STATE][1:n + 1])
    known = [e.steps["joint"][:, -1] for e in joined]
    assert known[0].all() and not known[2].any() and not known[3].any()
    assert np.flatnonzero(known[1] == 0).tolist() == [0, 3]
    for episode, source in zip(joined[:2], data[:2], strict=True):
        kept = episode.steps["joint"][:, -1] == 1
        np.testing.assert_array_equal(episode.steps["joint"][kept, :2], source.steps["action"][kept])


def test_placeholders_are_not_learned():
    """The actions of the loss are those that were recorded: other placeholders give the same weights."""
    def weights(seed):
        data = training_data(HALF, small_uwm(5))
        column = [e.steps["joint"].copy() for e in data]
        for joint in column:
            is_unknown = joint[:, -1] == 0
            joint[is_unknown, :2] = np.random.default_rng(seed).uniform(-0.1, 0.1, (is_unknown.sum(), 2))
        data = Dataset([e.replace({"joint": joint}) for e, joint in zip(data, column, strict=True)])
        return fit_method(replace(small_uwm(5), transforms=()), data, 0).policy.state_dict()
    a, b = weights(1), weights(2)
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("name", ["uwm", "pad"])
def test_held_out_errors_leave_out_placeholders_and_count_what_was_recorded(name):
    data = training_data(HALF, small_uwm(1, name))
    policy = Policy(small_uwm(1, name).policy, data.features()).fit_statistics(data)

    def errors(is_changed, components):
        """Errors on four episodes, changed in some steps, as training and `understudy eval` measure them."""
        held_out = []
        for episode in data[:4]:
            joint = episode.steps["joint"].copy()
            joint[np.ix_(is_changed(joint[:, -1]), components)] += 10.0
            held_out.append(episode.replace({"joint": joint}))
        few = Validation(n_windows=16, n_samples=2)
        report = evaluate_action_prediction(policy, Dataset([*held_out, *data[4:]]), range(4), validation=few)
        return few.evaluate(policy, Dataset(held_out))["energy"], report.energy_score.estimate
    unchanged = errors(lambda known: known < 0, [0, 1])
    assert errors(lambda known: known == 0, [0, 1]) == unchanged
    for is_changed, components in ((lambda known: known == 1, [0, 1]), (lambda known: known == 0, [2, 3])):
        assert np.greater(errors(is_changed, components), np.add(unchanged, 0.1)).all()


def test_no_actions_at_all(tmp_path):
    with pytest.raises(DataError, match="first episode has no actions.*\n.*--prior"):
        find_method("uwm", walk(0, kept=False).features())
    nan = Dataset([walk(i).replace({"action": np.full((20, 2), np.nan, np.float32)}) for i in range(6)])
    for data in (nan, Dataset([walk(i, kept=False) for i in range(6)])):
        with pytest.raises(DataError, match="(?s)no episode has actions.*understudy record"):
            fit_method(small_uwm(2), data, 0)
        with pytest.raises(DataError, match="(?s)no episode has actions.*understudy record"):
            KnownActions().apply(data)
    with pytest.raises(UserError, match="no column 'observation.joints'"):
        fit_method(find_method("uwm", column="observation.joints"), HALF, 0)


@pytest.mark.parametrize("name", ["uwm", "pad"])
def test_the_size_of_the_action_is_taken_from_the_columns_or_training_is_refused(name):
    assert find_method(name, HALF.features()).policy.head.action_size == 2
    with pytest.raises(UserError, match=r"(?s)action is not known.*find_method\(\"uwm\", data\.features\(\)\)"):
        fit_method(with_steps(find_method(name), 2), HALF, 0)


@pytest.mark.parametrize("name", ["uwm", "pad"])
def test_a_run_resumes_from_its_files_and_held_out_episodes_may_have_no_actions(name, tmp_path):
    options = {"device": "cpu", "progress": False, "val_fraction": [3]}
    whole = train(small_uwm(8, name), HALF, tmp_path / "whole", **options)

    def stop(update, learner, metrics):
        if update == 5:
            raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt):
        train(small_uwm(8, name), HALF, tmp_path / "stopped", save_freq=2, callbacks=[stop], **options)
    resumed = train(small_uwm(8, name), HALF, tmp_path / "stopped", save_freq=2, **options)
    assert all(torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(),
                                                 strict=True))


def test_pad_plans_both_parts_together():
    data = training_data(HALF, small_uwm(1, "pad"))
    policy = Policy(small_uwm(1, "pad").policy, data.features()).fit_statistics(data).eval()
    with pytest.raises(UserError, match="one time for both parts"):
        JointPlanner(policy)
    (planner,) = find_method("pad").inference
    assert planner.over(policy, {}).mode == policy.config.head.mode == "joint"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uwm", "pad"])
def test_half_of_the_episodes_have_actions(name):
    result = fit_method(small_uwm(1500, name), HALF, 0)
    x = torch.rand(200, 2, generator=torch.Generator().manual_seed(0)) * 2 - 1
    action, _ = result.actor.act({STATE: x}, result.actor.start({STATE: x}, keys(0, range(200))))
    assert float((action + 0.5 * x).norm(dim=-1).mean()) < 0.15
