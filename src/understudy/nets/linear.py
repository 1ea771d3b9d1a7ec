"""A linear layer that uses the faster of two libraries, MKL and oneDNN, on this processor."""

import platform
import re
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

_INFO = Path("/proc/cpuinfo")
_PROCESSOR = _INFO.read_text()[:500] if _INFO.exists() else platform.processor()

# Multiplications from which a call of oneDNN pays off. GFLOP/s on one core, PyTorch 2.13 (MKL, oneDNN):
#                    16 x 256 x 256    64 x 256 x 256    256 x 256 x 256    1024 x 512 x 512    2048 x 1280 x 256
#     Zen 5                  80  83            97 163            104 216                                  103 235
#     Zen 4, family 25                                            99 103              96 105               93 100
# A call of oneDNN has gradients in Python, which also takes time.
MIN_MULTIPLICATIONS = 2**27 if re.search(r"cpu family\s*: 25\b", _PROCESSOR) else 2**22


def _mkl_is_slow() -> bool:
    """Whether fp32 products by MKL, which PyTorch uses, are slower here than products by oneDNN, which it includes.

    MKL uses AVX-512 only on Intel processors.
    """
    return (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
            and torch.backends.cpu.get_cpu_capability() == "AVX512" and "AuthenticAMD" in _PROCESSOR)


MKL_IS_SLOW = _mkl_is_slow()
IS_TRACED: bool = False  # while an update is captured as a graph


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes `torch.nn.functional.linear`: x (..., in), weight (out, in), bias (out,) or None to (..., out)."""
    # Sizes are checked last: in an exported graph they are symbols, not numbers.
    if not MKL_IS_SLOW or inside_transform() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu") \
            or x.dtype != torch.float32 or weight.dtype != torch.float32 \
            or x.numel() * weight.shape[0] < MIN_MULTIPLICATIONS or not (_is_dense(x) and _is_dense(weight)):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        if x.ndim == 2:
            return _Linear.apply(x, weight, bias)
        return _Linear.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
    return _onednn(x, weight, bias)


def _is_dense(x: Tensor) -> bool:
    """Returns whether `x` has no gaps in memory. oneDNN is 100 times slower for parts of matrices."""
    return x.is_contiguous() or x.ndim == 2 and x.t().is_contiguous()


def inside_transform() -> bool:
    """Returns whether this call is exported, vmapped or differentiated in forward mode, where custom calls fail."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


class Linear(nn.Linear):
    """`torch.nn.Linear`, computed by `linear`. Without inputs it gives its bias, which begins at 0."""

    def reset_parameters(self) -> None:
        if self.in_features:
            super().reset_parameters()
        elif self.bias is not None:  # PyTorch does the same, and warns
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _onednn(x, weight, bias):
    # The compiler accepts only constant weights here. It leaves custom ops alone.
    return (torch.ops.understudy.linear if IS_TRACED or torch.compiler.is_compiling() else _product)(x, weight, bias)


def _product(x, weight, bias):
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def products(a: Tensor, b: Tensor) -> Tensor:
    """Computes `torch.bmm`, (N, I, K) and (N, K, J) to (N, I, J), in a graph. NotImplemented leaves it to PyTorch."""
    if not MKL_IS_SLOW or a.dtype != torch.float32 or a[0].numel() * b.shape[2] < MIN_MULTIPLICATIONS \
            or not (_is_dense(a[0]) and _is_dense(b[0])):
        return NotImplemented
    return torch.ops.understudy.products(a, b)


# Calls of what `torch.library.custom_op` makes take 10 µs longer, a tenth of a product of 256 x 256 x 256.
torch.library.define("understudy::linear", "(Tensor x, Tensor weight, Tensor? bias) -> Tensor")
torch.library.impl("understudy::linear", "cpu", _product)
torch.library.register_fake("understudy::linear", lambda x, weight, bias: x.new_empty(*x.shape[:-1], weight.shape[0]))
torch.library.define("understudy::products", "(Tensor a, Tensor b) -> Tensor")
torch.library.impl("understudy::products", "cpu", lambda a, b: torch.stack([
    _product(x, y.t(), None) for x, y in zip(a, b, strict=True)]))
torch.library.register_fake("understudy::products", lambda a, b: a.new_empty(*a.shape[:-1], b.shape[-1]))


def _vmap_linear(info, in_dims, x, weight, bias):
    x, weight, bias = _with_rows(info, in_dims, x, weight, bias)
    product = torch.ops.understudy.products(x.flatten(1, -2), weight.mT)
    return (product if bias is None else product + bias.unsqueeze(1)).unflatten(1, x.shape[1:-1]), 0


def _vmap_products(info, in_dims, *factors):
    a, b = (x.flatten(0, 1) for x in _with_rows(info, in_dims, *factors))
    return torch.ops.understudy.products(a, b).unflatten(0, (info.batch_size, -1)), 0


def _with_rows(info, in_dims, *tensors):
    """The tensors with the axis of `vmap` in front."""
    return [x if x is None else x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            for x, dim in zip(tensors, in_dims, strict=True)]


torch.library.register_vmap("understudy::linear", _vmap_linear)
torch.library.register_vmap("understudy::products", _vmap_products)


class _Linear(torch.autograd.Function):
    """(N, in) -> (N, out). The gradients are products of the same kind, so they can be differentiated again."""

    @staticmethod
    def forward(ctx, x, weight, bias):  # with a `setup_context`, each call would inspect this signature
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx, grad):  # ty: ignore[incompatible-method-override]  (one output, so one gradient)
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (linear(grad, weight.t()) if needs_x else None, linear(grad.t(), x.t()) if needs_weight else None,
                grad.sum(0) if needs_bias and ctx.has_bias else None)
