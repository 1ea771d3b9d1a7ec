"""Size, parity and latency of exported policies: python benchmarks/export.py [POLICY ...] [--without=aot]

Each policy is exported in all forms, with the weights and statistics that training would start from: `bc`,
`flow-policy`, `diffusion-policy` and `act` as `understudy train` builds them for the toy fork, except that the U-Net of
the diffusion policy is of 64 and 128 channels; and a regression from one 96 x 96 camera. One chunk at batch size 1 is
then timed. The forms take turns. The peer of every line is the policy in PyTorch. Notes give the size of the file and
its largest and mean difference over 1,000 inputs, relative to the largest action. `success of bc` and
`success of flow-policy` train on the fork, and compare the success of the file in 32 bits with that of the file in 8
bits on the same 400 starts. The other lines of an earlier run are kept.
"""

from __future__ import annotations

import measure

measure.one_thread()

import json  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import replace  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

import torch  # noqa: E402

from understudy import PolicyActor, make, rollout  # noqa: E402
from understudy.core import Feature  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.deploy import onnx, torch_package  # noqa: E402
from understudy.deploy.equivalence import measure_parity, random_noise, random_observations  # noqa: E402
from understudy.evaluate import evaluate  # noqa: E402
from understudy.evaluate.comparison import compare_all  # noqa: E402
from understudy.heads.likelihood.regression import Regression  # noqa: E402
from understudy.learn.fit_method import fit_method  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.nets.encoders import TokenEncoder  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.nets.unet import UNet  # noqa: E402
from understudy.nets.vision import SmallConv  # noqa: E402
from understudy.policy import Planner, Policy, PolicyConfig  # noqa: E402
from understudy.testing import random_batch  # noqa: E402

FORMS = {"onnx": "ONNX", "int8": "ONNX in 8 bits", "pt2": "torch.export", "aot": "AOTInductor"}
SUCCESS, STARTS, STEPS = "success of ", 400, 2000
METHODS = ("bc", "flow-policy", "diffusion-policy", "act")


def of_method(name: str) -> Policy:
    env = make("fork", 20)
    data = rollout(env.expert(), env, episodes=20, seed=1)
    config = find_method(name, data.features()).policy
    if isinstance(config.trunk, UNet):
        config = replace(config, trunk=UNet((64, 128)))
    torch.manual_seed(0)
    return Policy(config, data.features()).fit_statistics(data)


def of_images() -> Policy:
    inputs = {"observation.state": Feature("float32", (7,)),
              "observation.images.front": Feature("uint8", (96, 96, 3), "image")}
    config = PolicyConfig(Regression(), MLP(), TokenEncoder(64, 2, SmallConv()), window=Window(1, 8))
    return random_batch(config, inputs=inputs)[0]


POLICIES: dict[str, Callable[[], Policy]] = {
    **{name: partial(of_method, name) for name in METHODS}, "bc on images": of_images}


def exported(policy: Policy, form: str, folder: Path) -> tuple[Path, Planner]:
    path = folder / {"onnx": "p.onnx", "int8": "p.int8.onnx", "pt2": "p.pt2", "aot": "p.aot.pt2"}[form]
    if form in ("onnx", "int8"):
        onnx.export(policy, path, precision="int8" if form == "int8" else "fp32")
        return path, onnx.load(path)
    torch_package.export_package(policy, path)
    return path, torch_package.load_package(path)


def lines(name: str, forms: list[str], folder: Path) -> list[measure.Line]:
    policy, planners, notes = POLICIES[name]().eval(), {}, {}
    for form in forms:
        path, planner = exported(policy, form, folder)
        parity = measure_parity(policy, planner)
        planners[form] = planner
        notes[form] = (f"{path.stat().st_size / 1e6:.2f} MB; largest difference {parity.largest:.1g}, "
                       f"mean {parity.mean:.1g}")
        print(name, form, notes[form], file=sys.stderr, flush=True)
    obs, noise = random_observations(policy, 1), random_noise(policy, 1)

    def once(planner: Planner):
        with torch.no_grad():
            planner.plan(obs, noise)
    sides = {form: partial(once, planner) for form, planner in {"policy": policy, **planners}.items()}
    took = measure.interleaved(sides, least=0.2)
    return [measure.compared(f"{name}: {FORMS[form]}", took, form, "policy", amount=0, unit="ms", note=notes[form])
            for form in forms]


def success(name: str, folder: Path) -> measure.Line:
    """Success of the file in 8 bits, compared with the file in 32 bits on the same starts."""
    env = make("fork", 100)
    data = rollout(env.expert(), env, episodes=100, seed=1)
    method = find_method(name, data.features())
    result = fit_method(replace(method, learner=replace(method.learner, steps=STEPS)), data, 0)
    judged = {}
    for form in ("onnx", "int8"):
        _, planner = exported(result.policy, form, folder)
        judged[form] = evaluate(PolicyActor(planner, method.executor), env, STARTS)
    both = compare_all(judged)
    exact, rounded = both.estimates
    gap = both.pairs[0].comparison
    return measure.Line(f"{name}: success on the fork", note=(
        f"{exact.estimate:.1%} of {STARTS} starts in 32 bits, {rounded.estimate:.1%} in 8 bits; the difference is "
        f"{100 * gap.difference:+.1f} points [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"))


def main(arguments: list[str]) -> None:
    torch.set_num_threads(1)
    forms = [f for f in FORMS if f"--without={f}" not in arguments]
    names = [n for n in arguments if not n.startswith("--")] or [*POLICIES, f"{SUCCESS}bc", f"{SUCCESS}flow-policy"]
    path = measure.RESULTS / "export.json"
    old_lines = [measure.restored({k: v for k, v in line.items() if k != "met"})
                 for line in (json.loads(path.read_text())["lines"] if path.exists() else ())]
    lines_of = {line.what: line for line in old_lines}
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            if name.startswith(SUCCESS):
                new_lines = [success(name.removeprefix(SUCCESS), Path(folder))]
            else:
                new_lines = lines(name, forms, Path(folder))
        lines_of |= {line.what: line for line in new_lines}
        order = [*(f"{n}: {f}" for n in POLICIES for f in FORMS.values())]
        kept = sorted(lines_of.values(), key=lambda line: order.index(line.what) if line.what in order else len(order))
        measure.save("export", kept, packages=("torch", "onnxruntime"))


if __name__ == "__main__":
    main(sys.argv[1:])
