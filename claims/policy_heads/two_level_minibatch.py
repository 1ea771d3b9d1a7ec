"""Row 314: where the encoder is most of the work, do several noise draws per encoded image save work?"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from claims.worlds.curation import cached_load, successful_rollouts
from understudy.claims.base import (
    AboveBound,
    AllOf,
    Arm,
    BelowBound,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.claims.memo import Memo
from understudy.core import Feature
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs.raster import COLOR_OF_ROLE, Canvas
from understudy.envs.toys.fork import GOAL, GOAL_RADIUS, PILLAR, PILLAR_RADIUS, Fork, ForkExpert
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.base import sample_times
from understudy.heads.denoising.diffusion import Diffusion
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import Learner
from understudy.learn.fit_method import FitResult, fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.vision import SmallConv
from understudy.policy import Policy, PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
IMAGE, SIZE = "observation.images.top", 40  # pixels
AGENT_RADIUS = 0.05  # m, as painted
N_DEMONSTRATIONS, HELD_OUT = 100, 100  # demonstrations
N_DRAWS, UPDATES, BATCH = 8, 1400, 32  # UPDATES: of the arm with one draw, whose work all arms get
EVERY, N_WINDOWS, N_LOSS_DRAWS = 50, 512, 16  # of the validation loss: updates in between, windows, draws for each
LIMIT = 0.7  # of the work of one draw


# -- the fork, seen by a camera ---------------------------------------------------------------------------------------


class ForkImages(Fork):
    """The fork with a camera: also observes observation.images.top (40, 40, 3)."""

    def __init__(self, rows: int = 1):
        super().__init__(rows)
        self.features = {IMAGE: Feature("uint8", (SIZE, SIZE, 3), "image"), **self.features}

    def observe(self):
        return {IMAGE: render(self.state["at"]), **super().observe()}


def render(at: np.ndarray) -> np.ndarray:
    """Images (rows, SIZE, SIZE, 3) of the pillar, the goal and the positions `at` (rows, 2)."""
    canvas, ones = Canvas(len(at), SIZE, (-0.2, -0.8), 1.6), np.ones((len(at), 1), np.float32)
    canvas.circle(ones * np.array(PILLAR, np.float32), PILLAR_RADIUS, COLOR_OF_ROLE["obstacle"])
    canvas.circle(ones * np.array(GOAL, np.float32), GOAL_RADIUS, COLOR_OF_ROLE["goal"])
    canvas.circle(at, AGENT_RADIUS, COLOR_OF_ROLE["agent"])
    return canvas.image


@dataclass(frozen=True)
class ForkDemonstrations(DemonstrationSource):
    """Successful episodes of the fork's expert, which goes both ways at even odds, with images."""

    episodes: int

    @cached_load
    def load(self, seed):
        return image_demonstrations(self.episodes, seed)


def image_demonstrations(episodes: int, seed: int, split: int = 0) -> Dataset:
    """What `ForkDemonstrations` loads. Different splits are independent draws."""
    return Dataset([e.replace({IMAGE: render(e.steps["observation.state"])})
                    for e in successful_rollouts(ForkExpert(), "fork", episodes, seed, split)])


# -- training with a given amount of work ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SharedDrawDiffusion(Diffusion):
    """The copies of an encoded observation share their noise and level, so that they teach the same as one of them.

    Args:
        n_copies: Number of adjacent rows that are copies.
    """

    n_copies: int = N_DRAWS

    def loss(self, net, context, action, mask, rng):
        first = action[:: self.n_copies]
        noise = torch.randn(first.shape, generator=rng)
        level = ((1 - sample_times(self.times, first, rng)) * self.n_train_steps).ceil().clamp(1, self.n_train_steps)
        noise, level = (x.repeat_interleave(self.n_copies, 0) for x in (noise, level))
        t = (1 - level / self.n_train_steps).unsqueeze(-1)
        alpha, sigma = self.path.alpha_sigma(t)
        return (net(alpha * action + sigma * noise, t, context) - noise).square().mean(-1)


def repeated_draws_method(n_draws: int, images: bool, head: Diffusion | None = None) -> Method:
    """Arms differ in the number of draws, and therefore in the number of updates that the work allows."""
    policy = PolicyConfig(head or Diffusion(), MLP(64, 1), TokenEncoder(32, vision=SmallConv((16, 16, 16, 16), 16)),
                          inputs=(IMAGE if images else "observation.state",), window=Window(1, horizon=4))
    optimizer = OptimizerConfig(lr=1e-3, lr_schedule="constant")
    return Method(policy, RecedingHorizon(2), BehaviorCloning(UPDATES, BATCH, optimizer, n_noise_samples=n_draws))


