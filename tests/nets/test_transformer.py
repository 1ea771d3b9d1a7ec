"""The transformer: what sees what, and attention as PyTorch computes it."""


import pytest
import torch
from fixtures.networks import TRUNKS, built, rng
from torch import nn

from understudy.core import UserError
from understudy.nets.transformer import Transformer


def test_what_sees_what():
    past = built(TRUNKS["joint_causal"])._causal_mask
    assert past(0, torch.zeros(1, 3, 1)).int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    assert past(2, torch.zeros(1, 2, 1)).int().tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 1, 1, 1]]


def test_attention_is_that_of_torch():
    net = built(Transformer(16, 1, 4, encoder_depth=1))
    attention = net.layers[0].cross_attention
    reference = nn.MultiheadAttention(16, 4, batch_first=True)
    with torch.no_grad():
        layers = (attention.query_layer, attention.key_layer, attention.value_layer)
        reference.in_proj_weight.copy_(torch.cat([layer.weight for layer in layers]))
        reference.in_proj_bias.copy_(torch.cat([attention.query_layer.bias, torch.zeros(16),
                                                attention.value_layer.bias]))
        reference.out_proj.load_state_dict(attention.output_layer.state_dict())
    x, memory = torch.randn(3, 6, 16, generator=rng()), torch.randn(3, 5, 16, generator=rng(1))
    mask = torch.rand(3, 5, generator=rng(2)) < 0.6
    mask[:, 0] = True
    want = reference(x, memory, memory, key_padding_mask=~mask, need_weights=False)[0]
    torch.testing.assert_close(attention(x, attention.keys_values(memory), mask[:, None, None]), want, rtol=1e-5,
                               atol=1e-6)


def test_a_width_that_heads_cannot_share_is_refused():
    with pytest.raises(UserError, match="multiple of heads=4"):
        built(Transformer(18, heads=4))
