"""Training speed and latency of all policy heads, and their ONNX files: python benchmarks/head_speed.py [PART ...]

The heads, networks and windows are those of heads.py. Each head is trained for a few updates on demonstrations of the
toy fork, since the work of AdaFlow depends on what was learned, and that of the neighbors on the data. Then the heads
take turns: one update of a batch of 256 windows that lies ready, and one chunk at batch size 1, by the policy as it is
and by its ONNX file. The peer of every line is our own DDPM with 100 steps. A head that raises `Unsupported` at the
export is named with its reason. The parts are `plans`, `training` and `files`, all by default. The other parts of an
earlier run are kept.
"""

from __future__ import annotations

import measure

measure.one_thread()

import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Mapping, Sequence  # noqa: E402
from pathlib import Path  # noqa: E402

import heads as benchmark  # noqa: E402
import torch  # noqa: E402

from understudy.core import Unsupported, UserError  # noqa: E402
from understudy.deploy.onnx import export, load  # noqa: E402
from understudy.learn.fit import Learner  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.learn.method import training_data  # noqa: E402
from understudy.policy import Planner  # noqa: E402

SIZE = benchmark.Size(updates=50)
PARTS = {"plans": "one chunk", "files": "one chunk, ONNX file", "training": "training"}
REFUSED = "ONNX file"
Work = Callable[[], object]


def planning(planner: Planner, obs: Mapping[str, torch.Tensor]) -> Work:
    """One chunk at batch size 1, with its noise."""
    zero = torch.zeros(1, dtype=torch.int64)

    def once():
        with torch.no_grad():
            planner.plan(obs, planner.noise(zero, zero))
    return once


def prepare(folder: Path, parts: Sequence[str]) -> tuple[dict[str, dict[str, Work]], dict[str, str]]:
    """What each part measures of each head, and why a head has no ONNX file."""
    data, results = benchmark.demonstrations("fork", 0), {}
    work: dict[str, dict[str, Work]] = {part: {} for part in parts}
    refused: dict[str, str] = {}
    for name, chosen in benchmark.variants(SIZE).items():
        if chosen.weights is None:
            stages = {stage.name: results[stage.name] for stage in chosen.method.stages}
            kept: list[Learner] = []
            results[name] = fit_method(chosen.method, data, 0, stages=stages,
                                       callbacks=(lambda n, learner, metrics, kept=kept: kept.append(learner),))
            learner = kept[-1]
            sampler = learner.batch_sampler(training_data(data, results[name].method))
            batch = sampler.batch(chosen.method.learner.batch_size, 0, 0)
            if "training" in parts and name != "neighbors":  # nothing is trained
                work["training"][name] = lambda learner=learner, batch=batch: learner.update(batch)
        acting_method, policy = benchmark.acting(chosen, results[chosen.weights or name])
        obs = policy.windows(training_data(data, acting_method)).batch(1, 0, 0).obs
        if "plans" in parts:
            work["plans"][name] = planning(policy, obs)
        if "files" in parts:
            try:
                export(policy, folder / f"{name}.onnx", acting_method.executor)
                work["files"][name] = planning(load(folder / f"{name}.onnx"), obs)
            except (Unsupported, UserError) as error:
                refused[name] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
        print(name, refused.get(name, ""), file=sys.stderr, flush=True)
    return work, refused


def lines(part: str, seconds: Mapping[str, list[float]]) -> list[measure.Line]:
    """One line for each head."""
    variants, out = benchmark.variants(), []
    amount = benchmark.BATCH if part == "training" else 0
    for name, took in seconds.items():
        batch = variants[name].method.learner.batch_size if amount else 1
        sides = {"ours": [s * max(amount, 1) / batch for s in took], "peer": seconds[benchmark.REFERENCE]}
        out.append(measure.compared(f"{name}: {PARTS[part]}", sides, "ours", "peer", amount=amount, unit="samples/s"))
    return out


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    parts, path = names or list(PARTS), measure.RESULTS / "head_speed.json"
    with tempfile.TemporaryDirectory() as folder:
        work, refused = prepare(Path(folder), parts)
        new_lines = {part: lines(part, measure.interleaved(work[part], least=0.15)) for part in parts}
    if "files" in parts:
        new_lines["files"] += [measure.Line(f"{name}: {REFUSED}", note=reason) for name, reason in refused.items()]
    stored_lines = [measure.restored({k: v for k, v in line.items() if k != "met"})
             for line in (json.loads(path.read_text())["lines"] if path.exists() else ())]
    for part in PARTS:
        ends = (f": {PARTS[part]}", *([f": {REFUSED}"] if part == "files" else []))
        new_lines.setdefault(part, [line for line in stored_lines if line.what.endswith(ends)])
    measure.save("head_speed", [line for part in PARTS for line in new_lines[part]], packages=("torch", "onnxruntime"))


if __name__ == "__main__":
    main(sys.argv[1:])
