"""Trajectories with hidden states and actions: what is hidden, what is given while acting, and the method."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import stats

from understudy import config
from understudy.cli import main
from understudy.core import Unsupported, UserError, keys, take
from understudy.data.augment import RandomMasking
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset
from understudy.data.relabel import ConcatColumns
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.planners import FixedBatch, MaskedGoalPlanner
from understudy.files import write_json
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import training_data
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Inpaint, Policy, PolicyConfig
from understudy.testing import check_executor

STATE, GOAL, LEFT = "observation.state", "observation.goal", "observation.time_left"
HORIZON = 6


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# -- what is hidden ---------------------------------------------------------------------------------------------------


def blank(rows, steps=10):
    return {"x": torch.zeros(rows, steps, 2), "y": torch.zeros(rows, steps, 1), "z": torch.zeros(rows, steps, 1)}


def shown_entries(out):
    return torch.cat([out["x?"], out["y?"]], 1)


@pytest.mark.parametrize("ratio, n_shown", [(0.0, 20), (0.15, 17), (0.55, 9), (0.95, 1), (1.0, 1)])
def test_a_fraction_of_the_entries_is_hidden(ratio, n_shown):
    obs = blank(4000)
    out = RandomMasking(("x", "y"), (ratio,))(obs, rng())
    visible = shown_entries(out)
    assert (visible.sum(1) == n_shown).all()
    assert set(out) == {"x", "y", "z", "x?", "y?"} and all(out[k] is obs[k] for k in obs) and set(obs) == set("xyz")
    for entry in visible.unbind(1):  # each is shown equally often
        assert stats.binomtest(int(entry.sum()), 4000, n_shown / 20).pvalue > 1e-4


def test_each_window_draws_its_ratio_and_its_entries():
    visible = shown_entries(RandomMasking(("x", "y"), (0.2, 0.9))(blank(4000), rng()))
    n_shown = visible.sum(1)
    assert sorted(n_shown.unique().tolist()) == [2, 16]
    assert stats.binomtest(int((n_shown == 2).sum()), 4000, 0.5).pvalue > 1e-4
    pairs = visible[n_shown == 2]  # a state and an action of the same row are no more often together than others
    both = (pairs[:, :10] & pairs[:, 10:]).any(1)
    assert stats.binomtest(int(both.sum()), len(pairs), 10 / (20 * 19 / 2)).pvalue > 1e-4


def test_absent_entries_count_as_hidden_and_are_not_shown():
    obs = blank(500) | {"y?": torch.zeros(500, 10, dtype=torch.bool)}
    obs["y?"][:, :2] = True
    out = RandomMasking(("x", "y"), (0.5,))(obs, rng())
    assert not out["y?"][:, 2:].any() and (shown_entries(out).sum(1) == 10).all()
    out = RandomMasking(("x", "y"), (0.0,))(obs, rng())
    assert (shown_entries(out).sum(1) == 12).all()


@pytest.mark.parametrize("ratios", [(), (1.1,), (0.5, -0.1), (float("nan"),)])
def test_ratios_are_fractions(ratios):
    with pytest.raises(UserError, match="fractions of hidden entries"):
        RandomMasking(("x",), ratios)


# -- what is given while acting ---------------------------------------------------------------------------------------


def episode(seed: int = 0, steps: int = 12) -> Episode:
    """A point moves along a line. An action is ten times a step, and it is the same in the whole episode."""
    generator = np.random.default_rng(seed)
    step = generator.uniform(-0.1, 0.1)
    state = (generator.uniform(-0.2, 0.2) + step * np.arange(steps + 1)).astype(np.float32)[:, None]
    return Episode({STATE: state, "action": 10 * np.diff(state, axis=0)})


DATA = Dataset([episode(i) for i in range(100)]).map(ConcatColumns(("action", STATE), offset=0))
CONFIG = PolicyConfig(Regression(), MLP(16, 1), TokenEncoder(8), inputs=(STATE, "action"), target="joint",
                      window=Window(HORIZON, HORIZON, obs_offset=HORIZON - 1, obs_pad_mask=True),
                      augmentations=(RandomMasking((STATE, "action")),))


def new_policy(**changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Policy(replace(CONFIG, **changes), DATA.features()).fit_statistics(DATA).eval()


def observed(rows, time_left):
    return {STATE: torch.randn(rows, 1, 1, generator=rng(1)), GOAL: torch.randn(rows, 1, 1, generator=rng(2)),
            LEFT: torch.as_tensor(time_left, dtype=torch.float32).expand(rows).reshape(rows, 1, 1)}


@torch.no_grad()
def test_the_state_is_given_now_and_the_goal_where_it_is_due(monkeypatch):
    policy, observations = new_policy(), []
    plan = policy.plan
    monkeypatch.setattr(policy, "plan", lambda obs, noise, guides=(): observations.append(obs) or plan(obs, noise))
    planner, obs = MaskedGoalPlanner(policy), observed(6, [-1, 0, 1, 3, 5, 40])
    planned_actions = planner.plan(obs, torch.zeros(6, HORIZON, 0))
    (window_obs,) = observations
    rows = [1, 1, 1, 3, 5, 5]  # a goal that is due is given at the next row, and one beyond the window at the last
    assert [mask.nonzero().flatten().tolist() for mask in window_obs[f"{STATE}?"]] == [[0, row] for row in rows]
    assert torch.equal(window_obs[STATE][:, 0], obs[STATE][:, 0])
    assert torch.equal(window_obs[STATE][range(6), rows], obs[GOAL][:, 0])
    assert not window_obs["action?"].any() and window_obs["action"].shape == (6, HORIZON, 1)
    whole = plan(window_obs, torch.zeros(6, HORIZON, 0))
    assert whole.shape == (6, HORIZON, 3)
    assert torch.equal(planned_actions, whole[..., :1])  # action, state, whether it is known
    hidden = {k: torch.where(window_obs[f"{k}?"].unsqueeze(-1), window_obs[k], 7.0) for k in (STATE, "action")}
    assert torch.allclose(plan({**window_obs, **hidden}, torch.zeros(6, HORIZON, 0)), whole, atol=1e-6)


@torch.no_grad()
def test_the_planner_observes_one_step_and_plans_actions():
    policy = new_policy()
    planner, key = MaskedGoalPlanner(policy), keys(0, range(5))
    assert planner.inputs == (STATE, GOAL, LEFT) and planner.window == Window(1, HORIZON) and planner.action_dim == 1
    assert torch.equal(planner.action_scale, policy.action_scale[:1])
    obs, noise = observed(5, 3), planner.noise(key, torch.zeros_like(key))
    actions = planner.plan(obs, noise)
    assert torch.allclose(FixedBatch(planner, 2).plan(obs, noise), actions, atol=1e-5)
    assert torch.allclose(planner.plan(take(obs, [3]), take(noise, [3]))[0], actions[3], atol=1e-5)
    actor, now = PolicyActor(planner), {k: v[:, 0] for k, v in obs.items()}
    action, _ = actor.act(now, actor.start(now, key))
    assert torch.allclose(action, actions[:, 0], atol=1e-5)
    with pytest.raises(Unsupported, match="guides of actions cannot change a plan of states and actions"):
        planner.plan(obs, noise, (Inpaint(torch.zeros(5, HORIZON, 1), torch.ones(5, HORIZON)),))
    with pytest.raises(Unsupported, match="none for actions alone"):
        planner.context(obs)
    with pytest.raises(Unsupported):
        actor = PolicyActor(planner, RealTimeChunking(1))
        state = actor.start(now, key)
        for _ in range(3):
            _, state = actor.act(now, state)


def test_executor_contract():
    check_executor(RecedingHorizon(1), replace(CONFIG, target="action"), inference=(MaskedGoalPlanner(),))


@pytest.mark.parametrize("changes, said", [
    ({"window": Window(HORIZON, HORIZON, action_offset=1 - HORIZON)}, "must observe the rows that it predicts"),
    ({"window": Window(1, 1)}, "at least two"),
    ({"inputs": (STATE,), "augmentations": ()}, f"must read {STATE} and action")])
def test_policies_that_do_not_fit_are_refused(changes, said):
    with pytest.raises(UserError, match=said):
        MaskedGoalPlanner(new_policy(**changes))


def test_a_target_without_an_action_is_refused():
    wide = Dataset([e.replace({"action": np.tile(e.steps["action"], (1, 2))}) for e in DATA])
    policy = Policy(replace(CONFIG, target=STATE), wide.features())
    with pytest.raises(UserError, match="predicts 1 numbers, but 'action' has 2"):
        MaskedGoalPlanner(policy)


def test_statistics_are_those_of_all_steps_also_of_short_episodes():
    short = Dataset([episode(i, steps=4) for i in range(20)]).map(ConcatColumns(("action", STATE), offset=0))
    policy = Policy(CONFIG, short.features()).fit_statistics(short)
    steps = {k: np.concatenate([e.steps[k][:4] for e in short])[None] for k in (STATE, "action")}
    coded = policy.codec.encode_obs({k: torch.from_numpy(v) for k, v in steps.items()})
    for column in coded.values():
        assert abs(float(column.mean())) < 1e-4 and abs(float(column.std(correction=0)) - 1) < 1e-3


# -- the method -------------------------------------------------------------------------------------------------------


def small(method, steps: int = 1500):
    """The method with a smaller network, and fewer and smaller updates."""
    policy = replace(method.policy, trunk=MLP(64, 1), encoder=TokenEncoder(16))
    return replace(method, policy=policy, learner=BehaviorCloning(steps, 128, OptimizerConfig(lr=3e-3)))


@pytest.mark.slow
def test_maskdp_arrives_when_it_is_asked_to():
    """The distance of the goal and the number of steps tell the action. The largest ratio leaves two of eight entries.
    """
    data = Dataset([episode(i, steps=6) for i in range(300)])
    result = fit_method(small(find_method("maskdp", horizon=4, ratios=(0.25, 0.5, 0.75))), data, 0)
    for steps in (1.0, 3.0):
        move = torch.linspace(-0.08, 0.08, 9)[:, None] * steps
        obs = {STATE: torch.zeros(9, 1), GOAL: move, LEFT: torch.full((9, 1), steps)}
        action, _ = result.actor.act(obs, result.actor.start(obs, keys(0, range(9))))
        error = (action - 10 * move / steps).abs().mean().item()
        assert error < 0.15, f"{steps} steps: {action.flatten().tolist()}"
    batch = result.policy.windows(training_data(data, result.method)).batch(200, 0)
    hidden = {**batch.obs, "action?": torch.zeros(200, 4, dtype=torch.bool)}
    with torch.no_grad():  # inverse dynamics: all states are given, and no action
        predicted = result.policy.plan(hidden, torch.zeros(200, 4, 0))[..., :1]
    error = ((predicted - batch.action[..., :1]).abs().squeeze(-1) * batch.mask).sum() / batch.mask.sum()
    assert error < 0.2, "a policy that knows nothing has 0.5"


def test_maskdp_trains_and_acts_from_the_command_line(tmp_path, capsys):
    play = make("four_rooms:play", 2, limit=20)
    write_dataset(rollout(play.expert(), play, 2, seed=1), tmp_path / "data")
    run, method = tmp_path / "run", tmp_path / "method.json"
    write_json(method, config.dump(small(find_method("maskdp", horizon=8), steps=2)))
    assert main(["train", str(method), str(tmp_path / "data"), "--out", str(run)]) == 0, capsys.readouterr()
    assert main(["eval", str(run), "four_rooms", "--episodes", "2"]) == 2
    assert "--condition time_left=NUMBER" in capsys.readouterr().err
    assert main(["eval", str(run), "four_rooms", "--episodes", "2", "--condition", "time_left=20"]) == 0
