"""Row 257: encoders of pictures learn from pushes that a camera in other places shows, and policies train them on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.families.pictures.frozen_encoders import FAST, OWN, ROWS, SHIFTS, NearPush, end_to_end, pushed
from understudy.checkpoint import FromStage
from understudy.core import uniform
from understudy.data.augment import ConditionDropout
from understudy.data.mixture import DATASET_NAME
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.representation_objectives import BYOL, SoftInfoNCE, TimeContrastive

MOVED = "moved"
LENGTH = 16  # positions of the disc that are compared
PRETRAINING, CLONING = 1200, 600  # updates, with 128 and 64 pictures each


class MovedCamera(NearPush):
    """Pushes to the first goal. The camera of each episode is turned by up to 0.5 rad, and zooms by 0.8 to 1.2."""

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (2,), stream=2).numpy()
        angle, zoom = drawn[:, 0] - 0.5, 0.8 + 0.4 * drawn[:, 1]
        camera = np.stack([np.cos(angle), np.sin(angle)], 1) / zoom[:, None]
        return {**super().initial_state(key), "camera": camera.astype(np.float32)}

    def _render(self, size):
        cos, sin = torch.from_numpy(self.state["camera"]).T
        turned = torch.stack([torch.stack([cos, -sin, 0 * sin], 1), torch.stack([sin, cos, 0 * sin], 1)], 1)
        whole = torch.from_numpy(super()._render(2 * size)).permute(0, 3, 1, 2).float()
        grid = F.affine_grid(turned, [len(whole), 3, size, size], align_corners=False)
        view = F.grid_sample(whole, grid, padding_mode="border", align_corners=False)
        return view.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


@dataclass(frozen=True)
class PushesInViews(DemonstrationSource):
    """Pushes to one goal, each seen by a camera of its own."""

    episodes: int = 100

    def load(self, seed):
        env = MovedCamera(ROWS)
        return rollout(expert_of(env), env, self.episodes, recording_seed(seed)).map(
            lambda e: replace(e, metadata={**e.metadata, DATASET_NAME: MOVED}))


def pretrained(objective, window: Window | None = None, target: str = "", lookahead: int = 0,
               batch_size: int = 64) -> Method:
    """Cloning from an encoder that learned from 128 pictures an update, or from pairs of views of 64."""
    method = end_to_end(MOVED, steps=CLONING)
    policy = replace(method.policy, window=window or Window(), target=target,
                     augmentations=(*SHIFTS, ConditionDropout(OWN, 1.0)))
    learner = RepresentationLearning((objective,), PRETRAINING, batch_size, lookahead, FAST)
    stage = Stage("encoder", Method(policy, learner=learner, transforms=method.transforms))
    return replace(method, stages=(stage,), initialize_from=(InitializeFrom(FromStage("encoder"), load=("encoder",)),))


TABLE = Experiment(PushesInViews(), env=f"{__name__}:MovedCamera", first_seed=2570, episodes=100, measure=pushed,
                   levels={"end to end": 0.3}, arms={
    "CLASS": pretrained(SoftInfoNCE(), Window(horizon=LENGTH, action_offset=1), OWN, batch_size=128),
    "time-contrastive": pretrained(TimeContrastive(), lookahead=4),
    "BYOL": pretrained(BYOL()),
    "end to end": end_to_end(MOVED, steps=2 * PRETRAINING + CLONING)})
