"""Feed-forward layers with experts, chosen by the noise level."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core import Unsupported, UserError, part
from .linear import Linear, inside_transform, linear


@part
class MoEFeedForward:
    """Config of a mixture of experts: the time of a denoising step chooses experts and weighs their outputs.

    A router maps the embedding of the time to a probability for each expert. In training, `top_k` experts are drawn
    without replacement from these probabilities, with the random numbers of dropout. Otherwise the `top_k` most likely
    ones are taken. Their probabilities, scaled to sum to 1, are the weights. If all steps share a time, as in sampling,
    only the chosen experts are computed.

    Without `methods.generative.mode.LoadBalancing`, one expert may take over all times.

    Args:
        n_experts: Number of experts, E.
        top_k: Number of experts that are used for a time.

    References:
        Reuss et al. (2025), Efficient Diffusion Transformer Policies with Mixture of Expert Denoisers,
        arXiv:2412.12953.
    """

    n_experts: int = 4
    top_k: int = 2

    def __post_init__(self):
        if not 1 <= self.top_k <= self.n_experts:
            raise UserError(f"top_k={self.top_k} of n_experts={self.n_experts}", where="MoEFeedForward",
                            hint="use 1 <= top_k <= n_experts, such as 2 of 4")

    def build(self, width: int, hidden: int, dropout: float) -> MoEFeedForwardNet:
        """Builds the module.

        Args:
            width: Width of inputs, outputs and the embedding of the time.
            hidden: Width of the hidden layer of one expert.
        """
        return MoEFeedForwardNet(self, width, hidden, dropout)


class MoEFeedForwardNet(nn.Module):
    """The module that `MoEFeedForward` builds."""

    def __init__(self, config: MoEFeedForward, width: int, hidden: int, dropout: float):
        super().__init__()
        self.config = config
        self.router: nn.Module = nn.Sequential(Linear(width, width), nn.SiLU(), Linear(width, config.n_experts))
        # The initial weights are drawn as in linear layers.
        layers = [(nn.Linear(width, hidden), nn.Linear(hidden, width)) for _ in range(config.n_experts)]
        self.weight_in = nn.Parameter(torch.stack([first.weight.detach() for first, _ in layers]))  # (E, hidden, width)
        self.bias_in = nn.Parameter(torch.stack([first.bias.detach() for first, _ in layers]))
        self.weight_out = nn.Parameter(torch.stack([last.weight.detach() for _, last in layers]))  # (E, width, hidden)
        self.bias_out = nn.Parameter(torch.stack([last.bias.detach() for _, last in layers]))
        self.dropout = nn.Dropout(dropout)

    def probabilities(self, time: Tensor) -> Tensor:
        """Returns the probability of each expert, (..., E), for embedded times (..., width)."""
        return self.router(time).softmax(-1)

    def weights(self, time: Tensor) -> Tensor:
        """Weights of the experts, (..., E), for embedded times (..., width). The sum is 1; experts not chosen have 0.

        In training, all steps of a batch row share the random numbers, and so their experts if they share a time. Times
        are (B, S, width) there.
        """
        probabilities = self.probabilities(time)
        score = probabilities
        if self.training:  # the largest of p / exponential noise are draws without replacement
            score = probabilities / torch.empty_like(probabilities[..., :1, :]).exponential_()
        chosen = score.topk(self.config.top_k, -1).indices
        kept = torch.zeros_like(probabilities).scatter(-1, chosen, 1.0) * probabilities
        return kept / kept.sum(-1, keepdim=True)

    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        """Computes the weighted sum of the experts' outputs, (..., width), for x (..., width).

        Args:
            weights: The result of `weights`: one row for all x, (E,), or (..., E).
        """
        parameters = self.weight_in, self.bias_in, self.weight_out, self.bias_out
        if weights.ndim == 1:
            weights, chosen = weights.topk(self.config.top_k)
            if weights.device.type == "cpu" and not (torch.compiler.is_compiling() or inside_transform()):
                # Indexing by a tensor would copy the parameters, which takes about as long as the products.
                outputs = [w * self._expert(x, i) for w, i in zip(weights, chosen.tolist(), strict=True)]
                return torch.stack(outputs).sum(0) if len(outputs) > 1 else outputs[0]
            parameters = tuple(p[chosen] for p in parameters)
        weight_in, bias_in, weight_out, bias_out = parameters
        hidden = self.dropout(F.gelu(linear(x, weight_in.flatten(0, 1), bias_in.flatten())))
        hidden = hidden.unflatten(-1, (-1, weight_in.shape[1])) * weights.unsqueeze(-1)
        return linear(hidden.flatten(-2), weight_out.transpose(0, 1).flatten(1)) + weights @ bias_out

    @torch.no_grad()
    def fuse(self, time: Tensor) -> MoEFeedForwardNet:
        """Fuses the experts of each of a few embedded times (S, width) into one dense layer.

        The hidden layers of the chosen experts are put side by side, and the output layer includes their weights. The
        result is a mixture of these dense layers, of which each time uses one. It has the weights of this moment, is
        for inference alone, and refuses other times and times that differ from step to step.
        """
        probabilities, chosen = self.probabilities(time).topk(self.config.top_k)  # (S, top_k)
        weights = probabilities / probabilities.sum(-1, keepdim=True)
        with torch.device("meta"):  # the initial weights are not needed, and would be drawn
            fused = MoEFeedForward(len(time), 1).build(time.shape[-1], self.config.top_k * self.weight_in.shape[1], 0.0)
        weight_out = self.weight_out[chosen] * weights[..., None, None]  # (S, top_k, width, hidden)
        fused.weight_in = nn.Parameter(self.weight_in[chosen].flatten(1, 2), requires_grad=False)
        fused.bias_in = nn.Parameter(self.bias_in[chosen].flatten(1), requires_grad=False)
        fused.weight_out = nn.Parameter(weight_out.transpose(1, 2).flatten(2), requires_grad=False)
        fused.bias_out = nn.Parameter((self.bias_out[chosen] * weights[..., None]).sum(1), requires_grad=False)
        fused.router = _KnownTimes(time)
        return fused.eval()

    def _expert(self, x: Tensor, i: int) -> Tensor:
        """Returns the output of expert i."""
        hidden = self.dropout(F.gelu(linear(x, self.weight_in[i], self.bias_in[i])))
        return linear(hidden, self.weight_out[i], self.bias_out[i])


class _KnownTimes(nn.Module):
    """The router of fused experts: the expert of a time is the one that was made for it."""

    time: Tensor

    def __init__(self, time: Tensor):
        super().__init__()
        self.register_buffer("time", time)

    def forward(self, time: Tensor) -> Tensor:
        """Logits (N, S) of embedded times (N, width): 0 for the expert of the time, and minus infinity for others."""
        if time.ndim != 2:
            raise Unsupported("The experts are fused for a few times that all steps of a chunk share, and here each "
                              "step has its own time.", where="MoEFeedForward", hint="Use the policy that was fused.")
        distance, nearest = (time.unsqueeze(1) - self.time).abs().amax(-1).min(-1, keepdim=True)
        if not inside_transform() and bool((distance > 1e-5 * self.time.abs().max().clamp(min=1)).any()):
            raise Unsupported("The experts are fused for the times of the sampler, and this time is none of them.",
                              where="MoEFeedForward", hint="Fuse the experts again after changing the sampler.")
        return torch.full_like(distance.expand(-1, len(self.time)), -torch.inf).scatter(-1, nearest, 0.0)
