"""The contracts catch what they are for: parts that break one promise each."""

import math
from dataclasses import dataclass, field, replace

import pytest
import torch

from understudy.core import Context, Feature, put
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.execute.base import Executor, empty_chunks
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.base import DenoisingHead, Head
from understudy.heads.denoising.flow import Flow
from understudy.nets.base import Encoder, EncoderNet, Trunk, TrunkNet
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import (
    STATE,
    ContractViolation,
    check_codec,
    check_encoder,
    check_executor,
    check_head,
    check_trunk,
)


@dataclass(frozen=True)
class Odd(Head):
    """Regression, but for one thing."""

    about: str = ""

    def noise(self, horizon, coded_dim):
        return (horizon, 2 if self.about == "ignores its noise" else 0)

    def build(self, trunk, coded_dim, spec):
        net = trunk.build(0, coded_dim, 0, spec)
        if self.about == "idle":
            net.idle = torch.nn.Parameter(torch.zeros(3))
        if self.about == "forgets":
            net.offset = torch.randn(coded_dim)  # no buffer: not saved
        return net

    def loss(self, net, context, action, mask, rng):
        if self.about == "draws":
            action = action + torch.randn(action.shape)
        error = (net(action[..., :0], action[..., :0], context) - action).square().mean(-1)
        if self.about == "reduces":
            return error.mean(1)
        if self.about == "compares rows":
            return error - error.mean(0)
        if self.about == "detaches":
            return error.detach()
        return error / 0 if self.about == "infinite" else error

    def sample(self, net, context, noise):
        out = net(noise[..., :0], noise[..., :0], context)
        if self.about == "random":
            return out + torch.randn(out.shape)
        if self.about == "mixes rows":
            return out - out.mean(0)
        if self.about == "wrong dtype":
            return out.float()
        if self.about == "forgets":
            return out + net.offset
        if self.about == "plans nothing":
            return out / 0 * 0
        return out[:, :-1] if self.about == "short" else out


@pytest.mark.parametrize("about, said", [
    ("reduces", "must be .B, H., not reduced"), ("infinite", "loss must be finite"),
    ("draws", "same rng must give the same loss"), ("random", "same arguments must give the same plan"),
    ("mixes rows", "must not depend on the other rows"),
    ("compares rows", "a row's loss must not depend on the other rows"), ("detaches", "the loss has no gradient"),
    ("wrong dtype", "float64 out"), ("idle", r"no gradient reaches \['net.idle'\]"),
    ("short", r"a plan must have shape \(B, H, A\) = \(5, 4, 2\), but has \(5, 3, 2\)"),
    ("plans nothing", "a plan must be finite, but 40 of 40 numbers are NaN or infinite"),
    ("forgets", "what was loaded must act alike"),
    ("ignores its noise", r"noise of Odd has shape \(4, 2\).*return .horizon, 0. from `noise`")])
def test_heads_that_break_a_promise(about, said):
    with pytest.raises(AssertionError, match=said):
        check_head(PolicyConfig(Odd(about), trunk=MLP(16, 1), window=Window(2, 4)))


def test_a_head_that_keeps_them():
    check_head(PolicyConfig(Odd(), trunk=MLP(16, 1), window=Window(2, 4)))


@dataclass(frozen=True)
class Rough(DenoisingHead):
    n_steps: int = 2
    about: str = ""

    def build(self, trunk, coded_dim, spec):
        return trunk.build(coded_dim, coded_dim, 1, spec)

    def interpolate(self, action, noise, t):
        return t * action + (1.01 - t if self.about == "leftover" else 1 - t) * noise

    def loss(self, net, context, action, mask, rng):
        t = torch.rand(*action.shape[:2], 1, generator=rng, device=action.device)
        noise = torch.randn(action.shape, generator=rng, device=action.device)
        return (net(self.interpolate(action, noise, t), t, context) - action).square().mean(-1)

    def denoise_step(self, net, context, x, t, t_next, cost=None):
        step = (t_next - t).unsqueeze(-1) + (0.1 if self.about == "restless" else 0)
        return x + step * net(x, t.unsqueeze(-1), context)

    def predict_clean(self, net, context, x, t):
        return net(x, t.unsqueeze(-1), context)


