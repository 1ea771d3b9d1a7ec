"""Packed weights: the same plans to rounding, and bf16 only where it is near enough."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from understudy.core import UserError
from understudy.data.window import Window
from understudy.deploy.equivalence import plan_difference, random_noise
from understudy.deploy.packed_weights import _PackedLinear, pack_weights
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.optimizer import has_fast_bf16
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.nets.unet import UNet
from understudy.policy import Inpaint, Policy, PolicyConfig
from understudy.testing import random_batch

FAST = has_fast_bf16(torch.device("cpu"))
RECIPES = {
    "unet": PolicyConfig(Diffusion(prediction="sample", n_steps=4), UNet((64, 256)), window=Window(2, 8)),
    "transformer": PolicyConfig(Flow(n_steps=4), Transformer(512, 1, 8, "joint"), window=Window(2, 8)),
    "mlp": PolicyConfig(Regression(), MLP(600), window=Window(2, 4)),
}


def layers(policy):
    return sum(type(m).__module__.endswith("packed_weights") for m in policy.modules())


@pytest.mark.parametrize("name", RECIPES)
def test_in_fp32_plans_are_the_same_to_rounding(name):
    policy, batch = random_batch(RECIPES[name])
    before = copy.deepcopy(policy.state_dict())
    fast = pack_weights(policy, "fp32")
    assert isinstance(fast, Policy) and layers(fast) and not layers(policy)
    error, own = plan_difference(policy, fast)
    assert error < max(1e-5, 8 * own)
    again = copy.deepcopy(fast)
    noise = random_noise(policy, len(batch))
    with torch.no_grad():
        assert torch.equal(again.plan(batch.obs, noise), fast.plan(batch.obs, noise))
    assert all(torch.equal(v, before[k]) for k, v in policy.state_dict().items())
    assert all(p.requires_grad for p in policy.net.parameters()), "the policy itself trains on"


@pytest.mark.parametrize("name", RECIPES)
def test_bf16_is_as_near_as_it_says(name):
    policy, _ = random_batch(RECIPES[name])
    if not FAST:
        with pytest.raises(UserError, match="no bf16 matrix products"):
            pack_weights(policy, "bf16")
        return
    error, _ = plan_difference(policy, pack_weights(policy, "bf16"))
    assert 1e-5 < error < 0.02  # rounded, and no more than that
    with pytest.raises(UserError, match="in bf16 the error"):
        pack_weights(policy, "bf16", max_error=error / 2)


def test_a_product_of_bf16_rounds_its_weights_and_inputs_and_nothing_else():
    torch.manual_seed(0)
    plain, x = nn.Linear(512, 600), torch.randn(3, 512)
    dtype = torch.bfloat16 if FAST else torch.float32
    with torch.no_grad():
        output = _PackedLinear(plain, dtype)(x)
        expected = x.to(dtype).double() @ plain.weight.to(dtype).double().T + plain.bias.to(dtype).double()
    assert output.dtype == torch.float32
    # The sum is rounded once, to the dtype: half a unit in its last place, of 8 bits or of 24.
    assert ((output - expected).abs() <= expected.abs() * (2.0**-8 if FAST else 2.0**-18) + 1e-6).all()


def test_auto_leaves_small_networks_as_they_are():
    policy, batch = random_batch(PolicyConfig(Flow(n_steps=2), MLP(64), window=Window(2, 4)))
    fast, noise = pack_weights(policy), random_noise(policy, len(batch))
    assert not layers(fast)
    with torch.no_grad():
        assert torch.equal(fast.plan(batch.obs, noise), policy.plan(batch.obs, noise))


def test_auto_takes_bf16_for_a_large_network_only_where_it_is_near_enough():
    policy, _ = random_batch(PolicyConfig(Regression(), MLP(1400, 1), window=Window(2, 4)))
    assert sum(p.numel() for p in policy.net.parameters()) >= 4_000_000
    exact, difference = (plan_difference(policy, pack_weights(policy, max_error=allowed))[0] for allowed in (0.0, 0.02))
    assert exact < 1e-5
    assert 1e-5 < difference < 0.02 if FAST else difference < 1e-5


def test_guides_still_pull():
    policy, batch = random_batch(RECIPES["unet"])
    fast, noise = pack_weights(policy, "fp32"), random_noise(policy, len(batch))
    guides = (Inpaint(batch.action, torch.ones(batch.action.shape[:2])),)
    with torch.no_grad():
        pulled, plain = fast.plan(batch.obs, noise, guides), policy.plan(batch.obs, noise, guides)
        assert not torch.allclose(pulled, fast.plan(batch.obs, noise), atol=1e-3)
    torch.testing.assert_close(pulled, plain, rtol=1e-3, atol=1e-3)
