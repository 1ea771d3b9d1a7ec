"""Basic types and functions that every layer uses: errors, features, batches and random numbers.

This module imports nothing else of understudy but `hints`, and neither PyTorch nor NumPy before they are needed:
commands raise its errors, and their help pages need neither.
"""

from __future__ import annotations

import functools
import inspect
import math
import numbers
import operator
import sys
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Literal,
    ParamSpec,
    TypeVar,
    Union,
    dataclass_transform,
    get_args,
    get_origin,
    get_type_hints,
)

from .hints import command_line, did_you_mean, path_text

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")
State = dict[str, Any]  # nested dicts of tensors whose first axis is the row (one row = one environment)


class UserError(ValueError):
    """An error that the user can fix. The command line prints its text without a traceback and exits with status 2.

    Args:
        where: File, key or index.
    """

    def __init__(self, problem: str, *, where: object = None, hint: str | None = None):
        self.problem, self.where, self.hint = problem, where, hint
        text = f"{path_text(where)}: {problem}" if where is not None else problem
        super().__init__(f"{text}\n  -> {hint}" if hint else text)

    def __reduce__(self):  # workers send errors to the process that started them
        state = {**self.__dict__, "where": None if self.where is None else str(self.where)}
        return _rebuild_error, (type(self), str(self), state)


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory is full: of Python, of a GPU, or of the CPU in PyTorch."""
    return (isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
            or isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error))


def _rebuild_error(kind: type[UserError], text: str, state: dict[str, Any]) -> UserError:
    error = kind.__new__(kind, text)
    error.__dict__.update(state)
    return error


MAX_LISTED = 20  # names that an error lists


class DataError(UserError):
    """Raised when the demonstrations are inconsistent or incomplete. Other data would work."""


class ConfigError(UserError):
    """Raised when an option, a method or a configuration is invalid for any data."""


class Unsupported(UserError):
    """Raised when a valid component cannot do what is asked for, such as guidance for a head without steps."""


class Diverged(UserError):
    """Raised when training diverges: a loss, a gradient or critic values are not finite, or far too large."""


class NonFiniteAction(UserError, FloatingPointError):
    """Raised when an action or an observation is NaN or infinite.

    Without this error an environment would count the episode as a failure.

    Args:
        column: The column of the observation; empty for an action.
        place: Named in the message instead of the row.
    """

    def __init__(self, problem: str, row: int, column: str = "", *, place: str = "", hint: str | None = None):
        super().__init__(
            problem, where=(place or f"row {row}") + (f", observation {column!r}" if column else ""), hint=hint
        )
        self.row, self.column = row, column


def unknown_name(kind: str, name: object, valid_names: Iterable[object], where: object = None, *, owner: str = "",
                 hint: str = "", error: type[UserError] = ConfigError) -> UserError:
    """Returns the error about a name that does not exist, with the known names, or the nearest of more than 20.

    Args:
        kind: What is named, such as "column".
        where: File, option or key with the name.
        owner: What does not have it, such as "Meta-World".
        hint: What to do if no known name is near, or they are more than 20.
    """
    names = list(dict.fromkeys(map(str, valid_names)))
    problem = f"{owner} has no {kind} {name!r}" if owner else f"there is no {kind} {name!r}"
    if len(names) <= MAX_LISTED:
        problem += f"; {'it has' if owner else 'there are'} {', '.join(names) or 'none'}"
        return error(problem, where=where, hint=did_you_mean(name, names) or hint or "name one of these")
    suggestion = did_you_mean(name, names, most=3)
    if not suggestion and not hint:
        hint = f"there are {', '.join(names[:MAX_LISTED])} and {len(names) - MAX_LISTED} more"
    return error(problem, where=where, hint=f"{suggestion} {hint}".strip())


class MissingAction(DataError):
    """Raised when data lack the column of actions."""


def missing_action(columns: Iterable[str], where: object = None) -> MissingAction:
    """Returns the error about data without the column of actions, with the methods that learn from them."""
    names = list(columns)
    parts = ",".join(name for name in names if name.startswith("action.")) or "COLUMN"
    return MissingAction(f"there is no column 'action' to learn; the columns are {', '.join(names)}", where=where,
                         hint=f"name the columns that it is made of: --columns action={parts}. Where few steps have "
                              "actions, vpt learns from all, and ss-orl with rewards; where none has, bco does, with "
                              "practice in an environment")


@dataclass(frozen=True)
class Limit:
    """Base class of limits for numbers in a field, given in its type: ``Annotated[int, AtLeast(1)]``."""

    limit: float
    word: ClassVar[str]
    holds: ClassVar[Callable[[Any, Any], bool]]


class AtLeast(Limit):
    """Limit of a field: the smallest allowed number."""

    word, holds = "at least", operator.ge


class AtMost(Limit):
    """Limit of a field: the largest allowed number."""

    word, holds = "at most", operator.le


class Above(Limit):
    """Limit of a field: only larger numbers are allowed."""

    word, holds = "above", operator.gt


class Below(Limit):
    """Limit of a field: only smaller numbers are allowed."""

    word, holds = "below", operator.lt


@dataclass_transform(frozen_default=True)
def part(cls: type[T]) -> type[T]:
    """Makes a frozen dataclass whose numbers and choices are checked by their types, before `__post_init__` runs.

    A number must be inside all limits of its type, such as ``Annotated[float, AtLeast(0), Below(1)]``, and must not be
    NaN. An `int` must be whole: neither 2.5 nor 2.0 nor True. None is not checked. Every number of a tuple is, and its
    length if the type says it. A field with a `Literal` must have one of its values. Limits of a base class hold too.

    A `ConfigError` names the field, what is allowed, and the default or the nearest choice.

    Example:
        >>> @part
        ... class Smoothing:
        ...     n_steps: Annotated[int, AtLeast(1)] = 4
        ...     kind: Literal["mean", "median"] = "mean"
        >>> Smoothing(n_steps=0)
        Traceback (most recent call last):
        understudy.core.ConfigError: Smoothing.n_steps: n_steps is 0, but must be at least 1
          -> give a number in this range; the default of Smoothing is 4
    """
    class_check = getattr(cls, "__post_init__", None)
    if class_check is None or "is_checked" not in vars(class_check):
        def checked(self):
            check_fields(self)
            if class_check is not None:
                class_check(self)

        vars(checked)["is_checked"] = True  # subclasses inherit it
        cls.__post_init__ = checked  # ty: ignore[missing-attribute]
    return dataclass(frozen=True)(cls)


def check_fields(value: object) -> None:
    """Checks the fields of a frozen dataclass as `part` does. A base class without fields calls it in `__post_init__`.
    """
    owner = type(value).__name__
    for f in _checked_fields(type(value)):
        content, field_name = getattr(value, f.name), f"{owner}.{f.name}"
        if f.limits is None:
            if not is_of_kind(content, f.kind):
                raise ConfigError(f"{f.name} is {content!r}, but must be {_choices_text(f.kind)}", where=field_name,
                                  hint=_suggest(content, _members(f.kind)[0], f.default))
        elif (must := _missed_limit(content, f)) is not None:
            raise ConfigError(f"{f.name} is {content!r}, but must be {must}", where=field_name,
                              hint=("give a number in this range" if f.limits else "give a number")
                              + ("" if f.default is MISSING else f"; the default of {owner} is {f.default}"))
        elif content is not None and not is_of_kind(content, f.kind):
            kind = f.kind.__name__ if f.kind in (int, float) else f.kind
            raise ConfigError(f"{f.name} is {content!r}, but must be of the type {kind}", where=field_name,
                              hint="give a tuple of numbers where it is one, and one number elsewhere"
                              if f.default in (MISSING, None) else f"such as {f.default!r}")


def _missed_limit(content: object, field: _Field) -> str | None:
    """Describes the limit that a number misses, or the first invalid one of a tuple. None if all are valid."""
    if isinstance(content, (tuple, list)):
        return next((must for x in content if (must := _missed_limit(x, field)) is not None), None)
    if content is None:
        return None
    is_number = isinstance(content, numbers.Integral if field.is_whole else numbers.Real) and (
        not isinstance(content, bool))
    if is_number and content == content and all(limit.holds(content, limit.limit) for limit in field.limits or ()):
        return None
    limits = " and ".join(f"{limit.word} {limit.limit:g}" for limit in field.limits or ())
    if is_number and limits:
        return limits
    return " ".join(("a whole number" if field.is_whole else "a number", limits)).strip()


def _choices_text(kind: Any) -> str:
    choices, classes = _members(kind)
    *first, last = [*map(repr, choices), *(f"a {c.__name__}" for c in classes if c is not type(None)),
                    *(["None"] if type(None) in classes else [])]
    return f"{', '.join(first)}{' or ' if first else ''}{last}"


def _suggest(value: object, choices: list[Any], default: object) -> str:
    values = value if isinstance(value, (tuple, list)) else (value,)
    invalid_choice = next((v for v in values if v not in choices), value)
    return did_you_mean(invalid_choice, (choice for choice in choices if isinstance(choice, str)), cutoff=0.5) or (
        f"the default is {default!r}" if default is not MISSING else "choose one of them")


@dataclass(frozen=True)
class _Field:
    """What `part` checks of a field. `limits` is None if its values are not numbers."""

    name: str
    kind: Any
    limits: tuple[Limit, ...] | None
    is_whole: bool
    default: Any


@functools.cache
def _checked_fields(part: type) -> tuple[_Field, ...]:
    """Returns the fields of a dataclass whose values are numbers, or have choices."""
    checked = []
    for f in fields(part):  # ty: ignore[invalid-argument-type]
        written = [_field_type(c, f.name) for c in part.__mro__ if f.name in inspect.get_annotations(c)]
        limits = tuple(dict.fromkeys(marker for kind in written for marker in getattr(kind, "__metadata__", ())
                                     if isinstance(marker, Limit)))
        kind = get_args(written[0])[0] if get_origin(written[0]) is Annotated else written[0]
        if _is_numeric(kind):
            classes = _members(kind)[1]
            checked.append(_Field(f.name, kind, limits, float not in classes, f.default))
        elif _members(kind)[0]:
            checked.append(_Field(f.name, kind, None, False, f.default))
    return tuple(checked)


def _field_type(owner: type, name: str) -> Any:
    """Returns the type of a field that a class declares. None if it is imported for type checkers only."""
    # One field at a time, because `get_type_hints` reads all fields of a class or none.
    alone = types.SimpleNamespace(__annotations__={name: inspect.get_annotations(owner)[name]})
    try:
        return get_type_hints(alone, vars(sys.modules[owner.__module__]), include_extras=True)[name]
    except NameError:
        return None


def _is_numeric(kind: Any) -> bool:
    """Returns whether a type is made of numbers alone, which may be missing."""
    if get_origin(kind) in (Union, types.UnionType, tuple):
        parts = [k for k in get_args(kind) if k not in (Ellipsis, type(None))]
        return bool(parts) and all(map(_is_numeric, parts))
    return kind in (int, float)


def _members(kind: Any) -> tuple[list[Any], list[type]]:
    """Returns the values of the `Literal`s in a type, and its other classes."""
    if get_origin(kind) is Literal:
        return list(get_args(kind)), []
    if get_origin(kind) in (Union, types.UnionType, tuple):
        parts = [_members(k) for k in get_args(kind)]
        return [c for choices, _ in parts for c in choices], [c for _, classes in parts for c in classes]
    return [], [kind] if isinstance(kind, type) else []


def is_of_kind(value: object, kind: Any) -> bool:
    """Returns whether a value is of a type, where True is not a number.

    Types other than classes, `Literal`s and tuples are not checked.
    """
    origin, members = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in members)
    if origin in (Union, types.UnionType):
        return any(is_of_kind(value, k) for k in members)
    if origin is tuple:
        if not isinstance(value, (tuple, list)):
            return False
        several = members[:1] * len(value) if members[1:] == (Ellipsis,) else members
        return len(value) == len(several) and all(map(is_of_kind, value, several))
    if kind in (int, float):
        return isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
    return not isinstance(kind, type) or isinstance(value, kind)


class UserCodeError(UserError):
    """Raised when code of the user, such as an environment, raised an error or returned an invalid value."""


class DataWarning(UserWarning):
    """A warning about the data. The command line prints only its text."""


@part
class Feature:
    """Type and shape of one column at one step, without the time axis.

    Args:
        dtype: NumPy name ("float32", "uint8", "int64", "bool"), or "string" for text that stays text.
        shape: Shape of one step. Images are (H, W, C).
        kind: "vector" (numbers), "image" (uint8), "depth" (uint16 (H, W, 1), which no network reads by default), "text"
            (UTF-8 bytes padded with 0, which networks read), "discrete" (integers), or "string".
        unit: Unit of all components ("rad", "m"), if known. Exceptions are in brackets: "deg (gripper: percent)".
        num_classes: For a discrete column, the number of classes of each component, if known.
    """

    dtype: str
    shape: tuple[int, ...]
    kind: Literal["vector", "image", "depth", "text", "discrete", "string"] = "vector"
    names: tuple[str, ...] | None = None
    unit: str | None = None
    num_classes: tuple[int, ...] | None = None

    @property
    def size(self) -> int:
        """Number of components."""
        return math.prod(self.shape)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of tensors. A column of kind "string" has none."""
        import torch

        return getattr(torch, self.dtype)

    def has_other_unit(self, other: Feature) -> bool:
        """Returns whether the units of two features are known and differ."""
        return bool(self.unit and other.unit) and self.unit != other.unit

    def disagreement(self, other: Feature) -> str | None:
        """Describes how two columns of this kind differ: in the order or the unit of components. None if unknown."""
        if self.names and other.names and self.names != other.names and sorted(self.names) == sorted(other.names):
            return f"the components {', '.join(self.names)}, and here they are {', '.join(other.names)}"
        if self.has_other_unit(other):
            return f"the unit {self.unit}, and here it is {other.unit}"
        return None

    @staticmethod
    def from_json(stored: Mapping[str, Any]) -> Feature:
        """Builds a feature from the fields that JSON stores, with lists in place of tuples."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in stored.items()}
        return Feature(**values)

    @staticmethod
    def from_array(column: np.ndarray) -> Feature:
        """Infers the feature of a column from its array, (T, *shape)."""
        import numpy as np

        dtype, shape = column.dtype, tuple(column.shape[1:])
        if dtype.kind in "UO":
            return Feature("string", shape, "string")
        dtype = np.dtype(tensor_dtype(dtype))
        kind = "vector"
        if dtype == np.uint8:
            kind = "image" if len(shape) == 3 else "text"
        elif dtype.kind in "iu":
            kind = "discrete"
        return Feature(dtype.name, shape, kind)


Schema = Mapping[str, Feature]  # by column name


def tensor_dtype(dtype: np.dtype) -> str:
    """Returns the dtype as which numbers of a file are read: float64 for long doubles, which tensors do not have."""
    return "float64" if dtype.kind == "f" and dtype.itemsize > 8 else dtype.str


def role(name: str) -> Literal["observation", "action", "outcome", "task", "index", "other"]:
    """Returns the role of a column. It follows from the name alone."""
    if name.startswith("observation."):
        return "observation"
    if name == "action" or name.startswith("action."):
        return "action"
    if name.startswith("next."):
        return "outcome"
    if name == "task":
        return "task"
    return "index" if name in {"timestamp", "frame_index", "episode_index", "index", "task_index"} else "other"


def short_name(name: str) -> str:
    """Returns the shortest name that ``--columns`` knows a column by: "state" for `observation.state`."""
    return name.removeprefix("observation.").removeprefix("next.")


def is_read_by_default(name: str, feature: Feature) -> bool:
    """Returns whether a policy reads a column by default: observations, but no text and no depth."""
    return role(name) == "observation" and feature.kind not in ("string", "depth")


def check_observed(column: str, features: Schema, where: str) -> None:
    """Checks that a column is an observation, which goals and planned states must be.

    Args:
        features: The columns of the data, which the error lists.
        where: What the error calls the field that names the column.
    """
    if role(column) != "observation":
        observed = ", ".join(sorted(k for k in features if role(k) == "observation" and k[-1] != "?")) or "none"
        raise ConfigError(f"the column {column!r} is not observed; the observed columns are {observed}", where=where,
                          hint="name one of them: --column COLUMN, or column=COLUMN in Python")


_SUGGESTED_NAMES = {"reward": "next.reward", "rewards": "next.reward", "terminated": "next.terminated",
                    "terminals": "next.terminated", "truncated": "next.truncated", "timeouts": "next.truncated",
                    "success": "next.success", "actions": "action",
                    "object": "observation.environment_state", "environment_state": "observation.environment_state",
                    "env_state": "observation.environment_state",
                    **dict.fromkeys(("state", "states", "obs", "observation", "observations", "qpos", "joint_positions",
                                     "proprio", "robot_state"), "observation.state")}


def suggested_name(name: str, feature: Feature) -> str | None:
    """Suggests a name that policies know for a column whose own name has no role.

    Returns:
        A name such as `observation.state` for "qpos" or `observation.images.wrist` for an image "wrist". None for a
        column that has a role already, and for a single number or flag of unknown meaning.
    """
    if role(name) != "other" or feature.kind == "string":
        return None
    last = name.rsplit(".", 1)[-1].rsplit("/", 1)[-1]
    if feature.kind == "image":
        return f"observation.images.{last}"
    return _SUGGESTED_NAMES.get(last.lower()) or (f"observation.{last}" if feature.shape else None)


def suggested_names(features: Schema) -> dict[str, str]:
    """Suggests names for all columns for which there is a suggestion: see `suggested_name`.

    If a suggested name is taken or two columns have the same suggestion, the later column gets a name made from its
    own: "joints/state" becomes `observation.joints_state`.
    """
    names: dict[str, str] = {}
    for name, feature in features.items():
        if (new := suggested_name(name, feature)) is None:
            continue
        if new in features or new in names.values():
            new = f"observation.{name.replace('.', '_').replace('/', '_')}"
        if new not in features and new not in names.values():
            names[name] = new
    return names


def column_naming_hint(features: Schema, data: str | Path = "DATA") -> str:
    """Returns a hint with the command that gives columns of `data` the names that policies read."""
    names = {k: v for k, v in suggested_names(features).items() if role(v) == "observation"}
    renames = ", ".join(f"{old} -> {new}" for old, new in names.items())
    options = [w for old, new in (names or {"OLD": "observation.state"}).items() for w in ("--rename", f"{old}={new}")]
    return (f"policies read columns called observation.* (observation.state, observation.images.NAME)"
            f"{': ' + renames if renames else ''}; a view renames them: "
            + command_line("view", "make", data, "--out", "VIEW", *options))


@dataclass(frozen=True)
class Batch:
    """A batch of B windows: observations, actions and masks.

    Args:
        obs: Observations by name, (B, To, *feature). "name?" (B, To) bool is False where the value is missing.
        action: The target, (B, H, A).
        mask: False at steps after the end of an episode, (B, H) bool.
        extra: Other columns over the same steps (reward, intervention, ...) by name, (B, H, ...). Weights and critics
            read them. `extra["index"]` (B, 1) is the number of the window in the data.
        next: The observation window after the horizon, like `obs`. None if it was not asked for.
        others: Batches of as many windows from other sources, by name: "expert" are demonstrations.
    """

    obs: Mapping[str, Tensor]
    action: Tensor
    mask: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    next: Mapping[str, Tensor] | None = None
    others: Mapping[str, Batch] = field(default_factory=dict)

    def __len__(self) -> int:
        return self.action.shape[0]

    def replace(self, **changes) -> Batch:
        """Returns a copy with some fields replaced."""
        return replace(self, **changes)

    def select_rows(self, which: slice) -> Batch:
        """Returns the batch with some of its rows."""
        return self.map(lambda x: x[which])

    def to(self, device: torch.device | str) -> Batch:
        """Returns the batch with all tensors on a device: the batch itself if its actions are there."""
        return self if self.action.device == device else self.map(lambda x: x.to(device, non_blocking=True))

    def map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        """Returns the batch with a function of each tensor in its place."""
        def each(columns):
            return {k: function(v) for k, v in columns.items()}
        return Batch(each(self.obs), function(self.action), function(self.mask), each(self.extra),
                     None if self.next is None else each(self.next),
                     {k: v.map(function) for k, v in self.others.items()})


@dataclass(frozen=True)
class Context:
    """Encoded observations of a policy, which its trunk reads.

    Args:
        tokens: The tokens, (B, N, D).
        mask: False for tokens that are treated as absent, (B, N) bool.
        named: Columns that a trunk reads by name (the robot, for example), batch rows first. Only encoders fill it.
    """

    tokens: Tensor
    mask: Tensor
    named: Mapping[str, Tensor] = field(default_factory=dict)

    def flat(self) -> Tensor:
        """Returns the tokens in one vector per row, (B, N * D), with zeros for absent tokens."""
        return (self.tokens * self.mask.unsqueeze(-1)).flatten(1)

    def repeat(self, n: int) -> Context:
        """Returns the context with each batch row repeated n times. Copies of a row are adjacent."""
        return Context(self.tokens.repeat_interleave(n, 0), self.mask.repeat_interleave(n, 0),
                       {k: v.repeat_interleave(n, 0) for k, v in self.named.items()})


@dataclass(frozen=True)
class HeadSpec:
    """Sizes and alignment that a head and its trunk need to know before data are seen.

    Args:
        horizon: Number of action steps (H).
        tokens: Number of context tokens (N).
        width: Width of each token (D).
        num_classes: For a discrete target, the number of classes of each component. The coded action is the
            concatenation of the one-hot vectors of its components, so its width is ``sum(num_classes)``. Empty for
            vectors.
        bound: Largest absolute value of coded actions in the data. inf if there is no bound, None if the codec does not
            know it.
        token_obs_steps: The observation step of each token: the latest one that it depends on. 0 is the oldest row.
        action_start: The observation step at which action step 0 happens.
        causal: Whether output step i must depend on input steps 0 to i only. A trunk that cannot do this raises
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
    """Applies a function to the tensors at the same place of several trees (nested dicts).

    Args:
        *trees: Tensors, or nested dicts and `Context` objects of tensors, all of the same structure.
    """
    first = trees[0]
    if isinstance(first, Mapping):
        return {k: tree_map(function, *(tree[k] for tree in trees)) for k in first}
    if isinstance(first, Context):
        return replace(first, **{f.name: tree_map(function, *(getattr(tree, f.name) for tree in trees))
                                 for f in fields(first)})
    return function(*trees)


