"""Single environments that others wrote, before they stand in rows: those that draw from NumPy's own generator, and
those whose expert acts from the simulator's state."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import gymnasium
import numpy as np
import torch

from ...core import UserError
from ...execute.actor import Actor
from ..base import HasExpert
from ..gymnasium_adapter import GymVector, RenderableGymVector


class IsolatedNumpyRandom(gymnasium.Wrapper):
    """Wrapper for simulators that draw from NumPy's global generator.

    Each environment has its own state of this generator, which depends on the seed of the episode alone. Its expert
    draws from another.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self.drawn: dict[str, tuple] = {}

    @contextmanager
    def own_random_state(self, who: str = "world") -> Iterator[None]:
        before = np.random.get_state()
        np.random.set_state(self.drawn.get(who, before))
        try:
            yield
        finally:
            self.drawn[who] = np.random.get_state()
            np.random.set_state(before)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.action_space.seed(seed)
            self.drawn = {who: np.random.RandomState([seed, stream]).get_state()
                          for stream, who in enumerate(("world", "expert"))}
        with self.own_random_state():
            return self.env.reset(seed=seed, options=options)

    def step(self, action):
        with self.own_random_state():
            return self.env.step(action)


class ExpertVector(RenderableGymVector, HasExpert):
    """Rows of single environments that have an expert: a method `expert_action() -> action`.

    The expert sees the simulator itself. Asked twice, it gives the same action.
    """

    def expert(self):
        return AdviceActor(self)


@dataclass(frozen=True)
class AdviceActor(Actor):
    """Expert that acts in all rows of `env`, from the state of the simulator instead of the observation.

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
