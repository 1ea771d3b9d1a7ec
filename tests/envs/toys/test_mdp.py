"""Tabular tasks: exact values against closed forms, against Gymnasium's tables, and against episodes."""

from dataclasses import replace

import gymnasium
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import envs
from understudy.core import UserError, keys
from understudy.envs.toys import mdp
from understudy.envs.toys.tabular import TASKS, Tabular
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.testing import check_env


@pytest.mark.parametrize("task", TASKS)
def test_every_task_keeps_the_contract(task):
    check_env(lambda rows: envs.make(f"tabular:{task}", rows, limit=25))


def test_frozen_lake_is_gymnasiums():
    ours, lake = mdp.slippery_grid(mdp.FROZEN_LAKE, 2 / 3), gymnasium.make("FrozenLake-v1").unwrapped
    number = {(int(x), 3 - int(y)): i for i, (x, y) in enumerate(ours.places)}  # their y counts down
    state = [number[s % 4, s // 4] for s in range(16)]
    for s in range(16):
        if ours.final[state[s]]:
            continue
        for a, own_action in enumerate((2, 3, 0, 1)):  # left, down, right, up
            p, r = np.zeros(16), np.zeros(16)
            for chance, after, reward, _ in lake.P[s][a]:
                p[state[after]] += chance
                r[state[after]] = reward
            np.testing.assert_allclose(ours.transitions[state[s], own_action], p, atol=1e-12)
            np.testing.assert_allclose(ours.rewards[state[s], own_action] * (p > 0), r, atol=0)
    assert ours.best_success(10_000) == pytest.approx(14 / 17, abs=1e-6)  # 0.8235, the known optimum


def visits(process, policy, horizon):
    """Probability of each state and action at each step, (horizon, states, actions)."""
    probabilities, at = np.zeros((horizon, process.states, process.actions)), process.start * ~process.final
    for t in range(horizon):
        probabilities[t] = at[:, None] * (policy if policy.ndim == 2 else policy[horizon - 1 - t])
        at = np.einsum("sa,sat->t", probabilities[t], process.transitions) * ~process.final
    return probabilities


def test_closed_forms():
    one = mdp.bandit((0.3, 0.8))
    assert one.action_values(1)[0, 0].tolist() == pytest.approx([0.3, 0.8]) and one.best_success(1) == 0.8
    assert one.action_values(9)[8, 0].tolist() == pytest.approx([0.3, 0.8])  # nothing follows
    even = np.full((12, 2), 0.5)
    rope = mdp.tightrope(10)
    assert rope.expected_return(even, 10) == pytest.approx(1 - 2.0**-10)  # 1/2 + 1/4 + ...
    assert mdp.tightrope(10, recoverable=True).expected_return(even, 10) == pytest.approx(5)
    assert rope.best_success(10) == 1 and rope.best_success(9) == 0
    lock = mdp.combination_lock(6, 4)
    assert lock.expected_return(np.full((8, 4), 0.25), 6) == pytest.approx(0.25**6)
    assert lock.expected_return(lock.best_policy(6), 6, discount=0.9) == pytest.approx(0.9**5)
    # with resets, the lock opens after (4^7 - 4) / 3 steps on average: a run of six right actions
    chances = visits(lock, np.full((8, 4), 0.25), 200_000).sum((1, 2))
    assert chances.sum() == pytest.approx((4**7 - 4) / 3, rel=1e-9)
    tree = mdp.combination_lock(6, 4, resets=False)
    assert visits(tree, np.full((8, 4), 0.25), 100)[:, :6].sum() == pytest.approx(sum(0.25**t for t in range(6)))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 12), st.floats(0, 1))
