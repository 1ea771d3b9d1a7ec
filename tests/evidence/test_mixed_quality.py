"""What the claims about mixed quality stand on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from claims.mixed_quality import mixed_demonstrations

from evidence.families.bad_demonstrations.mixed_demonstrations import DRAW, MedianBlockWeights, ReplacedActions
from understudy.data.episode import Episode


def test_steps_whose_draw_is_small_have_wrong_actions():
    episode = Episode({"action": np.zeros((4, 2), np.float32), DRAW: np.array([0.05, 0.5, 0.15, 0.1], np.float32)})
    for percent, wrong in ((10, [1, 0, 0, 0]), (20, [1, 0, 1, 1])):
        steps = ReplacedActions(percent)(episode).steps
        assert steps["action"].tolist() == [[w, w] for w in wrong]
        assert steps["keep.clean"].tolist() == [1 - w for w in wrong]


def test_the_block_with_the_median_loss_trains(monkeypatch):
    losses = torch.tensor([9.0, 9.0, 2.0, 4.0, 0.0, 0.0])  # of three blocks: 9, 3 and 0
    monkeypatch.setattr(mixed_demonstrations, "loss_per_window", lambda policy, batch: batch)
    assert MedianBlockWeights(3)(losses, None).tolist() == pytest.approx([0, 0, 1, 1, 0, 0])
