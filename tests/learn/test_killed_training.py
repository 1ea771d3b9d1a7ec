"""A training that is killed at random moments resumes bit by bit: offline, with collection rounds and with a stage."""

import json

import pytest
from fixtures.killed_training import METHODS, killed_training
from folders import TESTS

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", METHODS)
def test_killed_at_random_moments_it_is_the_same_run(name, tmp_path):
    """More kills: python benchmarks/kill.py --training"""
    assert len(killed_training(name, tmp_path, 3, seed=1)) == 3


@pytest.mark.long
@pytest.mark.parametrize("name", ["bc", *json.loads((TESTS / "fixtures" / "states.json").read_text())])
def test_each_learner_is_the_same_after_twenty_kills(name, tmp_path):
    assert len(killed_training(name, tmp_path, 20, seed=2)) == 20
