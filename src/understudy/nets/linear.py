"""The linear layer, worked out by whichever library is faster on this processor."""

import platform
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import forward_ad

# Multiplications from which a call of oneDNN is worth it. GFLOP/s on one core of Zen 5, PyTorch 2.13 (MKL, oneDNN):
#     16 x 256 x 256   80   83      64 x 256 x 256  97 163      256 x 256 x 256  104 216     2048 x 1280 x 256 103 235
MIN_MULTIPLICATIONS = 2**22


def _mkl_is_slow() -> bool:
    """Whether fp32 products of MKL, which PyTorch takes, are slower here than those of oneDNN, which it has as well:
    MKL uses AVX-512 on processors of its maker alone."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()
            and torch.backends.cpu.get_cpu_capability() == "AVX512"):
        return False
    said = Path("/proc/cpuinfo")
    return "AuthenticAMD" in (said.read_text()[:500] if said.exists() else platform.processor())


MKL_IS_SLOW = _mkl_is_slow()


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., in), weight (out, in), bias (out,) -> (..., out), as `torch.nn.functional.linear`."""
    # Sizes are asked for last: in an exported graph they are not numbers yet.
    if not MKL_IS_SLOW or _inside_transform() or x.device.type != "cpu" or torch.is_autocast_enabled("cpu") \
            or x.dtype != torch.float32 or weight.dtype != torch.float32 \
            or x.numel() * weight.shape[0] < MIN_MULTIPLICATIONS or not (_is_dense(x) and _is_dense(weight)):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad):
        return _Linear.apply(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])
    return _onednn(x, weight, bias)


def _is_dense(x: Tensor) -> bool:
    """Without gaps, rows or columns first: of parts of matrices oneDNN is slow, a hundred times."""
    return x.is_contiguous() or x.ndim == 2 and x.t().is_contiguous()


def _inside_transform() -> bool:
    """Whether this is exported, mapped or differentiated forward, of which a call of ours knows nothing."""
    if torch.compiler.is_compiling():
        return torch.compiler.is_exporting()
    return forward_ad._current_level >= 0 or torch._C._functorch.peek_interpreter_stack() is not None


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def _onednn(x, weight, bias):
    if torch.compiler.is_compiling():  # the compiler takes constant weights only; a call of ours it leaves alone
        return torch.ops.understudy.linear(x, weight, bias)
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@torch.library.custom_op("understudy::linear", mutates_args=())
def _linear_op(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


@_linear_op.register_fake
def _(x, weight, bias):
    return x.new_empty(*x.shape[:-1], weight.shape[0])


class _Linear(torch.autograd.Function):
    """(N, in) -> (N, out). Its slopes are products of the same kind, so that they have slopes themselves."""

    @staticmethod
    def forward(x, weight, bias):
        return _onednn(x, weight, bias)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, weight, bias = inputs
        ctx.save_for_backward(x, weight)
        ctx.has_bias = bias is not None

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (linear(grad, weight.t()) if of_x else None, linear(grad.t(), x.t()) if of_weight else None,
                grad.sum(0) if of_bias and ctx.has_bias else None)
