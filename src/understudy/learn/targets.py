"""Targets of value learning: discounted rewards with a bootstrap, generalized advantages, and losses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Batch, DataError, DataWarning, Diverged, role
from ..data.episode import Dataset, terminate_together
from ..data.formats import check_finite
from ..data.window import TERMINATED
from ..nets.quantile_layer import equal_levels

REWARD = "next.reward"
_OTHER_UNIT_RATIO = 10.0  # times the largest return: farther away is another unit


def td_terms(batch: Batch, discount: float, n_step: int = 0) -> tuple[Tensor, Tensor]:
    """Returns the discounted rewards of windows, and the factor of the value that follows them, (B,) each.

    The target of a critic is ``reward + bootstrap * value(batch.next)``. There is no value after an episode that
    terminated. After an episode that was cut off there is one. Such an episode may be shorter than the window, and then
    the discount counts the steps of the episode.

    Args:
        batch: Its `extra` has the columns `next.reward` and `next.terminated`.
        discount: Discount per step.
        n_step: Number of steps whose rewards count, the `lookahead` of the batch. 0 for the steps of the chunk.
    """
    mask = batch.extra["lookahead_mask"] if n_step else batch.mask
    rewards, ends = (batch.extra[k].reshape(mask.shape).float() * mask for k in (REWARD, TERMINATED))
    steps = torch.arange(mask.shape[1], device=rewards.device)
    bootstrap = discount ** mask.sum(1) * (1 - ends.amax(1))
    return (rewards * discount**steps).sum(1), bootstrap


def mean_over_steps(values: Tensor, mask: Tensor) -> Tensor:
    """Returns the mean of values, (B, H) or (B, H, A), over the steps of each window that are not padding, (B,).

    A window at the end of an episode then counts as much as any other. A window without steps has the mean 0.
    """
    values = values if values.ndim == 2 else values.mean(2)
    return torch.where(mask, values, 0.0).sum(1) / mask.sum(1).clamp(min=1)


def gae(reward: Tensor, value: Tensor, next_value: Tensor, terminated: Tensor, last: Tensor, discount: float,
        decay: float) -> Tensor:
    """Returns generalized advantage estimates of consecutive steps, (T, ...).

    They are sums of ``reward + discount * next_value - value`` over the later steps of an episode, in which each step
    counts ``discount * decay`` times as much as the one before it.

    Args:
        reward: Reward of each step, (T, ...).
        value: Value of the observation before each step, (T, ...).
        next_value: Value of the observation after each step, (T, ...). It does not count where `terminated`.
        terminated: Whether the environment ended the episode in this step, (T, ...).
        last: Whether it is the last step of its episode, terminated or cut off, (T, ...).
        decay: 0 for errors of one step, 1 for returns minus values.

    References:
        Schulman et al. (2016), High-Dimensional Continuous Control Using Generalized Advantage Estimation,
        arXiv:1506.02438.
    """
    error = reward + discount * next_value * ~terminated - value
    factor = discount * decay * ~last
    advantage, later = torch.empty_like(error), torch.zeros_like(error[0])
    for t in reversed(range(len(error))):
        later = error[t] + factor[t] * later
        advantage[t] = later
    return advantage


def expectile_loss(error: Tensor, expectile: float) -> Tensor:
    """Returns the squared error, weighted by `expectile` where it is positive and by ``1 - expectile`` elsewhere.

    Args:
        error: Target minus prediction. The prediction that minimizes the loss is the expectile of the targets: their
            mean for 0.5, and their maximum towards 1.

    References:
        Kostrikov et al. (2022), Offline Reinforcement Learning with Implicit Q-Learning, arXiv:2110.06169.
    """
    return torch.where(error > 0, expectile, 1 - expectile) * error.square()


def td_loss(quantiles: Tensor, target: Tensor, levels: Tensor | None = None, *, huber: bool = False) -> Tensor:
    """Returns the squared error of a value, or the quantile Huber loss of several quantiles of the return, (..., B).

    Args:
        quantiles: The prediction, (..., n_quantiles, B). One is the expected return.
        target: Its target, (B,), or equally likely targets, (..., n_targets, B).
        levels: Levels of the quantiles, (n_quantiles, B). None if they are equally spaced.
        huber: Whether the error of a single value is a Huber error, too.

    References:
        Dabney et al. (2018), Distributional Reinforcement Learning with Quantile Regression, arXiv:1710.10044.
    """
    if (n := quantiles.shape[-2]) == 1:
        error = quantiles - target
        return (_huber(error) if huber else error.square()).squeeze(-2)
    error = target.unsqueeze(-2) - quantiles.unsqueeze(-3)  # (..., n_targets, n_quantiles, B)
    if levels is None:
        levels = equal_levels(n, error.device).unsqueeze(1)
    return ((levels - (error < 0).float()).abs() * _huber(error)).sum(-2).mean(-2)


def _huber(error: Tensor) -> Tensor:
    return F.smooth_l1_loss(error, torch.zeros_like(error), reduction="none")


def check_rewards(data: Dataset) -> None:
    """Raises an error for rewards that make no action better than another.

    The reward of a last step does not count if no observation follows it and it did not terminate (`Window.windows`).

    Raises:
        UserError: A reward or an end is not finite.
        DataError: All rewards are 0, or all are equal and no episode terminates.
    """
    check_finite(data, (REWARD, TERMINATED))
    columns = [np.asarray(e.steps[REWARD][:len(e)], float).reshape(-1) for e in data]
    unknown = _unknown_ends(data)
    rewards = np.concatenate([c[:-1] if cut else c for c, cut in zip(columns, unknown, strict=True)])
    if not len(rewards) or np.ptp(rewards) == 0 and (rewards[0] == 0 or not any(_ends(data))):
        value = rewards[0] if len(rewards) else 0
        ignored = sum(c[-1] != value for c, cut in zip(columns, unknown, strict=True) if cut)
        raise DataError(f"all rewards are {value:g}" + (" and no episode terminates" if value else "") +
                        (f", except in the last steps of {ignored} episodes, which do not count: no observation "
                         f"follows them, and {TERMINATED} is False" if ignored else "") +
                        ", so that no action is better than another",
                        where=f"{data.metadata.get('path', 'data set')}, column {REWARD!r}",
                        hint=f"let {TERMINATED} be True where these episodes really ended, or store the observation "
                             "after the last action" if ignored else
                             "store rewards that differ, such as 1 at the step that succeeds, or clone the actions "
                             "with bc")


def return_findings(data: Dataset, column: str, target: float | None = None) -> Iterator[DataWarning]:
    """Checks returns: raises an error if all rewards are 0, and reports equal returns of all episodes.

    Args:
        target: The return that is asked for while acting. A finding says if it seems to be in another unit.

    Raises:
        DataError: All rewards are 0.
    """
    place = f"{data.metadata.get('path', 'data set')}, column {column!r}"
    returns = [float(np.sum(e.steps[column][:len(e)])) for e in data]
    if len(returns) > 1 and max(returns) == min(returns) != 0:
        yield DataWarning(f"{place}: the return of all {len(returns)} episodes is {returns[0]:g}, so that the policy "
                          "does not learn what to do for another one")
    if not any(np.asarray(e.steps[column][:len(e)]).any() for e in data):
        raise DataError("all rewards are 0, so that the returns of all episodes are equal", where=place,
                        hint="store rewards that differ, such as 1 at the step that succeeds, name their column "
                             "(--columns reward=NAME), or clone the actions with bc")
    if target is not None and abs(target) > _OTHER_UNIT_RATIO * max(map(abs, returns)):
        yield DataWarning(f"{place}: the target return is {target:g}, and the returns of the episodes are from "
                          f"{min(returns):g} to {max(returns):g}. Use their units")


def time_limit_findings(data: Dataset) -> Iterator[DataWarning]:
    """Reports whether all episodes terminate after the same number of steps, as if a time limit were an end."""
    if terminate_together(data):
        path = data.metadata.get("path", "data set")
        yield DataWarning(f"{path}: all {len(data)} episodes terminate after {data.lengths[0]} steps, as with a time "
                          f"limit. If it is one, {TERMINATED} must be False and next.truncated True: otherwise the "
                          "critic learns that nothing follows.")


def _ends(data: Dataset) -> list[bool]:
    """Returns whether each episode terminates."""
    return [bool(np.asarray(e.steps[TERMINATED][:len(e)]).any()) for e in data]


def _unknown_ends(data: Dataset) -> np.ndarray:
    """Returns whether each episode is cut off without an observation after its last action, (E,)."""
    numbers = [name for name, f in data.features().items() if role(name) == "observation" and f.kind != "image"]
    lacks = np.all([data.rows(name) <= data.lengths for name in numbers], axis=0) if numbers else False
    return lacks & ~np.array(_ends(data))


_UNTRAINED = 1.0  # a new critic has smaller mean scores, also where the first batches have no reward


class ReturnBound:
    """Bound on scores of a critic, beyond which they diverge because no return can be as large.

    Args:
        data: The training data. Larger rewards may come later.
        discount: Discount per step.
        bonus: Usual size of what is added to each reward, such as a weighted entropy.
    """

    def __init__(self, data: Dataset, discount: float, bonus: float = 0.0):
        self.n_steps = 1 / (1 - discount) if discount < 1 else float(data.lengths.max()) if len(data) else float("inf")
        self.largest_reward, self.bonus = 0.0, bonus

    def check(self, score: float, batch: Batch, update: int) -> None:
        """Raises Diverged if a mean score is more than ten times the largest possible return."""
        self.largest_reward = max(self.largest_reward, batch.extra[REWARD].float().abs().max().item())
        bound = self.n_steps * (self.largest_reward + self.bonus)
        if abs(score) >= _UNTRAINED:
            check_bounded(score, bound, update)
        elif self.largest_reward:
            check_bounded(score, bound, update, hint="the rewards are small: multiply them so that returns are about 1 "
                          f"(--reward-scale {1 / bound:.0e})")


class MeanBound:
    """Bound on means of values, beyond which they diverge. 0 is no bound.

    Args:
        **texts: Parts of the message: see `check_bounded`.
    """

    def __init__(self, largest: float, **texts: str):
        self.largest, self.texts = largest, texts

    def check(self, value: float, batch: Batch, update: int) -> None:
        """Raises Diverged if a mean is more than ten times `largest`."""
        check_bounded(value, self.largest, update, **self.texts)


def check_bounded(value: float, bound: float, update: int, *, name: str = "the scores of the critic",
                  reason: str = "no return can exceed",
                  hint: str = "normalize the critic (--critic.layer-norm True), or lower --discount or "
                              "--optimizer.lr") -> None:
    """Raises Diverged if a mean is more than ten times its largest possible value.

    Args:
        value: The mean.
        bound: The largest possible size of each value. 0 is none.
        name: What diverges, in the plural.
        reason: Why `bound` is one. The number follows.
        hint: The settings to change.
    """
    if abs(value) > 10 * bound > 0:
        raise Diverged(f"{name} diverge: their mean is {value:.3g}, but {reason} {bound:.3g}",
                       where=f"update {update}", hint=hint)
