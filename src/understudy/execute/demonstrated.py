"""Actor that is shown a demonstration of the task while it acts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ..core import DataError, uniform
from ..data.episode import Dataset
from ..data.shown_demonstration import ShowDemonstration
from ..data.tasks import SHOWN_TASK, decode_text
from .actor import Actor, pass_record

NUMBER = "demonstration"  # recorded column: number of the demonstration


@dataclass(frozen=True)
class DemonstratedActor(Actor):
    """Wraps an actor so that it is shown one demonstration from the first step of an episode to the last.

    It is drawn at random. If there are several, and the environment shows a task in words
    (`observation.task`), it is a demonstration of this task: of equal words. Its number is recorded as the column
    `demonstration`.

    Args:
        show: How a demonstration becomes columns. It is a transform of the policy's method.

    Example:
        >>> episodes = rollout(DemonstratedActor(actor, open_dataset("new_task"), ShowDemonstration()), env, 10)
    """

    actor: Actor
    demonstrations: Dataset
    show: ShowDemonstration

    def start(self, obs, key):
        if not len(self.demonstrations):
            raise DataError("there is no demonstration", where="DemonstratedActor.demonstrations",
                            hint="give at least one episode")
        drawn = uniform(key, torch.zeros_like(key), (1,), stream=11)[:, 0]
        if len(self.demonstrations) > 1 and SHOWN_TASK in obs and obs[SHOWN_TASK].dtype == torch.uint8:
            candidates = [self._of_task(bytes(row)) for row in obs[SHOWN_TASK].numpy()]
        else:
            candidates = [np.arange(len(self.demonstrations))] * len(key)
        numbers = torch.tensor([int(choices[int(u * len(choices))])
                                for choices, u in zip(candidates, drawn.tolist(), strict=True)])
        return {"inner": self.actor.start({**obs, **self._columns(numbers)}, key), "shown": numbers}

    def act(self, obs, state):
        action, inner = self.actor.act({**obs, **self._columns(state["shown"])}, state["inner"])
        return action, pass_record({"shown": state["shown"]}, inner, {NUMBER: state["shown"][:, None]})

    def _of_task(self, coded_task: bytes) -> np.ndarray:
        """Returns the numbers of the demonstrations of a task."""
        task, tasks = decode_text(np.frombuffer(coded_task, np.uint8)).strip(), self._read[1]
        if not len(matches := np.flatnonzero(tasks == task)):
            shown_tasks = ", ".join(map(repr, np.unique(tasks).tolist()[:4]))
            raise DataError(f"no demonstration shows the task {task!r} of the environment; they show {shown_tasks}",
                            where="DemonstratedActor.demonstrations",
                            hint="show one of each task, named with equal words, or a single one for all")
        return matches

    def _columns(self, demonstrations: Tensor) -> dict[str, Tensor]:
        frames = self._read[0][demonstrations]
        return {name: frames[:, i] for i, name in enumerate(self.show.into)}

    @cached_property
    def _read(self) -> tuple[Tensor, np.ndarray]:
        """The frames of all demonstrations, (N, n_frames, D), and their tasks."""
        frames, tasks = self.show.all_frames(self.demonstrations)
        return torch.from_numpy(frames), np.array(tasks)
