"""MCNN: memories mixed with a clipped network."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.heads import rng, tensor

from understudy.core import Context, HeadSpec, Unsupported, UserError
from understudy.heads.memory.mcnn import MCNN
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import random_batch


def mcnn_net(head, keys, values, output=0.0):
    """A net whose trunk predicts `output` everywhere. Memories are stored as they are given."""
    return SimpleNamespace(trunk=lambda x, t, context: torch.full((*x.shape[:2], 1), output, dtype=torch.float64),
                           limit=head.limit, keys=tensor(keys).reshape(-1, 1),
                           values=tensor(values).reshape(-1, 1, 1))


def at(*states):
    return Context(tensor(states).reshape(-1, 1, 1), torch.ones(len(states), 1, dtype=torch.bool))


def test_mcnn_mixes_memory_and_clipped_network():
    """a exp(-decay d) + L (1 - exp(-decay d)) clip(f): Sridhar et al. 2024, with the nearest of two memories."""
    head = MCNN(decay=2.0, limit=1.5)
    net, d = mcnn_net(head, [0.0, 10.0], [0.4, -0.8], output=3.0), [0.0, 0.25, 1.0]
    plan = head.sample(net, at(0, 0.25, 9.0, 60.0), torch.zeros(4, 1, 0))[:, 0, 0].tolist()
    w = np.exp(-2 * np.array(d))
    assert plan[0] == 0.4  # exactly
    np.testing.assert_allclose(plan[1:3], [w[1] * 0.4 + 1.5 * (1 - w[1]), w[2] * -0.8 + 1.5 * (1 - w[2])], rtol=1e-12)
    assert plan[3] == pytest.approx(1.5)  # far from all memories: the network, clipped at its limit
    loss = head.loss(net, at(0.25), tensor([[[0.1]]]), torch.ones(1, 1).bool(), rng())
    assert loss.item() == pytest.approx((plan[1] - 0.1) ** 2)


def test_mcnn_stays_near_its_memories_whatever_the_network_says():
    """|a - w a_m| <= L (1 - w), so |a - a_m| <= (|a_m| + L) decay d, and two networks differ by 2 L (1 - w) at most."""
    head, draw = MCNN(decay=3.0), np.random.default_rng(0)
    keys, values, states = draw.uniform(-2, 2, 12), draw.uniform(-1, 1, 12), draw.uniform(-3, 3, 400)
    d = np.abs(states[:, None] - keys).min(1)
    memory, w = values[np.abs(states[:, None] - keys).argmin(1)], np.exp(-3 * d)
    plans = []
    for output in (-1e6, -0.7, 0.2, 1e6):
        net = mcnn_net(head, keys, values, output)
        plan = head.sample(net, at(*states), torch.zeros(400, 1, 0))[:, 0, 0].numpy()
        assert (np.abs(plan - w * memory) <= 1 - w + 1e-12).all()
        assert (np.abs(plan - memory) <= (np.abs(memory) + 1) * 3 * d + 1e-12).all()
        plans.append(plan)
    np.testing.assert_allclose(np.ptp(plans, axis=0), 2 * (1 - w), atol=1e-12)  # the two extremes attain the bound


def test_mcnn_returns_from_outside_the_clip():
    """There the clip has no slope, so that a plain gradient could never change the network again."""
    output = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    net = mcnn_net(head := MCNN(), [0.0], [0.0])
    net.trunk = lambda x, t, context: output.expand(*x.shape[:2], 1)
    head.loss(net, at(5.0), tensor([[[0.5]]]), torch.ones(1, 1).bool(), rng()).sum().backward()
    assert output.grad.item() == pytest.approx(2 * (1 - 0.5))


def test_mcnn_chooses_windows_of_the_data_as_memories():
    head, draw = MCNN(memory_fraction=0.1), np.random.default_rng(0)
    around = np.repeat([-4.0, 0.0, 4.0], 10) + draw.normal(scale=0.1, size=30)
    net = head.build(MLP(8, 1), 1, HeadSpec(2, 1, 1, bound=1.0))
    action = torch.stack([tensor(around) / 10, tensor(around) / 10], 1).unsqueeze(-1)
    mask = torch.tensor([[True, False]]).expand(30, 2)  # chunks that the end of an episode cuts off are filled
    head.fit(net, lambda: iter([(at(*around), action * mask.unsqueeze(-1), mask)]))
    keys = net.keys.flatten().numpy()
    assert sorted(np.round(keys)) == [-4, 0, 4] and set(keys) <= set(around)
    np.testing.assert_allclose(net.values[..., 0].numpy(), keys[:, None].repeat(2, 1) / 10)


def test_mcnn_refuses_what_would_make_memories_meaningless():
    policy, batch = random_batch(PolicyConfig(MCNN(), trunk=MLP(8, 1)))
    with pytest.raises(Unsupported, match="the encoder is trained"):
        policy.loss(batch, rng())
    with pytest.raises(UserError, match="the coded actions are not"):
        MCNN().build(MLP(), 2, HeadSpec(3, 1, 5, bound=float("inf")))
    with pytest.raises(UserError, match="there are no memories"):
        head = MCNN()
        head.sample(head.build(MLP(), 2, HeadSpec(3, 1, 1, bound=1.0)), at(1), torch.zeros(1, 3, 0))
