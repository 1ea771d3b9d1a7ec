"""Attempts of a script."""

from dataclasses import dataclass

import pytest
import torch

from understudy.core import keys, put, take
from understudy.execute.actor import CountingActor
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
