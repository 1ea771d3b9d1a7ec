"""The task "carry" of the claim about the components of Diffusion Policy."""

import numpy as np
import pytest
import torch
from evidence.families.policy_heads.diffusion_components import BINS, Carry

from understudy.core import keys
from understudy.evaluate.rollout import rollout
from understudy.testing import check_env


@pytest.mark.parametrize("options", [{}, {"grip": 4}, {"changes": 0.5}, {"grip": 4, "absolute": True}], ids=str)
def test_the_expert_carries_every_block_and_waits_for_the_hand(options):
    check_env(lambda rows: Carry(rows, limit=8, **options))
    env = Carry(40, **options)
    episodes = rollout(env.expert(), env, 80)
    assert all(e.metadata["success"] for e in episodes)
    goals = [np.asarray(e.steps["observation.state"])[:, 5:] for e in episodes]
    changed = np.mean([(goal != goal[0]).any() for goal in goals])
    assert 0.3 < changed < 0.7 if options.get("changes") else changed == 0
    closed = [np.asarray(e.steps["observation.state"])[:, 2] for e in episodes]
    still = [np.abs(np.diff(np.asarray(e.steps["observation.state"])[:, :2], axis=0)).max(1) < 1e-6 for e in episodes]
    waits = [int((s & (c[1:] > 0.5)).sum()) for s, c in zip(still, closed, strict=True)]
    assert min(waits) >= options.get("grip", 1)


@pytest.mark.parametrize("waits", [1, 2, 3, 4, 5])
def test_a_hand_that_leaves_before_it_holds_the_block_fails(waits):
    env = Carry(1, grip=4)
    state = env.reset(torch.tensor([0]), keys(0, [0]))["observation.state"]
    env.restore(torch.tensor([0]), {"observation.state": torch.cat([state[:, 3:5], state[:, 2:]], 1),
                                    "simulator.state": torch.tensor([[0.0, 0, 1, 2]])})
    for _ in range(waits):
        assert not env.step(torch.tensor([[0.0, 0, 1]])).terminated.any()
    out = env.step(torch.tensor([[1.0, 0, 1]]))
    assert out.terminated.item() == (waits < 4) and out.reward.item() == -(waits < 4)
    assert waits < 4 or torch.equal(out.obs["observation.state"][:, :2], out.obs["observation.state"][:, 3:5])


@pytest.mark.parametrize("over_bin", [True, False])
def test_a_block_is_let_go_over_its_bin_or_lost(over_bin):
    env = Carry(1)
    at = BINS[0] if over_bin else BINS[1]
    state = torch.tensor([[*at, 1, *at, *BINS[0]]], dtype=torch.float32)
    env.restore(torch.tensor([0]), {"observation.state": state, "simulator.state": torch.tensor([[1.0, 0, 1, 2]])})
    out = env.step(torch.tensor([[0.0, 0, -1]]))
    assert out.terminated.item() and out.info["success"].item() == over_bin
    assert out.reward.item() == (1 if over_bin else -1)
