"""Basic values that every layer uses. Imports nothing else of understudy."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

State = dict[str, Any]  # nested dicts of tensors whose first axis is the row (one row = one environment)


class UserError(ValueError):
    """An error that the user can fix. The command line prints its text without a traceback and exits with status 2.

    Args:
        problem: What is wrong.
        where: File, key or index.
        hint: How to fix it.
    """

    def __init__(self, problem: str, *, where: object = None, hint: str | None = None):
        self.problem, self.where, self.hint = problem, where, hint
        text = f"{where}: {problem}" if where is not None else problem
        super().__init__(f"{text}\n  -> {hint}" if hint else text)

    def __reduce__(self):  # workers send errors to the process that started them
        state = {**self.__dict__, "where": None if self.where is None else str(self.where)}
        return _rebuild_error, (type(self), str(self), state)


def _rebuild_error(kind: type[UserError], text: str, state: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, text)
    error.__dict__.update(state)
    return error


class DataError(UserError):
    """The demonstrations are inconsistent, or lack what is needed. Other data would work."""


class ConfigError(UserError):
    """An option, a method or a configuration is invalid, whatever the data."""


class Unsupported(UserError):
    """A valid part cannot do what is asked for (such as guidance for a head that has no denoising steps)."""


class UserCodeError(UserError):
    """Code of the user, such as an environment, raised an error or returned what it must not."""


class DataWarning(UserWarning):
    """Something about the data that the user should know. The command line prints only its text."""


@dataclass(frozen=True)
class Feature:
    """The contents of one column in one step, without the time axis.

    Args:
        dtype: NumPy name ("float32", "uint8", "int64", "bool"), or "string" for text that stays text.
        shape: Shape of one step. Images are (H, W, C).
        kind: "vector" (numbers), "image" (uint8), "text" (UTF-8 bytes padded with 0, which networks read), "discrete"
            (integers, with the number of classes of each component in `num_classes`), or "string".
        names: Names of the components of a vector.
        unit: Unit of all components ("rad", "m"), if known.
    """

    dtype: str
    shape: tuple[int, ...]
    kind: Literal["vector", "image", "text", "discrete", "string"] = "vector"
    names: tuple[str, ...] | None = None
    unit: str | None = None
    num_classes: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Feature:
        """Builds a feature from the fields that JSON stores, with lists in place of tuples."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return Feature(**values)

    @staticmethod
    def from_array(column: np.ndarray) -> Feature:
        """The feature of the array of a column, (T, *shape)."""
        dtype, shape = column.dtype, tuple(column.shape[1:])
        if dtype.kind in "UO":
            return Feature("string", shape, "string")
        kind = "vector"
        if dtype == np.uint8:
            kind = "image" if len(shape) == 3 else "text"
        elif dtype.kind in "iu":
            kind = "discrete"
        return Feature(dtype.name, shape, kind)


Schema = Mapping[str, Feature]  # by column name


def role(name: str) -> Literal["observation", "action", "outcome", "task", "index", "other"]:
    """The role of a column, which follows from its name and is stored nowhere else."""
    if name.startswith("observation."):
        return "observation"
    if name == "action" or name.startswith("action."):
        return "action"
    if name.startswith("next."):
        return "outcome"
    if name == "task":
        return "task"
    return "index" if name in {"timestamp", "frame_index", "episode_index", "index", "task_index"} else "other"


_SUGGESTED_NAMES = {"reward": "next.reward", "rewards": "next.reward", "terminated": "next.terminated",
              "truncated": "next.truncated", "success": "next.success", "actions": "action",
              "object": "observation.environment_state", "environment_state": "observation.environment_state",
              "env_state": "observation.environment_state",
              **dict.fromkeys(("state", "states", "obs", "observation", "observations", "qpos", "joint_positions",
                               "proprio", "robot_state"), "observation.state")}


