"""Contracts of learners, scorers and latent encoders."""

from __future__ import annotations

import contextlib
import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..checkpoint import CheckpointModule, Scorer, load_module, save_module
from ..core import Batch, Feature, Unsupported
from ..data.augment import GaussianNoise
from ..data.episode import Dataset
from ..data.mixture import EXPERT
from ..data.window import Window
from ..heads.denoising.flow import Flow
from ..heads.likelihood.categorical import Categorical
from ..heads.likelihood.regression import Regression
from ..heads.memory.neighbors import Neighbors
from ..learn.cloning.latent_labels import LatentEncoder
from ..learn.fit import LearnerConfig
from ..learn.rewards.reward_models import RewardModel, RewardModelConfig
from ..nets.mlp import MLP
from ..policy import Policy, PolicyConfig
from .base import STATE, _packages_in_files, _rng, require, require_equal, require_finite
from .random_data import random_dataset

Module = TypeVar("Module", bound=CheckpointModule)


@torch.no_grad()
def check_scorer(scorer: Scorer, obs: Mapping[str, Tensor], plan: Tensor) -> None:
    """Checks the contract of a scorer.

    It gives one score for each plan, rows do not influence each other, nothing is random, and it is loaded again from
    its files.

    Args:
        scorer: The scorer, in evaluation mode.
        obs: Observation windows by column, (B, To, ...) with B of 2 or more.
        plan: Plans in world units, (B, H, A).
    """
    B = len(plan)
    require(set(scorer.inputs) <= set(obs), f"a scorer must read columns that are there; it reads {scorer.inputs}")
    read = {name: obs[name] for name in scorer.inputs}
    state = torch.random.get_rng_state()
    score = scorer(read, plan)
    require(score.shape == (B,), f"a score must be one number for each plan, (B,), and is {tuple(score.shape)}")
    require(bool(score.isfinite().all()), "scores must be finite")
    require_equal(scorer(read, plan), score, "the same plan must have the same score")
    require(torch.equal(torch.random.get_rng_state(), state), "a score must not be random")
    one = scorer({k: v[1:2] for k, v in read.items()}, plan[1:2])
    require_equal(one[0], score[1], "a row's score must not depend on the other rows", 1e-4)
    require_equal(_saved_and_loaded(scorer)(read, plan), score, "what was loaded must score alike")


def _saved_and_loaded(module: Module) -> Module:
    with tempfile.TemporaryDirectory() as folder:
        save_module(module, folder)
        loaded = load_module(folder, _packages_in_files(folder))
    require(type(loaded) is type(module), "what was saved must be loaded as the same class")
    return cast(Module, loaded)


def check_latent_encoder(encoder: LatentEncoder, data: Dataset) -> None:
    """Checks the contract of a latent encoder.

    It gives one latent for each step of the data, which has the shape and type of its feature. Nothing is random,
    windows do not influence each other, and it is loaded again from its files.

    Args:
        encoder: The encoder, in evaluation mode.
        data: Two or more episodes that it can read.
    """
    windows = encoder.windows(data)
    require(len(windows) == data.steps, f"there must be one window for each of the {data.steps} steps, and there are "
            f"{len(windows)}")
    batch, state = windows.gather(np.arange(data.steps)), torch.random.get_rng_state()
    with torch.no_grad():
        latents = encoder(batch)
        feature = encoder.latent
        require(latents.shape == (data.steps, *feature.shape) and str(latents.dtype) == f"torch.{feature.dtype}",
                f"latents must be {feature.dtype} {feature.shape}, and are {latents.dtype} {tuple(latents.shape[1:])}")
        require_equal(encoder(batch), latents, "the same window must have the same latent")
        require(torch.equal(torch.random.get_rng_state(), state), "a latent must not be random")
        require_equal(encoder(batch.select_rows(slice(1, 2)))[0], latents[1],
                      "a window's latent must not depend on the other windows", 1e-4)
        again = _saved_and_loaded(encoder)
        require_equal(again(again.windows(data).gather(np.arange(data.steps))), latents,
                      "what was loaded must give the same latents")


