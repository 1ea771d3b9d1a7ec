"""Checks that exported policies plan like the originals."""

from __future__ import annotations

import copy
import hashlib
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..core import Feature, NonFiniteAction, UserError
from ..execute.base import Executor
from ..nets.encoders import num_classes_of
from ..policy import Planner, Policy
from .program import ExportedPlanner, argument_names, check_runs


def plan_difference(policy: Policy, planner: Planner) -> tuple[float, float]:
    """Returns the largest errors of a planner and of the policy itself, compared with double precision.

    They are measured on batches of 1, 2 and 5 rows of random observations.

    Args:
        planner: The planner that should give the same plans.

    Returns:
        The error of the planner and the error of the policy, both relative to the largest action.
    """
    exact, head, worst = copy.deepcopy(policy.net).double(), policy.config.head, (0.0, 0.0)
    for rows in (1, 2, 5):
        obs, noise = random_observations(policy, rows, seed=rows), random_noise(policy, rows, seed=rows)
        with torch.no_grad():
            context = policy.context(obs)
            context = replace(context, tokens=context.tokens.double())
            exact_plan = policy.codec.decode(head.sample(exact, context, noise.double()), obs)
            size = exact_plan.abs().max().clamp(min=1e-6)
            off = [float(((plan - exact_plan).abs().max() / size).nan_to_num(nan=torch.inf))
                   for plan in (planner.plan(obs, noise), finite_plan(policy, obs, noise))]
            worst = (max(worst[0], off[0]), max(worst[1], off[1]))
    return worst


def finite_plan(policy: Policy, obs: dict[str, Tensor], noise: Tensor) -> Tensor:
    """Returns the policy's plan, (B, H, A). Raises an error if it is not finite.

    Raises:
        NonFiniteAction: It contains NaN or infinity, which an exported file would equal and no robot could execute.
    """
    plan = policy.plan(obs, noise)
    finite = plan.isfinite().flatten(1).all(1)
    if not finite.all():
        row = int((~finite).nonzero()[0])
        raise NonFiniteAction(
            f"its plans are NaN or infinite for {int((~finite).sum())} of {len(plan)} random observations", row,
            place="the policy", hint="export an earlier checkpoint, or train again: its weights or statistics are no "
            "finite numbers")
    return plan


def check_export(policy: Policy, planner: ExportedPlanner, executor: Executor | None, tolerance: float,
                 where: Path) -> float:
    """Checks that a file plans as its policy does, and that its executor can run it.

    Args:
        executor: The executor, if one is written into the file.
        tolerance: Largest error of a plan, relative to the largest action.

    Returns:
        The largest error of the file's plans on random observations, of `plan_difference`.

    Raises:
        UserError: The error is larger than `tolerance` and larger than 8 times the policy's own rounding error. A
            sampler that divides by almost nothing in its first step makes rounding errors grow.
    """
    if executor is not None:
        check_runs(executor, planner, random_observations(policy, 3))
    error, own = plan_difference(policy, planner)
    if not error <= max(tolerance, 8 * own):
        raise UserError(f"the exported file does not plan as the policy does: the difference is {error:.2g} of the "
                        "largest action", where=where, hint="this is a defect of the export: please report it")
    return error


BATCHES = {1: 0.05, 2: 0.1, 5: 0.25, 16: 0.6}  # batch sizes of `measure_parity`, and their shares of the inputs
NOTABLE = 1e-4  # difference, relative to the largest action, above which inputs are counted


@dataclass(frozen=True)
class Parity:
    """Differences between the plans of a policy and of its exported file, relative to the largest action.

    Args:
        batch_sizes: Number of inputs that were planned in batches of each size.
        mean: The mean difference over inputs, steps and components.
        notable: Number of inputs with a difference above `threshold`.
        threshold: See `notable`.
        largest_action: The largest action of the policy, in the units of the data.
        where: The input with the largest difference: its number, the batch size, the row of the batch, the step of
            the chunk, the component of the action, and both values.
        ms: Median wall-clock milliseconds of one plan at batch size 1, of the file and of the policy.
    """

    inputs: int
    batch_sizes: dict[int, int]
    largest: float
    mean: float
    notable: int
    threshold: float
    largest_action: float
    where: dict[str, float]
    ms: dict[str, float]


