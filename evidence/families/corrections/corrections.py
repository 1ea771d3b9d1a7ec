"""Row 348: a person takes over where the policy goes wrong. Do weights for classes of steps make more of that?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from evidence.experiment import Experiment
from evidence.measures import flags, rollout_policy
from evidence.worlds.curation import cloning_method
from evidence.worlds.human_steps import HumanStepsCollector, expert_steps
from evidence.worlds.peg import PegDemonstrations, WeakPeg
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.evaluate.evaluation import recording_seed
from understudy.improve.collection import CollectionRounds, RolloutCollector
from understudy.improve.corrections import PreInterventionLabel, iwr, sirius
from understudy.improve.gates import INTERVENTION, DisagreementGate
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig

TOLERANCE, OUTLINES = 0.02, (0, 1, 2)
N_ROUNDS, N_STEPS = 4, 150  # rounds; steps of the supervisor in each
FIRST, PER_ROUND = 2000, 500  # updates before the rounds, and after each
RISE = "rise of the acted share"
FIRST_DEMONSTRATION = 500_000  # number of the first demonstration that the steps of the supervisor buy


@dataclass(frozen=True)
class Corrected:
    """How 600 steps of a person are spent.

    Args:
        learns: "iwr", "sirius", or "more" demonstrations in the deployed world.
        before: False if the class before a takeover of Sirius is that of the steps after it.
    """

    learns: str
    before: bool = True
    first: int = FIRST
    per_round: int = PER_ROUND
    n_rounds: int = N_ROUNDS


    def method(self, data: Dataset) -> Method:
        steps = self.first + self.n_rounds * self.per_round
        learner = BehaviorCloning(steps, optimizer=OptimizerConfig(lr_schedule="constant"))
        method = replace(cloning_method(1e-3, window=Window(horizon=8), n_action_steps=4), learner=learner)
        if self.learns == "more":
            return method
        actions = np.concatenate([np.asarray(e.steps["action"][:len(e)]) for e in data])
        gate = DisagreementGate(0.5, 0.25, scale=tuple(actions.std(0).tolist()), delay=5, hold=5, slip=0.05)
        collector = HumanStepsCollector(RolloutCollector(1, supervisor="expert", gate=gate), N_STEPS)
        rounds = CollectionRounds(self.n_rounds, collector, updates=PerRound(self.per_round),
                                  initial_updates=self.first)
        if self.learns == "iwr":
            return iwr(method, rounds)
        method = sirius(method, rounds)
        return method if self.before else replace(method, transforms=(AfterInterventionLabel(),))


@dataclass(frozen=True)
class AfterInterventionLabel(PreInterventionLabel):
    """The classes of `PreInterventionLabel`, where those before a takeover are as many steps after it."""

    def __call__(self, episode):
        if INTERVENTION not in episode.steps:
            return super().__call__(episode)
        acts = np.asarray(episode.steps[INTERVENTION][:len(episode)])
        backwards = super().__call__(episode.replace({INTERVENTION: acts[::-1].copy()})).steps[self.into]
        return episode.replace({self.into: np.asarray(backwards[:len(episode)])[::-1].copy()})


def corrected(experiment, option: Corrected, data, seed, episodes, starts):
    """Trains with the steps of the supervisor, and measures success and how the share that it acted changed."""
    env, method, shares = WeakPeg(), option.method(data), []
    if option.learns == "more":
        data = Dataset([*data, *expert_steps(env, N_ROUNDS * N_STEPS, recording_seed(seed), FIRST_DEMONSTRATION)])

    def watch(n_updates, learner, metrics):
        if "round/acted" in metrics:
            shares.append(metrics["round/acted"] / metrics["round/steps"])
    policy = fit_method(method, data, seed, env=env, callbacks=[watch]).policy
    values = flags(rollout_policy(experiment, policy, method, episodes, starts))
    return {**values, RISE: [fitted_rise(shares)]} if shares else values


def fitted_rise(values: list[float]) -> float:
    """The difference between the last and the first of equally spaced values, on the line that fits them best."""
    if len(values) < 2:
        return 0.0
    return float(np.polyfit(np.arange(len(values)), values, 1)[0] * (len(values) - 1))


TABLE = Experiment(
    PegDemonstrations(30, TOLERANCE, OUTLINES), env=f"{WeakPeg.__module__}:WeakPeg", measure=corrected, first_seed=1480,
    n_seeds=16, episodes=300, looks=((8, 0.02), (16, 0.03)), arms={
        "Sirius": Corrected("sirius"),
        "IWR": Corrected("iwr"),
        "more demonstrations": Corrected("more"),
        "exchanged": Corrected("sirius", before=False)})
