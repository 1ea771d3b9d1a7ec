"""Contracts of trunks and encoders."""

from __future__ import annotations

import json

import torch

from .. import config
from ..core import Context, Feature, HeadSpec, Schema, Unsupported, UserError
from ..data.window import Window
from ..learn.stages import packages_of
from ..nets.base import CachesContext, Encoder, FusesTimes, SharedTimeTrunk, Trunk, precomputed
from .base import ContractViolation, _rng, require, require_equal
from .random_data import random_dataset


def _part_saves(part: Trunk | Encoder) -> None:
    try:
        again = config.load(json.loads(json.dumps(config.dump(part))), ("understudy", *packages_of(part)))
    except (TypeError, UserError) as error:
        raise ContractViolation(str(error)) from None
    require(again == part, f"{type(part).__name__} must survive its file")


def check_trunk(trunk: Trunk, horizon: int = 8, multiple: int = 1) -> None:
    """Checks the contract of a trunk.

    Outputs have the right shape for any number of inputs and times. Batch rows do not influence each other. Masked
    tokens change nothing. Context, inputs and times matter. Gradients reach all weights. For a causal head, output
    step i depends on input steps 0 to i only, or `build` raises `Unsupported`. A trunk may refuse heads without times
    in the same way. A network that `FusesTimes` gives the same when it is fused for a time, and refuses other times.

    Args:
        horizon: Number of action steps, at least 2.
        multiple: The widths of inputs and outputs are multiples of this number. 4 for a trunk that divides them among
            the 4 tokens.
    """
    _part_saves(trunk)
    B, N, D = 3, 4, 5
    for inputs, outputs, times in ((0, 3, 0), (2, 3, 0), (2, 3, 1), (2, 1, 2)):
        inputs, outputs = inputs * multiple, outputs * multiple
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            try:
                net = trunk.build(inputs, outputs, times, HeadSpec(horizon, N, D, token_obs_steps=(0, 0, 1, 1)))
            except Unsupported:
                if times:
                    raise
                continue  # the trunk needs times
        rng = _rng(1)
        x, t = torch.randn(B, horizon, inputs, generator=rng), torch.rand(B, 1, times, generator=rng)
        t = t.expand(-1, horizon, -1)
        tokens, mask = torch.randn(B, N, D, generator=rng), torch.ones(B, N, dtype=torch.bool)
        mask[:, -1] = False
        context, target = Context(tokens, mask), torch.randn(B, horizon, outputs, generator=rng)
        optimizer = torch.optim.Adam(net.parameters(), 1e-2)
        for _ in range(4):  # past layers that begin at zero
            optimizer.zero_grad()
            (net(x, t, context) - target).square().mean().backward()
            optimizer.step()
        dead = [n for n, p in net.named_parameters() if p.numel() and (p.grad is None or not p.grad.any())]
        require(not dead, f"no gradient reaches {dead}")
        net.eval()
        with torch.no_grad():
            _trunk_reads(trunk, net, x, t, context, outputs)
    _trunk_is_causal(trunk, horizon, multiple)


def _trunk_is_causal(trunk, horizon, multiple):
    try:
        net = trunk.build(2 * multiple, 3 * multiple, 0,
                          HeadSpec(horizon, 4, 5, token_obs_steps=(0, 0, 1, 1), causal=True))
    except Unsupported:
        return
    x = torch.randn(2, horizon, 2 * multiple, generator=_rng(4), requires_grad=True)
    context = Context(torch.randn(2, 4, 5, generator=_rng(5)), torch.ones(2, 4, dtype=torch.bool))
    early = torch.autograd.grad(net.eval()(x, x[..., :0], context)[:, :-1].square().sum(), x)[0]
    require(not bool(early[:, -1].any()), "a step of a causal trunk must not depend on later input steps")


def _trunk_reads(trunk, net, x, t, context, outputs):
    out = net(x, t, context)
    require(out.shape == (*x.shape[:2], outputs), "a trunk gives (B, H, outputs)")
    one = net(x[1:2], t[1:2], Context(context.tokens[1:2], context.mask[1:2]))
    require_equal(one[0], out[1], "a row must not depend on the other rows", 1e-4)
    hidden = context.tokens.clone()
    hidden[:, -1] += 100.0
    require_equal(net(x, t, Context(hidden, context.mask)), out, "a token with mask False must be as if absent", 1e-5)
    changed_tokens = context.tokens.clone()
    changed_tokens[:, 0] += 1.0
    require(not torch.allclose(net(x, t, Context(changed_tokens, context.mask)), out, atol=1e-6),
            "the context must matter")
    require_equal(net(x, t, precomputed(net, context)), out, "a primed context must give the same", 1e-4)
    if isinstance(net, CachesContext) and t.shape[-1]:
        once = net.with_time_embedding(net.precompute(context), net.embed_time(t[0, :1])[0])
        plain = net(x, t[:1, :1].expand_as(t), context)
        require_equal(net(x, t, once), plain, "a context at one time must give the same", 1e-4)
        if isinstance(net, FusesTimes):
            _trunk_fuses(net, x, t[0, :1], context, plain)
    if x.shape[-1]:
        require(not torch.allclose(net(x + 1, t, context), out, atol=1e-6), "the inputs must matter")
    if t.shape[-1]:
        require(not torch.allclose(net(x, 1 - t, context), out, atol=1e-6), "the times must matter")
        later = t.clone()
        later[:, -1] = 1 - later[:, -1]
        if not isinstance(trunk, SharedTimeTrunk):
            require(not torch.allclose(net(x, later, context), out, atol=1e-6), "each step's own time must matter")


