"""Rewards of a discriminator: closed forms, and the numbers of imitation."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from fixtures.d3rlpy import sines
from folders import TESTS

from understudy.core import Batch, ConfigError, DataWarning, Feature, Unsupported
from understudy.data.codec import Normalizer
from understudy.data.window import Window
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.regression import Regression
from understudy.learn.critics.ppo import PPO
from understudy.learn.critics.td3 import TD3
from understudy.learn.rewards.discriminator_reward import Discriminator, DiscriminatorReward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"
PEER = json.loads((TESTS / "fixtures" / "imitation_rewards.json").read_text())
IDENTITY = Normalizer("identity", "identity")


def model(n_states: int = 3, n_actions: int = 2, **options) -> Discriminator:
    features = {STATE: Feature("float32", (n_states,)), "action": Feature("float32", (n_actions,))}
    policy = Policy(PolicyConfig(Regression(), MLP(8, 1), codec=IDENTITY), features)
    return DiscriminatorReward(**options).build(policy, None)


def batch(state, action, after=None, ended=None, log_prob=None) -> Batch:
    n = len(state)
    extra = {"next.terminated": torch.zeros(n, 1) if ended is None else ended[:, None].float(),
             "log_prob": torch.zeros(n, 1) if log_prob is None else log_prob[:, None]}
    return Batch({STATE: state[:, None]}, action[:, None], torch.ones(n, 1, dtype=torch.bool), extra,
                 {STATE: (state if after is None else after)[:, None]})


def transitions(phase: int) -> Batch:
    return batch(sines((6, 3), phase), sines((6, 2), phase + 1), sines((6, 3), phase + 2), torch.arange(6) % 3 == 0,
                 sines((6,), phase + 3))


@pytest.mark.parametrize("form", ["gail", "airl"])
def test_rewards_and_losses_are_those_of_imitation(form):
    built, peer = model(form=form, penalty=0.0, hidden=(8, 7), activation="relu", discount=0.97), PEER[form]
    with torch.no_grad():
        for i, parameter in enumerate(built.parameters()):
            parameter.copy_(sines(tuple(parameter.shape), 100 + i))
    own, expert = transitions(0), transitions(10)
    assert built.logit(own).tolist() == pytest.approx(peer["logit"], abs=1e-5)
    assert built.reward(own, None)[:, 0].tolist() == pytest.approx(peer["reward"], abs=1e-5)
    loss = built.loss(own, expert, torch.Generator()).mean()
    assert loss.item() == pytest.approx(2 * peer["loss"], abs=1e-5)  # imitation has the mean over both halves
    gradient = torch.autograd.grad(loss, list(built.parameters()))
    assert [g.norm().item() / 2 for g in gradient] == pytest.approx(peer["gradient"], abs=1e-5)


def test_rewards_of_the_three_forms():
    state, action = sines((6, 3), 0), sines((6, 2), 1)
    torch.manual_seed(0)
    logit = model(form="logit", hidden=(8,)).reward(batch(state, action), None)
    torch.manual_seed(0)
    gail = model(form="gail", hidden=(8,)).reward(batch(state, action), None)
    torch.testing.assert_close(gail, -torch.log(1 - torch.sigmoid(logit)))
    probability = torch.sigmoid(logit)
    torch.testing.assert_close(logit, probability.log() - (1 - probability).log())


@pytest.mark.parametrize("form", ["logit", "gail"])
def test_with_an_absorbing_state_a_constant_reward_is_worth_the_same_whenever_an_episode_ends(form):
    """Without it, a reward of either sign says when to end."""
    built = model(form=form, absorbing=True, discount=0.9)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.zero_()
        built.layers[-1].bias.fill_(-2.0)
        built.absorbing.fill_(-0.2)
    returns = []
    for n in (1, 3, 6):
        steps = batch(sines((n, 3), 0), sines((n, 2), 1), ended=torch.arange(n) == n - 1)
        returns.append((built.reward(steps, None)[:, 0] * 0.9 ** torch.arange(n)).sum().item())
    reward = -2.0 if form == "logit" else torch.nn.functional.softplus(torch.tensor(-2.0)).item()
    assert returns == pytest.approx([reward / (1 - 0.9)] * 3, rel=1e-5)


def test_the_logit_of_the_absorbing_state_is_the_log_ratio_of_how_often_episodes_end():
    """Rows that differ in nothing else: 1 of 4 of the policy ends, and 1 of 16 of the demonstrations."""
    own, expert = (batch(torch.zeros(16, 3), torch.zeros(16, 2), ended=torch.arange(16) < n) for n in (4, 1))
    built, plain = model(absorbing=True, penalty=0.0, hidden=(4,)), model(penalty=0.0, hidden=(4,))
    train(built, own, expert)
    assert built.absorbing_logit().item() == pytest.approx(-torch.tensor(4.0).log().item(), abs=1e-3)
    plain.load_state_dict({k: v for k, v in built.state_dict().items() if k != "absorbing"})
    later = built.reward(own, None) - plain.reward(own, None)
    assert later[:, 0].tolist() == pytest.approx([99 * built.absorbing_logit().item()] * 4 + [0] * 12, rel=1e-4)


@pytest.mark.parametrize(("options", "match"), [({"form": "airl"}, "no action"), ({"discount": 1.0}, "no finite sum")])
def test_an_absorbing_state_that_has_no_reward_is_refused(options, match):
    with pytest.raises(ConfigError, match=match):
        DiscriminatorReward(absorbing=True, **options)


@pytest.mark.parametrize("learner", [TD3, PPO])
def test_another_discount_of_the_learner_is_refused(learner):
    learner(discount=0.9, reward=DiscriminatorReward())
    with pytest.raises(ConfigError, match=r"it is 0.9, but(.|\n)*--discount 0.9 --reward.discount 0.9"):
        learner(discount=0.9, reward=DiscriminatorReward(absorbing=True))


def train(built: Discriminator, own: Batch, expert: Batch, steps: int = 300) -> None:
    rng, options = torch.Generator(), {"tolerance_grad": 1e-9, "tolerance_change": 1e-12}
    optimizer = torch.optim.LBFGS(list(built.parameters()), max_iter=steps, line_search_fn="strong_wolfe", **options)

    def closure():
        optimizer.zero_grad()
        loss = built.loss(own, expert, rng).mean()
        loss.backward()
        return loss
    optimizer.step(closure)


def test_the_optimum_on_two_discrete_distributions_is_their_log_ratio():
    counts = torch.tensor([[10, 20, 30, 40], [40, 25, 25, 10]])  # of the policy, and of demonstrations
    rows = [torch.eye(4).repeat_interleave(n, 0) for n in counts]
    built = model(4, inputs="state", penalty=0.0, hidden=(16,))
    train(built, *(batch(r, torch.zeros(100, 2)) for r in rows))
    reward = built.reward(batch(torch.eye(4), torch.zeros(4, 2)), None)[:, 0]
    torch.testing.assert_close(reward, (counts[1] / counts[0]).log(), rtol=0, atol=1e-3)


@pytest.mark.parametrize(("options", "excess"), [
    ({}, lambda norm: norm - 1), ({"target": 0.3}, lambda norm: norm - 0.3),
    ({"one_sided": True}, lambda norm: max(norm - 1, 0.0))])
@pytest.mark.parametrize("length", [0.5, 1.7])
def test_the_penalty_of_a_linear_network(length, options, excess):
    built = model(hidden=(), **options)
    weight = sines((1, 5), 3)
    with torch.no_grad():
        built.layers[0].weight.copy_(length * weight / weight.norm())
    torch.testing.assert_close(built.gradient_penalty(sines((4, 5), 0)), torch.full((4,), float(excess(length)**2)))
    own, expert = transitions(0), transitions(10)
    without = model(hidden=(), penalty=0.0)
    without.load_state_dict(built.state_dict())
    added = built.loss(own, expert, torch.Generator()) - without.loss(own, expert, torch.Generator())
    torch.testing.assert_close(added, torch.full((6,), 10.0 * excess(length)**2), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["logit", "gail"])
def test_the_logged_slope_of_a_linear_network(form):
    """The gradient of its logit is its weight w, and that of softplus(logit) is w * sigmoid(logit)."""
    built, own = model(hidden=(), form=form), transitions(0)
    factor = torch.ones(6) if form == "logit" else torch.sigmoid(built.logit(own))
    expected = (built.layers[0].weight.norm() * factor).quantile(0.95).item()
    assert built.metrics(own) == {"slope": pytest.approx(expected)}


def test_a_spectral_norm_bounds_the_gradient():
    built = model(spectral=True, hidden=(16, 16), activation="relu")
    for _ in range(300):  # power iterations
        built.logit(transitions(0))
    points = sines((20, 5), 4).requires_grad_()
    gradient, = torch.autograd.grad(built.layers(points).sum(), points)
    assert gradient.norm(dim=1).max() <= 1 + 1e-4
    built.eval()
    norms = [torch.linalg.matrix_norm(layer.weight, 2).item() for layer in built.layers[::2]]
    assert norms == pytest.approx([1] * 3, abs=1e-3)


def test_airl_recovers_a_reward_up_to_shaping():
    """The policy is the optimum of maximum entropy. Then D is 1/2 everywhere, so f is the log-density of the policy,
    which is the reward plus a shaping by the soft values. Deterministic moves on a line of four states."""
    discount, reward = 0.9, torch.tensor([0.0, 0.3, -0.5, 1.0])
    after = torch.stack([(torch.arange(4) - 1).clamp(min=0), (torch.arange(4) + 1).clamp(max=3)], 1)  # of each action
    value = torch.zeros(4)
    for _ in range(500):
        value = torch.logsumexp(reward[:, None] + discount * value[after], 1)
    log_policy = reward[:, None] + discount * value[after] - value[:, None]
    states, actions = torch.arange(4).repeat_interleave(2), torch.arange(2).repeat(4)
    rows = batch(torch.eye(4)[states], torch.eye(2)[actions], torch.eye(4)[after[states, actions]],
                 log_prob=log_policy[states, actions])
    built = model(4, form="airl", penalty=0.0, hidden=(16,), discount=discount)
    train(built, rows, rows)
    shaped = reward[states] + discount * value[after[states, actions]] - value[states]
    torch.testing.assert_close(built.reward(rows, None)[:, 0], shaped, rtol=0, atol=5e-3)


def test_states_alone_do_not_depend_on_actions_and_next_states_do_not_either():
    own = transitions(0)
    moved = own.replace(action=own.action + 1)
    for inputs, same in (("state", True), ("next", True), ("action", False)):
        built = model(inputs=inputs, hidden=(8,))
        assert torch.equal(built.reward(own, None), built.reward(moved, None)) == same
    elsewhere = own.replace(next={STATE: own.next[STATE] + 1})
    assert not torch.equal(model(inputs="next", hidden=(8,)).reward(own, None),
                           model(inputs="next", hidden=(8,)).reward(elsewhere, None))


@pytest.mark.parametrize(("penalty", "raised"), [(0.0, 10), (10.0, 100)])
def test_a_saturated_discriminator_is_named_with_the_settings_to_change(penalty, raised):
    built = model(hidden=(), penalty=penalty)
    own, expert = transitions(0), transitions(10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        built.loss(own, expert, torch.Generator())
    with torch.no_grad():
        built.layers[0].weight.mul_(200)
    with pytest.warns(DataWarning, match=rf"certain of all rows.*reward.penalty {raised}\).*reward.optimizer.lr"):
        built.loss(own, expert, torch.Generator())


def test_classes_are_compared_as_one_hot_vectors():
    features = {STATE: Feature("float32", (3,)), "action": Feature("int64", (1,), "discrete", num_classes=(3,))}
    policy = Policy(PolicyConfig(Categorical(), MLP(8, 1), codec=IDENTITY), features)
    rows = batch(sines((3, 3), 0), torch.arange(3)[:, None])
    read = DiscriminatorReward().build(policy, None).read(rows)
    assert torch.equal(read, torch.cat([sines((3, 3), 0), torch.eye(3)], 1))


def test_chunks_are_refused():
    features = {STATE: Feature("float32", (3,)), "action": Feature("float32", (1,))}
    with pytest.raises(Unsupported, match="horizon=1"):
        DiscriminatorReward().build(Policy(PolicyConfig(Regression(), MLP(8, 1), window=Window(1, 2)), features), None)
