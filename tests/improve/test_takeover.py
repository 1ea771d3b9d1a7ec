"""A person at the keyboard who takes over and gives back."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest
from fixtures.cli import TINY
from fixtures.collections import Constant
from fixtures.terminals import Terminal

from understudy import make
from understudy.cli import main
from understudy.core import UserError
from understudy.data.formats import open_dataset
from understudy.envs.base import EnvWrapper
from understudy.improve.gates import GatedActor, HumanGate
from understudy.improve.journal import EpisodeJournal
from understudy.improve.takeover import KeyboardSupervisor, TakeoverKeyboard


class Hand:
    """A person who presses keys while the episode sleeps: `keys` by the number of the sleep."""

    def __init__(self, keys, limit=8):
        self.read_end, self.write_end = os.pipe()
        self.keys, self.sleeps, self.now, self.screens, self.waits = keys, 0, 0.0, [], []
        self.env = make("fork", 1, limit=limit)
        size = self.env.features["action"].size
        keyboard = TakeoverKeyboard((-1,) * size, (1,) * size, self.read_end, lambda: self.now)
        self.actor = GatedActor(Constant(0.0), KeyboardSupervisor(
            self.env, keyboard, self.screens.append, 4, lambda: self.now, self.sleep), HumanGate())

    def sleep(self, seconds):
        self.waits.append(seconds)
        self.now += seconds
        if (keys := self.keys.get(self.sleeps)) is not None:
            os.write(self.write_end, keys.encode())
        self.sleeps += 1
        assert self.sleeps < 1000, "it waits for a key for ever"

    def episodes(self, count):
        return EpisodeJournal(None).rollout(self.actor, self.env, count, 0)


@pytest.fixture
def hand():
    hands = []

    def make_hand(keys):
        hands.append(Hand(keys))
        return hands[-1]
    yield make_hand
    for used in hands:
        os.close(used.read_end)
        os.close(used.write_end)


def test_keys_take_over_and_give_back_from_the_next_step_on(hand):
    """Sleep 0 waits for the beginning, sleep n + 1 belongs to step n, and keys count from the step after it."""
    used = hand({0: "\r", 2: "td", 3: "d", 4: "t"})
    episode, = used.episodes(1)
    assert np.flatnonzero(episode.steps["intervention"]).tolist() == [2, 3]
    assert np.flatnonzero(episode.steps["action"][:, 0]).tolist() == [2, 3]
    assert (episode.steps["policy_action"] == 0).all() and len(episode) == 8
    assert "the policy acts" in used.screens[2] and any("you act" in text for text in used.screens)
    assert used.waits[2:] == pytest.approx([1 / used.env.metadata["fps"]] * len(used.waits[2:]))  # in real time


def test_an_episode_is_marked_begun_again_and_left(hand):
    used = hand({0: "\r", 3: "n", 4: "x", 5: "\r", 8: "y"})
    episode, = used.episodes(1)
    assert episode.metadata["success"] is True and len(episode) == 8 and used.sleeps == 5 + 9
    with pytest.raises(KeyboardInterrupt):
        hand({0: "\r", 4: "q"}).episodes(1)
    with pytest.raises(KeyboardInterrupt):
        hand({0: "q"}).episodes(1)


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(UserError, match="cannot be rendered"):
        KeyboardSupervisor(EnvWrapper(make("fork", 1)), TakeoverKeyboard((-1,), (1,)), print)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a person at a terminal")
def test_a_person_at_a_terminal_quits_and_goes_on(tmp_path):
    assert main(["record", "fork", "--out", str(tmp_path / "demos"), "--episodes", "6"]) == 0
    assert main(["train", "bc", str(tmp_path / "demos"), "--out", str(tmp_path / "run"), *TINY]) == 0
    args = ["run", "--with", "hg-dagger", "--supervisor", "keyboard", "--out", "better", "--data", "demos",
            "--rounds", "1", "--episodes", "2", "--steps", "3", "--compare", "4", "--device", "cpu"]
    person = Terminal("improve", *args, cwd=tmp_path)
    assert "keys: t: take over" in person.until("enter: begin the episode")
    person.type("\r")
    person.until("the policy acts")
    person.type("t")
    person.until("you act")
    person.until("enter: begin the episode")  # the second episode: the first has ended, and is stored
    person.type("q")
    status, text = person.end()
    assert status == 130 and "the same command continues" in text
    stored = list((tmp_path / "better" / "collection" / "unfinished-000000").glob("[0-9]*"))
    assert len(stored) == 1
    first = open_dataset(stored[0] / "episodes.npz")
    person = Terminal("improve", *args, cwd=tmp_path)
    person.until("1 of 2 episodes are stored and not run again")
    person.until("enter: begin the episode")
    person.type("\r")
    person.until("round 1 of 1: 2 episodes")
    status, text = person.end()
    assert status == 0, text
    data = open_dataset(tmp_path / "better" / "collection" / "000000" / "episodes.npz")
    assert np.array_equal(data[0].steps["action"], first[0].steps["action"]) and len(data) == 2
    assert data[0].steps["intervention"].any() and not data[1].steps["intervention"].any()
    facts = json.loads((tmp_path / "better" / "collection" / "000000" / "round.json").read_text())
    assert facts["episodes"] == 2
