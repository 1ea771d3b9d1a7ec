"""Chooses among several plans by how well they reproduce the executed actions."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from ..core import AtLeast, ConfigError, part
from .base import check_numeric_actions, check_samples
from .chunking import ChunkedExecutor


@part
class PastVerification(ChunkedExecutor):
    """Executor that draws chunks that begin in the past, and takes the one whose past matches the executed actions.

    A policy with `Window(action_offset=-skip)` also predicts the last `skip` actions. They are known, so their mean
    squared error, in units of `planner.action_scale`, tells how well a sample has understood the history. Until `skip`
    actions have been executed, the first sample is taken. The actions are compared as this executor returned them,
    before a filter or the environment limits them.

    Args:
        skip: Number of steps of each chunk that lie in the past, at least 1: `Window(action_offset=-skip)`.
        n_samples: Number of chunks drawn for each decision, at least 2.

    References:
        Torne et al. (2025), Learning Long-Context Diffusion Policies via Past-Token Prediction, arXiv:2505.09561.
    """

    n_action_steps: Annotated[int, AtLeast(1)] = 1
    skip: int = 1
    n_samples: int = 10

    def __post_init__(self):
        if self.skip < 1 or self.n_samples < 2:
            raise ConfigError(f"skip is {self.skip} and n_samples {self.n_samples}, but there must be a past action "
                              "and two samples to compare", where="PastVerification",
                              hint="train with Window(action_offset=-skip), such as the methods ptp and "
                                   "diffusion-policy do, or use RecedingHorizon")

    def check_planner(self, planner):
        check_numeric_actions(planner, "PastVerification", "measures how far planned actions are from executed ones")
        check_samples(planner, "PastVerification")
        super().check_planner(planner)

    def start(self, planner, obs, key):
        state = super().start(planner, obs, key)
        executed = torch.zeros(len(key), self.skip, planner.action_dim, device=key.device)
        return {**state, "executed": executed, "n_executed": torch.zeros_like(key)}

    def accept_plan(self, planner, state, request, chunk, delay=0):
        executed = state["executed"][request.rows]
        best = self.agreement(chunk / planner.action_scale, executed / planner.action_scale, delay).argmax(1)
        best = torch.where(state["n_executed"][request.rows] >= self.skip, best, 0)
        chosen = chunk[torch.arange(len(best), device=best.device), best]
        return self.replace_chunk(state, request.rows, chosen, delay)

    def agreement(self, chunks: Tensor, executed: Tensor, delay: int = 0) -> Tensor:
        """Returns minus the mean squared error of the past steps of each chunk, (B, n).

        Args:
            chunks: The chunks in units of the action scale, (B, n, H, A).
            executed: The last `skip` executed actions in these units, oldest first, (B, skip, A).
            delay: Number of actions that were executed since the chunks were requested.
        """
        recalled = chunks[:, :, delay : delay + self.skip]
        return -(recalled - executed[:, None, : recalled.shape[2]]).square().mean((2, 3))

    def next_action(self, state):
        action, state = super().next_action(state)
        executed = torch.cat([state["executed"][:, 1:], action.unsqueeze(1)], 1)
        return action, {**state, "executed": executed, "n_executed": state["n_executed"] + 1}
