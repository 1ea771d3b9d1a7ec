"""Methods of `understudy improve` in which a policy practises alone, and an environment says whether it succeeded."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..checkpoint import FromStage
from ..core import Unsupported, UserError, part
from ..data.codec import Normalizer
from ..data.episode import Dataset, Episode
from ..envs.base import Env
from ..envs.wrappers import WrappedEnv
from ..execute.chunking import ChunkedExecutor, RecedingHorizon
from ..execute.wrappers import NoiseSteeringWrapper, ResidualWrapper
from ..heads.likelihood.correction import Correction
from ..heads.likelihood.squashed_gaussian import SquashedGaussian
from ..learn.critic import CriticConfig
from ..learn.critics.denoising_ppo import DenoisingPPO, DenoisingPPOLearner, check_denoising
from ..learn.critics.noise_aliasing import NoiseAliasing, demonstrated_chunks, with_chunks
from ..learn.critics.ppo import PPO
from ..learn.critics.sac import SAC
from ..learn.critics.td3 import TD3
from ..learn.fit import LearnerConfig
from ..learn.method import Method, online_changes
from ..learn.optimizer import OptimizerConfig
from ..learn.targets import REWARD, TERMINATED
from ..nets.encoders import simplest_encoder
from ..nets.feed_forward import FeedForward
from ..policy import Policy, PolicyConfig
from .collection import (
    CollectionRounds,
    Exploration,
    GaussianExploration,
    RolloutCollector,
    TemperatureExploration,
    random_episodes,
)
from .retention import LastRounds
from .updates import Epochs, PerRound

BASE = FromStage("from")  # the run that is improved
FIRST_STEPS = 1000  # steps of random noise before the first round of dsrl, at least
SLOW = OptimizerConfig(lr=5e-6, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=1.0)  # as in ResFiT
CAREFUL = OptimizerConfig(lr=1e-4, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)  # as in WSRL
STEERING: dict[str, Any] = {"temperature": 0.1, "target_entropy": 0.0, "critic": CriticConfig(layer_norm=True)}
CRITICS = CriticConfig(n_critics=4, layer_norm=True, target_subset_size=2)


@dataclass(frozen=True)
class Practice:
    """How much a policy practises: the demonstrations, and the numbers of rounds, episodes and updates.

    Args:
        n_updates: Updates after each round. None for the usual number of the method.
    """

    data: Dataset
    n_rounds: int
    n_episodes: int
    n_updates: int | None


@dataclass(frozen=True)
class SuccessReward:
    """Sets the reward of an episode to 1 in the first step that succeeds, and to 0 in all others.

    If a person has called the whole episode a success, that is its last step, which ends it.
    """

    def __call__(self, episode: Episode) -> Episode:
        ends = {}
        if "next.success" in episode.steps:
            success = np.asarray(episode.steps["next.success"]).reshape(-1).astype(bool)
        elif "success" in episode.metadata:
            success = (np.arange(len(episode)) == len(episode) - 1) & bool(episode.metadata["success"])
            ends = {} if TERMINATED in episode.steps else {TERMINATED: success}
        else:
            raise UserError("nothing says whether the episode succeeded, from which practice takes its rewards: it has "
                            "no column 'next.success', and no \"success\" in its metadata", where="SuccessReward",
                            hint="record demonstrations in an environment that defines success, or on a robot with y "
                            "and n at the end (understudy record), and name them: --data DATA")
        return episode.replace({REWARD: (success & (np.cumsum(success) == 1)).astype(np.float32), **ends})


def residual(practice: Practice, method: Method) -> Method:
    """Improves a frozen policy by learning corrections of its actions with TD3 and demonstrations (ResFiT)."""
    updates = _updates(practice, method)
    learner = TD3(policy_delay=4, target_noise=0.25, n_step=3, critic=CRITICS, critic_warmup_updates=updates,
                  policy_optimizer=SLOW)
    return _corrected(practice, method, learner, Correction(0.25), 0.2, mixture_weights=(0.5, 0.5))


def residual_ppo(practice: Practice, method: Method) -> Method:
    """Improves a frozen policy by learning corrections of its actions with PPO, from its newest episodes (ResiP)."""
    updates = Epochs(10) if practice.n_updates is None else PerRound(practice.n_updates)
    return _corrected(practice, method, PPO(max_kl=0.1, discount=0.999), Correction(0.37), 0.1,
                      retention=LastRounds(1), updates=updates)


def rlpd(practice: Practice, method: Method) -> Method:
    """Trains SAC from scratch, with demonstrations as half of each batch (RLPD)."""
    check_numbers(practice.data, "rlpd")
    learner = SAC(policy_delay=4, temperature=0.1, target_entropy=-0.5, critic=CRITICS)
    policy = PolicyConfig(SquashedGaussian(), FeedForward(), simplest_encoder(practice.data.features()))
    return _practice(practice, method, policy, learner, mixture_weights=(0.5, 0.5))


def porl(practice: Practice, method: Method) -> Method:
    """Improves all weights of the policy with TD3, from its own episodes and no demonstrations (PORL).

    A new critic learns alone from the episodes of the first round, in which the policy stays as it is. It has seen no
    episodes of other policies. Actions that are in none of its episodes do not get low scores.

    References:
        Xiao et al. (2025), Efficient Online RL Fine Tuning with Offline Pre-trained Policy Only, arXiv:2505.16856.
    """
    _check_plain(method, "porl")
    check_numbers(practice.data, "porl")
    updates = _updates(practice, method)
    learner = TD3(critic=CRITICS, critic_warmup_updates=updates, policy_optimizer=CAREFUL)
    noise = GaussianExploration(round(0.1 * float(np.mean(_half_ranges(practice.data))), 6))
    rounds = CollectionRounds(practice.n_rounds, RolloutCollector(practice.n_episodes, exploration=noise),
                              retention=LastRounds(practice.n_rounds), updates=PerRound(updates), compare_rounds=True)
    return replace(method, transforms=(*method.transforms, SuccessReward()), learner=learner, collection=rounds)


@part
class DenoisingExploration(Exploration):
    """Exploration that adds noise to the denoising steps of the policy and records them: see `DenoisingPPO`."""

    def build(self, actor, env, training):
        learner = training.learner
        if not isinstance(learner, DenoisingPPOLearner):
            raise Unsupported(f"{type(learner.config).__name__} reads no denoising steps", where="DenoisingExploration",
                              hint="use it with DenoisingPPO")
        return learner.exploring_actor(actor)


def dppo(practice: Practice, method: Method) -> Method:
    """Improves the weights of a diffusion policy with PPO, where each denoising step counts as an action (DPPO)."""
    _check_plain(method, "dppo")
    check_numbers(practice.data, "dppo")
    check_denoising(method.policy.head)
    executor = _chunked(method, "dppo", RecedingHorizon)
    updates = Epochs(10 / executor.n_action_steps) if practice.n_updates is None else PerRound(practice.n_updates)
    collector = RolloutCollector(practice.n_episodes, exploration=DenoisingExploration())
    return replace(method, transforms=(*method.transforms, SuccessReward()), learner=DenoisingPPO(),
                   collection=CollectionRounds(practice.n_rounds, collector, retention=LastRounds(1), updates=updates,
                                               compare_rounds=True))


def dsrl(practice: Practice, method: Method) -> Method:
    """Improves a frozen policy by choosing the noise from which it samples its chunk, with SAC (DSRL)."""
    return _steered(practice, method, SAC(**STEERING), _steering(method, "dsrl"))


def dsrl_na(practice: Practice, method: Method) -> Method:
    """Improves a frozen policy by DSRL with a critic of the resulting chunks and with demonstrations (DSRL-NA)."""
    wrapper = _steering(method, "dsrl-na")
    return _steered(practice, method, NoiseAliasing(**STEERING, steering=wrapper), wrapper)


def _steering(method: Method, name: str) -> NoiseSteeringWrapper:
    """Builds the wrapper whose action is the noise of the frozen policy. Refuses policies that cannot be steered so."""
    _check_plain(method, name)
    if (window := method.policy.window).n_obs_steps > 1 or window.action_offset:
        raise Unsupported(f"{name} steers a policy that reads one observation and plans from its step on, and that of "
                          f"RUN reads {window.n_obs_steps}, with action_offset={window.action_offset}",
                          where=f"--with {name}", hint="train one with --policy.window.n-obs-steps 1 "
                                                       "--policy.window.action-offset 0")
    head = method.policy.head
    if head.ignores_noise or 0 in head.noise(window.horizon, 1):
        raise Unsupported(f"{name} chooses the noise from which the policy samples, and plans of the head "
                          f"{type(head).__name__} of RUN do not depend on noise", where=f"--with {name}",
                          hint="train one with a head that samples, such as flow-policy, or use --with filtered")
    return NoiseSteeringWrapper(BASE, _chunked(method, name).n_action_steps)


def _steered(practice: Practice, method: Method, learner: LearnerConfig, wrapper: NoiseSteeringWrapper) -> Method:
    policy = PolicyConfig(SquashedGaussian(), FeedForward(), simplest_encoder(practice.data.features()))
    return replace(_practice(practice, method, policy, learner), wrapper=wrapper)


def steered_episodes(method: Method, policy: Policy, env: Env, data: Dataset, seed: int,
                     n_steps: int = FIRST_STEPS) -> Dataset:
    """Rolls a policy out with random noise, and returns the episodes with the noise as action.

    Demonstrations have no noise, so that only `NoiseAliasing` learns from them.
    """
    assert isinstance(method.wrapper, NoiseSteeringWrapper)
    wrapper = replace(method.wrapper, policy=policy)
    episodes = random_episodes(WrappedEnv(env, wrapper), n_steps // wrapper.period, seed)
    if not isinstance(method.learner, NoiseAliasing):
        return episodes
    return Dataset([*with_chunks(episodes, wrapper), *demonstrated_chunks(data, wrapper)], episodes.metadata)


def _corrected(practice: Practice, method: Method, learner: LearnerConfig, head: Correction, share: float,
               **fields) -> Method:
    """Builds a method that learns bounded corrections of the policy: a share of half the range of the actions."""
    name = "residual-ppo" if isinstance(learner, PPO) else "residual"
    _check_plain(method, name)
    check_numbers(practice.data, name)
    scale = tuple((share * _half_ranges(practice.data)).round(6).tolist())
    policy = PolicyConfig(head, FeedForward(), simplest_encoder(practice.data.features()),
                          codec=Normalizer(target="identity"))
    return replace(_practice(practice, method, policy, learner, **fields),
                   wrapper=ResidualWrapper(BASE, scale, executor=method.executor))


def check_numbers(data: Dataset, name: str) -> None:
    """Raises an error if the actions are classes and not numbers."""
    if data.features()["action"].kind == "discrete":
        raise Unsupported(f"{name} is for actions that are numbers, and these are classes",
                          where=f"--with {name}",
                          hint="use --with filtered, or a method with a supervisor, such as --with dagger")


def _half_ranges(data: Dataset) -> np.ndarray:
    """Returns half the range of each component of the demonstrated actions, (A,)."""
    actions = np.concatenate([np.asarray(e.steps["action"][:len(e)], float).reshape(len(e), -1) for e in data])
    return np.maximum(np.ptp(actions, 0) / 2, 1e-6)


def _practice(practice: Practice, method: Method, policy: PolicyConfig, learner: LearnerConfig,
              **fields) -> Method:
    """Builds a method that trains a new policy on success as reward, beside the policy of the run."""
    collector = RolloutCollector(practice.n_episodes, exploration=TemperatureExploration())
    rounds = CollectionRounds(practice.n_rounds, collector, updates=PerRound(_updates(practice, method)),
                              compare_rounds=True)
    return Method(policy, RecedingHorizon(), learner, (SuccessReward(),), method.stages,
                  collection=replace(rounds, **fields))


def _updates(practice: Practice, method: Method) -> int:
    return practice.n_updates or max(method.learner.steps // practice.n_rounds, 1)


def _chunked(method: Method, name: str, kind: type[ChunkedExecutor] = ChunkedExecutor) -> ChunkedExecutor:
    """Returns the executor of a run, which must execute one chunk after another."""
    if not isinstance(method.executor, kind):
        raise Unsupported(f"one chunk is executed after the other, and {type(method.executor).__name__} overlaps them",
                          where=f"--with {name}", hint="train the policy with RecedingHorizon, or use --with residual")
    return method.executor


def _check_plain(method: Method, name: str) -> None:
    """Raises an error if the policy of a run acts only together with a wrapper or another policy."""
    around = [*method.inference, *online_changes(method), *([] if method.wrapper is None else [method.wrapper])]
    if around:
        raise Unsupported(f"the policy of RUN acts with {', '.join(type(p).__name__ for p in around)}, and a frozen "
                          "policy here acts by itself", where=f"--with {name}",
                          hint="improve the run that it was made of, or use a method with a supervisor")
