"""Gates by doubt: thresholds, who is asked, and what the doubt is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.collections import STATE, Constant, fork, method

from understudy.core import DataError, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.doubt import (
    BuiltEitherGate,
    BuiltQuantileGate,
    Doubt,
    EitherGate,
    EnsembleGate,
    EnsembleSpread,
    QuantileGate,
    RiskGate,
    doubt_along,
    own_steps,
    quantile_threshold,
    success_as_reward,
)
from understudy.improve.gates import GatedActor
from understudy.improve.updates import PerNewStep
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critics.fitted_q import FittedQ
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_collection


@pytest.fixture(scope="module")
def demos() -> Dataset:
    env = fork(6)
    return rollout(env.expert(), env, 6, recording_seed(0))


@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.3, 0.5, 0.99, 1.0])
def test_a_threshold_has_exactly_the_stated_fraction_above_it(fraction):
    for n in (1, 7, 10, 100):
        values = np.random.default_rng(n).permutation(n) * 0.1
        assert (values > quantile_threshold(values, fraction)).sum() == int(fraction * n + 1e-9)
    assert quantile_threshold(np.ones(10), 0.5) == 1  # of equal values none is above


@dataclass(frozen=True)
class Scripted(Doubt):
    """The doubt of each step, the same for all episodes."""

    values: tuple[float, ...]

    def start(self, obs, key):
        return {"step": torch.zeros_like(key)}

    def rate(self, obs, action, state):
        return torch.tensor(self.values)[state["step"] % len(self.values)], {"step": state["step"] + 1}


def test_labels_asked_are_labels_counted():
    """It asks above the threshold, until the doubt is low again. Elsewhere nobody says anything."""
    doubt = Scripted((0, 3, 2, 2, 0, 2, 3, 1, 0, 0, 0, 3))
    expected = [0, 1, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1]
    data = rollout(GatedActor(Constant(0.5), Constant(-0.5), BuiltQuantileGate(doubt, 2.5, 1.5)), fork(2), 3)
    for episode in data:
        assert episode.steps["advised"].tolist() == episode.steps["intervention"].tolist() == expected
        assert episode.steps["doubt"].tolist() == list(doubt.values)
        wanted = np.where(np.array(expected, bool), -0.5, 0.5)  # not asked: that of the policy
        assert np.array_equal(episode.steps["supervisor_action"][:, 0], wanted)
        assert np.array_equal(episode.steps["action"][:, 0], wanted)


def test_either_of_two_gates_may_ask():
    gates = BuiltQuantileGate(Scripted((1, 0, 0)), 0.5, 0.5), BuiltQuantileGate(Scripted((0, 0, 0, 1)), 0.5, 0.5)
    for episode in rollout(GatedActor(Constant(0.5), Constant(-0.5), BuiltEitherGate(gates)), fork(2), 2):
        assert episode.steps["intervention"].tolist() == [t % 3 == 0 or t % 4 == 3 for t in range(12)]
        assert episode.steps["doubt"].tolist() == [float(t % 3 == 0) for t in range(12)]  # that of the first


def test_the_spread_of_an_ensemble_is_a_standard_deviation():
    spread = EnsembleSpread((Constant(0.0), Constant(1.0), Constant(2.0)), torch.tensor([1.0, 2.0]))
    obs, key = {STATE: torch.zeros(4, 2)}, torch.arange(4)
    value, _ = spread.rate(obs, torch.zeros(4, 2), spread.start(obs, key))
    assert value.tolist() == pytest.approx([np.sqrt((2 / 3 + 2 / 3 / 4) / 2)] * 4)


def test_doubt_along_episodes_of_different_lengths_is_that_of_their_steps():
    episodes = [Episode({STATE: np.zeros((n + 1, 2), np.float32), "action": np.zeros((n, 2), np.float32)})
                for n in (2, 5, 3)]
    steps = [(e, np.arange(len(e)) != 1) for e in episodes]
    assert sorted(doubt_along(Scripted((0.0, 1.0, 2.0, 3.0, 4.0)), steps)) == [0, 0, 0, 2, 2, 3, 4]


def test_thresholds_are_those_of_the_steps_at_which_the_policy_acted(demos):
    collected = demos[0].replace({"intervention": np.arange(len(demos[0])) < 3})
    collected = replace(collected, metadata={**collected.metadata, ROUND: 0})
    [(episode, counts)] = own_steps(Dataset([*demos, collected]))
    assert episode is collected or episode.metadata[ROUND] == 0
    assert counts.tolist() == [t >= 3 for t in range(len(counts))] and own_steps(demos) == []


def doubting(gate: QuantileGate | EitherGate, **fields):
    collector = RolloutCollector(2, supervisor="expert", gate=gate)
    return method(CollectionRounds(2, collector, updates=PerNewStep(0.25), initial_updates=3, **fields), Regression())


SMALL_GATES = (EnsembleGate(0.2, n_members=2, steps=3),
               RiskGate(0.2, critic=FittedQ(steps=3, batch_size=8, n_resamples=2)))


@pytest.mark.slow
@pytest.mark.parametrize("gate", [*SMALL_GATES, EitherGate(SMALL_GATES)], ids=["ensemble", "risk", "either"])
def test_they_keep_the_contract_of_data_collection(gate, demos):
    check_collection(doubting(gate), demos, fork)


def test_an_ensemble_doubts_where_no_demonstrations_are():
    """Demonstrations have states from -1 to 1, and actions that these do not explain. Members differ beyond."""
    rng = np.random.default_rng(0)
    data = Dataset([Episode({STATE: rng.uniform(-1, 1, (12, 2)).astype(np.float32),
                             "action": rng.normal(size=(12, 2)).astype(np.float32)}) for _ in range(20)])
    config = PolicyConfig(Regression(), MLP(16, 1), window=Window(1, 1))
    policy = Policy(config, data.features()).fit_statistics(data)
    learner = BehaviorCloning(100, 64).build(policy, 0, 100, data)
    training = SimpleNamespace(learner=learner, stored=data, seed=0, actor=PolicyActor)
    gate = EnsembleGate(0.1, n_members=3, steps=100).build(training, 0)
    rates = [np.mean(doubt_along(gate.doubt, [(e.replace({STATE: factor * e.steps[STATE]}), np.ones(12, bool))
                                              for e in data]) > gate.threshold) for factor in (1, 4)]
    assert rates[0] < 0.3 and rates[1] > 0.7


def test_success_becomes_the_reward_of_a_critic(demos):
    n = len(demos[0])
    success = np.arange(n) >= n - 2
    episode = success_as_reward(demos[0].replace({"next.success": success}))
    assert episode.steps["next.reward"].tolist() == success.astype(float).tolist()
    assert episode.steps["next.terminated"][success].all()
    judged = replace(demos[0].replace({"next.success": None}), metadata={"success": True})  # as a whole, by a person
    assert success_as_reward(judged).steps["next.reward"].tolist() == [0.0] * (n - 1) + [1.0]
    with pytest.raises(DataError, match=r"(?s)no column 'next.success'.*--with ensemble"):
        success_as_reward(replace(judged, metadata={}))


def test_a_release_below_the_budget_is_refused():
    with pytest.raises(UserError, match=r"(?s)EnsembleGate.release.*at least the budget"):
        EnsembleGate(0.4, 0.2)
