"""The plan of a policy as one function of tensors, for exporters, and the metadata of exported files."""

from __future__ import annotations

import copy
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import config
from ..core import Feature, Schema, Unsupported, keys, normal
from ..data.window import Window
from ..execute.base import Executor
from ..execute.chunking import ChunkedExecutor, RecedingHorizon
from ..heads.base import scan_implementation
from ..nets.convolution import Convolution, GroupNormMish, Up
from ..policy import Planner, Policy, sampling_guides

FORMAT = 2


def obs_columns(planner: Planner) -> tuple[str, ...]:
    """Returns the observation columns that `plan` reads: inputs, and masks of rows before the start."""
    return *planner.inputs, *planner.window.pad_masks(planner.inputs)


class PlanModule(nn.Module):
    """Module that computes `policy.plan` without guides, from tensors in the order of `argument_names`."""

    def __init__(self, policy: Policy):
        super().__init__()
        self.policy, self.quiet = policy, not math.prod(policy.noise_shape)

    def forward(self, *arguments):
        noise, *obs = (None, *arguments) if self.quiet else arguments
        if self.quiet:
            noise = torch.zeros(obs[0].shape[0], *self.policy.noise_shape)
        return self.policy.plan(dict(zip(obs_columns(self.policy), obs, strict=True)), noise)


class ExportedPlanner(Planner):
    """A planner that runs an exported file on the CPU, whatever the device of its arguments.

    Args:
        run: Computes the action of the file from its inputs by name, in the order of the file.
        metadata: What the file says of itself. See `metadata`.
        where: The file, for errors.
    """

    device = torch.device("cpu")

    def __init__(self, run: Callable[[dict[str, Tensor]], Tensor], metadata: dict, where: str, trust: tuple[str, ...]):
        self.run, self.where, self.metadata = run, where, metadata
        self.inputs, self.noise_shape = tuple(metadata["inputs"]), tuple(metadata["noise"])
        self.features: Schema = {k: Feature.from_json(f) for k, f in metadata["features"].items()}
        self.target = self.features[metadata["target"]]
        self.action_dim = self.target.size
        self.is_discrete = self.target.kind in ("discrete", "text")
        self.is_deterministic = not math.prod(self.noise_shape)
        self.window: Window = config.load(metadata["window"], where=where)
        self.executor: Executor = config.load(metadata["executor"], trust, where=where)

    def plan(self, obs, noise, guides=()):
        if sampling_guides(guides):
            raise Unsupported("a file of understudy export plans without guides", where=self.where,
                              hint="take the run itself, or an executor that does not guide (RecedingHorizon, "
                                   "TemporalEnsemble)")
        inputs = {"noise": noise, **obs}
        return self.run({name: inputs[name].cpu().contiguous() for name in argument_names(self)})

    def noise(self, key, count):
        return normal(key, count, self.noise_shape, stream=4)


def check_runs(executor: Executor, planner: ExportedPlanner, obs: Mapping[str, Tensor]) -> None:
    """Raises Unsupported if an executor needs more of a planner than a file can do: guides, or single steps."""
    try:
        executor.act(planner, obs, executor.start(planner, obs, keys(0, range(len(next(iter(obs.values())))))))
    except Unsupported as error:
        raise Unsupported(f"{type(executor).__name__} cannot run an exported policy, which plans whole chunks and "
                          "takes no guides", hint="run the policy from its checkpoint (understudy.load_actor), or "
                          "export it with another executor: --executor receding-horizon") from error


def argument_names(policy: Policy | ExportedPlanner) -> tuple[str, ...]:
    """Returns the names of the inputs of an exported file: the noise, if any, and the columns."""
    return (*(("noise",) if math.prod(policy.noise_shape) else ()), *obs_columns(policy))


