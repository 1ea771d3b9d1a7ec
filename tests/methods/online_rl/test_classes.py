"""Online methods for actions that are classes, by command and in Python."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixtures.staged import call

from understudy import make
from understudy.core import UserError, keys
from understudy.evaluate.evaluation import evaluate, recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import CountingActor, RandomClassActor
from understudy.improve.collection import EpsilonGreedy, random_episodes
from understudy.learn.fit_method import fit_method
from understudy.learn.method import with_steps
from understudy.methods import find_method
from understudy.nets.feed_forward import FeedForward
from understudy.testing import check_collection

SMALL = ("--n-rounds", "2", "--n-steps", "12", "--batch-size", "8")


class Third(CountingActor):
    """Always takes the class 3."""

    def act(self, obs, state):
        return torch.full((len(state["key"]), 1), 3.0), {**state, "count": state["count"] + 1}


@pytest.mark.parametrize("name", ["dqn", "discrete-sac"])
def test_a_command_trains_from_an_environment_alone(name, tmp_path):
    status, text = call("train", name, "--env", "tabular:slippery-grid", "--out", tmp_path / "run", "--random-steps",
                        "20", "--device", "cpu", *SMALL)
    assert status == 0 and "2 rounds" in text


def test_q_learning_from_stored_episodes_alone(tmp_path):
    path, out = tmp_path / "data", tmp_path / "run"
    assert call("record", "tabular:bandit", "--actor", "random", "--out", path, "--episodes", "20")[0] == 0
    status, text = call("train", "dqn", path, "--out", out, "--steps", 3, "--device", "cpu", "--n-rounds", "0",
                        "--batch-size", "8")
    assert status == 0 and not (out / "collection").exists(), text
    assert call("eval", out, "tabular:bandit", "--episodes", "4")[0] == 0


def test_numbers_are_refused():
    data = random_episodes(make("particle", 2, limit=6), 20, 0)
    for name in ("dqn", "discrete-sac", "discrete-cql"):
        with pytest.raises(UserError, match=r"the actions are numbers, .*\n.*sac, td3 and cql"):
            find_method(name, data.features())
    with pytest.raises(UserError, match="the actions of particle are numbers"):
        EpsilonGreedy().build(None, make("particle", 2), None)


def test_the_random_actions_of_a_shorter_training_become_fewer_sooner():
    """As the other numbers of its data collection, by the factor of --steps."""
    method = find_method("dqn", random_episodes(make("tabular:bandit", 2), 20, 0).features())
    short = with_steps(method, method.learner.steps // 10)
    assert short.collection.collector == replace(method.collection.collector, exploration=EpsilonGreedy(0.05, 400))
    sac = find_method("sac", random_episodes(make("particle", 2, limit=6), 20, 0).features())
    assert with_steps(sac, 10).collection.collector == sac.collection.collector


def test_random_classes_are_as_many_as_asked_for():
    actor = RandomClassActor(Third(), (4,), 0.4)
    state, obs = actor.start({}, keys(0, range(8000))), {}
    action, state = actor.act(obs, state)
    shares = [(action == n).float().mean().item() for n in range(4)]
    assert shares == pytest.approx([0.1, 0.1, 0.1, 0.7], abs=0.02)
    again, _ = actor.act(obs, state)
    assert not torch.equal(action, again)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dqn", "discrete-sac"])
def test_stopped_within_and_between_rounds_it_is_the_same_run(name):
    data = random_episodes(make("tabular:slippery-grid", 2), 20, 0)
    method = find_method(name, data.features(), n_rounds=2, n_steps=12)
    method = replace(method, policy=replace(method.policy, trunk=FeedForward((8,))),
                     learner=replace(method.learner, batch_size=8))
    check_collection(method, data, lambda rows: make("tabular:slippery-grid", rows))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dqn", "discrete-sac"])
def test_they_learn_from_random_actions(name):
    """Rule: a mean return at least nine tenths of the way from random actions to the best ones."""
    env = make("tabular:slippery-grid", 8)
    data = random_episodes(env, 1000, 0)
    rare_rewards = {} if name == "dqn" else {"target_entropy": 0.3}
    method = find_method(name, data.features(), n_rounds=15 if name == "dqn" else 30, **rare_rewards)
    if rare_rewards:
        method = replace(method, learner=replace(method.learner, temperature=0.1))
    method = replace(method, policy=replace(method.policy, trunk=FeedForward((64,))), learner=replace(
        method.learner, batch_size=64, optimizer=replace(method.learner.optimizer, lr=1e-3)))
    result = fit_method(method, data, 0, env=env)
    best = rollout(env.expert(), env, 100, recording_seed(1))
    low, high = (sum(float(e.steps["next.reward"].sum()) for e in d) / len(d) for d in (data, best))
    assert evaluate(result.actor, env, 100).returns.estimate > low + 0.9 * (high - low)
