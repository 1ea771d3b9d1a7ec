"""Optimizer, learning-rate schedule, gradient clipping and precision."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ..core import Above, AtLeast, Below, UserError, part
from ..nets.base import EncoderNet, TrunkNet


@part
class OptimizerConfig:
    """Config of the optimizer: AdamW with linear warm-up and a learning-rate schedule.

    Args:
        lr: Largest learning rate.
        betas: Decay of the averages of the gradient and of its square.
        weight_decay: For weights with at least two axes. Biases and gains have no decay.
        warmup_steps: Updates until the largest rate is reached.
        lr_schedule: Schedule after warm-up. "cosine" ends at 0.
        grad_clip_norm: Largest Euclidean norm of the gradient of all weights together. None for no limit.
        accumulation_steps: Number of parts of a batch. The result is the same as with the whole batch in one part, with
            less memory, if the loss of a window depends on no other window. A loss that uses a statistic of its batch,
            such as a mean score that it divides by, computes this from one part. Several processes share the parts, so
            that 1 process and 4 give the same result for accumulation_steps=4.
        precision: Precision of the network's arithmetic. Weights, optimizer and averages stay fp32. "auto" is bf16
            where it is faster: see `automatic_precision`. "fp16" needs CUDA.
        compile: Use torch.compile for trunk and encoder.

    References:
        Loshchilov and Hutter (2019), Decoupled Weight Decay Regularization, arXiv:1711.05101.
    """

    lr: Annotated[float, Above(0)] = 1e-3
    betas: Annotated[tuple[float, float], AtLeast(0), Below(1)] = (0.9, 0.999)
    weight_decay: Annotated[float, AtLeast(0)] = 1e-6
    warmup_steps: Annotated[int, AtLeast(0)] = 0
    lr_schedule: Literal["cosine", "constant"] = "cosine"
    grad_clip_norm: Annotated[float | None, Above(0)] = 1.0
    accumulation_steps: Annotated[int, AtLeast(1)] = 1
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False

    def lr_factor(self, update: int, steps: int) -> float:
        """Returns the factor of the learning rate, from 0 to 1, in update number `update`, from 0, of `steps`."""
        if update < self.warmup_steps:
            return (update + 1) / (self.warmup_steps + 1)
        if self.lr_schedule == "constant":
            return 1.0
        progress = (update - self.warmup_steps) / max(steps - self.warmup_steps, 1)
        return 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))

    def build(self, modules: Iterable[nn.Module], steps: int, device: torch.device) -> OptimizerState:
        """Builds the state for the parameters that require gradients. The schedule ends after `steps` updates."""
        return OptimizerState(self, tuple(modules), steps, device)


def has_fast_bf16(device: torch.device) -> bool:
    """Returns whether this hardware multiplies bf16 matrices faster than fp32 matrices."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    get_capabilities = getattr(torch.cpu, "get_capabilities", dict)  # older ones do not say
    capabilities = get_capabilities() if device.type == "cpu" else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


def automatic_precision(device: torch.device, weights: int) -> Literal["fp32", "bf16"]:
    """Returns the precision that "auto" chooses for a network with a number of trained weights.

    It is bf16 from 4 million weights on, if the hardware is fast at it. Smaller networks gain little and stay in fp32.
    """
    return "bf16" if weights >= 4_000_000 and has_fast_bf16(device) else "fp32"


