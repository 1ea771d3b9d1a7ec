"""Stores tasks and thoughts in words as columns of UTF-8 bytes."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch

from ..core import AtLeast, Feature, UserError, part
from .column_changes import ColumnChange, get_column, with_column
from .episode import Episode
from .tasks import SHOWN_TASK, decode_text, task_texts


@part
class TaskText(ColumnChange):
    """Adds the task of the episode as a column of UTF-8 bytes, padded with 0.

    It is read from the column "task", in which the text may change within the episode, from the metadata "task", or
    from the text that the environment showed (`observation.task`). Without a task the text is empty. Longer text is cut
    after a complete character, also while acting.

    Args:
        max_bytes: Number of bytes of the column.
        optional: Also add ``"<into>?"``, which is False where the text is empty, and act without a text if none is
            given.
    """

    max_bytes: Annotated[int, AtLeast(1)] = 64
    into: str = SHOWN_TASK
    optional: bool = False

    def __call__(self, episode: Episode) -> Episode:
        texts, which = np.unique(task_texts(episode), return_inverse=True)
        rows = np.stack([self.encode(str(text)) for text in texts])
        column = (np.broadcast_to(rows[0], (len(episode) + 1, self.max_bytes)) if len(texts) == 1 else rows[which])
        episode = with_column(episode, self.into, column, Feature("uint8", (self.max_bytes,), "text"))
        if not self.optional:
            return episode
        return with_column(episode, self.into + "?", (column != 0).any(1), Feature("bool", ()))

    def encode(self, text: str) -> np.ndarray:
        """Encodes a text as the column has it, (max_bytes,) uint8."""
        raw = text.encode()[: self.max_bytes].decode(errors="ignore").encode()
        return np.frombuffer(raw.ljust(self.max_bytes, b"\0"), np.uint8)

    def step(self, obs, last, state):
        if self.into not in obs and not self.optional:
            raise UserError(f"nothing gives the column {self.into!r}, which the policy reads", where="obs",
                            hint="say the task: --task 'WORDS', or ObservationWrapper(actor, "
                            f"{{{self.into!r}: torch.tensor(TaskText({self.max_bytes}).encode('WORDS'))}})")
        mask, text = self.into + "?", torch.zeros(len(last.exists), self.max_bytes, dtype=torch.uint8)
        if self.into in obs:
            text = torch.as_tensor(obs[self.into])
            if text.dim() == 2 and text.shape[1] > self.max_bytes:  # cut as in the training data
                rows = [self.encode(decode_text(row)) for row in text.cpu().numpy()]
                text = torch.from_numpy(np.array(rows, np.uint8).reshape(-1, self.max_bytes))
        if not self.optional or (self.into in obs and mask in obs):
            return {self.into: text}, state
        return {self.into: text, mask: (text != 0).any(1)}, state


@part
class ThoughtText:
    """Adds what the expert thought at each step as a column of UTF-8 bytes, padded with 0.

    It is read from a column of text, such as the subgoal that a scripted expert follows or that a person said. After
    the last thought it is repeated. While acting, a policy that predicts thoughts gives the column: see
    `execute.planners.Hierarchical`.

    Args:
        max_bytes: Number of bytes of the new column. Longer text is cut after a complete character.
        into: Name of the new column, (T+1, max_bytes).
    """

    column: str = "thought"
    max_bytes: Annotated[int, AtLeast(1)] = 64
    into: str = "observation.thought"

    def __call__(self, episode: Episode) -> Episode:
        column = get_column(episode, self.column, "thought cloning needs the thoughts of the expert as text: name "
                             "their column (--columns thought=NAME)")
        texts, which = np.unique(column.astype(str).reshape(len(column)), return_inverse=True)
        rows = np.stack([TaskText(self.max_bytes).encode(str(text)) for text in texts])[which]
        rows = np.concatenate([rows, rows[-1:]])[: len(episode) + 1]
        return with_column(episode, self.into, rows, Feature("uint8", (self.max_bytes,), "text"))
