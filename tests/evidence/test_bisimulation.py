"""The grid of which halves of ways were recorded."""

import numpy as np
import torch

from evidence.families.histories import bisimulation
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
