"""A Gymnasium vector environment in which rows whose episode has ended take no time."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate


class RestingRows(SyncVectorEnv):
    """Copies of an environment that are stepped one after the other, but for those that rest.

    Attributes:
        resting: Rows that `step` leaves as they are, (num_envs,).
    """

    def __init__(self, env_fns):
        super().__init__(env_fns, autoreset_mode=AutoresetMode.DISABLED)
        self.resting = np.zeros(self.num_envs, bool)

    def step(self, actions):
        infos: dict = {}
        for row, action in enumerate(iterate(self.action_space, actions)):
            if self.resting[row]:
                self._rewards[row], self._terminations[row], self._truncations[row] = 0.0, False, False
                continue
            (self._env_obs[row], self._rewards[row], self._terminations[row], self._truncations[row],
             info) = self.envs[row].step(action)
            infos = self._add_info(infos, info, row)
        self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return (deepcopy(self._observations) if self.copy else self._observations, self._rewards.copy(),
                self._terminations.copy(), self._truncations.copy(), infos)
