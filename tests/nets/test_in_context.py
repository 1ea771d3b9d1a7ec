"""The in-context transformer, whose tokens are context, time and actions."""

import math

import pytest
import torch
import torch.nn.functional as F
from fixtures.networks import arguments, built, pytorch_layer

from understudy.core import Context
from understudy.nets.in_context import InContextTransformer


@pytest.mark.parametrize("causal", [True, False])
def test_it_is_pytorchs_transformer_over_the_whole_sequence(causal):
    """The same weights in `nn.TransformerEncoderLayer`. A query that reads fewer tokens than there are is masked."""
    net = built(InContextTransformer(16, 3, 2, causal=causal)).double()
    x, t, c = arguments(shared=True)
    x, t, c = x.double(), t.double(), Context(c.tokens.double(), c.mask)
    angles = torch.tensor([[math.pi / 2 * 2 ** i * time for i in range(6)] for time in t[:, 0, 0].tolist()]).to(x)
    time = net.time[3](F.silu(net.time[1](torch.cat([angles.sin(), angles.cos()], -1))))
    h = torch.cat([net.null_token.expand(5, 1, -1), net.context_layer(c.tokens) + net.token_embedding,
                   time.unsqueeze(1), net.input_layer(x) + net.step_embedding], 1)
    hidden = torch.zeros(12, 12, dtype=torch.bool)
    for reader in range(12):  # the first token, four of the context, one of the time, six actions
        hidden[reader, (reader if causal else 4 if reader < 5 else 11) + 1:] = True
    absent = F.pad(~c.mask, (1, 7), value=False)
    for layer in net.layers:
        h = pytorch_layer(layer)(h, src_mask=hidden, src_key_padding_mask=absent)
    torch.testing.assert_close(net(x, t, c), net.output_layer(h[:, 6:]), rtol=1e-6, atol=1e-6)


def test_in_context_a_causal_step_reads_earlier_steps_the_time_and_the_context():
    mask = InContextTransformer().attention_mask(2, 3, True)
    assert torch.equal(mask, torch.ones(6, 6, dtype=torch.bool).tril())
    both = InContextTransformer(causal=False).attention_mask(2, 3, True)
    assert both[2:].all() and both[:2, :2].all() and not both[:2, 2:].any()
