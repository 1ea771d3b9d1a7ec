"""Alignment of episodes."""

import numpy as np
import pytest
import torch
from fixtures.scored import data, episode

from understudy.audit.scores import (
    Alignment,
)
from understudy.audit.scores.alignment import aligned_steps, cycle_consistency_loss


def test_the_walk_passes_over_what_the_others_do_not_do():
    """Steps along a quarter of a circle; one demonstration leaves it for three steps after its fourth."""
    angle = np.linspace(0, np.pi / 2, 10)
    plain = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    detour = np.concatenate([plain[:4], np.tile([0.0, 0.0, 1.0], (3, 1)), plain[4:]])
    kept = aligned_steps([plain] * 5 + [detour], tolerance=1)
    assert all(k.all() for k in kept[:5])
    assert np.flatnonzero(~kept[5]).tolist() == [4, 5, 6]


def test_a_cycle_of_what_is_alike_is_closed():
    u = 30 * torch.eye(6)[None]
    assert cycle_consistency_loss(u, u) == pytest.approx(0, abs=1e-6)
    assert cycle_consistency_loss(u, u.flip(1)) == pytest.approx(0, abs=1e-6), (
        "order plays no part in finding the way back"
    )
    assert cycle_consistency_loss(u, torch.zeros(1, 6, 6)) == pytest.approx(
        float(((torch.arange(6) - 2.5) / 6).square().mean()), rel=1e-3
    )


def test_a_detour_is_extraneous():
    def drive(i):
        way = np.linspace(0, 2, 21)
        state, action = np.c_[way[:-1], np.zeros(20)], np.tile([1.0, 0.0], (20, 1))
        if i == 0:
            side = np.sin(np.linspace(0, np.pi, 8))
            detour = np.c_[np.full(8, 1.0), side]
            state = np.concatenate([state[:10], detour, state[10:]])
            action = np.concatenate([action[:10], np.tile([0.0, 1.0], (4, 1)), np.tile([0.0, -1.0], (4, 1)),
                                     action[10:]])
        return episode(state, action)
    kept = Alignment(n_updates=100).score_steps(data([drive(i) for i in range(8)]))
    assert kept[0][11:17].mean() < 0.4 < 0.8 < min(k.mean() for k in kept[1:])
