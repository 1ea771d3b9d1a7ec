"""Learns preferences between actions or chunks by a denoising policy, which denoises better ones better."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import Generator, Tensor

from ...checkpoint import RETRAIN, Scorer
from ...core import Above, AtLeast, Batch, Unsupported, part
from ...data.episode import Dataset
from ...data.window import Window
from ...files import read_json, write_json
from ...heads.base import DenoisingHead
from ...policy import Policy
from ..algorithm import Algorithm, Net, loss
from ..optimizer import OptimizerConfig
from .preference_reward import PREFERENCE, SEGMENT, Comparisons


def denoising_error(policy: Policy, obs: Mapping[str, Tensor], plan: Tensor, t: Tensor, noise: Tensor,
                    mask: Tensor | None = None) -> Tensor:
    """Returns the mean squared error of the estimated clean plan, in coded units, (B,).

    Args:
        obs: Observation windows, (B, To, ...).
        plan: Plans in world units, (B, H, A).
        t: Times, (B, draws).
        noise: Noise of coded plans, (B, draws, H, width).
        mask: True at the steps that count, (B, H). None for all.
    """
    head, coded = cast(DenoisingHead, policy.config.head), policy.encode(plan, obs)
    mask = torch.ones_like(coded[..., 0]) if mask is None else mask.float()
    coded = (coded * mask.unsqueeze(-1)).repeat_interleave(t.shape[1], 0)
    times = t.reshape(-1, 1).expand(coded.shape[:2])
    x = head.interpolate(coded, noise.flatten(0, 1), times.unsqueeze(-1))
    clean = head.predict_clean(policy.net, policy.context(obs).repeat(t.shape[1]), x, times)
    error = (clean - coded).square().mean(2).unflatten(0, t.shape).mean(1)
    return (error * mask).sum(1) / mask.sum(1).clamp(min=1)


class ChunkComparisons(Comparisons):
    """Comparisons of segments, with the observations and the chunk at each step.

    As everywhere, the observation before the first step of a segment is its first one, and the steps of a chunk after
    its last one are masked.
    """

    def __init__(self, data: Dataset, names: tuple[str, ...], window: Window):
        super().__init__(data, names)
        self.obs_rows = torch.zeros(*self.sign.shape, window.n_obs_steps, dtype=torch.int64)
        self.chunk_rows = torch.zeros(*self.sign.shape, window.horizon, dtype=torch.int64)
        self.chunk_mask = torch.zeros(self.chunk_rows.shape, dtype=torch.bool)
        for number, segment in itertools.product(range(len(self.sign)), (1, -1)):
            rows = (self.sign[number] == segment).nonzero().flatten()
            position = torch.arange(len(rows)).unsqueeze(1)
            past = position + torch.arange(1 - window.n_obs_steps, 1)
            ahead = position + window.action_offset + torch.arange(window.horizon)
            self.obs_rows[number, rows] = rows[past.clamp(min=0)]
            self.chunk_rows[number, rows] = rows[ahead.clamp(0, len(rows) - 1)]
            self.chunk_mask[number, rows] = (ahead >= 0) & (ahead < len(rows))

    def windows(self, numbers: Tensor, target: str, device: torch.device) -> tuple[dict[str, Tensor], Tensor, Tensor]:
        """Returns observations (B * T, To, ...), chunks (B * T, H, A) and their masks (B * T, H) of comparisons."""
        def gather(column: Tensor, rows: Tensor) -> Tensor:
            return column[numbers[:, None, None], rows[numbers]].flatten(0, 1).to(device)
        obs = {name: gather(column, self.obs_rows) for name, column in self.columns.items() if name != target}
        return obs, gather(self.columns[target], self.chunk_rows).float(), \
            self.chunk_mask[numbers].flatten(0, 1).to(device)


class ImplicitReward(Scorer):
    """Scorer of actions: how much better a tuned policy denoises them than its original, `base`.

    An error is the mean squared error of the estimated clean action, in coded units. All actions, and both policies,
    have the same times and noise. Dropout and augmentations are off.

    Args:
        draws: Number of times and noises over which errors are averaged.
        levels: Range of the times, which are evenly spaced. 1 is the action, and 0 noise, which hides the action.
    """

    t: Tensor
    noise: Tensor

    def __init__(self, tuned: Policy, base: Policy, draws: int = 10, levels: tuple[float, float] = (0.9, 1.0)):
        super().__init__()
        self.tuned, self.base = tuned, base.requires_grad_(False)
        self.inputs, self.features = base.inputs, base.features
        self.options = {"draws": draws, "levels": list(levels)}
        noise = torch.randn(draws, base.window.horizon, base.codec.width, generator=Generator().manual_seed(0))
        self.register_buffer("noise", noise)
        self.register_buffer("t", levels[0] + (levels[1] - levels[0]) * torch.arange(draws) / draws)
        self.eval()

    def train(self, mode: bool = True):
        return super().train(False)  # errors are computed without dropout, also while it learns

    def forward(self, obs, plan):
        return self.improvement(obs, plan, self.t.expand(len(plan), -1), self.noise.expand(len(plan), -1, -1, -1))

    def improvement(self, obs: Mapping[str, Tensor], plan: Tensor, t: Tensor, noise: Tensor,
                    mask: Tensor | None = None) -> Tensor:
        """Returns the error of the base minus that of the tuned policy, (B,): see `denoising_error`."""
        with torch.no_grad():
            base = denoising_error(self.base, obs, plan, t, noise, mask)
        return base - denoising_error(self.tuned, obs, plan, t, noise, mask)

    def save(self, folder):
        for name in ("tuned", "base"):
            getattr(self, name).save(Path(folder) / name)
        write_json(Path(folder) / "reward.json", self.options)

    @staticmethod
    def load(folder, trust=(), device="cpu"):
        tuned, base = (Policy.load(Path(folder) / name, trust) for name in ("tuned", "base"))
        return ImplicitReward(tuned, base, **read_json(Path(folder) / "reward.json", RETRAIN)).to(device)


@part
class DenoisingPreference(Algorithm):
    """Tunes a denoising policy to denoise preferred plans better than before, and other plans worse.

    The data are comparisons, as for `PreferenceLearning`: segments of one step are two actions. Of longer segments, the
    plans at all steps are compared, as far as they lie within the segment, and their improvements are added. The loss
    is ``-sigmoid(beta * (improvement of the better - improvement of the worse))`` at a random time, with the same
    noise. It is bounded, so that wrong answers count little.

    The policy stays as it is: let it start with trained weights (`InitializeFrom`). The module "reward" has the copy,
    and ``BestOfN(scorer="reward", n=8)`` takes the best of the actions that the policy draws.

    Args:
        batch_size: Number of comparisons in each batch.
        beta: Factor of the errors, in coded units.
        optimizer: Optimizer of the copy.

    References:
        Chen et al. (2025), DeformPAM, arXiv:2410.11584.
    """

    steps: Annotated[int, AtLeast(0)] = 1000
    batch_size: Annotated[int, AtLeast(1)] = 128
    beta: Annotated[float, Above(0)] = 100.0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-4))
    extra = (SEGMENT, PREFERENCE)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        head, window = policy.config.head, policy.window
        if not isinstance(head, DenoisingHead) or window.goals or window.obs_pad_mask or window.obs_offset:
            raise Unsupported("preferences are about plans that are denoised, for the observations of a segment",
                              where=type(self).__name__, hint="use a policy with the head Diffusion or Flow, and a "
                              "Window without goals, obs_pad_mask and obs_offset")
        return {"policy": Net(policy),
                "reward": Net(ImplicitReward(copy.deepcopy(policy), copy.deepcopy(policy)), self.optimizer),
                "comparisons": Net(ChunkComparisons(data, (*policy.inputs, policy.config.target), window))}

    @loss("reward")
    def preference_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of as many random comparisons as the batch has rows, (B,)."""
        sign, arguments = self.draw(nets, len(batch), rng)
        margin = (nets.reward.improvement(*arguments).reshape(sign.shape) * sign).sum(1)
        return -(self.beta * margin).sigmoid(), {"agreement": (margin > 0).float()}

    def draw(self, nets: Any, count: int, rng: Generator) -> tuple[Tensor, tuple[Any, ...]]:
        """Draws comparisons, with one time and noise for both segments of each.

        Returns:
            The sign of each step (count, T): 1 in the better segment, -1 in the other and 0 where padded or equal. And
            the arguments of `denoising_error` after the policy, for count * T plans.
        """
        pairs, policy = nets.comparisons, nets.policy
        drawn = pairs.draw(count, rng)
        sign, better = (x[drawn].to(rng.device) for x in (pairs.sign, 2 * pairs.first_is_better - 1))
        obs, chunk, mask = pairs.windows(drawn, policy.config.target, rng.device)
        t = torch.rand(count, 1, generator=rng, device=rng.device)
        noise = torch.randn(count, 1, policy.window.horizon, policy.codec.width, generator=rng, device=rng.device)
        t, noise = (x.repeat_interleave(sign.shape[1], 0) for x in (t, noise))
        return better.unsqueeze(1) * sign, (obs, chunk, t, noise, mask)