def check_learner(config: LearnerConfig, policies: Sequence[PolicyConfig] = ()) -> None:
    """Checks the contract of a learner on several policies.

    - An update depends on the learner's state and the batch alone, and leaves the global random generators as they
      were.
    - The state is tensors and JSON. It is complete: a learner that is restored from it, into a policy that never saw
      the data, continues bit for bit.
    - The policy that acts is in evaluation mode or a copy: acting does not change the training.
    - Batches are functions of (seed, step), and the parts of several processes add up to the batch.

    That losses are not reduced is checked by `GradientLearner.minimize` in every update.

    Args:
        config: The learner's config, with a small `batch_size`. Columns that it names in `extra` get random numbers.
        policies: The policies to train. By default a regression with dropout, a flow with an augmentation, and nearest
            neighbors, which have no weights.
    """
    window = Window(2, 3)
    for policy in policies or (
            PolicyConfig(Regression(), MLP(16, 1, dropout=0.2), window=window, inputs=(STATE,)),
            PolicyConfig(Flow(n_steps=2), MLP(16, 1), window=window, inputs=(STATE,),
                         augmentations=(GaussianNoise(STATE, 0.1),)),
            PolicyConfig(Neighbors(), MLP(16, 1), window=window, inputs=(STATE,))):
        _check_learner(config, policy)


