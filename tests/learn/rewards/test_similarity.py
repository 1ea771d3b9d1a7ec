"""Similarity queries: the loss by hand, segments of any length, and an encoder that learns what a person looks at."""

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.core import ConfigError, DataError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.similarity import SIMILARITY, SimilarityLearning, triplet_loss
from understudy.methods.behavior_cloning.g_blend import ColumnEncoder
from understudy.nets.encoders import ConcatEncoder
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE = "observation.state"
POLICY = PolicyConfig(Regression(), encoder=ColumnEncoder(2, (32,)), window=Window(1, 1), inputs=(STATE,))
LEARNER = SimilarityLearning(600, 32, optimizer=OptimizerConfig(lr=3e-3))


def queries(count: int, lengths=(2, 5), seed: int = 0) -> Dataset:
    """The person looks at the second of four numbers alone. The segments are in any order."""
    rng, episodes = np.random.default_rng(seed), []
    for number in range(count):
        n = lengths[number % len(lengths)]
        means = rng.normal(size=(3, 4))
        third = np.argmax([abs(means[k, 1] - means[[j for j in range(3) if j != k], 1]).min() for k in range(3)])
        code = np.where(np.arange(3) == third, 2, np.cumsum(np.arange(3) != third) - 1)
        state = np.repeat(means, n, 0) + 0.1 * rng.normal(size=(3 * n, 4))
        episodes.append(Episode({STATE: state.astype(np.float32), "action": np.zeros((3 * n, 1), np.float32),
                                 SIMILARITY: np.repeat(code, n)[:, None]}, {"number": number}))
    return Dataset(episodes, {"fps": 10})


def test_contract():
    check_learner(SimilarityLearning(batch_size=8), [POLICY])


def test_the_loss_is_that_of_both_anchors():
    """Squared distances 1, 4 and 1: max(0, 1 - 4 + 2) + max(0, 1 - 1 + 2); then 1, 9 and 10, far enough."""
    encodings = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [1.0, 0.0], [0.0, 3.0]]],
                             requires_grad=True)
    loss = triplet_loss(encodings, 2.0)
    assert loss.tolist() == [2.0, 0.0]
    loss.sum().backward()  # of |a - b|^2 - |b - c|^2 alone: -2 (b - a), 2 (b - a) - 2 (b - c), 2 (b - c)
    assert encodings.grad.tolist() == [[[-2, 0], [4, 0], [-2, 0]], [[0, 0]] * 3]


@pytest.mark.parametrize("other", [{2: 1}, {2: 3}, {0: 1, 1: 2, 2: 3}])
def test_queries_without_three_segments_are_refused(other):
    """A segment without steps had the encoding 0."""
    data = queries(3)
    code = np.vectorize(lambda value: other.get(value, value))(data[1].steps[SIMILARITY])
    wrong = Dataset([data[0], data[1].replace({SIMILARITY: code}), data[2]])
    found = ", ".join(map(str, np.unique(code)))
    with pytest.raises(DataError, match=f"episode 1, column 'similarity': its values are {found}\n"):
        fit_method(Method(POLICY, learner=LEARNER), wrong, 0)


def test_an_encoding_is_the_mean_over_the_steps_of_its_segment():
    data = queries(6)
    policy = Policy(POLICY, data.features()).fit_statistics(data)
    learner = LEARNER.build(policy, 0, 10, data)
    expected = []
    for episode in data:
        code = episode.steps[SIMILARITY][:, 0]
        steps = policy.context({STATE: torch.from_numpy(episode.steps[STATE]).unsqueeze(1)}).flat()
        expected.append(torch.stack([steps[torch.from_numpy(code == k)].mean(0) for k in range(3)]))
    drawn = torch.randint(6, (8,), generator=torch.Generator().manual_seed(7))
    batch = learner.batch_sampler(data).batch(8, 0)
    actual = call_step(learner, "similarity_loss", batch, torch.Generator().manual_seed(7))
    torch.testing.assert_close(actual, triplet_loss(torch.stack(expected), 1.0)[drawn], rtol=1e-4, atol=1e-5)


def test_the_encoder_learns_what_the_person_looks_at():
    data, new = queries(200), queries(200, (1,), 1)
    policy = fit_method(Method(POLICY, learner=LEARNER), data, 0).policy
    with torch.no_grad():
        states = torch.from_numpy(np.stack([e.steps[STATE][np.argsort(e.steps[SIMILARITY][:, 0])] for e in new]))
        a, b, c = policy.context({STATE: states.flatten(0, 1).unsqueeze(1)}).flat().reshape(200, 3, 2).unbind(1)
    near, far = (a - b).norm(dim=1), torch.minimum((a - c).norm(dim=1), (b - c).norm(dim=1))
    assert (near < far).float().mean() > 0.85


def test_an_encoder_without_weights_is_refused():
    data = queries(4)
    policy = Policy(PolicyConfig(Regression(), encoder=ConcatEncoder(), inputs=(STATE,)), data.features())
    with pytest.raises(ConfigError, match="no weights to train"):
        LEARNER.build(policy.fit_statistics(data), 0, 10, data)
