"""The command understudy export."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

from tyro.conf import Positional, arg

from .common import Output, TrustedPackages, command_line, parse, trust_options


@dataclass(frozen=True)
class ExportOptions:
    """Write a trained policy as one ONNX file: observations and noise in, a chunk of actions out, in world units.

    If OUT has no suffix, it becomes a folder that LeRobot loads (its pretrained_model). This needs a policy with
    LeRobot's architecture of ACT or Diffusion Policy, such as one that was loaded from LeRobot and trained further.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run (its last checkpoint), RUN/best, a checkpoint, or a run or checkpoint of LeRobot (ACT or Diffusion
    Policy)"""
    out: Annotated[Path, arg(metavar="OUT")]
    """where to write it: FILE.onnx, or a new folder for LeRobot"""
    json: bool = False
    """one JSON document on standard output"""
    trust: TrustedPackages = ()
    """a package whose code may be loaded"""


def main(args: list[str]) -> None:
    o = parse(ExportOptions, "export", args)
    from ..core import Unsupported
    from ..data.relabel import TaskText
    from ..deploy.onnx import export, runs_in_onnx_runner
    from ..learn.method import TrainedRun, runtime_relabels
    from ..policy import Policy

    with Output(o.json) as out:
        trained = TrainedRun.load(o.run, o.trust)
        policy, method = cast(Policy, trained.modules["policy"]), trained.method
        if method.inference or method.wrapper is not None:
            parts = [*method.inference, *([] if method.wrapper is None else [method.wrapper])]
            raise Unsupported(f"the file would hold the policy without {', '.join(type(p).__name__ for p in parts)}",
                              where=o.run, hint="run it from its checkpoint: understudy.load_actor")
        if not o.out.suffix:
            from ..learn.lerobot_export import write_lerobot_policy

            write_lerobot_policy(policy, method.executor, o.out)
            out.print(f"{o.out}: a checkpoint that LeRobot loads (--policy.path={o.out}), and understudy as well.")
            out.suggest(command_line("eval", o.out, "ENV", "--episodes", 100))
            out.print_json({"folder": str(o.out), "inputs": list(policy.inputs), "horizon": policy.window.horizon,
                            "executor": type(method.executor).__name__})
            return
        error = export(policy, o.out, method.executor, trust=("understudy", *o.trust))
        size = o.out.stat().st_size
        out.print(
            f"{o.out}: {size / 1e6:,.1f} MB. Its chunks differ from those of the policy by at most {error:.1g} of the "
            "largest action."
        )
        name = type(method.executor).__name__
        if not (in_runner := runs_in_onnx_runner(method.executor)):
            out.print(f"Its executor is {name}. The runner for robots (onnx_runner.py) runs RecedingHorizon only and "
                      "refuses the file: load it with understudy (understudy.deploy.onnx.load_onnx_actor), or train "
                      "a method whose executor is RecedingHorizon.")
        runs = o.out
        if computed := [type(r).__name__ for r in runtime_relabels(method) if not isinstance(r, TaskText)]:
            out.print(f"The file does not compute what {', '.join(computed)} adds or changes. Evaluate the run itself, "
                      "or compute it in your own loop.")
            runs = o.run
        out.suggest(command_line("eval", runs, "ENV", "--episodes", 100, *trust_options(o.trust, None, o.run)))
        out.print_json({"file": str(o.out), "bytes": size, "error": error, "inputs": list(policy.inputs),
                        "noise": list(policy.noise_shape), "horizon": policy.window.horizon, "executor": name,
                        "runs_in_onnx_runner": in_runner})
