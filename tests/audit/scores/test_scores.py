"""Every score keeps the interface and is on the page."""

import re

import numpy as np
import pytest
from fixtures.scored import data, episode, line, noisy
from folders import REPOSITORY

from understudy.audit.base import AuditReport, Score, StepScore
from understudy.audit.scores import (
    NETWORK_SCORES,
    SCORE_MEANINGS,
    SCORES,
    Smoothness,
)
from understudy.core import UserError
from understudy.data.episode import Dataset


def test_an_action_of_several_columns_has_the_scores_of_one_column():
    rng = np.random.default_rng(0)
    whole = [episode(rng.normal(size=(20, 3)), rng.normal(size=(20, 3)).cumsum(0), **{"next.reward": np.ones(20)})
             for _ in range(6)]
    parts = [e.replace({"action": None, "action.arm": e.steps["action"][:, :2], "action.grip": e.steps["action"][:, 2]})
             for e in whole]
    for name in SCORES.keys() - NETWORK_SCORES:
        np.testing.assert_array_equal(SCORES[name]()(Dataset(parts)), SCORES[name]()(Dataset(whole)), name)
    with pytest.raises(UserError, match="no numeric action"):
        Smoothness()(Dataset([e.replace({"action": None}) for e in whole]))


# -- the list -----------------------------------------------------------------------------------------------------


def test_every_score_stands_by_the_interface():
    """One number an episode, the same at every call; steps are of each step; nothing is written into the data."""
    env = data(line(5, noisy, steps=12))
    before = env.fingerprint()
    assert set(NETWORK_SCORES) < set(SCORES)
    for name, make in SCORES.items():
        score = make()
        assert isinstance(score, Score) and score == make(), name
        if name in NETWORK_SCORES:
            continue  # slow; each has its own test
        values = score(env)
        assert values.shape == (5,) and values.dtype == float, name
        assert np.array_equal(values, score(env), equal_nan=True), name
        if isinstance(score, StepScore):
            assert [len(s) for s in score.score_steps(env)] == [12] * 5, name
    assert env.fingerprint() == before
    AuditReport((), {"brevity": SCORES["brevity"]()(env)}).to_json()


def test_the_page_of_scores_says_what_a_high_score_means():
    page = (REPOSITORY / "docs/scores.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w-]+)(?: \*)? \| `\w+` \| ([^|]+) \|", page, re.MULTILINE))
    assert rows == SCORE_MEANINGS and SCORE_MEANINGS.keys() == SCORES.keys()
