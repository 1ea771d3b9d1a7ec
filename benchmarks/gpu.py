"""Training and planning on a GPU: python benchmarks/gpu.py [ROW ...]

Times are wall-clock times, from an idle GPU to an idle GPU, and sides take turns in one process. `methods` shows for
which methods a GPU is faster than the processor of the same machine, and `data` what keeping the data on the GPU, and
preparing the next batch during an update, are worth. `train` and `latency` compare the networks of train_step.py and
latency.py with lerobot's, whose training allows TF32 and looks for the fastest convolutions, as its script does; ours
trains with deterministic operations, as `understudy train` does. Each row has its own file in results/. Needs
CUDA, and for `train` and `latency` lerobot.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Callable
from functools import partial

import latency
import measure
import train_step

DEVICE = "cuda"
METHODS = ("bc", "bc-gmm", "act", "flow-policy", "diffusion-policy", "iql", "td3-bc", "decision-transformer")


def as_in_training(work: Callable[[], object], device: str = DEVICE) -> Callable[[], None]:
    """Ours, as `understudy train` calls it."""
    import torch

    from understudy.learn.devices import deterministic

    def run() -> None:
        with deterministic(torch.device(device)):
            work()
    return run


def as_lerobot_trains(work: Callable[[], object]) -> Callable[[], None]:
    """The peer's, with the settings that its training script makes."""
    import torch

    def run() -> None:
        matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
        before = matmul.allow_tf32, cudnn.benchmark
        matmul.allow_tf32 = cudnn.benchmark = True
        try:
            work()
        finally:
            matmul.allow_tf32, cudnn.benchmark = before
    return run


def row_train() -> list[measure.Line]:
    import torch
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    def compared(what: str, size: int, config, rows: dict, ours: Callable) -> list[measure.Line]:
        policy, step = train_step.peer(config, {k: v.to(DEVICE) for k, v in rows.items()})
        weights = sum(p.numel() for p in policy.parameters()) / 1e6
        lines = []
        for kind, options in (("as it comes", {}), ("fp32", {"precision": "fp32"})):
            built, update = ours(size, device=DEVICE, **options)
            seconds = measure.interleaved({"lerobot": as_lerobot_trains(step), "ours": as_in_training(update)},
                                          clock=measure.gpu, warm=3)
            lines.append(measure.compared(
                f"{what}, {weights:.3g} M weights, batches of {size}: {kind} ({built.optimizers['policy'].precision})",
                seconds, "ours", "lerobot", amount=size, unit="samples/s", goal=1.2 if kind == "as it comes" else None))
            del built, update
            gc.collect()
            torch.cuda.empty_cache()
        return lines

    lines = []
    for widths, size in train_step.SIZES.values():
        size = max(size, 64)
        observations = torch.rand(2, size, 2, train_step.STATE)
        rows = {"observation.state": observations[0], "observation.environment_state": observations[1],
                "action": torch.rand(size, 16, train_step.ACTION) * 2 - 1,
                "action_is_pad": torch.zeros(size, 16, dtype=torch.bool)}
        config = DiffusionConfig(down_dims=widths, **train_step.features(DEVICE))
        lines += compared(f"U-Net {widths}", size, config, rows, partial(train_step.unet, widths))
    size = 64
    rows = {"observation.state": torch.rand(size, train_step.STATE),
            "observation.environment_state": torch.rand(size, train_step.STATE),
            "action": torch.rand(size, 100, train_step.ACTION) * 2 - 1,
            "action_is_pad": torch.zeros(size, 100, dtype=torch.bool)}
    return lines + compared("ACT on state, chunks of 100", size,
                            ACTConfig(pretrained_backbone_weights=None, **train_step.features(DEVICE)), rows,
                            train_step.act)


def row_latency() -> list[measure.Line]:
    import torch

    from understudy.deploy.cuda_graph import CapturedPlanner

    lines = []
    for name in ("small-ddim", "small-ddpm", "mid-ddim"):
        size, sampler = name.split("-")
        widths = train_step.SIZES[size][0]
        peer = latency.peer_unet(widths, sampler)
        policy = latency.own_unet(widths, sampler, peer.diffusion.unet)
        gap = latency.gap(peer, policy)
        assert gap < latency.NEAR, f"{name}: the same noise gives other chunks, {gap}"
        peer.to(DEVICE)
        peer.config.device = DEVICE
        policy.to(DEVICE)
        captured = CapturedPlanner(policy)
        obs = {"observation.state": torch.rand(1, 2, 2 * train_step.STATE, device=DEVICE)}
        noise = torch.randn(1, *policy.noise_shape, device=DEVICE)
        with torch.no_grad():
            difference = (captured.plan(obs, noise) - policy.plan(obs, noise)).abs().max().item()
        observations = {"observation.state": torch.rand(1, train_step.STATE, device=DEVICE),
                        "observation.environment_state": torch.rand(1, train_step.STATE, device=DEVICE)}

        def select(peer=peer, observations=observations):
            peer.reset()
            peer.select_action(dict(observations))
        seconds = measure.interleaved({"lerobot": select, "graph": latency.acting(captured, 16, 15),
                                       "plain": latency.acting(policy, 16, 15)}, clock=measure.gpu, warm=3)
        what = f"one chunk, U-Net {widths}, {sampler.upper()}-{policy.config.head.n_steps}"
        note = f"chunks from the same noise: {gap:.1e} apart on the CPU, {difference:.1e} from the policy's own here"
        lines += [measure.compared(f"{what}: as a CUDA graph", seconds, "graph", "lerobot", amount=0, unit="ms",
                                   goal=5.0, note=note),
                  measure.compared(f"{what}: the policy as it is", seconds, "plain", "lerobot", amount=0, unit="ms")]
    return lines


