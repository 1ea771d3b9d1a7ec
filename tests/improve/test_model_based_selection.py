"""Steps that a policy would come by, by a model of the transitions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.collections import method

from understudy.audit.scores.step_table import StepTable
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.improve.collection import CollectionRounds, TaskSequenceCollector
from understudy.improve.model_based_selection import ModelBasedSelection, fit_transitions, roll_out
from understudy.improve.updates import PerNewStep
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Stage
from understudy.testing import check_collection

STATE = "observation.state"


def walk(direction, start=0.0, steps=10, **metadata) -> Episode:
    states = (start + direction * np.arange(steps + 1, dtype=np.float32))[:, None]
    return Episode({STATE: states, "action": np.full((steps, 1), direction, np.float32)}, metadata)


def table_of(*episodes) -> StepTable:
    """The table of walks, in their own units."""
    table, data = StepTable.from_data(Dataset(list(episodes)), (STATE,)), list(episodes)
    state, after = (np.concatenate([e.steps[STATE][i:len(e) + i] for e in data]) for i in (0, 1))
    return replace(table, state=state, next_state=after, action=np.concatenate([e.steps["action"] for e in data]),
                   scales=(np.zeros(1), np.ones(1), np.zeros(1), np.ones(1)))


def test_roll_outs_follow_the_policy_and_end_with_episodes():
    table = table_of(walk(1.0), walk(-1.0, start=0.4), walk(0.5, start=20.0))

    def model(inputs):
        return inputs[None, :, 1:]  # an action is the change of the state
    right = np.ones((30, 1))
    for seed in range(5):
        order = np.random.default_rng(seed).permutation([0, 10, 20])
        first = {0: [*range(10)], 10: [10, *range(1, 10)], 20: [20, 22, 24, 26, 28, 29]}[order[0]]
        chosen = roll_out(table, model, right, len(first) + 1, seed)  # 9.4 is snapped to 9, 25 to 24.5
        assert chosen == [*first, order[1]]
        everything = roll_out(table, model, right, 99, seed)
        assert sorted(everything) == list(range(30))


def test_the_network_learns_the_transitions():
    rng = np.random.default_rng(0)
    data = [walk(d, s) for d, s in zip(rng.uniform(-1, 1, 60), rng.uniform(-5, 5, 60), strict=True)]
    table = StepTable.from_data(Dataset(data), (STATE,))
    model = fit_transitions(table, 800, 0)
    inputs = torch.from_numpy(np.concatenate([table.state, table.action], 1))
    error = model(inputs)[0].detach().numpy() - (table.next_state - table.state)
    assert np.abs(error).max() < 0.2 * np.abs(table.next_state - table.state).max()


def test_of_earlier_tasks_the_steps_of_the_policy_stay():
    rng = np.random.default_rng(0)
    both = [walk(sign * rng.uniform(0.8, 1.2), rng.normal(0, 0.2), task="both", success=True)
            for sign in (-1, 1) for _ in range(20)]
    small = method(None, steps=300)
    policy = fit_method(small, Dataset(both[20:]), 0).policy
    rule = ModelBasedSelection(policy, 40, n_updates=500)
    newest = [walk(-1.0, **{ROUND: 1}) for _ in range(9)]
    kept = rule.keep(Dataset([*both, walk(1.0, steps=3, **{ROUND: 0}), *newest]))
    assert kept.lengths.tolist() == [1] * 40 + [3] + [10] * 9  # the second task has few steps, the newest stays whole
    steps = np.concatenate([np.append(e.steps[STATE][:, 0], e.steps["action"][0]) for e in list(kept)[:40]])
    state, after, action = steps.reshape(-1, 3).T
    np.testing.assert_allclose(after - state, action, atol=1e-5)
    assert state.min() > -2 and (action > 0).mean() > 0.8 and (state > 5).sum() > 10
    assert len({tuple(row) for row in steps.reshape(-1, 3)}) == 40
    assert all(e.metadata == {"task": "both"} for e in list(kept)[:40])
    again = rule.keep(kept)
    assert again.fingerprint() == kept.fingerprint()


@pytest.mark.slow
def test_rounds_of_tasks_resume_with_it():
    data = Dataset([walk(d, s, task=str(task)) for task in range(3) for d in (-1.0, 1.0) for s in (0.0, 0.5)])
    rounds = CollectionRounds(2, TaskSequenceCollector(), updates=PerNewStep(0.1),
                              retention=ModelBasedSelection(FromStage("first"), 5, n_updates=20))
    check_collection(replace(method(rounds, steps=10), stages=(Stage("first", method(None, steps=5)),)), data)
