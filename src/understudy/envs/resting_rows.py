"""A Gymnasium vector environment that does not step rows whose episode has ended."""

from __future__ import annotations

from copy import deepcopy

import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from gymnasium.vector.utils import concatenate, iterate

from ..user_code import describe_place
from .flags import SUCCESS_KEYS, check_flag


class RestingRows(SyncVectorEnv):
    """Copies of an environment that are stepped one after the other, except copies whose episode has ended.

    Attributes:
        resting: Rows that `step` leaves as they are, (num_envs,).
        info_flags: Entries of infos that are flags. They are checked here, because Gymnasium casts the flags of all
            rows to the type of the flag in the first row.
    """

    def __init__(self, env_fns):
        super().__init__(env_fns, autoreset_mode=AutoresetMode.DISABLED)
        self.resting = np.zeros(self.num_envs, bool)
        self.info_flags = SUCCESS_KEYS
        self._place = describe_place(self.envs[0].unwrapped.step)

    def step(self, actions):
        infos: dict = {}
        for row, action in enumerate(iterate(self.action_space, actions)):
            if self.resting[row]:
                self._rewards[row], self._terminations[row], self._truncations[row] = 0.0, False, False
                continue
            self._env_obs[row], self._rewards[row], terminated, truncated, info = self.envs[row].step(action)
            self._terminations[row] = check_flag(terminated, "terminated", self._place)
            self._truncations[row] = check_flag(truncated, "truncated", self._place)
            flags = {k: check_flag(info[k], k, self._place) for k in self.info_flags if info.get(k) is not None}
            if flags:
                info = {**info, **flags}
            infos = self._add_info(infos, info, row)
        self._observations = concatenate(self.single_observation_space, self._env_obs, self._observations)
        return (deepcopy(self._observations) if self.copy else self._observations, self._rewards.copy(),
                self._terminations.copy(), self._truncations.copy(), infos)
