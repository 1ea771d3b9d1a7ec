"""A policy whose weights lie as the CPU's matrix products want them, in bf16 where that is fast and near enough.

A plan of one row reads every weight for few products, so that memory decides: packed weights are read at twice the
speed, and in bf16 there are half as many bytes.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import UserError
from ..learn.optimizer import automatic_precision, has_fast_bf16
from ..nets.convolution import Convolution, Down, Up, gather_neighbors
from ..nets.linear import Linear
from ..policy import Policy
from .equivalence import plan_difference

MIN_WEIGHTS = 2**18  # weights of a layer that is packed: smaller ones stay in the cache

Precision = Literal["auto", "fp32", "bf16"]


def pack_weights(policy: Policy, precision: Precision = "auto", *, near: float = 0.02) -> Policy:
    """A copy on the CPU for planning: the same plans, to rounding ("fp32") or with weights and inputs of products
    rounded to bf16, sums and all else in fp32 ("bf16"). It trains no more.

    "auto" is bf16 for large networks on a CPU that is fast at it (learner.optimizer.arithmetic), if plans of made-up
    observations then lie within `near` of the largest action. Raises UserError if a wanted "bf16" does not, or if this
    CPU has no products of bf16.
    """
    if precision == "bf16" and not has_fast_bf16(torch.device("cpu")):
        raise UserError("expected a CPU with products of bf16 (AVX512_BF16 or AMX), found another", where="precision",
                        hint="take \"fp32\", or \"auto\"")
    if not torch.backends.mkldnn.is_available():
        return copy.deepcopy(policy).cpu().eval()
    plain = copy.deepcopy(policy).cpu().float().eval()
    wanted = precision
    if precision == "auto":
        wanted = automatic_precision(torch.device("cpu"), sum(p.numel() for p in plain.net.parameters()))
    found = _pack_modules(plain, torch.bfloat16 if wanted == "bf16" else torch.float32)
    if wanted == "bf16" and (error := plan_difference(plain, found)[0]) > near:
        if precision == "bf16":
            raise UserError(f"expected plans within {near:g} of the largest action, found them {error:.2g} off in bf16",
                            where="precision", hint="take \"fp32\", or allow more: near=...")
        found = _pack_modules(plain, torch.float32)
    return found


def _pack_modules(policy: Policy, dtype: torch.dtype) -> Policy:
    policy = copy.deepcopy(policy).requires_grad_(False)
    for module in list(policy.net.modules()):
        for name, part in module.named_children():
            if sum(p.numel() for p in part.parameters(recurse=False)) < MIN_WEIGHTS:
                continue
            if isinstance(part, Convolution | Down):
                setattr(module, name, _PackedConvolution(part, dtype))
            elif isinstance(part, Up):
                part.layout = "gemm"
            elif isinstance(part, nn.Linear) and type(part) in (nn.Linear, Linear):
                setattr(module, name, _PackedLinear(part, dtype))
    return policy


class _PackedLinear(nn.Linear):
    """Its plain weight stays, for those who read it and for slopes, which guides ask for."""

    def __init__(self, plain: nn.Linear, dtype: torch.dtype):
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias
        self.body = _PackedMatrix(plain.weight, plain.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body.cast(x)).to(x.dtype)


class _PackedConvolution(nn.Module):
    def __init__(self, plain: Convolution | Down, dtype: torch.dtype):
        super().__init__()
        self.count, self.stride = plain.weight.shape[-1], plain.stride[0]
        self.body = _PackedMatrix(plain.weight.transpose(1, 2).flatten(1), plain.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(gather_neighbors(self.body.cast(x), self.count, self.stride)).to(x.dtype)


class _PackedMatrix:
    """x W^T + b."""

    rows = 16  # what the layout is chosen for

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        self.plain, self.bias, self.dtype = weight, bias, dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), self.rows)
        self.shift = None if bias is None else bias.detach().to(dtype)

    def __deepcopy__(self, memo):
        return type(self)(self.plain, self.bias, self.dtype)

    def cast(self, x: Tensor) -> Tensor:
        """As __call__ wants it; as it is where a slope is asked for, which packed products do not know."""
        return x if torch.is_grad_enabled() and x.requires_grad else x.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x, self.plain, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.shift, "none", [], "")