def _check_learner(config, policy_config):
    features = {**{k: Feature("float32", (3,)) for k in policy_config.inputs},
                **{k: Feature("float32", ()) for k in config.extra},
                policy_config.target: Feature("int64", (1,), "discrete", num_classes=(3,))
                if isinstance(policy_config.head, Categorical) else Feature("float32", (2,))}
    data, name = _half_by_an_expert(random_dataset(features)), f"with {type(policy_config.head).__name__}"

    def build(seed, statistics=True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            policy = Policy(policy_config, data.features())
            return config.build(policy.fit_statistics(data) if statistics else policy, 0, 10, data)

    straight, stopped = build(0), build(0)
    annotated = straight.annotate(data, None)
    require([len(e) for e in annotated] == [len(e) for e in data], "annotate must return all steps of all episodes")
    sampler, size = straight.batch_sampler(annotated), config.batch_size
    _check_batch_sampler(sampler, size)
    batches = [sampler.batch(size, step) for step in range(6)]

    before = torch.get_rng_state()
    metrics = [straight.update(batch) for batch in batches]
    require(torch.equal(torch.get_rng_state(), before), f"{name}, an update must leave the global generator as it was")
    require(all(np.isfinite(list(m.values())).all() for m in metrics), f"{name}, metrics must be finite")
    require(not any("score" in m for m in metrics), f"{name}, the metric score is that of rollouts, which choose the "
            "best checkpoint: give yours another name")

    with torch.random.fork_rng(devices=[]):
        for batch in batches[:3]:
            torch.manual_seed(1)  # where the global generator stands must not matter
            stopped.update(batch)
    noise = torch.randn(size, *stopped.trained_policy.noise_shape, generator=_rng(0))
    acting = copy.deepcopy(stopped.trained_policy).eval()
    tensors, metadata = stopped.state()
    with tempfile.TemporaryDirectory() as folder:
        save_file({k: v.detach().clone().contiguous() for k, v in tensors.items()}, Path(folder) / "state")
        tensors, metadata = load_file(Path(folder) / "state"), json.loads(json.dumps(metadata))
    restored = build(1, statistics=False)
    restored.restore(tensors, metadata)
    again = restored.state()[0]
    require(again.keys() == tensors.keys() and all(torch.equal(v.detach(), tensors[k]) for k, v in again.items()),
            f"{name}, restore must take over every tensor of the state")
    obs = stopped.policy.windows(data).batch(size, 0).obs  # learners may sample other windows than the policy's
    plans = [copy.deepcopy(p).eval().plan(obs, noise) for p in (acting, restored.trained_policy)]
    require_equal(plans[1], plans[0], f"{name}, a restored learner must act like the saved one")
    for learner in (stopped, restored):
        continued = [learner.update(batch) for batch in batches[3:]]
        require(continued == metrics[3:], f"{name}, a learner must continue bit for bit: its metrics differ after a "
                "restore, after acting or with the state of the global generator")
        for key, value in straight.state()[0].items():
            require(torch.equal(value, learner.state()[0][key]), f"{name}, {key} must be bit-equal after resuming")


def _half_by_an_expert(data: Dataset) -> Dataset:
    return Dataset([replace(episode, metadata={**episode.metadata, EXPERT: number % 2 == 0})
                    for number, episode in enumerate(data)])


def _check_batch_sampler(sampler, size):
    whole, same, other = (sampler.batch(size, step) for step in (3, 3, 4))
    require(torch.equal(whole.action, same.action), "a batch must be a function of seed and step")
    require(not torch.equal(whole.action, other.action), "batches of two steps must differ")
    parts = [sampler.batch(size, 3, rows=rows) for rows in (slice(0, size // 3), slice(size // 3, size))]
    require(torch.equal(torch.cat([p.action for p in parts]), whole.action),
            "the shares of several processes must make up the batch")
    for key, value in whole.extra.items():
        require(torch.equal(torch.cat([p.extra[key] for p in parts]), value),
                f"the shares of several processes must make up the batch, in column {key!r}")
    for name, other in whole.others.items():
        require(len(other) == size and torch.equal(torch.cat([p.others[name].action for p in parts]), other.action),
                f"the shares of several processes must make up the batch {name!r}")


def check_reward_model(config: RewardModelConfig) -> None:
    """Checks the contract of a reward model, on random data.

    - The reward is one number for each step, (B, H). It is not random, rows do not influence each other, and what is
      loaded from its files gives the same.
    - The loss is one number for each row, (B,), that depends on the batches and the generator alone. Its gradient
      reaches the parameters that the optimizer trains.
    - It is a scorer: see `check_scorer`, unless it refuses to score plans.

    Args:
        config: The config of the model, with small networks.
    """
    columns = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,)),
               **{name: Feature("float32", ()) for name in (*config.extra, "next.reward", "next.terminated")}}
    data = _half_by_an_expert(random_dataset(columns))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        policy = Policy(PolicyConfig(Regression(), MLP(16, 1), inputs=(STATE,)), columns).fit_statistics(data).eval()
        model = config.build(policy, data)
    extra = (*config.extra, *model.annotations, "next.reward")
    parts = (model.annotate(data.select(range(first, 6, 2))) for first in (0, 1))
    expert, collected = (policy.windows(episodes, extra=extra, next_obs=True).batch(5, 0) for episodes in parts)
    collected, expert = (b.replace(extra={**b.extra, "log_prob": torch.zeros(5, 1)}) for b in (collected, expert))
    if config.optimizer is not None:
        _check_reward_loss(model, collected, expert)
    model.eval()
    with torch.no_grad():
        reward, state = model.reward(collected, policy), torch.random.get_rng_state()
        require_finite(reward, (5, 1), "a reward", "(B, H)")
        require_equal(model.reward(collected, policy), reward, "the same batch must have the same reward")
        require(torch.equal(torch.random.get_rng_state(), state), "a reward must not be random")
        require_equal(model.reward(collected.select_rows(slice(1, 3)), policy), reward[1:3],
                      "a row's reward must not depend on the other rows", 1e-4)
        require_equal(_saved_and_loaded(model).reward(collected, policy), reward,
                      "what was loaded must give the same reward")
    with contextlib.suppress(Unsupported):
        check_scorer(model, collected.obs, collected.action)


def _check_reward_loss(model: RewardModel, collected: Batch, expert: Batch) -> None:
    model.train()
    state = torch.random.get_rng_state()
    losses = [copy.deepcopy(model).loss(collected, expert, _rng(0)) for _ in range(2)]
    require_finite(losses[0], (len(collected),), "a loss of a reward model", "(B,)")
    require_equal(losses[1], losses[0], "a loss must depend on the batches and the generator alone")
    require(torch.equal(torch.random.get_rng_state(), state), "a loss must draw from its generator alone")
    model.loss(collected, expert, _rng(0)).sum().backward()
    trained = [p for p in model.parameters() if p.requires_grad]
    require(bool(trained) and any(p.grad is not None and p.grad.abs().sum() > 0 for p in trained),
            "the gradient of the loss must reach the parameters")
    model.zero_grad()
