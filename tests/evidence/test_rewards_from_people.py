"""Rows 027, 217 and 324: the regret, the clone, rewards and learners against closed forms, and what people answer."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from claims.rewards_from_people import compounding_errors as rope
from claims.rewards_from_people import feature_traces as taught
from claims.rewards_from_people import similarity_queries as similar
from scipy.special import expit

from understudy.envs.toys.mdp import tightrope

RIGHT = rope.right_actions(7, 5, 2)


@pytest.mark.parametrize("recoverable", [False, True])
def test_the_regret_is_that_of_the_tightrope_of_the_library(recoverable):
    process, logits = tightrope(6, recoverable, seed=3), np.linspace(-2, 3, 6)
    right = process.rewards.sum(2).argmax(1)[:6]
    policy = np.full((process.states, 2), 0.5)
    policy[:6] = np.stack([expit(-logits), expit(logits)], 1)
    assert rope.regret(right[None, :, None], logits[None, :, None], recoverable)[0] == pytest.approx(
        6 - process.expected_return(policy, 6))


def test_a_clone_knows_what_it_has_counted_and_the_reward_is_the_logit_of_a_discriminator():
    look, action = np.array([[[0, 1], [0, 2]]]), np.array([[[1, 0], [0, 0]]])
    chance = expit(rope.clone(look, action))[0]
    np.testing.assert_allclose(chance[0], 0.5)  # half of the demonstrations, or none
    np.testing.assert_allclose(chance[1], [0.5, 0, 0, 0.5, 0.5, 0.5], atol=1e-5)
    look = np.zeros((2, 20_000, 6), int)
    reward = rope.learned_reward(RIGHT, look, np.random.default_rng(0))
    falls, lasts = 5 - (1 - 0.5**5), (1 - 0.5**5) / 6  # steps of a random episode after a fall, and at each look
    np.testing.assert_allclose(reward[:, 0], np.log(5 / lasts), atol=0.05)
    np.testing.assert_allclose(reward[:, -1], -np.log(falls * 20_000 + 1), atol=0.01)


def test_ppo_and_soft_q_learning_end_at_the_exact_maximum_of_their_objective():
    reference, reward = np.random.default_rng(1).normal(size=RIGHT.shape), np.tile([0.2] * 6 + [0.1], (2, 1))
    value, exact = 0.0, np.zeros(RIGHT.shape)
    for t in reversed(range(5)):
        gain = 0.1 + value  # of the rope over a fall
        exact[:, t] = reference[:, t] + (2 * RIGHT[:, t] - 1) * gain / rope.KL_WEIGHT
        holds = expit((2 * RIGHT[:, t] - 1) * reference[:, t])
        value = (rope.KL_WEIGHT * np.log(holds * np.exp(gain / rope.KL_WEIGHT) + 1 - holds)).mean(1, keepdims=True)
    learned = rope.soft_q(RIGHT, reference, reward, np.random.default_rng(2), 250, 0.1)
    assert np.abs(learned - exact).mean() < 0.05 and np.abs(exact - reference).mean() > 1.9
    practiced = rope.ppo(RIGHT, reference, reward, np.random.default_rng(3), 100, 3.0)
    assert np.abs(practiced - exact).mean() < 0.15


def test_similar_segments_are_the_closest_and_rewards_are_the_optimum_of_bradley_and_terry():
    data = similar.segments(40, 7)
    features = similar.column(data, similar.FEATURES).mean(1)
    number = {x.tobytes(): i for i, x in enumerate(similar.column(data, similar.STATE))}
    for query in similar.queries(data, 20, np.random.default_rng(0), "features"):
        a, b, c = (features[number[x.tobytes()]] for x in query.steps[similar.STATE].reshape(3, similar.STEPS, -1))
        assert np.linalg.norm(a - b) < min(np.linalg.norm(a - c), np.linalg.norm(b - c))
    users = np.array([[1.0, 0.0, 0.0], [0.0, -1.0, 1.0]])
    better, worse = similar.compared(features, users, 30, np.random.default_rng(1))
    assert (np.einsum("unk,uk->un", features[better] - features[worse], users) > 0).all()
    weights = similar.linear_rewards(torch.from_numpy(features), better, worse).requires_grad_()
    gap = torch.from_numpy(features[better] - features[worse])
    loss = torch.nn.functional.softplus(-torch.einsum("und,ud->un", gap, weights)).sum() + weights.square().sum() / 2
    loss.backward()
    assert weights.grad.abs().max() < 1e-6 < 1 < weights.abs().max()


def test_spurious_inputs_follow_the_features_and_in_shifted_data_they_do_not():
    for shifted, expected in ((False, similar.CORRELATION), (True, 0.0)):
        data = similar.segments(800, 7, shifted=shifted)
        features, inputs = (similar.column(data, name).mean(1) for name in (similar.FEATURES, similar.STATE))
        np.testing.assert_allclose(features.mean(0), 0, atol=0.15)
        np.testing.assert_allclose(features.std(0), 1, atol=0.15)
        for k in range(6):
            assert np.corrcoef(inputs[:, -6 + k], features[:, k % 3])[0, 1] == pytest.approx(expected, abs=0.12)


def test_the_true_features_order_nearly_all_pairs_and_a_network_learns():
    data = similar.segments(200, 7)
    accuracy = similar.accuracies(None, similar.RewardLearner("features"), data, 7, 1, 1)
    assert len(accuracy[similar.ACCURACY]) == similar.N_USERS and np.mean(accuracy[similar.ACCURACY]) > 0.9
    assert accuracy[similar.FIT] == pytest.approx([1.0])
    features, inputs = (similar.column(data, name) for name in (similar.FEATURES, similar.STATE))
    better, worse = similar.compared(features.mean(1), np.eye(3), 100, np.random.default_rng(0))
    rewards = similar.network_rewards(*2 * (torch.from_numpy(inputs),), better, worse, 150, 0.01, 0).numpy()
    user = np.arange(3)[:, None]
    assert (rewards[user, better] > rewards[user, worse]).mean(1).min() > 0.9


def test_traces_begin_far_from_what_they_end_at_and_the_best_motion_is_shown():
    data = taught.Traces().load(7)
    inputs, places = taught.column(data), taught.column(data, taught.PLACES)[:, 0].reshape(-1, 2, 2)
    assert inputs.shape == (2 * taught.N_TRACES, taught.STEPS, 13 + taught.N_NOISE)
    np.testing.assert_allclose(taught.tips(inputs[..., :3]), inputs[..., 3:5], atol=1e-5)
    for number, (x, place) in enumerate(zip(inputs, places, strict=True)):
        distance = np.linalg.norm(x[:, 3:5] - place[number // taught.N_TRACES], axis=1)
        assert distance[0] > 0.7 and distance[-1] < 0.4
        feature = taught.true_features(x)[:, number // taught.N_TRACES]
        np.testing.assert_allclose(feature, np.exp(-distance**2 / (2 * taught.WIDTH**2)), atol=1e-5)
    shown = taught.demonstrations(np.random.default_rng(0), 4)
    returns = (taught.true_features(shown) @ taught.WEIGHTS).sum(2)
    assert (returns.argmax(1) == 0).all() and (returns.std(1) > 1).all()
    added = taught.traces_as_demonstrations(np.random.default_rng(0), data)
    start, end = (taught.true_features(added[:, 0, at]) @ taught.WEIGHTS for at in (0, -1))
    assert (end > start).mean() > 0.9
    np.testing.assert_allclose(added[:, 1:, 0, 5:9], np.repeat(added[:, :1, 0, 5:9], taught.N_MOTIONS - 1, 1))


def test_maximum_entropy_expects_the_features_of_what_is_shown():
    """At the optimum of an exponential family, expected sums of features equal those of the demonstrations."""
    inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(taught.N_SCENES, 6, 4, 2))).float()
    layers = torch.nn.Linear(2, 1)
    inputs[:, 0] += torch.tensor([0.3, -0.2])
    taught.maximum_entropy(layers, inputs, 150, 5e-2, 0.0, 0)
    sums = inputs.sum(2)
    expected = (layers(inputs).sum(2).softmax(1) * sums).sum(1)
    torch.testing.assert_close(expected.mean(0), sums[:, 0].mean(0), atol=1e-3, rtol=0)
    assert layers.weight.abs().max() > 0.1


def test_half_of_the_traces_are_reversed_and_true_features_give_the_reward(monkeypatch):
    data, labeled = taught.Traces().load(7), []

    def fit(method, data, seed):
        labeled.append([e.metadata[taught.TRACE] for e in data])
        return SimpleNamespace(modules={"reward": torch.nn.Identity()})
    monkeypatch.setattr(taught, "fit_method", fit)
    for fraction in (0.5, 0.0):
        taught.features(data, fraction, 1, 7)
    assert [ways.count("down") for ways in labeled] == [10, 10, 0, 0] and set(map(len, labeled)) == {20}
    true = taught.correlations(None, taught.RewardLearner("true features", updates=100), data, 7, 1, 1)
    assert true[taught.CORRELATION][0] > 0.95
