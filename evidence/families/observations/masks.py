"""Row 189: a camera that shows who is on the road, and a light that shows what was done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from evidence.experiment import DemonstrationSource, Experiment
from evidence.measures import ROWS, flags, train_once
from understudy.audit.scores import action_dependence
from understudy.core import normal
from understudy.data.column_changes import SelectComponents
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs.toy import named_vector
from understudy.envs.toys.drive import PIXELS, Drive, DriveExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

STATE = "observation.state"
FAST = OptimizerConfig(lr=1e-3)
CAMERA, *LIGHTS = (tuple(range(PIXELS)), (PIXELS,), (PIXELS + 1,), (PIXELS + 2,))  # the last two see the light badly
FLOOR = 0.03  # of the dependence, below that of one number because the camera has 16


class LitDrive(Drive):
    """`Drive` with two noisy copies of the light.

    Args:
        drawn: Whether free starts draw the light. False: it shows what the expert would have done.
    """

    def __init__(self, rows: int = 1, starts="natural", drawn: bool = True):
        self.drawn = drawn
        super().__init__(rows, starts=starts)
        names = (*(self.features[STATE].names or ()), "copy.1", "copy.2")
        self.features = {**self.features, STATE: named_vector(*names)}

    def initial_state(self, key):
        state = super().initial_state(key)
        return state if self.drawn else {**state, "brake": (state["hidden"][:, 2] > 0).astype(np.float32)}

    def observe(self):
        columns = super().observe()
        copies = self.state["brake"][:, None] + 0.3 * normal(self.key, self.clock, (2,), stream=1).numpy()
        return {**columns, STATE: np.concatenate([columns[STATE], copies], 1)}


def drives(episodes: int, seed: int, **options) -> Dataset:
    return rollout(DriveExpert(), LitDrive(ROWS, **options), episodes, recording_seed(seed))


@dataclass(frozen=True)
class DriveDemonstrations(DemonstrationSource):
    """Drives from natural starts."""

    episodes: int = 200

    def load(self, seed):
        return drives(self.episodes, seed)


@dataclass(frozen=True)
class Masked:
    """Cloning from the camera and lights that a test finds to be possible causes of the action.

    Args:
        starts: Of the drives that are tested: "natural", "free", or "light kept", which does not draw the light. "all"
            tests nothing, "camera" keeps the cause alone, and "random" keeps as many as "free" does.
    """

    starts: str

    def kept(self, seed: int, episodes: int) -> tuple[tuple[int, ...], ...]:
        groups = (CAMERA, *LIGHTS)
        if self.starts in ("all", "camera"):
            return groups if self.starts == "all" else (CAMERA,)
        if self.starts == "random":
            n = len(Masked("free").kept(seed, episodes))
            return tuple(groups[i] for i in np.random.default_rng(seed).permutation(len(groups))[:n])
        options = {"natural": {}, "free": {"starts": "free"}, "light kept": {"starts": "free", "drawn": False}}
        tested = drives(episodes, seed + 1_000_000, **options[self.starts])
        dependences = action_dependence(tested, floor=FLOOR, groups=groups)
        return tuple(g for g, dependence in zip(groups, dependences, strict=True) if dependence.may_be_cause)


def driving(experiment, masked: Masked, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success"; "cause kept": 1 if the mask keeps the camera; "error": of actions in natural drives that are new."""
    kept = masked.kept(seed, 2 * len(data))
    components = tuple(sorted(i for group in kept for i in group)) or LIGHTS[1]  # noise, if nothing is kept
    method = Method(PolicyConfig(Regression(), MLP(64, 1), inputs=(STATE,)), RecedingHorizon(),
                    BehaviorCloning(2000, 128, FAST), transforms=(SelectComponents(STATE, components),))
    trained = train_once(experiment, method, data, seed)
    new = Window().windows(drives(50, seed + 2_000_000).map(SelectComponents(STATE, components)), (STATE,), "action")
    batch = new.gather(np.arange(len(new)))
    error = trained.policy.plan(batch.obs, torch.zeros(len(batch), 1, 0)) - batch.action
    rollouts = rollout(trained.actor, LitDrive(ROWS), episodes, seed=starts)
    return {"success": flags(rollouts)["success"], "cause kept": [float(CAMERA in kept)],
            "lights kept": [float(len(kept) - (CAMERA in kept))], "error": [error.square().mean().item()]}


TABLE = Experiment(DriveDemonstrations(), env=f"{__name__}:LitDrive", measure=driving, first_seed=740, n_seeds=10,
                   episodes=300, levels={"camera": 0.9}, arms={
    "everything": Masked("all"),
    "mask, natural starts": Masked("natural"),
    "mask, free starts": Masked("free"),
    "random mask": Masked("random"),
    "camera": Masked("camera"),
    "light not drawn": Masked("light kept")})
