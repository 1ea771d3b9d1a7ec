"""Row 064: clips without actions, imitated by a network that knows neither them nor a reward while it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.nn.functional import normalize

from evidence.experiment import Experiment
from evidence.families.goals.named_goals import Walks, small
from evidence.measures import train_once
from understudy.core import keys
from understudy.data.episode import Dataset
from understudy.data.mixture import DATASET_NAME
from understudy.envs import make
from understudy.envs.observation_wrappers import RandomFeatureObs
from understudy.envs.toys.four_rooms import FourRoomsExpert
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.learn.method import Method
from understudy.methods.goal_conditioned.fb import FB, LATENT, infer_latent, on_sphere
from understudy.methods.goal_conditioned.gcivl import GCIVL

STATE, GOAL, STYLE, LATENT_DIM = "observation.state", "observation.goal", "play-80", 32
N_CLIPS, N_FRAMES, FIRST_CLIP = 20, 50, 900_000  # the number of the first one, beyond those of the walks
REACH, TINT = 1.0, 0.1  # m, from a frame; weight of the other camera in the pictures of a clip
ROOMS = make("four_rooms:play")
CAMERA, OTHER_CAMERA = (RandomFeatureObs(ROOMS, 64, scale=0.2, seed=seed) for seed in (0, 1))
EMBEDDING = RandomFeatureObs(CAMERA, 64, seed=2)


@dataclass(frozen=True)
class Clip:
    """What a demonstrator did."""

    frames: Tensor  # (T, 2), positions in m, which the agent does not see
    retrieved: Tensor  # (T, 2), stored positions whose pictures are the nearest
    stored: Tensor  # (N, 2), all positions of the walks
    rng: Generator

    def reward(self, positions: Tensor) -> Tensor:
        """Fraction of the frames within reach, relative to its mean over the frames themselves, (n,)."""
        share, own = ((torch.cdist(x, self.frames) < REACH).float().mean(1) for x in (positions, self.frames))
        return share / own.mean()


def film(data: Dataset, seed: int) -> list[Clip]:
    """Clips of walks within a cell and its neighbors, seen by another camera, and projected to the walks."""
    stored = torch.from_numpy(np.concatenate([e.steps[STATE][1:] for e in data if e.metadata[DATASET_NAME] == STYLE]))
    env = make("four_rooms:play", N_CLIPS)
    walks = rollout(FourRoomsExpert(waypoints=True, reach=1), env, N_CLIPS, recording_seed(seed), first=FIRST_CLIP)
    pictures, clips = embed_pictures(picture(CAMERA, stored)), []
    for walk, key in zip(walks, keys(seed, range(N_CLIPS)).tolist(), strict=True):
        frames = torch.from_numpy(np.array(walk.steps[STATE][:N_FRAMES]))
        tinted = picture(CAMERA, frames) + TINT * picture(OTHER_CAMERA, frames)
        nearest = (embed_pictures(tinted) @ pictures.mT).argmax(1)
        clips.append(Clip(frames, stored[nearest], stored, Generator().manual_seed(key)))
    return clips


def picture(camera: RandomFeatureObs, values: Tensor) -> Tensor:
    return camera.transform_obs({STATE: values})[STATE]


def embed_pictures(pictures: Tensor) -> Tensor:
    """A fixed random embedding with the norm 1."""
    return normalize(picture(EMBEDDING, pictures), dim=-1)


def mean_of_b(modules: Mapping[str, Any], clip: Clip) -> Tensor:
    return infer_latent(modules["backward"], clip.retrieved)


def last_frame(modules, clip):
    return infer_latent(modules["backward"], clip.retrieved[-1:])


def oracle_reward(modules, clip):
    return infer_latent(modules["backward"], clip.stored, clip.reward(clip.stored))


def random_z(modules, clip):
    return on_sphere(torch.randn(LATENT_DIM, generator=clip.rng))


def typical_frame(modules, clip):
    """The retrieved position that is nearest to their mean, as a goal."""
    return clip.retrieved[(clip.retrieved - clip.retrieved.mean(0)).norm(dim=-1).argmin()]


@dataclass(frozen=True)
class Imitation:
    """A method that learns without clips, and how its policy is told what a clip shows."""

    method: Method
    read: Callable[[Mapping[str, Any], Clip], Tensor]  # of the trained modules and a clip
    column: str = LATENT  # of the policy, which gets the result


@dataclass(frozen=True)
class GivenToRows(Actor):
    """Gives each row of an environment its own value of a column."""

    actor: Actor
    column: str
    values: Tensor

    def start(self, obs, key):
        return self.actor.start({**obs, self.column: self.values}, key)

    def act(self, obs, state):
        return self.actor.act({**obs, self.column: self.values}, state)


def matching(experiment, arm: Imitation, data: Dataset, seed: int, episodes: int, starts: int
             ) -> dict[str, list[float]]:
    """The return of the clips' rewards, per step. As many episodes for each clip, one after the other."""
    result = train_once(experiment, arm.method, data, seed)
    clips = film(data, seed)
    numbers = [number * len(clips) // episodes for number in range(episodes)]
    values = torch.stack([arm.read(result.modules, clip) for clip in clips])[numbers]
    actor = GivenToRows(PolicyActor(result.policy, arm.method.executor), arm.column, values)
    rollouts = rollout(actor, make(experiment.env, rows=episodes), episodes, seed=starts)
    return {"return": [float(clips[n].reward(torch.from_numpy(e.steps[STATE][1:])).mean())
                       for n, e in zip(numbers, rollouts, strict=True)]}


METHOD = small(FB(alpha=0.1).method(latent_dim=LATENT_DIM), STYLE)
METHOD = replace(METHOD, learner=replace(METHOD.learner, steps=4000, batch_size=256, discount=0.95))
TABLE = Experiment(Walks(), env="four_rooms:play", measure=matching, first_seed=1640, episodes=300, arms={
    "mean of B": Imitation(METHOD, mean_of_b),
    "random z": Imitation(METHOD, random_z),
    "oracle reward": Imitation(METHOD, oracle_reward),
    "last frame": Imitation(METHOD, last_frame),
    "GCIVL, typical frame": Imitation(small(GCIVL().method(), STYLE), typical_frame, GOAL)})
