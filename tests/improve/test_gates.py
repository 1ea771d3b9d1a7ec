"""Gates and supervisors: who acts, and who advises."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from fixtures.collections import (
    Constant,
    ScriptedPerson,
    collected,
    fork,
    method,
    run,
)
from fixtures.plans import KEY, Clock

from understudy.checkpoint import Scorer
from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, ObservationWrapper, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import (
    CollectionRounds,
    RolloutCollector,
    SupervisorLabels,
)
from understudy.improve.gates import DisagreementGate, GatedActor, HumanGate, RandomGate, ValueGate
from understudy.improve.updates import PerNewStep
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights

STATE = "observation.state"
LIMIT = 12  # steps of an episode


@pytest.fixture(scope="module")
def demos() -> Dataset:
    env = fork(6)
    return rollout(env.expert(), env, 6, recording_seed(0))


def test_a_gate_decides_who_acts_and_the_supervisor_always_advises():
    env = fork(4)
    for gate, fraction in ((None, 0.0), (RandomGate(0.0), 0.0), (RandomGate(1.0), 1.0), (RandomGate(0.8, 0.5), 0.2)):
        actor = GatedActor(Constant(0.01), Constant(-0.01), gate, number=2)
        data = rollout(actor, env, 40)
        acted = np.concatenate([e.steps["intervention"] for e in data])
        action = np.concatenate([e.steps["action"] for e in data])
        assert np.array_equal(action[:, 0] < 0, acted)
        assert all((e.steps["supervisor_action"] == np.float32(-0.01)).all() for e in data)
        assert len(acted) == 40 * LIMIT and abs(acted.mean() - fraction) < (0.08 if 0 < fraction < 1 else 1e-9)
    alone = rollout(GatedActor(Constant(0.01), Constant(-0.01), RandomGate()), fork(1), 3)
    beside = rollout(GatedActor(Constant(0.01), Constant(-0.01), RandomGate()), fork(3), 3)
    assert alone.fingerprint() == beside.fingerprint()


def test_a_person_takes_over_and_gives_back():
    data = rollout(GatedActor(Constant(0.01), ScriptedPerson(Constant(-0.01)), HumanGate()), fork(3), 4)
    for episode in data:
        controlled = [3 <= t < 7 for t in range(LIMIT)]
        assert episode.steps["intervention"].tolist() == controlled
        assert (episode.steps["action"][:, 0] < 0).tolist() == controlled
        assert set(episode.steps) & {"step", "record"} == set()
    for person, words in ((Constant(0.0), "does not say at which steps.*'record'"),
                          (ScriptedPerson(Constant(0.0), says="control"), "does not say at which steps")):
        with pytest.raises(UserError, match=f"(?s)HumanGate.*{words}"):
            rollout(GatedActor(Constant(0.01), person, HumanGate()), fork(3), 1)


class PlannedFrom(Clock):
    """Each step of a plan says which observations it was made from: the oldest of 3 and the newest."""

    action_dim = 2

    def __init__(self):
        super().__init__(horizon=4)
        self.window = Window(3, 4)

    def plan(self, obs, noise, guides=()):
        return obs[STATE][:, [0, -1], 0].unsqueeze(1).expand(-1, 4, -1)


@pytest.mark.parametrize(("replans", "newest"), [(True, [0, 0, 0, 0, 4, 5, 6, 7, 7, 7, 7, 11]),
                                                 (False, [0, 0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8])])
def test_a_policy_plans_from_what_the_supervisor_did_and_remembers_it(replans, newest):
    policy = ObservationWrapper(PolicyActor(PlannedFrom(), RecedingHorizon(4)), {})
    person = ScriptedPerson(Constant(0.0))
    actor, planned = GatedActor(policy, person, HumanGate(), replans=replans), []
    state = actor.start({STATE: torch.zeros(3, 1)}, KEY)
    for t in range(LIMIT):
        _, state = actor.act({STATE: torch.full((3, 1), float(t))}, state)
        planned.append(state["record"]["policy_action"])
    assert torch.stack(planned)[:, 0, 1].tolist() == newest
    assert torch.stack(planned)[:, 0, 0].tolist() == [max(t - 2, 0) for t in newest]


def test_a_policy_learns_what_the_person_did_while_in_control(demos, tmp_path):
    """HG-DAgger: only steps count at which the person acted, and did 0.8. The demonstrations did other things."""
    unmarked = demos.map(lambda e: e.replace({"intervention": np.zeros(len(e), bool)}))
    collector = RolloutCollector(4, supervisor="person", gate=HumanGate())
    gated_method = method(CollectionRounds(2, collector, updates=PerNewStep(4.0)), Regression(), 10)
    gated_method = replace(gated_method,
                           learner=replace(gated_method.learner, sample_weights=ColumnWeights("intervention", 1.0, 0.0),
                                                         batch_size=64,
                                           optimizer=OptimizerConfig(lr=0.01, lr_schedule="constant")))
    policy = run(tmp_path / "run", gated_method, unmarked, person=ScriptedPerson(Constant(0.8)), val_fraction=0.0)
    episodes = collected(tmp_path / "run")[-1]
    assert all(e.steps["intervention"].sum() == 4 for e in episodes)
    planned = policy.plan({STATE: torch.tensor(episodes[0].steps[STATE][None, 3:5])}, torch.zeros(1, 2, 0))
    assert (planned[0, 0] - 0.8).abs().max() < 0.1


def test_labels_are_what_the_supervisor_advised():
    env = fork(4)
    data = rollout(GatedActor(Constant(0.5), env.expert()), env, 3)
    labeled = data.map(SupervisorLabels())
    assert np.array_equal(labeled[0].steps["action"], data[0].steps["supervisor_action"])
    assert "supervisor_action" not in labeled[0].steps
    assert labeled.features()["action"] == env.features["action"]  # its names and unit too
    with pytest.raises(UserError, match="no column 'supervisor_action'"):
        labeled.map(SupervisorLabels())[0]


@dataclass(frozen=True)
class Wrong(Actor):
    """Acts like `Constant(0.0)`, but by `by` from step `first` to before step `last`."""

    first: int
    last: int
    by: float = 1.0

    def start(self, obs, key):
        return {"step": torch.zeros_like(key)}

    def act(self, obs, state):
        is_wrong = (state["step"] >= self.first) & (state["step"] < self.last)
        return (self.by * is_wrong).float().unsqueeze(1).expand(-1, 2), {"step": state["step"] + 1}


def acted(gate, actor, rows: int = 2):
    data = rollout(GatedActor(actor, Constant(0.0), gate), fork(rows), 2)
    schedules = [np.flatnonzero(e.steps["intervention"]).tolist() for e in data]
    assert all(s == schedules[0] for s in schedules) or gate.slip
    return schedules[0]


@pytest.mark.parametrize(("gate", "steps"), [
    (DisagreementGate(0.5), [2, 3]), (DisagreementGate(0.5, hold=4), [2, 3, 4, 5]),
    (DisagreementGate(0.5, delay=3), [5]),  # who notices late still takes over, and sees that it is fine
    (DisagreementGate(0.5, delay=1, hold=3), [3, 4, 5]), (DisagreementGate(1.0), []),
    (DisagreementGate(0.5, scale=(2.5, 2.5)), []), (DisagreementGate(0.5, scale=(0.5, 100.0)), [2, 3])])
def test_a_supervisor_takes_over_where_actions_differ(gate, steps):
    assert acted(gate, Wrong(2, 4)) == steps


def test_a_supervisor_gives_back_only_where_actions_agree_more_closely():
    class Fading(Wrong):
        def act(self, obs, state):
            action = torch.where(state["step"] < 2, 0.0, 2.0 - 0.25 * state["step"]).clamp(0)
            return action.unsqueeze(1).expand(-1, 2), {"step": state["step"] + 1}
    assert acted(DisagreementGate(1.0, release=1.0), Fading(0, 0)) == [2, 3]  # differences 1.5, 1.25, 1, 0.75, ...
    assert acted(DisagreementGate(1.0, release=0.5), Fading(0, 0)) == [2, 3, 4, 5]


def test_slips_are_as_frequent_as_stated_and_do_not_depend_on_rows():
    gate = DisagreementGate(0.5, slip=0.25)
    rows = [rollout(GatedActor(Constant(0.0), Constant(0.0), gate), fork(n), 60) for n in (1, 4)]
    assert rows[0].fingerprint() == rows[1].fingerprint()
    share = np.concatenate([e.steps["intervention"] for e in rows[0]])
    assert abs(share.mean() - 0.25) < 4 * np.sqrt(0.25 * 0.75 / len(share))  # takes over, and gives back, by slips


class NegativeDistance(Scorer):
    """The value of an action is minus its distance to 0."""

    inputs, features = (STATE,), {}

    def forward(self, obs, plan):
        return -plan[:, 0].square().sum(1).sqrt()

    def save(self, folder):
        raise NotImplementedError

    load = save


@dataclass(frozen=True)
class Clumsy(Constant):
    """Acts like `Constant`, and knows that 0 would be right."""

    def act(self, obs, state):
        action, state = super().act(obs, state)
        return action, {**state, "record": {"best_action": torch.zeros_like(action)}}


@pytest.mark.parametrize(("actor", "margin", "hold", "delay", "steps"), [
    (Wrong(2, 4), 1.0, 4, 0, [2, 3, 4, 5]), (Wrong(2, 4), 1.5, 4, 0, []),  # wrong by the root of 2
    (Wrong(2, 12), 1.0, 3, 0, [2, 3, 4, 6, 7, 8, 10, 11]),  # the policy acts once in between
    (Wrong(0, 3), 1.0, 1, 0, [0, 2]), (Wrong(2, 4, -1.0), 1.0, 2, 0, [2, 3]),
    (Wrong(2, 3), 1.0, 2, 1, [3, 4]), (Wrong(2, 12), 1.0, 2, 1, [3, 4, 7, 8, 11])])
def test_a_supervisor_takes_over_where_value_is_lost(actor, margin, hold, delay, steps):
    assert acted(ValueGate(NegativeDistance(), margin, hold, 0.0, delay), actor) == steps


def test_a_value_is_compared_with_that_of_the_right_action():
    gate = ValueGate(NegativeDistance(), 1.0, slip=0.0)
    for supervisor, policy, share in ((Constant(2.0), Constant(2.0), 0.0), (Constant(2.0), Constant(0.0), 0.0),
                                      (Constant(0.0), Constant(2.0), 10 / 12), (Clumsy(2.0), Constant(0.0), 0.0),
                                      (Clumsy(2.0), Constant(2.0), 10 / 12)):
        data = rollout(GatedActor(policy, supervisor, gate), fork(2), 2)
        assert np.mean([e.steps["intervention"] for e in data]) == pytest.approx(share)


def test_slips_of_a_gate_by_value_are_as_frequent_as_stated():
    for action, rate in ((0.0, 0.25), (2.0, 0.75)):  # takes over without a reason, or with one
        data = rollout(GatedActor(Constant(action), Constant(0.0), ValueGate(NegativeDistance(), 1.0, 1, 0.25)),
                       fork(4), 80)
        acts = np.stack([e.steps["intervention"] for e in data])
        free = np.concatenate([np.ones((80, 1), bool), ~acts[:, :-1]], 1)
        assert abs(acts[free].mean() - rate) < 4 * np.sqrt(0.1875 / free.sum())
