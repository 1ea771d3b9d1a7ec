"""One chunk of actions at batch 1, here and in lerobot: python benchmarks/latency.py [ROW ...]

The conditional U-Net of lerobot's DiffusionPolicy at two sizes with the same weights, by its own `select_action`; first
both are shown to plan the same from the same noise. Ours is the actor that a robot would run, `PolicyActor`, over the
file
that `understudy export` writes, and over the policy packed in bf16. Two settings of the peer's DDIM scheduler are as
ours, in as many steps: it starts from pure noise ("trailing"; as it comes it begins nine levels later), and, where
plans are compared, what is clipped says what noise is left.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import measure
import train_step

PEER = "lerobot 0.4.4"
UNETS = ("small-ddim", "small-ddpm", "mid-ddim", "mid-ddpm")
GOALS = {"small-ddim": 3.0, "small-ddpm": 3.5, "mid-ddim": 3.5, "mid-ddpm": 3.5}
BF16 = 5.0  # the goal of the larger network
NEAR = 1e-5


def peer_unet(widths, sampler: str):
    """lerobot's policy, of random weights."""
    import torch
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
    from lerobot.policies.diffusion.modeling_diffusion import DiffusionPolicy

    torch.manual_seed(1)
    policy = DiffusionPolicy(DiffusionConfig(
        down_dims=widths, horizon=16, n_obs_steps=2, n_action_steps=15, noise_scheduler_type=sampler.upper(),
        num_inference_steps=100 if sampler == "ddpm" else 10, **train_step.features())).eval()
    if sampler == "ddim":
        scheduler = policy.diffusion.noise_scheduler
        policy.diffusion.noise_scheduler = type(scheduler).from_config(scheduler.config, timestep_spacing="trailing")
    return policy


def own_unet(widths, sampler: str, net):
    """Ours, with the weights of lerobot's network."""
    import math

    import torch

    from understudy import Policy, PolicyConfig, Window
    from understudy.core import Feature
    from understudy.data.codec import Normalizer
    from understudy.heads.denoising.diffusion import Diffusion
    from understudy.heads.solvers import DDIM, DDPM
    from understudy.nets.encoders import ConcatEncoder
    from understudy.nets.unet import UNet

    head = Diffusion(n_steps=100, solver=DDPM()) if sampler == "ddpm" else Diffusion(n_steps=10, solver=DDIM())
    config = PolicyConfig(
        head, UNet(widths), ConcatEncoder(), Normalizer("identity", "identity"), Window(2, 16, action_offset=-1)
    )
    policy = Policy(config, {"observation.state": Feature("float32", (2 * train_step.STATE,)),
                             "action": Feature("float32", (train_step.ACTION,))}).eval()
    with torch.no_grad():
        for source, target in train_step.pairs(policy.net, net):
            target.load_state_dict(source.state_dict())
        # It is told k = 99 - 100 t, ours 100 t: a rotation of the sines and cosines that the first layer reads.
        first, half = policy.net.time_mlp.body[0].weight, policy.net.time_mlp.body[0].weight.shape[1] // 2
        rate = torch.exp(torch.arange(half) * -(math.log(10_000) / (half - 1))).double()
        (sin, cos), s, c = first.double().chunk(2, 1), (99 * rate).sin(), (99 * rate).cos()
        first.copy_(torch.cat([-sin * c + cos * s, sin * s + cos * c], 1))
    return policy


