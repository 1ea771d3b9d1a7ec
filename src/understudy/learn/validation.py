"""Action prediction error on held-out episodes: one error for every kind of head.

It is not a success rate. It ranks the checkpoints of a run and shows overfitting. Whether a policy works can only be
measured by running it.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Annotated

import numpy as np
import torch
from torch import Tensor

from ..core import AtLeast, Batch, DataWarning, is_read_by_default, keys, part
from ..data.episode import Dataset
from ..execute.base import ActionConditionedExecutor, Executor
from ..heads.base import LikelihoodHead
from ..hints import command_line
from ..policy import Policy
from .method import Method


@part
class Validation:
    """Config of the validation of checkpoints, which compares sampled plans with recorded actions.

    The distance of two chunks is the root mean square over their steps and components, in units of the standard
    deviation of each component in the training data. For discrete actions it is the root of the fraction of differing
    actions. The noise of a window is a function of its number, so that curves are smooth and policies are compared with
    the same noise.

    Steps beyond the end of an episode do not count, nor do components that the head leaves out (`Head.counted`), such
    as actions that are not known.

    Args:
        n_windows: Number of windows, evenly spaced over the data.
        n_samples: Number of plans per window.
    """

    n_windows: Annotated[int, AtLeast(1)] = 128
    n_samples: Annotated[int, AtLeast(2)] = 8

    def sampled_plans(self, policy: Policy, data: Dataset, size: int = 64,
                      executor: Executor | None = None) -> Iterator[tuple[Batch, Tensor]]:
        """Samples what the policy plans (chunks of actions) at recorded steps that are spread evenly over the data.

        Args:
            executor: The method's executor. If it is an `ActionConditionedExecutor`, it plans after the recorded
                actions before each window's step, and the mask of the batch leaves these actions out.

        Yields:
            A batch of windows and K plans for each of them, (B, K, H, A) in world units. K is 1 for a deterministic
            policy.
        """
        windows = policy.windows(data)
        at = np.linspace(0, len(windows) - 1, min(self.n_windows, len(windows))).round().astype(np.int64)
        K = 1 if policy.is_deterministic else self.n_samples
        for i in range(0, len(at), size):
            part = at[i:i + size]
            batch = windows.gather(part, np.random.default_rng(i)).to(policy.device)
            if batch.action.dtype == torch.bool:  # errors are differences
                batch = batch.replace(action=batch.action.float())
            key = keys(0, part).to(policy.device)
            with torch.no_grad():
                noises = [policy.noise(key, torch.full_like(key, k)) for k in range(K)]
                if isinstance(executor, ActionConditionedExecutor):
                    executor.check_planner(policy)
                    past = -policy.window.action_offset
                    past_actions = batch.action[:, :past], batch.mask[:, :past]
                    plans = [executor.plan(policy, batch.obs, *past_actions, noise) for noise in noises]
                    future = torch.arange(batch.mask.shape[1], device=batch.mask.device) >= past
                    batch = batch.replace(mask=batch.mask & future)
                else:
                    plans = [policy.plan(batch.obs, noise) for noise in noises]
            yield batch, torch.stack(plans, 1)

    @torch.no_grad()
    def evaluate(self, policy: Policy, data: Dataset, scale: Tensor | None = None,
                 executor: Executor | None = None, ahead: int | None = None) -> dict[str, float]:
        """Returns the action prediction error of a policy on recorded episodes.

        Args:
            scale: Unit of each action component, (A,). See `target_scale`. None for 1.
            executor: The method's executor, see `sampled_plans`.
            ahead: Number of steps of each plan that count, from the current one on. None for the whole plan. The errors
                of policies with different horizons are comparable only for the same number.

        Returns:
            "energy" is the unbiased energy score; smaller is better. For a policy without noise it is the mean error.
            A policy that knows several ways to act is not penalized for the ways that were not recorded.
            "mean" is the mean distance of the samples, and "best" the distance of the nearest one.
            For discrete actions, "wrong" is the fraction of wrong ones and "log loss" the mean negative
            log-likelihood in nats, where the head has a likelihood.

        References:
            Gneiting and Raftery (2007), Strictly Proper Scoring Rules, Prediction, and Estimation.
        """
        choices = policy.target.kind == "discrete"
        training = policy.training
        policy.eval()
        rows: dict[str, list[Tensor]] = {}
        for batch, plans in self.sampled_plans(policy, data, executor=executor):
            if ahead is not None:
                step = torch.arange(batch.mask.shape[1], device=batch.mask.device) + policy.window.action_offset
                batch = batch.replace(mask=batch.mask & (step >= 0) & (step < ahead))
            target = batch.action.unsqueeze(1)
            if choices:
                gap = _class_errors(target, plans)
            else:
                unit = 1.0 if scale is None else scale.to(plans)
                gap, plans = (plans - target) / unit, plans / unit
            mask = (batch.mask.unsqueeze(-1) & policy.config.head.counted(batch.action)).unsqueeze(1)
            error = _root_mean_square(gap, mask)
            errors = {"energy": energy_score(plans, error, mask, choices), "mean": error.mean(1), "best": error.amin(1)}
            if choices:
                error_rate = (gap * mask).sum((2, 3)) / mask.sum((2, 3)).clamp(min=1)
                errors["wrong"] = error_rate.mean(1)
                if isinstance(policy.config.head, LikelihoodHead) and bool((is_complete := batch.mask.all(1)).any()):
                    log = policy.config.head.log_prob(policy.net, policy.context(batch.obs), policy.encode_batch(batch))
                    errors["log loss"] = -log[is_complete] / (gap.shape[-1] * gap.shape[-2])
            has_steps = batch.mask.any(1)  # a window may lie beyond its episode's end altogether
            for name, window_errors in errors.items():
                rows.setdefault(name, []).append(window_errors if name == "log loss" else window_errors[has_steps])
        policy.train(training)
        return {k: torch.cat(v).cpu().double().mean().item() for k, v in rows.items()}


def warn_of_made_steps(data: Dataset, column: str, n_made: int, why_none: str) -> None:
    """Warns if no step is generated, or if generated steps have observations besides `column` that do not fit them."""
    path = data.metadata.get("path")
    if not n_made:
        warnings.warn(f"{path or 'data set'}: no step is made, so that the demonstrations alone are cloned: {why_none}",
                      DataWarning, stacklevel=3)
    unfit = [name for name, f in data.features().items() if name != column and is_read_by_default(name, f)
             and (f.kind == "image" or any((x != x[:1]).any() for e in data for x in (np.asarray(e.steps[name]),)))]
    if n_made and unfit:
        drops = [word for name in unfit for word in ("--drop", name)]
        command = command_line("view", "make", path or "DATA", *drops, "--out", "VIEW")
        warnings.warn(f"{path or 'data set'}: made steps have another {column}, and {', '.join(unfit)} as recorded, "
                      f"which does not fit it. Leave it out: {command}",
                      DataWarning, stacklevel=3)


def warn_of_learning_rate(method: Method) -> None:
    """Warns if training ends before the learning rate has reached its value, or continues after it is 0."""
    optimizer, steps = getattr(method.learner, "optimizer", None), method.learner.steps
    if optimizer is not None and 0 < steps <= optimizer.warmup_steps and method.collection is None:
        reached = optimizer.lr_factor(steps - 1, steps)
        warnings.warn(f"The learning rate rises for {optimizer.warmup_steps} updates, and training has {steps}, so "
                      f"that it only reaches {reached:.0%} of its value. Make more updates (--steps), or choose a "
                      "smaller --optimizer.warmup-steps.", DataWarning, stacklevel=3)
    elif optimizer is not None and optimizer.lr_schedule == "cosine" and method.collection is not None:
        warnings.warn(f"The learning rate is 0 from update {steps:,} on (--steps), however many updates the "
                      "rounds have. Choose --optimizer.lr-schedule constant, or the number of all updates as "
                      "--steps.", DataWarning, stacklevel=3)


def energy_score(samples: Tensor, error: Tensor, mask: Tensor, choices: bool = False) -> Tensor:
    """Computes the energy score of sampled plans: E|X - y| - E|X - X'| / 2. Smaller is better.

    The second mean is over pairs of different samples, which makes it unbiased. With K = 1, only the first mean is
    left.

    Args:
        samples: Sampled plans, (B, K, H, A).
        error: Distances of the samples from the recorded actions, (B, K).
        mask: True for steps, or components of them, that count, (B, 1, H, 1) or (B, 1, H, A).
        choices: Whether actions are discrete.

    Returns:
        Score of each window, (B,).
    """
    K = samples.shape[1]
    if K == 1:
        return error[:, 0]
    between = 0.0
    for shift in range(1, K):  # sample against the next one, the one after, ...: K pairs at a time instead of K * K
        other = samples.roll(shift, 1)
        between = between + _root_mean_square(_class_errors(samples, other) if choices else samples - other, mask).sum(
            1
        )
    return error.mean(1) - between / (2 * K * (K - 1))


def target_scale(data: Dataset, target: str) -> Tensor:
    """Standard deviation of each component of a column over all steps, (A,). It is 1 for a component that never
    changes."""
    count, mean, square = 0, 0.0, 0.0
    for episode in data:
        x = np.asarray(episode.steps[target], np.float64).reshape(len(episode.steps[target]), -1)
        if not len(x):
            continue
        gap, total = x.mean(0) - mean, count + len(x)  # Chan, Golub and LeVeque 1983: no cancellation
        square = square + x.var(0) * len(x) + gap**2 * count * len(x) / total
        mean, count = mean + gap * len(x) / total, total
    std = np.sqrt(square / max(count, 1))
    return torch.from_numpy(np.where(std > 1e-6 * np.maximum(np.abs(mean), 1e-6), std, 1.0)).float()


def _root_mean_square(gap: Tensor, mask: Tensor) -> Tensor:
    """Returns the root mean square over unmasked components, (B, K)."""
    count = mask.expand(-1, -1, -1, gap.shape[-1]).sum((2, 3)).clamp(min=1)
    return ((gap.square() * mask).sum((2, 3)) / count).sqrt()


def _class_errors(a: Tensor, b: Tensor) -> Tensor:
    """Returns half the squared distance of one-hot vectors, the error of classes."""
    return (a.round() != b.round()).float()
