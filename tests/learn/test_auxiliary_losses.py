"""Sample weights that learn, auxiliary losses on captured activations, target networks and noise draws of a head."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step
from torch import nn

from understudy.core import Unsupported, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.base import TargetNetworkHead
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import AuxiliaryLoss, BehaviorCloning
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import LearnedWeightFunction, SampleWeights, WeightFunction
from understudy.nets.base import capture_intermediates, record_intermediate
from understudy.nets.ema import ConstantDecay
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)

    def episode(n):
        state = rng.normal(size=(n, 3)).astype(np.float32)
        quality = (np.arange(n) % 2).astype(np.float32)
        return Episode({STATE: state, "action": np.tanh(state[:, :2]), "quality": quality})
    return Dataset([episode(n) for n in (17, 9, 23)])


def new_policy(data, head=None, **config) -> Policy:
    torch.manual_seed(0)
    config = {"trunk": MLP(16, 1), "window": Window(2, 3), **config}
    return Policy(PolicyConfig(head or Regression(), inputs=(STATE,), **config), data.features()).fit_statistics(data)


def new_learner(data, head=None, policy=None, **config):
    config = {"batch_size": 16, "ema": ConstantDecay(0.0), **config}
    return BehaviorCloning(**config).build(policy or new_policy(data, head), 0, 200, data)


def batches(learner, data):
    sampler = learner.batch_sampler(data)
    return lambda n: sampler.batch(16, n)


def check_resumes(make, data):
    """A learner restored after 3 updates into another policy is bit-equal after 6."""
    straight = make(new_policy(data))
    draw = batches(straight, data)
    fit(straight, draw, 3)
    tensors, metadata = straight.state()
    tensors = {k: v.clone() for k, v in tensors.items()}
    restored = make(Policy(straight.policy.config, data.features()))
    restored.restore(tensors, json.loads(json.dumps(metadata)))
    for learner in (straight, restored):
        fit(learner, draw, 6, start=3)
    straight_state, restored_state = straight.state()[0], restored.state()[0]
    assert straight_state.keys() == restored_state.keys()
    assert all(torch.equal(v, restored_state[k]) for k, v in straight_state.items())


# -- sample weights --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class QualityWeights(SampleWeights):
    """Learns to predict the column "quality" from the observation, and weighs by the prediction."""

    columns: tuple[str, ...] = ("quality",)

    def build(self, policy, data):
        return _QualityWeights(float(np.mean([e.steps["quality"].mean() for e in data])))


class _QualityWeights(LearnedWeightFunction):
    optimizer = OptimizerConfig(lr=0.02)

    def __init__(self, mean: float):
        super().__init__()
        self.mean = mean
        self.classifier = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 1))
        self.lagged = nn.Linear(1, 1).requires_grad_(False)

    def _logit(self, batch):
        return self.classifier(batch.obs[STATE][:, -1])[:, 0]

    def loss(self, batch, policy, rng):
        return nn.functional.binary_cross_entropy_with_logits(
            self._logit(batch), batch.extra["quality"].reshape(len(batch), -1)[:, 0], reduction="none")

    def forward(self, batch, policy):
        return self._logit(batch).sigmoid() / self.mean

    def after_update(self, policy):
        self.lagged.weight += 1


def test_a_learned_weight_function_trains_next_to_the_policy(data):
    """The state tells the quality: its last component is positive where the quality is 1."""
    def told(episode):
        state = np.abs(episode.steps[STATE]) * np.where(episode.steps["quality"] > 0, 1, -1)[:, None]
        return episode.replace({STATE: state.astype(np.float32)})
    data = data.map(told)
    learner = new_learner(data, sample_weights=QualityWeights())
    losses = []
    fit(learner, batches(learner, data), 150, callbacks=[lambda n, _, metrics: losses.append(metrics)])
    batch = learner.batch_sampler(data).gather(np.arange(40))
    with learner.evaluation():
        weights = learner.nets.weights(batch, learner.policy)
    good = batch.extra["quality"].reshape(40, -1)[:, 0] > 0
    assert weights[good].min() > 1.5 > 0.5 > weights[~good].max()  # 1 / mean is about 2
    assert losses[-1]["weights/loss"] < 0.2 * losses[0]["weights/loss"]
    assert learner.nets.weights.lagged.weight.item() == pytest.approx(150, abs=1.1)


def test_a_learned_weight_function_resumes_bit_for_bit(data):
    check_resumes(lambda policy: new_learner(data, policy=policy, sample_weights=QualityWeights()), data)


def test_the_loss_is_weighted_by_the_learned_weights(data):
    learner = new_learner(data, sample_weights=QualityWeights())
    batch = batches(learner, data)(0)
    with torch.no_grad():
        each = learner.policy.loss(batch, torch.Generator())
    metrics = learner.update(batch)  # the weights are those after their own step
    with learner.evaluation():
        weights = learner.nets.weights(batch, learner.policy)[:, None] * batch.mask
    assert metrics["loss"] == pytest.approx(((weights * each).sum() / weights.sum()).item(), rel=1e-5)


@dataclass(frozen=True)
class InverseSpread(SampleWeights, WeightFunction):
    """Statistics of the data, without anything to learn."""

    spread: float = 0.0

    def build(self, policy, data):
        return replace(self, spread=float(np.std(np.concatenate([e.steps["action"] for e in data]))))

    def __call__(self, batch, policy):
        return torch.full((len(batch),), 1 / self.spread)


def test_weights_are_built_from_the_data(data):
    learner = new_learner(data, sample_weights=InverseSpread())
    assert learner.nets.weights.spread == pytest.approx(np.concatenate([e.steps["action"] for e in data]).std())
    assert not any(k.startswith("networks.weights") for k in learner.state()[0])


# -- auxiliary losses ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ContextNorm(AuxiliaryLoss):
    """Mean square of an activation."""

    name: str = "context"
    scale: float = 1.0

    @property
    def captures(self):
        return (self.name,)

    def build(self, policy):
        return lambda policy, batch, rng, captured: self.scale * captured[self.name].square().flatten(1).mean(1)


def test_an_auxiliary_loss_reads_the_activations_of_this_forward_pass(data):
    learner = new_learner(data, auxiliary_losses=(ContextNorm(scale=3.0),))
    batch = batches(learner, data)(0)
    with torch.no_grad():
        loss = learner.policy.loss(batch, torch.Generator())
        norm = learner.policy.context(batch.obs).tokens.square().mean()
    expected = loss.sum() / batch.mask.sum() + 3.0 * norm
    assert learner.update(batch)["loss"] == pytest.approx(expected.item(), rel=1e-5)


def test_gradients_of_an_auxiliary_loss_reach_the_network_that_recorded(data):
    """With a large scale the context shrinks; the batch is split, and each part captures its own activations."""
    optimizer = OptimizerConfig(lr=1e-2, accumulation_steps=3)
    norms = []
    for scale in (0.0, 30.0):
        learner = new_learner(data, auxiliary_losses=(ContextNorm(scale=scale),), optimizer=optimizer)
        draw = batches(learner, data)
        fit(learner, draw, 60)
        with torch.no_grad():
            norms.append(learner.policy.context(draw(0).obs).tokens.square().mean().item())
    assert norms[1] < 0.3 * norms[0]


def test_an_activation_that_nobody_records_is_refused_by_name(data):
    learner = new_learner(data, auxiliary_losses=(ContextNorm("attention"),))
    with pytest.raises(UserError, match="ContextNorm needs the activation 'attention', which this policy does not"):
        learner.update(batches(learner, data)(0))


def test_compiled_networks_offer_no_activations(data):
    with pytest.raises(Unsupported, match="ContextNorm captures 'context'"):
        new_learner(data, auxiliary_losses=(ContextNorm(),), optimizer=OptimizerConfig(compile=True))


def test_recording_does_nothing_unless_asked_for():
    kept = torch.ones(1)
    record_intermediate("a", kept)
    with capture_intermediates(("a", "b")) as outer:
        record_intermediate("a", kept)
        with capture_intermediates(("c",)) as inner:
            record_intermediate("a", kept)
            record_intermediate("c", kept)
        record_intermediate("c", kept)
        record_intermediate("a", 2 * kept)
    record_intermediate("b", kept)
    assert set(outer) == {"a"} and outer["a"].item() == 2 and set(inner) == {"c"}


# -- target networks of heads ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SelfDistilled(TargetNetworkHead):
    """Regression to the action and to what the target network predicts."""

    target_decay: float = 0.75
    base: Regression = field(default_factory=Regression)

    def noise(self, horizon, action_dim):
        return self.base.noise(horizon, action_dim)

    def build(self, trunk, action_dim, spec):
        return self.base.build(trunk, action_dim, spec)

    def loss(self, net, context, action, mask, rng, target_net=None):
        prediction = self.sample(net, context, action[..., :0])
        with torch.no_grad():
            target = self.sample(target_net or net, context, action[..., :0])
        return (prediction - action).square().mean(-1) + (prediction - target).square().mean(-1)

    def sample(self, net, context, noise):
        return self.base.sample(net, context, noise)


def test_a_head_reads_its_target_network(data):
    learner = new_learner(data, SelfDistilled())
    draw = batches(learner, data)
    nets = [[p.detach().clone() for p in learner.policy.net.parameters()]]
    for n in range(3):
        learner.update(draw(n))
        nets.append([p.detach().clone() for p in learner.policy.net.parameters()])
    for i, target in enumerate(learner.nets.target.policy.net.parameters()):
        expected = 0.75**3 * nets[0][i] + sum(0.25 * 0.75 ** (3 - n) * nets[n][i] for n in (1, 2, 3))
        torch.testing.assert_close(target, expected)
    batch = draw(3)
    with torch.no_grad():
        alone = learner.policy.loss(batch, torch.Generator())
        taught = learner.policy.loss(batch, torch.Generator(), learner.nets.target.policy)
        samples = [p.config.head.sample(p.net, learner.policy.context(batch.obs), batch.action[..., :0])
                   for p in (learner.policy, learner.nets.target.policy)]
    gap = (samples[0] - samples[1]).square().mean(-1) * batch.mask
    torch.testing.assert_close(taught - alone, gap)
    assert gap.max() > 0
    assert learner.update(batch)["loss"] == pytest.approx((taught.sum() / batch.mask.sum()).item(), rel=1e-5)


def test_a_target_network_of_a_head_resumes_bit_for_bit(data):
    def make(policy):
        policy = Policy(replace(policy.config, head=SelfDistilled()), data.features()).fit_statistics(data)
        return new_learner(data, policy=policy)
    straight = make(new_policy(data))
    assert any(k.startswith("targets.policy.") for k in straight.state()[0])
    check_resumes(make, data)


# -- noise draws -----------------------------------------------------------------------------------------------------


def test_the_loss_is_the_mean_over_noise_draws_of_one_encoding(data):
    """The K draws of a window are those of K windows in a batch where each window stands K times."""
    policy = new_policy(data, Flow())
    batch = policy.windows(data).batch(5, 0)
    encoded = Counter()
    policy.encoder.register_forward_hook(lambda *_: encoded.update(calls=1, rows=len(_[2].tokens)))
    with torch.no_grad():
        mean = policy.loss(batch, torch.Generator().manual_seed(0), n_noise_samples=4)
        assert encoded == {"calls": 1, "rows": 5}
        rows = torch.arange(5).repeat_interleave(4)
        repeated = replace(batch, obs={k: v[rows] for k, v in batch.obs.items()}, action=batch.action[rows],
                           mask=batch.mask[rows])
        each = policy.loss(repeated, torch.Generator().manual_seed(0))
    torch.testing.assert_close(mean, each.reshape(5, 4, 3).mean(1))
    assert (mean[~batch.mask] == 0).all()


@pytest.mark.parametrize("trunk", [
    MLP(16, 1), Transformer(16, 1, 2), Transformer(16, 1, 2, "joint"), UNet((16, 32))])
def test_noise_draws_of_one_observation_do_not_read_each_other(data, trunk):
    """Changing one draw leaves the outputs of all others bit-equal, those of the same observation included."""
    policy = new_policy(data, Flow(), trunk=trunk, window=Window(2, 4)).eval()
    context = policy.context(policy.windows(data).batch(3, 0).obs).repeat(4)
    x, t = torch.randn(12, 4, 2, generator=torch.Generator().manual_seed(0)), torch.full((12, 4, 1), 0.3)
    with torch.no_grad():
        before = policy.net(x, t, context)
        x[5] += 1
        t[5] = 0.9
        after = policy.net(x, t, context)
    others = torch.arange(12) != 5
    assert torch.equal(before[others], after[others]) and not torch.equal(before[5], after[5])


def test_more_noise_draws_give_a_steadier_loss(data):
    policy = new_policy(data, Flow())
    batch = policy.windows(data).batch(16, 0)
    with torch.no_grad():
        spread = [torch.stack([policy.loss(batch, torch.Generator().manual_seed(s), n_noise_samples=k).mean()
                               for s in range(60)]).var().item() for k in (1, 8)]
    assert spread[1] < 0.3 * spread[0]  # 1/8 in expectation


def test_behavior_cloning_passes_the_number_of_noise_draws_on(data):
    learner = new_learner(data, Flow(), n_noise_samples=3, auxiliary_losses=(ContextNorm(scale=0.0),))
    batch = batches(learner, data)(0)
    assert call_step(learner, "policy_loss", batch, torch.Generator().manual_seed(0))[0].shape == (16, 3)
    one = new_learner(data, Flow())
    assert learner.update(batch)["loss"] != one.update(batch)["loss"]
    with pytest.raises(UserError, match="n_noise_samples is 0"):
        BehaviorCloning(n_noise_samples=0)
