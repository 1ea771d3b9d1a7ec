"""Behavior cloning with skills."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy.core import DataError, Feature
from understudy.data.episode import Dataset, Episode
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.behavior_cloning.skill_bc import OBSERVED, PREDICTED, SkillClass
from understudy.nets.mlp import MLP

STATE, ACTIONS = "observation.state", np.array([-1.0, 0.5, 2.0], np.float32)  # one for each skill


def walk(seed, **columns) -> Episode:
    """The skill is 0 below 0, 1 up to 1, and 2 above. Its action is always the same."""
    state = np.random.default_rng(seed).uniform(-1, 2, (41, 1)).astype(np.float32)
    skill = np.digitize(state[:-1, 0], [0, 1])
    return Episode({STATE: state, "action": ACTIONS[skill][:, None], "skill": skill, **columns})


def small(method):
    stages = tuple(replace(stage, method=small(stage.method)) for stage in method.stages)
    return replace(method, policy=replace(method.policy, trunk=MLP(32, 1)), stages=stages,
                   learner=BehaviorCloning(400, 64, OptimizerConfig(lr=3e-3)))


def test_it_acts_as_the_skill_that_is_due():
    """Between two skills no action is the mean of theirs, as that of a network is that reads the state alone."""
    data = Dataset([walk(seed) for seed in range(20)])
    state = torch.linspace(-0.9, 1.9, 57)[:, None]

    def actions(method):
        actor, obs = fit_method(small(method), data, 0).actor, {STATE: state}
        return actor.act(obs, actor.start(obs, torch.arange(57)))[0].numpy()
    acted = actions(find_method("skill-bc", data.features(), n_skills=3))
    nearest = np.abs(acted - ACTIONS)
    assert nearest.min(1).max() < 0.1
    assert (nearest.argmin(1) == np.digitize(state[:, 0], [0, 1])).mean() > 0.9
    plain = replace(find_method("bc", data.features()), transforms=())
    assert np.abs(actions(plain) - ACTIONS).min(1).max() > 0.3


def test_the_policy_that_acts_reads_the_chosen_skill_and_nothing_else_does():
    data = Dataset([walk(seed) for seed in range(4)])
    result = fit_method(small(find_method("skill-bc", data.features(), n_skills=3)), data, 0)
    assert set(result.policy.inputs) == {STATE, OBSERVED}
    high = result.actor.planner.high
    assert high.inputs == (STATE,) and high.config.target == PREDICTED
    observed = data.map(SkillClass("observation.seen_skill", "skill", 3))[0]
    assert "skill" not in observed.steps
    assert observed.steps["observation.seen_skill"][:, 0].tolist() == data[0].steps["skill"].tolist()


def test_actions_may_be_classes():
    """The class of the action is 2, 0 or 1 for the skills 0, 1 and 2."""
    feature = Feature("int64", (1,), "discrete", num_classes=(3,))

    def classes(seed):
        episode = walk(seed)
        action = np.array([2, 0, 1])[episode.steps["skill"]][:, None]
        return replace(episode.replace({"action": action}), schema={"action": feature})
    data = Dataset([classes(seed) for seed in range(20)])
    actor = fit_method(small(find_method("skill-bc", data.features(), n_skills=3)), data, 0).actor
    obs = {STATE: torch.tensor([[-0.5], [0.5], [1.5]])}
    assert actor.act(obs, actor.start(obs, torch.arange(3)))[0].flatten().tolist() == [2, 0, 1]


@pytest.mark.parametrize(("skill", "words"), [
    (np.full(40, 3), "from 0 to 2, and .*3.* is none"), (np.full(40, -1), "-1.* is none"),
    (np.full(40, 0.5), "0.5.* is none"), (np.full(40, "grasp"), "'grasp'.* is none"),
    (np.zeros((40, 2), int), "a step has 2 numbers")])
def test_what_is_no_number_of_a_skill_is_refused(skill, words):
    with pytest.raises(DataError, match=words):
        SkillClass(PREDICTED, n_skills=3)(walk(0, skill=skill))