@pytest.mark.parametrize("about, said", [("leftover", "at t=1 there is no noise"), ("restless", "from t to t")])
def test_samplers_that_break_a_promise(about, said):
    check_head(PolicyConfig(Rough(), trunk=MLP(16, 1), window=Window(2, 4)))
    with pytest.raises(AssertionError, match=said):
        check_head(PolicyConfig(Rough(about=about), trunk=MLP(16, 1), window=Window(2, 4)))


@dataclass(frozen=True)
class Bent(Normalizer):
    about: str = ""

    def build(self, features, inputs, target):
        coder = super().build(features, inputs, target)
        decode, obs = coder.decode, coder.encode_obs
        if self.about == "decodes otherwise":
            coder.decode = lambda c, o: decode(c, o) * 1.01
        elif self.about == "scales pixels":
            coder.encode_obs = lambda o: {k: v / 2 for k, v in obs(o).items()}
        elif self.about == "forgets":
            coder._buffers["count"] = coder.count
            coder.action_transform._non_persistent_buffers_set |= {"offset", "scale"}
        elif self.about == "never fitted":
            coder._check_fitted = lambda: None
        return coder


@pytest.mark.parametrize("about, said", [
    ("decodes otherwise", "decode must undo encode"), ("scales pixels", "must be left alone"),
    ("forgets", "saved with the weights"), ("never fitted", "never taken must not be used")])
def test_codecs_that_break_a_promise(about, said):
    with pytest.raises(AssertionError, match=said):
        check_codec(Bent(about=about))


@dataclass(frozen=True)
class Leaky(Trunk):
    about: str = ""

    def build(self, inputs, outputs, n_times, spec):
        return _Leaky(self.about, inputs, outputs, n_times, spec)


class _Leaky(TrunkNet):
    def __init__(self, about, inputs, outputs, times, shape):
        super().__init__()
        if about == "sees later steps":
            shape = replace(shape, causal=False)
        self.about, self.body = about, MLP(16, 1).build(inputs, outputs, times, shape)

    def forward(self, x, t, context):
        if self.about == "unmasked":
            context = Context(context.tokens, torch.ones_like(context.mask))
        if self.about == "blind":
            context = Context(context.tokens * 0, context.mask)
        if self.about == "timeless":
            t = t * 0
        if self.about == "row time":
            t = t[:, :1].expand(t.shape)
        out = self.body(x, t, context)
        return out + out.mean(0) if self.about == "mixes rows" else out


@pytest.mark.parametrize("about, said", [
    ("unmasked", "mask False must be as if absent"), ("blind", r"no gradient reaches \['body.input_layer.weight'\]"),
    ("timeless", "times must matter"), ("row time", "each step's own time"), ("mixes rows", "other rows"),
    ("sees later steps", "must not depend on later input steps")])
def test_trunks_that_break_a_promise(about, said):
    check_trunk(Leaky())
    with pytest.raises(AssertionError, match=said):
        check_trunk(Leaky(about))


@dataclass(frozen=True)
class Naive(Encoder):
    about: str = ""

    def build(self, features, n_obs_steps):
        return _Naive(self.about, features, n_obs_steps)


class _Naive(EncoderNet):
    def __init__(self, about, features, rows):
        super().__init__()
        self.about, self.tokens, self.width = about, rows, features[STATE].size
        self.token_obs_steps = (0,) * rows if about == "misdates" else tuple(range(rows))

    def forward(self, obs, rng=None):
        x, here = obs[STATE], obs.get(STATE + "?", torch.ones(obs[STATE].shape[:2], dtype=torch.bool))
        if self.about == "random":
            x = x + torch.randn(x.shape)
        if self.about == "miscounts":
            x, here = x[:, :1], here[:, :1]
        if self.about == "reads rows before the start":
            x = x.masked_fill(~here.any(1)[:, None, None], 0)
            return Context(x, torch.ones_like(here))
        if self.about != "shows what is not there":
            x = x.masked_fill(~here.unsqueeze(-1), 0)
        return Context(x, torch.ones_like(here) if self.about == "never absent" else here)


