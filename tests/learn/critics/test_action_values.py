"""Q-learning for classes: losses of a peer, and exact values in a table."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.d3rlpy import HIDDEN, QUANTILES, fill, inject_levels, losses_of, make_classes, make_policy_of_classes
from fixtures.learning import call_step
from fixtures.tables import STATE, few_actions

from understudy.core import ConfigError, Feature, Unsupported
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critics.action_values import ActionValues, InverseActionValues, check_classes, class_logits
from understudy.learn.fit import fit
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

RNG = torch.Generator().manual_seed(0)
CONSTANT = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
CLASSES = PolicyConfig(Categorical(), FeedForward((8,)), inputs=(STATE,))


@pytest.mark.parametrize(("weight", "n_quantiles", "draws"), [(0.0, 1, False), (1.0, 1, False), (1.0, 4, False),
                                                              (1.0, 4, True)])
def test_it_keeps_the_contract_of_learners(weight, n_quantiles, draws):
    policy = replace(CLASSES, head=Categorical(n_quantiles=n_quantiles, draw_levels=draws))
    check_learner(ActionValues(batch_size=8, conservative_weight=weight), (policy,))


@pytest.mark.parametrize(("n_quantiles", "draws"), [(1, False), (QUANTILES, False), (QUANTILES, True)])
@pytest.mark.parametrize(("name", "config", "phase"), [
    ("dqn", ActionValues(), 300), ("discrete_cql", ActionValues(conservative_weight=1.0), 300),
    ("plain_dqn", ActionValues(double=False), 309), ("nfq", find_method("nfq").learner, 200)])
def test_losses_equal_those_of_d3rlpy(monkeypatch, name, config, phase, n_quantiles, draws):
    inject_levels(monkeypatch)
    head = Categorical(width=HIDDEN[1], n_quantiles=n_quantiles, draw_levels=draws)
    policy = make_policy_of_classes(200, head, HIDDEN[:1] if draws else HIDDEN)
    learner = config.build(policy, 0, 1, Dataset([]))
    fill(learner.nets.target.policy.net.parameters(), phase)
    loss = call_step(learner, "value_loss", make_classes(), RNG).mean().item()
    assert loss == pytest.approx(losses_of(name, n_quantiles, draws)["loss"], abs=1e-5)


def test_drawn_levels_are_refused_where_no_quantiles_are_learned():
    policy = replace(CLASSES, head=Categorical(n_quantiles=4, draw_levels=True))
    data, _ = few_actions(4)
    with pytest.raises(ConfigError, match="BehaviorCloning learns no quantiles of returns"):
        fit_method(Method(policy, learner=BehaviorCloning(1, 8)), data, 0)
    fit_method(Method(policy, learner=ActionValues(1, 8)), data, 0)


def test_nfq_has_no_lagged_network():
    learner = find_method("nfq").learner.build(make_policy_of_classes(200, Categorical()), 0, 1, Dataset([]))
    learner.update(make_classes())
    for trained, copy in zip(learner.policy.parameters(), learner.nets.target.policy.parameters(), strict=True):
        assert trained.equal(copy)


@pytest.mark.parametrize(("config", "n_components", "says"), [
    (CLASSES, 2, "one of several classes"),
    (PolicyConfig(Categorical(autoregressive=True), MLP(8, 1)), 1, "Categorical"),
    (PolicyConfig(Categorical(), FeedForward((8,)), window=Window(1, 2)), 1, "single steps"),
    (PolicyConfig(Regression(), MLP(8, 1)), None, "Categorical")])
def test_other_policies_are_refused(config, n_components, says):
    action = Feature("float32", (2,)) if n_components is None else Feature(
        "int64", (n_components,), "discrete", num_classes=(3,) * n_components)
    with pytest.raises(Unsupported, match=says):
        check_classes(Policy(config, {STATE: Feature("float32", (3,)), "action": action}), "ActionValues")


@pytest.mark.slow
@pytest.mark.parametrize(("options", "n_kept", "tolerance"), [  # a conservative value is lower or higher than the best
    ({"target_decay": 0.9}, 4, 0.05), ({"target_decay": 0.0, "double": False}, 4, 0.1),
    ({"target_decay": 0.9, "conservative_weight": 0.03}, 2, 0.3), ({"target_decay": 0.9, "n_quantiles": 3}, 4, 0.05),
    ({"target_decay": 0.9, "n_quantiles": 8, "draw_levels": True}, 4, 0.05)],
    ids=["double", "nfq", "conservative", "quantiles", "drawn levels"])
def test_values_are_exact_in_a_table(options, n_kept, tolerance):
    """With all actions in the data the values are the optimal ones, and with few the policy takes the best of these."""
    data, values = few_actions(n_kept)
    torch.manual_seed(0)
    options = dict(options)
    head = Categorical(n_quantiles=options.pop("n_quantiles", 1), draw_levels=options.pop("draw_levels", False))
    policy = Policy(PolicyConfig(head, FeedForward((64,)), ConcatEncoder()), data.features())
    policy.fit_statistics(data)
    config = ActionValues(discount=0.8, optimizer=CONSTANT, **options)
    learner = config.build(policy, 0, 2500, data)
    batch = learner.batch_sampler(data).gather(np.arange(data.steps))
    fit(learner, lambda n: batch, 2500)
    with torch.no_grad():
        logits = class_logits(policy, batch.obs)
    states, best = batch.obs[STATE][:, 0].argmax(-1).numpy(), logits.max(1).values.numpy()
    assert np.abs(best - values[1.0][states]).max() < tolerance * np.ptp(values[1.0])
    chosen, stored = logits.argmax(1).numpy(), batch.action[:, 0, 0].numpy()
    pairs = set(zip(states.tolist(), stored.tolist(), strict=True))
    assert all(pair in pairs for pair in zip(states.tolist(), chosen.tolist(), strict=True))


# -- IQ-Learn ---------------------------------------------------------------------------------------------------------


def test_inverse_values_keep_the_contract_of_learners():
    check_learner(InverseActionValues(batch_size=8, temperature=0.5), (CLASSES,))


@pytest.mark.parametrize(("ends", "expected"), [(False, 0.3699), (True, 0.8911)])
def test_the_loss_of_iq_learn_is_that_worked_out_by_hand(ends, expected):
    """Scores 0 and ln 3 of both observations, temperature 1, discount 0.5, and the second class.

    V = ln 4. If the episode goes on, r = ln 3 - ln 2 = 0.4055, and the loss is ln 4 - ln 2 - r + r^2 / 2. If it ends,
    r = ln 3 = 1.0986, and the loss is ln 4 - r + r^2 / 2.
    """
    features = {STATE: Feature("float32", (2,)), "action": Feature("int64", (1,), "discrete", num_classes=(2,))}
    data = Dataset([Episode({STATE: np.eye(2, dtype=np.float32), "action": np.array([[1]]),
                             "next.terminated": np.array([ends])}, schema=features)])
    policy = Policy(CLASSES, features).fit_statistics(data)
    learner = InverseActionValues(batch_size=1, temperature=1.0, discount=0.5).build(policy, 0, 1, data)
    with torch.no_grad():
        *others, bias = learner.nets.policy.net.parameters()
        for weights in others:
            weights.zero_()
        bias.copy_(torch.tensor([0.0, np.log(3)]))
    batch = policy.windows(data, extra=("next.terminated",), next_obs=True).gather(np.array([0]))
    assert call_step(learner, "inverse_loss", batch, RNG).item() == pytest.approx(expected, abs=1e-4)


def test_iq_learn_takes_the_class_that_was_demonstrated_in_each_state():
    rng = np.random.default_rng(0)
    features = {STATE: Feature("float32", (4,)), "action": Feature("int64", (1,), "discrete", num_classes=(3,))}
    states, shown = rng.integers(4, size=200), np.array([2, 0, 1, 2])
    episodes = [Episode({STATE: np.eye(4, dtype=np.float32)[[s, rng.integers(4)]], "action": shown[[s]][:, None],
                         "next.terminated": np.array([False])}, schema=features) for s in states]
    method = Method(CLASSES, learner=InverseActionValues(steps=300, optimizer=CONSTANT))
    policy = fit_method(method, Dataset(episodes), 0).policy
    scores = class_logits(policy, {STATE: torch.eye(4)[:, None]})
    assert scores.argmax(-1).tolist() == shown.tolist()
