"""Training speed and latency of all policy heads, and their ONNX files: python benchmarks/head_speed.py

The heads, networks and windows are those of heads.py. Each head is trained for a few updates on demonstrations of the
toy fork, since the work of AdaFlow depends on what was learned, and that of the neighbors on the data. Then the heads
take turns: one update of a batch of 128 windows that lies ready, and one chunk at batch size 1, by the policy as it is
and by its ONNX file. The peer of every line is our own DDPM with 100 steps. A head that raises `Unsupported` at the
export is named with its reason.
"""

from __future__ import annotations

import measure

measure.one_thread()

import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable, Mapping  # noqa: E402
from pathlib import Path  # noqa: E402

import heads as benchmark  # noqa: E402
import torch  # noqa: E402

from understudy.core import Unsupported, UserError  # noqa: E402
from understudy.deploy.onnx import export, load  # noqa: E402
from understudy.learn.fit import Learner  # noqa: E402
from understudy.learn.fit_method import FitResult, fit_method  # noqa: E402
from understudy.learn.method import training_data  # noqa: E402
from understudy.policy import Planner  # noqa: E402

SIZE = benchmark.Size(updates=100)
FEW = ("1", "2")  # evaluations of the network for a plan whose goal is 20 times the speed of DDPM-100
Work = Callable[[], object]


def planning(planner: Planner, obs: Mapping[str, torch.Tensor]) -> Work:
    """One chunk at batch size 1, with its noise."""
    zero = torch.zeros(1, dtype=torch.int64)

    def once():
        with torch.no_grad():
            planner.plan(obs, planner.noise(zero, zero))
    return once


def prepare(folder: Path) -> tuple[dict[str, Work], dict[str, Work], dict[str, Work], dict[str, str]]:
    """An update, a plan and a plan by the ONNX file of each head, and why a head has no file."""
    data = benchmark.demonstrations("fork", 0)
    updates, plans, files, refused = {}, {}, {}, {}
    results: dict[str, FitResult] = {}
    for name, chosen in benchmark.variants(SIZE).items():
        if chosen.weights is None:
            stages = {stage.name: results[stage.name] for stage in chosen.method.stages}
            held: list[Learner] = []
            results[name] = fit_method(chosen.method, data, 0, stages=stages,
                                       callbacks=(lambda n, learner, metrics, held=held: held.append(learner),))
            learner = held[-1]
            sampler = learner.batch_sampler(training_data(data, results[name].method))
            batch = sampler.batch(chosen.method.learner.batch_size, 0, 0)
            if name != "neighbors":  # nothing is trained
                updates[name] = lambda learner=learner, batch=batch: learner.update(batch)
        result = results[chosen.weights or name]
        made, policy = benchmark.acting(chosen, result)
        obs = policy.windows(training_data(data, made)).batch(1, 0, 0).obs
        plans[name] = planning(policy, obs)
        try:
            export(policy, folder / f"{name}.onnx", made.executor)
            files[name] = planning(load(folder / f"{name}.onnx"), obs)
        except (Unsupported, UserError) as error:
            refused[name] = f"{type(error).__name__}: {error}"
        print(name, refused.get(name, ""), file=sys.stderr, flush=True)
    return updates, plans, files, refused


def lines(what: str, seconds: Mapping[str, list[float]], *, amount: float, unit: str, peer: list[float]
          ) -> list[measure.Line]:
    evaluations = {name: v.n_evaluations for name, v in benchmark.variants().items()}
    return [measure.compared(f"{name}: {what}", {"ours": took, "peer": peer}, "ours", "peer", amount=amount, unit=unit,
                             goal=benchmark.FASTER if evaluations[name] in FEW and not amount else None)
            for name, took in seconds.items()]


def main() -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        updates, plans, files, refused = prepare(Path(folder))
        trained = measure.interleaved(updates, least=0.15)
        planned = measure.interleaved(plans, least=0.15)
        exported = measure.interleaved(files, least=0.15)
    reference, variants = benchmark.REFERENCE, benchmark.variants()
    found = [*lines("one chunk", planned, amount=0, unit="ms", peer=planned[reference]),
             *lines("one chunk, ONNX file", exported, amount=0, unit="ms", peer=exported[reference]),
             *(line for name, took in trained.items() for line in lines(
                 "training", {name: took}, amount=variants[name].method.learner.batch_size, unit="samples/s",
                 peer=trained[reference]))]
    found += [measure.Line(f"{name}: ONNX file", note=told) for name, told in refused.items()]
    measure.save("head_speed", found, packages=("torch", "onnxruntime"))


if __name__ == "__main__":
    main()
