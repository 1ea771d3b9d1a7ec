"""Row 304: does a history whose past becomes one token help as much as a whole history?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from claims.worlds.sign_corridor import RATE_COLUMN, ROWS, SEEN, CorridorDemonstrations, MemoryPairs, SignCorridor
from understudy.claims.base import RATE, AllOf, Arm, Claim, ClaimPart, Experiment, GreaterThan, NegativeControl
from understudy.claims.measures import train_policy
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.generative.contextvla import PooledHistoryEncoder
from understudy.nets.base import Encoder, EncoderNet
from understudy.nets.encoders import TokenEncoder
from understudy.nets.transformer import Transformer
from understudy.policy import PolicyConfig

N_SIGNS, EPISODES, WIDTH = 8, 1000, 32


@dataclass(frozen=True)
class WithoutContextToken(PooledHistoryEncoder):
    """The past ends with the first blocks: its mean is taken, and masked."""

    def pool(self, tokens, mask):
        mean, any_past = super().pool(tokens, mask)
        return mean, torch.zeros_like(any_past)


@dataclass(frozen=True)
class RepeatedStep(Encoder):
    """The observation of the current step in place of those of past steps, also before the start of the episode.

    Args:
        encoder: Encoder that gives the tokens of each step.
    """

    encoder: Encoder

    def build(self, features, n_obs_steps):
        return _RepeatedStepNet(self.encoder.build(features, n_obs_steps))


class _RepeatedStepNet(EncoderNet):
    def __init__(self, encoder: EncoderNet):
        super().__init__()
        self.encoder = encoder
        self.tokens, self.width, self.token_obs_steps = encoder.tokens, encoder.width, encoder.token_obs_steps

    def forward(self, obs, rng=None):
        return self.encoder({name: x[:, -1:].expand_as(x) for name, x in obs.items()}, rng)


def success_at_junction(
    experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        "success" and "arrived", 0 or 1 per start: whether it turned to the right side, and whether it came to the
        junction.
    """
    policy, env = train_policy(experiment, method, data, seed), SignCorridor(ROWS, N_SIGNS + 3, N_SIGNS)
    rollouts = rollout(PolicyActor(FixedBatch(policy, ROWS), method.executor), env, episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts],
            "arrived": [float(len(e) > N_SIGNS) for e in rollouts]}


def history_arm(name: str, encoder: PooledHistoryEncoder, n_obs_steps: int = N_SIGNS + 1) -> Arm:
    """The same blocks, trunk, head, data and updates."""
    policy = PolicyConfig(Categorical(), Transformer(WIDTH, 1, 2), encoder,
                          window=Window(n_obs_steps, obs_pad_mask=True), inputs=(SEEN,))
    learner = BehaviorCloning(1000, 64, OptimizerConfig(lr=2e-3), sampling_column=RATE_COLUMN)
    return Arm(name, (Method(policy, RecedingHorizon(), learner, (MemoryPairs(EPISODES),)),))


def with_repeated_step(experiment: Experiment) -> Experiment:
    """The pooled arm reads the current step in place of the past."""
    return experiment.replace_arms(history_arm("pooled", replace(POOLED, encoder=RepeatedStep(TokenEncoder(WIDTH)))))


POOLED = PooledHistoryEncoder(4, 2, 2, encoder=TokenEncoder(WIDTH))
ALL_TOKENS = replace(POOLED, pool_after=None)
ARMS = (history_arm("pooled", POOLED), history_arm("whole history", ALL_TOKENS),
        history_arm("one observation", ALL_TOKENS, 1))
CORRIDOR = Experiment(
    CorridorDemonstrations(EPISODES, N_SIGNS),
    "sign_corridor",
    ARMS,
    success_at_junction,
    seeds=tuple(range(860, 868)),
    episodes=400,
    measures=(("arrived", RATE),),
    starts_seed=860,
    looks=((5, 0.02), (8, 0.03)),
    sanity=(*((arm.name, "arrived", 0.95) for arm in ARMS), ("whole history", "success", 0.85)),
)
FIRST = replace(CORRIDOR, seeds=CORRIDOR.seeds[:5], looks=(), sanity=())
ABLATIONS = replace(FIRST, arms=(
    ARMS[0],
    history_arm("pooled at once", replace(POOLED, pool_after=0)),
    history_arm("no context token", WithoutContextToken(**vars(POOLED))),
))
GAIN = GreaterThan("success", "pooled", "one observation", 0.3)

CLAIM = Claim(
    name="pooled-history",
    rows=("304",),
    parts=(
        ClaimPart("corridor", CORRIDOR, AllOf((GAIN, GreaterThan("success", "pooled", "whole history", -0.1)))),
        ClaimPart("whole history", FIRST, GreaterThan("success", "whole history", "one observation", 0.3),
                  is_decisive=False),
        ClaimPart("blocks before the mean", ABLATIONS, GreaterThan("success", "pooled", "pooled at once", 0.3),
                  is_decisive=False),
        ClaimPart("context token", ABLATIONS, GreaterThan("success", "pooled", "no context token"), is_decisive=False),
    ),
    negative_control=NegativeControl(with_repeated_step, "corridor", removes=(GAIN,)),
)
