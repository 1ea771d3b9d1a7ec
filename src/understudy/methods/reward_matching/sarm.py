from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field, replace
from typing import Annotated, Any, cast

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from ...core import AtLeast, AtMost, Batch, DataError, Schema, Unsupported, part
from ...data.episode import Dataset, Episode
from ...data.segments import (
    SEGMENTS,
    ColumnSegments,
    LabeledSegment,
    SegmentDetector,
    StoredSegments,
    check_segment,
    detect_segments,
)
from ...data.window import Window
from ...heads.likelihood.categorical import choose_head
from ...heads.likelihood.regression import Regression
from ...hints import command_line
from ...learn.algorithm import Algorithm, Engine, Net, loss, prepare
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...learn.rewards.reward_models import RewardModel, RewardModelConfig, RewardSpec
from ...nets.base import Encoder, product_dtype
from ...nets.encoders import ConcatEncoder, simplest_encoder
from ...nets.feed_forward import FeedForward, feed_forward_layers
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method

LABELS = "stage_progress"  # column, (T, 2): number of the stage, and the fraction of it that is done


@part
class StageReward(RewardModelConfig):
    """Reward model config: the progress of a task at a step, by its stage and how much of it is done.

    The progress is 0 at the first step of an episode and 1 after its last. A stage covers the mean fraction of the
    episodes that its segments have, so that the same situation has the same progress in slow and in fast episodes.

    Args:
        detector: Finds the segments of episodes, whose texts are the stages. None: the column `subtask`, or else the
            metadata `segments`, or, if the data have neither, one stage.
        n_frames: Number of observations that are read, the current one included.
        frame_gap: Number of steps between them.
        width: Width of the LSTM over the observations, and of the layer after it.
        encoder: Encodes one observation.
        stages: Names of the stages in their order. `build` finds them.
        fractions: What each stage covers, 1 together. `build` finds them.

    References:
        Chen et al. (2025), SARM: Stage-Aware Reward Modeling for Long Horizon Robot Manipulation, arXiv:2509.25358.
    """

    detector: SegmentDetector | None = None
    n_frames: Annotated[int, AtLeast(1)] = 8
    frame_gap: Annotated[int, AtLeast(1)] = 1
    width: Annotated[int, AtLeast(1)] = 128
    encoder: Encoder = field(default_factory=ConcatEncoder)
    stages: tuple[str, ...] = ()
    fractions: Annotated[tuple[float, ...], AtLeast(0)] = ()
    extra = ()
    compares = False

    def build(self, policy, data):
        if policy.window.n_obs_steps > 1 or policy.window.horizon > 1:
            raise Unsupported("the policy reads or plans several steps, but clones single ones here",
                              where="StageReward", hint="use a policy with Window(1, 1), and n_frames for the reward")
        detector = self.detector or _stored_labels(data)
        stages, fractions = ("",), (1.0,)
        if detector is not None:
            stages, fractions = _stages(detect_segments(data, detector), data)
        spec = RewardSpec.of(replace(self, detector=detector, stages=stages, fractions=fractions), policy)
        rows = (self.n_frames - 1) * self.frame_gap + 1
        model = StageModel(replace(spec, window=Window(rows, rows, 1 - rows)), policy.features, policy.codec)
        return model.to(policy.device)


def _stored_labels(data: Dataset) -> SegmentDetector | None:
    """Returns the detector of labeled segments that the data contain, if any."""
    if "subtask" in data.features():
        return ColumnSegments()
    return StoredSegments() if any(SEGMENTS in episode.metadata for episode in data) else None


def _stages(segments: Sequence[Sequence[LabeledSegment]], data: Dataset) -> tuple[tuple[str, ...], tuple[float, ...]]:
    """Returns the texts of all segments in order of their mean starts, and their mean share of the labeled steps."""
    starts: dict[str, list[float]] = {}
    shares: dict[str, float] = {}
    for number, inside, length in zip(data.indices, segments, data.lengths.tolist(), strict=True):
        if not inside:
            raise DataError("no step of the episode is labeled", where=f"episode {number}",
                            hint="label all episodes, or leave this one out: "
                                 + command_line("view", "make", "DATA", "--delete", number, "--out", "VIEW"))
        for index, one in enumerate(inside):
            check_segment(one, length, f"episode {number}, segment {index}")
        total = sum(one.stop - one.start for one in inside)
        for one in inside:
            starts.setdefault(one.task, []).append(one.start / length)
            shares[one.task] = shares.get(one.task, 0) + (one.stop - one.start) / total / len(data)
    stages = sorted(starts, key=lambda name: (float(np.mean(starts[name])), name))
    return tuple(stages), tuple(shares[name] for name in stages)


