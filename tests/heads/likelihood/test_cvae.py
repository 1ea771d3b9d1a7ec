"""The conditional VAE."""

from types import SimpleNamespace

import torch
from fixtures.heads import ACTION, EMPTY, rng
from torch import distributions as D

from understudy.heads.likelihood.cvae import CVAE


def test_cvae():
    """Mean absolute error plus beta times the divergence, summed over z: Zhao et al. 2023, appendix C."""
    mean, log = torch.tensor([0.5, -1.0]), torch.tensor([-0.3, 0.2])
    inputs = []

    def posterior(x, t, context):
        inputs.append(x)
        output = torch.cat([mean, log]).expand(*x.shape[:2], -1).clone()
        output[:, 1] = 99.0  # of the padded step
        return output
    net = SimpleNamespace(posterior=posterior, decoder=lambda x, t, c: x, horizon=2)
    head, mask = CVAE(latent_dim=2, beta=10.0), torch.tensor([[True, False]])
    loss = head.loss(net, EMPTY, ACTION, mask, rng(4))
    z = mean + log.exp() * torch.randn(1, 2, generator=rng(4))
    divergence = D.kl_divergence(D.Normal(mean, log.exp()), D.Normal(0.0, 1.0)).sum()
    torch.testing.assert_close(loss, (z - ACTION).abs().mean(-1) + 10 * divergence)
    assert inputs[0].tolist() == [[[0.5, -1.0, 1.0], [0, 0, 0]]]  # the action and whether it is one
    noise = torch.randn(1, *head.noise(2, 2))
    assert not head.sample(net, EMPTY, noise).any()  # z = 0
    torch.testing.assert_close(CVAE(2, temperature=1.0).sample(net, EMPTY, noise), noise.unsqueeze(1).expand(1, 2, 2))
