"""Row 022: is a flow in two steps as good as diffusion in sixteen, and does a marked aim let one policy reach any?
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from claims.policy_heads.beso_three_steps import GOAL, STATE, EndsExpert, TwoEnds
from claims.worlds.curation import cached_load
from claims.worlds.fork import ROWS, SampledMethod, chunk_method, train_sampled
from understudy.claims.base import (
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.data.episode import Dataset
from understudy.envs.toy import Toy
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.base import Head, uniform_noise
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression

UPDATES, HORIZON, EXECUTED = 4000, 16, 8
NOISE = 0.03  # of the expert's actions, m/s


@dataclass(frozen=True)
class MarkedEpisodes(DemonstrationSource):
    """Successful episodes of the expert, with the end that it goes to in the column `GOAL`.

    Args:
        episodes: Number of episodes to roll out.
        shuffled: Whether each episode has the mark of another one.
    """

    episodes: int
    shuffled: bool = False

    @cached_load
    def load(self, seed):
        env: Toy = TwoEnds(ROWS)
        rollouts = rollout(EndsExpert(0, NOISE), env, self.episodes, recording_seed(seed))
        demonstrations = list(rollouts.filter(lambda e: e.metadata["success"]))
        if not self.shuffled:
            return Dataset(demonstrations)
        order = torch.randperm(len(demonstrations), generator=torch.Generator().manual_seed(seed)).tolist()
        marks = [demonstrations[other].steps[GOAL][:1] for other in order]
        return Dataset([e.replace({GOAL: mark.repeat(len(e) + 1, 0)})
                        for e, mark in zip(demonstrations, marks, strict=True)])


@dataclass(frozen=True)
class UniformStart(Flow):
    """A flow that begins to act from uniform noise in [0, 1], as the authors' released test does."""

    def sample(self, net, context, noise, cost=None):
        return super().sample(net, context, uniform_noise(noise), cost)


def success(
    experiment, option: SampledMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out. "success" of each episode."""
    policy = train_sampled(experiment, option, data, seed)
    actor = PolicyActor(FixedBatch(policy, ROWS), option.method.executor)
    rollouts = rollout(actor, TwoEnds(ROWS), episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts]}


def sampler_arm(name: str, trained: Head, acting: Head | None = None, inputs: tuple[str, ...] = ()) -> Arm:
    method = replace(chunk_method(trained, UPDATES, HORIZON), executor=RecedingHorizon(EXECUTED))
    method = replace(method, policy=replace(method.policy, inputs=inputs))
    return Arm(name, (SampledMethod(method, acting or trained),))


def shuffled_marks(experiment: Experiment) -> Experiment:
    assert isinstance(experiment.source, MarkedEpisodes)
    return replace(experiment, source=replace(experiment.source, shuffled=True))


TWO_STEPS = sampler_arm("2 steps", Flow(), Flow(2))
DDIM_16 = sampler_arm("DDIM, 16 steps", Diffusion(), Diffusion(16))
ENDS = Experiment(
    MarkedEpisodes(200),
    "fork",
    (TWO_STEPS, DDIM_16, sampler_arm("regression", Regression()),
     sampler_arm("without mark", Flow(), Flow(2), inputs=(STATE,))),
    success,
    seeds=(2200, 2201, 2202, 2203, 2204, 2205, 2206, 2207, 2208, 2209),
    episodes=500,
    starts_seed=2200,
    sanity=(("DDIM, 16 steps", "success", 0.5),),
)
MORE_STEPS = replace(
    ENDS, arms=(sampler_arm("4 steps", Flow(), Flow(4)), sampler_arm("16 steps", Flow(), Flow(16)), DDIM_16))
UNIFORM = replace(ENDS, arms=(TWO_STEPS, sampler_arm("2 steps, uniform noise", Flow(), UniformStart(2))), sanity=())
AS_SIXTEEN = GreaterThan("success", "2 steps", "DDIM, 16 steps", -0.05)
OVER_REGRESSION = GreaterThan("success", "2 steps", "regression")
MARK_HELPS = GreaterThan("success", "2 steps", "without mark", 0.3)

CLAIM = Claim(
    name="affordance-flow",
    rows=("022",),
    parts=(
        ClaimPart("two steps", ENDS, AllOf((AS_SIXTEEN, OVER_REGRESSION, MARK_HELPS))),
        ClaimPart("more steps", MORE_STEPS, AllOf((GreaterThan("success", "4 steps", "DDIM, 16 steps", -0.05),
                                                   GreaterThan("success", "16 steps", "DDIM, 16 steps", -0.05))),
                  is_decisive=False),
        ClaimPart("uniform noise", UNIFORM, GreaterThan("success", "2 steps", "2 steps, uniform noise"),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(shuffled_marks, "two steps", removes=(MARK_HELPS,)),
)
