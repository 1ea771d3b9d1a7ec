"""The error of contract tests, and comparisons that they share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import config

STATE = "observation.state"


class ContractViolation(AssertionError):
    """Raised when a part does not keep its contract."""


def require(promise: bool, what: str) -> None:
    """Raises ContractViolation if a condition is False, also if Python runs with -O, unlike `assert`."""
    if not promise:
        raise ContractViolation(what)


def require_equal(one: Tensor, other: Tensor, what: str, tolerance: float = 0.0) -> None:
    """Raises ContractViolation if two tensors differ.

    Args:
        tolerance: Relative tolerance. The absolute tolerance is a tenth of it.
    """
    try:
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance / 10, msg=lambda m: f"{what}\n{m}")
    except AssertionError as error:
        raise ContractViolation(str(error)) from None


def require_finite(x: Tensor, shape: tuple[int, ...], what: str, axes: str) -> None:
    """Raises ContractViolation if a tensor has another shape, or a number that is NaN or infinite.

    Args:
        axes: The names of its axes, such as "(B, H, A)".
    """
    require(tuple(x.shape) == shape, f"{what} must have shape {axes} = {shape}, but has {tuple(x.shape)}")
    n_invalid = int((~x.isfinite()).sum())
    require(not n_invalid, f"{what} must be finite, but {n_invalid} of {x.numel()} numbers are NaN or infinite")


def _rng(seed, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def _structure(tree) -> object:
    if isinstance(tree, Mapping):
        return {k: _structure(v) for k, v in tree.items()}
    return tuple(tree.shape), tree.dtype


def _same_column(one, other, what):
    one, other = np.asarray(one), np.asarray(other)
    same = one.shape == other.shape and (one.tolist() == other.tolist() if one.dtype.kind in "UO" else
                                         one.dtype == other.dtype and one.tobytes() == other.tobytes())
    require(same, f"{what} is the same, bit by bit")


def _metadata_as_json(meta):
    return json.dumps(dict(meta), sort_keys=True, default=lambda v: v.tolist())


def _packages_in_files(folder: Path | str) -> tuple[str, ...]:
    return config.packages_in([json.loads(file.read_text()) for file in Path(folder).rglob("*.json")])
