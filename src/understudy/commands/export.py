"""The command understudy export."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, cast

from tyro.conf import Positional, arg

from ..core import Unsupported, UserError
from ..files import write_json
from .parts.behavior_metrics import unchanged_training_data
from .parts.common import Output, command_line, parse, progress_bar, recorded_env_of, trained_rate, trust_options
from .parts.conditions import example_evaluation, must_be_told
from .parts.groups import JsonOption, PositiveCount, SchemeName, TrustOption, command_options
from .parts.options import refuse_given
from .parts.policies import tell_checkpoint

if TYPE_CHECKING:
    from ..learn.method import Method
    from ..policy import Policy


@command_options
class ExportOptions(JsonOption, TrustOption):
    """Write a trained policy as one file: observations and noise in, a chunk of actions out, in world units.

    The name of OUT decides its kind. FILE.onnx runs in ONNX Runtime, in Python, JavaScript and other languages.
    FILE.pt2 (torch.export) runs in PyTorch, without understudy. FILE.aot.pt2 is machine code for processors like this
    machine's (AOTInductor). It needs a C++ compiler, and takes minutes. A folder is one that LeRobot loads (its
    pretrained_model). This needs a policy with LeRobot's architecture of ACT or Diffusion Policy, such as one that was
    loaded from LeRobot and trained further.

    A file is compared with the policy. OUT.json says how much its chunks differ, and where most, and what the file
    takes and gives.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, or a run or checkpoint of LeRobot (ACT or Diffusion
    Policy)"""
    out: Annotated[Path, arg(metavar="OUT")]
    """where to write it: FILE.onnx, FILE.pt2, FILE.aot.pt2, or a new folder for LeRobot"""
    executor: SchemeName = None
    """store another execution scheme than the policy was trained with (understudy methods lists them), or an executor
    module:Class; --executor.FIELD VALUE sets one of its fields"""
    precision: Literal["fp32", "int8"] = "fp32"
    """int8 rounds the linear layers of an ONNX file: smaller, often faster, and another policy: compare its success"""
    inputs: PositiveCount = 1000
    """number of random inputs on which the file is compared with the policy"""


def main(args: list[str]) -> None:
    o = parse(ExportOptions, "export", args)
    from ..learn.method import TrainedRun
    from ..policy import Policy
    from .parts.method import with_executor

    if o.out.suffix not in ("", ".onnx", ".pt2"):
        raise UserError(f"the name must end in .onnx or .pt2, but is {o.out.name}", where=o.out,
                        hint=f"such as {o.out.with_suffix('.onnx')}")
    if o.precision != "fp32" and o.out.suffix != ".onnx":
        raise UserError(f"{o.precision} is for ONNX files, but the file is {o.out.name}", where="--precision",
                        hint=f"such as --out {o.out.with_suffix(f'.{o.precision}.onnx')}")
    if not o.out.suffix:
        refuse_given(o, ("inputs",), "a folder for LeRobot has the weights of the policy, and is not compared with it")
    with Output(o.json) as out:
        tell_checkpoint(o.run)
        trained = TrainedRun.load(o.run, o.trust)
        policy, method = cast(Policy, trained.modules["policy"]), trained.method
        if o.executor is not None:
            method = with_executor(method, o.executor, o.trust)
            method.executor.check_planner(policy)
        if method.inference or method.wrapper is not None:
            parts = [*method.inference, *([] if method.wrapper is None else [method.wrapper])]
            raise Unsupported(f"the file would hold the policy without {', '.join(type(p).__name__ for p in parts)}",
                              where=o.run, hint="run it from its checkpoint: understudy.load_actor")
        if o.out.suffix:
            _write_file(o, policy, method, out)
        else:
            _write_lerobot_folder(o, policy, method, out)


def _write_lerobot_folder(o: ExportOptions, policy: Policy, method: Method, out: Output) -> None:
    from ..learn.lerobot_export import write_lerobot_policy

    write_lerobot_policy(policy, method.executor, o.out)
    out.print(f"{o.out}: a checkpoint that LeRobot loads (--policy.path={o.out}), and understudy as well.")
    runs = o.run if _tell_what_is_left_out(method, out) else o.out
    out.suggest(command_line("eval", runs, recorded_env_of(o.run) or "ENV", "--episodes", 100))
    out.print_json({"folder": str(o.out), "inputs": list(policy.inputs), "horizon": policy.window.horizon,
                    "executor": type(method.executor).__name__})


def _write_file(o: ExportOptions, policy: Policy, method: Method, out: Output) -> None:
    """Writes an ONNX file or a package of PyTorch, and compares it with the policy."""
    from ..deploy import onnx, torch_package
    from ..deploy.equivalence import measure_parity, parity_report
    from ..deploy.onnx import runs_in_onnx_runner

    trust, fps, in_onnx = ("understudy", *o.trust), trained_rate(o.run), o.out.suffix == ".onnx"
    if in_onnx:
        error = onnx.export(policy, o.out, method.executor, trust=trust, precision=o.precision, fps=fps)
        planner = onnx.load(o.out, trust=trust)
    else:
        error = torch_package.export_package(policy, o.out, method.executor, fps=fps, trust=trust)
        planner = torch_package.load_package(o.out, trust=trust)
    with progress_bar(f"comparing {o.out.name}", o.inputs) as progress:
        parity = measure_parity(policy.cpu().float().eval(), planner, o.inputs, progress)
    report = o.out.with_name(o.out.name + ".json")
    write_json(report, parity_report(o.out, planner, parity, error))
    size, name = o.out.stat().st_size, type(method.executor).__name__
    out.print(
        f"{o.out}: {size / 1e6:,.1f} MB. On {parity.inputs:,} inputs its chunks differ from those of the policy by at "
        f"most {parity.largest:.1g} of the largest action, on average {parity.mean:.1g} ({report}).")
    if parity.notable and o.precision == "fp32":
        out.print(f"{parity.notable} of them differ by more than {parity.threshold:g}: rounding changes a choice that "
                  "the sampler makes, such as the class of the largest score, or grows in its steps.")
    if not (in_runner := in_onnx and runs_in_onnx_runner(method.executor)) and in_onnx:
        out.print(f"Its executor is {name}. The runners for robots (onnx_runner.py, onnx_runner.mjs) run "
                  "RecedingHorizon only and refuse the file: load it with understudy "
                  "(understudy.deploy.onnx.load_onnx_actor), or train a method whose executor is RecedingHorizon.")
    runs = o.run if _tell_what_is_left_out(method, out) or not in_onnx else o.out
    env, options = _example_evaluation(o.run, method)
    trusted = trust_options(o.trust, env, o.run)
    if env is not None and (o.precision == "fp32" or runs == o.run):
        out.suggest(command_line("eval", runs, env, "--episodes", 100, *options, *trusted))
    elif env is not None:
        out.suggest(command_line("compare", o.run, o.out, "--env", env, "--episodes", 400, *options, *trusted))
    out.print_json({"file": str(o.out), "bytes": size, "error": error, "inputs": list(policy.inputs),
                    "noise": list(policy.noise_shape), "horizon": policy.window.horizon, "executor": name,
                    "runs_in_onnx_runner": in_runner, "precision": o.precision, "report": str(report),
                    "parity": asdict(parity)})


def _tell_what_is_left_out(method: Method, out: Output) -> bool:
    """Prints which column changes of the method the exported file does not compute. Returns whether there are any."""
    from ..learn.method import online_changes

    if computed := [type(r).__name__ for r in online_changes(method)]:
        out.print(f"It does not compute what {', '.join(computed)} adds or changes. Evaluate the run itself, or "
                  "compute it in your own loop.")
    return bool(computed)


def _example_evaluation(run: Path, method: Method) -> tuple[str | None, list[str]]:
    """Returns an environment for the policy of a run, and what to tell the policy there. None without an example."""
    if not must_be_told(run):
        return recorded_env_of(run) or "ENV", []
    data = unchanged_training_data(run)
    return (None if data is None else example_evaluation(data, method)) or (None, [])
