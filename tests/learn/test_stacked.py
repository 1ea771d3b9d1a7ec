"""Several seeds as one batched network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from understudy.core import Diverged, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.heads.memory.neighbors import Neighbors
from understudy.heads.one_step.consistency import Consistency
from understudy.learn import stacked
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.sac import SAC as SACConfig
from understudy.learn.critics.td3 import TD3 as TD3Config
from understudy.learn.fit_method import fit_method
from understudy.learn.method import FromStage, InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.sample_weights import ColumnWeights
from understudy.learn.stacked import fit_seeds
from understudy.methods import find_method
from understudy.methods.offline_rl.cql import CQL
from understudy.methods.offline_rl.iql import IQL
from understudy.methods.offline_rl.prdc import PRDC
from understudy.methods.offline_rl.spot import SPOT
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

SEEDS = 3, 7


def demonstrations(seed: int) -> Dataset:
    rng = np.random.default_rng(seed)

    def episode(n):
        state = rng.normal(size=(n + 1, 3)).astype(np.float32)
        return Episode({"observation.state": state, "action": np.tanh(state[:-1, :2]),
                        "next.reward": -np.abs(state[1:, 0]), "next.terminated": np.arange(n) == n - 1,
                        "good": (state[:-1, :1] > 0).astype(np.float32)})
    return Dataset([episode(n) for n in (17, 9, 23, 12)])


@pytest.fixture(autouse=True)
def short_trainings(monkeypatch):
    monkeypatch.setattr(stacked, "MIN_UPDATES", 0)


DATA = tuple(map(demonstrations, SEEDS))
CLONING = BehaviorCloning(200, 16, optimizer=OptimizerConfig(weight_decay=0.1, warmup_steps=5, grad_clip_norm=0.3))


def method(head, learner=CLONING, **mlp) -> Method:
    return Method(PolicyConfig(head, trunk=MLP(16, 1, **mlp), window=Window(2, 3)), learner=learner)


def largest_difference(result, other) -> float:
    assert result.modules.keys() == other.modules.keys()
    pairs = [(tensor, other.modules[name].state_dict()[key]) for name, module in result.modules.items()
             for key, tensor in module.state_dict().items()]
    return max((one - two).abs().max().item() for one, two in pairs if one.numel())


TD3 = TD3Config(200, 16, bc_weight=0.4, critic=CriticConfig(hidden=(16, 16)))
SAC = SACConfig(40, 16, bc_weight=0.4, temperature=0.1, critic=CriticConfig(hidden=(16, 16)))
NETWORKS = CriticConfig((16, 16))
GCIVL = find_method("gcivl", DATA[0].features(), steps=20, batch_size=16, critic=NETWORKS)
IQN = replace(TD3, steps=40, critic=CriticConfig((16, 16), n_quantiles=4, draw_levels=True))
SPOT = SPOT(40, 16, critic=TD3.critic, cloning_fraction=0.5)  # its policy does not learn at first


SHORT = replace(CLONING, steps=40)


@pytest.mark.parametrize("trained", [
    method(Regression()), method(Flow()), method(GMM()), method(SquashedGaussian(), SHORT),
    method(Consistency(), SHORT), method(Regression(), replace(SHORT, sample_weights=ColumnWeights("good", 3.0))),
    method(Regression(), TD3), method(SquashedGaussian(), SAC), method(Regression(), SPOT),
    method(Regression(), IQN), method(Gaussian(), IQL(20, 16, critic=NETWORKS)),
    method(SquashedGaussian(), CQL(20, 16, critic=NETWORKS)),
    replace(GCIVL, policy=replace(GCIVL.policy, trunk=MLP(16, 1)))],
    ids=["regression", "flow", "gmm", "gaussian", "target-network", "weights", "td3-bc", "sac", "spot", "drawn levels",
         "iql", "cql", "gcivl"])
def test_stacked_seeds_equal_separate_ones(trained):
    sentences = []
    results = fit_seeds(trained, DATA, SEEDS, log=sentences.append)
    assert not sentences
    for result, data, seed in zip(results, DATA, SEEDS, strict=True):
        separate = fit_method(trained, data, seed)
        assert largest_difference(result, separate) < 1e-5
        untrained = fit_method(replace(trained, learner=replace(trained.learner, steps=0)), data, seed)
        assert largest_difference(result, untrained) > 0.005
        assert not result.policy.training


def test_one_data_set_and_stages_of_each_seed():
    base = method(Regression(), replace(CLONING, steps=30))
    staged = replace(method(Regression(), replace(CLONING, steps=20)), stages=(Stage("base", base),),
                     initialize_from=(InitializeFrom(FromStage("base")),))
    sentences = []
    results = fit_seeds(staged, DATA[0], SEEDS, log=sentences.append)
    assert not sentences
    for result, seed in zip(results, SEEDS, strict=True):
        assert largest_difference(result, fit_method(staged, DATA[0], seed)) < 1e-5


@pytest.mark.slow
def test_a_compiled_graph_of_all_seeds_trains_them():
    trained = method(Gaussian(), IQL(20, 16, critic=NETWORKS))
    results = fit_seeds(trained, DATA, SEEDS, compile=True)
    for result, data, seed in zip(results, DATA, SEEDS, strict=True):
        assert largest_difference(result, fit_method(trained, data, seed)) < 1e-5


@dataclass(frozen=True)
class PythonScale(Regression):
    """Its network keeps a number of the data where no tensor is."""

    def fit(self, net, pairs):
        net.scale = float(sum(action.abs().sum() for _, action, _ in pairs()))

    def loss(self, net, context, action, mask, rng):
        return net.scale * super().loss(net, context, action, mask, rng)


@dataclass(frozen=True)
class ReadsNumbers(Regression):
    """Its loss needs the value of a weight in Python."""

    def loss(self, net, context, action, mask, rng):
        scale = max(net.output_layer[2].weight.detach().sum().item(), 1.0)
        return scale * super().loss(net, context, action, mask, rng)


@pytest.mark.parametrize("trained, reason", [
    (method(Neighbors()), "keeps its training data"), (method(Regression(), dropout=0.1), "dropout"),
    (method(PythonScale()), "and not"), (method(ReadsNumbers()), "reads a value")],
    ids=["memory", "dropout", "number", "item"])
def test_what_cannot_be_stacked_is_trained_separately(trained, reason):
    trained = replace(trained, learner=replace(CLONING, steps=5))
    sentences = []
    results = fit_seeds(trained, DATA, SEEDS, log=sentences.append)
    assert len(sentences) == 1 and reason in sentences[0]
    for result, data, seed in zip(results, DATA, SEEDS, strict=True):
        assert largest_difference(result, fit_method(trained, data, seed)) == 0


@dataclass(frozen=True)
class ScaledIQL(IQL):
    """It keeps a number of the seed's weights where no tensor is."""

    def networks(self, policy, data):
        nets = super().networks(policy, data)
        nets["value"].module.scale = float(next(nets["value"].module.parameters()).detach().abs().sum())
        return nets

    def value_loss(self, nets, batch, rng):
        return nets.value.scale * super().value_loss(nets, batch, rng)


