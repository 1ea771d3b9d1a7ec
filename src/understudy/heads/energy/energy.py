"""Energy-based heads: they score chunks of actions, and search for the one with the lowest energy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Annotated, Literal

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...core import Above, AtLeast, Unsupported, part
from ...nets.feed_forward import feed_forward_layers
from ..base import Head, HeadNet, uniform_noise


@part
class EnergyModel(Head):
    """Implicit behavioral cloning head: the network gives an energy to each pair of observation and chunk.

    Training tells the demonstrated chunk from `n_negatives` other chunks (InfoNCE). Sampling searches the chunk of
    lowest energy within the range of the data, widened by `margin` of it on both sides. Both searches start at
    candidates that are uniform in this range. Lengths below are fractions of half the range.

    The derivative-free search with uniform negatives is for few action dimensions. The paper uses it up to 3, and finds
    that it fails above 5. For more dimensions it uses Langevin dynamics, both for the search and for the negatives,
    with a gradient penalty: ``sampler="langevin"``, ``negatives="langevin"``, ``gradient_margin=1.0``,
    ``n_iterations=50``. Each update then evaluates the network and its gradient 50 times for each negative.
    `AutoregressiveEnergy` searches one component after the other.

    Args:
        n_negatives: Number of chunks that a demonstrated one is compared with.
        sampler: ``"derivative_free"`` draws candidates, keeps them in proportion to ``exp(-energy)`` and perturbs them
            less and less. ``"langevin"`` moves candidates along the gradient of the energy, with noise.
        n_iterations: Number of rounds of the search.
        noise_std: Standard deviation of the first perturbation of the derivative-free search.
        noise_decay: Factor of the perturbation per round.
        margin: Fraction of the range of the data by which negatives and candidates may leave it.
        negatives: ``"uniform"``, or ``"langevin"`` for the ends of Langevin chains that start at uniform negatives. The
            loss has no gradient through the chains.
        n_chain_iterations: Number of rounds of these chains. None for `n_iterations`. Fewer rounds make training
            cheaper.
        gradient_margin: Penalize each candidate of the loss whose energy has a gradient with a larger component than
            this, by the square of the excess. None for no penalty.
        step_size: First step of Langevin dynamics. The steps decrease to 0 with the square of the rounds that are left.
        langevin_noise: Standard deviation of the noise of Langevin dynamics. It is added to half the gradient, and
            multiplied by the step as well.
        max_step: Largest change of a component in one round of Langevin dynamics.

    References:
        Florence et al. (2021), Implicit Behavioral Cloning, arXiv:2109.00137.
    """

    n_negatives: Annotated[int, AtLeast(1)] = 64
    sampler: Literal["derivative_free", "langevin"] = "derivative_free"
    n_candidates: Annotated[int, AtLeast(1)] = 256
    n_iterations: Annotated[int, AtLeast(1)] = 3
    noise_std: Annotated[float, AtLeast(0)] = 0.33
    noise_decay: Annotated[float, AtLeast(0)] = 0.5
    margin: Annotated[float, AtLeast(0)] = 0.05
    negatives: Literal["uniform", "langevin"] = "uniform"
    n_chain_iterations: Annotated[int | None, AtLeast(1)] = None
    gradient_margin: Annotated[float | None, AtLeast(0)] = None
    step_size: Annotated[float, Above(0)] = 0.1
    langevin_noise: Annotated[float, AtLeast(0)] = 1.0
    max_step: Annotated[float, Above(0)] = 0.1

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim * self.n_candidates * (1 + self.n_iterations))

    def build(self, trunk, coded_dim, spec):
        return HeadNet(trunk=trunk.build(coded_dim, 1, 0, spec), low=-torch.ones(coded_dim), high=torch.ones(coded_dim))

    def fit(self, net, pairs):
        _fit_range(net, pairs, self.margin)

    def loss(self, net, context, action, mask, rng):
        """Returns the cross-entropy of the demonstrated chunk among the candidates, spread over its steps, (B, H)."""
        step_mask = mask[:, None, :, None]  # padded steps are equal in all candidates
        negatives = self._negatives(net, context, action, step_mask, rng)
        candidates = torch.cat([action.unsqueeze(1), negatives], 1) * step_mask
        context = context.repeat(self.n_negatives + 1)
        if self.gradient_margin is None:
            chunk = _cross_entropy(self._chunk_energy(net, context, candidates, mask))
        else:  # validation has no gradients otherwise, and fused attention has no second derivatives
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                energy = self._chunk_energy(net, context, candidates.requires_grad_(), mask)
                slope = torch.autograd.grad(energy.sum(), candidates, create_graph=True)[0] * _half_range(net)
            excess = slope.flatten(2).abs().amax(-1) - self.gradient_margin  # (B, 1 + n)
            chunk = _cross_entropy(energy) + excess.clamp(min=0).square().mean(1)
        return (chunk / mask.sum(1).clamp(min=1)).unsqueeze(1).expand(mask.shape)

    def _negatives(self, net, context, action, is_known, rng):
        """Draws the chunks that the demonstrated one is compared with, (B, n_negatives, H, A)."""
        shape = (len(action), self.n_negatives, *action.shape[1:])
        uniform = torch.rand(shape, generator=rng, device=action.device)
        x = net.low + uniform.to(action.dtype) * (net.high - net.low)
        if self.negatives == "langevin":
            context = replace(context, tokens=context.tokens.detach()).repeat(self.n_negatives)
            for size in self._step_sizes(self.n_chain_iterations or self.n_iterations):
                draw = torch.randn(shape, generator=rng, device=action.device).to(action.dtype)
                x = self._langevin_step(net, context, x * is_known, size, draw)
        return x

    def sample(self, net, context, noise):
        noise = noise.unflatten(-1, (1 + self.n_iterations, self.n_candidates, -1)).permute(2, 0, 3, 1, 4)
        half, context = _half_range(net), context.repeat(self.n_candidates)
        x = net.low + uniform_noise(noise[0]) * (net.high - net.low)  # (B, N, H, A)
        scale = self.noise_std
        for draw, size in zip(noise[1:], self._step_sizes(self.n_iterations), strict=True):
            if self.sampler == "langevin":
                x = self._langevin_step(net, context, x, size, draw)
                continue
            x = _resample(x, -self._energy(net, context, x).sum(-1)) + scale * half * draw
            x = x.clamp(net.low, net.high)
            scale = scale * self.noise_decay
        best = self._energy(net, context, x).sum(-1).argmin(1)
        return x.gather(1, best[:, None, None, None].expand(-1, 1, *x.shape[2:])).squeeze(1)

    def _step_sizes(self, rounds: int) -> list[float]:
        """Returns the step sizes of Langevin dynamics, which fall as a polynomial of power 2."""
        return [self.step_size * (1 - i / rounds) ** 2 for i in range(rounds)]

    def _langevin_step(self, net, context, x, size, draw):
        half = _half_range(net)
        change = size * (self._gradient(net, context, x) * half / 2 + self.langevin_noise * draw)
        return (x - change.clamp(-self.max_step, self.max_step) * half).clamp(net.low, net.high)

    def _energy(self, net, context, candidates):
        """Returns the energy of each step of candidates (B, N, H, A), (B, N, H).

        `context` has N copies of each row.
        """
        flat = candidates.flatten(0, 1)
        return net.trunk(flat, flat[..., :0], context).squeeze(-1).unflatten(0, (-1, candidates.shape[1]))

    def _chunk_energy(self, net, context, candidates, mask):
        """Returns the energy of each chunk without its padding, (B, N)."""
        return (self._energy(net, context, candidates) * mask.unsqueeze(1)).sum(-1)

    def _gradient(self, net, context, x):
        """Returns the gradient of the energy with respect to candidates (B, N, H, A), but not to the weights."""
        if torch.compiler.is_compiling():
            raise Unsupported("a Langevin sampler needs gradients, which an exported graph does not have",
                              where="EnergyModel.sampler", hint="use sampler=\"derivative_free\"")
        with torch.enable_grad(), _constant_weights(net.trunk):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self._energy(net, context, x).sum(), x)[0]


@part
class AutoregressiveEnergy(Head):
    """Autoregressive implicit behavioral cloning head: an energy for each component, given the earlier ones.

    Components are ordered by step. Each has a small network that reads the encoded observation, the components before
    it and its own value. Training tells the demonstrated value of each component from `n_negatives` other values
    (InfoNCE), given the demonstrated values of the components before it.

    Sampling chooses one component after the other: each is the value of lowest energy that a derivative-free search in
    one dimension finds. More dimensions therefore cost more searches, but each search stays as small. Plans are nearly
    the same for any noise.

    `EnergyModel` cannot use weights of this head, and this head cannot use weights of `EnergyModel`.

    Args:
        n_negatives: Number of values that a demonstrated one is compared with.
        n_candidates: Number of candidates of a search.
        n_iterations: Number of rounds of a search. Each keeps candidates in proportion to ``exp(-energy)`` and perturbs
            them.
        noise_std: Standard deviation of the first perturbation, as a fraction of half the range of the data.
        noise_decay: Factor of the perturbation per round.
        margin: Fraction of the range of the data by which negatives and candidates may leave it.
        width: Width of the features of a step, and of the layers of each component.

    References:
        Florence et al. (2021), Implicit Behavioral Cloning, arXiv:2109.00137, appendix B.
        Nash and Durkan (2019), Autoregressive Energy Machines, arXiv:1904.05626.
    """

    n_negatives: Annotated[int, AtLeast(1)] = 64
    n_candidates: Annotated[int, AtLeast(1)] = 64
    n_iterations: Annotated[int, AtLeast(1)] = 3
    noise_std: Annotated[float, AtLeast(0)] = 0.33
    noise_decay: Annotated[float, AtLeast(0)] = 0.5
    margin: Annotated[float, AtLeast(0)] = 0.05
    width: Annotated[int, AtLeast(1)] = 64

    def noise(self, horizon, coded_dim):
        return (horizon, coded_dim * self.n_candidates * (1 + self.n_iterations))

    def build(self, trunk, coded_dim, spec):
        return _ComponentEnergies(trunk.build(0, self.width, 0, spec), spec.horizon, coded_dim, self.width)

    def fit(self, net, pairs):
        _fit_range(net, pairs, self.margin)

    def loss(self, net, context, action, mask, rng):
        """Returns the cross-entropy of the demonstrated components among the candidates, summed per step, (B, H)."""
        uniform = torch.rand(len(action), self.n_negatives, *action.shape[1:], generator=rng, device=action.device)
        negatives = net.low + uniform.to(action.dtype) * (net.high - net.low)
        candidates = torch.cat([action.unsqueeze(1), negatives], 1).flatten(2)  # (B, 1 + n, H * A)
        features, demonstrated = net.features(action, context), candidates[:, 0]
        energy = [net.energy(features, demonstrated[:, :i], candidates[..., i]) for i in range(demonstrated.shape[1])]
        return _cross_entropy(torch.stack(energy, -1)).unflatten(1, action.shape[1:]).sum(-1)

    def sample(self, net, context, noise):
        noise = noise.unflatten(-1, (1 + self.n_iterations, self.n_candidates, -1))  # (B, H, 1 + n, N, A)
        features, half = net.features(noise[:, :, 0, 0], context), _half_range(net)
        horizon, coded_dim = net.shape
        chunk = noise[:, 0, 0, 0, :0]
        for i in range(horizon * coded_dim):
            step, part = divmod(i, coded_dim)
            low, high, scale = net.low[part], net.high[part], self.noise_std
            first, *draws = noise[:, step, ..., part].unbind(1)
            x = low + uniform_noise(first) * (high - low)  # (B, N)
            for draw in draws:
                x = _resample(x, -net.energy(features, chunk, x)) + scale * half[part] * draw
                x = x.clamp(low, high)
                scale = scale * self.noise_decay
            best = net.energy(features, chunk, x).argmin(1, keepdim=True)
            chunk = torch.cat([chunk, x.gather(1, best)], 1)
        return chunk.unflatten(1, net.shape)


class _ComponentEnergies(torch.nn.Module):
    def __init__(self, trunk, horizon, coded_dim, width):
        super().__init__()
        self.trunk, self.shape = trunk, (horizon, coded_dim)
        self.layers = torch.nn.ModuleList(torch.nn.Sequential(  # a bias would add the same to all energies
            feed_forward_layers((width + i + 1, width), "silu"), torch.nn.SiLU(), torch.nn.Linear(width, 1, bias=False))
            for i in range(horizon * coded_dim))
        self.register_buffer("low", -torch.ones(coded_dim))
        self.register_buffer("high", torch.ones(coded_dim))

    def features(self, action, context):
        """Returns features of the observation for the energies of each step, (B, H, width)."""
        return self.trunk(action[..., :0], action[..., :0], context)

    def energy(self, features, chosen, values):
        """Returns the energies of values (B, N) of the component that follows the chosen ones (B, i), (B, N)."""
        i = chosen.shape[1]
        inputs = torch.cat([features[:, i // self.shape[1]], chosen], 1).unsqueeze(1).expand(-1, values.shape[1], -1)
        return self.layers[i](torch.cat([inputs, values.unsqueeze(-1)], -1)).squeeze(-1)


def _fit_range(net, pairs, margin: float) -> None:
    """Stores the range of the data, widened by a fraction of it on both sides."""
    actions = [action[mask] for _, action, mask in pairs()]
    low, high = (torch.stack([f(part, 0).values for part in actions]) for f in (torch.min, torch.max))
    low, high = low.amin(0), high.amax(0)
    spare = margin * torch.where(high > low, high - low, 1e-3)
    net.low.copy_(low - spare)
    net.high.copy_(high + spare)


def _resample(x, log_weight):
    """Resamples candidates (B, N, ...) systematically: each is kept about N times its weight."""
    n = x.shape[1]
    total = log_weight.softmax(1).cumsum(1)
    quantiles = (torch.arange(n, device=x.device, dtype=x.dtype) + 0.5) / n
    kept = (total[:, None, :-1] < quantiles[:, None]).sum(-1)  # (B, N)
    return x.gather(1, kept.reshape(*kept.shape, *[1] * (x.ndim - 2)).expand(x.shape))


@contextmanager
def _constant_weights(net: torch.nn.Module) -> Iterator[None]:
    """Turns off the gradients of the weights while its body runs, which saves time. A context manager."""
    trained = [p for p in net.parameters() if p.requires_grad]
    for p in trained:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in trained:
            p.requires_grad_(True)


def _cross_entropy(energy):
    """Returns the cross-entropy of the first candidate among all, (B, ...), from energies (B, N, ...)."""
    return energy[:, 0] + (-energy).logsumexp(1)


def _half_range(net):
    """Returns half of the range in which chunks are searched, (A,)."""
    return (net.high - net.low) / 2
