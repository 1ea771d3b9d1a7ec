"""The in-context transformer, whose tokens are context, time and actions."""


import pytest
import torch
import torch.nn.functional as F
from fixtures.networks import arguments, built

from understudy.core import Context
from understudy.nets.in_context import InContextTransformer


@pytest.mark.parametrize("causal", [True, False])
def test_the_in_context_transformer_is_one_transformer_over_context_time_and_actions(causal):
    """A second writing that runs the whole sequence at once, and keeps no keys and values."""
    net = built(InContextTransformer(16, 3, 2, causal=causal)).double()
    x, t, c = arguments(shared=True)
    x, t, c = x.double(), t.double(), Context(c.tokens.double(), c.mask)
    null = net.null_token.expand(5, 1, -1)
    h = torch.cat([null, net.context_layer(c.tokens) + net.token_embedding, net.time(t[:, :1, :]),
                   net.input_layer(x) + net.step_embedding], 1)
    assert h.shape[1] == 1 + 4 + 1 + 6
    order = torch.arange(12) if causal else torch.tensor([0] * 5 + [1] * 7)
    visible = F.pad(c.mask, (1, 7), value=True)[:, None, None] & (order[:, None] >= order)
    for layer in net.layers:
        h = layer(h, mask=visible)
    torch.testing.assert_close(net(x, t, c), net.output_layer(h[:, 6:]), rtol=1e-10, atol=1e-12)


def test_in_context_a_causal_step_reads_earlier_steps_the_time_and_the_context():
    mask = InContextTransformer().attention_mask(2, 3, True)
    assert torch.equal(mask, torch.ones(6, 6, dtype=torch.bool).tril())
    both = InContextTransformer(causal=False).attention_mask(2, 3, True)
    assert both[2:].all() and both[:2, :2].all() and not both[:2, 2:].any()
