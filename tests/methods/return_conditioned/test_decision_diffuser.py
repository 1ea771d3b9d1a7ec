"""Planned states and inverse dynamics, and the method that is made of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy import config
from understudy.cli import main
from understudy.core import Unsupported, UserError, keys, take
from understudy.data.column_changes import LastStep, ReturnToGo
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset
from understudy.data.relabel import NextObservation
from understudy.data.window import Window
from understudy.envs.toys.fork import Fork
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import ObservationWrapper, PolicyActor
from understudy.execute.chunking import RealTimeChunking, RecedingHorizon
from understudy.execute.planners import FixedBatch, Guided, InverseDynamicsPlanner
from understudy.files import write_json
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Stage, training_data
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import ClassifierFreeGuidance, Inpaint, Policy, PolicyConfig

STATE, NEXT, RETURN = "observation.state", "observation.next", "observation.return_to_go"


def episode(seed: int = 0, steps: int = 6, offset: float = 0.0) -> Episode:
    """An action is a tenth of a step. The reward of a step is higher, the faster the first component grows."""
    rng = np.random.default_rng(seed)
    move = rng.uniform(0, 1, 2) * 0.1
    state = offset + np.cumsum(np.concatenate([np.zeros((1, 2)), np.tile(move, (steps, 1))]), 0).astype(np.float32)
    return Episode({STATE: state.astype(np.float32), "action": np.diff(state, axis=0).astype(np.float32) * 10,
                    "next.reward": np.full(steps, 10 * move[0], np.float32)})


DATA = Dataset([episode(i) for i in range(60)])


def parts(**changed):
    """Untrained planners of three states, and of the action between two."""
    data = DATA.map(NextObservation())
    high = PolicyConfig(Flow(3), MLP(16, 1), window=Window(1, 3, action_offset=1), inputs=(STATE,), target=STATE)
    low = PolicyConfig(Regression(), MLP(16, 1), inputs=(STATE, NEXT))
    configs = {"high": high, "low": low} | changed
    return [Policy(configs[name], data.features()).fit_statistics(data).eval() for name in ("high", "low")]


def test_the_next_observation_is_that_of_the_next_row():
    next_states = NextObservation()(episode()).steps[NEXT]
    assert np.array_equal(next_states[:-1], episode().steps[STATE][1:])
    assert np.array_equal(next_states[-1], next_states[-2])
    assert next_states.dtype == np.float32 and len(next_states) == len(episode()) + 1


def test_inverse_dynamics_learn_no_step_whose_next_observation_was_not_recorded():
    method, whole = find_method("decision_diffuser"), episode()
    made, = training_data(Dataset([whole.replace({STATE: whole.steps[STATE][:6]})]), method)
    assert len(made) == 5
    np.testing.assert_allclose(10 * (made.steps[NEXT] - made.steps[STATE])[:5], made.steps["action"], atol=1e-5)


def test_the_target_return_can_stay_the_same():
    obs, last = {RETURN: torch.tensor([[4.0], [7.0]])}, LastStep(torch.tensor([True, True]), reward=torch.ones(2))
    constant_return = ReturnToGo(subtract_rewards=False)
    state = constant_return.start(obs, torch.arange(2))
    columns, state = constant_return.step({}, last, state)
    assert columns[RETURN].tolist() == [[4.0], [7.0]]
    fixed_return = ReturnToGo(target=3.0, subtract_rewards=False)
    assert fixed_return.step({}, last, fixed_return.start({}, torch.arange(2)))[0][RETURN].tolist() == [[3.0], [3.0]]
    assert ReturnToGo(subtract_rewards=False)(episode()).steps[RETURN].tolist() == ReturnToGo()(
        episode()).steps[RETURN].tolist()


@torch.no_grad()
def test_an_action_is_planned_between_each_two_states():
    high, low = parts()
    planner, key = InverseDynamicsPlanner(high, low), keys(0, range(5))
    assert planner.inputs == (STATE,) and planner.window == Window(1, 3) and planner.action_dim == 2
    obs = {STATE: torch.rand(5, 1, 2)}
    noise = planner.noise(key, torch.zeros_like(key))
    plan = planner.plan(obs, noise)
    states = torch.cat([obs[STATE], high.plan(obs, noise["high"])], 1)
    for i in range(3):
        expected = low.plan({STATE: states[:, i:i + 1], NEXT: states[:, i + 1:i + 2]}, torch.zeros(5, 1, 0))
        assert torch.allclose(plan[:, i], expected[:, 0], atol=1e-5)
    assert torch.allclose(FixedBatch(planner, 2).plan(obs, noise), plan, atol=1e-5)
    one = planner.plan(take(obs, torch.tensor([3])), take(noise, torch.tensor([3])))
    assert torch.allclose(one[0], plan[3], atol=1e-5)
    guided = InverseDynamicsPlanner(Guided(high, (ClassifierFreeGuidance((STATE,), 0.0),)), low)
    assert not torch.allclose(guided.plan(obs, noise), plan, atol=1e-4)


def test_each_action_has_its_own_noise():
    high, low = parts(low=PolicyConfig(Flow(2), MLP(16, 1), inputs=(STATE, NEXT)))
    key = keys(0, range(2))
    noise = InverseDynamicsPlanner(high, low).noise(key, torch.zeros_like(key))["low"]
    assert noise.shape == (2, 3, 1, 2) and len(noise.flatten().unique()) == noise.numel()


def test_planners_that_do_not_fit_are_refused():
    high, low = parts()
    for name, changed, message in (
            ("high", replace(high.config, window=Window(1, 3)), "action_offset=0"),
            ("low", replace(low.config, window=Window(1, 2)), "read 1 steps and plan 2"),
            ("low", replace(low.config, inputs=(STATE,)), f"must read {STATE} and {NEXT}")):
        with pytest.raises(UserError, match=message):
            InverseDynamicsPlanner(*parts(**{name: changed}))
    wider = DATA.map(lambda e: e.replace({"observation.time": np.zeros((len(e) + 1, 1), np.float32)}))
    other = Policy(replace(high.config, target="observation.time"), wider.features()).fit_statistics(wider)
    with pytest.raises(UserError, match=f"plans 1 numbers, but '{STATE}' has 2"):
        InverseDynamicsPlanner(other, low)


def test_executors_cannot_guide_actions_that_follow_from_states():
    planner = InverseDynamicsPlanner(*parts())
    obs, key = {STATE: torch.rand(2, 2)}, keys(0, range(2))
    actor = PolicyActor(planner, RecedingHorizon(2))
    action, _ = actor.act(obs, actor.start(obs, key))
    assert action.shape == (2, 2)
    noise = planner.noise(key, torch.zeros_like(key))
    with pytest.raises(Unsupported, match="guides of actions cannot change a plan of states"):
        planner.plan({STATE: obs[STATE][:, None]}, noise, (Inpaint(torch.zeros(2, 3, 2), torch.ones(2, 3)),))
    with pytest.raises(Unsupported, match="no context for actions alone"):
        planner.context({STATE: obs[STATE][:, None]})
    with pytest.raises(Unsupported):
        actor = PolicyActor(planner, RealTimeChunking(1))
        state = actor.start(obs, key)
        for _ in range(3):
            _, state = actor.act(obs, state)


def small(method, steps: int = 300):
    """The method with smaller networks and fewer updates."""
    learner = BehaviorCloning(steps, 64, OptimizerConfig(lr=3e-3))
    states = method.stages[0].method
    high = replace(states, policy=replace(states.policy, trunk=MLP(64, 1)), learner=learner)
    low = replace(method.policy, trunk=FeedForward((32,)))
    return replace(method, policy=low, learner=learner, stages=(Stage("states", high),))


@pytest.mark.slow
def test_decision_diffuser_moves_as_fast_as_it_is_asked():
    """The return of six steps is the length of the way along the first component, in tenths."""
    method = small(find_method("decision-diffuser", horizon=4, discount=1.0))
    actor, moved = fit_method(method, DATA, 0).actor, []
    for asked_return in (1.0, 5.0):
        start = {STATE: torch.zeros(50, 2), RETURN: torch.full((50, 1), asked_return)}
        action, _ = actor.act(start, actor.start(start, keys(1, range(50))))
        moved.append(action[:, 0].mean().item())
    assert moved[0] < 0.35 and moved[1] > 0.65, f"{moved}, but 1/6 and 5/6 were asked for"


def test_decision_diffuser_trains_and_acts_from_the_command_line(tmp_path, capsys):
    env = Fork(4)
    write_dataset(rollout(env.expert(), env, 4, seed=1), tmp_path / "data")
    run, method = tmp_path / "run", tmp_path / "method.json"
    write_json(method, config.dump(small(find_method("decision-diffuser"), steps=2)))
    assert main(["train", str(method), str(tmp_path / "data"), "--out", str(run)]) == 0
    assert main(["eval", str(run), "fork", "--episodes", "2"]) == 2
    assert "--condition return_to_go=NUMBER" in capsys.readouterr().err
    assert main(["eval", str(run), "fork", "--episodes", "2", "--condition", "return_to_go=1"]) == 0
    out = capsys.readouterr().out  # the mean is that of returns without a discount
    assert "where return_to_go=1 was asked for, in which a reward counts 0.99 times the one before it.\n" in out


def test_the_condition_wrapper_gives_the_return():
    method = small(find_method("decision-diffuser", horizon=3), steps=2)
    actor = ObservationWrapper(fit_method(method, DATA, 0).actor, {RETURN: torch.tensor([2.0])})
    obs = {STATE: torch.zeros(3, 2)}
    action, _ = actor.act(obs, actor.start(obs, keys(0, range(3))))
    assert action.shape == (3, 2) and action.isfinite().all()
