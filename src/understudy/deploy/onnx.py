"""Exports a policy as one ONNX file, and loads such a file as a planner.

Noise and observations go in, and a chunk of actions comes out. Nothing in the file is random, and the codec is inside.
The steps of a sampler are one loop (ONNX Scan), so that the file has the weights once, whatever the number of steps.
"""

from __future__ import annotations

import copy
import json
import logging
import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import config
from ..core import Feature, Schema, Unsupported, UserError, keys, normal
from ..data.window import Window
from ..execute.actor import PolicyActor
from ..execute.base import Executor
from ..execute.chunking import RecedingHorizon
from ..execute.planners import FixedBatch
from ..heads.base import scan_implementation
from ..nets.convolution import Convolution, Down, GroupNormMish, Up
from ..policy import Planner, Policy, camera_sizes, sampling_guides
from .equivalence import plan_difference, random_noise, random_observations

FORMAT = 2
OPSET = 20


def export(policy: Policy, path: Path | str, executor: Executor | None = None, *, near: float = 1e-4,
           trust: tuple[str, ...] = ("understudy",)) -> float:
    """Writes `policy.plan` without guides to an ONNX file, for any number of rows.

    Args:
        policy: The policy.
        path: The file, which ends in .onnx.
        executor: The executor that runs the chunks. It is written into the file. By default every chunk is executed
            for one step.
        near: Largest error of a plan, relative to the largest action.
        trust: Packages whose executors may be loaded.

    Returns:
        The largest error of the file's plans on random observations, against double precision and relative to the
        largest action.

    Raises:
        Unsupported: The policy contains what ONNX has no operators for, or the executor cannot run the file.
        UserError: The error is larger than `near` and larger than 8 times the policy's own rounding error. A sampler
            that divides by almost nothing in its first step makes rounding errors grow.
    """
    path, policy = Path(path), copy.deepcopy(policy).cpu().float().eval()
    _import_package("onnx"), _import_package("onnxscript")
    if path.suffix != ".onnx":
        raise UserError(f"the name must end in .onnx, but is {path.name}", where=path,
                        hint=f"such as {path.with_suffix('.onnx')}")
    example = random_observations(policy, 3), random_noise(policy, 3)
    with torch.no_grad():
        policy.plan(*example)  # what tables hold is made now, and not by the exporter
        program = _export_program(policy, *example)
    metadata = {"format": FORMAT, "inputs": list(policy.inputs), "target": policy.config.target,
                "features": {k: asdict(f) for k, f in policy.features.items()}, "window": config.dump(policy.window),
                "head": config.dump(policy.config.head), "noise": list(policy.noise_shape),
                "executor": config.dump(executor or RecedingHorizon(skip=max(0, -policy.window.action_offset)))}
    program.model.metadata_props["understudy"] = json.dumps(metadata)
    partial = path.with_name(path.name + ".part")
    try:
        program.save(partial)
        planner = load(partial, trust=trust)
        if executor is not None:
            _check_runs(executor, planner, example[0])
        error, own = plan_difference(policy, planner)
        if not error <= max(near, 8 * own):
            raise UserError(f"the exported file plans otherwise than the policy: the difference is {error:.2g} of the "
                            "largest action", where=path, hint="this is a defect of the export: please report it")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return error


def runs_in_onnx_runner(executor: Executor) -> bool:
    """Whether `OnnxRunner`, the file that is copied to a robot, runs this executor. It refuses all others."""
    return type(executor).__name__ == "RecedingHorizon"


def _check_runs(executor: Executor, planner: OnnxPlanner, obs: Mapping[str, Tensor]) -> None:
    """Raises Unsupported if an executor needs more of a planner than a file can do: guides, or single steps."""
    try:
        executor.act(planner, obs, executor.start(planner, obs, keys(0, range(len(next(iter(obs.values())))))))
    except Unsupported as error:
        raise Unsupported(f"{type(executor).__name__} cannot run an exported policy, which plans whole chunks and "
                          "takes no guides", hint="run the policy from its checkpoint (understudy.load_actor), or "
                          "train it with another executor, such as RecedingHorizon") from error