@torch.no_grad()
def measure_parity(policy: Policy, planner: Planner, inputs: int = 1000,
                   progress: Callable[[int], object] = lambda done: None) -> Parity:
    """Compares a planner with the policy that it should equal, in fp32 and in several batch sizes.

    Input number i depends on i's batch alone, so that another run finds the same numbers.

    Args:
        policy: The policy, on the CPU.
    """
    off, action, batches, took = [], 0.0, {}, {"file": [], "policy": []}
    largest_gap: dict[str, float] = {}
    worst, done = -1.0, 0
    for size in _batch_sizes(inputs):
        obs, noise = random_observations(policy, size, seed=done), random_noise(policy, size, seed=done)
        began = time.perf_counter()
        reference = finite_plan(policy, obs, noise)
        middle = time.perf_counter()
        plan = planner.plan(obs, noise)
        if size == 1:
            took["policy"].append(middle - began)
            took["file"].append(time.perf_counter() - middle)
        plan, reference = plan.double(), reference.double()
        gap = (plan - reference).abs().nan_to_num(nan=torch.inf)
        if float(gap.max()) > worst:
            worst = float(gap.max())
            row, step, component = (int(i) for i in torch.unravel_index(gap.argmax(), gap.shape))
            largest_gap = {"input": done + row, "batch_size": size, "row": row, "step": step, "component": component,
                           "policy": float(reference[row, step, component]), "file": float(plan[row, step, component])}
        off.append(gap.flatten(1))
        action = max(action, float(reference.abs().max()))
        batches[size] = batches.get(size, 0) + size
        done += size
        progress(done)
    all_off = torch.cat(off) / (action or 1.0)
    return Parity(done, batches, float(all_off.max()), float(all_off.mean()), int((all_off.amax(1) > NOTABLE).sum()),
                  NOTABLE, action, largest_gap, {k: 1000 * statistics.median(v) for k, v in took.items()})


def parity_report(path: Path, planner: ExportedPlanner, parity: Parity, error: float) -> dict:
    """Returns the report that is written next to an exported file, as JSON data.

    Args:
        error: Largest error of the file against the policy in double precision, of `plan_difference`.
    """
    content = path.read_bytes()
    names = ("horizon", "n_action_steps", "skip", "fps", "precision", "tensors", "executor")
    settings = {k: planner.metadata[k] for k in names}
    action = planner.target
    return {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **settings,
            "action": {"name": planner.metadata["target"], "names": action.names, "unit": action.unit},
            "parity": {**asdict(parity), "error_against_fp64": error}}


def _batch_sizes(inputs: int) -> list[int]:
    """Returns sizes of batches with `inputs` rows in all. At least one batch has a single row."""
    sizes, n_remaining = [], inputs
    for size, share in BATCHES.items():
        count = min(n_remaining // size, max(1, int(inputs * share) // size))
        sizes += [size] * count
        n_remaining -= size * count
    return sizes + ([n_remaining] if n_remaining else [])


@torch.no_grad()
def example_plan(policy: Policy) -> tuple[dict[str, Tensor], Tensor]:
    """Returns random inputs of an exported file by name, and the plan of the policy for them.

    Planning also fills tables that parts of the policy keep. Exporters then do not trace the computation of these
    tables.

    Returns:
        The inputs in the order of `argument_names`, (3, ...), and the actions, (3, H, A).
    """
    noise, obs = random_noise(policy, 3), random_observations(policy, 3)
    inputs = {"noise": noise, **obs}
    return {name: inputs[name] for name in argument_names(policy)}, policy.plan(obs, noise)


def random_noise(policy: Policy, rows: int, seed: int = 0) -> Tensor:
    """Draws standard normal noise for plans of a policy.

    Returns:
        The noise, (rows, *policy.noise_shape).
    """
    return torch.randn(rows, *policy.noise_shape, generator=torch.Generator().manual_seed(seed))


def random_observations(policy: Policy, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Draws random observations with the statistics of the data.

    Returns:
        Observations by column, (rows, To, ...), on the policy's device.
    """
    rng, obs = torch.Generator().manual_seed(seed), {}
    for name in policy.inputs:
        f = policy.features[name]
        shape = (rows, policy.window.n_obs_steps, *f.shape)
        if f.kind == "discrete":
            each = [torch.randint(n, shape[:2], generator=rng) for n in num_classes_of(f, name)]
            obs[name] = torch.stack(each, -1).reshape(shape)
        elif f.dtype in ("uint8", "bool"):
            obs[name] = torch.randint(256 if f.dtype == "uint8" else 2, shape, generator=rng)
        else:
            obs[name] = torch.randn(shape, generator=rng)
        if (values := policy.codec.known_values(name)) is not None:
            chosen = values[torch.randint(len(values), (rows,), generator=rng)]
            obs[name] = chosen.reshape(rows, 1, *f.shape).expand(shape)
        obs[name] = obs[name].to(policy.device, _dtype(f))
    # The codec maps a number x to slope * x + start.
    free = [k for k in obs if policy.codec.known_values(k) is None]
    start, end = (policy.codec.encode_obs({**obs, **{k: torch.full_like(obs[k], n) for k in free}}) for n in (0, 1))
    for name, x in obs.items():
        if policy.features[name].kind == "vector" and x.is_floating_point():
            slope = end[name] - start[name]
            obs[name] = torch.where(slope == 0, 0.0, (x - start[name]) / slope).to(x.dtype)
    first = torch.randint(policy.window.n_obs_steps, (rows, 1), generator=rng)  # row at which the episode starts
    return obs | {mask: (torch.arange(policy.window.n_obs_steps) >= first).to(policy.device)
                  for mask in policy.window.pad_masks(policy.inputs)}


def _dtype(feature: Feature) -> torch.dtype:
    """Returns the dtype that actors use: double precision becomes single precision."""
    dtype = feature.torch_dtype
    return torch.float32 if dtype == torch.float64 else dtype
