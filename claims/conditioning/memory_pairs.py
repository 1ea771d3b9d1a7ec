"""Row 213: does a transformer learn to remember, if demonstrations say which earlier step each decision recalls?"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from claims.worlds.sign_corridor import (
    N_SIGNS,
    RATE_COLUMN,
    RECALLED,
    ROWS,
    SEEN,
    CorridorDemonstrations,
    MemoryPairs,
    SignCorridor,
    SignCorridorExpert,
    recalled_sign,
)
from understudy.claims.base import (
    RATE,
    SCORE,
    Arm,
    Claim,
    ClaimPart,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.claims.measures import train_policy
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.cloning.attention_supervision import MemorySupervision
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.base import capture_intermediates
from understudy.nets.encoders import TokenEncoder
from understudy.nets.transformer import Transformer
from understudy.policy import Policy, PolicyConfig


def success_at_junction(
    experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls it out.

    Returns:
        One value per start. "success" and "arrived": 0 or 1, whether it turned to the right side, and whether it came
        to the junction. "attention": how much of the supervised head's attention is on the right sign there.
    """
    policy = train_policy(experiment, method, data, seed)
    actor = PolicyActor(FixedBatch(policy, ROWS), method.executor)
    rollouts = rollout(actor, SignCorridor(ROWS), episodes, seed=starts)
    right = rollout(SignCorridorExpert(), SignCorridor(ROWS), episodes, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts],
            "arrived": [float(len(e) > N_SIGNS) for e in rollouts],
            "attention": attention_to_sign(policy, right)}


@torch.no_grad()
def attention_to_sign(policy: Policy, episodes: Dataset) -> list[float]:
    """Attention of the first head of the first layer, from the junction to the sign of its color, per episode."""
    first = MemorySupervision(RECALLED).captures[0]
    batch = policy.windows(episodes).gather((N_SIGNS + 1) * np.arange(len(episodes)) + N_SIGNS)
    key = torch.arange(len(episodes))
    with capture_intermediates([first]) as captured:
        policy.eval().plan(batch.obs, policy.noise(key, torch.zeros_like(key)))
    attention = captured[first][:, 0, -1, 1:]
    return attention[key, [recalled_sign(e) for e in episodes]].tolist()


def supervised_attention_method(pairs: MemoryPairs) -> Method:
    """The same network and updates. Without pairs there is no auxiliary loss."""
    policy = PolicyConfig(Categorical(), Transformer(64, 1, 2, encoder_depth=2), TokenEncoder(64),
                          window=Window(N_SIGNS + 1, obs_pad_mask=True), inputs=(SEEN,))
    learner = BehaviorCloning(500, 64, OptimizerConfig(lr=1e-3), sampling_column=RATE_COLUMN,
                              auxiliary_losses=(MemorySupervision(RECALLED),) if pairs.labeled else ())
    return Method(policy, RecedingHorizon(), learner, (pairs,))


def with_shifted_pairs(experiment: Experiment) -> Experiment:
    """The pair names the sign three places before the right one."""
    changed = Arm("pairs", (supervised_attention_method(MemoryPairs(FEW, FEW, shift=3)),))
    return replace(experiment.replace_arms(changed), sanity=())


FEW, MANY = 50, 400
PLAIN = Arm("plain", (supervised_attention_method(MemoryPairs(FEW)),))
CORRIDOR = Experiment(
    CorridorDemonstrations(MANY),
    "sign_corridor",
    (
        Arm("pairs", (supervised_attention_method(MemoryPairs(FEW, FEW)),)),
        PLAIN,
        Arm("plain, 400 demonstrations", (supervised_attention_method(MemoryPairs(MANY)),)),
    ),
    success_at_junction,
    seeds=tuple(range(780, 788)),
    episodes=400,
    measures=(("arrived", RATE), ("attention", SCORE)),
    starts_seed=780,
    looks=((5, 0.02), (8, 0.03)),
    sanity=(("pairs", "arrived", 0.95), ("plain", "arrived", 0.95), ("plain, 400 demonstrations", "success", 0.65)),
)
FIFTH = replace(
    CORRIDOR, arms=(Arm("a fifth of the pairs", (supervised_attention_method(MemoryPairs(FEW, FEW // 5)),)), PLAIN),
    seeds=CORRIDOR.seeds[:5], looks=(), sanity=())

CLAIM = Claim(
    name="memory-pairs",
    rows=("213",),
    parts=(
        ClaimPart("50 demonstrations", CORRIDOR, GreaterThan("success", "pairs", "plain", 0.2)),
        ClaimPart("against 400 demonstrations", replace(CORRIDOR, seeds=CORRIDOR.seeds[:5], looks=(), sanity=()),
                  GreaterThan("success", "pairs", "plain, 400 demonstrations"), is_decisive=False),
        ClaimPart("a fifth of the pairs", FIFTH, GreaterThan("success", "a fifth of the pairs", "plain"),
                  is_decisive=False),
    ),
    negative_control=NegativeControl(with_shifted_pairs, "50 demonstrations"),
)
