"""Learning from takeovers by sampling (IWR), by weights (Sirius) or by rewards (RLIF)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated

import numpy as np

from ..core import AtLeast, Feature, Unsupported, part
from ..data.episode import Episode
from ..data.relabel import InterventionPenalty
from ..learn.behavior_cloning import BehaviorCloning
from ..learn.critic import CriticConfig
from ..learn.critics.td3 import TD3
from ..learn.method import Method
from ..learn.sample_weights import ClassBalancedWeights, ColumnWeights, UniformWeights
from ..learn.targets import REWARD, TERMINATED
from .collection import CollectionRounds, DemonstrationsAsInterventions
from .gates import INTERVENTION
from .step_rating import MARKED, MarkDemonstrations
from .unlearned_steps import UNDONE, UNLEARNED, LearnedStepWeights, UnlearnedColumns

DEMONSTRATION, ROBOT, SUPERVISOR, BEFORE_TAKEOVER = range(4)  # classes of steps
SIRIUS_WEIGHTS = ClassBalancedWeights((None, None, 0.5, 0.002), remainder=ROBOT)  # as published
RLIF_BATCH_SIZE = 256
RLIF_BC_WEIGHT = 2.0  # weight of cloning each stored action, relative to a score of mean size 1


# -- changes of episodes --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DemonstrationsWithoutInterventions:
    """Adds the column `intervention`, false at every step, to demonstrations."""

    def __call__(self, episode: Episode) -> Episode:
        if INTERVENTION in episode.steps:
            return episode
        return episode.replace({INTERVENTION: np.zeros(len(episode), bool)})


@part
class PreInterventionLabel:
    """Labels each step with a class number: demonstration, policy, supervisor, or shortly before a takeover.

    0: a step of a demonstration, which is an episode without the column `intervention`. 1: the policy acted. 2: the
    supervisor acted. 3: the policy acted, and the supervisor took over within the next steps.

    Args:
        n_steps: Number of steps before a takeover that are of class 3.

    References:
        Liu et al. (2023), Robot Learning on the Job: Human-in-the-Loop Autonomy and Learning During Deployment,
        arXiv:2211.08416.
    """

    n_steps: Annotated[int, AtLeast(0)] = 15
    into: str = "intervention_class"

    def __call__(self, episode: Episode) -> Episode:
        if INTERVENTION not in episode.steps:
            return episode.replace({self.into: np.full(len(episode), DEMONSTRATION, np.int64)})
        acts = np.asarray(episode.steps[INTERVENTION][:len(episode)], bool).reshape(-1)
        classes = np.where(acts, SUPERVISOR, ROBOT)
        for first in np.flatnonzero(acts[1:] & ~acts[:-1]) + 1:
            before = slice(max(first - self.n_steps, 0), first)
            classes[before] = np.where(acts[before], SUPERVISOR, BEFORE_TAKEOVER)
        return episode.replace({self.into: classes.astype(np.int64)})


@dataclass(frozen=True)
class UndoneTakeovers:
    """Removes the penalty of a takeover that the person has taken back."""

    def __call__(self, episode: Episode) -> Episode:
        if UNDONE not in episode.steps:
            return episode
        undone = np.asarray(episode.steps[UNDONE][:len(episode)], bool).reshape(-1)
        reward = np.asarray(episode.steps[REWARD])
        return episode.replace({REWARD: np.where(np.append(undone[1:], False), 0, reward).astype(reward.dtype)})


@dataclass(frozen=True)
class EndAtSuccess:
    """Changes the end of episodes: one terminates only by success, and is cut off (truncated) otherwise.

    Where rewards are 0 or less, ending early would be worth more than going on, and so would failing.
    """

    def __call__(self, episode: Episode) -> Episode:
        ends = np.zeros(len(episode), bool)
        ends[-1] = bool(episode.metadata.get("success", False))
        return episode.replace({TERMINATED: ends})


ADDED_TRANSFORMS = (DemonstrationsAsInterventions, DemonstrationsWithoutInterventions, PreInterventionLabel,
                    EndAtSuccess, InterventionPenalty, UndoneTakeovers,  # by methods of `understudy improve`
                    MarkDemonstrations)


def without_added_parts(method: Method) -> Method:
    """Returns a method without collection rounds and what they added to its transforms and its learner."""
    transforms = tuple(t for t in method.transforms if not isinstance(t, (*ADDED_TRANSFORMS, UnlearnedColumns)))
    learner = method.learner
    if isinstance(learner, BehaviorCloning):
        weights = learner.sample_weights
        if isinstance(weights, LearnedStepWeights):
            weights = weights.weights
        if isinstance(weights, ClassBalancedWeights) or isinstance(weights, ColumnWeights) and (
                weights.column in (INTERVENTION, MARKED)):
            weights = UniformWeights()
        column = None if learner.sampling_column in (INTERVENTION, MARKED) else learner.sampling_column
        learner = replace(learner, sample_weights=weights, sampling_column=column)
    return replace(method, transforms=transforms, learner=learner, collection=None)


def without_unlearned_steps(method: Method) -> Method:
    """Returns a method that does not learn steps of a handover, or steps of a takeover that was undone."""
    learner, rounds = method.learner, method.collection
    if not isinstance(learner, BehaviorCloning):
        assert isinstance(rounds, CollectionRounds)
        return replace(method, collection=replace(rounds, leave_out=UNLEARNED))
    return replace(method, transforms=(*method.transforms, UnlearnedColumns()),
                   learner=replace(learner, sample_weights=LearnedStepWeights(learner.sample_weights)))


# -- methods ----------------------------------------------------------------------------------------------------------


def iwr(method: Method, rounds: CollectionRounds) -> Method:
    """Improves a policy by intervention-weighted regression (IWR): half of each batch are steps of the supervisor."""
    return replace(method, transforms=(*method.transforms, DemonstrationsWithoutInterventions()),
                   collection=replace(rounds, half_where=INTERVENTION))


def sirius(method: Method, rounds: CollectionRounds) -> Method:
    """Improves a policy by Sirius: steps are weighted by class, and steps just before a takeover hardly count."""
    assert isinstance(method.learner, BehaviorCloning)
    return replace(method, transforms=(*method.transforms, PreInterventionLabel()),
                   learner=replace(method.learner, sample_weights=SIRIUS_WEIGHTS), collection=rounds)


def rlif(method: Method, rounds: CollectionRounds, action: Feature) -> Method:
    """Improves a policy by RLIF: reinforcement learning with a reward of -1 at the step before each takeover."""
    if action.kind == "discrete":
        raise Unsupported("the critic of rlif scores numbers, and the actions of this run are classes", where="--with",
                          hint="choose a method that clones, such as --with hg-dagger or sirius")
    if method.policy.window.action_offset:
        raise Unsupported(f"the critic of rlif scores plans from the current step on, and those of this run begin at "
                          f"step {method.policy.window.action_offset:+}", where="--with",
                          hint="choose a method that clones, such as --with hg-dagger or sirius")
    transforms = (DemonstrationsAsInterventions(), InterventionPenalty(), UndoneTakeovers(), EndAtSuccess())
    first = rounds.updates.number(0, 0, RLIF_BATCH_SIZE)
    weight = RLIF_BC_WEIGHT * method.policy.window.horizon  # a plan has one score, the distance is a mean over steps
    learner = TD3(
        method.learner.steps, RLIF_BATCH_SIZE, bc_weight=weight, critic_warmup_updates=first // 2,
        critic=CriticConfig(n_critics=4, layer_norm=True, target_subset_size=2))
    return replace(method, transforms=(*method.transforms, *transforms), learner=learner, collection=rounds)
