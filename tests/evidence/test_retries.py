"""The script of one attempt, and the episodes of each kind."""

from __future__ import annotations

import numpy as np
import pytest

from evidence.families.corrections.retries import (
    ATTEMPT,
    BLOCKS,
    OPTIONS,
    SIMULATOR,
    STATE,
    Attempts,
    Collect,
    OneAttempt,
    first_grasp_misses,
    success_after_a_miss,
)
from understudy.envs import make
from understudy.evaluate.rollout import rollout

DATA = Attempts(200).load(3)


def test_one_attempt_succeeds_exactly_if_its_grasp_does():
    episodes = rollout(OneAttempt(), make("tabletop", 25, **dict(OPTIONS)), 100, seed=1)
    assert [e.metadata["success"] for e in episodes] == [not first_grasp_misses(e) for e in episodes]
    assert success_after_a_miss(None, episodes) == 0


def test_three_attempts_fail_only_if_all_grasps_do():
    for e in DATA:
        misses = ((np.diff(e.steps[BLOCKS], axis=0) != 0).any(1) & (e.steps[SIMULATOR][1:, 1] < 0)).sum()
        assert e.steps[ATTEMPT][-1, 0] == min(misses + 1, 3) and e.metadata["success"] == (misses < 3)
    assert np.mean([e.metadata["success"] for e in DATA]) == pytest.approx(7 / 8, abs=0.08)


def test_all_kinds_have_the_same_number_of_steps_and_only_retries_and_failures_show_a_miss():
    kinds = {kind: Collect(kind, 1000).apply(DATA) for kind in ("one-shot", "retries", "winning", "all")}
    assert {data.steps for data in kinds.values()} == {1000}
    shows_misses = {kind: any(first_grasp_misses(e) for e in data) for kind, data in kinds.items()}
    assert shows_misses == {"one-shot": False, "retries": True, "winning": False, "all": True}
    for e in kinds["winning"]:
        closed, held = e.steps[STATE][:, 2] > 0.5, e.steps[SIMULATOR][:, 1] >= 0
        assert not closed[0] and np.array_equal(closed, held)  # a closed hand is never empty
    assert any(not e.metadata["success"] for e in kinds["all"])
