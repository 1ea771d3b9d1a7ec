"""Training and planning on a GPU: python benchmarks/gpu.py [ROW ...] --budget 8m

Times are wall-clock times, from an idle GPU to an idle GPU, and sides take turns in one process. `goals` has updates a
second of methods at their defaults, batches included, against what was set in advance. `methods` shows for
which methods a GPU is faster than the processor of the same machine, and `data` what keeping the data on the GPU, and
preparing the next batch during an update, are worth. `train` and `latency` compare the networks of train_step.py and
latency.py with lerobot's, whose training allows TF32 and looks for the fastest convolutions, as its script does; ours
trains with deterministic operations, as `understudy train` does. Each row has its own file in results/, which is
written after each of its lines. Needs CUDA, and for `train` and `latency` lerobot.

    python benchmarks/gpu.py goals train       what was set in advance, within 8 minutes (the default of --budget)
    python benchmarks/gpu.py goals train --tiny    the same on the CPU with small batches, which only shows that it runs
"""

from __future__ import annotations

import gc
import importlib.util
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

import latency
import measure
import train_step

TINY = "--tiny" in sys.argv
DEVICE, CLOCK, REPEATS = ("cpu", measure.cpu, 2) if TINY else ("cuda", measure.gpu, measure.REPEATS)
BUDGET = 8 * 60  # seconds
GOALS = {"bc": 1500, "iql": 500, "act": 300, "diffusion-policy": 200}  # updates a second
AGAINST_LEROBOT = 2.0
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


def row_goals() -> Iterator[measure.Line]:
    """Updates of methods at their defaults, with the data on the GPU."""
    import torch

    from understudy.data.device_windows import to_device
    from understudy.learn.devices import prefetch

    device, rounds = torch.device(DEVICE), 2 if TINY else 50
    for name, goal in GOALS.items():
        learner, sampler, size = _built(name, _numbers(), DEVICE)
        size = 4 if TINY else size
        if not TINY:
            sampler = to_device(sampler, device)
        note = _captured(learner, sampler.batch(size, 0, 0))

        def updates(learner=learner, sampler=sampler, size=size) -> None:
            batch = prefetch(lambda n: sampler.batch(size, n, 0), device, rounds)
            for n in range(rounds):
                learner.update(batch(n))
        seconds = measure.interleaved({"ours": as_in_training(updates)}, clock=CLOCK, warm=2, repeats=REPEATS)
        seconds["goal"] = [rounds / goal] * REPEATS
        yield measure.compared(f"{name}, batches of {size}, updates, against the goal", seconds, "ours", "goal",
                               amount=rounds, unit="1/s", goal=1.0, note=note)


def _captured(learner, batch) -> str:
    """Lets a learner run as graphs, if it can. Returns in words whether it does."""
    from understudy.core import Unsupported
    from understudy.learn.captured import capture

    try:
        capture(learner, compiled=not TINY)
        learner.update(batch)
    except Unsupported as error:
        learner.captured = None
        return str(error).splitlines()[0]
    return "compiled"


def _numbers() -> dict:
    """Columns of 20 observed numbers and 7 actions."""
    from understudy.core import Feature

    return {"observation.state": Feature("float32", (20,)), "action": Feature("float32", (7,)),
            "next.reward": Feature("float32", ()), "next.terminated": Feature("bool", ())}


