"""Bisimulation: the loss by hand, the exact metric of a chain, and which losses train the shared encoder."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.core import Batch, Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.objectives.representation import RepresentationLearning
from understudy.learn.objectives.representation_objectives import ForwardDynamics
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.history_iql import Bisimulation, HistoryIQL
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.recurrent import RecurrentEncoder
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner, random_dataset

STATE, REWARD, ENDED = "observation.state", "next.reward", "next.terminated"
FEATURES = {STATE: Feature("float32", (2,)), "action": Feature("float32", (1,)), REWARD: Feature("float32", ()),
            ENDED: Feature("float32", ())}
HISTORY = PolicyConfig(Regression(), MLP(8, 1), RecurrentEncoder(4, 1, ConcatEncoder()), window=Window(3))
FAST = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


def test_it_keeps_the_contract_of_learners():
    policy = PolicyConfig(Regression(), MLP(16, 1), RecurrentEncoder(4, 1, ConcatEncoder()), window=Window(2, 3),
                          inputs=(STATE,))
    check_learner(HistoryIQL(batch_size=8, critic=CriticConfig((8,))), [policy])


def test_the_loss_is_that_of_each_window_and_the_one_before_it_after_the_same_action(monkeypatch):
    data = random_dataset(FEATURES, episodes=2, steps=6)
    policy = Policy(HISTORY, data.features()).fit_statistics(data)
    batch = policy.windows(data, extra=(REWARD,), next_obs=True).gather(np.array([0, 3, 7]))
    function = Bisimulation(discount=0.5, weight=2.0).build(policy)
    monkeypatch.setattr(function, "predict", lambda z, action: (z[:, 0] + action[:, 0], 2 * z * action))
    z, later = (policy.context(obs).flat().detach().double() for obs in (batch.obs, batch.next))
    action = policy.encode_batch(batch)[:, 0].double()
    for i, loss in enumerate(function(policy, batch, torch.Generator(), {
            "context": z.float().unsqueeze(1), "context_mask": torch.ones(3, 1, dtype=torch.bool)})):
        a, own, other = action[i], z[i], z[i - 1]
        goal = (own[0] - other[0]).abs() + 0.5 * (2 * a * (own - other)).norm()
        model_error = (own[0] + a - batch.extra[REWARD][i]) ** 2 + (2 * own * a - later[i]).square().mean()
        expected = 2 * ((own - other).norm() - goal) ** 2 + model_error
        assert loss.item() == pytest.approx(expected.item(), rel=1e-4)


def test_encodings_of_a_chain_learn_its_bisimulation_metric():
    """States 0, 1, 2, 2, ... with rewards 0, 1, 0 and discount 0.5: d(1, 2) = 1, d(0, 2) = 0.5, d(0, 1) = 1.5."""
    chain = Episode({STATE: np.eye(3, dtype=np.float32)[[0, 1, 2, 2, 2]], "action": np.zeros((4, 1), np.float32),
                     REWARD: np.array([0, 1, 0, 0], np.float32)})
    policy = PolicyConfig(Regression(), MLP(8, 1), TokenEncoder(4))
    learner = RepresentationLearning((Bisimulation((32,), 0.5),), 1200, 64, optimizer=FAST)
    trained = fit_method(Method(policy, learner=learner), Dataset([chain]), 0).policy
    obs = {STATE: torch.eye(3).unsqueeze(1)}
    distances = torch.pdist(trained.context(obs).flat().detach()).tolist()
    assert distances == pytest.approx([1.5, 0.5, 1.0], abs=0.1)


def test_the_losses_of_the_critic_alone_train_the_encoder_that_all_read():
    data = random_dataset(FEATURES, episodes=2, steps=6)
    policy = Policy(HISTORY, data.features()).fit_statistics(data)
    learner = HistoryIQL(critic=CriticConfig((8,)), optimizer=FAST, batch_size=4).build(policy, 0, 10, data)
    nets, losses = learner.nets, {name: partial(call_step, learner, f"{name}_loss") for name in learner.optimizers}
    assert nets.critic.encoders[0] is nets.value.encoders[0] is policy.encoder
    batch = learner.config.scored(nets, learner.batch_sampler(data).batch(4, 0, 0), torch.Generator())
    before = policy.encoder.lstm.weight_hh_l0.detach().clone()
    heads = [[p.detach().clone() for p in net.parameters()] for net in (policy.net, nets.value.layers)]
    learner.minimize("policy", losses["policy"], batch)
    learner.minimize("value", losses["value"], batch)
    assert torch.equal(before, policy.encoder.lstm.weight_hh_l0)
    for old, net in zip(heads, (policy.net, nets.value.layers), strict=True):
        assert all((a != b).any() for a, b in zip(old, net.parameters(), strict=True))
    learner.minimize("critic", losses["critic"], batch)
    assert not torch.equal(before, policy.encoder.lstm.weight_hh_l0)
    assert isinstance(batch, Batch) and losses["critic"](batch, torch.Generator()).shape == (4,)


def test_copies_that_auxiliary_losses_keep_follow_the_encoder():
    data = random_dataset(FEATURES, episodes=2, steps=6)
    policy = Policy(HISTORY, data.features()).fit_statistics(data)
    learner = HistoryIQL(critic=CriticConfig((8,)), optimizer=FAST, batch_size=4, auxiliary_losses=(
        ForwardDynamics((8,), target_decay=0.0),)).build(policy, 0, 10, data)
    learner.update(learner.batch_sampler(data).batch(4, 0, 0))
    (loss,) = learner.nets.auxiliary_losses
    assert torch.equal(loss.target.encoder.lstm.weight_hh_l0, policy.encoder.lstm.weight_hh_l0)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_the_method_learns_choices_from_histories(weight):
    features = {**FEATURES, "action": Feature("int64", (1,), "discrete", num_classes=(3,))}
    method = find_method("history-iql", features, auxiliary_losses=(Bisimulation(weight=weight),))
    short = replace(method, learner=replace(method.learner, steps=2, batch_size=4))
    policy = fit_method(short, random_dataset(features, episodes=2, steps=12), 0).policy
    assert policy.is_discrete and policy.window.n_obs_steps == 10
    assert method.learner.auxiliary_losses == (Bisimulation(weight=weight),)
