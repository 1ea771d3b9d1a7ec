"""What the claim about bisimulation measures, on cases with known answers."""

import numpy as np
import pytest
import torch
from claims.histories import bisimulation

from understudy.core import Context
from understudy.data.column_changes import LastAction
from understudy.policy import Policy
from understudy.testing import check_env


def test_the_grid_keeps_the_contract_and_shows_the_cell():
    check_env(lambda rows: bisimulation.CellGrid(rows, 10))
    env = bisimulation.CellGrid(5, 10, bisimulation.AROUND)
    cell = env.reset(torch.arange(5), torch.arange(5))[bisimulation.CELL].argmax(1)
    assert {tuple(env.mdp.places[i].astype(int)) for i in cell} <= set(bisimulation.AROUND)


def test_no_episode_goes_all_the_way():
    data = bisimulation.Halves(48).load(3)
    places = [np.asarray(e.steps["simulator.state"])[:, 1:3].astype(int).tolist() for e in data]
    from_start = places[:24]
    assert len(data) == 48 and all(x <= 2 and y >= 3 for (x, y), *_ in from_start)
    assert not any(list(bisimulation.GOAL) in p for p in from_start)
    assert sum(list(bisimulation.GOAL) in p for p in places) >= 8
    assert sum(list(bisimulation.MEETING) in p for p in from_start) >= 12


def test_the_spread_is_that_of_encodings_of_the_same_cell(monkeypatch):
    data = bisimulation.Halves(12).load(0).map(LastAction())
    policy = Policy(bisimulation.history_iql(inputs=(bisimulation.CELL,), n_obs_steps=1).policy, data.features())
    policy.fit_statistics(data)

    def encode(own):
        return lambda self, obs, rng=None: Context(own(obs).float(), torch.ones(len(obs[bisimulation.CELL]), 1) > 0)
    monkeypatch.setattr(Policy, "context", encode(lambda obs: obs[bisimulation.CELL]))
    assert bisimulation.spread_within_cells(policy, 0) == pytest.approx(0, abs=1e-9)
    rng = torch.Generator().manual_seed(0)
    monkeypatch.setattr(Policy, "context", encode(
        lambda obs: torch.randn(len(obs[bisimulation.CELL]), 1, 4, generator=rng)))
    assert bisimulation.spread_within_cells(policy, 0) > 0.9
