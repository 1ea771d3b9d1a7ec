"""A person at the keyboard who takes over and gives back."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from fixtures.cli import TINY
from fixtures.takeovers import ToyHand
from fixtures.terminals import Terminal

from understudy import make
from understudy.cli import main
from understudy.core import Batch, UserError
from understudy.data.episode import Episode
from understudy.data.formats import open_dataset
from understudy.envs.base import EnvWrapper, StepResult
from understudy.evaluate.teleoperate import Screen
from understudy.execute.actor import Actor
from understudy.improve.journal import EpisodeJournal
from understudy.improve.takeover import (
    SupervisedEnv,
    Takeover,
    TakeoverJointKeyboard,
    TakeoverKeyboard,
    TakeoverKeys,
)
from understudy.improve.unlearned_steps import LearnedStepWeights
from understudy.learn.sample_weights import ColumnWeights, UniformWeights


@pytest.fixture
def hand():
    hands = []

    def make_hand(keys, **options):
        hands.append(ToyHand(keys, **options))
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


class Killed(BaseException):
    """What ends a process at any moment."""


def collect(used, folder, ends=None, count=2, error=Killed):
    """Collects episodes in a folder, until the sleep at which the process ends, if it does."""
    def sleep(seconds, before=used.sleep):
        if used.sleeps == ends:
            raise error
        before(seconds)
    used.env.screen.sleep = sleep
    return EpisodeJournal(folder).rollout(used.actor, used.env, count, 0)


def test_steps_of_an_episode_survive_the_end_of_the_process(hand, tmp_path):
    with pytest.raises(Killed):
        collect(hand({0: "\r", 2: "td", 3: "du", 8: "\r", 9: "d", 11: "td"}), tmp_path, ends=14)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["0", "running"]
    data = collect(hand({0: "\r"}), tmp_path, count=3)
    first, interrupted, last = data
    assert interrupted.metadata["interrupted"] and interrupted.metadata["number"] == 1
    assert not {"interrupted"} & {*first.metadata, *last.metadata}
    assert np.flatnonzero(interrupted.steps["intervention"]).tolist() == [3, 4]
    assert interrupted.steps["next.truncated"].tolist() == [False] * (len(interrupted) - 1) + [True]
    assert first.steps["undone"].any() and not interrupted.steps["undone"].any()
    assert {*first.steps} == {*interrupted.steps}
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["0", "1", "2"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, Killed])
def test_an_interrupted_episode_of_the_policy_alone_is_run_again(hand, tmp_path, error):
    with pytest.raises(error):
        collect(hand({0: "\r"}), tmp_path, ends=5, error=error)
    episode, = collect(hand({0: "\r"}), tmp_path, count=1)
    assert "interrupted" not in episode.metadata and len(episode) == 8


def test_an_episode_that_a_person_leaves_is_not_kept(hand, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        collect(hand({0: "\r", 2: "td", 5: "q"}), tmp_path)
    assert [*tmp_path.iterdir()] == []


def test_a_person_who_cannot_be_reached_interrupts_the_episode():
    takeover = Takeover()
    result = StepResult({}, torch.zeros(1), torch.zeros(1, dtype=torch.bool), torch.zeros(1, dtype=torch.bool), {})
    assert not takeover.ended(result).truncated.any()
    takeover.obey(["interrupt"])
    ended = takeover.ended(result)
    assert ended.truncated.all() and not ended.terminated.any() and takeover.is_over
    assert takeover.annotate(Episode({"action": np.zeros((0, 1), np.float32)}, {})).metadata["interrupted"]


def test_an_episode_is_ended_begun_again_and_left(hand):
    used = hand({0: "\r", 4: "x", 5: "\r", 8: "y", 9: "\r", 11: "n"})
    first, second = used.episodes(2)
    assert (first.metadata["success"], len(first)) == (True, 3) and used.sleeps == 12  # n counts from the step after it
    assert (second.metadata["success"], len(second)) == (False, 2)
    assert [e.steps["next.terminated"].tolist() for e in (first, second)] == [[False, False, True], [False, True]]
    assert first.steps["next.success"].tolist() == [False, False, True] and not second.steps["next.success"].any()
    with pytest.raises(KeyboardInterrupt):
        hand({0: "\r", 4: "q"}).episodes(1)
    with pytest.raises(KeyboardInterrupt):
        hand({0: "q"}).episodes(1)


def test_while_it_is_held_no_step_follows_and_who_acted_continues(hand):
    """Sleeps 3 to 5 and 7 to 8 are holds: the first in place of the policy, the second in place of the person."""
    used = hand({0: "\r", 2: "p", 5: "t", 6: "p", 8: "p"})
    episode, = used.episodes(1)
    assert len(episode) == 8 and used.sleeps == 1 + 8 + 3 + 2
    assert np.flatnonzero(episode.steps["intervention"]).tolist() == [2, 3, 4, 5, 6, 7]
    status = [text.splitlines()[-2] for text in used.screens]  # two screens are before the first step
    assert status[4:7] == ["step 2: hold"] * 3 and status[7] == "step 3: you act" and "p: hold" in used.screens[4]
    period = 1 / used.env.metadata["fps"]
    assert episode.metadata["seconds_watched"] == pytest.approx(5 * period, abs=1e-3)
    assert episode.metadata["seconds_acted"] == pytest.approx(8 * period, abs=1e-3)


def test_a_slow_machine_makes_up_for_nothing(hand):
    used = hand({0: "\r"}, cost=0.25)
    assert len(used.episodes(1)[0]) == 8 and used.waits[1:] == [0.0] * 8  # a period is 0.1 s


def test_what_a_person_takes_back_is_stored_and_not_learned(hand):
    """Two takeovers; the first is taken back while the policy acts, the second after its last step."""
    keys = {0: "\r", 1: "t", 3: "t", 4: "u", 5: "t"}
    episode, = hand(keys).episodes(1)
    assert np.flatnonzero(episode.steps["intervention"]).tolist() == [1, 2, 5, 6, 7]
    assert np.flatnonzero(episode.steps["undone"]).tolist() == [1, 2] and not episode.steps["handover"].any()
    both = hand({**keys, 8: "u"})
    episode, = both.episodes(1)
    assert np.flatnonzero(episode.steps["undone"]).tolist() == [1, 2, 5, 6, 7]
    assert "takeover 1 is not learned" in both.screens[6] and not hand({0: "\r", 2: "u"}).episodes(1)[0].steps[
        "undone"].any()


def test_steps_of_a_handover_and_those_taken_back_have_no_weight_and_no_other_step_loses_its_own():
    mask = torch.ones(2, 3, dtype=torch.bool)
    extra = {name: torch.tensor(rows, dtype=torch.bool)[..., None] for name, rows in {
        "intervention": [[1, 1, 1], [0, 1, 0]], "handover": [[1, 0, 0], [0, 0, 0]],
        "undone": [[0, 0, 1], [0, 0, 0]]}.items()}
    batch = Batch({}, torch.zeros(2, 3, 1), mask, extra=extra)
    weights = LearnedStepWeights(ColumnWeights("intervention", 1.0, 0.25))
    assert weights.columns == ("intervention", "handover", "undone")
    assert weights.build(None, None)(batch, None).tolist() == [[0, 1, 0], [0.25, 1, 0.25]]
    assert LearnedStepWeights(UniformWeights()).build(None, None)(batch, None).tolist() == [[0, 1, 0], [1, 1, 1]]


@dataclass(frozen=True)
class Counting(Actor):
    """Acts with the number of steps since `start`, and remembers the keys."""

    keys: list = field(default_factory=list)

    def start(self, obs, key):
        self.keys.append(int(key[0]))
        return {"n": torch.zeros_like(key)}

    def act(self, obs, state):
        return (state["n"] * 0.01)[:, None].expand(-1, 2).float(), {"n": state["n"] + 1}


def test_the_policy_plans_anew_when_it_gets_the_control_back(hand):
    """Steps 2 and 3 are of the person, and the last plan of the policy is from before them."""
    policy = Counting()
    episode, = hand({0: "\r", 2: "t", 4: "t"}, actor=policy).episodes(1)
    assert episode.steps["policy_action"][:, 0] == pytest.approx([0, 0.01, 0.02, 0.03, 0, 0.01, 0.02, 0.03])
    assert len(set(policy.keys)) == 2  # with other random numbers
    held = Counting()
    hand({0: "\r", 2: "p", 4: "p"}, actor=held).episodes(1)
    assert len(held.keys) == 1


def test_what_cannot_be_watched_is_refused():
    with pytest.raises(UserError, match="cannot be rendered"):
        SupervisedEnv(EnvWrapper(make("fork", 1)), TakeoverKeyboard((-1,), (1,)), Takeover(), Screen(print))


def test_the_keys_exist_where_a_keyboard_moves_joints_and_beside_another_device():
    read, write = os.pipe()
    keys = TakeoverJointKeyboard(handle=read, clock=lambda: 0.0, n_joints=3)
    os.write(write, b"ptu2w\tyq")
    assert keys.commands() == ["hold", "takeover", "undo", "success", "quit"] and keys.selected == 2
    other = TakeoverKeys(handle=read, clock=lambda: 0.0)
    os.write(write, b" \tpTux\r")
    assert other.commands() == ["hold", "takeover", "hold", "takeover", "undo", "discard", "enter"]
    os.close(read), os.close(write)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a person at a terminal")
def test_a_person_at_a_terminal_quits_and_goes_on(tmp_path):
    assert main(["record", "fork", "--out", str(tmp_path / "demos"), "--episodes", "6"]) == 0
    assert main(["train", "bc", str(tmp_path / "demos"), "--out", str(tmp_path / "run"), *TINY]) == 0
    args = ["run", "--with", "hg-dagger", "--supervisor", "keyboard", "--out", "better", "--data", "demos",
            "--rounds", "1", "--episodes", "2", "--steps", "3", "--compare", "4", "--device", "cpu"]
    person = Terminal("improve", *args, cwd=tmp_path)
    assert "keys: p: hold" in person.until("enter: begin the episode")
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
