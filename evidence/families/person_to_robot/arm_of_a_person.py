"""Rows 063 and 329: a robot's arm learns from demonstrations of a person's arm, whose motions are retargeted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

import numpy as np

from evidence.experiment import DemonstrationSource, Experiment, ExpertDemonstrations
from evidence.measures import StackedSeeds
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import DATASET_NAME
from understudy.data.operations import Filter, Operation, Select
from understudy.data.retargeting import STATE, MotionRetargeting
from understudy.envs.toys.planar_arms import ARMS, SPEED
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.feed_forward import FeedForward
from understudy.policy import PolicyConfig

N_DEMONSTRATIONS = 200
N_MORE = 800  # further recordings of the person, so that enough episodes are in the robot's reach
N_ROBOT = 10  # demonstrations of the robot that somebody adds
ROBOT = ARMS["short"]


@dataclass(frozen=True)
class PersonAndRobot(DemonstrationSource):
    """Demonstrations of a person's arm ("person", and "more person") and of the robot ("few robot", and "robot")."""

    def load(self, seed):
        return _recordings(seed)


@cache
def _recordings(seed: int) -> Dataset:
    person = ExpertDemonstrations("planar_arms:reach-human", N_DEMONSTRATIONS + N_MORE).load(seed)
    robot = ExpertDemonstrations("planar_arms:reach-short", N_DEMONSTRATIONS).load(seed)
    episodes = [*_named(person, "person", N_DEMONSTRATIONS, "more person"),
                *_named(robot, "few robot", N_ROBOT, "robot")]
    return Dataset(episodes, person.metadata)


def _named(data: Dataset, first: str, count: int, others: str) -> list[Episode]:
    """The episodes with the name of their part of the data: `first` for as many as `count`."""
    return [replace(e, metadata={**e.metadata, DATASET_NAME: first if i < count else others})
            for i, e in enumerate(data)]


@dataclass(frozen=True)
class MeasuredLengths(Operation):
    """The tips of the person that follow from the joints and a wrong measure of the lengths of the links.

    Args:
        factor: The measured lengths as a fraction of the true ones.
    """

    factor: float

    def apply(self, data: Dataset) -> Dataset:
        return Dataset([_scale_tips(episode, self.factor) for episode in data], data.metadata)


def _scale_tips(episode: Episode, factor: float) -> Episode:
    state = np.array(episode.steps[STATE])
    state[:, -2:] *= np.float32(factor)
    return episode.replace({STATE: state})


@dataclass(frozen=True)
class RetargetedPerson(Operation):
    """Retargets the episodes of the person, and leaves those of the robot as they are."""

    retargeting: MotionRetargeting

    def apply(self, data: Dataset) -> Dataset:
        person, robot = (Filter(DATASET_NAME, equals=names).apply(data)
                         for names in (("person", "more person"), ("few robot", "robot")))
        return Dataset([*self.retargeting.apply(person), *robot], data.metadata)


def cloning(*parts: str, transforms: tuple[Operation, ...] = ()) -> Method:
    policy = PolicyConfig(Regression(), FeedForward((128, 128)))
    learner = BehaviorCloning(1000, 128, OptimizerConfig(lr=3e-3))
    return Method(policy, RecedingHorizon(), learner, (Filter(DATASET_NAME, equals=parts), *transforms))


def by(motion: Literal["tips", "joints"], reach: Literal["drop", "clip"] = "drop") -> RetargetedPerson:
    return RetargetedPerson(MotionRetargeting(ROBOT, motion, reach, SPEED))


TIPS = by("tips")
KEPT = Select(tuple(range(N_DEMONSTRATIONS)))
MANY = ("person", "more person")
TABLE = Experiment(PersonAndRobot(), env="planar_arms:reach-short", measure=StackedSeeds(), first_seed=5800,
                   n_seeds=10, episodes=300, levels={"robot": 0.7}, arms={
    "joints": cloning("person", transforms=(by("joints"),)),
    "tips, dropped": cloning("person", transforms=(TIPS,)),
    "tips, clipped": cloning("person", transforms=(by("tips", "clip"),)),
    "tips, 200 kept": cloning(*MANY, transforms=(TIPS, KEPT)),
    "lengths 10 % off": cloning(*MANY, transforms=(MeasuredLengths(0.9), TIPS, KEPT)),
    "lengths 25 % off": cloning(*MANY, transforms=(MeasuredLengths(0.75), TIPS, KEPT)),
    "robot": cloning("few robot", "robot"),
    "10 of the robot": cloning("few robot"),
    "tips, dropped, and 10 of the robot": cloning("person", "few robot", transforms=(TIPS,))})