def row_train() -> Iterator[measure.Line]:
    import torch
    from lerobot.policies.act.configuration_act import ACTConfig
    from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig

    def compared(what: str, size: int, config, rows: dict, ours: Callable
                 ) -> Iterator[measure.Line]:
        policy, step = train_step.peer(config, {k: v.to(DEVICE) for k, v in rows.items()})
        weights = sum(p.numel() for p in policy.parameters()) / 1e6
        for kind, options in (("as it comes", {}), ("fp32", {"precision": "fp32"})):
            built, update = ours(size, device=DEVICE, **options)
            seconds = measure.interleaved({"lerobot": as_lerobot_trains(step), "ours": as_in_training(update)},
                                          clock=CLOCK, warm=3, repeats=REPEATS)
            yield measure.compared(
                f"{what}, {weights:.3g} M weights, batches of {size}: {kind} ({built.optimizers['policy'].precision})",
                seconds, "ours", "lerobot", amount=size, unit="samples/s",
                goal=AGAINST_LEROBOT if kind == "as it comes" else None)
            del built, update
            gc.collect()
            torch.cuda.empty_cache()

    size = 4 if TINY else 64
    rows = {"observation.state": torch.rand(size, train_step.STATE),
            "observation.environment_state": torch.rand(size, train_step.STATE),
            "action": torch.rand(size, 100, train_step.ACTION) * 2 - 1,
            "action_is_pad": torch.zeros(size, 100, dtype=torch.bool)}
    yield from compared("ACT on state, chunks of 100", size,
                        ACTConfig(pretrained_backbone_weights=None, **train_step.features(DEVICE)), rows,
                        train_step.act)
    for widths, size in [*train_step.SIZES.values()][:1 if TINY else None]:
        size = 4 if TINY else max(size, 64)
        observations = torch.rand(2, size, 2, train_step.STATE)
        rows = {"observation.state": observations[0], "observation.environment_state": observations[1],
                "action": torch.rand(size, 16, train_step.ACTION) * 2 - 1,
                "action_is_pad": torch.zeros(size, 16, dtype=torch.bool)}
        config = DiffusionConfig(down_dims=widths, **train_step.features(DEVICE))
        yield from compared(f"U-Net {widths}", size, config, rows, partial(train_step.unet, widths))


def row_latency() -> Iterator[measure.Line]:
    import torch

    from understudy.deploy.cuda_graph import CapturedPlanner

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
        yield measure.compared(f"{what}: as a CUDA graph", seconds, "graph", "lerobot", amount=0, unit="ms", goal=5.0,
                               note=note)
        yield measure.compared(f"{what}: the policy as it is", seconds, "plain", "lerobot", amount=0, unit="ms")


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


def row_data() -> Iterator[measure.Line]:
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
    for way, words in (("kept", "data kept on the GPU"), ("ahead", "made by the CPU during the update before")):
        yield measure.compared(f"{what}: {words}", seconds, way, "in turn", amount=rounds * size, unit="samples/s",
                               note=note)


def row_methods() -> Iterator[measure.Line]:
    """Updates with the batch size of each method, here and on the processor with all of its threads."""
    import torch

    from understudy.core import Feature

    numbers, picture = _numbers(), {"observation.images.top": Feature("uint8", (96, 96, 3), "image")}
    cases = [(name, numbers) for name in METHODS]
    for name, columns in [*cases, ("bc", numbers | picture), ("act", numbers | picture)]:
        sides = {}
        for device in ("cpu", DEVICE):
            learner, sampler, size = _built(name, columns, device)
            batch = sampler.batch(size, 0, 0).to(learner.policy.device)
            sides[device] = as_in_training(lambda learner=learner, batch=batch: learner.update(batch), device)
        seconds = measure.interleaved(sides, repeats=3, clock=measure.gpu, warm=2)
        camera = ", a camera of 96 × 96" if columns is not numbers else ""
        yield measure.compared(
            f"{name}{camera}, batches of {size}: GPU and CPU", seconds, DEVICE, "cpu", amount=1, unit="updates/s",
            note=f"peer: the same on the CPU with {torch.get_num_threads()} threads")


ROWS = {"goals": row_goals, "methods": row_methods, "data": row_data, "train": row_train, "latency": row_latency}


def main() -> None:
    options = measure.task_options(__doc__, ROWS)
    names, until = options.tasks or [*ROWS], options.until if options.budget else time.monotonic() + BUDGET
    if {"train", "latency"} & {*names} and importlib.util.find_spec("lerobot") is None:
        try:
            measure.enter("lerobot")
        except measure.NotInstalled as error:
            print(f"train and latency are left out: lerobot is not installed ({error})", file=sys.stderr, flush=True)
            names = [name for name in names if name not in ("train", "latency")]
    import torch

    if not TINY and not torch.cuda.is_available():
        raise SystemExit("benchmarks/gpu.py needs a GPU, and PyTorch finds none")
    if importlib.util.find_spec("torchvision") is None:
        train_step.stand_in()
    for name in names:
        lines = []
        for line in ROWS[name]() if time.monotonic() < until else ():
            lines.append(line)
            if TINY:
                print(measure.row(line), flush=True)
            else:
                measure.save(f"gpu_{name}", lines, packages=("torch", "lerobot", "numpy"), more={
                    "command": f"python benchmarks/gpu.py {name}", "gpu": torch.cuda.get_device_name()})
            if time.monotonic() > until:
                print(f"{name}: the time is up", file=sys.stderr, flush=True)
                break


if __name__ == "__main__":
    main()
