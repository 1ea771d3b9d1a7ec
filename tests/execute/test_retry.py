"""Attempts of a script, and how often scripts with attempts succeed."""

from dataclasses import dataclass

import pytest
import torch

from understudy.core import keys, put, take, uniform
from understudy.execute.actor import Actor, CountingActor, pass_record
from understudy.execute.retry import ATTEMPT, RetryActor


@dataclass(frozen=True)
class Count(CountingActor):
    """Its action is the number of its steps and the lowest bits of its key."""

    def act(self, obs, state):
        action = torch.stack([state["count"], state["key"] % 1000], 1).float()
        return action, {**state, "count": state["count"] + 1, "record": {"note": state["count"][:, None]}}


def attempts(fails, max_attempts=100, rows=slice(None)):
    """(steps of the attempt, keys, attempts, notes), (T, B) each, of episodes that fail at some steps, (T, B)."""
    fails = torch.tensor(fails, dtype=torch.bool)[:, rows]
    actor, key = RetryActor(Count(), lambda obs: obs["fails"], max_attempts), keys(0, range(fails.shape[1]))
    state, steps = actor.start({"fails": fails[0]}, key), []
    for failed in fails:
        action, state = actor.act({"fails": failed}, state)
        record = state.pop("record")
        steps.append((*action.T, record[ATTEMPT][:, 0], record["note"][:, 0]))
        state = put(state, torch.arange(len(key)), take(state, torch.arange(len(key))))  # is a tree of tensors
    return [torch.stack(column).long().tolist() for column in zip(*steps, strict=True)]


def test_an_attempt_begins_when_the_test_turns_true_and_only_in_its_row():
    fails = [[0, 0], [1, 0], [1, 0], [0, 0], [1, 0]]
    count, key, attempt, note = attempts(fails)
    assert count == [[0, 0], [0, 1], [1, 2], [2, 3], [0, 4]] == note
    assert attempt == [[1, 1], [2, 1], [2, 1], [2, 1], [3, 1]]
    assert len({step[0] for step in key}) == 3 and len({step[1] for step in key}) == 1  # each attempt has its key
    alone = attempts(fails, rows=slice(1))
    assert [[step[:1] for step in column] for column in (count, key, attempt)] == alone[:3]


def test_the_last_attempt_goes_on_after_it_failed():
    count, _, attempt, _ = attempts([[0], [1], [0], [1], [0]], max_attempts=2)
    assert (count, attempt) == ([[0], [0], [1], [2], [3]], [[1], [2], [2], [2], [2]])
    with pytest.raises(ValueError, match="max_attempts"):
        RetryActor(Count(), lambda obs: obs["fails"], 0)


def test_what_is_true_at_the_start_is_no_failed_attempt():
    assert attempts([[1], [1], [0], [1]])[2] == [[1], [1], [1], [2]]


OPEN, HOLDS, MISSED, DROPPED, PLACED, WAIT = range(6)  # states of a hand; an action is the next state, or waits


@dataclass(frozen=True)
class Grasp(CountingActor):
    """Opens the hand and closes it. It then holds something with a probability."""

    probability: float

    def act(self, obs, state):
        drawn = uniform(state["key"], torch.zeros_like(state["key"]), (1,))[:, 0]
        closed = torch.where(drawn < self.probability, HOLDS, MISSED)
        action = torch.where(state["count"] == 0, OPEN, torch.where(state["count"] == 1, closed, WAIT))
        return action[:, None], {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class Place(Actor):
    """Grasps until the hand holds something. It then places it with a probability, or drops it."""

    grasp: Actor
    probability: float

    def start(self, obs, key):
        return {"inner": self.grasp.start(obs, key), "key": key}

    def act(self, obs, state):
        action, inner = self.grasp.act(obs, state["inner"])
        drawn = uniform(state["key"], torch.zeros_like(state["key"]), (1,), stream=1)
        placed = torch.where(drawn < self.probability, PLACED, DROPPED)
        is_held = (obs["hand"] == HOLDS)[:, None]
        action = torch.where(is_held, placed, torch.where((obs["hand"] == PLACED)[:, None], WAIT, action))
        return action, pass_record({"key": state["key"]}, inner)


def hands_after(actor, n_steps, n_rows=20_000):
    """The states of the hands, and the numbers of attempts."""
    hand, n_attempts = torch.zeros(n_rows, dtype=torch.int64), None
    state = actor.start({"hand": hand}, keys(0, range(n_rows)))
    for _ in range(n_steps):
        action, state = actor.act({"hand": hand}, state)
        n_attempts = state.pop("record")[ATTEMPT][:, 0]
        hand = torch.where(action[:, 0] == WAIT, hand, action[:, 0])
    return hand, n_attempts


@pytest.mark.parametrize("most, success, mean_attempts", [(1, 0.3, 1.0), (2, 0.51, 1.7), (4, 0.7599, 2.533)])
def test_success_of_independent_attempts(most, success, mean_attempts):
    """1 - (1 - p)^n of scripts succeed in n attempts, and make (1 - (1 - p)^n) / p of them on average."""
    hand, n_attempts = hands_after(RetryActor(Grasp(0.3), lambda obs: obs["hand"] == MISSED, most), 2 * most)
    assert float((hand == HOLDS).float().mean()) == pytest.approx(success, abs=0.015)  # four standard errors
    assert float(n_attempts.float().mean()) == pytest.approx(mean_attempts, abs=0.035)


def test_success_of_a_tree_of_tasks():
    """Two attempts to grasp, with p = 0.3, are one part of each of three attempts to place what is held, with q = 0.2.
    A grasp then succeeds with 0.51, placing with 0.102, and what is dropped with 0.408 is tried again: altogether
    0.102 (1 + 0.408 + 0.408^2) = 0.1606."""
    grasp = RetryActor(Grasp(0.3), lambda obs: obs["hand"] == MISSED, 2)
    hand, _ = hands_after(RetryActor(Place(grasp, 0.2), lambda obs: obs["hand"] == DROPPED, 3), 15)
    assert float((hand == PLACED).float().mean()) == pytest.approx(0.1606, abs=0.0105)  # four standard errors
