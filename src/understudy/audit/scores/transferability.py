"""Transferability of a demonstration: whether a policy that learned from similar ones could have done the same."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.cluster.vq import kmeans2

from ...envs.registry import make
from ...evaluate.evaluation import tuning_seed
from ...evaluate.rollout import rollout
from ...execute.chunking import RecedingHorizon
from ...heads.likelihood.regression import Regression
from ...learn.behavior_cloning import BehaviorCloning
from ...learn.fit_method import fit_method
from ...learn.method import Method
from ...learn.optimizer import OptimizerConfig
from ...policy import PolicyConfig
from ..base import Score
from .network_scores import NetworkEnsemble
from .step_table import StepTable, standardized


def _cloning() -> Method:
    return Method(PolicyConfig(Regression()), RecedingHorizon(),
                  BehaviorCloning(steps=500, optimizer=OptimizerConfig(lr=3e-3)))


@dataclass(frozen=True)
class Transferability(Score):
    """Score from 0 to 1 of how much an episode looks like what an imitator of similar episodes would do.

    It finds demonstrations that the imitator cannot follow, because the demonstrator is faster or passes through what
    stops the imitator. Episodes are grouped by their states, and each group has its own imitator. So an episode is not
    rated low for doing the task in another way than most.

    A discriminator of transitions from a state to the next one is trained to tell the episodes of a group from the
    episodes of its imitator. Its logit says how likely a transition is the imitator's. The score is the sigmoid of the
    mean logit over an episode's transitions. An imitator clones actions here; the imitator of the paper is trained by
    GAIfO.

    Args:
        env: Name of the environment in which the imitator acts.
        imitator: Method that learns each group.
        n_modes: Largest number of groups.
        n_episodes: Number of episodes of each imitator.
        inputs: Columns of the state. By default all numeric "observation." columns.
        trust: Packages that `env` may load code from.

    References:
        Qiu et al. (2022), Out-of-Dynamics Imitation Learning from Multimodal Demonstrations, arXiv:2211.06839.
    """

    env: str
    imitator: Method = field(default_factory=_cloning)
    n_modes: int = 5
    n_episodes: int = 20
    seed: int = 0
    inputs: tuple[str, ...] = ()
    trust: tuple[str, ...] = ()

    def __call__(self, data):
        table = StepTable.from_data(data, self.inputs)
        transitions, values = _transitions(table), np.full(len(data), np.nan)
        rated = np.flatnonzero([len(t) for t in transitions])
        modes = mode_labels([transitions[i][:, :table.state.shape[1]] for i in rated], self.n_modes, self.seed)
        with closing(make(self.env, self.n_episodes, self.trust)) as env:
            for mode in np.unique(modes):
                members = rated[modes == mode]
                actor = fit_method(self.imitator, data.select(members), self.seed).actor
                own = rollout(actor, env, self.n_episodes, tuning_seed(self.seed))
                values[members] = imitator_likeness(
                    [transitions[i] for i in members], _transitions(StepTable.from_data(own, like=table)), self.seed)
        return values


def _transitions(table: StepTable) -> list[np.ndarray]:
    """Returns scaled states and their changes to the next state, (T, 2 S) for each episode."""
    rows = np.concatenate([table.state, table.next_state - table.state], 1)
    ends = np.cumsum(table.length)[:-1]
    return [r[is_known] for r, is_known in zip(np.split(rows, ends), np.split(table.has_next, ends), strict=True)]


def mode_labels(states: Sequence[np.ndarray], n_modes: int, seed: int, n_moments: int = 6) -> np.ndarray:
    """Groups sequences of states by k-means of a contrastive embedding (NT-Xent).

    Two samples of a sequence, at moments with random offsets, are embedded close together, and other sequences far.

    Args:
        states: The states of each sequence, (T, S).

    Returns:
        Number of the group of each sequence, (E,).
    """
    rng = np.random.default_rng(seed)

    def sample() -> torch.Tensor:
        moments = [((np.arange(n_moments) + rng.random()) / n_moments * len(s)).astype(int) for s in states]
        return torch.as_tensor(np.stack([s[at].ravel() for s, at in zip(states, moments, strict=True)]))
    net = NetworkEnsemble(n_moments * states[0].shape[1], 8, seed=seed)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)
    for _ in range(150):
        z = torch.nn.functional.normalize(net(torch.cat([sample(), sample()]))[0], dim=1)
        similarity = z @ z.T / 0.3 - 1e9 * torch.eye(len(z))
        loss = torch.nn.functional.cross_entropy(similarity, torch.arange(len(z)).roll(len(states)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        z = torch.nn.functional.normalize(net(sample())[0], dim=1).numpy()
    return kmeans2(z, min(n_modes, len(z)), minit="++", seed=seed)[1]


def imitator_likeness(demonstrations: Sequence[np.ndarray], own: Sequence[np.ndarray], seed: int) -> np.ndarray:
    """Returns how much each demonstration looks like one of an imitator: sigmoid of a classifier's mean logit, (E,).

    Args:
        demonstrations: Transitions of each demonstration, (T, D).
        own: Transitions of each episode of the imitator, (T, D).
    """
    n_shown, n_own = (sum(map(len, episodes)) for episodes in (demonstrations, own))
    x = torch.as_tensor(standardized(np.concatenate([*demonstrations, *own])).astype(np.float32))
    label = torch.cat([torch.zeros(n_shown), torch.ones(n_own)])
    weight = torch.where(label > 0, 0.5 * len(x) / n_own, 0.5 * len(x) / n_shown)
    net, rng = NetworkEnsemble(x.shape[1], 1, seed=seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(net.parameters(), 2e-3, weight_decay=1e-3)
    for _ in range(200):
        at = torch.randint(len(x), (256,), generator=rng)
        logit = net(x[at])[0, :, 0]
        loss = torch.nn.functional.binary_cross_entropy_with_logits(logit, label[at], weight[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        logit = net(x[:n_shown])[0, :, 0].numpy()
    means = [part.mean() for part in np.split(logit, np.cumsum([len(d) for d in demonstrations])[:-1])]
    return 1 / (1 + np.exp(-np.array(means)))