def suggested_name(name: str, feature: Feature) -> str | None:
    """The name under which a column would be read, if its own name has no role.

    Args:
        name: The column's name.
        feature: What it holds.

    Returns:
        A name of the vocabulary, such as `observation.state` for "qpos" or `observation.images.wrist` for an image
        "wrist"; None for a column that has a role already, and for a single number or flag of unknown meaning.
    """
    if role(name) != "other" or feature.kind == "string":
        return None
    last = name.rsplit(".", 1)[-1].rsplit("/", 1)[-1]
    if feature.kind == "image":
        return f"observation.images.{last}"
    return _SUGGESTED_NAMES.get(last.lower()) or (f"observation.{last}" if feature.shape else None)


def suggested_names(features: Schema) -> dict[str, str]:
    """`suggested_name` of all columns that have one. Of two columns with one suggestion, and where the suggested name
    is taken, the later one keeps its own name: "joints/state" becomes `observation.joints_state`."""
    names: dict[str, str] = {}
    for name, feature in features.items():
        if (new := suggested_name(name, feature)) is None:
            continue
        if new in features or new in names.values():
            new = f"observation.{name.replace('.', '_').replace('/', '_')}"
        if new not in features and new not in names.values():
            names[name] = new
    return names


@dataclass(frozen=True)
class Batch:
    """B windows.

    Attributes:
        obs: Observations by name, (B, To, *feature). "name?" (B, To) bool tells whether the value is present.
        action: The target, (B, H, A).
        mask: False where the horizon exceeds the end of an episode, (B, H) bool.
        extra: Other columns over the same horizon (reward, intervention, ...), which weights, critics and rewards read,
            (B, H, ...). `extra["index"]` (B, 1) is the number of the window in the data.
        next: The observation window after the horizon.
    """

    obs: Mapping[str, Tensor]  # name -> (B, To, *feature); "name?" -> (B, To) bool: was it sensed
    action: Tensor  # (B, H, A)
    mask: Tensor  # (B, H) bool
    extra: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (B, H, ...)
    next: Mapping[str, Tensor] | None = None  # the observation window after the horizon

    def __len__(self) -> int:
        return self.action.shape[0]

    def replace(self, **changes) -> Batch:
        return replace(self, **changes)

    def select_rows(self, which: slice) -> Batch:
        """The batch with these rows of all columns."""
        def cut(tree):
            return {k: v[which] for k, v in tree.items()}
        return Batch(cut(self.obs), self.action[which], self.mask[which], cut(self.extra),
                     None if self.next is None else cut(self.next))

    def to(self, device: torch.device | str) -> Batch:
        def move(tree):
            return {k: v.to(device, non_blocking=True) for k, v in tree.items()}
        return Batch(move(self.obs), self.action.to(device, non_blocking=True), self.mask.to(device, non_blocking=True),
                     move(self.extra), None if self.next is None else move(self.next))


@dataclass(frozen=True)
class Context:
    """Encoded observations, which trunks read.

    Attributes:
        tokens: (B, N, D).
        mask: (B, N) bool. A token whose mask is False is treated as absent.
        named: Columns that a trunk reads by name (the robot, for example), batch rows first. Only encoders fill it.
    """

    tokens: Tensor
    mask: Tensor
    named: Mapping[str, Tensor] = field(default_factory=dict)

    def flat(self) -> Tensor:
        """Returns (B, N * D), with zeros for absent tokens."""
        return (self.tokens * self.mask.unsqueeze(-1)).flatten(1)

    def repeat(self, n: int) -> Context:
        """Returns the context with each batch row repeated n times, adjacent."""
        return Context(self.tokens.repeat_interleave(n, 0), self.mask.repeat_interleave(n, 0),
                       {k: v.repeat_interleave(n, 0) for k, v in self.named.items()})


@dataclass(frozen=True)
class HeadSpec:
    """What a head and its trunk must know before data are seen.

    Attributes:
        horizon: Number of action steps (H).
        tokens: Number of context tokens (N).
        width: Width of each token (D).
        num_classes: For a discrete target, the number of classes of each component. The coded action is the one-hot
            vectors of its components side by side, so its width is ``sum(num_classes)``. Empty for vectors.
        bound: Largest absolute value of coded actions in the data. inf if there is no bound, None if the codec does not
            know it.
        token_obs_steps: The observation step of each token: the latest one that it depends on. 0 is the oldest row.
        action_start: The observation step at which action step 0 happens.
        causal: The head demands that output step i depends on input steps 0 to i only. A trunk obeys or raises
            `Unsupported`.
    """

    horizon: int
    tokens: int
    width: int
    num_classes: tuple[int, ...] = ()
    bound: float | None = None
    token_obs_steps: tuple[int, ...] = ()
    action_start: int = 0
    causal: bool = False


