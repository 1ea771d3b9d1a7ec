"""Actor that replays the recorded actions of the demonstration with the nearest start."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core import DataError, part, role
from ..data.episode import Dataset
from .actor import Actor

NUMBER = "demonstration"  # recorded column: number of the demonstration


@part
class ReplayActor(Actor):
    """Replays the actions of the demonstration whose first observation is nearest to that of the episode.

    Nothing is trained, and observations after the first are ignored: it is the plainest baseline of a policy, and a
    base for `ResidualWrapper`, whose corrections make up for what differs from the recording. Retargeted
    episodes of a person are replayed like those of the robot. The number of the demonstration is recorded as the
    column `demonstration`.

    Distances are Euclidean over all observations that are vectors, after each component is divided by its standard
    deviation over the first observations of the demonstrations. Components that do not vary there are not compared.

    Args:
        end: What happens after the last recorded action. "repeat" repeats it, which holds a position. "zero" acts with
            0, which stands still if actions are velocities or turns.

    References:
        Zhao et al. (2024), DexH2R: Task-oriented Dexterous Manipulation from Human to Robots, arXiv:2411.04428,
        corrects retargeted motions. The choice by the first observation is ours.

    Example:
        >>> actor = ReplayActor(open_dataset("robot.json"), end="zero")
        >>> episodes = rollout(actor, make("planar_arms:reach-short"), 10)
    """

    demonstrations: Dataset
    end: Literal["repeat", "zero"] = "repeat"

    def start(self, obs, key):
        names, means, stds, firsts, _ = self._read
        missing = [name for name in names if name not in obs]
        if missing:
            raise DataError(f"the environment shows no {missing[0]!r}; it shows {', '.join(sorted(obs))}",
                            where="ReplayActor.demonstrations", hint="take demonstrations of this environment")
        now = torch.cat([obs[name].cpu().double().flatten(1) for name in names], 1)
        if now.shape[1] != firsts.shape[1]:
            raise DataError(f"an observation has {now.shape[1]} numbers, and one of the demonstrations "
                            f"{firsts.shape[1]}", where="ReplayActor.demonstrations",
                            hint="retarget demonstrations of another body first: MotionRetargeting")
        return {"number": torch.cdist((now - means) / stds, firsts).argmin(1), "count": torch.zeros_like(key)}

    def act(self, obs, state):
        number, count, actions = state["number"], state["count"], self._read[-1]
        chosen = []
        for n, t in zip(number.tolist(), count.tolist(), strict=True):
            over = t >= len(actions[n])
            action = actions[n][min(t, len(actions[n]) - 1)]
            chosen.append(torch.zeros_like(action) if over and self.end == "zero" else action)
        return torch.stack(chosen), {"number": number, "count": count + 1, "record": {NUMBER: number[:, None]}}

    @cached_property
    def _read(self) -> tuple[list[str], Tensor, Tensor, Tensor, list[Tensor]]:
        """Names of the compared observations, their means and deviations, all first ones scaled, and all actions."""
        if not len(self.demonstrations):
            raise DataError("there is no demonstration", where="ReplayActor.demonstrations",
                            hint="give at least one episode")
        features = self.demonstrations.features()
        names = [name for name, feature in features.items()
                 if role(name) == "observation" and feature.kind == "vector"]
        if not names:
            raise DataError("the demonstrations have no observations that are vectors",
                            where="ReplayActor.demonstrations",
                            hint="take demonstrations with positions, such as observation.state")
        firsts = torch.from_numpy(np.stack([np.concatenate([
            np.asarray(e.steps[name][0], np.float64).ravel() for name in names]) for e in self.demonstrations]))
        means, stds = firsts.mean(0), firsts.std(0, correction=0)
        stds = torch.where(stds > 0, stds, torch.inf)
        actions = [torch.from_numpy(np.array(e.steps["action"], np.float32)) for e in self.demonstrations]
        return names, means, stds, (firsts - means) / stds, actions
