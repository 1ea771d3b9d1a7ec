"""An actor that records the doubt of a policy while it acts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .actor import Actor

DOUBT = "doubt"  # column: the score of each step

DoubtMeasure = Callable[[Mapping[str, Tensor], Tensor, Tensor], Tensor]
"""(observation windows (B, To, ...), key of each row (B,), number of the step (B,)) -> doubt of each row, (B,)."""


@dataclass(frozen=True)
class DoubtActor(Actor):
    """Wraps the actor of a policy to record its doubt at each step in the column `doubt`.

    Args:
        actor: The policy. Its state has the windows of observations, "seen".
    """

    actor: Actor
    measure: DoubtMeasure

    def start(self, obs, key):
        return {"actor": self.actor.start(obs, key), "key": key, "count": torch.zeros_like(key)}

    @torch.no_grad()
    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["actor"])
        device = next(iter(inner["seen"].values())).device
        doubt = self.measure(inner["seen"], state["key"].to(device), state["count"].to(device))
        return action, {**state, "actor": inner, "count": state["count"] + 1, "record": {DOUBT: doubt.cpu()}}