def _built(name: str, columns: dict, device: str, episodes: int = 4, steps: int = 100):
    """The learner of a method at its defaults, and its batches."""
    import torch

    from understudy.learn.method import training_data
    from understudy.methods import find_method
    from understudy.policy import Policy
    from understudy.testing import random_dataset

    torch.manual_seed(0)
    method = find_method(name, columns)
    data = training_data(random_dataset(columns, episodes, steps), method)
    policy = Policy(method.policy, data.features()).to(device).fit_statistics(data)
    learner = method.learner.build(policy, 0, 1000, data)
    return learner, learner.batch_sampler(learner.annotate(data, None)), method.learner.batch_size


def row_data() -> list[measure.Line]:
    """Batches of two cameras, drawn in three ways."""
    import torch

    from understudy.core import Feature
    from understudy.data.device_windows import to_device
    from understudy.learn.devices import prefetch

    pictures = {f"observation.images.{k}": Feature("uint8", (96, 96, 3), "image") for k in ("top", "wrist")}
    columns = {**pictures, "observation.state": Feature("float32", (7,)), "action": Feature("float32", (7,))}
    learner, windows, size = _built("diffusion-policy", columns, DEVICE)
    device, rounds = torch.device(DEVICE), 10
    kept = to_device(windows, device)

    def updates(draw: Callable) -> Callable[[], None]:
        def run() -> None:
            batch = draw()
            for n in range(rounds):
                learner.update(batch(n))
        return as_in_training(run)
    ways = {"in turn": lambda: lambda n: windows.batch(size, n, 0),
            "ahead": lambda: prefetch(lambda n: windows.batch(size, n, 0), device, rounds),
            "kept": lambda: prefetch(lambda n: kept.batch(size, n, 0), device, rounds)}
    seconds = measure.interleaved({way: updates(draw) for way, draw in ways.items()}, clock=measure.gpu, warm=2)
    what = f"diffusion-policy, two cameras of 96 × 96, batches of {size}"
    note = "peer: batches made by the CPU between the updates"
    return [measure.compared(f"{what}: {words}", seconds, way, "in turn", amount=rounds * size, unit="samples/s",
                             note=note)
            for way, words in (("kept", "data kept on the GPU"), ("ahead", "made by the CPU during the update before"))]


def row_methods() -> list[measure.Line]:
    """Updates with the batch size of each method, here and on the processor with all of its threads."""
    import torch

    from understudy.core import Feature

    numbers = {"observation.state": Feature("float32", (20,)), "action": Feature("float32", (7,)),
               "next.reward": Feature("float32", ()), "next.terminated": Feature("bool", ())}
    picture = {"observation.images.top": Feature("uint8", (96, 96, 3), "image")}
    cases, lines = [(name, numbers) for name in METHODS], []
    for name, columns in [*cases, ("bc", numbers | picture), ("act", numbers | picture)]:
        sides = {}
        for device in ("cpu", DEVICE):
            learner, sampler, size = _built(name, columns, device)
            batch = sampler.batch(size, 0, 0).to(learner.policy.device)
            sides[device] = as_in_training(lambda learner=learner, batch=batch: learner.update(batch), device)
        seconds = measure.interleaved(sides, repeats=3, clock=measure.gpu, warm=2)
        camera = ", a camera of 96 × 96" if columns is not numbers else ""
        lines.append(measure.compared(
            f"{name}{camera}, batches of {size}: GPU and CPU", seconds, DEVICE, "cpu", amount=1, unit="updates/s",
            note=f"peer: the same on the CPU with {torch.get_num_threads()} threads"))
    return lines


ROWS = {"methods": row_methods, "data": row_data, "train": row_train, "latency": row_latency}


def main() -> None:
    names = [name for name in sys.argv[1:] if name in ROWS] or [*ROWS]
    if {"train", "latency"} & {*names} and importlib.util.find_spec("lerobot") is None:
        measure.enter("lerobot")
    import torch

    if not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a GPU, and PyTorch finds none")
    if importlib.util.find_spec("torchvision") is None:
        train_step.stand_in()
    for name in names:
        measure.save(f"gpu_{name}", ROWS[name](), packages=("torch", "lerobot", "numpy"), more={
            "command": f"python benchmarks/gpu.py {name}", "gpu": torch.cuda.get_device_name()})


if __name__ == "__main__":
    main()