def take(tree, rows):
    """Selects rows of every tensor in a tree (nested dicts).

    Args:
        tree: A tensor, or nested dicts and `Context` objects of tensors (see `tree_map`), rows first.
        rows: Index of the rows: a tensor, a slice or a list.
    """
    return tree_map(lambda x: x[rows], tree)


def put(tree, rows, new):
    """Returns a copy of a tree with some rows replaced: a tensor, or nested dicts of tensors, rows first."""
    if isinstance(tree, Mapping):
        return {k: put(v, rows, new[k]) for k, v in tree.items()}
    copied = tree.clone()
    copied[rows] = new.to(copied.dtype)
    return copied


# -- functions that can be replaced -------------------------------------------------------------------------


_replacements: ContextVar[Mapping[Callable, Callable]] = ContextVar(
    "functions to call instead", default=types.MappingProxyType({}))


def replaceable(function: Callable[P, R]) -> Callable[P, R]:
    """Marks a function as one that `replaced` can replace, for all callers. `inspect.unwrap` gives the original."""
    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        return _replacements.get().get(call, function)(*args, **kwargs)
    return call


@contextmanager
def replaced(replacements: Mapping[Callable, Callable]) -> Iterator[None]:
    """Replaces marked functions by others in this thread while its body runs. A context manager.

    Args:
        replacements: What is called by the function marked with `replaceable`.

    Example:
        >>> with replaced({fit: lambda learner, batch, steps, **options: None}):
        ...     trained = fit_method(method, data)  # builds everything and makes no update
    """
    token = _replacements.set({**_replacements.get(), **replacements})
    try:
        yield
    finally:
        _replacements.reset(token)


