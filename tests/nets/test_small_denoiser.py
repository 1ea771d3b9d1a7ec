"""The small denoiser: one reading of the context, and steps alone or together."""


import pytest
import torch
from fixtures.networks import arguments, built

from understudy.core import Context, HeadSpec, Unsupported, UserError
from understudy.nets.base import precomputed
from understudy.nets.in_context import InContextTransformer
from understudy.nets.mlp import MLP
from understudy.nets.small_denoiser import SmallDenoiser
from understudy.nets.transformer import Transformer
from understudy.testing import check_trunk


@pytest.mark.parametrize("each_step", [True, False])
def test_a_small_denoiser_reads_the_context_once_and_denoises_steps_alone_or_together(each_step):
    net = built(SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16, each_step))
    x, t, c = arguments()
    calls = []
    net.backbone.register_forward_hook(lambda *_: calls.append(1))
    once = precomputed(net, c)
    first = net(x, t, once)
    x2, t2 = x.clone(), t.clone()
    x2[:, 3], t2[:, 3] = 9, 0.123
    second = net(x2, t2, once)
    assert len(calls) == 1
    changed = [not torch.allclose(first[:, i], second[:, i], atol=1e-6) for i in range(6)]
    assert changed == ([i == 3 for i in range(6)] if each_step else [True] * 6)


@pytest.mark.parametrize("each_step", [True, False])
def test_a_small_denoiser_keeps_the_contract_of_trunks(each_step):
    check_trunk(SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16, each_step))


def test_steps_of_a_small_denoiser_share_its_weights_and_differ_in_their_features():
    net = built(SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16))
    x, t, c = arguments(shared=True)
    features = precomputed(net, c).features
    there = torch.ones(5, 1, dtype=torch.bool)
    for i in range(6):
        alone = net.denoiser(x[:, i:i + 1], t[:, i:i + 1], Context(features[:, i:i + 1], there))
        torch.testing.assert_close(net(x, t, c)[:, i:i + 1], alone)
    assert not torch.allclose(features[:, 0], features[:, 1])


def test_a_causal_head_may_have_a_small_denoiser_of_single_steps_only():
    spec = HeadSpec(6, 1, 4, token_obs_steps=(0,), causal=True)
    SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16).build(2, 2, 1, spec)
    with pytest.raises(Unsupported, match="causal"):
        SmallDenoiser(Transformer(16, 1, 2), MLP(16, 1), 16, each_step=False).build(2, 2, 1, spec)
    with pytest.raises(UserError, match="InContextTransformer: .*multiple of heads"):
        InContextTransformer(18, heads=4).build(2, 2, 1, spec)
