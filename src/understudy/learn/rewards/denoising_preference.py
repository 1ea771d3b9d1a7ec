"""Preferences between single actions: a tuned copy of a denoising policy tells which of its actions are better."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, cast

import torch
from torch import Generator, Tensor

from ...checkpoint import RETRAIN, Scorer
from ...core import Above, AtLeast, Batch, Unsupported, part
from ...data.episode import Dataset
from ...files import read_json, write_json
from ...heads.base import DenoisingHead
from ...policy import Policy
from ..algorithm import Algorithm, Net, loss
from ..optimizer import OptimizerConfig
from .preference_reward import PREFERENCE, SEGMENT, Comparisons


class ImplicitReward(Scorer):
    """Scores an action by how much better a tuned policy denoises it than the policy `base` that it was tuned from.

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
        return super().train(False)  # also while it learns, all errors are those without dropout

    def forward(self, obs, plan):
        return self.improvement(obs, plan, self.t.expand(len(plan), -1), self.noise.expand(len(plan), -1, -1, -1))

    def improvement(self, obs: Mapping[str, Tensor], plan: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Returns the error of the base minus that of the tuned policy, (B,).

        Args:
            obs: Observation windows, (B, To, ...).
            plan: Plans in world units, (B, H, A).
            t: Times, (B, draws).
            noise: Noise of coded plans, (B, draws, H, width).
        """
        def error(policy: Policy) -> Tensor:
            head = cast(DenoisingHead, policy.config.head)
            coded = policy.encode(plan, obs).repeat_interleave(t.shape[1], 0)
            times = t.reshape(-1, 1).expand(coded.shape[:2])
            x = head.interpolate(coded, noise.flatten(0, 1), times.unsqueeze(-1))
            clean = head.predict_clean(policy.net, policy.context(obs).repeat(t.shape[1]), x, times)
            return (clean - coded).square().unflatten(0, t.shape).mean((1, 2, 3))
        with torch.no_grad():
            base = error(self.base)
        return base - error(self.tuned)

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
    """Tunes a copy of a denoising policy, until it denoises preferred actions better than before, and others worse.

    The data are comparisons, as for `PreferenceLearning`: segments of one step are two actions. The loss is
    ``-sigmoid(beta * (improvement of the better - improvement of the worse))`` at a random time, with the same noise.
    It is bounded, so that wrong answers count little.

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
        if not isinstance(policy.config.head, DenoisingHead) or policy.window.n_obs_steps + policy.window.horizon > 2:
            raise Unsupported("preferences are about single actions that are denoised", where="DenoisingPreference",
                              hint="use a policy with the head Diffusion or Flow, and Window(1, 1)")
        return {"policy": Net(policy),
                "reward": Net(ImplicitReward(copy.deepcopy(policy), copy.deepcopy(policy)), self.optimizer),
                "comparisons": Net(Comparisons(data, (*policy.inputs, policy.config.target)))}

    @loss("reward")
    def preference_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of as many random comparisons as the batch has rows, (B,)."""
        pairs, policy, count = nets.comparisons, nets.policy, len(batch)
        drawn = pairs.draw(count, rng)
        sign, better = (x[drawn].to(rng.device) for x in (pairs.sign, 2 * pairs.first_is_better - 1))
        obs = pairs.steps(drawn, rng.device)
        action = obs.pop(policy.config.target).float()
        t = torch.rand(count, 1, generator=rng, device=rng.device)
        noise = torch.randn(count, 1, 1, policy.codec.width, generator=rng, device=rng.device)
        t, noise = (x.repeat_interleave(sign.shape[1], 0) for x in (t, noise))
        improvement = nets.reward.improvement(obs, action, t, noise).reshape(sign.shape)
        margin = better * (improvement * sign).sum(1)
        return -(self.beta * margin).sigmoid(), {"agreement": (margin > 0).float()}