class StageModel(RewardModel):
    """The reward model that `StageReward` configures."""

    def __init__(self, about, features, codec=None):
        super().__init__(about, features, codec)
        config = self.config = cast(StageReward, about.config)
        n_stages = len(config.stages)
        self.encoder = config.encoder.build({k: features[k] for k in self.inputs}, 1)
        self.lstm = nn.LSTM(self.encoder.tokens * self.encoder.width, config.width, batch_first=True)
        self.stage = nn.Linear(config.width, n_stages)
        self.within = feed_forward_layers((config.width + n_stages, config.width, 1))

    def label(self, episode: Episode) -> Episode:
        """Adds the column `stage_progress`, (T, 2): the stage of each step, and the fraction of it that is done.

        What is before all segments is the start of the first stage, and what is between two the end of the earlier.
        """
        n, config = len(episode), self.config
        detector = config.detector
        inside = [LabeledSegment(0, n, "")] if detector is None else detector.detect(episode)
        labels = np.zeros((n, 2), np.float32)
        for one in sorted(inside, key=lambda one: one.start):
            if one.task not in config.stages:
                raise DataError(f"the stage {one.task!r} is in none of the first episodes", where=f"{config.detector}",
                                hint="train without a stream, so that all stages are known")
            steps = np.arange(n - one.start)
            labels[one.start:, 0] = config.stages.index(one.task)
            labels[one.start:, 1] = np.minimum(steps / (one.stop - one.start), 1)
        return episode.replace({LABELS: labels})

    def frames(self, obs: Mapping[str, Tensor], rng: Generator | None = None) -> Tensor:
        """Returns the vectors that are read of observations, (B, To, ...), for each that counts, (B, n_frames, D)."""
        gap = self.config.frame_gap
        coded = self.codec.encode_obs({k: obs[k][:, (obs[k].shape[1] - 1) % gap::gap] for k in self.inputs})
        shape = coded[self.inputs[0]].shape[:2]
        context = self.encoder({k: v.flatten(0, 1).unsqueeze(1) for k, v in coded.items()}, rng)
        return context.flat().unflatten(0, shape)

    def predict(self, frames: Tensor, stage: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the logits of the stages, (B, T, K), and the fraction of a stage that is done, (B, T).

        Args:
            stage: That stage, (B, T), or -1 for the most probable one. None for the most probable one everywhere.
        """
        hidden = self.lstm(frames.to(product_dtype(frames)))[0]
        logits = self.stage(hidden)
        predicted = logits.argmax(-1)
        stage = predicted if stage is None else torch.where(stage < 0, predicted, stage)
        read = torch.cat([hidden, one_hot(stage, logits.shape[-1]).to(hidden)], -1)
        return logits, self.within(read).squeeze(-1).sigmoid()

    def progress(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns how much of the task is done at the last of some observations, (B, To, ...), from 0 to 1, (B,)."""
        logits, done = self.predict(self.frames(obs))
        fractions = done.new_tensor(self.config.fractions)
        stage = logits[:, -1].argmax(-1)
        return (fractions.cumsum(0) - fractions)[stage] + fractions[stage] * done[:, -1]

    def reward(self, batch, policy):
        return (self.progress(batch.next) - self.progress(batch.obs)).unsqueeze(1)

    def forward(self, obs, plan):
        raise Unsupported("the reward is the progress that a step makes, which a plan does not tell",
                          where="StageReward", hint="give the reward to episodes: --reward RUN")


@method("Chen et al. 2025 (SARM), arXiv 2509.25358, with an LSTM on trained encoders in place of transformers on "
        "frozen CLIP, and without the task in words", needs=(NUMBERS_OR_CLASSES,),
        when="if episodes hesitate or go back, and nothing says where; then clone with `--progress RUN`.")
@part
class SARM(Algorithm):
    """Learns a reward for the progress of a task, in stages if the data name them, and clones all steps (SARM).

    The loss of an observation is the cross-entropy of its stage plus the squared error of the fraction of the stage
    that is done. That fraction is predicted for the recorded stage, or else for the predicted one. Histories are played
    on backwards from their end, so that progress can also fall.

    Args:
        reward: The model of progress, and the history that it reads.
        rewind: Probability that a history is played on backwards.
        max_rewind: Largest number of observations that are played backwards. It is drawn for each history.
        teacher: Probability that the stage is the recorded one.
        optimizer: Optimizer of the policy.
        reward_optimizer: Optimizer of the reward.
    """

    reward: StageReward = field(default_factory=StageReward)
    steps: Annotated[int, AtLeast(0)] = 5000
    batch_size: Annotated[int, AtLeast(1)] = 32
    rewind: Annotated[float, AtLeast(0), AtMost(1)] = 0.8
    max_rewind: Annotated[int, AtLeast(0)] = 4
    teacher: Annotated[float, AtLeast(0), AtMost(1)] = 0.75
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    reward_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3, weight_decay=1e-3))
    validates = False

    def method(self, features: Schema | None = None, column: str | None = None) -> Method:
        """Returns the method of this learner.

        Args:
            column: Column of text that names the stage of each step. None: the column `subtask`, or else the metadata
                `segments`, or, if the data have neither, one stage.
        """
        encoder = simplest_encoder(features)
        detector = self.reward.detector if column is None else ColumnSegments(column)
        return Method(PolicyConfig(choose_head(features, Regression()), FeedForward(), encoder),
                      learner=replace(self, reward=replace(self.reward, detector=detector, encoder=encoder)))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        return {"policy": Net(policy, self.optimizer),
                "reward": Net(self.reward.build(policy, data), self.reward_optimizer)}

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> StageEngine:
        return StageEngine(self, policy, seed, steps, data)

    @loss("reward")
    def progress_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the mean loss of the observations of each history, (B,)."""
        model = nets.reward
        frames, labels = model.frames(batch.obs, rng), batch.extra[LABELS][:, ::model.config.frame_gap]
        order, counts = self.rewound(*frames.shape[:2], rng)
        frames, stage, done = frames[:, order], labels[:, order, 0].long(), labels[:, order, 1]
        is_told = torch.rand(stage.shape, generator=rng, device=stage.device) < self.teacher
        logits, predicted = model.predict(frames, torch.where(is_told, stage, -1))
        error = (predicted - done).square()
        both = cross_entropy(logits.flatten(0, 1), stage.flatten(), reduction="none").reshape(stage.shape) + error
        return (both * counts).sum(1) / counts.sum(1), {
            "stage_accuracy": (logits[:, -1].argmax(-1) == stage[:, -1]).float(), "squared_error": error[:, -1]}

    @prepare
    def last_step(self, nets: Any, batch: Batch, rng: Generator) -> Batch:
        """Returns the last step of each history, which the policy clones."""
        return Batch({k: v[:, -1:] for k, v in batch.obs.items()}, batch.action[:, -1:], batch.mask[:, -1:])

    @loss("policy")
    def policy_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        return nets.policy.loss(batch, rng)

    def rewound(self, rows: int, n_frames: int, rng: Generator) -> tuple[Tensor, Tensor]:
        """Returns the order in which observations are read, forward and then back, (T,), and which count, (rows, T)."""
        n_back = min(self.max_rewind, n_frames - 1)
        order = [*range(n_frames), *range(n_frames - 2, n_frames - 2 - n_back, -1)]
        draws = torch.rand(2, rows, generator=rng, device=rng.device)
        lengths = torch.where(draws[0] < self.rewind, 1 + (draws[1] * n_back).long(), 0)
        steps = torch.arange(len(order), device=rng.device)
        return torch.tensor(order, device=rng.device), steps < n_frames + lengths[:, None]


class StageEngine(Engine):
    """Learner of `SARM`, whose batches are histories with labels of the stages."""

    def batch_sampler(self, data, sampling_weights=None):
        reward = self.nets.reward
        return reward.about.window.windows(data.map(reward.label), self.policy.inputs, self.policy.config.target,
                                           extra=(LABELS,), sampling_weights=sampling_weights)

    def update(self, batch: Batch) -> dict[str, float]:
        metrics = super().update(batch)
        return {**metrics, "loss": metrics["reward/loss"], "policy/loss": metrics["loss"]}
