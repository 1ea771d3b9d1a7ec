"""Exports a policy as a package that PyTorch runs without understudy: as a graph, or compiled for a processor.

``FILE.pt2`` is a `torch.export` program, which runs wherever PyTorch does. ``FILE.aot.pt2`` is machine code that
AOTInductor makes with a C++ compiler, for processors like the one of this machine. Both files take the inputs of an
ONNX file. The steps of a sampler are one loop.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ..core import Unsupported, UserError
from ..execute.base import Executor
from ..policy import Policy
from .equivalence import check_export, example_plan
from .program import ExportedPlanner, any_rows, export_error, metadata, quiet_exporter, traceable

COMPILED = ".aot.pt2"  # the end of the names of compiled packages
METADATA = "understudy.json"


def is_compiled(path: Path | str) -> bool:
    """Returns whether a file name is of a compiled package."""
    return str(path).endswith(COMPILED)


def export_package(policy: Policy, path: Path | str, executor: Executor | None = None, *, max_error: float = 1e-4,
                   fps: float | None = None, trust: tuple[str, ...] = ("understudy",)) -> float:
    """Writes `policy.plan` without guides to a package of PyTorch, for any number of rows.

    Args:
        path: The file: NAME.pt2, or NAME.aot.pt2 for machine code.
        executor: The executor that runs the chunks. It is written into the file.
        max_error: Largest error of a plan, relative to the largest action.
        fps: Actions per second of the data, which is written into the file.

    Returns:
        The largest error of the file's plans on random observations, against double precision and relative to the
        largest action.

    Raises:
        Unsupported: The sampler is not a fixed graph, the executor needs more than whole chunks, or there is no C++
            compiler for machine code.
    """
    path, policy = Path(path), copy.deepcopy(policy).cpu().float().eval()
    if path.suffix != ".pt2":
        raise UserError(f"the name must end in .pt2, but is {path.name}", where=path,
                        hint=f"such as {path.with_suffix('.pt2')}")
    if is_compiled(path):
        _check_compiler()
    example, action = example_plan(policy)
    program = _export_program(policy, example)
    metadata_json = json.dumps(metadata(policy, executor, fps, example, action, "fp32"))
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder) / path.name
        if is_compiled(path):
            with quiet_exporter():
                torch._inductor.aoti_compile_and_package(
                    program, package_path=str(partial),
                    inductor_configs={"aot_inductor.metadata": {"understudy": metadata_json}})
        else:
            program._example_inputs = None  # example inputs would be pickled
            torch.export.save(program, partial, extra_files={METADATA: metadata_json})
        error = check_export(policy, load_package(partial, trust=trust), executor, max_error, path)
        partial.replace(path)
    return error


def load_package(path: Path | str, trust: tuple[str, ...] = ("understudy",)) -> ExportedPlanner:
    """Loads a file that `export_package` wrote. It contains code: load only files whose origin you trust."""
    if not Path(path).is_file():
        raise UserError("there is no such file", where=path, hint="export it: understudy export RUN --out FILE.pt2")
    if is_compiled(path):
        package = torch._inductor.aoti_load_package(str(path))
        metadata_json = package.get_metadata()["understudy"]
    else:
        extra_files = {METADATA: ""}
        package = torch.export.load(path, extra_files=extra_files).module()
        metadata_json = extra_files[METADATA]

    @torch.no_grad()
    def run(inputs: dict[str, Tensor]) -> Tensor:
        return package(*inputs.values())
    return ExportedPlanner(run, json.loads(metadata_json), str(path), trust)


@torch.no_grad()
def _export_program(policy: Policy, example: Mapping[str, Tensor]) -> torch.export.ExportedProgram:
    try:
        with traceable(policy) as module:
            return torch.export.export(module, tuple(example.values()), strict=False,
                                       dynamic_shapes=(any_rows(example),))
    except Exception as error:  # errors of torch.export have no common base
        raise export_error(policy, "cannot be exported as a fixed graph", error) from error


def _check_compiler() -> None:
    """Raises Unsupported if no C++ compiler is found."""
    compilers = [c] if (c := os.environ.get("CXX")) else ["g++", "clang++", "cl"]
    if not any(map(shutil.which, compilers)):
        raise Unsupported(f"machine code needs a C++ compiler, and there is none ({', '.join(compilers)})",
                          where=COMPILED, hint="install one (apt install g++), set CXX to the one that you have, or "
                          "export FILE.pt2, which needs none")
