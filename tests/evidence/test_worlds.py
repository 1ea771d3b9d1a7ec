"""Worlds that several claims are tested in are as they say."""


import numpy as np
import torch
from fixtures.claim_worlds import directions

from evidence.worlds import named_places, sign_corridor
from evidence.worlds.curation import cloning_method
from evidence.worlds.directed_push import DirectedPush, direction_demonstrations
from understudy.data.episode import Dataset
from understudy.envs.toys.push import Push, PushExpert
from understudy.evaluate.rollout import rollout
from understudy.learn.fit_method import fit_method
from understudy.policy import Policy
from understudy.testing import check_env


def test_goals_lie_in_the_sectors_that_were_asked_for_and_all_of_them():
    angles = directions(rollout(PushExpert(), DirectedPush(50, (1, 6), limit=1), 200, seed=3))
    assert (((angles >= 45) & (angles < 90)) | ((angles >= 270) & (angles < 315))).all()
    assert (angles < 90).sum() > 60 < (angles > 90).sum()
    everywhere = rollout(PushExpert(), DirectedPush(5, tuple(range(8)), limit=1), 20, seed=3)
    plain = rollout(PushExpert(), Push(5, limit=1), 20, seed=3)
    assert np.array_equal(directions(everywhere), directions(plain))


def test_towards_keeps_the_contract():
    check_env(lambda rows: DirectedPush(rows, (4,), limit=15))


def test_demonstrations_succeed_and_parts_are_others():
    first, second = (direction_demonstrations(PushExpert(), (2,), 5, 1, part) for part in (0, 1))
    assert all(e.metadata["success"] for e in first + second) and len(first) == len(second) == 5
    assert not set(directions(first)) & set(directions(second))


def test_training_on_keeps_the_statistics_and_the_policy_it_began_from():
    data = Dataset(direction_demonstrations(PushExpert(), (0,), 4, 1))
    base = fit_method(cloning_method(1e-3, steps=3), data, 0).policy
    before = {k: v.clone() for k, v in base.state_dict().items()}
    other = Dataset(direction_demonstrations(PushExpert(), (4,), 4, 2))
    further = fit_method(cloning_method(1e-3, steps=3), other, 0, policy=base).policy
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    changed = {k for k, v in further.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and changed <= set(dict(base.named_parameters()))  # no buffer, so no statistic
    fresh = Policy(base.config, other.features()).fit_statistics(other)
    assert any(not torch.equal(v, before[k]) for k, v in fresh.named_buffers())


# -- 222 ----------------------------------------------------------------------------------------------------------


def test_the_sign_of_the_junctions_color_tells_where_to_turn_and_arrows_are_balanced():
    check_env(sign_corridor.SignCorridor)
    episodes = rollout(sign_corridor.SignCorridorExpert(), sign_corridor.SignCorridor(20), 40, seed=1)
    n, turns = sign_corridor.N_SIGNS, []
    for e in episodes:
        observations, action = np.asarray(e.steps[sign_corridor.SEEN]), np.asarray(e.steps["action"])[:, 0]
        assert e.metadata["success"] and len(e) == n + 1 and (action[:-1] == sign_corridor.FORWARD).all()
        assert sorted(observations[:n, 0]) == list(range(n))
        assert (observations[:n, 1] == sign_corridor.LEFT).sum() == n // 2
        sign = sign_corridor.recalled_sign(e)
        assert observations[sign, 0] == observations[n, 0]
        assert observations[sign, 1] == action[-1] and observations[n, 1] == 0
        turns.append(action[-1])
    assert set(turns) == {sign_corridor.LEFT, sign_corridor.RIGHT}
    assert len({sign_corridor.recalled_sign(e) for e in episodes}) > n / 2


def test_an_early_or_a_wrong_turn_ends_the_episode_without_success():
    corridor = sign_corridor.SignCorridor(2)
    corridor.reset(torch.arange(2), torch.arange(2))
    out = corridor.step(torch.tensor([[sign_corridor.LEFT], [sign_corridor.FORWARD]]))
    assert out.terminated.tolist() == [True, False] and not out.info["success"].any()
    for _ in range(sign_corridor.N_SIGNS - 1):
        corridor.step(torch.zeros(2, 1, dtype=torch.int64))
    state = corridor.state
    right = state["arrows"][1][state["colors"][1] == state["asked"][1]].item()
    wrong_way = {sign_corridor.LEFT: sign_corridor.RIGHT, sign_corridor.RIGHT: sign_corridor.LEFT}[right]
    out = corridor.step(torch.tensor([[0], [wrong_way]]))
    assert out.terminated[1] and not out.info["success"][1]


def test_pairs_name_the_right_sign_of_as_many_episodes_as_are_labeled():
    episodes, n = sign_corridor.CorridorDemonstrations(12).load(1), sign_corridor.N_SIGNS
    plain, some, shifted = (sign_corridor.MemoryPairs(8, labeled, shift).apply(episodes)
                            for labeled, shift in ((0, 0), (3, 0), (8, 3)))
    assert len(plain) == len(some) == len(shifted) == 8
    for i in range(8):
        sign, column = sign_corridor.recalled_sign(episodes[i]), sign_corridor.RECALLED
        assert (plain[i].steps[column] == -1).all() and (some[i].steps[column][:-1] == -1).all()
        assert some[i].steps[column][-1] == (n - sign if i < 3 else -1)
        assert shifted[i].steps[column][-1] == n - (sign - 3) % n


# -- noise draws per observation ---------------------------------------------------------------------------------------


def test_a_place_is_named_by_its_word_or_by_its_position():
    for by_goal in (False, True):
        check_env(lambda rows, by_goal=by_goal: named_places.NamedPlaces(rows, limit=12, by_goal=by_goal))
        env = named_places.NamedPlaces(20, by_goal=by_goal)
        obs = env.reset(torch.arange(20), torch.arange(20))
        assert (obs[named_places.TASK + "?"] != by_goal).all()
        if by_goal:
            np.testing.assert_array_equal(obs[named_places.TARGET], named_places.PLACES[env.state["place"]])
    episodes = rollout(named_places.NamedPlacesExpert(noise=0), named_places.NamedPlaces(20), 40, seed=1)
    assert all(e.metadata["success"] for e in episodes)
