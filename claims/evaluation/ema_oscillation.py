"""Row 281: noise of small batches makes the return swing from checkpoint to checkpoint, and an average calms it.

The negative control takes away most of the noise by large batches. Episodes, updates and learning rate are the same, so
the return could swing as much.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call, stack_module_state

from claims.worlds.curation import cached_load
from understudy import config
from understudy.claims.base import (
    REAL,
    AboveBound,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    MissingRequirement,
    NegativeControl,
)
from understudy.claims.memo import Memo
from understudy.core import UserError, keys
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.ema import PolynomialDecay
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

# -- demonstrations -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AgentActor(Actor):
    """The mean action of a trained agent: a tanh network on standardized observations."""

    weights: dict[str, np.ndarray]

    def start(self, obs, key):
        return {}

    def act(self, obs, state):
        w = self.weights
        x = (obs["observation.state"].double().numpy() - w["obs_mean"]) / (w["obs_std"] + 1e-6)
        x = np.tanh(np.tanh(x @ w["W0"] + w["b0"]) @ w["W1"] + w["b1"])
        return torch.as_tensor(x @ w["W2"] + w["b2"]).float(), state


@dataclass(frozen=True)
class AgentDemonstrations(DemonstrationSource):
    """New episodes of a trained agent for each training seed. The last episode is not learned from.

    Args:
        path: Of the agent's weights, relative to UNDERSTUDY_DATA.
        digest: SHA-256 of the file, shortened.
    """

    path: str
    digest: str
    env: str
    episodes: int
    probe_sizes = {"episodes": 2}

    @cached_load
    def load(self, seed):
        folder = os.environ.get("UNDERSTUDY_DATA")
        file = Path(folder or "", self.path)
        if not folder or not file.exists():
            raise MissingRequirement("The weights of the trained agent are not on this machine.", where=file,
                                     hint="set UNDERSTUDY_DATA to the folder that holds them")
        if (digest := hashlib.sha256(file.read_bytes()).hexdigest()[:16]) != self.digest:
            raise UserError(f"The file differs from the one that the claim was made for: SHA-256 {digest}, not "
                            f"{self.digest}.", where=file, hint="download the file from its source again")
        with np.load(file, allow_pickle=False) as arrays:
            agent = AgentActor({name: arrays[name] for name in arrays if arrays[name].dtype.kind == "f"})
        env = make(self.env, rows=self.episodes)
        try:
            return rollout(agent, env, self.episodes, recording_seed(seed))
        finally:
            env.close()


# -- training -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WatchedMethod:
    """One training, looked at in its last weights or in their average.

    Args:
        averaged: Whether the average of the weights acts.
        n_checkpoints: Number of checkpoints, the last at the end of training.
        interval: Updates between two checkpoints.
    """

    method: Method
    averaged: bool
    n_checkpoints: int = 8
    interval: int = 200
    probe_sizes = {"n_checkpoints": 2, "interval": 2}  # among the last updates that are made


_watched = Memo()  # what one training showed, for both arms


def checkpoint_swings(experiment, watched: WatchedMethod, data: Dataset, seed: int, episodes: int,
                      starts: int) -> dict[str, list[float]]:
    """Roll out the last checkpoints, all on the same starts. Returns are fractions of the agent's in as many steps.

    Returns:
        "mean" of the returns. "swing": the standard deviation of a checkpoint's mean return, from differences of
        neighbors (root mean square divided by the square root of 2), without what the few starts explain, so that a
        trend counts little. "loss swing": the same of the loss on the episode that is not learned from, as a fraction
        of that loss after the first update. "loss": its mean over checkpoints, as the same fraction.
        "relative loss swing": "loss swing" divided by "loss".
    """
    key = json.dumps(config.dump([watched.method, watched.n_checkpoints, watched.interval, experiment.source,
                                  experiment.env_options, seed, episodes, starts]))
    both = _watched.get(key, lambda: _watch(experiment, watched, data, seed, episodes, starts))
    returns, losses = (curves[int(watched.averaged)] for curves in both)
    limit = dict(experiment.env_options)["max_episode_steps"]
    table = returns / np.mean([e.steps["next.reward"][:limit].sum() for e in data])
    change = np.diff(table, axis=0)
    chance = float(change.var(1, ddof=1).mean()) / table.shape[1] / 2
    swing = max(float((change.mean(1) ** 2).mean()) / 2 - chance, 0.0) ** 0.5
    loss, loss_swing = float(losses.mean()), float(np.sqrt((np.diff(losses) ** 2).mean() / 2))
    return {"swing": [swing], "mean": [float(table.mean())], "loss swing": [loss_swing], "loss": [loss],
            "relative loss swing": [loss_swing / loss]}


def _watch(experiment, watched: WatchedMethod, data: Dataset, seed: int, episodes: int, starts: int):
    """Returns (2, checkpoints, starts) and losses (2, checkpoints), of the last weights and of their average."""
    learned, held_out = data.select(range(len(data) - 1)), data.select([len(data) - 1])
    steps, interval = watched.method.learner.steps, watched.interval
    first, policies = [], ([], [])

    def loss(policy: Policy) -> float:
        windows = policy.windows(held_out)
        with torch.no_grad():
            return float(policy.loss(windows.gather(np.arange(len(windows))), Generator().manual_seed(0)).mean())

    def look(step, learner, metrics):
        if not first:
            first.append(loss(learner.policy))
        if step > steps - watched.n_checkpoints * interval and (steps - step) % interval == 0:
            for kept, policy in zip(policies, (learner.policy, learner.trained_policy), strict=True):
                kept.append(copy.deepcopy(policy).eval().requires_grad_(False))

    fit_method(watched.method, learned, seed, callbacks=(look,))
    returns = _returns(experiment, [*policies[0], *policies[1]], episodes, starts)
    return (returns.reshape(2, -1, episodes),
            np.array([[loss(policy) for policy in kept] for kept in policies]) / first[0])


class Stacked:
    """Policies of one shape that plan single actions, side by side."""

    def __init__(self, policies: Sequence[Policy]):
        self.policy = policies[0]
        self.weights = stack_module_state(list(policies))

    @torch.no_grad()
    def act(self, obs: Tensor) -> Tensor:
        """Actions (policies, rows, A) for observations (policies, rows, size)."""
        noise = torch.zeros(obs.shape[1], 1, 0)
        planner = _Plan(self.policy)

        def plan(weights, obs):
            named = {f"policy.{k}": v for part in weights for k, v in part.items()}
            return functional_call(planner, named, (obs, noise))

        return torch.vmap(plan)(self.weights, obs)


class _Plan(nn.Module):
    def __init__(self, policy: Policy):
        super().__init__()
        self.policy = policy

    def forward(self, obs, noise):
        return self.policy.plan({"observation.state": obs[:, None]}, noise)[:, 0]


def _returns(experiment, policies: Sequence[Policy], episodes: int, starts: int) -> np.ndarray:
    """(policies, episodes), each policy on the same starts. `rollout` would give each row a start of its own."""
    rows, stacked = len(policies) * episodes, Stacked(policies)
    env = make(experiment.env, rows=rows, **dict(experiment.env_options))
    try:
        columns = env.reset(torch.arange(rows), keys(starts, range(episodes)).repeat(len(policies)))
        total, live = torch.zeros(rows), torch.ones(rows, dtype=torch.bool)
        while live.any():
            obs = columns["observation.state"].float().unflatten(0, (len(policies), episodes))
            step = env.step(stacked.act(obs).flatten(0, 1))
            total += live * step.reward
            live &= ~(step.terminated | step.truncated)
            columns = step.obs
    finally:
        env.close()
    return total.reshape(len(policies), episodes).double().numpy()


# -- the claim ----------------------------------------------------------------------------------------------------

POLICY = PolicyConfig(Regression(), trunk=MLP(128, 1), encoder=ConcatEncoder(), window=Window())


def cloning(batch_size: int) -> Method:
    """Behavior cloning at a constant learning rate, as in the plain runs of the paper."""
    return Method(POLICY, RecedingHorizon(1), BehaviorCloning(
        steps=3000, batch_size=batch_size, ema=PolynomialDecay(),
        optimizer=OptimizerConfig(lr=1e-3, lr_schedule="constant")))


SMALL, LARGE = cloning(8), cloning(1024)

WALKER = Experiment(
    AgentDemonstrations("cs285/walker2d_expert_policy.npz", "8b8f81ce0585c693", "Walker2d-v4", 4),
    "Walker2d-v4",
    (
        Arm("raw", (WatchedMethod(SMALL, averaged=False),)),
        Arm("averaged", (WatchedMethod(SMALL, averaged=True),)),
        Arm("large batches", (WatchedMethod(LARGE, averaged=False),)),
        Arm("large batches, averaged", (WatchedMethod(LARGE, averaged=True),)),
    ),
    checkpoint_swings,
    tuned_by="mean",
    seeds=tuple(range(620, 628)),
    tuning_seeds=(903,),
    starts_seed=620,
    episodes=5,
    env_options=(("max_episode_steps", 500),),
    measures=(("swing", Measure("real", "return fraction")), ("mean", Measure("real", "return fraction")),
              ("loss swing", Measure("real", "loss fraction")), ("loss", REAL), ("relative loss swing", REAL)),
    looks=((5, 0.02), (8, 0.03)),
    sanity=(("raw", "mean", 0.5), ("averaged", "mean", 0.5), ("large batches", "mean", 0.5)),
)


def large_batches(experiment: Experiment) -> Experiment:
    """Large batches in place of small ones. Everything else stays."""
    return experiment.change_options(lambda o: replace(o, method=LARGE))


SHARP = AboveBound("swing", "raw", 0.05)
CLAIM = Claim(
    name="ema-oscillation",
    rows=("281",),
    parts=(ClaimPart("walker", WALKER, AllOf((
        SHARP, GreaterThan("swing", "raw", "large batches"), GreaterThan("swing", "raw", "averaged"),
        GreaterThan("mean", "averaged", "raw", -0.05)))),),
    negative_control=NegativeControl(large_batches, "walker", removes=(SHARP,)),
    needs=("the sim extra", "recorded demonstrations (UNDERSTUDY_DATA)"),
)
