"""Alignment of demonstrations: steps without similar steps in other demonstrations, in the same order, are extraneous.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..base import StepScore
from .network_scores import NetworkEnsemble
from .step_table import StepTable


@dataclass(frozen=True)
class Alignment(StepScore):
    """Score that rates a step 1 if it aligns with other demonstrations, and 0 if it is extraneous.

    For example, a person who scratches their head during the task does something that other demonstrations do not show.

    First, states and action directions are embedded with temporal cycle consistency: the way from a step to the most
    similar step of another demonstration and back must end where it started.

    Then a pointer moves through each demonstration. In each demonstration, one of the remaining steps wins a vote: the
    current step of every other demonstration votes for the remaining step that is most similar to it. The mean of the
    winning steps is the reference. The pointer moves to the earliest of the `tolerance` steps ahead that are most
    similar to the reference.

    Unlike in the authors' code, no demonstration is assumed to be clean, and embeddings have length 1, because long
    ones would win every vote.

    Args:
        tolerance: Number of most similar steps among which the pointer moves to the earliest one.
        frames: Number of steps of each demonstration in a cycle.
        n_references: Largest number of demonstrations that vote.
        inputs: Columns of the state. By default all numeric "observation." columns.

    References:
        Zheng et al. (2023), Extraneousness-Aware Imitation Learning. Dwibedi et al. (2019), Temporal Cycle-Consistency
        Learning.
    """

    tolerance: int = 2
    frames: int = 40
    n_updates: int = 400
    n_components: int = 16
    n_references: int = 40
    seed: int = 0
    inputs: tuple[str, ...] = ()

    def score_steps(self, data):
        table = StepTable.from_data(data, self.inputs)
        if (table.length > 0).sum() < 3:  # no voters
            return table.split(np.full(len(table), np.nan))
        walked = aligned_steps([e for e in self.embed(table) if len(e)], self.tolerance, self.n_references, self.seed)
        return table.split(np.concatenate(walked).astype(float))

    def embed(self, table: StepTable) -> list[np.ndarray]:
        """Computes embeddings of the steps of each episode, (T, D), with length 1."""
        direction = table.action / np.maximum(np.linalg.norm(table.action, axis=1, keepdims=True), 1e-6)
        x = torch.as_tensor(np.concatenate([table.state, direction], 1))
        first = np.cumsum(table.length) - table.length
        net = NetworkEnsemble(x.shape[1], self.n_components, seed=self.seed)
        optim = torch.optim.Adam(net.parameters(), 1e-3)
        rng = np.random.default_rng(self.seed)
        for _ in range(self.n_updates):
            pairs = rng.choice(np.flatnonzero(table.length), (8, 2))
            at = np.stack([[first[e] + np.sort(rng.integers(0, table.length[e], self.frames)) for e in pair]
                           for pair in pairs])  # (8, 2, frames)
            z = net(x[at].flatten(0, 2))[0].unflatten(0, at.shape)
            loss = cycle_consistency_loss(z[:, 0], z[:, 1])
            optim.zero_grad()
            loss.backward()
            optim.step()
        with torch.no_grad():
            z = torch.nn.functional.normalize(net(x)[0], dim=1).numpy()
        return np.split(z, np.cumsum(table.length)[:-1])


def cycle_consistency_loss(u: Tensor, v: Tensor) -> Tensor:
    """Cycle-consistency loss: the mean squared distance between a step of `u` and the end of the way to its soft
    nearest step in `v` and back, as a fraction of the length.

    Args:
        u: Embeddings of demonstrations, (P, F, D).
        v: Embeddings of the demonstrations that they are paired with, (P, F, D).
    """
    nearest = torch.softmax(-(u.unsqueeze(2) - v.unsqueeze(1)).square().sum(-1), -1) @ v
    back = torch.softmax(-(nearest.unsqueeze(2) - u.unsqueeze(1)).square().sum(-1), -1)
    place = torch.arange(u.shape[1], dtype=u.dtype)
    return ((back @ place - place) / u.shape[1]).square().mean()


def aligned_steps(
    embedded: Sequence[np.ndarray], tolerance: int = 2, voters: int = 40, seed: int = 0
) -> list[np.ndarray]:
    """Returns the steps of each demonstration that its pointer visits when demonstrations are aligned step by step.

    Args:
        embedded: Embeddings of each demonstration, (T, D).
        tolerance: Number of most similar steps among which the pointer moves to the earliest one.
        voters: Largest number of demonstrations that vote.

    Returns:
        For each demonstration, True at the visited steps, (T,).
    """
    n = len(embedded)
    place = np.zeros(n, int)
    kept = [np.zeros(len(e), bool) for e in embedded]
    for k in kept:
        k[0] = True
    rng = np.random.default_rng(seed)
    while any(p < len(e) - 1 for p, e in zip(place, embedded, strict=True)):
        asked = np.arange(n) if n <= voters else rng.choice(n, voters, replace=False)
        now = np.stack([embedded[i][place[i]] for i in asked])  # (V, D)
        winners = []
        for i in asked:
            remaining = embedded[i][place[i]:]
            votes = (now[asked != i] @ remaining.T).argmax(1)
            winners.append(remaining[np.bincount(votes).argmax()])
        reference = np.mean(winners, 0)
        for i in range(n):
            ahead = embedded[i][place[i] + 1:]
            if len(ahead):
                best = np.argsort(-(ahead @ reference), kind="stable")[:tolerance]
                place[i] += 1 + int(best.min())
                kept[i][place[i]] = True
    return kept