# -- random numbers of a row -----------------------------------------------------------------------------


def as_seed(seed: int | np.integer, bits: int | None = None) -> int:
    """Converts a seed to an int, such as one of `np.arange`.

    Args:
        bits: It must be from -2**bits to 2**bits - 1. None allows all.
    """
    is_whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not is_whole or (bits is not None and not -2**bits <= seed < 2**bits):
        raise UserError(f"the seed is {seed!r}, but must be an int" + (f" below 2**{bits}" if bits else ""),
                        where="seed", hint="such as seed=0")
    return int(seed)


def keys(seed: int, episode_numbers) -> Tensor:
    """Returns one random key for each episode of a seed, (n,) int64.

    SplitMix64 makes the episodes of neighboring seeds independent.

    Args:
        episode_numbers: Numbers of the episodes, (n,).

    References:
        Steele et al. (2014), Fast Splittable Pseudorandom Number Generators.
    """
    import numpy as np
    import torch

    seed = as_seed(seed)
    if not np.ndim(episode_numbers):
        raise UserError(f"the numbers of the episodes are {episode_numbers!r}, but must be a list", where="keys",
                        hint=f"such as keys(0, [{episode_numbers}])")
    offset = _splitmix(seed + 0x632BE59BD9B4E019 & _UINT64)
    if len(episode_numbers) < 4:  # NumPy takes longer for few numbers
        return torch.tensor([key(seed, int(n)) for n in episode_numbers], dtype=torch.int64)
    z = np.asarray(episode_numbers, np.int64).astype(np.uint64)  # whose products are modulo 2**64
    z = _splitmix(z * np.uint64(0x9E3779B97F4A7C15) + np.uint64(offset))
    return torch.from_numpy((z >> 1).astype(np.int64))


