"""Learns an encoder from similarity queries: which two of three segments a person finds most similar."""

from __future__ import annotations

from dataclasses import field
from typing import Annotated, Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from ...core import Above, AtLeast, Batch, ConfigError, DataError, Unsupported, part
from ...data.episode import Dataset
from ...policy import Policy
from ..algorithm import Algorithm, Net, loss
from ..optimizer import OptimizerConfig
from .preference_reward import padded_columns

SIMILARITY = "similarity"  # column of a query: 0 and 1 in the steps of the two similar segments, 2 in the third


def triplet_loss(encodings: Tensor, margin: float) -> Tensor:
    """Returns ``max(0, |a - b|^2 - |a - c|^2 + margin) + max(0, |a - b|^2 - |b - c|^2 + margin)``, (B,).

    Args:
        encodings: Encodings of two similar segments, a and b, and of a third segment, c, (B, 3, D).
    """
    a, b, c = encodings.unbind(1)
    similar, *others = ((x - y).square().sum(-1) for x, y in ((a, b), (a, c), (b, c)))
    return sum(((similar - other + margin).relu() for other in others), torch.zeros_like(similar))


def check_queries(data: Dataset) -> None:
    """Raises DataError for episodes that do not have exactly three segments."""
    for number, episode in zip(data.indices, data, strict=True):
        if (values := np.unique(episode.steps[SIMILARITY][:len(episode)]).tolist()) != [0, 1, 2]:
            raise DataError(f"its values are {', '.join(f'{value:g}' for value in values)}",
                            where=f"{data.metadata.get('path') or 'data set'}, episode {number}, column {SIMILARITY!r}",
                            hint="let it be 0 and 1 in the two similar segments, and 2 in the third")


@part
class SimilarityLearning(Algorithm):
    """Trains the encoder of a policy so that distances of encodings agree with what a person finds similar (SIRL).

    The encoding of a segment is the mean over its steps. An episode of the data is a query: three segments end to end,
    with the column `SIMILARITY`. It is the learner of a stage, like `RepresentationLearning`, and trains no head.

    Args:
        batch_size: Number of queries in each batch.
        margin: By how much the squared distance to the third segment should be larger.

    References:
        Bobu et al. (2023), SIRL: Similarity-based Implicit Representation Learning, arXiv:2301.00810.
    """

    steps: Annotated[int, AtLeast(0)] = 1500
    batch_size: Annotated[int, AtLeast(1)] = 64
    margin: Annotated[float, Above(0)] = 1.0
    optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=1e-3))
    extra = (SIMILARITY,)

    def networks(self, policy: Policy, data: Dataset) -> dict[str, Net]:
        if not any(p.requires_grad for p in policy.encoder.parameters()):
            raise ConfigError(f"{type(policy.config.encoder).__name__} has no weights to train",
                              where="SimilarityLearning", hint="use an encoder that has, such as TokenEncoder")
        if policy.window.n_obs_steps > 1:
            raise Unsupported("similarity is about single steps, and the policy reads several",
                              where="SimilarityLearning", hint="use a policy that reads one observation")
        return {"policy": Net(policy, self.optimizer), "queries": Net(_Queries(data, policy.inputs))}

    @loss("policy")
    def similarity_loss(self, nets: Any, batch: Batch, rng: Generator) -> tuple[Tensor, dict[str, Tensor]]:
        """Returns the loss of as many random queries as the batch has rows, (B,)."""
        queries = nets.queries
        drawn = torch.randint(len(queries.weights), (len(batch),), generator=rng, device=rng.device).cpu()
        obs = {k: v[drawn].flatten(0, 1).unsqueeze(1).to(rng.device) for k, v in queries.columns.items()}
        steps = nets.policy.training_context(obs, rng).flat().unflatten(0, (len(drawn), -1))
        encodings = queries.weights[drawn].to(rng.device) @ steps
        losses = triplet_loss(encodings, self.margin)
        return losses, {"satisfied": (losses == 0).float(), "encoding_std": encodings.flatten(0, 1).std(0)}


class _Queries(nn.Module):
    """All similarity queries, in the memory of the CPU.

    Attributes:
        columns: What the encoder reads, padded to the longest query, (N, T, ...).
        weights: Weights of the steps in the mean of each of the three segments, (N, 3, T).
    """

    def __init__(self, data: Dataset, names: tuple[str, ...]):
        super().__init__()
        self.columns = padded_columns(data, names)
        self.weights = torch.zeros(len(data), 3, max(data.lengths))
        for row, episode in zip(self.weights, data, strict=True):
            segment = torch.from_numpy(np.reshape(episode.steps[SIMILARITY], -1)[:len(episode)].copy())
            belongs = (segment.round() == torch.arange(3).unsqueeze(1)).float()
            row[:, :len(episode)] = belongs / belongs.sum(1, keepdim=True).clamp(min=1)
