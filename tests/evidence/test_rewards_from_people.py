"""Row 217: the traces by which features are taught, and the rewards that are learned from them."""

from types import SimpleNamespace

import numpy as np
import torch

from evidence.families.rewards_from_people import feature_traces as taught


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
