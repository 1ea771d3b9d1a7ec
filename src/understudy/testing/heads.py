"""Contract test of policy heads."""

from __future__ import annotations

import copy
import json
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from ..config import UntrustedCode
from ..core import Feature, Schema, Unsupported, take
from ..heads.base import DenoisingHead, LikelihoodHead, TargetNetworkHead, TemperatureHead
from ..heads.denoising.flow import Flow
from ..learn.stages import packages_of
from ..nets.base import precomputed
from ..policy import Policy, PolicyConfig
from .base import ContractViolation, _rng, require, require_equal, require_finite
from .random_data import random_batch


def check_head(policy_config: PolicyConfig, target: Feature | None = None, inputs: Schema | None = None) -> None:
    """Checks the contract of a head with the given trunk.

    Shapes; all randomness is in the arguments; the declared noise changes plans, but not if `ignores_noise`; plans and
    losses of a row do not depend on other rows; padding does not matter; gradients reach all weights; files contain
    everything and run no untrusted code.

    For sub-interfaces: a `DenoisingHead` ends at the action and a step of length 0 changes nothing; ``-loss`` of a
    `LikelihoodHead` sums to `log_prob`; the temperature of a `TemperatureHead` changes plans; a `TargetNetworkHead`
    uses its own network by default.

    Args:
        policy_config: Configuration of a policy with the head and a trunk.
        target: Feature of the target. By default two numbers.
        inputs: Features of the inputs. By default numbers.
    """
    policy, batch = random_batch(policy_config, target=target, inputs=inputs)
    B, H, A = len(batch), policy_config.window.horizon, policy.action_dim
    noise = torch.randn(B, *policy.noise_shape, generator=_rng(0))
    context, coded = policy.context(batch.obs), policy.encode_batch(batch)
    loss = policy_config.head.loss(policy.net, context, coded, batch.mask, _rng(1))
    require(loss.shape == (B, H), f"loss must be (B, H), not reduced, and is {tuple(loss.shape)}")
    require(bool(_batch_loss(policy, batch).isfinite().all()), "loss must be finite")
    with torch.no_grad():
        plan = policy.plan(batch.obs, noise)
    require_finite(plan, (B, H, A), "a plan", "(B, H, A)")
    _head_draws_nothing(policy, batch, noise, plan)
    _head_loss_of_each_row(policy, context, coded, batch.mask)
    _head_ignores_padding(policy, batch)
    _head_reads_noise(_head_learns(policy, batch), batch, noise)
    _head_saves(policy, batch, noise, plan)
    _head_in_other_numbers(policy, batch, noise)
    pair = policy_config.head.sample_and_loss(policy.net, context, noise, coded, batch.mask, _rng(1))
    require_equal(pair[0], policy_config.head.sample(policy.net, context, noise), "one pass must sample alike")
    require_equal(pair[1], loss, "one pass must give the same loss")
    if isinstance(policy_config.head, DenoisingHead):
        _head_times(policy, context, coded)
    if isinstance(policy_config.head, LikelihoodHead):
        _head_likelihood(policy, batch, context, coded)
    if isinstance(policy_config.head, TemperatureHead):
        cold, hot = (replace(policy_config.head, temperature=t).sample(policy.net, context, noise) for t in (0.0, 10.0))
        require(not torch.allclose(cold, hot), "plans must depend on the temperature")
    if isinstance(policy_config.head, TargetNetworkHead):
        own_losses, target_losses = (policy_config.head.loss(policy.net, context, coded, batch.mask, _rng(1), net)
                                     for net in (None, policy.net))
        require_equal(own_losses, target_losses, "without a target network, the head must use its own network")
    twin = copy.deepcopy(policy)  # averages and targets need it
    require_equal(twin.plan(batch.obs, noise), plan, "a deep copy must act alike")


def _batch_loss(policy, batch, seed=1):
    return policy.loss(batch, _rng(seed))


@torch.no_grad()
def _head_draws_nothing(policy, batch, noise, plan):
    state = torch.random.get_rng_state()
    require_equal(policy.plan(batch.obs, noise), plan, "the same arguments must give the same plan")
    require_equal(_batch_loss(policy, batch), _batch_loss(policy, batch), "the same rng must give the same loss")
    require(
        torch.equal(torch.random.get_rng_state(), state), "every draw is from `rng` or `noise`, none from torch's own"
    )
    one = policy.plan({k: v[2:3] for k, v in batch.obs.items()}, noise[2:3])
    require_equal(one[0], plan[2], "a row's plan must not depend on the other rows", 1e-4)


@torch.no_grad()
def _head_loss_of_each_row(policy, context, coded, mask):
    head = policy.config.head
    if isinstance(head, Flow) and head.coupling != "independent":  # other rows decide the noise of a row
        return
    others = [0, 0, 2, *[0] * (len(mask) - 3)]  # other rows, but the same draws for row 2
    loss, alone = (head.loss(policy.net, take(context, rows), coded[rows], mask[rows], _rng(1))
                   for rows in (list(range(len(mask))), others))
    require_equal(alone[2], loss[2], "a row's loss must not depend on the other rows", 1e-4)


def _head_ignores_padding(policy, batch):
    if policy.window.horizon == 1:
        return
    require(not bool(batch.mask.all()), "the example has padding")
    beyond = 1 - batch.action if policy.target.kind == "discrete" else torch.tensor(9e3)
    spoiled = batch.replace(action=torch.where(batch.mask.unsqueeze(-1), batch.action, beyond.to(batch.action.dtype)))
    if policy.target.kind == "discrete":
        spoiled = spoiled.replace(action=spoiled.action.clamp(min=0))
    require_equal(
        _batch_loss(policy, spoiled), _batch_loss(policy, batch), "what stands at padded steps must not matter"
    )
    require(not bool(_batch_loss(policy, batch)[~batch.mask].any()), "padded steps have no loss")


