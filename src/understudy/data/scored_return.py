"""Returns to go of rewards that a scorer of observations gives, in training and while acting."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import config
from ..checkpoint import (
    RETRAIN,
    CheckpointModule,
    FromStage,
    load_module,
    load_weights,
    read_document,
    save_module,
    save_weights,
)
from ..core import Feature, UserError, role
from ..files import write_json
from .column_changes import ColumnChange, target_return, with_column
from .episode import Dataset, Episode

ObservationScorer = Callable[[Mapping[str, Tensor]], Tensor]  # {column: (B, ...)} -> (B,), higher is better


class CalibratedScorer(CheckpointModule):
    """A scorer of observations with what it gives for the training data. Its rewards there are at least 0.

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
        self.minimum = torch.tensor(min(float(s.min()) for s in scores))
        returns = [float((s[: len(e)] - self.minimum).sum()) for s, e in zip(scores, data, strict=True)]
        self.target_return = torch.tensor(np.quantile(returns, quantile), dtype=torch.float32)
        return self

    @torch.no_grad()
    def scores(self, episode: Episode) -> Tensor:
        """Scores of all observations of an episode, (T,) or (T+1,)."""
        observed = {k: torch.as_tensor(np.asarray(v)) for k, v in episode.steps.items()
                    if role(k) == "observation" and np.asarray(v).dtype.kind in "biuf"}
        rows = min(len(v) for v in observed.values())
        scores = self.scorer({k: v[:rows] for k, v in observed.items()}).float()
        if scores.shape != (rows,):
            raise UserError(f"it gives scores of shape {tuple(scores.shape)} for {rows} observations",
                            where=str(self.scorer), hint="return one number for each observation")
        return scores

    def forward(self, obs: Mapping[str, Tensor]) -> Tensor:
        """Returns the reward of single observations, (B,): the score minus the minimum."""
        return self.scorer(obs).float() - self.minimum

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
        document = read_document(folder / "scorer.json", RETRAIN)
        scorer: Any = (load_module(folder / "scorer", trust, device) if document is None else
                       config.load(document, ("understudy", *trust), str(folder / "scorer.json")))
        module = CalibratedScorer(scorer)
        load_weights(module, folder, RETRAIN, "scorer")
        return module.eval().to(device)


@dataclass(frozen=True)
class ScoredReturn(ColumnChange):
    """Adds the return to go of rewards that a scorer gives, (T+1, 1). Neither data nor environment need rewards.

    The reward of a step is the score of its observation, such as the similarity to the words of the task, minus the
    lowest score of the training data. While acting, the column is the target return at the first step, then reduced by
    the reward of each observation. So it tells how far the task has come, also where the words or the places of things
    are new.

    Args:
        scorer: The stage that calibrated the scorer (see `ScorerCalibration`), or the module.
        into: Name of the new column.
        target: Target return while acting. None: that of the scorer, a quantile of the training data.

    References:
        Kim et al. (2023), Guide Your Agent with Adaptive Multimodal Rewards (ARP), arXiv:2309.10790.
    """

    scorer: FromStage | CalibratedScorer
    into: str = "observation.return_to_go"
    target: float | None = None

    def __call__(self, episode: Episode) -> Episode:
        scorer = self._trained()
        reward = (scorer.scores(episode) - scorer.minimum).double().numpy()[: len(episode)]
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
        if not isinstance(self.scorer, CalibratedScorer):
            raise UserError(f"{self.scorer} is not a trained module", where="ScoredReturn.scorer",
                            hint="train a method that has this stage, or give the module itself")
        return self.scorer
