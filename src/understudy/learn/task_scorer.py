"""Scorers of how well an observation fits the words of a task, and what they give for the training data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ..checkpoint import CheckpointModule, FromStage, load_built, save_built
from ..core import Batch, ConfigError, DataError, Schema, UserError, check_range
from ..data.codec import CodecModule
from ..data.episode import Dataset
from ..data.scored_return import CalibratedScorer, ObservationScorer
from ..nets.base import Encoder
from ..nets.encoders import TokenEncoder
from ..nets.feed_forward import feed_forward_layers
from ..policy import Policy, PolicyConfig
from .fit import LearnerConfig
from .gradient_learner import GradientLearner
from .optimizer import OptimizerConfig

TASK = "observation.task"


@dataclass(frozen=True)
class TaskContrast(LearnerConfig):
    """Trains a scorer that tells how well an observation fits the words of a task, as CLIP does for images.

    Two networks embed the observation and the words at unit length. The score is their cosine similarity, divided by
    a temperature. The loss finds the words of each observation among those of the batch, and the observation of each
    words. Equal words are no negatives of each other.

    It is the learner of a stage. Its checkpoint has the module "scorer". The policy of the stage is not trained.

    Args:
        task: Column of the words: a text or a class.
        encoder: Encoder of both. Each has its own.
        hidden: Widths of the hidden layers after the encoders.
        size: Number of components of the embeddings.
        temperature: Divides the similarity.
        steps: Number of updates.
        batch_size: Observations per batch.
        optimizer: Optimizer of the scorer.

    References:
        Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020.
        Kim et al. (2023), Guide Your Agent with Adaptive Multimodal Rewards (ARP), arXiv:2309.10790, who take CLIP.
    """

    task: str = TASK
    encoder: Encoder = field(default_factory=TokenEncoder)
    hidden: tuple[int, ...] = (128,)
    size: int = 32
    temperature: float = 0.1
    steps: int = 3000
    batch_size: int = 128
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))

    def __post_init__(self):
        check_range(self, "steps", at_least=0)
        check_range(self, "batch_size", "hidden", "size", at_least=1)
        check_range(self, "temperature", above=0)

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> TaskContrastLearner:
        if self.task in data.features():
            words = (np.asarray(episode.steps[self.task]) for episode in data)
            first = next(words)[0]
            if all((some == first).all() for some in words):
                raise DataError("all episodes have the same words, so that a scorer cannot learn what they say",
                                where=f"column {self.task!r}",
                                hint="give the episodes their tasks in words: the column or the metadata 'task'")
        return TaskContrastLearner(self, policy, seed, steps)


class TaskContrastLearner(GradientLearner):
    """Learner of `TaskContrast`."""

    config: TaskContrast

    def __init__(self, config: TaskContrast, policy: Policy, seed: int, steps: int):
        super().__init__(config, policy, seed, steps)
        spec = TaskSimilaritySpec(config.task, config.encoder, config.hidden, config.size, config.temperature,
                                  policy.config)
        self.scorer = self.register("scorer", TaskSimilarity(spec, policy.features, policy.codec), config.optimizer)
        self.register("policy", policy)

    def update(self, batch: Batch) -> dict[str, float]:
        self.minimize("scorer", self.loss, batch)
        return {name.removeprefix("scorer/"): value for name, value in self.end_update().items()}

    def loss(self, batch: Batch, rng: Generator) -> Tensor:
        """Returns the contrastive loss of each window, (B,)."""
        scene, words = self.scorer.embed({k: v[:, -1] for k, v in batch.obs.items()})
        logits = scene @ words.T / self.config.temperature
        text = batch.obs[self.config.task][:, -1].flatten(1)
        same = (text[:, None] == text[None]).all(-1) & ~torch.eye(len(text), dtype=torch.bool, device=text.device)
        logits, own = logits.masked_fill(same, -torch.inf), torch.arange(len(text), device=text.device)
        return (F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(logits.T, own, reduction="none")) / 2


@dataclass(frozen=True)
class TaskSimilaritySpec:
    """Everything but the weights and the columns that determines a scorer.

    Attributes:
        task: Column of the words.
        encoder: Encoder of the observation, and of the words.
        hidden: Widths of the hidden layers.
        size: Number of components of the embeddings.
        temperature: Divides the similarity.
        policy: The policy of the stage. The scorer has its codec and its inputs.
    """

    task: str
    encoder: Encoder
    hidden: tuple[int, ...]
    size: int
    temperature: float
    policy: PolicyConfig


class TaskSimilarity(CheckpointModule):
    """The similarity of an observation to the words of a task, divided by a temperature.

    Args:
        about: Networks and columns.
        features: The columns of the policy of the stage.
        codec: Codec module to share with the policy. None builds a new one without statistics.

    Raises:
        ConfigError: The policy does not read the words, or nothing else.
    """

    def __init__(self, about: TaskSimilaritySpec, features: Schema, codec: CodecModule | None = None):
        super().__init__()
        policy = about.policy
        self.about, self.features = about, dict(features)
        inputs = tuple(k for k in features if k != policy.target)
        seen = {k: features[k] for k in inputs if k != about.task}
        if about.task not in inputs or not seen:
            raise ConfigError(f"the policy reads {', '.join(inputs)}, and the scorer compares {about.task!r} with the "
                              "other columns", where="TaskContrast.task", hint="name the column of the words")
        self.codec = policy.codec.build(features, inputs, policy.target) if codec is None else codec
        self.seen_encoder = about.encoder.build(seen, 1)
        self.task_encoder = about.encoder.build({about.task: features[about.task]}, 1)
        self.seen_layers, self.task_layers = (
            feed_forward_layers((net.tokens * net.width, *about.hidden, about.size))
            for net in (self.seen_encoder, self.task_encoder))

    def embed(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the embeddings of observation and words at unit length, (B, size) each.

        Args:
            obs: Single observations by column, (B, ...).
        """
        coded = self.codec.encode_obs({k: v.unsqueeze(1) for k, v in obs.items() if k.removesuffix("?") in
                                       self.features})
        seen, task = self.seen_encoder(coded).flat(), self.task_encoder(coded).flat()
        return F.normalize(self.seen_layers(seen), dim=-1), F.normalize(self.task_layers(task), dim=-1)

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns the score of single observations, (B,)."""
        seen, task = self.embed(obs)
        return (seen * task).sum(-1) / self.about.temperature

    def save(self, folder):
        save_built(self, folder, "scorer", self.about, self.features)

    @staticmethod
    def load(folder, trust=(), device="cpu"):
        return load_built(TaskSimilarity, folder, "scorer", TaskSimilaritySpec, trust, device)


@dataclass(frozen=True)
class ScorerCalibration(LearnerConfig):
    """Stores what a frozen scorer gives for the training data: its lowest score and the return to ask for.

    It is the learner of a stage. Its checkpoint has the module "reward", which `ScoredReturn` reads. Nothing is
    trained, neither the scorer nor the policy of the stage.

    Args:
        scorer: The stage that trained a scorer, or a module-level function that gives each observation a score.
        quantile: Quantile of the returns of the episodes that is asked for while acting. 1 is the highest.
        steps: Not used.
        batch_size: Not used.
    """

    scorer: FromStage | ObservationScorer
    quantile: float = 0.9
    steps: int = 0
    batch_size: int = 1

    def __post_init__(self):
        check_range(self, "quantile", at_least=0, at_most=1)
        check_range(self, "steps", at_least=0)
        check_range(self, "batch_size", at_least=1)

    def build(self, policy: Policy, seed: int, steps: int, data: Dataset) -> ScorerCalibrationLearner:
        if isinstance(self.scorer, FromStage):
            raise UserError(f"{self.scorer} is not a trained module", where="ScorerCalibration.scorer",
                            hint="train a method that has this stage")
        return ScorerCalibrationLearner(self, policy, seed, steps, data)


class ScorerCalibrationLearner(GradientLearner):
    """Learner of `ScorerCalibration`."""

    config: ScorerCalibration

    def __init__(self, config: ScorerCalibration, policy: Policy, seed: int, steps: int, data: Dataset):
        super().__init__(config, policy, seed, steps)
        assert not isinstance(config.scorer, FromStage)  # the config refuses it
        self.register("policy", policy)
        self.register("reward", CalibratedScorer(config.scorer).calibrate(data, config.quantile))

    def update(self, batch: Batch) -> dict[str, float]:
        return self.end_update()
