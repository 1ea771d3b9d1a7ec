"""A person takes over where the policy goes wrong. Do weights for classes of steps make more of that?"""

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
from understudy.improve.corrections import iwr, sirius
from understudy.improve.gates import DisagreementGate
from understudy.improve.updates import PerRound
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig

TOLERANCE, OUTLINES = 0.02, (0, 1, 2)
N_ROUNDS, N_STEPS = 4, 150  # rounds; steps of the supervisor in each
FIRST, PER_ROUND = 2000, 500  # updates before the rounds, and after each
FIRST_DEMONSTRATION = 500_000  # number of the first demonstration that the steps of the supervisor buy


@dataclass(frozen=True)
class Corrected:
    """How 600 steps of a person are spent: "iwr", "sirius", or "more" demonstrations in the deployed world."""

    learns: str

    def method(self, data: Dataset) -> Method:
        steps = FIRST + N_ROUNDS * PER_ROUND
        learner = BehaviorCloning(steps, optimizer=OptimizerConfig(lr_schedule="constant"))
        method = replace(cloning_method(1e-3, window=Window(horizon=8), n_action_steps=4), learner=learner)
        if self.learns == "more":
            return method
        actions = np.concatenate([np.asarray(e.steps["action"][:len(e)]) for e in data])
        gate = DisagreementGate(0.5, 0.25, scale=tuple(actions.std(0).tolist()), delay=5, hold=5, slip=0.05)
        collector = HumanStepsCollector(RolloutCollector(1, supervisor="expert", gate=gate), N_STEPS)
        rounds = CollectionRounds(N_ROUNDS, collector, updates=PerRound(PER_ROUND), initial_updates=FIRST)
        return (iwr if self.learns == "iwr" else sirius)(method, rounds)


def corrected(experiment, option: Corrected, data, seed, episodes, starts):
    """Trains with the steps of the supervisor, and measures success."""
    env, method = WeakPeg(), option.method(data)
    if option.learns == "more":
        data = Dataset([*data, *expert_steps(env, N_ROUNDS * N_STEPS, recording_seed(seed), FIRST_DEMONSTRATION)])
    policy = fit_method(method, data, seed, env=env).policy
    return flags(rollout_policy(experiment, policy, method, episodes, starts))


TABLE = Experiment(
    PegDemonstrations(30, TOLERANCE, OUTLINES), env=f"{WeakPeg.__module__}:WeakPeg", measure=corrected, first_seed=1480,
    n_seeds=8, episodes=300, arms={
        "Sirius": Corrected("sirius"),
        "IWR": Corrected("iwr"),
        "more demonstrations": Corrected("more")})
