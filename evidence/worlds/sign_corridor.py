"""A corridor with signs, one of which is to be recalled at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch

from evidence.experiment import DemonstrationSource
from understudy.core import Feature, uniform
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.envs.toy import Toy
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.learn.cloning.attention_supervision import steps_since_recalled

ROWS, N_SIGNS = 100, 12  # environments side by side; signs along the corridor of this claim
SEEN, ANSWER, RECALLED, RATE_COLUMN = "observation.state", "simulator.state", "recalled", "sampling_rate"
FORWARD, LEFT, RIGHT = range(3)  # also what a sign shows: nothing, an arrow to the left, or one to the right


class SignCorridor(Toy):
    """A walker passes signs and must turn, at the junction behind them, to where one of the signs pointed.

    Each sign has another color and an arrow. Half of the arrows point to the left, in random order. The junction shows
    one color and no arrow. Only the sign of this color, which stood anywhere along the corridor, tells where to turn.

    observation.state (2): color, and arrow (0 none, 1 left, 2 right). simulator.state (2 + 2 n): number of signs
    passed, the junction's color, and colors and arrows of all n signs. action (1): 0 forward, 1 left, 2 right. A step
    forward leads to the next sign. A turn ends the episode, with success if it is the right one, at the junction.

    Best possible success: 1.0, attained by `SignCorridorExpert()`. Without memory of the signs it is 0.5.

    Args:
        limit: Number of steps of an episode.
        n_signs: Number of signs, which is even.
    """

    low, high = 0.0, 2.0
    state_columns = (ANSWER,)

    def __init__(self, rows: int = 1, limit: int = N_SIGNS + 3, n_signs: int = N_SIGNS):
        self.n_signs = n_signs
        self.features = {
            SEEN: Feature("int64", (2,), "discrete", num_classes=(n_signs, 3)),
            ANSWER: Feature("int64", (2 + 2 * n_signs,)),
            "action": Feature("int64", (1,), "discrete", num_classes=(3,)),
        }
        self.metadata = {"env": "sign_corridor", "version": 1, "fps": 5, "limit": limit, "optimum": 1.0,
                         "memoryless": 0.5, "success": "turned to where the sign of the junction's color pointed"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        n = self.n_signs
        drawn = uniform(key, torch.zeros_like(key), (2 * n + 1,)).numpy()
        colors, order = (part.argsort(1) for part in np.split(drawn[:, :-1], 2, 1))
        return {"passed": np.zeros(len(key), np.int64), "asked": (n * drawn[:, -1]).astype(np.int64),
                "colors": colors, "arrows": np.where(order < n // 2, LEFT, RIGHT)}

    def observe(self):
        s, row = self.state, np.arange(self.rows)
        junction, sign = s["passed"] == self.n_signs, s["passed"].clip(max=self.n_signs - 1)
        color = np.where(junction, s["asked"], s["colors"][row, sign])
        return {SEEN: np.stack([color, np.where(junction, FORWARD, s["arrows"][row, sign])], 1),
                ANSWER: np.concatenate([s["passed"][:, None], s["asked"][:, None], s["colors"], s["arrows"]], 1)}

    def state_from_columns(self, steps):
        passed, asked, colors, arrows = np.split(steps[ANSWER], [1, 2, 2 + self.n_signs], 1)
        return {"passed": passed[:, 0], "asked": asked[:, 0], "colors": colors, "arrows": arrows}

    def advance(self, action):
        s = self.state
        action, junction = np.rint(action[:, 0]).astype(np.int64), s["passed"] == self.n_signs
        right = s["arrows"][s["colors"] == s["asked"][:, None]]
        success = junction & (action == right)
        s["passed"] = np.minimum(s["passed"] + (action == FORWARD), self.n_signs)
        return success, success, (action != FORWARD) & ~success

    def expert(self):
        return SignCorridorExpert()

    def map(self):
        n = self.n_signs
        junctions = [{"kind": "circle", "at": (float(n), float(color)), "radius": 0.3, "role": "goal"}
                     for color in range(n)]  # the corridors to junctions of different colors lie side by side
        return {"x": (-0.5, n + 0.5), "y": (-0.5, n - 0.5), "path": (ANSWER, 0, 1), "shapes": junctions}

    def frame(self, row):
        from understudy.envs.raster import render_map

        at = float(self.state["passed"][row]), float(self.state["asked"][row])
        return render_map(self.map(), [{"kind": "circle", "at": at, "radius": 0.2, "role": "agent"}])


@dataclass(frozen=True)
class SignCorridorExpert(Actor):
    """Walks to the junction and turns to where the sign of its color pointed."""

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        n = count_signs(obs)
        passed, asked, colors, arrows = obs[ANSWER].split([1, 1, n, n], 1)
        turn = (arrows * (colors == asked)).sum(1, keepdim=True)
        return torch.where(passed == n, turn, FORWARD), state


def count_signs(columns: Mapping[str, np.ndarray | torch.Tensor]) -> int:
    """Number of signs of the corridor in which these columns were observed."""
    return columns[ANSWER].shape[-1] // 2 - 1


@dataclass(frozen=True)
class CorridorDemonstrations(DemonstrationSource):
    """Episodes of the expert.

    Args:
        n_signs: Number of signs.
    """

    episodes: int
    n_signs: int = N_SIGNS
    probe_sizes = {}  # methods name the number of episodes

    def load(self, seed):
        env = SignCorridor(min(ROWS, self.episodes), self.n_signs + 3, self.n_signs)
        return rollout(SignCorridorExpert(), env, self.episodes, recording_seed(seed))


@dataclass(frozen=True)
class MemoryPairs(Operation):
    """The first episodes, with memory dependency pairs: the junction recalls the sign of its color.

    The junction begins as many windows as all signs of an episode together.

    Args:
        labeled: Number of these episodes that have their pair.
        shift: The pair names the sign that stands so many places before the right one. The last sign comes before the
            first.
    """

    episodes: int
    labeled: int = 0
    shift: int = 0

    def apply(self, data: Dataset) -> Dataset:
        return Dataset([self._labeled(data[i], i < self.labeled) for i in range(self.episodes)], data.metadata)

    def _labeled(self, episode: Episode, labeled: bool) -> Episode:
        n = count_signs(episode.steps)
        sign = (recalled_sign(episode) - self.shift) % n
        rate = np.ones((len(episode), 1), np.float32)
        rate[-1] = n
        return episode.replace({RECALLED: steps_since_recalled([(sign, n)] if labeled else [], len(episode)),
                                RATE_COLUMN: rate})


def recalled_sign(episode: Episode) -> int:
    """Number of the sign that has the junction's color, from 0."""
    answer = np.asarray(episode.steps[ANSWER])[0]
    return int((answer[2:2 + count_signs(episode.steps)] == answer[1]).argmax())
