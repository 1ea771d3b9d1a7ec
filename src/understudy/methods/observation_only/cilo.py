from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import numpy as np

from ...core import Above, Schema, UserError, part, role
from ...data.episode import Dataset, Episode
from ...data.mixture import ROUND, expert_episodes
from ...improve.collection import CollectionRounds
from ...improve.retention import RetentionRule
from ...learn.method import Method
from ..needs import PRACTICE, SOME_ACTIONS
from ..registry import method
from .bco import bco


def signature(path: np.ndarray) -> np.ndarray:
    """Computes the path signature of depth 2 of a path (T, D): its displacement and its areas, (D + D * D,)."""
    steps, before = np.diff(path, axis=0), path[:-1] - path[0]
    areas = before.T @ steps + steps.T @ steps / 2
    return np.concatenate([path[-1] - path[0], areas.ravel()])


@part
class SignatureGate(RetentionRule):
    """Retention rule that keeps the collected episodes that a classifier of path signatures takes for demonstrations.

    The classifier is a ridge regression on whole episodes of observed numbers and of time. Each episode is judged by a
    classifier that was fitted without it. Demonstrations and practice always stay. An episode that was kept once stays,
    too.

    Args:
        ridge: Strength of the ridge penalty, for standardized signatures.
        fooling: False keeps the episodes that the classifier tells from demonstrations, for comparisons.

    References:
        Gavenski et al. (2024), Explorative Imitation Learning: A Path Signature Approach for Continuous Environments,
        arXiv:2407.04856, whose classifier is a network that is trained on over the rounds.
    """

    ridge: Annotated[float, Above(0)] = 10.0
    fooling: bool = True

    def keep(self, data):
        rounds = np.array([-1 if (r := episode.metadata.get(ROUND)) is None else r for episode in data])
        expert, new = expert_episodes(data), np.flatnonzero(rounds == rounds.max())
        resembles = self.resemblance(data.select(expert), data.select(new)) > 0
        rejected = set(new[resembles != self.fooling].tolist())
        return data.select(i for i in range(len(data)) if i not in rejected)

    def resemblance(self, demonstrations: Dataset, own: Dataset) -> np.ndarray:
        """Returns how much each collected episode resembles a demonstration, (n,).

        The result is above 0 for an episode that is more like the demonstrations than like the collected episodes.
        """
        x = _signatures([*demonstrations, *own])
        y = np.r_[np.ones(len(demonstrations)) / len(demonstrations), -np.ones(len(own)) / len(own)] * len(x) / 2
        x = np.c_[x / np.sqrt(x.shape[1]), np.ones(len(x))]
        hat = x @ np.linalg.solve(x.T @ x + self.ridge / len(x) * np.eye(x.shape[1]), x.T)
        residual = (y - hat @ y) / (1 - np.diag(hat))  # of an episode that is left out
        return (y - residual)[len(demonstrations):]


def _signatures(episodes: list[Episode]) -> np.ndarray:
    """Returns the standardized path signatures of episodes, whose observations are standardized too."""
    names = [name for name, f in episodes[0].features().items() if role(name) == "observation" and f.kind == "vector"]
    if not names:
        raise UserError("there are no observations that are numbers", where="SignatureGate",
                        hint="use a method without path signatures, such as bco")
    paths = [np.concatenate([np.asarray(e.steps[name], float).reshape(len(e.steps[name]), -1) for name in names], 1)
             for e in episodes]
    longest, rows = max(map(len, paths)), np.concatenate(paths)
    spread = np.where(rows.std(0) > 0, rows.std(0), 1)
    table = np.stack([signature(np.c_[(p - rows.mean(0)) / spread, np.arange(len(p)) / longest]) for p in paths])
    scale = table.std(0)
    return (table - table.mean(0)) / np.where(scale > 0, scale, 1)


@method("Gavenski et al. 2024 (CILO), arXiv 2407.04856, with a ridge classifier, and without attention over one token",
        rows=("182",), needs=(SOME_ACTIONS, PRACTICE, "an environment"),
        when="if demonstrations have no actions, and nobody says which episodes of the practice succeed; a gain over "
             "bco is undecided.")
def cilo(n_rounds: int = 10, n_episodes: int = 10, features: Schema | None = None) -> Method:
    """BCO with noise in its labels, which keeps practice whose path resembles that of demonstrations.

    Args:
        n_rounds: Number of rounds in which the policy collects further practice.
    """
    method = bco(n_rounds, n_episodes, features)
    assert isinstance(method.collection, CollectionRounds)
    return replace(method, learner=replace(method.learner, label_noise=1.0),
                   collection=replace(method.collection, retention=SignatureGate()))