def key(seed: int, number: int) -> int:
    """Returns the random key that `keys` computes for this seed and this number, as an int."""
    offset = _splitmix(seed + 0x632BE59BD9B4E019 & _UINT64)
    return _splitmix(number * 0x9E3779B97F4A7C15 + offset & _UINT64) >> 1


_UINT64 = 2**64 - 1


def _splitmix(z):
    """Mixes the bits of a whole number below 2**64, or of each number of an array of np.uint64."""
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _UINT64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _UINT64
    return z ^ (z >> 31)


def uniform(key: Tensor, count: Tensor, shape: tuple[int, ...], stream: int = 0) -> Tensor:
    """Draws uniform random numbers in (0, 1) that depend only on the key, count and stream of their row.

    The generator is Philox4x32-10. A rollout is the same with one environment or a thousand, in whichever row an
    episode runs.

    Args:
        key: Key of each row, (B,) int64: see `keys`.
        count: Number of the draw in its episode, (B,).
        shape: Shape of the numbers of one row.
        stream: Keeps the random numbers of parts with the same key independent. 0 and 1 are environments, 2 the noise
            of experts, 3 uniform actions, 4 plans, 5 exploration, 6 decisions that an expert makes once, 7 to 9 shifts
            (envs.shifts, execute.latency), 10 gates, 11 which demonstration is shown.

    Returns:
        (B, *shape) float64, on the device of `key`.

    References:
        Salmon et al. (2011), Parallel Random Numbers: As Easy as 1, 2, 3.
    """
    import numpy as np
    import torch

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
    """Draws standard normal random numbers that depend only on the key, count and stream of their row: see `uniform`.

    Returns:
        (B, *shape) float32, on the device of `key`.
    """
    import numpy as np
    import torch
    from scipy.special import ndtri

    return torch.from_numpy(ndtri(uniform(key.cpu(), count, shape, stream).numpy()).astype(np.float32)).to(key.device)
