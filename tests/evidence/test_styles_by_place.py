"""The world of places with a style each: what counts as success, and which parts adapt."""

from __future__ import annotations

import numpy as np
import pytest

from evidence.families.observations.styles_by_place import KNOWN, NEW, Adaptation, Places, clearance_of
from understudy.data.episode import Episode
from understudy.data.mixture import DATASET_NAME

STATE = "observation.state"


def test_the_clearance_is_that_of_the_path_beside_the_pillar():
    left = np.array([[0, 0], [0.5, 0.4], [0.7, 0.6], [1.2, 0]])
    assert clearance_of(Episode({STATE: left, "action": left[:3]})) == pytest.approx(0.5 - 0.25)
    assert clearance_of(Episode({STATE: left * [1, -1], "action": left[:3]})) == pytest.approx(-0.5 - 0.25)


def test_each_place_has_its_clearance_and_the_few_episodes_are_among_the_many():
    data = Places(episodes=5).load(0)
    parts = [e.metadata[DATASET_NAME] for e in data]
    assert parts == ["known"] * 25 + [f"{name} {c}" for c in NEW for name in ["many"] * 2 + ["few"] * 3]
    for clearance in (*KNOWN, *NEW):
        episodes = [e for e in data if e.metadata["task"] == f"{clearance} m"]
        passed = [clearance_of(e) for e in episodes if e.metadata["success"]]  # others end at the pillar
        assert len(episodes) == 5 and np.mean(passed) == pytest.approx(clearance, abs=0.06)


def test_an_arm_trains_its_parts_on_the_few_episodes_alone():
    method = Adaptation(("encoder.style",)).method(0.2)
    assert method.initialize_from[0].train == ("encoder.style",)
    assert method.transforms[0].equals == ("few 0.2",) and method.stages[0].dataset == "known"
