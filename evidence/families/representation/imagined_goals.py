"""Row 231: practice for imagined goals, to reach those of pictures. Do latents measure distance better than pixels?"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from evidence.experiment import DemonstrationSource, Experiment
from evidence.families.representation.goal_pictures import PICTURE, SIZE, STATE, Pictures, SameRoom
from evidence.measures import ROWS, train_stages
from understudy.core import keys, part
from understudy.data.episode import Dataset
from understudy.data.window import Goal, Subgoal
from understudy.envs.toys.four_rooms import CELLS, STEPS, FourRooms
from understudy.envs.toys.maze import cell_of
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.recording import UniformRandomActor
from understudy.evaluate.rollout import rollout
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.goal_conditioned.rig import LATER, RIG
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.vision import SmallConv

GOAL, GOAL_PICTURE, WAY = Goal("").into, "observation.later_picture", "steps to go"
STRIDE, LIMIT, STEPS_PER_CELL = 4, 10, 5  # steps of one action; actions of an episode
RADIUS = 1.0  # m: standard deviation of the agent in the picture
FAST = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
LEARNER = {"batch_size": 128, "discount": 0.9, "target_decay": 0.95, "optimizer": FAST}


class Strides(SameRoom):
    """Each action lasts four steps, and every episode has ten of them. The goal lies in the room of the start."""

    def __init__(self, rows: int = 1):
        FourRooms.__init__(self, rows, LIMIT)

    def advance(self, action):
        for _ in range(STRIDE):
            never, _, _ = FourRooms.advance(self, action)
        never = np.zeros_like(never)
        return never, never, never


class Blobs(Pictures):
    """Pictures in which the agent fades away from its center, so that pictures of near places overlap."""

    def _draw(self, at: Tensor) -> Tensor:
        middles = (torch.arange(SIZE) + 0.5) * CELLS / SIZE
        x, y = ((middles - at[:, i, None]).square() / (-2 * RADIUS**2) for i in (0, 1))
        share = (y.flip(1)[:, :, None] + x[:, None]).exp()[..., None]  # rows from the top
        rooms, color = torch.from_numpy(self.rooms).float(), torch.tensor(self.color).float()
        return (rooms + share * (color - rooms)).round().to(torch.uint8)


@dataclass(frozen=True)
class RandomWalks(DemonstrationSource):
    """Episodes of random actions, in pictures."""

    episodes: int = 100

    def load(self, seed):
        env = Blobs(Strides(ROWS))
        return rollout(UniformRandomActor(env), env, self.episodes, recording_seed(seed))


@part
class SameRow(Subgoal):
    """The same row as another goal."""

    def sample_rows(self, episode, t, lengths, rng, drawn):
        return drawn[self.toward]


@part
class PixelRIG(RIG):
    """RIG, whose reward is minus the distance of pictures."""

    def sampler(self, policy, data, weights):
        return self.window(policy).windows(data, (*policy.inputs, PICTURE), "action", next_obs=True)

    def window(self, policy):
        window = super().window(policy)
        return replace(window, goals=(*window.goals, SameRow(PICTURE, GOAL_PICTURE, toward=LATER)))

    def rewards(self, batch):
        difference = batch.next[PICTURE].float() - batch.extra[GOAL_PICTURE].float()
        return -difference.flatten(2).norm(dim=-1) / 255


@dataclass(frozen=True)
class Practice:
    """RIG on two layers of 64 units.

    Args:
        p_randomgoal: Fraction of the goals of windows that are any row of any episode. The others come later.
    """

    learner: RIG = RIG()
    encoder: Literal["VAE", "untrained", "position"] = "VAE"
    p_randomgoal: float = 0.0
    n_rounds: int = 4
    n_steps: int = 200
    updates: float = 2.5
    beta: float = 0.1
    n_vae: int = 4000

    @property
    def method(self) -> Method:
        column = STATE if self.encoder == "position" else PICTURE
        method = RIG().method(column, 4, self.beta, self.n_rounds, self.n_steps, self.updates, noise=0.4)
        (stage,), camera = method.stages, TokenEncoder(4, vision=SmallConv((16, 16, 32, 32), 16))
        scene = replace(stage.method.policy, encoder=camera)
        vae = replace(stage.method, policy=scene, learner=replace(
            stage.method.learner, steps=self.n_vae, batch_size=64, optimizer=OptimizerConfig(lr=3e-3)))
        if self.encoder != "VAE":
            encoder = ConcatEncoder() if self.encoder == "position" else camera
            vae = Method(replace(scene, encoder=encoder, target="action"), learner=BehaviorCloning(0))
        policy = replace(method.policy, trunk=FeedForward((64, 64)), window=replace(method.policy.window, goals=(
            replace(method.policy.window.goals[0], p_randomgoal=self.p_randomgoal),)))
        learner = replace(self.learner, critic=CriticConfig((64, 64)), **LEARNER)
        return replace(method, policy=policy, learner=learner, stages=(replace(stage, method=vae),))


def to_pictures(experiment, option: Practice, data: Dataset, seed: int, episodes: int, starts: int):
    """Practices, and measures the shortest way that is left after ten actions, in means of those at the start."""
    env, method = Blobs(Strides(min(ROWS, episodes))), option.method
    if option.encoder == "position":
        env = env.env  # which shows where to go
        data = data.map(lambda episode: episode.replace({PICTURE: None, GOAL: None}))
    trained = fit_method(method, data, seed, stages=train_stages(experiment, method, data, seed), env=env)
    rollouts, places = rollout(trained.actor, env, episodes, seed=starts), Strides(episodes)
    places.reset(torch.arange(episodes), keys(starts, range(episodes)))
    walks = list(zip(rollouts, places.state["goal"], strict=True))
    first, last = ([steps_to_go(walk.steps[STATE][t], goal) for walk, goal in walks] for t in (0, -1))
    return {WAY: [n / float(np.mean(first)) for n in last], "success": [float(n <= STEPS_PER_CELL) for n in last]}


def steps_to_go(at: np.ndarray, goal: np.ndarray) -> float:
    """The length of the shortest way between two places, in steps of the world: five for each cell."""
    (x, y), (to_x, to_y) = cell_of(np.stack([at, goal]), CELLS)
    return float(STEPS_PER_CELL * STEPS[CELLS * to_x + to_y, x, y])


PIXELS, COMMANDED = "pixel distance", "commanded goals only"
OWN, PICTURES = RIG(p_imagined=0.0, p_practiced=0.0), PixelRIG(p_imagined=0.0, p_practiced=0.0)
TABLE = Experiment(RandomWalks(), env="four_rooms", first_seed=2310, looks=((3, 0.02), (5, 0.03)),
                   episodes=200, measure=to_pictures,
                   levels={"position": 0.8}, arms={
    "RIG": Practice(),
    COMMANDED: Practice(RIG(p_imagined=0.0, p_practiced=1.0)),
    "later states only": Practice(OWN),
    "goals from data": Practice(OWN, p_randomgoal=0.6),
    PIXELS: Practice(PICTURES, p_randomgoal=0.6),
    "position": Practice(encoder="position"),
    "untrained encoder": Practice(encoder="untrained")})
