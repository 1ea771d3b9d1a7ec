"""Row 257: encoders of pictures learn from pushes that a camera in other places shows, and policies train them on."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from evidence.experiment import DemonstrationSource, Experiment, expert_of
from evidence.families.representation.frozen_encoders import (
    CAMERA,
    FAST,
    NEAREST,
    OF_NEIGHBORS,
    OWN,
    PICTURE,
    ROWS,
    SHIFTS,
    EncodedPictures,
    NearPush,
    cloning,
    part,
    progress,
)
from evidence.measures import flags, train_once, train_stages
from understudy.checkpoint import FromStage
from understudy.core import uniform
from understudy.data.augment import ConditionDropout
from understudy.data.episode import Dataset
from understudy.data.mixture import DATASET_NAME
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.learn.fit_method import fit_method
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.representation_objectives import BYOL, SoftInfoNCE, TimeContrastive

FIXED, MOVED = "fixed", "moved"
LENGTH = 16  # positions of the disc that are compared
PRETRAINING, CLONING = 1200, 600  # updates, with 128 and 64 pictures each


class MovedCamera(NearPush):
    """Pushes to the first goal. The camera of each episode is turned by up to 0.5 rad, and zooms by 0.8 to 1.2."""

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (2,), stream=2).numpy()
        angle, zoom = drawn[:, 0] - 0.5, 0.8 + 0.4 * drawn[:, 1]
        camera = np.stack([np.cos(angle), np.sin(angle)], 1) / zoom[:, None]
        return {**super().initial_state(key), "camera": camera.astype(np.float32)}

    def _render(self, size, rows=slice(None)):
        cos, sin = torch.from_numpy(self.state["camera"][rows]).T
        turned = torch.stack([torch.stack([cos, -sin, 0 * sin], 1), torch.stack([sin, cos, 0 * sin], 1)], 1)
        whole = torch.from_numpy(super()._render(2 * size, rows)).permute(0, 3, 1, 2).float()
        grid = F.affine_grid(turned, [len(whole), 3, size, size], align_corners=False)
        view = F.grid_sample(whole, grid, padding_mode="border", align_corners=False)
        return view.round().to(torch.uint8).permute(0, 2, 3, 1).numpy()


ENVS = {FIXED: NearPush, MOVED: MovedCamera}


@dataclass(frozen=True)
class PushesInViews(DemonstrationSource):
    """Pushes to one goal. Those of the part "moved" begin as those of "fixed", and a moved camera shows them."""

    episodes: int = 100

    def load(self, seed):
        rows = min(ROWS, self.episodes)
        parts = {name: rollout(expert_of(env(rows)), env(rows), self.episodes, recording_seed(seed))
                 for name, env in ENVS.items()}
        return Dataset([replace(e, metadata={**e.metadata, DATASET_NAME: name})
                        for name, recorded in parts.items() for e in recorded])


@dataclass(frozen=True)
class PermutedActions(SoftInfoNCE):
    """Soft labels of the actions of other windows."""

    def pair_weights(self, chunks):
        return super().pair_weights(chunks.roll(1, 0))


@dataclass(frozen=True)
class Seen:
    """A method that learns from what a camera shows, and is judged with it."""

    camera: str
    method: Method


def end_to_end(camera: str, steps: int = 2 * PRETRAINING + CLONING) -> Seen:
    """Cloning alone, by default from as many pictures as the others."""
    return Seen(camera, cloning((PICTURE, OWN), camera, encoder=CAMERA, augmentations=SHIFTS, steps=steps))


def pretrained(camera: str, objective, window: Window | None = None, target: str = "", lookahead: int = 0,
               batch_size: int = 64) -> Seen:
    """Cloning from an encoder that learned from 128 pictures an update, or from pairs of views of 64."""
    method = end_to_end(camera, CLONING).method
    policy = replace(method.policy, window=window or Window(), target=target,
                     augmentations=(*SHIFTS, ConditionDropout(OWN, 1.0)))
    learner = RepresentationLearning((objective,), PRETRAINING, batch_size, lookahead, FAST)
    stage = Stage("encoder", Method(policy, learner=learner, transforms=method.transforms))
    return Seen(camera, replace(method, stages=(stage,), initialize_from=(
        InitializeFrom(FromStage("encoder"), load=("encoder",)),)))


def by_actions(camera: str, objective: SoftInfoNCE) -> Seen:
    """Pretrained by contrast of where the disc goes in the next steps."""
    return pretrained(camera, objective, Window(horizon=LENGTH, action_offset=1), OWN, batch_size=128)


def pushed(experiment, arm: Seen, data: Dataset, seed: int, episodes: int, starts: int) -> dict:
    """"success" and "progress" of the policy, and of neighbors in the features of its encoder before cloning."""
    rows = min(ROWS, episodes)

    def judge(policy, env, name):
        rollouts = rollout(PolicyActor(FixedBatch(policy, rows), RecedingHorizon()), env, episodes, seed=starts)
        return {f"progress{name}": [float(np.mean([progress(e) for e in rollouts]))],
                f"success{name}": flags(rollouts)["success"]}
    results = {"policy": train_once(experiment, arm.method, data, seed),
               **train_stages(experiment, arm.method, data, seed)}
    measured = judge(results["policy"].policy, ENVS[arm.camera](rows), "")
    if arm.camera == FIXED:
        return measured
    env = EncodedPictures(MovedCamera(rows), results.get("encoder", results["policy"]).policy)
    encoded = Dataset([env.transform_episode(e) for e in part(MOVED).apply(data)])
    nearest = fit_method(replace(NEAREST, transforms=()), encoded, seed)
    return {**measured, **judge(nearest.policy, env, OF_NEIGHBORS)}


TABLE = Experiment(PushesInViews(), env="push-images", first_seed=2570, episodes=100, measure=pushed,
                   levels={"end to end, fixed camera": 0.5}, arms={
    "CLASS": by_actions(MOVED, SoftInfoNCE()),
    "time-contrastive": pretrained(MOVED, TimeContrastive(), lookahead=4),
    "BYOL": pretrained(MOVED, BYOL()),
    "end to end": end_to_end(MOVED),
    "CLASS, fixed camera": by_actions(FIXED, SoftInfoNCE()),
    "end to end, fixed camera": end_to_end(FIXED),
    "actions of other windows": by_actions(MOVED, PermutedActions())})
