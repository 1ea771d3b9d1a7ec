"""Recordings in which the robot slips: for how long, and what arms learn from."""

import numpy as np

from evidence.families.advice.recordings import SLIPPED, FirstSteps, Slipped, Slips
from evidence.families.advice.worlds import expert, world
from understudy.evaluate.rollout import rollout

STATE = "observation.state"


def test_about_half_of_the_episodes_slip_for_some_steps():
    episodes = rollout(Slips(expert("fork"), n_steps=8, latest=5), world("fork", ()), 60, seed=3)
    lengths = [int(e.steps[SLIPPED].sum()) for e in episodes]
    assert 0.3 < np.mean([n > 0 for n in lengths]) < 0.7 and max(lengths) == 8
    for e in episodes:
        slips = np.flatnonzero(e.steps[SLIPPED])
        assert len(set(map(tuple, np.round(e.steps["action"][slips], 4)))) <= 1  # one direction
        assert list(slips) == list(range(slips[0], slips[-1] + 1)) if len(slips) else True


def test_arms_learn_from_the_same_number_of_steps():
    data = Slipped("fork", 40).load(3)
    assert {e.metadata["part"] for e in data} == {"smooth", SLIPPED}
    smooth, every = (FirstSteps(150, parts).apply(data) for parts in (("smooth",), ("smooth", SLIPPED)))
    assert smooth.steps == every.steps == 150
    assert {e.metadata["part"] for e in smooth} == {"smooth"} and len({e.metadata["part"] for e in every}) == 2
    last = every[len(every) - 1]
    assert len(last.steps[STATE]) == len(last) + 1
