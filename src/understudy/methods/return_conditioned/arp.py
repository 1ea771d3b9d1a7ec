from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn import functional as F

from ... import config
from ...checkpoint import (
    RETRAIN,
    BuiltModule,
    CheckpointModule,
    FromStage,
    check_trained,
    load_module,
    load_weights,
    save_module,
    save_weights,
)
from ...core import Above, AtLeast, AtMost, Batch, ConfigError, DataError, Feature, Schema, UserError, part, role
from ...data.codec import CodecModule
from ...data.column_changes import ColumnChange, LastAction, target_return, with_column
from ...data.episode import Dataset, Episode
from ...data.text_columns import TaskText
from ...files import read_json, write_json
from ...learn.algorithm import Algorithm, Net, loss
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.method import Method, Stage
from ...learn.optimizer import OptimizerConfig
from ...nets.base import Encoder
from ...nets.encoders import TokenEncoder
from ...nets.feed_forward import feed_forward_layers
from ...policy import Policy, PolicyConfig
from ..needs import NUMBERS_OR_CLASSES
from ..registry import method
from .decision_transformer import decision_transformer

ObservationScorer = Callable[[Mapping[str, Tensor]], Tensor]  # {column: (B, ...)} -> (B,), higher is better


class CalibratedScorer(CheckpointModule):
    """Scorer of observations that is calibrated on the training data, so that its rewards there are at least 0.

    Args:
        scorer: Called with the columns of single observations, {name: (B, ...)}, returns their scores, (B,). A module
            of a checkpoint, or a module-level function.

    Attributes:
        minimum: The lowest score of the training data, which is subtracted from each score.
        target_return: The return to ask for while acting.
    """

    minimum: Tensor
    target_return: Tensor

    def __init__(self, scorer: ObservationScorer):
        super().__init__()
        self.scorer = scorer
        self.register_buffer("minimum", torch.zeros(()))
        self.register_buffer("target_return", torch.zeros(()))

    @torch.no_grad()
    def calibrate(self, data: Dataset, quantile: float) -> CalibratedScorer:
        """Sets the minimum and the target return from episodes.

        Args:
            data: The training data of the policy.
            quantile: Quantile of the returns that becomes the target return.
        """
        scores = [self.scores(episode) for episode in data]
        minimum = self.minimum = torch.tensor(min(float(s.min()) for s in scores))
        returns = [float((s[: len(e)] - minimum).sum()) for s, e in zip(scores, data, strict=True)]
        self.target_return = torch.tensor(np.quantile(returns, quantile), dtype=torch.float32)
        return self

    @torch.no_grad()
    def scores(self, episode: Episode) -> Tensor:
        """Returns the scores of all observations of an episode, (T,) or (T+1,), on the CPU."""
        observed = {k: torch.tensor(np.asarray(v), device=self.minimum.device) for k, v in episode.steps.items()
                    if role(k) == "observation" and np.asarray(v).dtype.kind in "biuf"}
        rows = min(len(v) for v in observed.values())
        scores = self.scorer({k: v[:rows] for k, v in observed.items()}).float().cpu()
        if scores.shape != (rows,):
            raise UserError(f"it gives scores of shape {tuple(scores.shape)} for {rows} observations",
                            where=str(self.scorer), hint="return one number for each observation")
        return scores

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns the reward of single observations, (B,): the score minus the minimum."""
        return self.scorer({k: v.to(self.minimum.device) for k, v in obs.items()}).float() - self.minimum

    def save(self, folder):
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if isinstance(self.scorer, CheckpointModule):
            save_module(self.scorer, folder / "scorer")
        write_json(folder / "scorer.json", None if isinstance(self.scorer, CheckpointModule)
                   else config.dump(self.scorer))
        save_weights(self, folder)

    @staticmethod
    def load(folder, trust=(), device="cpu"):
        folder = Path(folder)
        document = read_json(folder / "scorer.json", RETRAIN)
        scorer: Any = (load_module(folder / "scorer", trust, device) if document is None else
                       config.load(document, ("understudy", *trust), str(folder / "scorer.json")))
        module = CalibratedScorer(scorer)
        load_weights(module, folder, RETRAIN, "scorer")
        return module.eval().to(device)


@part
class ScoredReturn(ColumnChange):
    """Adds a column of returns to go, (T+1, 1), of rewards that a scorer gives. The data need no rewards.

    The reward of a step is the score of its observation, such as the similarity to the words of the task, minus the
    lowest score of the training data. While acting, the column is the target return at the first step, then reduced by
    the reward of each observation. So the column tells how far the task has come, even if the words or the places of
    things are new.

    Args:
        scorer: The stage that calibrated the scorer (see `ScorerCalibration`), or the module.
        target: Target return while acting. None: the target of the scorer, which is a quantile of the returns in the
            training data.

    References:
        Kim et al. (2023), Guide Your Agent with Adaptive Multimodal Rewards (ARP), arXiv:2309.10790.
    """

    scorer: FromStage | CalibratedScorer
    into: str = "observation.return_to_go"
    target: float | None = None

    def __call__(self, episode: Episode) -> Episode:
        scorer = self._trained()
        reward = (scorer.scores(episode) - scorer.minimum.cpu()).double().numpy()[: len(episode)]
        total = np.append(reward[::-1].cumsum()[::-1], 0).astype(np.float32)[:, None]
        return with_column(episode, self.into, total, Feature("float32", (1,)))

    def check_online(self):
        self._trained()

    def start(self, obs, key):
        target = float(self._trained().target_return) if self.target is None else self.target
        return {"value": target_return(obs, self.into, target, len(key)), "reward": torch.zeros(len(key), 1)}

    @torch.no_grad()
    def step(self, obs, last, state):
        value = torch.where(last.exists[:, None], state["value"] - state["reward"], state["value"])
        return {self.into: value}, {"value": value, "reward": self._trained()(obs).reshape(-1, 1).to(value)}

    def _trained(self) -> CalibratedScorer:
        return check_trained(self.scorer, CalibratedScorer, "ScoredReturn.scorer")


TASK = "observation.task"


@part
class TaskContrast(Algorithm):
    """Trains a scorer that tells how well an observation fits the words of a task, as CLIP does for images.

    Two networks embed the observation and the words at unit length. The score is their cosine similarity, divided by
    a temperature. The loss finds the words of each observation among all words of the batch, and the observation that
    belongs to the words among all observations. Equal words are not negatives of each other.

    It is the learner of a stage. Its checkpoint has the module "scorer". The policy of the stage is not trained.

    Args:
        task: Column of the words: a text or a class.
        encoder: Encoder of the observation and of the words. Each has separate weights.
        hidden: Widths of the hidden layers after the encoders.
        batch_size: Observations per batch.

    References:
        Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision, arXiv:2103.00020.
        Kim et al. (2023), Guide Your Agent with Adaptive Multimodal Rewards (ARP), arXiv:2309.10790, who take CLIP.
    """

    task: str = TASK
    encoder: Encoder = field(default_factory=TokenEncoder)
    hidden: Annotated[tuple[int, ...], AtLeast(1)] = (128,)
    size: Annotated[int, AtLeast(1)] = 32
    temperature: Annotated[float, Above(0)] = 0.1
    steps: Annotated[int, AtLeast(0)] = 3000
    batch_size: Annotated[int, AtLeast(1)] = 128
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if self.task in data.features():
            words = (np.asarray(episode.steps[self.task]) for episode in data)
            first = next(words)[0]
            if all((other == first).all() for other in words):
                raise DataError("all episodes have the same words, so that a scorer cannot learn what they say",
                                where=f"column {self.task!r}",
                                hint="give the episodes their tasks in words: the column or the metadata 'task'")
        spec = TaskSimilaritySpec(self.task, self.encoder, self.hidden, self.size, self.temperature, policy.config)
        scorer = TaskSimilarity(spec, policy.features, policy.codec)
        return {"scorer": Net(scorer, self.optimizer), "policy": Net(policy)}

    @loss("scorer")
    def contrastive_loss(self, nets: Any, batch: Batch, rng: Generator) -> Tensor:
        scene, words = nets.scorer.embed({k: v[:, -1] for k, v in batch.obs.items()})
        logits = scene @ words.T / self.temperature
        text = batch.obs[self.task][:, -1].flatten(1)
        same = (text[:, None] == text[None]).all(-1) & ~torch.eye(len(text), dtype=torch.bool, device=text.device)
        logits, rows = logits.masked_fill(same, -torch.inf), torch.arange(len(text), device=text.device)
        return (F.cross_entropy(logits, rows, reduction="none") + F.cross_entropy(logits.T, rows, reduction="none")) / 2


@dataclass(frozen=True)
class TaskSimilaritySpec:
    """Settings and columns that determine a scorer `TaskSimilarity`, without its weights.

    Attributes:
        policy: The policy of the stage. The scorer has its codec and its inputs.
    """

    task: str
    encoder: Encoder
    hidden: tuple[int, ...]
    size: int
    temperature: float
    policy: PolicyConfig


class TaskSimilarity(BuiltModule):
    """Scorer by the similarity of an observation to the words of a task, divided by a temperature.

    Args:
        features: The columns of the policy of the stage.
        codec: Codec module to share with the policy. None builds a new one without statistics.
    """

    kind, description = "scorer", TaskSimilaritySpec

    def __init__(self, about: TaskSimilaritySpec, features: Schema, codec: CodecModule | None = None):
        super().__init__(about, features)
        policy = about.policy
        inputs = tuple(k for k in features if k != policy.target)
        observed = {k: features[k] for k in inputs if k != about.task}
        if about.task not in inputs or not observed:
            raise ConfigError(f"the policy reads {', '.join(inputs)}, and the scorer compares {about.task!r} with the "
                              "other columns", where="TaskContrast.task", hint="name the column of the words")
        self.codec = policy.codec.build(features, inputs, policy.target) if codec is None else codec
        self.seen_encoder = about.encoder.build(observed, 1)
        self.task_encoder = about.encoder.build({about.task: features[about.task]}, 1)
        self.seen_layers, self.task_layers = (
            feed_forward_layers((net.tokens * net.width, *about.hidden, about.size))
            for net in (self.seen_encoder, self.task_encoder))

    def embed(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the embeddings of observation and words, (B, ...) by column, at unit length, (B, size) each."""
        coded = self.codec.encode_obs({k: v.unsqueeze(1) for k, v in obs.items() if k.removesuffix("?") in
                                       self.features})
        observation, task = self.seen_encoder(coded).flat(), self.task_encoder(coded).flat()
        return F.normalize(self.seen_layers(observation), dim=-1), F.normalize(self.task_layers(task), dim=-1)

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns the score of single observations, (B,)."""
        observation, task = self.embed(obs)
        return (observation * task).sum(-1) / self.about.temperature


@part
class ScorerCalibration(Algorithm):
    """Trains nothing: it stores a frozen scorer's lowest score and typical return on the training data.

    It is the learner of a stage. Its checkpoint has the module "reward", which `ScoredReturn` reads. Nothing is
    trained, neither the scorer nor the policy of the stage.

    Args:
        scorer: The stage that trained a scorer, or a module-level function that gives each observation a score.
        quantile: Quantile of the returns of the episodes that is asked for while acting. 1 is the highest.
        steps: Not used.
        batch_size: Not used.
    """

    scorer: FromStage | ObservationScorer
    quantile: Annotated[float, AtLeast(0), AtMost(1)] = 0.9
    steps: Annotated[int, AtLeast(0)] = 0
    batch_size: Annotated[int, AtLeast(1)] = 1

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if isinstance(self.scorer, FromStage):
            raise UserError(f"{self.scorer} is not a trained module", where="ScorerCalibration.scorer",
                            hint="train a method that has this stage")
        reward = CalibratedScorer(self.scorer).to(policy.device).calibrate(data, self.quantile)
        return {"policy": Net(policy), "reward": Net(reward)}


@method("Kim et al. 2023 (ARP), arXiv 2309.10790, whose scorer is CLIP, frozen or trained further on the "
        "demonstrations, and which also predicts the return. Here a scorer is trained on the demonstrations; take one "
        "that knows more layouts with --stage scorer=RUN", rows=("237",),
        needs=(NUMBERS_OR_CLASSES, "tasks in words that differ between episodes"),
        when="if the task in words moves to new places; with a given scorer it did well here, with a learned one worse "
             "than cloning.")
def arp(n_obs_steps: int = 4, target_return: float | None = None, quantile: float = 0.9,
        features: Schema | None = None) -> Method:
    """Adaptive return-conditioned policy: rewards are how well each observation fits the words of the task.

    Args:
        n_obs_steps: Number of steps of the history.
        target_return: Desired return while acting. None: the quantile of the demonstrations.
        quantile: Quantile of the returns of the demonstrations. 1 is the highest.
    """
    base = decision_transformer(n_obs_steps, features=features)
    words = () if features is not None and TASK in features else (TaskText(),)
    scene, reward = PolicyConfig(base.policy.head), ScorerCalibration(FromStage("scorer", "scorer"), quantile)
    stages = (Stage("scorer", Method(scene, learner=TaskContrast(), transforms=words)),
              Stage("reward", Method(scene, learner=reward, transforms=words)))
    transforms = (*words, LastAction(), ScoredReturn(FromStage("reward", "reward"), target=target_return))
    learner = BehaviorCloning(10_000, 64, optimizer=OptimizerConfig(lr=5e-4, weight_decay=5e-5, warmup_steps=500))
    return replace(base, learner=learner, transforms=transforms, stages=stages)
