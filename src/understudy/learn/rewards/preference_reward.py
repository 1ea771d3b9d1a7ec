"""Learns a reward that explains which of two segments a person prefers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from ...core import AtLeast, Batch, DataError, Unsupported, part
from ...data.episode import Dataset, Episode
from ...nets.base import Encoder
from ...nets.encoders import ConcatEncoder
from ...nets.feed_forward import Activation, feed_forward_layers
from ...policy import Policy
from ..algorithm import Algorithm, Net, loss, prepare
from ..devices import Processes
from ..optimizer import OptimizerConfig
from .reward_models import RewardModel, RewardModelConfig, RewardSpec

SEGMENT = "segment"  # column of a comparison: 0 in the steps of the first segment, 1 in those of the second
PREFERENCE = "preference"  # column: BETTER in steps of the better segment, 0 in steps of the worse; half if equal
BETTER = 2
_STATISTICS_DECAY = 0.99


@part
class PreferenceReward(RewardModelConfig):
    """Reward model config: a network whose sums of rewards over segments explain a person's preferences.

    Comparisons tell rewards up to a positive factor and a constant. Rewards here have the mean 0 and the standard
    deviation 1 over the compared steps. It is trained by `PreferenceLearning`.

    Args:
        encoder: Encodes the observation.
        inputs: "action" reads the observation and the action, and "state" the observation alone.
    """

    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (64, 64)
    activation: Activation = "tanh"
    encoder: Encoder = field(default_factory=ConcatEncoder)
    inputs: Literal["action", "state"] = "action"
    extra = ()
    compares = False

    def build(self, policy, data):
        if policy.window.n_obs_steps > 1 or policy.window.horizon > 1:
            raise Unsupported("preferences are about single steps, and the policy reads or plans several",
                              where="PreferenceReward", hint="use a policy with Window(1, 1)")
        return PreferenceModel(RewardSpec.of(self, policy), policy.features, policy.codec).to(policy.device)


class PreferenceModel(RewardModel):
    """The reward model that `PreferenceReward` configures."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, about, features, codec=None):
        super().__init__(about, features, codec)
        config = about.config
        self.encoder = config.encoder.build({k: features[k] for k in self.inputs}, 1)
        self.reads_action = config.inputs == "action"
        width = self.encoder.tokens * self.encoder.width + self.reads_action * self.codec.width
        self.layers = feed_forward_layers((width, *config.hidden, 1), config.activation)
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("deviation", torch.ones(()))

    def value(self, obs, action: Tensor) -> Tensor:
        """Returns the reward before it is standardized, (B,), of observations (B, 1, ...) and actions (B, 1, A)."""
        read = self.encoder(self.codec.encode_obs(obs)).flat()
        if self.reads_action:
            read = torch.cat([read, self.codec.encode(action, obs).flatten(1)], -1)
        return self.layers(read).squeeze(-1)

    def measure(self, values: Tensor) -> None:
        """Updates the running mean and standard deviation of rewards with some values."""
        for kept, new in ((self.mean, values.mean()), (self.deviation, values.std().clamp(min=1e-6))):
            kept.lerp_(new, 1 - _STATISTICS_DECAY)

    def forward(self, obs, plan):
        return (self.value(obs, plan) - self.mean) / self.deviation

    def reward(self, batch, policy):
        return self(batch.obs, batch.action).unsqueeze(1)


@part
class PreferenceLearning(Algorithm):
    """Learns a reward from comparisons of two segments, and a policy that clones the better ones.

    The probability that the first segment is preferred is sigmoid(sum of its rewards - sum of rewards of the second
    segment) (Bradley and Terry 1952). An episode of the data is a comparison: `understudy judge` writes them.

    Args:
        batch_size: Number of comparisons in each batch, and of steps that the policy clones.
        optimizer: Optimizer of the policy.
        reward_optimizer: Optimizer of the reward.

    References:
        Christiano et al. (2017), Deep Reinforcement Learning from Human Preferences, arXiv:1706.03741.
    """

    steps: Annotated[int, AtLeast(0)] = 1000
    batch_size: Annotated[int, AtLeast(1)] = 32
    reward: PreferenceReward = field(default_factory=PreferenceReward)
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    reward_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=0.01))
    extra = (SEGMENT, PREFERENCE)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        return {"policy": Net(policy, self.optimizer),
                "reward": Net(self.reward.build(policy, data), self.reward_optimizer),
                "comparisons": Net(Comparisons(data, (*policy.inputs, policy.config.target)))}

    @loss("reward")
    def preference_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the cross-entropy of as many random comparisons as the batch has rows, (B,)."""
        drawn = nets.comparisons.draw(len(batch), rng)
        difference = self.difference(nets, drawn)
        better = nets.comparisons.first_is_better[drawn].to(difference.device)
        agreement = torch.where(better == 0.5, 0.5, ((difference > 0) == (better > 0.5)).float())
        return binary_cross_entropy_with_logits(difference, better, reduction="none"), {"agreement": agreement}

    def weight(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        """Returns 1 for the steps of better segments, and 0 for steps of the other segments, (B, 1)."""
        return batch.extra[PREFERENCE].reshape(batch.mask.shape).float() / BETTER

    @loss("policy", weights="weight")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.policy.loss(batch, rng)

    @prepare
    def measured(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Updates the statistics of rewards with random comparisons, those of the first process."""
        drawn = nets.comparisons.draw(self.batch_size, rng)
        rewards = self.rewards(nets, drawn)
        nets.reward.measure(rewards[nets.comparisons.sign[drawn].to(rewards.device) != 0])
        Processes.current().broadcast([nets.reward.mean, nets.reward.deviation])
        return batch

    def difference(self, nets: Any, numbers: Tensor) -> Tensor:
        """Returns the sum of rewards of the first segment minus that of the second, for each comparison, (B,)."""
        rewards = self.rewards(nets, numbers)
        return (rewards * nets.comparisons.sign[numbers].to(rewards.device)).sum(1)

    def rewards(self, nets: Any, numbers: Tensor) -> Tensor:
        """Returns the rewards of all steps of comparisons before they are standardized, padded steps too, (B, T)."""
        columns = nets.comparisons.step_columns(numbers, nets.policy.device)
        action = columns.pop(nets.policy.config.target).float()
        return nets.reward.value(columns, action).reshape(len(numbers), -1)


