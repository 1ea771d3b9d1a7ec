"""Measures that train all seeds of an arm at once."""

from dataclasses import replace

import pytest
import torch

from evidence import measures
from evidence.experiment import Experiment, ExpertDemonstrations
from evidence.measures import StackedSeeds, train_once
from evidence.memo import Memo
from understudy.core import replaced
from understudy.data.mixture import mix
from understudy.data.window import Window
from understudy.execute.chunking import RecedingHorizon
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import fit
from understudy.learn.fit_method import fit_method
from understudy.learn.method import FromStage, InitializeFrom, Method, Stage
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

SHORT = Method(PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 4)), RecedingHorizon(2), BehaviorCloning(20, 8))
STAGED = replace(SHORT, stages=(Stage("first", SHORT),), initialize_from=(InitializeFrom(FromStage("first")),))
ARMS = {"staged": STAGED, "flow": replace(SHORT, policy=replace(SHORT.policy, head=Flow(2)))}
SOURCE = ExpertDemonstrations("fork", 6)
EXPERIMENT = Experiment(SOURCE, ARMS, 100, StackedSeeds(), n_seeds=3, episodes=2)


@pytest.fixture(autouse=True)
def nothing_is_kept(monkeypatch):
    monkeypatch.setattr(measures, "_trained", Memo(30))


def no_training(*args, **options):
    raise AssertionError("a training that should have been kept")


@pytest.mark.parametrize("arm", ARMS)
def test_the_first_measurement_trains_the_policies_of_all_seeds(arm):
    data, method = {seed: EXPERIMENT.source.load(seed) for seed in EXPERIMENT.seeds}, ARMS[arm]
    first = EXPERIMENT.measure(EXPERIMENT, method, data[100], 100, 2, 100)
    with replaced({fit: no_training}):
        kept = {seed: train_once(EXPERIMENT, method, data[seed], seed).policy for seed in EXPERIMENT.seeds}
        assert EXPERIMENT.measure(EXPERIMENT, method, data[101], 101, 2, 100).keys() == first.keys()
    for seed, policy in kept.items():
        separate = fit_method(method, data[seed], seed).policy.state_dict()
        assert all(torch.allclose(v, separate[k], rtol=0, atol=1e-5) for k, v in policy.state_dict().items())


def test_a_continued_run_trains_the_seeds_that_are_left():
    trained = []
    EXPERIMENT.measure(EXPERIMENT, SHORT, EXPERIMENT.source.load(101), 101, 2, 100)
    with replaced({fit: lambda learner, *args, **options: trained.append(learner.seed)}):
        for seed in EXPERIMENT.seeds:
            train_once(EXPERIMENT, SHORT, EXPERIMENT.source.load(seed), seed)
    assert trained == [100]


def test_a_stage_of_one_part_is_trained_on_it_alone():
    data, _ = mix(task=(SOURCE.load(100), 0.5), prior=(SOURCE.load(101), 0.5))
    method = replace(STAGED, stages=(replace(STAGED.stages[0], dataset="prior"),))
    trained = train_once(EXPERIMENT, method, data, 100)
    separate = fit_method(method, data, 100)
    assert all(torch.equal(v, separate.policy.state_dict()[k]) for k, v in trained.policy.state_dict().items())
