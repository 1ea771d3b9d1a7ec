"""Experts that the noise level chooses: routing, weighting and balancing in closed form, and the trunk around them."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from understudy.core import Context, Feature, HeadSpec, Unsupported, UserError
from understudy.data.window import Window
from understudy.deploy.equivalence import random_noise
from understudy.deploy.fused_experts import fuse_experts
from understudy.deploy.packed_weights import pack_weights
from understudy.heads.denoising.edm import EDM
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.heads.one_step.mip import MIP
from understudy.heads.solvers import DPMSolverPP, Heun
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import fit
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.generative.mode import LoadBalancing
from understudy.nets.base import capture_intermediates, precomputed, time_embedding, with_time_embedding
from understudy.nets.mixture_of_experts import MoEFeedForward, MoEFeedForwardNet
from understudy.nets.transformer import Transformer
from understudy.policy import Inpaint, Policy, PolicyConfig
from understudy.testing import check_head, check_trunk, random_batch, random_dataset


def experts(n_experts=4, top_k=2, width=6, hidden=5):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MoEFeedForward(n_experts, top_k).build(width, hidden, 0.0)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_the_output_is_the_weighted_sum_of_the_chosen_experts(top_k):
    net = experts(top_k=top_k).eval()
    x, time = torch.randn(3, 7, 6, generator=rng()), torch.randn(3, 7, 6, generator=rng(1))
    weights, p = net.weights(time), net.router(time).softmax(-1)
    expected = torch.zeros_like(x)
    for row in range(3):
        for step in range(7):
            best = p[row, step].argsort(descending=True)[:top_k].tolist()
            assert weights[row, step].nonzero().flatten().tolist() == sorted(best)
            for e in best:
                hidden = F.gelu(net.weight_in[e] @ x[row, step] + net.bias_in[e])
                share = p[row, step, e] / p[row, step, best].sum()
                expected[row, step] += share * (net.weight_out[e] @ hidden + net.bias_out[e])
    torch.testing.assert_close(net(x, weights), expected, rtol=1e-4, atol=1e-6)


def test_one_time_for_all_computes_the_chosen_experts_only():
    net = experts().eval()
    x, time = torch.randn(3, 7, 6, generator=rng()), torch.randn(6, generator=rng(1))
    weights = net.weights(time)
    together = net(x, weights.expand(3, 7, 4))
    torch.testing.assert_close(net(x, weights), together, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        for parameter in (net.weight_in, net.bias_in, net.weight_out, net.bias_out):
            parameter[weights == 0] = math.nan
    torch.testing.assert_close(net(x, weights), together, rtol=1e-5, atol=1e-6)


def test_training_draws_experts_without_replacement():
    net = experts(3, 2).train()
    time = torch.randn(6, generator=rng()).expand(30_000, 2, 6)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        weights = net.weights(time)
    assert torch.equal(weights[:, 0], weights[:, 1])  # the steps of a row, which have one time here
    p, chosen = net.probabilities(time[0, 0]).detach(), weights[:, 0] > 0
    assert (chosen.sum(1) == 2).all()
    for absent in range(3):
        a, b = (e for e in range(3) if e != absent)
        pair = p[a] * p[b] / (1 - p[a]) + p[b] * p[a] / (1 - p[b])  # either is drawn first
        assert (~chosen[:, absent]).float().mean() == pytest.approx(float(pair), abs=0.015)


def balance(probabilities, weights, draws=1):
    """The unweighted loss of routing (B * draws, H, layers, E)."""
    loss = LoadBalancing(1.0).build(None)
    return loss(None, probabilities[::draws], None, {"routing": torch.stack([probabilities, weights], 3)})


def test_the_balancing_loss_in_closed_form():
    even = torch.full((4, 1, 2, 4), 0.25)
    turns = torch.eye(4)[:, None, None].expand(4, 1, 2, 4)
    torch.testing.assert_close(balance(even, turns), torch.ones(4))
    one = turns[:1].expand(4, 1, 2, 4)
    torch.testing.assert_close(balance(one, one), torch.full((4,), 4.0))
    # two of three experts per row: fractions 1/2, 1/4, 1/4
    p = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.1, 0.4]])[:, None, None].requires_grad_()
    w = torch.tensor([[0.7, 0.3, 0.0], [0.6, 0.0, 0.4]])[:, None, None]
    loss = balance(p, w)
    torch.testing.assert_close(loss, 3 * torch.tensor([0.6 / 2 + 0.4 / 4, 0.5 / 2 + 0.5 / 4]))
    loss.sum().backward()
    torch.testing.assert_close(p.grad[0, 0, 0], 3 * torch.tensor([0.5, 0.25, 0.25]))  # away from what is used most
    torch.testing.assert_close(balance(p, w, draws=2), loss.mean(0, keepdim=True))  # of one window


@pytest.mark.parametrize("attention", ["cross", "joint", "block_causal"])
def test_the_network_routes_by_time_alone_and_the_same_with_and_without_caches(attention):
    trunk = Transformer(16, 2, 2, attention, feed_forward=MoEFeedForward())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = trunk.build(2, 3, 1, HeadSpec(5, 4, 3, token_obs_steps=(0, 0, 1, 1), action_start=1)).eval()
    context = Context(torch.randn(6, 4, 3, generator=rng()), torch.ones(6, 4, dtype=torch.bool))
    x, times = torch.randn(6, 5, 2, generator=rng(1)), torch.tensor([[0.1], [0.9]])
    routing, plain = [], []
    with torch.no_grad():
        for time, embedding in zip(times, time_embedding(net, times), strict=True):
            with capture_intermediates(("routing",)) as captured:
                plain.append(net(x, time.expand(6, 5, 1), context))
            cached = with_time_embedding(net, precomputed(net, context), embedding)
            torch.testing.assert_close(net(x, torch.zeros(6, 5, 1), cached), plain[-1], rtol=1e-4, atol=1e-5)
            routing.append(captured["routing"])
    assert routing[0].shape == (6, 5, 2, 2, 4)
    for weights_of_steps in routing:
        torch.testing.assert_close(weights_of_steps,
                                   weights_of_steps[:1, :1].expand(weights_of_steps.shape))  # whatever is observed
    assert not torch.allclose(routing[0][..., 0, :], routing[1][..., 0, :], atol=1e-3)


@pytest.mark.parametrize("attention", ["cross", "joint"])
def test_sampling_costs_as_much_as_a_dense_network_with_the_chosen_experts_alone(attention):
    """Counted operations of one evaluation in a sampler. Choosing the experts is small compared with them."""
    def operations(sampling, **options):
        net = Transformer(64, 2, 2, attention, **options).build(2, 3, 1, HeadSpec(10, 4, 8)).eval()
        with torch.no_grad():
            context = precomputed(net, Context(torch.zeros(1, 4, 8), torch.ones(1, 4, dtype=torch.bool)))
            if sampling:
                context = with_time_embedding(net, context, time_embedding(net, torch.tensor([[0.3]]))[0])
            with FlopCounterMode(display=False) as counter:
                net(torch.zeros(1, 10, 2), torch.full((1, 10, 1), 0.3), context)
        return counter.get_total_flops()

    chosen = operations(True, feed_forward=MoEFeedForward(4, 2))
    assert chosen < 1.05 * operations(True, feed_forward_ratio=8)
    assert chosen < 0.7 * operations(True, feed_forward_ratio=16)
    assert chosen < 0.7 * operations(False, feed_forward=MoEFeedForward(4, 2))


def test_a_cache_of_experts_that_the_tokens_choose_is_found_out():
    """The same check fails if the route depends on anything but the time."""
    class RoutedByTokens(MoEFeedForwardNet):
        def forward(self, x, weights):
            return super().forward(x, weights if weights.ndim < 3 else self.weights(x))

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = Transformer(16, 2, 2, feed_forward=MoEFeedForward()).build(2, 3, 1, HeadSpec(5, 4, 3)).eval()
    context = precomputed(net, Context(torch.randn(6, 4, 3, generator=rng()), torch.ones(6, 4, dtype=torch.bool)))
    x, embedding = torch.randn(6, 5, 2, generator=rng(1)), time_embedding(net, torch.tensor([[0.3]]))[0]

    def difference():
        with torch.no_grad():
            cached = net(x, torch.zeros(6, 5, 1), with_time_embedding(net, context, embedding))
            return float((cached - net(x, torch.full((6, 5, 1), 0.3), context)).abs().max())
    assert difference() < 1e-5
    for layer in net.layers:
        layer.feed_forward.__class__ = RoutedByTokens
    assert difference() > 1e-2


@pytest.mark.parametrize("attention", ["cross", "joint", "block_causal"])
def test_trunk_contract(attention):
    check_trunk(Transformer(16, 2, 2, attention, feed_forward=MoEFeedForward()))


@pytest.mark.parametrize("top_k", [1, 2, 4])
def test_fused_experts_are_one_dense_layer_for_each_time(top_k):
    net = experts(top_k=top_k).eval()
    x, time = torch.randn(3, 7, 6, generator=rng()), torch.randn(5, 6, generator=rng(1))
    before = torch.get_rng_state()
    fused = net.fuse(time)
    assert torch.equal(before, torch.get_rng_state())  # nothing is drawn
    assert fused.weight_in.shape == (5, top_k * 5, 6) and fused.weight_out.shape == (5, 6, top_k * 5)
    assert torch.equal(fused.weights(time), torch.eye(5))
    assert torch.equal(fused.weights(time.flip(0) + 1e-7), torch.eye(5).flip(0))  # known up to rounding
    for row in range(5):
        alone = experts(top_k=top_k).eval().fuse(time[row:row + 1])
        expected = net(x, net.weights(time[row]))
        torch.testing.assert_close(fused(x, fused.weights(time)[row]), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(alone(x, torch.ones(1)), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(Unsupported, match="this time is none of them"):
        fused.weights(time + 1e-3)
    with pytest.raises(Unsupported, match="each step has its own time"):
        fused.weights(time.expand(2, 5, 6))


def mixture(head, attention="cross", **options):
    """A policy whose experts differ from time to time, and a batch of its data."""
    trunk = Transformer(16, 2, 2, attention, feed_forward=MoEFeedForward(), **options)
    policy, batch = random_batch(PolicyConfig(head, trunk, window=Window(2, 4)))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for layer in policy.net.layers:
            layer.feed_forward.router[0].weight.normal_()
            layer.feed_forward.router[2].weight.normal_()
    return policy.eval(), batch


def chosen_experts(policy, n_times=10):
    with torch.no_grad():
        time = policy.net.time(torch.linspace(0, 1, n_times)[:, None])
        weights = torch.stack([layer.feed_forward.weights(time) for layer in policy.net.layers], 1)
    return {tuple(row.flatten().nonzero().flatten().tolist()) for row in weights}


@pytest.mark.parametrize("attention", ["cross", "joint", "block_causal"])
@pytest.mark.parametrize("head", [EDM(10), EDM(1), EDM(5, solver=Heun()), EDM(5, solver=DPMSolverPP()),
                                  Flow(n_steps=4)], ids=str)
def test_a_policy_with_fused_experts_plans_the_same(head, attention):
    policy, batch = mixture(head, attention)
    assert len(chosen_experts(policy)) > 2
    before = copy.deepcopy(policy.state_dict())
    fused, noise = fuse_experts(policy), random_noise(policy, len(batch))
    with torch.no_grad():
        expected = policy.plan(batch.obs, noise)
        torch.testing.assert_close(fused.plan(batch.obs, noise), expected, rtol=1e-5, atol=1e-5)
        again = copy.deepcopy(fused).plan(batch.obs, noise)
    assert torch.equal(again, fused.plan(batch.obs, noise))
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())
    assert all(p.requires_grad for p in policy.net.parameters()) and "embed_time" not in vars(policy.net)
    assert not any(p.requires_grad for p in fused.net.parameters())


def test_fused_experts_guide_and_pack_as_the_policy_does():
    policy, batch = mixture(EDM(5))
    noise, guides = random_noise(policy, len(batch)), (Inpaint(batch.action, torch.ones(len(batch), 4)),)
    packed = pack_weights(fuse_experts(policy), "fp32")
    torch.testing.assert_close(packed.plan(batch.obs, noise, guides), policy.plan(batch.obs, noise, guides),
                               rtol=1e-4, atol=1e-4)


def test_fused_experts_keep_the_weights_of_their_moment_and_are_fused_again():
    policy, batch = mixture(EDM(5))
    fused, noise = fuse_experts(policy), random_noise(policy, len(batch))
    with torch.no_grad():
        before = fused.plan(batch.obs, noise)
        for parameter in policy.net.parameters():
            parameter.mul_(1.1)
        assert torch.equal(fused.plan(batch.obs, noise), before)
        changed = policy.plan(batch.obs, noise)
        assert (changed - before).abs().max() > 1e-3
        torch.testing.assert_close(fuse_experts(policy).plan(batch.obs, noise), changed, rtol=1e-5, atol=1e-5)
    with pytest.raises(RuntimeError, match="feed_forward"):  # not another policy's weights into fused experts
        fused.load_state_dict(policy.state_dict())


def test_a_fused_policy_refuses_what_its_experts_do_not_know():
    policy, batch = mixture(EDM(5))
    fused, noise = fuse_experts(policy), random_noise(policy, len(batch))
    fused.config = replace(fused.config, head=EDM(6))
    with pytest.raises(Unsupported, match="this time is none of them.*\n.*Fuse the experts again"):
        fused.plan(batch.obs, noise)
    fused = fuse_experts(policy)
    times = torch.full((len(batch), 4), 0.5)
    with pytest.raises(Unsupported, match="each step has its own time"):
        fused.denoise_step(fused.context(batch.obs), noise, times, times + 0.1)
    with pytest.raises(Unsupported, match="each step has its own time"):
        fused.loss(batch, rng())
    with pytest.raises(Unsupported, match="no experts"):
        fuse_experts(random_batch(PolicyConfig(EDM()))[0])
    with pytest.raises(Unsupported, match="MIP does not embed the times of its sampler beforehand"):
        fuse_experts(random_batch(PolicyConfig(MIP(), policy.config.trunk))[0])
    torch.testing.assert_close(fuse_experts(fused).plan(batch.obs, noise), fused.plan(batch.obs, noise))  # twice


def test_contract():
    trunk = Transformer(16, 1, 2, feed_forward=MoEFeedForward())
    for head in (EDM(n_steps=3), Flow(times="each", n_steps=3)):
        check_head(PolicyConfig(head, trunk=trunk, window=Window(2, 8)))


def test_heads_without_time_and_wrong_numbers_of_experts_are_refused():
    with pytest.raises(Unsupported, match="this head has no time"):
        Regression().build(Transformer(16, 1, 2, feed_forward=MoEFeedForward()), 2, HeadSpec(8, 1, 4))
    with pytest.raises(UserError, match="top_k=5 of n_experts=4"):
        MoEFeedForward(4, 5)


def learner(weight, steps):
    """A learner whose router is at first nearly certain of the first expert, and its data."""
    data = random_dataset({"observation.state": Feature("float32", (2,)), "action": Feature("float32", (2,))})
    config = PolicyConfig(Flow(), Transformer(16, 1, 2, feed_forward=MoEFeedForward(4, 1)), window=Window(1, 4))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Policy(config, data.features()).fit_statistics(data)
    policy.net.layers[0].feed_forward.router[2].bias.data[0] = 3.0
    auxiliary = (LoadBalancing(weight),) if weight else ()
    optimizer = OptimizerConfig(lr=1e-2, warmup_steps=0)
    return BehaviorCloning(steps, 64, optimizer, auxiliary_losses=auxiliary).build(policy, 0, steps, data), data


def test_balancing_brings_all_experts_into_use():
    shares = []
    for weight in (0.0, 1.0):
        one, data = learner(weight, 60)
        sampler = one.batch_sampler(data)
        fit(one, lambda n, sampler=sampler: sampler.batch(64, n), 60)
        net = one.policy.net
        with torch.no_grad():
            time = net.time(torch.linspace(0, 1, 50)[:, None])
            shares.append(float(net.layers[0].feed_forward.probabilities(time)[:, 0].mean()))
    assert shares[0] > 0.75 and shares[1] < 0.6  # of the expert that the router prefers at first


def test_resuming_draws_the_same_experts():
    whole, data = learner(0.1, 4)
    sampler = whole.batch_sampler(data)
    fit(whole, lambda n: sampler.batch(64, n), 4)
    first, _ = learner(0.1, 4)
    fit(first, lambda n: sampler.batch(64, n), 2)
    second, _ = learner(0.1, 4)
    tensors, metadata = first.state()
    second.restore({k: v.clone() for k, v in tensors.items()}, metadata)
    fit(second, lambda n: sampler.batch(64, n), 4, start=2)
    for a, b in zip(whole.policy.parameters(), second.policy.parameters(), strict=True):
        assert torch.equal(a, b)