@pytest.mark.parametrize("trained, reason", [
    (method(Gaussian(), ScaledIQL(5, 16, critic=NETWORKS)), "depends on more than its inputs"),
    (method(Gaussian(), IQL(5, 16, critic=NETWORKS), dropout=0.1), "dropout")], ids=["number", "dropout"])
def test_what_cannot_be_captured_is_trained_separately(trained, reason):
    sentences = []
    results = fit_seeds(trained, DATA, SEEDS, log=sentences.append)
    assert len(sentences) == 1 and reason in sentences[0]
    for result, data, seed in zip(results, DATA, SEEDS, strict=True):
        assert largest_difference(result, fit_method(trained, data, seed)) == 0


def test_a_loss_that_begins_after_the_trial_may_be_one_that_cannot_be_stacked():
    trained = method(Regression(), PRDC(6, 16, critic=TD3.critic, critic_warmup_updates=4))
    sentences = []
    results = fit_seeds(trained, DATA, SEEDS, log=sentences.append)
    assert len(sentences) == 1 and "cannot" in sentences[0]
    assert largest_difference(results[1], fit_method(trained, DATA[1], SEEDS[1])) == 0


@pytest.mark.parametrize("field", ["optimizer", "policy_optimizer"])
def test_batches_that_are_split_are_trained_separately(field):
    trained = method(SquashedGaussian(), replace(SAC, steps=5, critic_warmup_updates=3, **{
        field: OptimizerConfig(accumulation_steps=4)}))
    sentences = []
    results = fit_seeds(trained, DATA, SEEDS, log=sentences.append)
    assert len(sentences) == 1 and "batches are accumulated" in sentences[0]
    assert largest_difference(results[0], fit_method(trained, DATA[0], SEEDS[0])) == 0


def test_large_networks_are_trained_separately(monkeypatch):
    monkeypatch.setattr(stacked, "MAX_WEIGHTS", 500)
    sentences, trained = [], method(Flow(), replace(CLONING, steps=5))
    results = fit_seeds(trained, DATA, SEEDS, log=sentences.append)
    assert "weights are hardly faster" in sentences[0]
    assert largest_difference(results[1], fit_method(trained, DATA[1], SEEDS[1])) == 0


def test_short_trainings_are_made_separately(monkeypatch):
    monkeypatch.setattr(stacked, "MIN_UPDATES", 6)
    sentences, trained = [], method(Gaussian(), IQL(5, 16, critic=NETWORKS))
    results = fit_seeds(trained, DATA, SEEDS, log=sentences.append)
    assert "fewer than 6 updates" in sentences[0]
    assert largest_difference(results[1], fit_method(trained, DATA[1], SEEDS[1])) == 0


def test_a_seed_that_diverges_is_named():
    reward = [e.replace({"next.reward": np.where(np.arange(len(e)) == 4, np.nan, e.steps["next.reward"])})
              for e in DATA[1]]
    with pytest.raises(Diverged, match=r"seed 7, update \d+: the loss of .critic. is nan"):
        fit_seeds(method(Gaussian(), IQL(20, 16, critic=NETWORKS)), (DATA[0], Dataset(reward)), SEEDS)


def test_a_loss_that_is_not_finite_names_the_update():
    data = demonstrations(3)
    broken = Dataset([e.replace({"action": np.where(np.arange(len(e))[:, None] == 4, np.nan, e.steps["action"])})
                      for e in data])
    with pytest.raises(UserError, match="NaN|nan"):
        fit_seeds(method(Regression()), (data, broken), (3, 4))


def test_there_is_a_data_set_for_each_seed():
    with pytest.raises(UserError, match="2 seeds, but 1 data sets"):
        fit_seeds(method(Regression()), DATA[:1], SEEDS)


def test_the_global_generator_stays_as_it_is():
    before = torch.get_rng_state()
    fit_seeds(method(Flow(), replace(CLONING, steps=3)), DATA, SEEDS)
    assert torch.equal(before, torch.get_rng_state())