def gap(peer, planner, rows: int = 1, seed: int = 7) -> float:
    """The largest difference of two chunks from the same noise; actions are of size 1."""
    import torch

    observations = torch.rand(rows, 2, 2 * train_step.STATE, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    state, other = observations.split(train_step.STATE, -1)
    draws = planner.noise_shape[-1] // train_step.ACTION
    torch.manual_seed(seed)  # both draw from PyTorch's own generator, the first chunk and then each step
    noise = torch.cat([torch.randn(rows, 16, train_step.ACTION) for _ in range(draws)], -1)
    torch.manual_seed(seed)
    scheduler = peer.diffusion.noise_scheduler
    if draws == 1:
        scheduler.step = partial(scheduler.step, use_clipped_model_output=True)
    with torch.no_grad():
        target = peer.diffusion.generate_actions({"observation.state": state, "observation.environment_state": other})
        chunks = planner.plan({"observation.state": observations}, noise)
    vars(scheduler).pop("step", None)
    return (chunks[:, 1:] - target).abs().max().item()


def acting(planner, horizon: int, steps: int):
    """What one chunk costs a robot: everything from an observation to the first action."""
    import torch

    from understudy import PolicyActor, RecedingHorizon

    actor, obs = (
        PolicyActor(planner, RecedingHorizon(steps, skip=horizon - steps)),
        {"observation.state": torch.rand(1, 8)},
    )
    key = torch.zeros(1, dtype=torch.int64)
    return lambda: actor.act(obs, actor.start(obs, key))


def row_unet(name: str) -> list[measure.Line]:
    import torch

    from understudy.deploy.onnx import export, load
    from understudy.deploy.packed_weights import pack_weights

    size, sampler = name.split("-")
    widths = train_step.SIZES[size][0]
    peer = peer_unet(widths, sampler)
    policy = own_unet(widths, sampler, peer.diffusion.unet)
    with tempfile.TemporaryDirectory() as folder:
        export(policy, Path(folder) / "policy.onnx")
        planner = load(Path(folder) / "policy.onnx")
    gaps = {"plain": gap(peer, policy), "onnx": gap(peer, planner)}
    assert max(gaps.values()) < NEAR, f"{name}: the same noise gives other chunks, {gaps}"
    half = pack_weights(policy, "bf16", max_error=1.0)
    observations = {"observation.state": torch.rand(1, train_step.STATE), "observation.environment_state":
                    torch.rand(1, train_step.STATE)}

    def select():
        peer.reset()
        peer.select_action(dict(observations))
    sides = {"lerobot": select, "onnx": acting(planner, 16, 15), "plain": acting(policy, 16, 15)}
    if size == "mid":
        sides["bf16"] = acting(half, 16, 15)
    seconds = measure.interleaved(sides)
    weights = sum(p.numel() for p in policy.net.parameters()) / 1e6
    what = f"U-Net {widths}, {weights:.3g} M weights, {sampler.upper()}-{policy.config.head.n_steps}"
    note = f"chunks from the same noise differ by {gaps['onnx']:.1e}"
    lines = [measure.compared(f"{what}: ONNX file, fp32", seconds, "onnx", "lerobot", amount=0, unit="ms",
                              goal=GOALS[name], note=note)]
    if size == "mid":
        fast = measure.machine()["has"]
        lines.append(measure.compared(
            f"{what}: packed, bf16", seconds, "bf16", "lerobot", amount=0, unit="ms",
            goal=BF16 if "bf16" in fast else None,
            note=f"differs by {gap(peer, half):.1e}" + ("" if "bf16" in fast else "; this CPU has no bf16 products")))
    lines.append(measure.compared(f"{what}: the policy as it is", seconds, "plain", "lerobot", amount=0, unit="ms",
                                  note=f"differs by {gaps['plain']:.1e}"))
    return lines


def row_act() -> list[measure.Line]:
    import torch
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.act.modeling_act import ACTPolicy

    from understudy.deploy.onnx import export, load

    torch.manual_seed(0)
    peer = ACTPolicy(ACTConfig(pretrained_backbone_weights=None, **train_step.features())).eval()
    policy = train_step.act(1)[0].policy.eval()
    with tempfile.TemporaryDirectory() as folder:
        export(policy, Path(folder) / "policy.onnx")
        planner = load(Path(folder) / "policy.onnx")
    observations = {"observation.state": torch.rand(1, train_step.STATE), "observation.environment_state":
                    torch.rand(1, train_step.STATE)}

    def select():
        peer.reset()
        peer.select_action(dict(observations))

    def ours(planner):
        obs, count = {"observation.state": torch.rand(1, 1, train_step.STATE)}, torch.zeros(1, dtype=torch.int64)

        def once():
            with torch.no_grad():
                planner.plan(obs, planner.noise(count, count))
        return once
    seconds = measure.interleaved({"lerobot": select, "onnx": ours(planner), "plain": ours(policy)})
    what, note = "ACT on state, chunks of 100", "the same layers over as many tokens; ours normalize before each layer"
    return [measure.compared(f"{what}: ONNX file, fp32", seconds, "onnx", "lerobot", amount=0, unit="ms", note=note),
            measure.compared(f"{what}: the policy as it is", seconds, "plain", "lerobot", amount=0, unit="ms")]


if __name__ == "__main__":
    train_step.run("latency", {**{name: partial(row_unet, name) for name in UNETS}, "act": row_act},
                   ("torch", "lerobot", "diffusers", "onnxruntime"))