def _head_learns(policy, batch) -> Policy:
    """Returns a copy of the policy after a few updates with the head's loss."""
    if not _batch_loss(policy, batch).requires_grad:
        weights = [n for n, p in policy.net.named_parameters() if p.requires_grad and p.numel()]
        require(not weights, f"the loss has no gradient, but the head has weights to train: {weights}")
        return policy  # a head that only fits its data, such as nearest neighbors
    trained = copy.deepcopy(policy)
    weights = [p for p in trained.parameters() if p.requires_grad and p.numel()]
    optimizer = torch.optim.Adam(weights, 1e-3)
    for seed in range(4):  # layers that begin at zero stop all gradients until they have moved
        optimizer.zero_grad()
        sum(_batch_loss(trained, batch, 6 * seed + s).sum() for s in range(6)).backward()
        optimizer.step()
    dead = [n for n, p in trained.named_parameters() if p.requires_grad and p.numel() and (
        p.grad is None or not p.grad.any())]
    require(not dead, f"no gradient reaches {dead}")
    settled = [n for n, p in trained.named_parameters() if not p.requires_grad and p.grad is not None]
    require(not settled, f"settled weights must not train: {settled}")
    return trained


@torch.no_grad()
def _head_reads_noise(policy, batch, noise):
    """Checks that noise changes plans after a few updates. Before them, layers initialized to zero ignore it."""
    if not noise.numel():
        return
    head = policy.config.head
    if isinstance(head, TemperatureHead):  # at temperature 0 many read no noise
        head = replace(head, temperature=10.0)
    context = policy.context(batch.obs)
    cold = (replace(head, temperature=0.0),) if isinstance(head, TemperatureHead) else ()
    for setting in (policy.config.head, *cold, head):
        plans = [setting.sample(policy.net, context, x) for x in (noise, noise.flip(0) + 1)]
        require(not setting.ignores_noise or torch.allclose(*plans),
                f"ignores_noise of {setting} is True, but other noise gives other plans: override it")
    require(not torch.allclose(*plans), f"the noise of {type(head).__name__} has shape "
            f"{tuple(policy.noise_shape)} per plan, but other noise gives the same plans: use it in `sample`, or "
            "return (horizon, 0) from `noise`")


@torch.no_grad()
def _head_saves(policy, batch, noise, plan):
    packages = packages_of(policy.config)
    with tempfile.TemporaryDirectory() as folder:
        policy.save(folder)
        again = Policy.load(folder, trust=packages)
        require(again.config == policy.config, "the config must survive its file")
        require_equal(again.plan(batch.obs, noise), plan, "what was loaded must act alike")
        path = Path(folder) / "policy.json"
        text = json.loads(path.read_text())
        text["head"]["$"] = "nobody_trusts_this:Head"
        path.write_text(json.dumps(text))
        try:
            Policy.load(folder, trust=packages)
        except UntrustedCode:
            return
        raise ContractViolation("a file that names untrusted code must be refused before that code is imported")


@torch.no_grad()
def _head_in_other_numbers(policy, batch, noise):
    head = policy.config.head
    context = policy.context(batch.obs)
    exact = replace(context, tokens=context.tokens.double())
    net = copy.deepcopy(policy.net).double()
    sampled = head.sample(net, exact, noise.double())
    require(sampled.dtype == torch.float64, f"float64 in must give float64 out, and gives {sampled.dtype}")
    require_equal(sampled.float(), head.sample(policy.net, context, noise), "float64 must agree with float32", 1e-2)
    with torch.autocast("cpu", torch.bfloat16):
        require(bool(_batch_loss(policy, batch).isfinite().all()), "loss must be finite in bfloat16")
    if torch.cuda.is_available():
        there = copy.deepcopy(policy).to("cuda")
        plan = there.plan(batch.to("cuda").obs, noise.cuda())
        require_equal(plan.cpu(), policy.plan(batch.obs, noise), "a GPU must agree with the CPU", 1e-2)
        require(there.loss(batch.to("cuda"), _rng(1, "cuda")).device.type == "cuda", "losses stay on the GPU")


@torch.no_grad()
def _head_likelihood(policy, batch, context, coded):
    head, complete = policy.config.head, batch.mask.all(1)
    log_prob = head.log_prob(policy.net, context, coded)
    require_finite(log_prob, (len(batch),), "log_prob", "(B,)")
    require(bool(complete.any()), "the example has chunks without padding")
    loss = head.loss(policy.net, context, coded, batch.mask, _rng(1))
    require_equal(-loss[complete].sum(1), log_prob[complete], "-loss of a chunk without padding must sum to log_prob",
                  1e-4)


@torch.no_grad()
def _head_times(policy, context, coded):
    head, noise = policy.config.head, torch.randn(coded.shape, generator=_rng(3))
    require(
        torch.equal(head.interpolate(coded, noise, torch.ones_like(coded[..., :1])), coded), "at t=1 there is no noise"
    )
    t = torch.full(coded.shape[:2], 0.5)
    clean = head.predict_clean(policy.net, context, noise, t)
    require_finite(clean, tuple(coded.shape), "predict_clean", "(B, H, A)")
    try:
        same = head.denoise_step(policy.net, precomputed(policy.net, context), noise, t, t)
    except Unsupported:  # a sampler that draws in every step
        return
    require_equal(same, noise, "a step from t to t must change nothing", 1e-4)
