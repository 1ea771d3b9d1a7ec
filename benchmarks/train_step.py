"""Training steps of the same networks, here and in lerobot: python benchmarks/train_step.py [ROW ...]

The conditional U-Net of lerobot's DiffusionPolicy at three sizes, whose outputs are first shown to be equal with the
same weights, and its ACT on state. The peer's side is its own policy, optimizer and `update_policy`, which its training
script calls; ours is `BehaviorCloningLearner.update`, which keeps the average of the weights as well. Batches lie
ready on both sides.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import measure

PEER = "lerobot 0.4.4"
STATE, ACTION = 4, 2
SIZES = {"small": ((64, 128, 256), 256), "mid": ((256, 512, 1024), 128), "default": ((512, 1024, 2048), 32)}


def learner(policy_config, batch: int, optim, device: str = "cpu"):
    """Ours, of seed 0."""
    import numpy as np
    import torch

    from understudy import Policy
    from understudy.data.episode import Dataset, Episode
    from understudy.learn.behavior_cloning import BehaviorCloning

    rng = np.random.default_rng(0)
    data = Dataset([Episode({"observation.state": rng.uniform(-1, 1, (200, STATE)).astype("f"),
                             "action": rng.uniform(-1, 1, (200, ACTION)).astype("f")}) for _ in range(2)])
    torch.manual_seed(0)
    policy = Policy(policy_config, data.features()).to(device).fit_statistics(data)
    built = BehaviorCloning(batch_size=batch, optimizer=optim).build(policy, 0, 10_000, data)
    one = policy.windows(data).batch(batch, 0, 0).to(policy.device)
    return built, lambda: built.update(one)


def unet(widths, batch: int, compile: bool = False, device: str = "cpu", **optim):
    from understudy import PolicyConfig, Window
    from understudy.heads.denoising.diffusion import Diffusion
    from understudy.learn.optimizer import OptimizerConfig
    from understudy.nets.encoders import ConcatEncoder
    from understudy.nets.unet import UNet

    policy_config = PolicyConfig(
        Diffusion(prediction="epsilon"), UNet(widths), ConcatEncoder(), window=Window(2, 16, action_offset=-1)
    )
    return learner(
        policy_config,
        batch,
        OptimizerConfig(1e-4, (0.95, 0.999), warmup_steps=500, grad_clip_norm=10.0, compile=compile, **optim),
        device,
    )


def act(batch: int, device: str = "cpu", **optim):
    """Attention of ACT's widths and depths: the posterior is four layers over observation and actions together, as
    in ACT. (The method's own posterior is one layer, so it takes less.)"""
    from understudy import PolicyConfig, Window
    from understudy.data.codec import Normalizer
    from understudy.heads.likelihood.cvae import CVAE
    from understudy.learn.optimizer import OptimizerConfig
    from understudy.nets.base import Trunk
    from understudy.nets.transformer import Transformer

    @dataclass(frozen=True)
    class Both(Trunk):
        """The first network that is built of it is the decoder, the second the posterior."""

        size = Transformer(512, 1, 8, encoder_depth=4, feed_forward_ratio=3200 / 512, dropout=0.1)

        def build(self, inputs, outputs, times, shape):
            decodes = outputs == ACTION
            form = self.size if decodes else replace(self.size, depth=4, encoder_depth=0, attention="joint")
            return form.build(inputs, outputs, times, shape)

    policy_config = PolicyConfig(CVAE(), Both(), codec=Normalizer(target="zscore"), window=Window(1, 100))
    return learner(
        policy_config, batch,
        OptimizerConfig(1e-5, weight_decay=1e-4, grad_clip_norm=10.0, lr_schedule="constant", **optim), device
    )


def stand_in():
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from upstream_lerobot import stand_in
    stand_in()


def peer(config, batch: dict):
    """lerobot's policy, and a step of its training."""
    import torch
    from accelerate import Accelerator
    from lerobot.policies.act.modeling_act import ACTPolicy
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy
    from lerobot.scripts.lerobot_train import update_policy
    from lerobot.utils.logging_utils import AverageMeter, MetricsTracker

    torch.manual_seed(0)
    policy = (ACTPolicy if config.type == "act" else DiffusionPolicy)(config)
    preset = config.get_optimizer_preset()
    accelerator = Accelerator(step_scheduler_with_optimizer=False, cpu=config.device == "cpu")
    params = policy.get_optim_params()
    policy, optimizer = accelerator.prepare(policy, preset.build(params))
    meters = {k: AverageMeter(k, ":.3f") for k in ("loss", "grad_norm", "lr", "update_s", "dataloading_s")}
    tracker = MetricsTracker(32, 1000, 10, meters)
    return policy, lambda: update_policy(tracker, policy, batch, optimizer, preset.grad_clip_norm, accelerator)


def features(device: str = "cpu"):
    from lerobot.configs.types import FeatureType, PolicyFeature
    return {"input_features": {"observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
                               "observation.environment_state": PolicyFeature(FeatureType.ENV, (STATE,))},
            "output_features": {"action": PolicyFeature(FeatureType.ACTION, (ACTION,))}, "device": device}


def pairs(ours, peer):
    """(theirs, ours) of all modules with weights: the same in the same order, under other names."""
    def block(o, t):
        yield t.conv1.block[0], o.first[0]
        yield t.conv1.block[1], o.first[1]
        yield t.conv2.block[0], o.second[0]
        yield t.conv2.block[1], o.second[1]
        yield t.cond_encoder[1], o.film
        if list(o.skip.parameters()):
            yield t.residual_conv, o.skip
    yield peer.diffusion_step_encoder[1], ours.time_mlp.body[0]
    yield peer.diffusion_step_encoder[3], ours.time_mlp.body[2]
    for own_blocks, other in ((ours.down, peer.down_modules), (ours.up, peer.up_modules)):
        for o, t in zip(own_blocks, other, strict=True):
            yield from block(o["first"], t[0])
            yield from block(o["second"], t[1])
            if "resize" in o:
                yield t[2], o["resize"]
    for o, t in zip(ours.middle, peer.mid_modules, strict=True):
        yield from block(o, t)
    yield peer.final_conv[0].block[0], ours.output_layer[0][0]
    yield peer.final_conv[0].block[1], ours.output_layer[0][1]
    yield peer.final_conv[1], ours.output_layer[1]


def equal(widths, rows: int = 4, layout: str = "auto", groups: int = 8) -> float:
    """The largest difference of outputs, of size 1 or so, with the same weights and inputs."""
    import torch
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionConditionalUnet1d

    from understudy.core import Context, HeadSpec
    from understudy.nets.unet import UNet

    torch.manual_seed(1)
    peer = DiffusionConditionalUnet1d(DiffusionConfig(down_dims=widths, n_groups=groups, **features()), 2 * STATE)
    ours = UNet(widths, groups=groups, layout=layout).build(ACTION, ACTION, 1, HeadSpec(16, 2, STATE))
    with torch.no_grad():
        for source, target in pairs(ours, peer):
            target.load_state_dict(source.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == sum(p.numel() for p in peer.parameters())
    x, observations, level = torch.randn(rows, 16, ACTION), torch.randn(rows, 2, STATE), torch.randint(0, 100, (rows,))
    context = Context(observations, torch.ones(rows, 2, dtype=torch.bool))
    with torch.no_grad():
        t = (level / 100).view(-1, 1, 1).expand(-1, 16, 1)
        return (ours(x, t, context) - peer(x, level, observations.flatten(1))).abs().max().item()


def row_unet(name: str) -> list[measure.Line]:
    import torch
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    widths, size = SIZES[name]
    gap = equal(widths)
    assert gap < 1e-5, f"{widths}: outputs differ by {gap}"
    observations = torch.rand(2, size, 2, STATE)
    rows = {"observation.state": observations[0], "observation.environment_state": observations[1],
            "action": torch.rand(size, 16, ACTION) * 2 - 1, "action_is_pad": torch.zeros(size, 16, dtype=torch.bool)}
    policy, step = peer(DiffusionConfig(down_dims=widths, **features()), rows)
    weights = sum(p.numel() for p in policy.parameters()) / 1e6
    what = f"U-Net {widths}, {weights:.3g} M weights, batches of {size}"
    goal = {"small": 1.5, "mid": 2.1, "default": 3.0}[name]
    kinds = [("as it comes (bf16)", {}, goal, f"outputs with the same weights differ by {gap:.1e} at most")]
    if name == "small":
        kinds.append(("fp32", {"precision": "fp32"}, 1.2, ""))
    kinds.append(("compiled", {"compile": True}, round(1.1 * goal, 2), "goal: 10 % above the uncompiled goal"))
    lines = []
    for kind, options, target, note in kinds:  # one of ours at a time: three of the largest would not fit
        sides = {"lerobot": step, "ours": unet(widths, size, **options)[1]}
        seconds = measure.interleaved(sides)
        lines.append(measure.compared(f"{what}: {kind}", seconds, "ours", "lerobot", amount=size, unit="samples/s",
                                      goal=target, note=note))
        del sides
        gc.collect()
    return lines


def row_act(size: int = 8) -> list[measure.Line]:
    import torch
    from lerobot.policies.act.configuration_act import ACTConfig

    rows = {"observation.state": torch.rand(size, STATE), "observation.environment_state": torch.rand(size, STATE),
            "action": torch.rand(size, 100, ACTION) * 2 - 1, "action_is_pad": torch.zeros(size, 100, dtype=torch.bool)}
    policy, step = peer(ACTConfig(pretrained_backbone_weights=None, **features()), rows)
    built, ours = act(size)
    _, full = act(size, precision="fp32")
    seconds = measure.interleaved({"lerobot": step, "bf16": ours, "fp32": full})
    weights, n_ours = (sum(p.numel() for p in m.parameters()) / 1e6 for m in (policy, built.policy))
    what = f"ACT on state, chunks of 100, batches of {size}"
    note = (f"the same layers over as many tokens ({n_ours:.3g} M weights, {weights:.3g} M there), but ours normalize "
            "before each layer")
    return [measure.compared(f"{what}: as it comes (bf16)", seconds, "bf16", "lerobot", amount=size, unit="samples/s",
                             goal=2.4, note=note),
            measure.compared(f"{what}: fp32", seconds, "fp32", "lerobot", amount=size, unit="samples/s")]


def run(name: str, rows: Mapping[str, Callable[[], list[measure.Line]]], packages: Sequence[str]) -> None:
    """Every row beside lerobot, saved; only those named on the command line, printed."""
    measure.one_thread()
    names = [r for r in rows if r in sys.argv[1:]]
    try:
        measure.enter("lerobot")
    except measure.NotInstalled as error:
        measure.save(name, [measure.Line(name.replace("_", " "), note=f"peer not installed: {error}")])
        return
    import torch
    torch.set_num_threads(1)
    stand_in()
    lines = []
    for row in names or rows:
        lines += (new := rows[row]())
        print(*map(measure.row, new), sep="\n", file=sys.stderr, flush=True)
    if not names:
        measure.save(name, lines, packages=packages)


if __name__ == "__main__":
    run("train_step", {**{name: partial(row_unet, name) for name in SIZES}, "act": row_act},
        ("torch", "lerobot", "accelerate"))
