"""Where the time goes, before and after: python benchmarks/profiles.py

The three slowest parts as plain code does them and as they are: a training step of the U-Net of 63 M weights, one
chunk of it in ten DDIM steps, and rollouts of a toy. Plain are convolutions of (B, C, T) by conv1d, PyTorch's own Mish,
fp32, a sampler that asks the network anew for all it needs in every step, and one environment after the other. The
ratio is taken by the clock, without a profiler; the tables are by PyTorch's profiler and Python's, which slow down what
calls much.
"""

from __future__ import annotations

import measure

measure.one_thread()

import cProfile  # noqa: E402
import pstats  # noqa: E402
import re  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable, Iterator  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402

import rollouts  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
import train_step  # noqa: E402
from torch.profiler import ProfilerActivity, profile  # noqa: E402

from understudy import PolicyConfig, Window, envs  # noqa: E402
from understudy.deploy.packed_weights import pack_weights  # noqa: E402
from understudy.evaluate.recording import UniformRandomActor  # noqa: E402
from understudy.evaluate.rollout import rollout  # noqa: E402
from understudy.execute.actor import PolicyActor  # noqa: E402
from understudy.heads.denoising.diffusion import Diffusion  # noqa: E402
from understudy.learn.optimizer import OptimizerConfig, has_fast_bf16  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.nets import convolution  # noqa: E402
from understudy.nets.encoders import ConcatEncoder  # noqa: E402
from understudy.nets.unet import UNet  # noqa: E402
from understudy.policy import Policy  # noqa: E402

WIDTHS, BATCH = train_step.SIZES["mid"]
TOP, CALLS = 8, 5
Rows = list[tuple[str, float]]  # what, and its share of the time


def learner(layout: str, precision: str):
    policy = PolicyConfig(
        Diffusion(), UNet(WIDTHS, layout=layout), ConcatEncoder(), window=Window(2, 16, action_offset=-1)
    )
    return train_step.learner(
        policy, BATCH, OptimizerConfig(1e-4, (0.95, 0.999), warmup_steps=500, grad_clip_norm=10.0, precision=precision)
    )


@contextmanager
def plain_mish() -> Iterator[None]:
    own, convolution.mish = convolution.mish, F.mish
    try:
        yield
    finally:
        convolution.mish = own


def operators(work: Callable[[], object]) -> Rows:
    """Of PyTorch, by the time that each takes itself."""
    work()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(CALLS):
            work()
    times = {e.key.removeprefix("aten::"): e.self_cpu_time_total for e in profiler.key_averages()}
    return _shares(times)


def functions(work: Callable[[], object]) -> Rows:
    """Of Python, by the time that each takes itself."""
    work()
    profiler = cProfile.Profile(time.process_time)
    profiler.runcall(work)
    times: dict[str, float] = {}
    for (file, _, name), (_, _, own, _, _) in pstats.Stats(profiler).stats.items():
        times[name := _named(file, name)] = times.get(name, 0.0) + own
    return _shares(times)


def _shares(times: dict[str, float]) -> Rows:
    whole = sum(times.values())
    return [(name, took / whole) for name, took in sorted(times.items(), key=lambda x: -x[1])[:TOP]]


def _named(file: str, name: str) -> str:
    if file == "~":  # built in: "<built-in method torch._C._nn.linear>", "<method 'view' of 'X' objects>"
        match = re.search(r"method '?([\w.]+)'?(?: of '([\w.]+)')?", name)
        return name if match is None else (match[1] if match[2] is None else f"{match[2]}.{match[1]}")
    return f"{Path(file).stem}.{name}"


def compared(title: str, sides: dict[str, Callable], by: Callable, per: dict[str, float], unit: str
             ) -> tuple[measure.Line, str]:
    """A line, and a table of both profiles. sides: "plain" and "ours"; per: how much of `unit` a call of each does."""
    seconds = measure.interleaved(sides, 3)
    each = {name: [s / per[name] for s in values] for name, values in seconds.items()}
    line = measure.compared(title, each, "ours", "plain", amount=unit != "ms", unit=unit, note="plain code, ours too")
    before, after = by(sides["plain"]), by(sides["ours"])
    rows = [f"| {_cell(before, i)} | {_cell(after, i)} |" for i in range(TOP)]
    names = f"| before, {measure.text(line.peer)} | share | after, {measure.text(line.ours)} | share |"
    head = [f"**{title}**", "", names, "|---|--:|---|--:|"]
    return line, "\n".join(head + rows)


def _cell(rows: Rows, i: int) -> str:
    return f"`{rows[i][0]}` | {rows[i][1]:.0%}" if i < len(rows) else " | "


def training() -> tuple[measure.Line, str]:
    (_, ours), (_, slow) = learner("auto", "auto"), learner("conv", "fp32")

    def plain():
        with plain_mish():
            slow()
    return compared("A training step, U-Net of 63 M weights, batches of 128", {"plain": plain, "ours": ours}, operators,
                    {"plain": BATCH, "ours": BATCH}, "samples/s")


def chunk() -> tuple[measure.Line, str]:
    policy = learner("conv", "fp32")[0].policy.eval()
    fast = pack_weights(policy, max_error=1.0)
    obs = {"observation.state": torch.rand(1, 2, train_step.STATE)}
    noise = policy.noise(torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64))
    head, grid = policy.config.head, torch.linspace(0, 1, policy.config.head.steps + 1)

    @torch.no_grad()
    def plain():
        with plain_mish():
            context, x = policy.context(obs), noise
            for t, to in zip(grid[:-1], grid[1:], strict=True):
                x = head.step(policy.net, context, x, t.expand(x.shape[:2]), to.expand(x.shape[:2]))
            return policy.codec.decode(x, obs)

    @torch.no_grad()
    def ours():
        return fast.plan(obs, noise)
    assert (plain() - ours()).abs().max() < 0.02, "not the same chunk"
    return compared("A chunk in ten DDIM steps, U-Net of 63 M weights, packed", {"plain": plain, "ours": ours},
                    operators, {"plain": 1, "ours": 1}, "ms")


def acting() -> tuple[measure.Line, str]:
    data = rollout(UniformRandomActor(envs.make("fork", 16)), envs.make("fork", 16), 16)
    method = find_method("bc", data.features())
    torch.manual_seed(0)
    policy = Policy(method.policy, data.features()).fit_statistics(data).eval()
    many, one = envs.make("fork", rollouts.ROWS), envs.make("fork", 1)

    def plain():
        return rollouts.plain(policy, method, one, 4)

    def ours():
        return sum(map(len, rollout(PolicyActor(policy, method.executor), many, rollouts.ROWS)))
    return compared("Rollouts of fork by bc, 256 at once", {"plain": plain, "ours": ours}, functions,
                    {"plain": plain(), "ours": ours()}, "steps/s")


def main() -> None:
    torch.set_num_threads(1)
    parts = [training(), chunk(), acting()]
    note = ("" if has_fast_bf16(torch.device("cpu")) else "This processor is not fast at bf16, so all is in fp32.\n\n")
    measure.save("profiles", [line for line, _ in parts], more={"says": note + "\n\n".join(t for _, t in parts)})


if __name__ == "__main__":
    main()
