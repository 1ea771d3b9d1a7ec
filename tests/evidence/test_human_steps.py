"""Equally many steps of a supervisor, and the world in which it helps."""

import itertools
from dataclasses import replace

import numpy as np

from evidence.worlds.curation import cloning_method
from evidence.worlds.human_steps import HumanStepsCollector, expert_steps, human_steps
from evidence.worlds.peg import WeakPeg
from understudy.data.episode import Episode
from understudy.data.mixture import ROUND
from understudy.envs import make
from understudy.envs.shifts import WeakActuators
from understudy.envs.toys.peg_insertion import PegInsertion, PegInsertionExpert
from understudy.evaluate.rollout import rollout
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.gates import RandomGate
from understudy.improve.retention import RetentionRule
from understudy.improve.updates import PerRound
from understudy.learn.fit_method import fit_method
from understudy.testing import check_env


def test_weak_actuators_are_those_of_the_shift():
    outlines = (0, 1, 2)
    shifted = WeakActuators(PegInsertion(5, tolerance=0.02, outlines=outlines), 0.4)
    expert = PegInsertionExpert(0.02)
    check_env(WeakPeg)
    for ours, theirs in zip(rollout(expert, WeakPeg(5), 10, 3), rollout(expert, shifted, 10, 3), strict=True):
        assert np.array_equal(ours.steps["observation.state"], theirs.steps["observation.state"])


class WatchedGate(RandomGate):
    """The supervisor watches and takes over at random, and labels nothing."""

    needs_attention = True


def test_a_round_ends_with_the_episode_in_which_the_supervisor_reaches_the_steps():
    class Keep(RetentionRule):
        stored: list[Episode]

        def keep(self, data):
            self.stored = list(data)
            return data

    keep = Keep()
    collector = HumanStepsCollector(RolloutCollector(1, supervisor="expert", gate=WatchedGate(0.3)), 12)
    method = replace(cloning_method(1e-3), collection=CollectionRounds(2, collector, updates=PerRound(1),
                                                                       retention=keep))
    env = make("fork", rows=1)
    fit_method(method, rollout(env.expert(), env, 2, 7), 0, env=env)
    collected = [e for e in keep.stored if "acted" in e.metadata]
    assert all(human_steps(e) == np.sum(e.steps["intervention"]) for e in collected)
    for _, group in itertools.groupby(collected, lambda e: e.metadata[ROUND]):
        steps = list(map(human_steps, group))
        assert sum(steps[:-1]) < 12 <= sum(steps) and len(steps) > 1
    starts = {np.asarray(e.steps["observation.state"]).tobytes() for e in collected}
    assert len(starts) == len(collected)


def test_a_round_of_a_policy_that_needs_no_help_ends_as_well():
    collector = HumanStepsCollector(RolloutCollector(1, supervisor="expert", gate=WatchedGate(0.0)), 12, n_most=3)
    method = replace(cloning_method(1e-3), collection=CollectionRounds(1, collector, updates=PerRound(1)))
    env, counts = make("fork", rows=1), []
    fit_method(method, rollout(env.expert(), env, 2, 7), 0, env=env,
               callbacks=[lambda n, learner, metrics: counts.append(metrics.get("round/episodes"))])
    assert [n for n in counts if n] == [3]


def test_demonstrations_have_the_steps_that_were_asked_for():
    env = make("fork", rows=1)
    lengths = list(map(len, expert_steps(env, 50, 7, 100)))
    assert sum(lengths[:-1]) < 50 <= sum(lengths)
