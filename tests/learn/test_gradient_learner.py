"""GradientLearner: several networks, their optimizers, target networks, averages and exact resuming."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from fixtures.gradient_learners import TD, TDLearner, Value
from torch import nn

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.devices import seed_generators
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)

    def episode(n):
        state = rng.normal(size=(n + 1, 3)).astype(np.float32)
        return Episode({STATE: state, "action": np.tanh(state[:-1, :2]),
                        "next.reward": rng.normal(size=n).astype(np.float32)})
    return Dataset([episode(n) for n in (17, 9, 23, 12)])


def new_policy(data, seed=0, dropout=0.2, head=None) -> Policy:
    torch.manual_seed(seed)
    config = PolicyConfig(head or Regression(), trunk=MLP(16, 1, dropout=dropout), window=Window(2, 3), inputs=(STATE,))
    return Policy(config, data.features()).fit_statistics(data)


def new_learner(data, seed=0, steps=20, **config) -> TDLearner:
    policy = new_policy(data, seed)
    return TD(**config).build(policy, seed, steps, data)



def test_training_under_no_grad_is_the_same_training(data):
    """Otherwise no loss would have a gradient, and a training would end without an error and without a change."""
    learners = [new_learner(data, steps=2) for _ in range(2)]
    batch = learners[0].batch_sampler(data).batch(8, 0, seed=0)
    learners[0].update(batch)
    with torch.no_grad():
        learners[1].update(batch)
    one, other = (learner.policy.state_dict() for learner in learners)
    assert all(torch.equal(v, other[k]) for k, v in one.items())


def tensors_of(learner) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in learner.state()[0].items()}


def batches(learner, data, size=16):
    sampler = learner.batch_sampler(data)
    return lambda n: sampler.batch(size, n)


def test_two_networks_train_with_their_own_optimizers(data):
    learner = new_learner(data, policy_optimizer=OptimizerConfig(lr=1e-3, weight_decay=0.0, grad_clip_norm=None),
                          value_optimizer=OptimizerConfig(lr=0.02, weight_decay=0.0, grad_clip_norm=None))
    before = {k: v.clone() for k, v in learner.state()[0].items()}
    metrics = learner.update(batches(learner, data)(0))
    moved = {k: (v - before[k]).abs().max().item() for k, v in learner.state()[0].items() if k.startswith("networks")}
    # Adam's first step moves each weight that has a gradient by its learning rate (Kingma and Ba 2015, section 2.1).
    assert max(v for k, v in moved.items() if ".value." in k) == pytest.approx(0.02, rel=1e-3)
    assert max(v for k, v in moved.items() if ".policy." in k) == pytest.approx(1e-3, rel=1e-3)
    assert set(metrics) == {"loss", "gradient", "rate", "value/loss", "value/gradient", "value/rate", "advantage"}
    assert metrics["rate"] == 1e-3 and metrics["value/rate"] == 0.02


def test_a_loss_gives_gradients_to_its_own_network_alone(data):
    learner = new_learner(data)
    batch = batches(learner, data)(0)
    before = tensors_of(learner)

    def both(part, rng):  # as the actor loss of DDPG, which runs through the critic
        return learner.value(part.obs) + learner.policy.loss(part, rng).sum(1)
    learner.minimize("policy", both, batch)
    after = tensors_of(learner)
    assert all(torch.equal(before[k], after[k]) for k in before if ".value." in k)
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("networks.policy."))
    assert all(p.grad is None for p in learner.value.parameters())


def test_weights_of_other_networks_require_gradients_again_after_a_loss(data):
    learner = new_learner(data)
    frozen = next(learner.value.parameters())
    frozen.requires_grad = False
    weights = [p for p in learner.value.parameters() if p is not frozen]

    def loss(part, rng):
        assert not any(p.requires_grad for p in weights)
        assert all(p.requires_grad for p in learner.policy.net.parameters())
        return learner.value(part.obs)
    with pytest.raises(ValueError, match="not reduced"):
        learner.minimize("policy", lambda part, rng: loss(part, rng).mean(), batches(learner, data)(0))
    learner.minimize("policy", loss, batches(learner, data)(0))
    assert all(p.requires_grad for p in weights) and not frozen.requires_grad


def test_a_target_network_follows_in_closed_form(data):
    learner = new_learner(data, target_decay=0.75)
    draw = batches(learner, data)
    values = [[p.detach().clone() for p in learner.value.parameters()]]
    for n in range(5):
        learner.update(draw(n))
        values.append([p.detach().clone() for p in learner.value.parameters()])
    for i, target in enumerate(learner.target_value.parameters()):
        expected = 0.75**5 * values[0][i] + sum(0.25 * 0.75 ** (5 - n) * values[n][i] for n in range(1, 6))
        torch.testing.assert_close(target, expected)
        assert not target.requires_grad
    assert not learner.target_value.training and learner.value.training


def test_the_average_acts_and_the_last_weights_train(data):
    learner = new_learner(data)
    draw = batches(learner, data)
    expected = [p.detach().clone() for p in learner.policy.parameters()]
    for n in range(3):
        learner.update(draw(n))
        expected = [0.8 * e + 0.2 * p.detach() for e, p in zip(expected, learner.policy.parameters(), strict=True)]
    assert learner.trained_policy is not learner.policy
    for parameter, expected_parameter in zip(learner.trained_policy.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter, expected_parameter)


@pytest.mark.parametrize("parts", [1, 3])
def test_a_restored_learner_continues_bit_for_bit(data, parts):
    """Into networks of other weights, from a file's tensors and JSON."""
    optimizer = OptimizerConfig(lr=3e-3, accumulation_steps=parts, warmup_steps=2)
    straight, stopped = (new_learner(data, value_optimizer=optimizer) for _ in range(2))
    draw = batches(straight, data)
    fit(straight, draw, 9)
    fit(stopped, draw, 4)
    tensors, metadata = stopped.state()
    tensors = {k: v.clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    bare = Policy(stopped.policy.config, data.features())
    restored = TD(value_optimizer=optimizer).build(bare, 0, 20, data)
    restored.restore(tensors, json.loads(json.dumps(metadata)))
    fit(restored, draw, 9, start=4)
    straight_state, restored_state = straight.state(), restored.state()
    assert straight_state[1] == restored_state[1] and straight_state[0].keys() == restored_state[0].keys()
    assert all(torch.equal(v, restored_state[0][k]) for k, v in straight_state[0].items())
    assert straight.update(draw(9)) == restored.update(draw(9))


def test_parts_of_a_batch_add_up_to_the_batch(data):
    """Weights and padding differ between the parts. Without dropout and noise, the parts give the whole gradient."""
    def trained(parts):
        learner = new_learner(data, dropout=0.0, policy_optimizer=OptimizerConfig(accumulation_steps=parts))
        learner.policy.eval()
        windows = learner.batch_sampler(data)
        weights = torch.linspace(0, 3, 16)
        for n in range(4):
            learner.minimize("policy", learner.policy.loss, windows.batch(16, n), weights)
            learner.end_update()
        return torch.cat([p.detach().flatten() for p in learner.policy.parameters()])
    whole = trained(1)
    for parts in (2, 3):
        torch.testing.assert_close(trained(parts), whole, rtol=1e-4, atol=1e-6)
    with pytest.raises(UserError, match="batch_size is 16, but each batch is split into 17 parts"):
        new_learner(data, policy_optimizer=OptimizerConfig(accumulation_steps=17))


def test_losses_are_weighted_means(data):
    learner = new_learner(data)
    batch = batches(learner, data)(0)
    assert not batch.mask.all()
    weights = torch.linspace(0.5, 2, 16)

    def value_of(loss, weights=None, **options):
        learner.minimize("policy", loss, batch, weights, **options)
        return learner.end_update()["loss"]

    def zero():
        return sum(p.sum() for p in learner.policy.parameters()) * 0
    rows, steps = torch.randn(16), torch.randn(16, 3)
    assert value_of(lambda part, rng: rows + zero()) == pytest.approx(rows.mean().item(), abs=1e-6)
    assert value_of(lambda part, rng: rows + zero(), weights) == pytest.approx(
        (weights * rows).sum().item() / weights.sum().item(), abs=1e-6)
    assert value_of(lambda part, rng: steps + zero()) == pytest.approx(steps[batch.mask].mean().item(), abs=1e-6)
    each = weights[:, None] * batch.mask
    assert value_of(lambda part, rng: steps + zero(), weights) == pytest.approx(
        ((each * steps).sum() / each.sum()).item(), abs=1e-6)
    assert value_of(lambda part, rng: (steps + zero(), rows), weights) == pytest.approx(
        ((each * steps).sum() / each.sum() + rows.mean()).item(), abs=1e-6)
    assert value_of(lambda part, rng: rows + zero(), weights, normalize="rows") == pytest.approx(
        (weights * rows).mean().item(), abs=1e-6)
    assert value_of(lambda part, rng: steps + zero(), each, normalize="rows") == pytest.approx(
        (each * steps)[batch.mask].mean().item(), abs=1e-6)
    batch = batch.replace(mask=torch.ones_like(batch.mask))  # then no weights are bit-identical to weights of 1
    for loss in (lambda part, rng: rows + zero(), lambda part, rng: (steps + zero(), rows)):
        assert value_of(loss) == value_of(loss, torch.ones(16)) == value_of(loss, torch.ones(16, 3), normalize="rows")


@pytest.mark.parametrize("parts", [1, 3])
def test_what_a_loss_logs_is_the_mean_over_the_batch(data, parts):
    """Parts of 16 windows in 3 have unequal sizes. Several calls of `minimize` count the same."""
    learner = new_learner(data, policy_optimizer=OptimizerConfig(accumulation_steps=parts))
    batch, scores = batches(learner, data)(0), torch.randn(16, 2)

    def loss(part, rng):
        learner.log(score=part.extra["score"], doubled=2 * part.extra["score"][:, 0])
        return learner.policy.loss(part, rng)
    for _ in range(2):
        learner.minimize("policy", loss, batch.replace(extra={"score": scores}))
    metrics = learner.end_update()
    assert metrics["score"] == pytest.approx(scores.mean().item(), abs=1e-6)
    assert metrics["doubled"] == pytest.approx(2 * scores[:, 0].mean().item(), abs=1e-6)
    assert "score" not in learner.end_update()


@pytest.mark.parametrize("reduced", [lambda x: x.mean(), lambda x: x.mean(0), lambda x: x[:, :1].mean(0)])
def test_a_reduced_loss_is_refused(data, reduced):
    learner = new_learner(data)
    with pytest.raises(ValueError, match=r"one number per window, \(16,\), or per step, \(16, 3\), not reduced"):
        learner.minimize("policy", lambda part, rng: reduced(learner.policy.loss(part, rng)), batches(learner, data)(0))


@pytest.mark.parametrize("seed", [0, 7, 2**63 - 1, -(2**62)])
def test_generators_get_the_state_that_manual_seed_gives(seed):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        want = torch.get_rng_state()
        torch.manual_seed(1)
        seed_generators(seed, torch.device("cpu"))
        assert torch.equal(torch.get_rng_state(), want)


def test_random_numbers_depend_on_seed_update_call_and_part(data):
    learner = new_learner(data, policy_optimizer=OptimizerConfig(accumulation_steps=2))
    batch, drawn = batches(learner, data)(0), []

    def loss(part, rng):
        drawn.append((torch.rand(1, generator=rng).item(), torch.rand(1).item()))
        return learner.policy.loss(part, rng)
    before = torch.get_rng_state()
    for _ in range(2):
        learner.minimize("policy", loss, batch)
        learner.minimize("policy", loss, batch)
        learner.end_update()
    assert torch.equal(torch.get_rng_state(), before)
    assert len({x for pair in drawn for x in pair}) == 16  # 2 updates, 2 calls, 2 parts, noise and dropout
    same = new_learner(data, policy_optimizer=OptimizerConfig(accumulation_steps=2))
    first, drawn[:] = list(drawn), []
    same.minimize("policy", loss, batch)
    assert drawn == first[:2]
    streams = [learner.generator(s).initial_seed() for s in (0, 1)]
    assert streams[0] != streams[1] and streams[0] == learner.generator().initial_seed()
    learner.n_updates += 1
    assert learner.generator().initial_seed() != streams[0]


def test_a_value_that_is_not_finite_names_network_and_update(data):
    learner = new_learner(data)
    draw = batches(learner, data)
    learner.update(draw(0))
    before, batch = tensors_of(learner), draw(1)
    with pytest.raises(UserError, match=r"update 2: the loss of 'value' is nan"):
        learner.update(batch.replace(extra={**batch.extra, "next.reward": batch.extra["next.reward"] * torch.nan}))
    assert all(torch.equal(v, before[k]) for k, v in learner.state()[0].items())
    again = new_learner(data)  # the failed update leaves no trace: the next one draws what it would have drawn
    again.update(draw(0))
    assert learner.update(batch) == again.update(batch)


def test_names_are_unique_and_a_saved_module_is_not_trained(data):
    learner = new_learner(data)
    with pytest.raises(ValueError, match="'value' is not a new name"):
        learner.register("value", Value())
    learner.register("table", nn.Linear(2, 2))
    assert "networks.table.0.weight" in learner.state()[0]
    with pytest.raises(ValueError, match="'table' was registered without an optimizer"):
        learner.minimize("table", lambda part, rng: part.mask.float(), batches(learner, data)(0))