def count_work(method: Method, data: Dataset) -> int:
    """Floating point operations of the matrix products and convolutions of the loss of one window, and its gradient."""
    learner = method.learner
    assert isinstance(learner, BehaviorCloning)
    with torch.random.fork_rng(devices=[]):
        policy = Policy(method.policy, data.features()).fit_statistics(data)
    batch = policy.windows(data).batch(1, 0)
    with FlopCounterMode(display=False) as counter:
        policy.loss(batch, torch.Generator().manual_seed(0), n_noise_samples=learner.n_noise_samples).mean().backward()
    return counter.get_total_flops()


@torch.no_grad()
def validation_loss(policy: Policy, data: Dataset) -> float:
    """Loss of held-out windows, always the same ones with the same draws."""
    policy = copy.deepcopy(policy).eval()
    batch = policy.windows(data).batch(N_WINDOWS, 0)
    loss = policy.loss(batch, torch.Generator().manual_seed(0), n_noise_samples=N_LOSS_DRAWS)
    return float(loss.sum() / batch.mask.sum())


def train_with_validation(
    method: Method, data: Dataset, seed: int, n_updates: int
) -> tuple[FitResult, dict[int, float]]:
    """Trains a method.

    Returns:
        The result, and the validation loss of the policy that acts by the number of updates.
    """
    key = method, data.fingerprint(), seed, n_updates

    def fit_and_watch() -> tuple[FitResult, dict[int, float]]:
        held_out, curve = image_demonstrations(HELD_OUT, seed, split=1), {}

        def look(step: int, learner: Learner, metrics: dict[str, float]) -> None:
            if step % EVERY == 0 or step == n_updates:
                curve[step] = validation_loss(learner.trained_policy, held_out)
        changed = replace(method, learner=replace(method.learner, steps=n_updates))
        return fit_method(changed, data, seed, callbacks=[look]), curve
    return _trained.get(key, fit_and_watch)


_trained = Memo()


def success_and_work(
    experiment: Experiment, option: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method with the work of all updates of the first arm, and rolls it out.

    Returns:
        "success" per start. "log work", one value: the logarithm of the work, as a fraction of that of the first arm,
        after which the validation loss is that of the first arm at its end. It is 0 if the loss is not reached.
    """
    reference = experiment.arms[0].options[0]
    work = count_work(option, data) / count_work(reference, data)
    n_updates = math.floor(UPDATES / work)
    result, curve = train_with_validation(option, data, seed, n_updates)
    target = list(train_with_validation(reference, data, seed, UPDATES)[1].values())[-1]
    reached = first_crossing(curve, target)
    actor = PolicyActor(FixedBatch(result.policy, ROWS), option.executor)
    rollouts = rollout(actor, ForkImages(ROWS), episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts],
            "log work": [min(0.0, math.log(reached * work / UPDATES))]}


def first_crossing(curve: dict[int, float], target: float) -> float:
    """Number of updates after which a curve first reaches `target`, by linear interpolation. Infinite if it does not.
    """
    (step, loss), *later = curve.items()
    if loss <= target:
        return step
    for next_step, next_loss in later:
        if next_loss <= target:
            return step + (next_step - step) * (loss - target) / (loss - next_loss)
        step, loss = next_step, next_loss
    return math.inf


# -- the claim ---------------------------------------------------------------------------------------------------------


def with_same_draw(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(Arm("8 draws", (repeated_draws_method(N_DRAWS, True, SharedDrawDiffusion()),)))


IMAGES = Experiment(
    ForkDemonstrations(N_DEMONSTRATIONS),
    "fork",
    (Arm("1 draw", (repeated_draws_method(1, True),)), Arm("8 draws", (repeated_draws_method(N_DRAWS, True),))),
    success_and_work,
    seeds=(600, 601, 602, 603, 604),
    episodes=500,
    measures=(("log work", Measure("real", "log ratio")),),
    starts_seed=600,
    sanity=(("1 draw", "success", 0.4),),
)
STATES = IMAGES.replace_arms(
    Arm("1 draw", (repeated_draws_method(1, False),)), Arm("8 draws", (repeated_draws_method(N_DRAWS, False),)))
LESS_WORK = BelowBound("log work", "8 draws", math.log(LIMIT))
AS_SUCCESSFUL = GreaterThan("success", "8 draws", "1 draw", -0.05)

CLAIM = Claim(
    name="two-level-minibatch",
    rows=("314",),
    parts=(
        ClaimPart("images", IMAGES, AllOf((LESS_WORK, AS_SUCCESSFUL))),
        ClaimPart("more success with images", IMAGES, GreaterThan("success", "8 draws", "1 draw"), is_decisive=False),
        ClaimPart("states", STATES, AboveBound("log work", "8 draws", math.log(0.9)), is_decisive=False),
    ),
    negative_control=NegativeControl(with_same_draw, "images", removes=(LESS_WORK,)),
)