def test_the_best_policy_is_best_and_visits_give_its_return(seed, horizon, discount):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.ones(5), (5, 3))
    final = np.array([False, False, False, False, True])
    process = mdp.MDP(p, rng.normal(size=(5, 3, 5)), rng.dirichlet(np.ones(5)), final, final, rng.normal(size=(5, 2)))
    best, other = process.best_policy(horizon, discount), rng.dirichlet(np.ones(3), (horizon, 5))
    assert process.expected_return(best, horizon, discount) >= process.expected_return(other, horizon, discount) - 1e-9
    at_once = np.einsum("sat,sat->sa", process.transitions, process.rewards)
    weights = discount ** np.arange(horizon)[:, None, None]
    assert process.expected_return(other, horizon, discount) == pytest.approx(
        (weights * visits(process, other, horizon) * at_once).sum(), abs=1e-9)
    assert 0 <= process.best_success(horizon) <= 1 + 1e-12


@pytest.mark.parametrize("task, options", [("slippery-grid", {"layout": mdp.FROZEN_LAKE, "slip": 0.4}),
                                           ("object-world", {}), ("bandit", {}), ("hidden-grid", {"slip": 0.3})])
def test_episodes_have_the_exact_return(task, options):
    env = Tabular(400, 30, task, **options)
    rate = 0.3
    policy = (1 - rate) * env.mdp.best_policy(30, env.discount) + rate / env.mdp.actions

    class Mixed(Actor):
        def start(self, obs, key):
            return {"expert": env.expert().start(obs, key), "rng": torch.Generator().manual_seed(0)}

        def act(self, obs, state):
            number = obs["simulator.state"][:, 0].long()
            to_go = 29 - state["expert"]["count"]
            p = torch.from_numpy(policy)[to_go, number]
            action = torch.multinomial(p, 1, generator=state["rng"])
            return action, {**state, "expert": {**state["expert"], "count": state["expert"]["count"] + 1}}
    returns = [float(e.steps["next.reward"].sum()) for e in rollout(Mixed(), env, 400, seed=1)]
    error = np.std(returns) / 20
    assert np.mean(returns) == pytest.approx(env.mdp.expected_return(policy, 30), abs=4 * error + 1e-9)


def test_the_expert_knows_how_many_steps_remain():
    """Two goals: a near one of little reward and a far one of much."""
    process = mdp.slippery_grid(("G...G",), 0.0)
    rewards = process.rewards.copy()
    rewards[:, :, int(process.places[:, 0].argmax())] *= 5
    process = replace(process, rewards=rewards, start=np.eye(5)[1])
    for limit, total in ((2, 1.0), (3, 5.0)):
        env = Tabular(1, limit, process, discount=1.0)
        assert [e.steps["next.reward"].sum() for e in rollout(replace(env.expert(), noise=0.0), env, 1)] == [total]


def test_hidden_cells_look_alike_and_the_whole_grid_does_not():
    assert len(np.unique(mdp.hidden_grid().visible_numbers, axis=0)) < mdp.hidden_grid().states
    assert len(np.unique(mdp.slippery_grid().visible_numbers, axis=0)) == mdp.slippery_grid().states


def test_what_is_wrong_is_named():
    good = mdp.bandit()
    with pytest.raises(UserError, match=r"transitions\[0, 2\].*"):
        replace(good, transitions=good.transitions * np.array([1, 1, 0.5])[None, :, None])
    with pytest.raises(UserError, match="rewards have shape"):
        replace(good, rewards=good.rewards[0])
    with pytest.raises(UserError, match="not final"):
        replace(good, final=np.zeros(3, bool))
    with pytest.raises(UserError, match="there are slippery-grid, bandit"):
        envs.make("tabular:rope")
    with pytest.raises(UserError, match="does not take the options"):
        envs.make("tabular:bandit", slip=0.1)
    with pytest.raises(UserError, match="'x'"):
        envs.make("tabular", layout=("..x", "..G"))
    with pytest.raises(UserError, match="differ in length"):
        envs.make("tabular", layout=("..", "..G"))
    env = Tabular(1, 5)
    with pytest.raises(UserError, match="no state 99"):
        env.restore(torch.tensor([0]), {"simulator.state": torch.tensor([[99.0, 0, 0, 0, 0]])})
    assert env.reset(torch.tensor([0]), keys(0, [0]))["observation.state"].sum() == 1
