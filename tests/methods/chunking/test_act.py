"""ACT: the network of the method, with PyTorch's layers on the same weights."""

from dataclasses import replace

import torch
from fixtures.networks import pytorch_layer

from understudy.core import Batch, Feature
from understudy.data.codec import Normalizer
from understudy.methods.chunking.act import act
from understudy.policy import Policy

STATE, OTHER = "observation.state", "observation.other"
FEATURES = {STATE: Feature("float32", (3,)), OTHER: Feature("float32", (2,)), "action": Feature("float32", (2,))}


def with_pytorchs_layers(net, x, tokens):
    """The output for the inputs of each action step (B, H, D) and tokens of the observation (B, 2, D)."""
    memory = torch.cat([net.null_token.expand(len(x), 1, -1), net.context_layer(tokens) + net.token_embedding], 1)
    assert len(net.encoder) == 4 and len(net.layers) == 1  # a decoder of one layer, as only the first of ACT's counts
    for block in net.encoder:
        memory = pytorch_layer(block)(memory)
    return net.output_layer(pytorch_layer(net.layers[0])(net.input_layer(x) + net.step_embedding, memory))


def test_plan_and_loss_are_those_of_pytorchs_encoder_and_decoder():
    """The loss is the absolute error plus 10 KL(q | N(0, 1)), with the log densities of `torch.distributions`."""
    torch.manual_seed(0)
    policy = Policy(replace(act(5).policy, codec=Normalizer("identity", "identity")), FEATURES)
    mask = torch.ones(4, 5, dtype=torch.bool)
    mask[1, 3:] = False
    obs, action = {STATE: torch.randn(4, 1, 3), OTHER: torch.randn(4, 1, 2)}, torch.randn(4, 5, 2)
    tokens, net, present = policy.context(obs).tokens, policy.net, mask.unsqueeze(-1).float()
    plan = policy.plan(obs, torch.randn(4, 32))
    torch.testing.assert_close(plan, with_pytorchs_layers(net.decoder, torch.zeros(4, 5, 32), tokens), rtol=1e-4,
                               atol=1e-5)
    steps = with_pytorchs_layers(net.posterior, torch.cat([action * present, present], -1), tokens)
    mean, log_std = torch.stack([row[present].mean(0) for row, present in zip(steps, mask, strict=True)]).chunk(2, -1)
    posterior = torch.distributions.Normal(mean, log_std.exp())
    z = mean + log_std.exp() * torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    divergence = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).sum(-1)
    decoded = with_pytorchs_layers(net.decoder, z.unsqueeze(1).expand(4, 5, 32), tokens)
    loss = policy.loss(Batch(obs, action, mask), torch.Generator().manual_seed(1))
    expected = ((decoded - action * present).abs().mean(-1) + 10 * divergence.unsqueeze(1)) * mask
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-4)
