"""A training that is killed at random moments resumes bit by bit: offline, with collection rounds and with a stage."""

import pytest
from fixtures.killed_training import METHODS, killed_training

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", METHODS)
def test_killed_at_random_moments_it_is_the_same_run(name, tmp_path):
    """More kills: python benchmarks/kill.py --training"""
    assert len(killed_training(name, tmp_path, 3, seed=1)) == 3