@pytest.mark.parametrize("about, said", [
    ("random", "without rng nothing is random"), ("miscounts", r"tokens must be .B, 2, 3. .* and are .5, 1, 3."),
    ("shows what is not there", "must not matter"),
    ("reads rows before the start", "what masked rows hold must not matter"),
    ("misdates", "must not depend on observation steps after token_obs_steps")])
def test_encoders_that_break_a_promise(about, said):
    features = {STATE: Feature("float32", (3,))}
    check_encoder(Naive(), features)
    with pytest.raises(AssertionError, match=said):
        check_encoder(Naive(about), features)


@dataclass(frozen=True)
class Loose(Executor):
    """RecedingHorizon, but for one thing."""

    about: str = ""

    def start(self, planner, obs, key):
        state = RecedingHorizon(2).start(planner, obs, key)
        return {**state, "mean": empty_chunks(planner, key)[:, 0]}

    def act(self, planner, obs, state):
        inner = {k: v for k, v in state.items() if k not in ("mean", "late")}
        action, inner = RecedingHorizon(2).act(planner, obs, inner)
        if self.about == "mixes rows":
            action = action - action.mean(0)
        if self.about == "random":
            action = action + torch.randn(action.shape)
        if self.about == "writes":
            state["mean"].add_(1.0)
        if self.about == "one clock":  # for all rows
            inner["count"] = put(inner["count"], slice(None), inner["count"].max().expand(inner["count"].shape))
        if self.about == "ignores plans":
            action = torch.zeros_like(action)
        if self.about == "plans NaN":
            action, inner["chunk"] = action * math.nan, inner["chunk"] * math.nan
        more = {"late": action} if self.about == "grows" else {}
        return action, {**inner, "mean": state["mean"], **more}


@pytest.mark.parametrize("about, said", [
    ("mixes rows", "must not depend on the other rows"), ("random", "same keys must give the same actions"),
    ("writes", "must not be changed in place"), ("grows", "structure must never change"),
    ("one clock", "other rows must not notice"), ("ignores plans", "must execute what its planner plans"),
    ("plans NaN", "the actions of step 0 must be finite, but 6 of 6 numbers are NaN or infinite")])
def test_executors_that_break_a_promise(about, said):
    config = PolicyConfig(Flow(n_steps=2), trunk=MLP(16, 1), window=Window(2, 8))
    check_executor(Loose(), config)
    with pytest.raises(AssertionError, match=said):
        check_executor(Loose(about), config)


@dataclass(frozen=True)
class Scaled(Encoder):
    """An encoder of this module, which no package but this one has."""

    inner: Encoder = field(default_factory=TokenEncoder)

    def build(self, features, n_obs_steps):
        return self.inner.build(features, n_obs_steps)


@pytest.mark.parametrize("parts", [{"trunk": Leaky()}, {"encoder": Scaled()}, {"trunk": Leaky(), "encoder": Scaled()}],
                         ids=["trunk", "encoder", "both"])
def test_a_bundled_head_is_checked_with_parts_from_outside(parts):
    """All modules that the caller's configuration names are trusted, not only that of the head."""
    check_head(PolicyConfig(Flow(2), **{"trunk": MLP(16, 1), **parts}, window=Window(2, 4)))


def test_a_part_that_no_file_can_hold_is_refused():
    @dataclass(frozen=True)
    class Local(Leaky):
        pass
    with pytest.raises(ContractViolation, match="must be a frozen dataclass at the top of its module"):
        check_trunk(Local())
    check_encoder(Scaled(), {STATE: Feature("float32", (3,))})
