"""The rule of benchmarks/time_to_policy.py, on runs made up so that the answer is known."""

from __future__ import annotations

import sys

import pytest
from folders import BENCHMARKS

from understudy.files import write_json


@pytest.fixture
def ttp(monkeypatch, tmp_path):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # else it starts this process anew
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import time_to_policy

    monkeypatch.setattr(time_to_policy, "KEPT", tmp_path)
    yield time_to_policy
    sys.modules.pop("time_to_policy")


def ran(ttp, arm, shares, seconds, successes=100):
    """The same curve for every seed, each a little slower than the one before."""
    for seed in ttp.SEEDS:
        curve = [{"update": i + 1, "seconds": s * (1 + seed / 10),
                  "success": [1] * round(share * successes) + [0] * (successes - round(share * successes))}
                 for i, (share, s) in enumerate(zip(shares, seconds, strict=True))]
        write_json(ttp._file("push", arm, seed), {"rate": 1.0, "executed": 2, "parameters": 5_000_000, "curve": curve})


def test_reached_is_where_it_stays(ttp):
    """0.9 of 0.8 is 0.72: passed after 2 s, lost again, and for good after 8 s, a twentieth of 160 s."""
    ran(ttp, ttp.PEER, [0.5, 0.7, 0.8], [40, 80, 160])
    ran(ttp, ttp.OURS, [0.1, 0.75, 0.6, 0.72, 0.9], [1, 2, 4, 8, 16])
    ran(ttp, ttp.WIDE, [0.1, 0.75, 0.8, 0.9, 0.71], [1, 2, 4, 8, 16])
    ours, wide = ttp.lines("push")
    assert ours.ratio.estimate == pytest.approx(20) and ours.met and ours.ours.value == pytest.approx(8 * 1.1)
    assert "72% after 4 updates" in ours.note and "ends at 80%" in ours.note
    assert "after 176 s" in ours.note  # its own 0.7 is too little, 160 s of the second seed
    assert wide.ratio.estimate == 0 and wide.met is False and "not reached" in wide.note


def test_a_tenth_is_wanted(ttp):
    ran(ttp, ttp.PEER, [0.8] * 3, [40, 80, 160])
    ran(ttp, ttp.OURS, [0, 0, 0, 0, 0.8], [1, 2, 4, 8, 17])
    ran(ttp, ttp.WIDE, [0, 0, 0, 0, 0.8], [1, 2, 4, 8, 16])
    assert [line.met for line in ttp.lines("push")] == [False, True]


def test_the_best_trial_is_taken_and_on_ties_the_recipes_own(ttp):
    def tried(arm, rate, shares):
        write_json(ttp._file("push", arm, f"trial-{rate:g}"), {
            "updates": 1, "rate": rate, "executed": {str(n): [1] * s + [0] * (4 - s) for n, s in shares.items()}})
    for arm, first, second, best in (
            (ttp.PEER, {8: 1, 4: 1, 2: 3, 1: 2}, {8: 1, 4: 2, 2: 3, 1: 4}, (3.0, 1, 1.0)),
            (ttp.OURS, {8: 3, 4: 3, 2: 3, 1: 3}, {8: 3, 4: 3, 2: 3, 1: 3}, (1.0, 4, 0.75)),  # its own, of all alike
            (ttp.WIDE, {8: 0, 4: 1, 2: 2, 1: 2}, {8: 2, 4: 2, 2: 2, 1: 2}, (1.0, 2, 0.5))):  # then it plans less often
        tried(arm, 1.0, first)
        tried(arm, 3.0, second)
        assert ttp.chosen("push", arm) == best


def test_the_arms_are_what_they_say(ttp):
    """As many parameters within a twentieth, and a shorter run warms up for the same share of its updates."""
    from understudy import Policy

    data, size = ttp.demonstrations("push"), {}
    for arm in ttp.TASKS["push"].updates:
        method = ttp.method(arm, data, 400, 3.0, 2)
        assert (method.learner.steps, method.executor.n_action_steps) == (400, 2)
        size[arm] = sum(p.numel() for p in Policy(method.policy, data.features()).parameters())
        assert method.learner.optimizer.lr == pytest.approx(3 * ttp.method(arm, data, 400).learner.optimizer.lr)
    assert ttp.method(ttp.PEER, data, 400).learner.optimizer.warmup_steps == 50  # of 500 in 4000
    assert size[ttp.WIDE] == pytest.approx(size[ttp.PEER], rel=0.05) and 10 * size[ttp.OURS] < size[ttp.PEER]
