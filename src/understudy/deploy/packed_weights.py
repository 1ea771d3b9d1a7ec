"""A policy with weights in the layout of the CPU's matrix products, in bf16 if that is fast and accurate enough.

A plan for one row reads every weight for few products, so that most of the time goes into reading memory. Packed
weights are read twice as fast, and bf16 has half as many bytes.
"""

from __future__ import annotations

import copy
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import UserError
from ..learn.optimizer import automatic_precision, has_fast_bf16
from ..nets.convolution import Convolution, Up, gather_neighbors
from ..nets.linear import Linear
from ..policy import Policy
from .equivalence import plan_difference

MIN_WEIGHTS = 2**18  # smallest number of weights for packing: smaller layers stay in the cache

Precision = Literal["auto", "fp32", "bf16"]


def pack_weights(policy: Policy, precision: Precision = "auto", *, max_error: float = 0.02) -> Policy:
    """Returns a copy of a policy with packed weights, for planning on the CPU. It cannot be trained.

    Args:
        precision: "fp32" gives the same plans up to rounding. "bf16" rounds weights and inputs of products to bf16, and
            computes sums and everything else in fp32. "auto" is bf16 for large networks on a CPU that is fast at it
            (`learn.optimizer.automatic_precision`), if the plans pass the test of `max_error`.
        max_error: Largest error of plans of random observations, relative to the largest action.
    """
    if precision == "bf16" and not has_fast_bf16(torch.device("cpu")):
        raise UserError("this CPU has no bf16 matrix products (AVX512_BF16 or AMX)", where="precision",
                        hint="use \"fp32\" or \"auto\"")
    if not torch.backends.mkldnn.is_available():
        return copy.deepcopy(policy).cpu().eval()
    plain = copy.deepcopy(policy).cpu().float().eval()
    target_precision = precision
    if precision == "auto":
        target_precision = automatic_precision(torch.device("cpu"), sum(p.numel() for p in plain.net.parameters()))
    packed = _pack_modules(plain, torch.bfloat16 if target_precision == "bf16" else torch.float32)
    if target_precision == "bf16" and (error := plan_difference(plain, packed)[0]) > max_error:
        if precision == "bf16":
            raise UserError(f"in bf16 the error of plans is {error:.2g} of the largest action, more than {max_error:g}",
                            where="precision", hint="use \"fp32\", or allow a larger error: max_error=...")
        packed = _pack_modules(plain, torch.float32)
    return packed


def _pack_modules(policy: Policy, dtype: torch.dtype) -> Policy:
    policy = copy.deepcopy(policy).requires_grad_(False)
    for module in list(policy.net.modules()):
        for name, part in module.named_children():
            if sum(p.numel() for p in part.parameters(recurse=False)) < MIN_WEIGHTS:
                continue
            if isinstance(part, Convolution):
                setattr(module, name, _PackedConvolution(part, dtype))
            elif isinstance(part, Up):
                part.layout = "gemm"
            elif isinstance(part, nn.Linear) and type(part) in (nn.Linear, Linear):
                setattr(module, name, _PackedLinear(part, dtype))
    return policy


class _PackedLinear(nn.Linear):
    """A linear layer with packed weights. It keeps the plain weight for code that reads it, and for gradients."""

    def __init__(self, plain: nn.Linear, dtype: torch.dtype):
        super().__init__(plain.in_features, plain.out_features, plain.bias is not None)
        self.weight, self.bias = plain.weight, plain.bias
        self.body = _PackedMatrix(plain.weight, plain.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.body.cast(x)).to(x.dtype)


class _PackedConvolution(nn.Module):
    def __init__(self, plain: Convolution, dtype: torch.dtype):
        super().__init__()
        self.count, self.stride = plain.weight.shape[-1], plain.stride[0]
        self.body = _PackedMatrix(plain.weight.transpose(1, 2).flatten(1), plain.bias, dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(gather_neighbors(self.body.cast(x), self.count, self.stride)).to(x.dtype)


class _PackedMatrix:
    """The affine map x W^T + b with packed weights."""

    rows = 16  # the number of rows for which the layout is optimized

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        self.plain, self.bias, self.dtype = weight, bias, dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype).contiguous(), self.rows)
        self.shift = None if bias is None else bias.detach().to(dtype)

    def __deepcopy__(self, memo):
        return type(self)(self.plain, self.bias, self.dtype)

    def cast(self, x: Tensor) -> Tensor:
        """Casts the input for the product. It is unchanged if gradients are needed, which packed products lack."""
        return x if torch.is_grad_enabled() and x.requires_grad else x.to(self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if torch.is_grad_enabled() and x.requires_grad:
            return F.linear(x, self.plain, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.shift, "none", [], "")
