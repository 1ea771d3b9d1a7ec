"""Retention rule for a sequence of tasks: keeps the steps that a policy would visit, by a learned model."""

from __future__ import annotations

from itertools import cycle
from typing import Annotated

import numpy as np
import torch

from ..audit.scores.network_scores import NetworkEnsemble, fit_regression
from ..audit.scores.step_table import StepTable
from ..checkpoint import FromStage
from ..core import AtLeast, part
from ..data.episode import Dataset, Episode
from ..data.mixture import ROUND
from ..policy import Policy
from .retention import RetentionRule


@part
class ModelBasedSelection(RetentionRule):
    """Keeps only the steps of earlier rounds that the policy is likely to visit, each as an episode of one step.

    A network learns to predict the next state. Roll-outs of the policy in it begin at starts of the data. Each
    predicted state is replaced by the nearest state of the data that has not been chosen yet. The step with this state
    stays.

    Rounds must be tasks (`TaskSequenceCollector`). The episodes before the first round are the first task, and the
    newest task stays whole. States and actions must be numbers. The authors' code was not found; this follows the
    abstract.

    Args:
        n_steps: Number of steps that stay of each earlier task.
        columns: Columns of the state. By default all numeric "observation." columns.
        n_updates: Updates of the network.

    References:
        Gai et al. (2023), OER: Offline Experience Replay for Continual Offline RL, arXiv:2305.13804.

    Example:
        >>> kept = ModelBasedSelection(load_policy("runs/first"), n_steps=200).select(open_dataset("first"))
    """

    policy: FromStage | Policy
    n_steps: Annotated[int, AtLeast(1)] = 200
    columns: tuple[str, ...] = ()
    n_updates: Annotated[int, AtLeast(1)] = 3000
    seed: int = 0

    def keep(self, data):
        rounds = np.array([episode.metadata.get(ROUND, -1) for episode in data])
        tasks = [data.select(np.flatnonzero(rounds == number)) for number in np.unique(rounds)]
        earlier = [task if task.steps <= self.n_steps else self.select(task) for task in tasks[:-1]]
        return Dataset([episode for task in (*earlier, *tasks[-1:]) for episode in task], data.metadata)

    def select(self, data: Dataset) -> Dataset:
        """Returns the steps of one task that are kept, each as an episode of one step."""
        assert isinstance(self.policy, Policy)  # a method's references are resolved before it collects
        table = StepTable.from_data(data, self.columns)
        windows = self.policy.window.windows(data, self.policy.inputs)
        batch = windows.gather(np.arange(len(table))).to(self.policy.device)
        zero = torch.zeros(len(table), dtype=torch.int64, device=self.policy.device)
        with torch.no_grad():
            plan = self.policy.plan(batch.obs, self.policy.noise(zero, zero))
        action = plan[:, -self.policy.window.action_offset].cpu().numpy()
        model = fit_transitions(table, self.n_updates, self.seed)
        first = np.cumsum(table.length) - table.length
        return Dataset([_single_step(data[table.episode[i]], i - first[table.episode[i]])
                        for i in roll_out(table, model, action, self.n_steps, self.seed)], data.metadata)


def fit_transitions(table: StepTable, n_updates: int, seed: int) -> NetworkEnsemble:
    """Trains a network that predicts the change of the state from state and action, in units of the table."""
    inputs = np.concatenate([table.state, table.action], 1)[table.has_next]
    return fit_regression(inputs, (table.next_state - table.state)[table.has_next], 1, n_updates, seed)


def roll_out(table: StepTable, model: NetworkEnsemble, action: np.ndarray, n_steps: int, seed: int) -> list[int]:
    """Returns the recorded steps that roll-outs in a learned model visit, each once, in their order.

    A roll-out ends at the last step of an episode, or when it is as long as the longest one.

    Args:
        action: What the policy does at each step of the data, (N, A).
    """
    center, scale = table.scales[2:]
    coded = torch.from_numpy(((action - center) / scale).astype(np.float32))
    state = torch.from_numpy(table.state)
    with torch.no_grad():
        predicted = (state + model(torch.cat([state, coded], 1))[0]).numpy()
    ends = set((np.cumsum(table.length) - 1).tolist())
    starts = cycle(np.random.default_rng(seed).permutation(np.cumsum(table.length) - table.length))
    free, chosen, target, duration = np.ones(len(table), bool), [], table.state[next(starts)], 0
    while len(chosen) < min(n_steps, len(table)):
        distance = np.where(free, np.square(table.state - target).sum(1), np.inf)
        nearest, duration = int(distance.argmin()), duration + 1
        chosen.append(nearest)
        free[nearest] = False
        target = predicted[nearest]
        if nearest in ends or duration == table.length.max():
            target, duration = table.state[next(starts)], 0
    return chosen


def _single_step(episode: Episode, t: int) -> Episode:
    """Cuts one step out of an episode, as an episode of its own, with the observation after it if there is one."""
    metadata = {k: v for k, v in episode.metadata.items() if k != "success"}
    return Episode({k: np.asarray(v[t:t + 1 + len(v) - len(episode)]) for k, v in episode.steps.items()}, metadata,
                   schema=episode.schema)
