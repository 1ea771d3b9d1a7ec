"""Latent dynamics: exact small cases, and encodings that do not collapse."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from understudy.core import Batch, ConfigError, Context, Feature
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit import fit
from understudy.learn.objectives.latent_objectives import LatentDynamics
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.ema import ConstantDecay
from understudy.nets.encoders import TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.transformer import Transformer
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

RAW = Normalizer("identity", "identity")
STATE = "observation.state"


def policy_of(size, width, seed=0):
    torch.manual_seed(seed)
    config = PolicyConfig(Regression(), FeedForward(()), TokenEncoder(width), RAW, target="")
    return Policy(config, {STATE: Feature("float32", (size,))})


def walk(seed):
    rng = np.random.default_rng(seed)
    return Episode({STATE: rng.normal(size=(41, 6)).cumsum(0).astype(np.float32)})


def spread(objective, updates=300, steps=1):
    """The logged spread of encodings at the end, as a fraction of the first."""
    data = Dataset([walk(i) for i in range(10)])
    torch.manual_seed(0)
    config = PolicyConfig(Regression(), FeedForward(), TokenEncoder(8), window=Window(steps), target="")
    policy = Policy(config, data.features()).fit_statistics(data)
    learner = RepresentationLearning((objective,), batch_size=64, ema=ConstantDecay(0.0), optimizer=OptimizerConfig(
        lr=3e-3, lr_schedule="constant")).build(policy, 0, updates, data)
    sampler, logged = learner.batch_sampler(data), []
    fit(learner, lambda n: sampler.batch(64, n), updates,
        callbacks=[lambda n, learner, metrics: logged.append(metrics["encoding_std"])])
    return logged[-1] / logged[0]


def test_encodings_do_not_collapse():
    assert spread(LatentDynamics(2, Transformer(16, 1)), steps=5) > 0.5


def sequences(steps, seed=0):
    """A policy that sees windows, and the loss, a batch and the encodings of nine windows."""
    config = PolicyConfig(Regression(), FeedForward(()), TokenEncoder(5), RAW, Window(steps), target="")
    torch.manual_seed(seed)
    policy = Policy(config, {STATE: Feature("float32", (4,)), "observation.b": Feature("float32", (1,))})
    loss = LatentDynamics(2, Transformer(8, 1, 2), covariance=0.3, weight=2.0).build(policy)
    rng = torch.Generator().manual_seed(seed)
    obs = {STATE: torch.randn(9, steps, 4, generator=rng), "observation.b": torch.randn(9, steps, 1, generator=rng)}
    return policy, loss, Batch(obs, torch.zeros(9, 1, 0), torch.ones(9, 1).bool())


def captured_by(policy, batch):
    context = policy.context(batch.obs)
    return {"context": context.tokens, "context_mask": context.mask}


def test_latent_dynamics_by_hand_and_its_inverse_model_trains():
    policy, loss, batch = sequences(3)
    captured, rng = captured_by(policy, batch), torch.Generator()
    tokens = captured["context"]  # of three steps of one column, then of the other
    encodings = torch.cat([tokens[:, :3], tokens[:, 3:]], -1)
    assert torch.equal(loss.sequence(captured), encodings)
    nothing = Context(torch.zeros(9, 0, 0), torch.zeros(9, 0).bool())
    hidden = loss.inverse(encodings, None, nothing)
    prediction = loss.predictor(torch.cat([encodings[:, :2], hidden[:, 1:]], -1), None, nothing)
    cosine = F.cosine_similarity(prediction, encodings[:, 1:].detach(), dim=-1)
    off = torch.cov(encodings.flatten(0, 1).T)[~torch.eye(10, dtype=torch.bool)].square().mean()
    value = loss(policy, batch, rng, captured)
    assert torch.allclose(value, 2 * (1 - cosine.mean(1) + 0.3 * off), atol=1e-6)
    value.sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.inverse.output_layer.parameters())


class Stub(torch.nn.Module):
    """A network that returns some components of its input."""

    def __init__(self, components):
        super().__init__()
        self.components = components

    def forward(self, x, t, context):
        return x[..., self.components]


@pytest.mark.parametrize("predicted, distances", [
    ([0, 1], (1.5, 0.12)),  # the encoding itself: cosines of 0, -1, and of 24/25, 4/5
    ([2, 3], (0.0, 0.0)),  # the hidden action, which is all that its step ends with
])
def test_the_loss_of_two_windows_worked_out_by_hand(predicted, distances):
    config = PolicyConfig(Regression(), FeedForward(()), TokenEncoder(2), RAW, Window(3), target="")
    policy = Policy(config, {STATE: Feature("float32", (1,))})
    loss = LatentDynamics(2, Transformer(8, 1, 2), covariance=0.3, weight=2.0).build(policy)
    loss.inverse, loss.predictor = Stub([0, 1]), Stub(predicted)
    encodings = torch.tensor([[[1, 0], [0, 2], [0, -1]], [[3, 4], [4, 3], [1, 0]]], dtype=torch.float32)
    captured = {"context": encodings, "context_mask": torch.ones(2, 3, dtype=torch.bool)}
    batch = Batch({STATE: torch.zeros(2, 3, 1)}, torch.zeros(2, 1, 0), torch.ones(2, 1).bool())
    # The covariance of the components over all six encodings is (24 - 6 * 1.5 * 4/3) / 5 = 2.4.
    expected = [2 * (distance + 0.3 * 2.4 ** 2) for distance in distances]
    torch.testing.assert_close(loss(policy, batch, torch.Generator(), captured), torch.tensor(expected))


def test_only_the_hidden_action_tells_what_nothing_before_did_and_the_target_has_no_gradient():
    """Encodings change their sign at random, so that the expected distance of other predictions is 1."""
    torch.manual_seed(0)
    config = PolicyConfig(Regression(), FeedForward(()), TokenEncoder(2), RAW, Window(3), target="")
    policy, rng = Policy(config, {STATE: Feature("float32", (1,))}), torch.Generator().manual_seed(0)
    loss = LatentDynamics(1, Transformer(16, 1, 2), covariance=0.0).build(policy)
    optimizer, mask = torch.optim.Adam(loss.parameters(), 3e-3), torch.ones(64, 3, dtype=torch.bool)
    for _ in range(60):
        sign = 2.0 * torch.randint(0, 2, (64, 3, 1), generator=rng) - 1
        encodings = (sign * torch.tensor([1.0, 0.5])).requires_grad_()
        batch = Batch({STATE: sign}, torch.zeros(64, 1, 0), mask[:, :1])
        value = loss(policy, batch, rng, {"context": encodings, "context_mask": mask}).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert value < 0.01
    loss.predictor.output_layer[1].weight.data.zero_()  # the same prediction of all encodings
    assert not torch.autograd.grad(loss(policy, batch, rng, {"context": encodings, "context_mask": mask}).sum(),
                                   encodings)[0].any()


def test_a_hidden_action_and_a_prediction_read_nothing_later():
    policy, loss, batch = sequences(5)
    with torch.no_grad():
        encodings = loss.sequence(captured_by(policy, batch))
        nothing, later = Context(torch.zeros(9, 0, 0), torch.zeros(9, 0).bool()), encodings.clone()
        later[:, 3:] += 1
        hidden, changed = (loss.inverse(x, None, nothing) for x in (encodings, later))
        assert torch.allclose(hidden[:, :3], changed[:, :3], atol=1e-6)
        assert not torch.allclose(hidden[:, 3], changed[:, 3], atol=1e-3)
        pairs, changed = (torch.cat([x[:, :4], hidden[:, 1:]], -1) for x in (encodings, later))
        pairs, changed = (loss.predictor(x, None, nothing) for x in (pairs, changed))
        assert torch.allclose(pairs[:, :3], changed[:, :3], atol=1e-6)


def test_latent_dynamics_needs_a_next_observation():
    with pytest.raises(ConfigError, match="sees one observation"):
        LatentDynamics().build(policy_of(4, 5))


def test_the_contract():
    check_learner(RepresentationLearning((LatentDynamics(2, Transformer(8, 1, 2)),), batch_size=8))
