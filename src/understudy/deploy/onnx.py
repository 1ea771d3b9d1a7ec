"""Exports a policy as one ONNX file, and loads such a file as a planner.

Noise and observations go in, and a chunk of actions comes out. Nothing in the file is random, and the codec is inside.
The steps of a sampler are one loop (ONNX Scan), so that the file has the weights once, whatever the number of steps.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core import UserError
from ..execute.actor import PolicyActor
from ..execute.base import Executor
from ..execute.planners import FixedBatch
from ..policy import Policy, camera_sizes
from .equivalence import check_export, example_plan
from .program import FORMAT, ExportedPlanner, any_rows, export_error, first_line, metadata, traceable

OPSET = 20
Precision = Literal["fp32", "int8"]


def export(policy: Policy, path: Path | str, executor: Executor | None = None, *, max_error: float = 1e-4,
           trust: tuple[str, ...] = ("understudy",), precision: Precision = "fp32", fps: float | None = None) -> float:
    """Writes `policy.plan` without guides to an ONNX file, for any number of rows.

    Args:
        path: The file, which ends in .onnx.
        executor: The executor that runs the chunks. It is written into the file. By default every chunk is executed
            for one step.
        max_error: Largest error of a plan of "fp32", relative to the largest action.
        precision: "int8" rounds the weights and inputs of linear layers to 8 bits (`deploy.int8`). Whether the policy
            still succeeds must then be measured. Only errors that are not numbers are refused.
        fps: Actions per second of the data, which is written into the file.

    Returns:
        The largest error of the file's plans on random observations, against double precision and relative to the
        largest action.

    Raises:
        Unsupported: The policy contains what ONNX has no operators for, or the executor cannot run the file.
    """
    if not isinstance(policy, Policy):
        raise UserError(f"the policy is {policy!r}, but must be a Policy", where="export",
                        hint=f"load it first: understudy.load_policy({str(policy)!r})"
                             if isinstance(policy, (str, Path)) else "understudy.load_policy(run) loads that of a run")
    path, policy = Path(path), copy.deepcopy(policy).cpu().float().eval()
    _import_package("onnx"), _import_package("onnxscript")
    if path.suffix != ".onnx":
        raise UserError(f"the name must end in .onnx, but is {path.name}", where=path,
                        hint=f"such as {path.with_suffix('.onnx')}")
    example, action = example_plan(policy)
    program = _export_program(policy, example)
    policy_metadata = metadata(policy, executor, fps, example, action, precision)
    program.model.metadata_props["understudy"] = json.dumps(policy_metadata)
    partial = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        program.save(partial)
        if precision == "int8":
            from .int8 import quantize_file

            quantize_file(partial)
        tolerance = float("inf") if precision == "int8" else max_error
        error = check_export(policy, load(partial, trust=trust), executor, tolerance, path)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return error


def runs_in_onnx_runner(executor: Executor) -> bool:
    """Returns whether `OnnxRunner`, the file that is copied to a robot, can run this executor."""
    return type(executor).__name__ == "RecedingHorizon"


def load(path: Path | str, threads: int = 1, trust: tuple[str, ...] = ("understudy",)) -> ExportedPlanner:
    """Loads a file that `export` wrote.

    Rows of a file in 8 bits are planned one by one, because all rows of a batch share the scale of their inputs.

    Args:
        threads: Number of threads that a plan may use.

    Raises:
        UntrustedCode: Its executor comes from another package.
    """
    session, metadata = _open(path, threads)

    def run(inputs: dict[str, Tensor]) -> Tensor:
        feed = {name: np.ascontiguousarray(x.numpy()) for name, x in inputs.items()}
        rows = len(next(iter(feed.values()))) if metadata.get("precision") == "int8" else 0
        feeds = [{name: x[row:row + 1] for name, x in feed.items()} for row in range(rows)] or [feed]
        return torch.from_numpy(np.concatenate([session.run(["action"], each)[0] for each in feeds]))
    return ExportedPlanner(run, metadata, str(path), trust)


def recorded_rate(path: Path | str) -> float | None:
    """Returns the actions per second of the data, as an exported file states them. None if unknown."""
    return _open(path)[1].get("fps")


def _open(path: Path | str, threads: int = 1):
    """Opens a file that `export` wrote. Returns its session and its metadata."""
    ort = _import_package("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    if not Path(path).is_file():
        is_folder = Path(path).is_dir()
        problem = "this is a folder, not a file of understudy export" if is_folder else "there is no such file"
        raise UserError(problem, where=path, hint=_EXPORT_AGAIN)
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # errors of ONNX Runtime have no common base
        raise UserError(
            f"this is not a complete ONNX file: {first_line(error)}", where=path, hint=_EXPORT_AGAIN
        ) from None
    metadata_json = session.get_modelmeta().custom_metadata_map.get("understudy")
    if metadata_json is None:
        raise UserError("understudy export did not write this ONNX file", where=path, hint=_EXPORT_AGAIN)
    metadata = json.loads(metadata_json)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"the file has format {metadata.get('format')!r}, but this understudy reads format {FORMAT}",
            where=path, hint=_EXPORT_AGAIN
        )
    return session, metadata


def load_onnx_actor(path: Path | str, rows: int | None = None,
                    trust: tuple[str, ...] = ("understudy",)) -> PolicyActor:
    """Loads the actor from a file that `export` wrote.

    Args:
        rows: Batch size that the network always gets; None for as many rows as there are.

    Raises:
        Unsupported: The executor needs more than whole chunks.
    """
    planner = load(path, trust=trust)
    planner.executor.check_planner(planner)
    return PolicyActor(planner if rows is None else FixedBatch(planner, rows), planner.executor,
                       camera_sizes(planner.features))


_EXPORT_AGAIN = "export it again: understudy export RUN --out FILE.onnx"


def _import_package(name: str):
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"the package {name} is not installed", hint="pip install 'understudy[onnx]'") from None


@torch.no_grad()
def _export_program(policy: Policy, example: Mapping[str, Tensor]):
    try:
        with traceable(policy) as module:
            program = torch.onnx.export(
                module, tuple(example.values()), dynamo=True, opset_version=OPSET, input_names=list(example),
                output_names=["action"], verbose=False, dynamic_shapes=(any_rows(example),))
    except (torch.onnx.errors.OnnxExporterError, torch.onnx.OnnxExporterError) as error:
        raise export_error(policy, "cannot be exported to ONNX", error) from error
    assert program is not None  # None only if the exporter writes a file
    for node in program.model.graph.all_nodes():
        node.metadata_props.clear()  # stack traces, which can be larger than the weights and name files of this machine
    return program
