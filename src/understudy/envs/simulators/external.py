"""Environments by other packages whose expert acts from the simulator's state."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import UserError
from ...execute.actor import Actor
from ..base import HasExpert
from ..gymnasium_adapter import GymVector, RenderableGymVector


class ExpertVector(RenderableGymVector, HasExpert):
    """Rows of single environments that have an expert, by a method `expert_action() -> action`.

    The expert sees the simulator itself. Asked twice, it gives the same action.
    """

    def expert(self):
        return AdviceActor(self)


@dataclass(frozen=True)
class AdviceActor(Actor):
    """Expert that acts in all rows of `env` by the state of the simulator instead of the observation.

    It has no state. Its action does not depend on the actor that has acted before.
    """

    env: GymVector

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        if (rows := len(next(iter(obs.values())))) != self.env.rows:
            raise UserError(f"needs all {self.env.rows} rows of its environment, but got {rows}",
                            where=f"the expert of {self.env.metadata['env']}", hint="ask it for all rows at once")
        action = np.stack([np.asarray(single.expert_action()).reshape(-1) for single in self.env.vec.envs])
        whole = self.env.features["action"].kind == "discrete"
        return torch.from_numpy(action.astype(np.int64 if whole else np.float32)), state
