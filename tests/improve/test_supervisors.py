"""Supervisors: in which units and at which rate they act, and where a policy behind a wrapper has one."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from fixtures.collections import STATE, Constant, collected, fork, method, run

from understudy.checkpoint import FromStage
from understudy.core import Feature, Unsupported, UserError
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.wrappers import BASE_ACTION, ResidualWrapper, is_wrapped
from understudy.heads.likelihood.regression import Regression
from understudy.improve.collection import CollectionRounds, RolloutCollector, SupervisorLabels
from understudy.improve.gates import RandomGate
from understudy.improve.supervisors import acting_method, check_units
from understudy.improve.updates import PerNewStep

COLUMNS = {STATE: Feature("float32", (2,), names=("x", "y"), unit="m"),
           "action": Feature("float32", (2,), names=("x", "y"), unit="m/s")}


@pytest.mark.parametrize(("changes", "rate", "words"), [
    ({}, 20.0, "trained at 20 steps a second, and the environment makes 10"),
    ({"action": replace(COLUMNS["action"], unit="cm/s")}, 10.0, "unit of action are cm/s.*m/s in the environment"),
    ({STATE: replace(COLUMNS[STATE], names=("y", "x"))}, 10.0, "components of observation.state are y, x")])
def test_a_supervisor_in_other_units_or_at_another_rate_is_refused(changes, rate, words):
    with pytest.raises(UserError, match=f"(?s){words}.*->"):
        check_units({**COLUMNS, **changes}, rate, COLUMNS, 10.0)


@pytest.mark.parametrize("supervisor", [COLUMNS, {"action": Feature("float32", (2,))}, {}])
def test_what_is_not_known_is_not_compared(supervisor):
    for rate in (None, 10.0):
        check_units(supervisor, rate, COLUMNS, 10.0)


def test_a_supervisor_that_needs_other_networks_is_refused():
    with pytest.raises(Unsupported, match=r"(?s)network of its stage 'base'.*acts alone"):
        acting_method(method(None, wrapper=ResidualWrapper(FromStage("base"))))


@pytest.mark.parametrize("gate", [None, RandomGate(0.5)], ids=["labels", "takes over"])
def test_a_supervisor_acts_outside_of_a_wrapper(gate, tmp_path):
    """The wrapped policy corrects a base that does 0.25. Its labels are what it would have had to add."""
    env = fork(6)
    demos = rollout(env.expert(), env, 6, recording_seed(0))
    collector = RolloutCollector(3, supervisor="person", gate=gate)
    rounds = CollectionRounds(1, collector, relabel=() if gate else (SupervisorLabels(),), updates=PerNewStep(0.1))
    wrapped = replace(method(rounds, Regression()), wrapper=ResidualWrapper(Constant(0.25), scale=0.5))
    wrapped = replace(wrapped, policy=replace(wrapped.policy, inputs=(STATE, BASE_ACTION)))
    run(tmp_path / "run", wrapped, demos, env=env, person=Constant(0.75), val_fraction=0.0)
    for episode in collected(tmp_path / "run")[0]:
        acts, one = episode.steps["intervention"], pytest.approx(np.ones((len(episode), 2)), abs=1e-6)
        assert is_wrapped(episode, wrapped.wrapper) and np.allclose(episode.steps[BASE_ACTION][:len(episode)], 0.25)
        if gate is None:
            assert episode.steps["action"] == one and not acts.any()
            assert np.allclose(episode.steps["executed_action"], episode.steps["policy_action"])
        else:
            assert episode.steps["supervisor_action"] == one and 0 < acts.mean() < 1
            wanted = np.where(acts[:, None], episode.steps["supervisor_action"], episode.steps["policy_action"])
            assert np.allclose(episode.steps["action"], wanted)
