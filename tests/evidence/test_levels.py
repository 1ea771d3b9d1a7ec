"""An arm of each family, trained with a seed of pilots, reaches its level: its world can be solved."""

import numpy as np
import pytest

from evidence.tables import families

ARMS = {
    "bad_demonstrations": ("replaced-actions", "clean actions"),
    "conditioning": ("instructions-compared", "live speaker"),
    "corrections": ("proliferated-demonstration", "100 demonstrations"),
    "goals": ("distance-weighted-cloning-of-play", "GCBC"),
    "histories": ("future-prediction", "the cue"),
    "missing_actions": ("action-free-episodes", "all actions"),
    "observations": ("initial-state-interventions", "camera"),
    "pictures": ("latent-dynamics-of-pictures", "state"),
    "frozen_policy": ("resip", "base"),
    "matching_rewards": ("transport-from-a-clone", "OT alone"),
    "person_to_robot": ("person-to-robot", "robot"),
    "policy_heads": ("reflow-one-step", "flow, 16 steps"),
    "reinforcement": ("dgn", "RLPD"),
    "retrieval": ("retrieval-compared", "cloning of seven each"),
    "rewards_from_people": ("rated-episodes", "cloning"),
    "task_sequence": ("lifelong-components", "all at once, contexts told"),
    "unlabeled": ("watched-walks", "all actions"),
}


@pytest.mark.parametrize("family", ARMS)
def test_an_arm_reaches_its_level(family):
    table, arm = ARMS[family]
    experiment, seed = families()[family].tables[table].load_experiment(), 0
    values = experiment.measure(experiment, experiment.arms[arm], experiment.source.load(seed), seed, 100, seed)
    assert np.mean(values["success"]) >= experiment.levels[arm]
