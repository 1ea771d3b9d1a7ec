"""Energy-based: score chunks, and search for the one of lowest energy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..core import Unsupported, UserError
from .base import Head, uniform_noise


@dataclass(frozen=True)
class EnergyModel(Head):
    """Implicit behavioral cloning: the network gives an energy to each pair of observation and chunk.

    Training tells the demonstrated chunk from `n_negatives` random ones (InfoNCE). Sampling searches the chunk of
    lowest energy within the range of the data, widened by `margin` of it on both sides.

    Args:
        n_negatives: Number of random chunks that a demonstrated one is compared with.
        sampler: ``"derivative_free"`` draws candidates, keeps them in proportion to ``exp(-energy)`` and perturbs them
            less and less. ``"langevin"`` moves candidates along the gradient of the energy with less and less noise.
        n_candidates: Number of candidates.
        n_iterations: Number of rounds.
        noise_std: Standard deviation of the first perturbation, as a fraction of half the range; or the first step of
            Langevin dynamics.
        noise_decay: Factor of the perturbation per round.
        margin: Fraction of the range of the data by which negatives and candidates may leave it.

    References:
        Florence et al. (2021), Implicit Behavioral Cloning, arXiv:2109.00137.
    """

    n_negatives: int = 64
    sampler: Literal["derivative_free", "langevin"] = "derivative_free"
    n_candidates: int = 256
    n_iterations: int = 3
    noise_std: float = 0.33
    noise_decay: float = 0.5
    margin: float = 0.05

    def __post_init__(self):
        if min(self.n_negatives, self.n_candidates, self.n_iterations) < 1:
            raise UserError(f"n_negatives={self.n_negatives}, n_candidates={self.n_candidates} and "
                            f"n_iterations={self.n_iterations} must be at least 1", where="EnergyModel",
                            hint="such as 64, 256 and 3")

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim * self.n_candidates * (1 + self.n_iterations))

    def build(self, trunk, coded_dim, spec):
        return _EnergyNet(trunk.build(coded_dim, 1, 0, spec), coded_dim)

    def fit(self, net, pairs):
        found = [action[mask] for _, action, mask in pairs()]
        low, high = (torch.stack([f(part, 0).values for part in found]) for f in (torch.min, torch.max))
        low, high = low.amin(0), high.amax(0)
        spare = self.margin * (high - low).clamp(min=1e-3)
        net.low.copy_(low - spare)
        net.high.copy_(high + spare)

    def loss(self, net, context, action, mask, rng):
        """Cross-entropy of the demonstrated chunk among the candidates, spread evenly over its steps, (B, H)."""
        n = self.n_negatives
        uniform = torch.rand(len(action), n, *action.shape[1:], generator=rng, device=action.device)
        drawn = net.low + uniform.to(action.dtype) * (net.high - net.low)
        known = mask[:, None, :, None]
        candidates = torch.cat([action.unsqueeze(1), drawn], 1) * known  # padded steps are equal in all candidates
        energy = (self._energy(net, context, candidates) * mask.unsqueeze(1)).sum(-1)  # (B, 1 + n)
        chunk = energy[:, 0] + (-energy).logsumexp(1)
        return (chunk / mask.sum(1).clamp(min=1)).unsqueeze(1).expand(mask.shape)

    def sample(self, net, context, noise):
        noise = noise.unflatten(-1, (1 + self.n_iterations, self.n_candidates, -1)).permute(2, 0, 3, 1, 4)
        half = (net.high - net.low) / 2
        x = net.low + uniform_noise(noise[0]) * (net.high - net.low)  # (B, N, H, A)
        scale = self.noise_std
        for draw in noise[1:]:
            if self.sampler == "langevin":
                x = x - scale * half * self._gradient(net, context, x) + scale * half * draw
            else:
                x = self._resample(x, -self._energy(net, context, x).sum(-1)) + scale * half * draw
            x = x.clamp(net.low, net.high)
            scale = scale * self.noise_decay
        best = self._energy(net, context, x).sum(-1).argmin(1)
        return x.gather(1, best[:, None, None, None].expand(-1, 1, *x.shape[2:])).squeeze(1)

    def _energy(self, net, context, candidates):
        """Energy of each step of candidates (B, N, H, A), (B, N, H)."""
        n = candidates.shape[1]
        flat = candidates.flatten(0, 1)
        return net.trunk(flat, flat[..., :0], context.repeat(n)).squeeze(-1).unflatten(0, (-1, n))

    def _gradient(self, net, context, x):
        """Gradient of the energy, scaled to a norm of at most 1 per candidate."""
        if torch.compiler.is_compiling():
            raise Unsupported("a Langevin sampler needs gradients, which an exported graph does not have",
                              where="EnergyModel.sampler", hint="use sampler=\"derivative_free\"")
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            slope = torch.autograd.grad(self._energy(net, context, x).sum(), x)[0]
        return slope / slope.flatten(2).norm(dim=-1).clamp(min=1)[..., None, None]

    @staticmethod
    def _resample(x, log_weight):
        """Systematic resampling: candidate i is kept about N times its weight. It needs no random number."""
        n = x.shape[1]
        total = log_weight.softmax(1).cumsum(1)
        wanted = (torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) / n
        kept = (total[:, None, :-1] < wanted[:, None]).sum(-1)  # (B, N)
        return x.gather(1, kept[..., None, None].expand(x.shape))


class _EnergyNet(torch.nn.Module):
    def __init__(self, trunk, coded_dim):
        super().__init__()
        self.trunk = trunk
        self.register_buffer("low", -torch.ones(coded_dim))
        self.register_buffer("high", torch.ones(coded_dim))
