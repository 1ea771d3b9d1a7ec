"""Rows of judged: the world, the control of a rater, and the steps that a judge marks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from evidence.families.rewards_from_people.marked_steps import (
    WINDOW,
    expert_actions,
    judged_steps,
    progress,
    steps_to_go,
)
from evidence.families.rewards_from_people.ranked_actions import (
    CLICK,
    GOOD,
    MixedQuality,
    drawn_states,
    quality,
    ranked,
)
from evidence.families.rewards_from_people.rated_episodes import DONE, ORDER, JudgedTasks, PermutedScores
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.envs.toys.gridworld_tasks import USE, GridworldTasksExpert
from understudy.evaluate.rollout import rollout
from understudy.improve.rating import ScoreThreshold
from understudy.testing import check_env


def episode(score, mission, round_number=None) -> Episode:
    metadata = {"score": score, "mission": mission, "task": str(mission), ROUND: round_number}
    return Episode({"action": np.zeros((1, 1), np.float32)}, {k: v for k, v in metadata.items() if v is not None})


def test_permuted_scores_keep_as_many_episodes_of_each_mission_and_others():
    first, stayed = [episode(0.9, m) for m in (0, 1)], [episode(0.0, 0, 0)]
    newest = [episode(float(i < 10 * (m + 1)), m, 1) for m in (0, 1) for i in range(40)]
    data = Dataset([*first, *stayed, *newest])

    def kept(rule):
        stays = rule().keep(data)
        assert [e.metadata.get(ROUND) for e in stays].count(None) == 2
        new = [e.metadata for e in stays if e.metadata.get(ROUND) == 1]
        return len(stays) - len(new), *([f["score"] for f in new if f["mission"] == m] for m in (0, 1))
    assert kept(ScoreThreshold) == (2, [1.0] * 10, [1.0] * 20)  # an earlier round is scored again
    n_before, *scores = kept(PermutedScores)
    assert n_before == 3 and [len(s) for s in scores] == [10, 20]
    assert [np.mean(s) for s in scores] == pytest.approx([0.25, 0.5], abs=0.2)


def test_the_first_three_stages_of_the_mission_are_a_column():
    check_env(JudgedTasks)
    for e in rollout(GridworldTasksExpert(noise=0.0), JudgedTasks(20), 20, seed=3):
        order, done = e.steps[ORDER][0], np.asarray(e.steps["observation.state"])[:, 2:]
        assert np.array_equal(e.steps[DONE], done[:, order[:3]])
        assert e.metadata["success"] and e.steps[DONE][-1].all() and not done[-2, order[3]]


def test_the_expert_comes_nearer_with_every_step_but_a_slip():
    for e in rollout(GridworldTasksExpert(noise=0.0), JudgedTasks(20), 20, seed=4):
        to_go, action = steps_to_go(e), e.steps["action"][:, 0]
        done = np.asarray(e.steps["observation.state"])[:, 2:].sum(1)
        slips = (action == USE) & (np.diff(done) == 0)
        assert to_go[-1] == 0 and np.array_equal(np.diff(to_go), np.where(slips, 0, -1))
        assert np.array_equal(progress(e), ~slips) and (expert_actions(e)[slips] == USE).all()


def test_the_judge_sees_windows_of_both_outcomes_and_permuting_marks_keeps_their_number():
    data = Dataset([e for noise in (1.0, 0.7)
                    for e in rollout(GridworldTasksExpert(noise), JudgedTasks(20), 20, seed=5)])
    plain, permuted = (judged_steps(data, 40, p, np.random.default_rng(0)) for p in (False, True))
    for a, b, raw in zip(plain, permuted, data, strict=True):
        assert np.array_equal(a.steps["weight"] > 0, b.steps["weight"] > 0)
        for start in range(0, len(a), WINDOW):
            window = slice(start, start + WINDOW)
            assert a.steps["good"][window].sum() == b.steps["good"][window].sum()
            assert len({*(a.steps["weight"][window] > 0)}) == 1  # whole windows
        assert np.array_equal(a.steps["observation.after"], raw.steps["observation.state"][[*range(1, len(a) + 1), -1]])
    n_windows = {good: sum(int(e.steps["weight"][start] > 0) for e in plain if e.metadata["success"] == good
                           for start in range(0, len(e), WINDOW)) for good in (True, False)}
    assert n_windows == {True: 20, False: 20}
    weight, good = (np.concatenate([e.steps[name].reshape(-1) for e in plain]) for name in ("weight", "good"))
    assert weight[good == 0].sum() == pytest.approx(weight[good == 1].sum())  # most steps are bad
    flipped = np.concatenate([e.steps["good"][:, 0] != progress(r) for e, r in zip(plain, data, strict=True)])
    assert flipped.mean() == pytest.approx(0.1, abs=0.02)


def test_the_quality_of_an_action_is_1_at_the_optimum_and_falls_by_its_distances():
    env, click = drawn_states(3, 50)
    best = 2 * click - 1
    beside = best + 2 * torch.tensor([0.03, 0.04, 0.0, -0.2])  # half of the table is 1
    torch.testing.assert_close(quality(click, best), torch.ones(50))
    torch.testing.assert_close(quality(click, beside.clamp(-3, 1)), torch.full((50,), 0.75))
    assert env.step(best).info["success"].all()


def test_bad_demonstrations_take_at_the_mirrored_place_or_put_into_another_bin():
    click, action = (np.concatenate([e.steps[k] for e in MixedQuality(4000).load(7)]) for k in (CLICK, "action"))
    off = np.abs((action + 1) / 2 - click) > 0.15
    assert not off[:, [1, 3]].any() and not (off[:, 0] & off[:, 2]).any()
    assert off[:, [0, 2]].mean(0) == pytest.approx(2 * [(1 - GOOD) / 2], abs=0.02)
    mirrored = np.abs((action[:, 0] + 1) / 2 + click[:, 0] - 1) < 0.15
    assert mirrored[off[:, 0]].all()


def test_the_judge_compares_all_pairs_and_errs_in_a_fraction():
    class AnyAction:
        def noise(self, key, count):
            return torch.from_numpy(np.random.default_rng(int(count[0])).uniform(-1, 1, (len(key), 1, 4))).float()

        def plan(self, obs, noise, guides=()):
            return noise
    agree = {}
    for flipped in (0.0, 0.05):
        pairs = ranked(AnyAction(), 5, 60, flipped)
        assert len(pairs) == 60 * 28
        value = [quality(*(torch.as_tensor(e.steps[k]) for k in (CLICK, "action"))) for e in pairs]
        agree[flipped] = np.mean([(v[0] > v[1]) == (e.steps["preference"][0, 0] == 2)
                                  for v, e in zip(value, pairs, strict=True)])
    assert agree[0.0] == 1.0 and agree[0.05] == pytest.approx(0.95, abs=0.02)