def load(path: Path | str, threads: int = 1, trust: tuple[str, ...] = ("understudy",)) -> OnnxPlanner:
    """Loads a file that `export` wrote.

    Args:
        path: The file.
        threads: Number of threads that a plan may use.
        trust: Packages whose executors may be loaded.

    Raises:
        UserError: There is no such file.
        UntrustedCode: Its executor comes from another package.
    """
    ort = _import_package("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 3
    if not Path(path).is_file():
        is_folder = Path(path).is_dir()
        problem = "this is a folder, not a file of understudy export" if is_folder else "there is no such file"
        raise UserError(problem, where=path, hint=_EXPORT_AGAIN)
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its kinds of error have no common base
        raise UserError(
            f"this is not a complete ONNX file: {_first_line(error)}", where=path, hint=_EXPORT_AGAIN
        ) from None
    said = session.get_modelmeta().custom_metadata_map.get("understudy")
    if said is None:
        raise UserError("understudy export did not write this ONNX file", where=path, hint=_EXPORT_AGAIN)
    metadata = json.loads(said)
    if metadata.get("format") != FORMAT:
        raise UserError(
            f"the file has format {metadata.get('format')!r}, but this understudy reads format {FORMAT}",
            where=path, hint=_EXPORT_AGAIN
        )
    return OnnxPlanner(session, metadata, str(path), trust)


def load_onnx_actor(path: Path | str, rows: int | None = None,
                    trust: tuple[str, ...] = ("understudy",)) -> PolicyActor:
    """The actor of a file that `export` wrote.

    Args:
        path: The file.
        rows: Batch size that the network always gets; None for as many rows as there are.
        trust: Packages whose executors may be loaded.

    Raises:
        Unsupported: The executor needs more than whole chunks.
    """
    planner = load(path, trust=trust)
    planner.executor.check_planner(planner)
    return PolicyActor(planner if rows is None else FixedBatch(planner, rows), planner.executor, planner.image_sizes)


class OnnxPlanner(Planner):
    """A planner that runs an ONNX file on the CPU, whatever the device of its arguments."""

    device = torch.device("cpu")

    @property
    def image_sizes(self) -> dict[str, tuple[int, int]]:
        """(height, width) of each camera that the file reads."""
        return camera_sizes(self.features)

    def __init__(self, session, metadata: dict, where: str, trust: tuple[str, ...]):
        self.session, self.where = session, where
        self.inputs, self.noise_shape = tuple(metadata["inputs"]), tuple(metadata["noise"])
        self.features: Schema = {k: Feature.from_json(f) for k, f in metadata["features"].items()}
        self.target = self.features[metadata["target"]]
        self.action_dim = self.target.size
        self.window: Window = config.load(metadata["window"], where=where)
        self.executor: Executor = config.load(metadata["executor"], trust, where=where)

    def plan(self, obs, noise, guides=()):
        if sampling_guides(guides):
            raise Unsupported(
                "a file of understudy export plans without guides",
                where=self.where,
                hint="take the run itself, or an executor that does not guide (RecedingHorizon, TemporalEnsemble)",
            )
        feed = {k: np.ascontiguousarray(obs[k].cpu().numpy()) for k in _obs_columns(self)}
        if math.prod(self.noise_shape):
            feed["noise"] = np.ascontiguousarray(noise.cpu().numpy())
        return torch.from_numpy(self.session.run(["action"], feed)[0])

    def noise(self, key, count):
        return normal(key, count, self.noise_shape, stream=4)


_EXPORT_AGAIN = "export it again: understudy export RUN --out FILE.onnx"


def _import_package(name: str):
    try:
        return import_module(name)
    except ImportError:
        raise UserError(f"the package {name} is not installed", hint="pip install 'understudy[onnx]'") from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


# -- the program ----------------------------------------------------------------------------------------------------


def _obs_columns(planner: Planner) -> tuple[str, ...]:
    """The observation columns that `plan` reads: the inputs, and the masks of rows before the start of an episode."""
    return *planner.inputs, *planner.window.pad_masks(planner.inputs)


class _PlanModule(nn.Module):
    def __init__(self, policy: Policy):
        super().__init__()
        self.policy, self.quiet = policy, not math.prod(policy.noise_shape)

    def forward(self, *arguments):
        noise, *obs = (None, *arguments) if self.quiet else arguments
        if self.quiet:
            noise = torch.zeros(obs[0].shape[0], *self.policy.noise_shape)
        return self.policy.plan(dict(zip(_obs_columns(self.policy), obs, strict=True)), noise)


def _export_program(policy: Policy, obs: Mapping[str, Tensor], noise: Tensor):
    plan = _PlanModule(_exportable_copy(policy))
    names = list(_obs_columns(policy))
    arguments = [obs[k] for k in names]
    if not plan.quiet:
        arguments, names = [noise, *arguments], ["noise", *names]
    rows = {0: torch.export.Dim("rows", min=1)}
    token = scan_implementation.set(_onnx_scan)
    try:
        with _quiet_exporter():
            return torch.onnx.export(
                plan, tuple(arguments), dynamo=True, opset_version=OPSET, input_names=names, output_names=["action"],
                dynamic_shapes=(tuple(rows for _ in arguments),), verbose=False)
    except (torch.onnx.errors.OnnxExporterError, torch.onnx.OnnxExporterError) as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise Unsupported(
            f"{type(policy.config.head).__name__} with these parts has no form in ONNX: {_first_line(cause)}",
            hint="run it from its checkpoint, or take other parts",
        ) from error
    finally:
        scan_implementation.reset(token)


def _onnx_scan(step, carried, *columns: Tensor):
    """`scan` as one loop of the exported program."""
    from torch._higher_order_ops.scan import scan

    one = isinstance(carried, Tensor)

    def body(carried, row):
        after = step(carried[0] if one else tuple(carried), *row)
        after = [x.clone() for x in ((after,) if one else after)]
        return after, after[0].flatten()[:1].clone()  # a scan must give something a step
    last, _ = scan(body, [x.clone() for x in ((carried,) if one else carried)], list(columns))
    return last[0] if one else tuple(last)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """A context that silences the messages of the exporter, which are for its own developers."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


# -- modules whose plain form takes many operators -----------------------------------------------------------------


def _exportable_copy(policy: Policy) -> Policy:
    """A copy that computes the same with operators that are fast for a few rows.

    Convolutions become products with all neighbors of a position, which one Gather collects.
    """
    policy = copy.deepcopy(policy)
    for module in list(policy.modules()):
        for name, part in module.named_children():
            if isinstance(part, Convolution | Down):
                setattr(module, name, _PlainConvolution(part))
            elif isinstance(part, Up):
                part.layout = "gemm"
            elif isinstance(part, GroupNormMish):
                setattr(module, name, _PlainGroupNorm(part))
    return policy


class _PlainConvolution(nn.Module):
    def __init__(self, plain: Convolution | Down):
        super().__init__()
        self.count, self.stride = plain.weight.shape[-1], plain.stride[0]
        self.body = nn.Linear(plain.weight[0].numel(), plain.weight.shape[0])
        self.body.weight = nn.Parameter(plain.weight.detach().transpose(1, 2).flatten(1).contiguous())
        assert plain.bias is not None
        self.body.bias = nn.Parameter(plain.bias.detach())

    def forward(self, x: Tensor) -> Tensor:
        steps, side, size = x.shape[1], self.count // 2, x.shape[2]
        first = torch.arange(0, steps, self.stride)
        if self.count > 1:
            at = (first[:, None] + torch.arange(self.count)).flatten()
            x = F.pad(x, (0, 0, side, side)).index_select(1, at)
        return self.body(x.reshape(-1, self.count * size)).unflatten(0, (-1, first.numel()))


class _PlainGroupNorm(nn.Module):
    def __init__(self, plain: GroupNormMish):
        super().__init__()
        self.groups, self.eps = plain.num_groups, plain.eps
        self.weight, self.bias = plain.weight, plain.bias

    def forward(self, x: Tensor) -> Tensor:
        x = x.transpose(1, 2)
        y = F.instance_norm(x.reshape(x.shape[0], self.groups, -1), eps=self.eps).reshape(x.shape)
        y = torch.addcmul(self.bias[:, None], y, self.weight[:, None])
        more = y.exp() + 1  # Mish without a logarithm, and right where the exponential overflows
        return (y - (y + y) / (more * more + 1)).transpose(1, 2)