def check_comparisons(data: Dataset) -> None:
    """Raises an error for episodes that are no comparison of two equally long segments, with a preference.

    With segments of unequal length, a constant that is added to all rewards would change which segment is better.
    Comparisons say nothing about such a constant.

    Raises:
        DataError: A column has other values, or no comparison prefers a segment.
    """
    path, is_clear = data.metadata.get("path") or "data set", False
    for number, episode in zip(data.indices, data, strict=True):
        segment, preference = (np.reshape(episode.steps[name], -1)[:len(episode)] for name in (SEGMENT, PREFERENCE))
        masks = [segment == i for i in (0, 1)]
        counts = [int(mask.sum()) for mask in masks]
        if counts[0] != counts[1] or sum(counts) < len(episode):
            raise DataError(f"{counts[0]} of the {len(episode)} steps are of segment 0 and {counts[1]} of segment 1",
                            where=f"{path}, episode {number}, column {SEGMENT!r}",
                            hint="let each comparison be two segments of equal length, numbered 0 and 1")
        answer = [np.unique(preference[mask]).tolist() for mask in masks]
        if answer not in ([[BETTER], [0]], [[0], [BETTER]], [[BETTER // 2]] * 2):
            first, second = (" and ".join(f"{value:g}" for value in values) for values in answer)
            raise DataError(f"it is {first} in segment 0 and {second} in segment 1",
                            where=f"{path}, episode {number}, column {PREFERENCE!r}",
                            hint=f"let it be {BETTER} in all steps of the better segment and 0 in those of the other, "
                                 f"or {BETTER // 2} in all steps if both are as good")
        is_clear |= answer[0] != answer[1]
    if not is_clear:
        raise DataError(f"none of the {len(data)} comparisons prefers a segment: all say that both are as good",
                        where=path,
                        hint="a reward is learned from differences: compare other episodes, or longer segments")


def padded_columns(data: Dataset, names: Iterable[str]) -> dict[str, Tensor]:
    """Returns columns of all episodes, (N, T, ...). The last step is repeated up to the length of the longest one."""
    longest = max(data.lengths)

    def padded(name: str, episode: Episode) -> np.ndarray:
        column = np.asarray(episode.steps[name])[:len(episode)]
        return np.concatenate([column, np.repeat(column[-1:], longest - len(column), 0)])
    return {name: torch.from_numpy(np.stack([padded(name, e) for e in data])) for name in names}


class Comparisons(nn.Module):
    """All comparisons, in the memory of the CPU. They have no weights. `check_comparisons` accepts them.

    Attributes:
        columns: Each column, padded to the longest comparison, (N, T, ...).
        sign: 1 at the steps of the first segment, -1 at the steps of the second, and 0 where padded, (N, T).
        first_is_better: 1 if the first segment is better, 0 if the second is better, 0.5 if both are equally good,
            (N,).
    """

    def __init__(self, data: Dataset, names: tuple[str, ...]):
        super().__init__()
        self.columns = padded_columns(data, names)
        sign, better = torch.zeros(len(data), max(data.lengths)), []
        for number, episode in enumerate(data):
            segment, preference = (np.reshape(episode.steps[name], -1)[:len(episode)] for name in (SEGMENT, PREFERENCE))
            sign[number, :len(episode)] = torch.from_numpy(1.0 - 2.0 * (segment > 0)).float()
            score = float(preference[0]) / BETTER
            better.append(1 - score if segment[0] else score)
        self.sign, self.first_is_better = sign, torch.tensor(better)

    def draw(self, count: int, rng: Generator) -> Tensor:
        """Returns the numbers of random comparisons, (count,)."""
        return torch.randint(len(self.sign), (count,), generator=rng, device=rng.device).cpu()

    def step_columns(self, numbers: Tensor, device: torch.device) -> dict[str, Tensor]:
        """Returns the columns of all steps of comparisons, padded steps too, (B * T, 1, ...)."""
        return {k: v[numbers].flatten(0, 1).unsqueeze(1).to(device) for k, v in self.columns.items()}
