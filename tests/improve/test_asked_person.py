"""A policy that asks a person for help: it is held until the person takes over or lets it continue."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from fixtures.cli import TINY
from fixtures.collections import Constant
from fixtures.takeovers import VELOCITY, ToyHand, World
from fixtures.terminals import Terminal

from understudy.cli import main
from understudy.core import UserError
from understudy.data.formats import open_dataset
from understudy.execute.doubt import DOUBT
from understudy.improve.collection import with_costs
from understudy.improve.improvement import IMPROVEMENTS, Improvement
from understudy.improve.takeover import ASKING


@pytest.fixture
def hand():
    hands = []

    def make_hand(keys, steps):
        hands.append(ToyHand(keys, steps=steps))
        return hands[-1]
    yield make_hand
    for used in hands:
        os.close(used.read_end)
        os.close(used.write_end)


def test_it_is_held_until_the_person_takes_over(hand):
    """It asks at step 2, after which sleeps 4 and 5 are the hold (see `test_takeover`), and again 2 steps after the
    person gave back.
    """
    used = hand({0: "\r", 5: "td", 7: "t", 10: "p"}, {2})
    episode, = used.episodes(1)
    assert np.flatnonzero(episode.steps["advised"]).tolist() == [2, 7]
    assert np.flatnonzero(episode.steps["intervention"]).tolist() == [3, 4]
    assert np.flatnonzero(episode.steps["action"][:, 0]).tolist() == [3, 4] and len(episode) == 8
    screens = [text.splitlines()[-2] for text in used.screens]
    assert screens[4:7] == [f"step 3: {ASKING}"] * 3 and screens[7] == "step 4: you act"
    assert "the policy asks for help: t takes over" in ASKING and used.sleeps == 1 + 8 + 2
    assert np.flatnonzero(episode.steps[DOUBT]).tolist() == [2, 7]


def test_what_the_person_lets_continue_asks_again_only_after_it_was_sure_in_between(hand):
    used = hand({0: "\r", 4: "p", 8: "p"}, {2, 3, 4, 6})
    episode, = used.episodes(1)
    assert np.flatnonzero(episode.steps["advised"]).tolist() == [2, 3, 4, 6] and len(episode) == 8
    assert not episode.steps["intervention"].any() and used.sleeps == 1 + 8 + 2 - 1  # a hold at 3, one at 7
    assert sum(ASKING in text for text in used.screens) >= 2


def test_after_the_person_has_given_back_it_may_ask_at_once(hand):
    """The person acts at steps 1 and 2, unasked. Then the gate begins again, and asks at its first step."""
    used = hand({0: "\r", 2: "t", 4: "t", 6: "p"}, {0})
    episode, = used.episodes(1)
    assert np.flatnonzero(episode.steps["advised"]).tolist() == [0, 3]
    assert np.flatnonzero(episode.steps["intervention"]).tolist() == [1, 2]


@pytest.mark.parametrize(("key", "success"), [("y", True), ("n", False)])
def test_an_asked_person_may_also_end_the_episode(key, success, hand):
    episode, = hand({0: "\r", 5: key}, {2}).episodes(1)
    assert len(episode) == 3 and episode.metadata["success"] is success


def test_nobody_watches_a_policy_that_asks(hand):
    """It is held for three periods after step 2 and one after step 7, and the person acts for two."""
    used = hand({0: "\r", 5: "td", 7: "t", 10: "p"}, {2})
    episode, = used.episodes(1)
    period = 1 / used.env.metadata["fps"]
    assert episode.metadata["seconds_watched"] == pytest.approx(4 * period, abs=1e-3)
    assert episode.metadata["seconds_acted"] == pytest.approx(2 * period, abs=1e-3)
    counted = with_costs(False, True, episode)
    assert [counted.metadata[name] for name in ("acted", "labeled", "watched")] == [2, 0, 0]


def robot_episode(steps, **at):
    world = World(limit=100, **at)
    return world, world.episode(Constant(20.0), steps)


def test_a_robot_holds_in_place_of_what_its_policy_doubts():
    """It asks at step 10 on its way to 20 degrees, and the person waits, takes over, and gives back at step 20."""
    world, episode = robot_episode({10}, _11=[*[""] * 30, "takeover"], _20=["takeover"], _30=["success"])
    state = episode.steps["observation.state"][:, 0]
    assert np.flatnonzero(episode.steps["intervention"]).tolist() == list(range(11, 20)) and len(episode) == 30
    assert episode.steps["handover"][10] and world.arm.stops >= 2 and world.arm.fastest() <= VELOCITY * 1.001
    assert state[11] == pytest.approx(state[10], abs=1e-3) and 0 < state[10] < 20
    assert episode.steps["action"][10, 0] == pytest.approx(state[10]) and episode.steps["policy_action"][10, 0] == 20
    assert any(ASKING in line for line in world.lines)


def test_a_robot_continues_with_a_new_plan_where_it_was_held():
    world, episode = robot_episode({10}, _11=["", "", "hold"], _30=["success"])
    assert not episode.steps["intervention"].any() and np.flatnonzero(episode.steps["handover"]).tolist() == [10]
    assert episode.steps["observation.state"][30, 0] == pytest.approx(20, abs=0.1) and world.env.takeover.n_returns == 1
    assert world.arm.fastest() <= VELOCITY * 1.001


def test_a_robot_that_nobody_helps_stays_where_it_is():
    world = World(limit=100)
    with pytest.raises(AssertionError, match="waits for a key for ever"):
        world.episode(Constant(20.0), {10})
    assert world.arm.path[-1][1] == pytest.approx(world.env.read(), abs=1e-3) and world.robot._is_holding


@pytest.mark.parametrize("name", ["dagger", "safe", "lazy"])
def test_methods_that_compare_with_a_person_at_every_step_are_refused(name, tmp_path):
    with pytest.raises(UserError, match=rf"(?s){name} needs to know at every step .*hg-dagger.*ensemble"):
        Improvement(tmp_path, None, "person")._check_supervisor(name, IMPROVEMENTS[name])




@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a person at a terminal")
@pytest.mark.parametrize("name", ["ensemble", "rlif"])
def test_a_person_at_a_terminal_is_asked_and_takes_over(name, tmp_path):
    assert main(["record", "fork", "--out", str(tmp_path / "demos"), "--episodes", "6"]) == 0
    assert main(["train", "bc", str(tmp_path / "demos"), "--out", str(tmp_path / "run"), *TINY]) == 0
    person = Terminal("improve", "run", "--with", name, "--supervisor", "keyboard", "--out", "better",
                      "--data", "demos", "--rounds", "1", "--episodes", "1", "--steps", "3", "--compare", "4",
                      "--device", "cpu", "--intervention-rate", "0.5", "--html", "page.html", cwd=tmp_path)
    person.until("enter: begin the episode")
    person.type("\r")
    person.until(ASKING if name == "ensemble" else "the policy acts")
    person.type("t")
    person.until("you act")
    person.type("y")
    person.until("round 1 of 1: 1 episodes")
    status, text = person.end()
    assert status == 0, text
    episode = open_dataset(tmp_path / "better" / "collection" / "000000" / "episodes.npz")[0]
    assert episode.steps["intervention"].any() and episode.metadata["success"] is True
    assert (name == "ensemble") == (episode.metadata["watched"] == 0)
    page = (tmp_path / "page.html").read_text()
    assert "minutes acted" in page and "Success against minutes of the person" in page
