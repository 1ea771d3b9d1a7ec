"""Regression, Gaussian, mixture and categorical heads, against torch.distributions."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fixtures.heads import ACTION, EMPTY, MASK, constant, rng
from scipy import stats
from torch import distributions as D

from understudy.core import HeadSpec, UserError
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.nets.mlp import MLP


def test_regression_is_the_error_per_step():
    net = constant(1.0, 1.0)
    assert Regression("l2").loss(net, EMPTY, ACTION, MASK, rng()).tolist() == [[(0.25 + 4) / 2, (1 + 1) / 2]]
    assert Regression("l1").loss(net, EMPTY, ACTION, MASK, rng()).tolist() == [[(0.5 + 2) / 2, (1 + 1) / 2]]
    huber = Regression("huber", delta=0.75).loss(net, EMPTY, ACTION, MASK, rng())  # 0.5 e^2, or 0.75 (|e| - 0.375)
    assert huber.tolist() == [[(0.125 + 0.75 * 1.625) / 2, 0.75 * 0.625]]


@pytest.mark.parametrize("head, net, std", [
    (Gaussian(), constant(0.3, -0.2, 0.5, -2.0), np.logaddexp(0, [0.5, -2.0]) + 0.01),
    (Gaussian(std=0.7), constant(0.3, -0.2), [0.7, 0.7])])
def test_gaussian(head, net, std):
    truth = D.Normal(torch.tensor([0.3, -0.2]), torch.tensor(std).float()).log_prob(ACTION).sum(-1)
    torch.testing.assert_close(head.loss(net, EMPTY, ACTION, MASK, rng()), -truth)
    torch.testing.assert_close(head.log_prob(net, EMPTY, ACTION), truth.sum(1))
    noise = torch.randn(1, 2, 2)
    assert torch.equal(head.sample(net, EMPTY, noise), torch.tensor([0.3, -0.2]).expand(1, 2, 2))
    drawn = Gaussian(head.std, temperature=1.0).sample(net, EMPTY, noise)
    torch.testing.assert_close(drawn, torch.tensor([0.3, -0.2]) + noise * torch.tensor(std).float())


LOGITS, MEANS, SPREADS = torch.tensor([0.0, 1.0, -1.0]), torch.randn(3, 2, generator=rng(1)), torch.randn(
    3, 2, generator=rng(2))
MIXTURE = constant(*torch.cat([LOGITS.unsqueeze(1), MEANS, SPREADS], 1).flatten().tolist())


def test_mixture_of_each_step():
    std = torch.nn.functional.softplus(SPREADS) + 0.01
    truth = D.MixtureSameFamily(D.Categorical(logits=LOGITS), D.Independent(D.Normal(MEANS, std), 1)).log_prob(ACTION)
    head = GMM(n_components=3, joint=False)
    torch.testing.assert_close(-head.loss(MIXTURE, EMPTY, ACTION, MASK, rng()), truth)
    torch.testing.assert_close(head.log_prob(MIXTURE, EMPTY, ACTION), truth.sum(1))


def test_mixture_of_whole_chunks():
    std = torch.nn.functional.softplus(SPREADS) + 0.01

    def over(rows):  # each mode's Gaussian is over the rows of a chunk together
        mean, spread = (x.unsqueeze(1).expand(-1, rows, -1) for x in (MEANS, std))
        return D.MixtureSameFamily(D.Categorical(logits=LOGITS), D.Independent(D.Normal(mean, spread), 2))
    head = GMM(n_components=3)
    torch.testing.assert_close(head.log_prob(MIXTURE, EMPTY, ACTION), over(2).log_prob(ACTION))
    loss = head.loss(MIXTURE, EMPTY, ACTION, MASK, rng())
    torch.testing.assert_close(-loss, over(2).log_prob(ACTION).unsqueeze(1).expand(1, 2) / 2)
    first = torch.tensor([[True, False]])  # a padded step leaves the likelihood of the others as it is
    torch.testing.assert_close(-head.loss(MIXTURE, EMPTY, ACTION, first, rng())[:, 0], over(1).log_prob(ACTION[:, :1]))


@pytest.mark.parametrize("joint", (True, False))
def test_mixture_draws_modes_by_their_weights(joint):
    head, B = GMM(n_components=3, joint=joint), 20_000
    noise = torch.randn(B, *head.noise(2, 2), generator=rng())
    drawn = head.sample(MIXTURE, EMPTY, noise)
    mode = (drawn.unsqueeze(2) - MEANS).abs().sum(-1).argmin(-1)  # (B, 2)
    torch.testing.assert_close(drawn, MEANS[mode])  # low noise: nothing but means
    for step in range(2):
        assert stats.chisquare(mode[:, step].bincount(minlength=3), LOGITS.softmax(0) * B).pvalue > 1e-3
    same = float((mode[:, 0] == mode[:, 1]).float().mean())
    assert same == 1 if joint else abs(same - float(LOGITS.softmax(0).square().sum())) < 0.02
    drawn = GMM(n_components=3, joint=joint, temperature=1.0).sample(MIXTURE, EMPTY, noise)
    of_first = drawn[:, 0][mode[:, 0] == 1]
    std = torch.nn.functional.softplus(SPREADS[1]) + 0.01
    assert all(stats.kstest(of_first[:, i], stats.norm(float(MEANS[1, i]), float(std[i])).cdf).pvalue > 1e-3
               for i in (0, 1))


def test_categorical():
    logits = torch.tensor([0.0, 2.0, -1.0, 1.0, 1.5])
    net = SimpleNamespace(trunk=constant(*logits.tolist()), num_classes=(3, 2), layers=None)
    truth = [D.Categorical(logits=part) for part in logits.split((3, 2))]
    action = torch.tensor([[[0, 0, 1, 1, 0], [1, 0, 0, 0, 1]]]).float()
    each = torch.stack([truth[0].log_prob(torch.tensor([2, 0])) + truth[1].log_prob(torch.tensor([0, 1]))])
    head = Categorical()
    torch.testing.assert_close(head.loss(net, EMPTY, action, MASK, rng()), -each)
    torch.testing.assert_close(head.log_prob(net, EMPTY, action), each.sum(1))
    noise = torch.randn(20_000, 2, 5, generator=rng())
    assert torch.equal(head.sample(net, EMPTY, noise)[0, 0], torch.tensor([0, 1.0, 0, 0, 1]))
    drawn = Categorical(temperature=1.0).sample(net, EMPTY, noise)
    for part, one in zip(truth, drawn[:, 1].split((3, 2), -1), strict=True):
        assert (one.sum(-1) == 1).all()
        assert stats.chisquare(one.sum(0), part.probs * 20_000).pvalue > 1e-3


def test_categorical_needs_choices():
    with pytest.raises(UserError, match="needs a discrete target"):
        Categorical().build(MLP(), 2, HeadSpec(1, 1, 4))