class OptimizerState:
    """The state of an optimizer in training, which a learner holds.

    In each update, call `backward` for each part of the batch, then `clip_gradients` and `step` once.
    """

    def __init__(self, optim: OptimizerConfig, modules: tuple[nn.Module, ...], steps: int, device: torch.device):
        if optim.precision == "fp16" and device.type != "cuda":
            raise UserError(f"precision 'fp16' needs a CUDA device, but the device is {device.type}",
                            where="OptimizerConfig", hint="take 'bf16', or 'fp32'")
        self.config, self.steps, self.device = optim, steps, device
        self.parameters = [p for m in modules for p in m.parameters() if p.requires_grad]
        # AdamW copies parameters whose axes are not in memory order, so it gets permuted views of these few.
        self.axes = [sorted(range(p.ndim), key=p.stride, reverse=True) for p in self.parameters]
        self.memory_order_parameters = [
            p if axes == sorted(axes) else p.detach().permute(axes)
            for p, axes in zip(self.parameters, self.axes, strict=True)
        ]
        self.reordered = [(p, ordered, axes) for p, ordered, axes in zip(
            self.parameters, self.memory_order_parameters, self.axes, strict=True) if ordered is not p]
        matrices = [p for p in self.memory_order_parameters if p.ndim >= 2]
        vectors = [p for p in self.memory_order_parameters if p.ndim < 2]
        self.order = [axes for axes in self.axes if len(axes) >= 2] + [axes for axes in self.axes if len(axes) < 2]
        groups = [{"params": g, "weight_decay": d} for g, d in ((matrices, optim.weight_decay), (vectors, 0.0)) if g]
        if not optim.weight_decay and groups:  # each group takes time
            groups = [{"params": matrices + vectors, "weight_decay": 0.0}]
        self.adamw = torch.optim.AdamW(groups, optim.lr, optim.betas,
                                       fused=device.type in ("cpu", "cuda", "mps")) if groups else None
        self._fused_step: _FusedStep | None = None
        count = sum(p.numel() for p in self.parameters)
        self.precision = automatic_precision(device, count) if optim.precision == "auto" else optim.precision
        self.scaler = torch.amp.GradScaler(device.type, enabled=optim.precision == "fp16")
        if optim.compile:
            for part in (p for m in modules for p in m.modules() if isinstance(p, (TrunkNet, EncoderNet))):
                part.compile()

    def autocast(self):
        """Returns the context for the forward pass, in the precision of the optimizer."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)

    def backward(self, loss: Tensor) -> None:
        """Adds the gradient of one part of a batch to the parameters of this optimizer only."""
        if loss.requires_grad and self.parameters:
            self.scaler.scale(loss).backward(inputs=self.parameters)

    def clip_gradients(self) -> Tensor:
        """Clips the gradients. Returns the norm before clipping."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        if not gradients:
            return torch.zeros((), device=self.device)
        for p, ordered, axes in self.reordered:
            ordered.grad = None if p.grad is None else p.grad.permute(axes)
        assert self.adamw is not None  # something has a gradient
        self.scaler.unscale_(self.adamw)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        # Without a GPU, reading the norm does not wait, and a pass that would change no gradient can be skipped.
        if self.config.grad_clip_norm is not None and (self.device.type != "cpu" or norm > self.config.grad_clip_norm):
            nn.utils.clip_grads_with_norm_(self.parameters, self.config.grad_clip_norm, norm)
        return norm

    def rate(self, update: int) -> float:
        """Returns the learning rate of an update."""
        return self.config.lr * self.config.lr_factor(update, self.steps)

    def step(self, update: int) -> float:
        """Updates the weights, clears the gradients, and returns the learning rate."""
        rate = self.rate(update)
        has_gradient = [p.grad is not None for p in self.memory_order_parameters]
        if any(has_gradient):
            assert self.adamw is not None
            if self.device.type == "cpu":
                if self._fused_step is None or self._fused_step.has_gradient != has_gradient:
                    self._fused_step = _FusedStep(self.adamw, has_gradient)
                self._fused_step.make(rate)
            else:
                for group in self.adamw.param_groups:
                    group["lr"] = rate
                self.scaler.step(self.adamw)
                self.scaler.update()
        self.zero_grad()
        return rate

    def moments(self) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
        """Returns the first and second moments of `parameters`, with their axes, and the numbers of steps.

        Moments that do not exist yet become 0.
        """
        if self.adamw is None:
            return [], [], []
        for parameter in (p for group in self.adamw.param_groups for p in group["params"]):
            _state_of(parameter, self.adamw)
        states = [self.adamw.state[parameter] for parameter in self.memory_order_parameters]
        means, squares = ([state[key].permute(_inverse(axes)) for state, axes in zip(states, self.axes, strict=True)]
                          for key in ("exp_avg", "exp_avg_sq"))
        return means, squares, [state["step"] for state in states]

    def zero_grad(self) -> None:
        for p in self.parameters:
            p.grad = None
        for _, ordered, _ in self.reordered:
            ordered.grad = None

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        entries = {} if self.adamw is None else self.adamw.state_dict()["state"]
        tensors = {f"{i}.{k}": v.permute(_inverse(self.order[i])) if v.ndim else v
                   for i, entry in entries.items() for k, v in entry.items()}
        return tensors, self.scaler.state_dict()

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        entries: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            i, _, key = name.partition(".")
            value = value.permute(self.order[int(i)]) if value.ndim else value
            # New tensors, because tensors from safetensors are not aligned.
            entries.setdefault(int(i), {})[key] = value.clone(memory_format=torch.contiguous_format)
        if self.adamw is not None:
            self.adamw.load_state_dict({"state": entries, "param_groups": self.adamw.state_dict()["param_groups"]})
            self._fused_step = None
        if metadata:
            self.scaler.load_state_dict(metadata)


class _FusedStep:
    """Makes an optimizer step with PyTorch's fused AdamW kernel, for the weights that have a gradient.

    The Python of `adamw.step` takes 0.1 ms, 5 to 12 % of an update of a small network.
    """

    def __init__(self, adamw: torch.optim.AdamW, has_gradient: list[bool]):
        self.has_gradient = has_gradient
        self.counts: dict[float, Tensor] = {}  # weights that have made as many steps share their number
        self.groups: list[tuple[dict[str, Any], list[Tensor], list[list[Tensor]]]] = []
        for group in adamw.param_groups:
            if parameters := [p for p in group["params"] if p.grad is not None]:
                states = [_state_of(p, adamw) for p in parameters]
                for state in states:
                    state["step"] = self.counts.setdefault(state["step"].item(), state["step"].clone())
                lists = [[state[key] for state in states] for key in ("exp_avg", "exp_avg_sq", "step")]
                self.groups.append((group, parameters, lists))

    @torch.no_grad()
    def make(self, rate: float) -> None:
        torch._foreach_add_(list(self.counts.values()), 1)
        for group, parameters, (means, squares, counts) in self.groups:
            torch._fused_adamw_(
                parameters, [p.grad for p in parameters if p.grad is not None], means, squares, [], counts,
                amsgrad=False, lr=rate, beta1=group["betas"][0], beta2=group["betas"][1],
                weight_decay=group["weight_decay"], eps=group["eps"], maximize=False)


def _state_of(parameter: Tensor, adamw: torch.optim.AdamW) -> dict[str, Tensor]:
    """Returns the moments of a weight and its number of steps, which begin at 0."""
    if not adamw.state[parameter]:
        adamw.state[parameter] |= {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter), "exp_avg_sq": torch.zeros_like(parameter)}
    return adamw.state[parameter]


def _inverse(axes: list[int]) -> list[int]:
    return sorted(range(len(axes)), key=axes.__getitem__)