def tree_map(function: Callable[..., Any], *trees):
    """Calls `function` on the tensors at the same place of several trees.

    Args:
        function: Called with one tensor of each tree.
        trees: Tensors, or nested dicts and `Context` objects of tensors, all of the same structure.

    Returns:
        A tree of the results.
    """
    first = trees[0]
    if isinstance(first, Mapping):
        return {k: tree_map(function, *(tree[k] for tree in trees)) for k in first}
    if isinstance(first, Context):
        return replace(first, **{f.name: tree_map(function, *(getattr(tree, f.name) for tree in trees))
                                 for f in fields(first)})
    return function(*trees)


def take(tree, rows):
    """The given rows of every tensor in a tree (see `tree_map`)."""
    return tree_map(lambda x: x[rows], tree)


def put(tree, rows, new):
    """A copy of `tree` with those rows replaced. State is a value: nothing is changed in place."""
    if isinstance(tree, Mapping):
        return {k: put(v, rows, new[k]) for k, v in tree.items()}
    out = tree.clone()
    out[rows] = new.to(out.dtype)
    return out


# -- random numbers of a row -----------------------------------------------------------------------------


def keys(seed: int, episode_numbers) -> Tensor:
    """(n,) int64: one key for each numbered episode of a seed. SplitMix64 (Steele et al. 2014), so that the episodes of
    neighboring seeds are independent.
    """
    with np.errstate(over="ignore"):
        z = np.asarray(episode_numbers, np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = _splitmix(z + _splitmix(np.uint64(seed % 2**64) + np.uint64(0x632BE59BD9B4E019)))
    return torch.from_numpy((z >> np.uint64(1)).astype(np.int64))


def _splitmix(z):
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def uniform(key: Tensor, count: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """(B, *shape) float64 in (0, 1), which depends only on the (key, count, stream) of the same row.

    Philox4x32-10 (Salmon et al. 2011) over all rows together. A rollout is the same with one environment or a thousand,
    in whichever row an episode runs. Environment and actor of an episode have the same key, and `stream` keeps their
    random numbers independent: 0 and 1 are environments, 2 the noise of experts, 3 uniform actions, 4 plans, 5
    exploration, 6 what an expert decides once, 7 to 9 shifts (envs.shifts, execute.latency), 10 gates.
    """
    n = math.prod(shape)
    if not n:
        return torch.empty(len(key), *shape, dtype=torch.float64, device=key.device)
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    k = key.cpu().numpy().astype(np.uint64)[:, None]
    c = count.cpu().numpy().astype(np.uint64)[:, None]
    k0, k1 = k & low, k >> shift
    c0 = np.broadcast_to(np.arange(-(-n // 4), dtype=np.uint64)[None], (len(k), -(-n // 4)))
    c1, c2 = np.broadcast_to(c & low, c0.shape), np.broadcast_to(c >> shift, c0.shape)
    c3 = np.full(c0.shape, stream, np.uint64)
    for _ in range(10):
        a, b = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (b >> shift) ^ c1 ^ k0, b & low, (a >> shift) ^ c3 ^ k1, a & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    bits = np.stack([c0, c1, c2, c3], -1).reshape(len(k), -1)[:, :n]
    return torch.from_numpy(((bits.astype(np.float64) + 0.5) / 2.0**32).reshape(len(k), *shape)).to(key.device)


def normal(key: Tensor, count: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """(B, *shape) float32, standard normal, otherwise as `uniform`."""
    from scipy.special import ndtri

    return torch.from_numpy(ndtri(uniform(key.cpu(), count, shape, stream).numpy()).astype(np.float32)).to(key.device)