def _trunk_fuses(net, x, time, context, expected):
    """Checks that a trunk fused for one time gives the `expected` outputs of the plain trunk."""
    fused = net.fuse(time)
    once = fused.with_time_embedding(fused.precompute(context), fused.embed_time(time)[0])
    require_equal(fused(x, x[..., :0], once), expected, "a network that is fused for a time must give the same", 1e-4)
    try:
        fused.embed_time(1 - time)
    except Unsupported:
        return
    require(False, "a network that is fused for some times must refuse others")


def check_encoder(encoder: Encoder, features: Schema, rows: int = 2) -> None:
    """Checks the contract of an encoder.

    The number of tokens and their observation steps are what the module says. Batch rows do not influence each other.
    Values that were not observed (``"name?"`` is False) change nothing, in single rows of the window as well. Nothing
    is random without `rng`. Gradients reach all weights.

    Args:
        rows: Number of observation rows (To), at least 2.
    """
    _part_saves(encoder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = encoder.build(features, rows).eval()
    data = random_dataset({**features, "action": Feature("float32", (1,))})
    obs = dict(Window(rows, 1).windows(data, tuple(features), "action").batch(5, 0).obs)
    with torch.no_grad():
        context = net(obs)
        require(context.tokens.shape == (5, net.tokens, net.width) and context.mask.shape == (5, net.tokens),
                f"tokens must be (B, {net.tokens}, {net.width}) with a mask (B, {net.tokens}), and are "
                f"{tuple(context.tokens.shape)} with a mask {tuple(context.mask.shape)}")
        require(bool(context.tokens.isfinite().all()), "tokens must be finite")
        require_equal(net(obs).tokens, context.tokens, "without rng nothing is random")
        one = net({k: v[1:2] for k, v in obs.items()})
        require_equal(one.tokens[0], context.tokens[1], "a row must not depend on the other rows", 1e-4)
        for name, f in features.items():
            absent = {name + "?": torch.zeros(5, rows, dtype=torch.bool)}
            other = obs[name].flip(0) if f.kind != "vector" else torch.full_like(obs[name], float("nan"))
            masked, replaced = net({**obs, **absent}), net({**obs, **absent, name: other})
            require_equal(masked.flat(), replaced.flat(), f"what {name} holds where it was not sensed must not matter")
            require(not torch.equal(masked.flat(), context.flat()), f"it must matter that {name} was not sensed")
        _encoder_ignores_masked_rows(net, features, obs, rows)
        _encoder_tokens_are_of_their_steps(net, obs, rows, context)
    weights = [(n, p) for n, p in net.named_parameters() if p.requires_grad]
    if weights:
        (net(obs, _rng(1)).flat() * torch.randn(context.flat().shape, generator=_rng(2))).sum().backward()
        dead = [n for n, p in weights if p.grad is None or not p.grad.any()]
        require(not dead, f"no gradient reaches {dead}")


@torch.no_grad()
def _encoder_ignores_masked_rows(net, features, obs, rows):
    present = torch.arange(rows).expand(5, -1) > 0  # the first row is before the start of the episode
    other = {name: x.clone() for name, x in obs.items()}
    for x in other.values():
        x[:, 0] = float("nan") if x.is_floating_point() else x[:, 0].flip(0)
    masks = {name + "?": present for name in features}
    one, two = net({**obs, **masks}), net({**other, **masks})
    require_equal(one.flat(), two.flat(), "what masked rows hold must not matter")
    require_equal(one.mask, two.mask, "what masked rows hold must not matter")


@torch.no_grad()
def _encoder_tokens_are_of_their_steps(net, obs, rows, context):
    steps = torch.tensor(net.token_obs_steps)
    require(steps.shape == (net.tokens,) and bool(((steps >= 0) & (steps < rows)).all()),
            f"token_obs_steps must give each of {net.tokens} tokens a step from 0 to {rows - 1}, and is "
            f"{net.token_obs_steps}")
    for row in range(rows):
        changed = {name: x.clone() for name, x in obs.items()}
        for x in changed.values():
            x[:, row] = x[:, row].flip(0)
        before = steps < row
        require_equal(net(changed).tokens[:, before], context.tokens[:, before],
                      "a token must not depend on observation steps after token_obs_steps")