def metadata(policy: Policy, executor: Executor | None, fps: float | None, example: Mapping[str, Tensor],
             action: Tensor, precision: str) -> dict:
    """Returns the metadata of an exported file, as JSON data.

    Args:
        executor: The executor of its chunks. By default every chunk is executed for one step.
        fps: Actions per second of the data, if known.
        example: Inputs of the file by name, (rows, ...). Only shapes and dtypes are read.
        action: What the policy plans for them, (rows, horizon, A).
    """
    executor = executor or RecedingHorizon(skip=max(0, -policy.window.action_offset))
    chunked = isinstance(executor, ChunkedExecutor)

    def tensors(tensors_by_name: Mapping[str, Tensor]) -> list[dict]:
        return [{"name": name, "dtype": str(x.dtype).removeprefix("torch."), "shape": ["rows", *x.shape[1:]]}
                for name, x in tensors_by_name.items()]
    return {"format": FORMAT, "inputs": list(policy.inputs), "target": policy.config.target,
            "features": {k: asdict(f) for k, f in policy.features.items()}, "window": config.dump(policy.window),
            "head": config.dump(policy.config.head), "noise": list(policy.noise_shape),
            "executor": config.dump(executor), "precision": precision, "fps": fps,
            "horizon": policy.window.horizon, "n_action_steps": executor.n_action_steps if chunked else None,
            "skip": executor.skip if chunked else None,
            "tensors": {"inputs": tensors(example), "outputs": tensors({"action": action})}}


@contextmanager
def traceable(policy: Policy) -> Iterator[PlanModule]:
    """Lets exporters trace a module: the steps of samplers become one loop. A context manager."""
    module = PlanModule(exportable_copy(policy)).requires_grad_(False)
    token = scan_implementation.set(_loop)
    try:
        with quiet_exporter():
            yield module
    finally:
        scan_implementation.reset(token)


def any_rows(example: Mapping[str, Tensor]) -> tuple[dict[int, torch.export.Dim], ...]:
    """Returns the `dynamic_shapes` of inputs that have any number of rows."""
    rows = {0: torch.export.Dim("rows", min=1)}
    return tuple(rows for _ in example)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def export_error(policy: Policy, problem: str, cause: BaseException) -> Unsupported:
    """Builds the error of a policy that cannot be exported.

    Args:
        problem: What is wrong with its head, such as "cannot be written as ONNX".
        cause: What the exporter raised. If a part of the policy refused, its reason and its hint are kept.
    """
    chain = [cause]
    while (inner := chain[-1].__cause__) is not None:
        chain.append(inner)
    refused = next((e for e in chain if isinstance(e, Unsupported)), None)
    reason = refused.problem if refused else first_line(chain[-1])
    return Unsupported(f"{type(policy.config.head).__name__} with these parts {problem}: {reason}",
                       where=refused.where if refused else None,
                       hint=refused.hint if refused else "run it from its checkpoint, or take other parts")


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silences messages of the exporter, which are for its own developers. A context manager."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _loop(step, carried, *columns: Tensor):
    """Implements `scan` as one loop of the exported program."""
    from torch._higher_order_ops.scan import scan

    one = isinstance(carried, Tensor)

    def body(carried, row):
        after = step(carried[0] if one else tuple(carried), *row)
        after = [x.clone() for x in ((after,) if one else after)]
        return after, after[0].flatten()[:1].clone()  # a scan must give something a step
    last, _ = scan(body, [x.clone() for x in ((carried,) if one else carried)], list(columns))
    return last[0] if one else tuple(last)


# -- modules whose plain form takes many operators -----------------------------------------------------------------


def exportable_copy(policy: Policy) -> Policy:
    """Returns a copy of the policy that computes the same with operators that are fast for a few rows.

    Convolutions become products with all neighbors of a position, which one Gather collects.
    """
    policy = copy.deepcopy(policy)
    for module in list(policy.modules()):
        for name, part in module.named_children():
            if isinstance(part, Convolution):
                setattr(module, name, _PlainConvolution(part))
            elif isinstance(part, Up):
                part.layout = "gemm"
            elif isinstance(part, GroupNormMish):
                setattr(module, name, _PlainGroupNorm(part))
    return policy


class _PlainConvolution(nn.Module):
    def __init__(self, plain: Convolution):
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
