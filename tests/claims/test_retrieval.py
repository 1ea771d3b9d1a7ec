"""Pictures and arms of the claim on retrieval are as they say."""

import numpy as np
import pytest
import torch

from claims.retrieval import vinn_few_demonstrations as vinn


@pytest.mark.parametrize(("untrained", "verdict"), [(2.0, "fails"), (0.5, "undecided")])
def test_retrieval_is_judged_only_if_self_supervision_helps(untrained, verdict):
    """Retrieval is worse than cloning, which counts against it only if its encoder beats random weights."""
    inputs = [[0.001 * i] for i in range(8)]
    errors = {arm: {"error": [[mean + x[0]] for x in inputs]}
              for arm, mean in (("retrieval", 1.0), ("cloning", 0.6), ("untrained", untrained))}
    part = vinn.CLAIM.parts[0]
    assert part.rule.judge(errors, dict(part.experiment.measures)).verdict == verdict


def test_the_error_of_steering_is_a_fraction_of_that_of_the_mean_angle():
    """Learned angles are 0 and 2. Where 3 is right, their mean errs by 2, and the nearest picture's angle by 1."""
    pictures = np.random.default_rng(0).normal(size=(2, vinn.HEIGHT, vinn.WIDTH)).astype(np.float32)

    def segment(picture, angle, learned):
        return vinn.Episode({"observation.images.front": pictures[[picture]],
                             "action": np.full((1, 1), angle, np.float32)}, {"learned": learned})
    data = vinn.Dataset([segment(0, 0, True), segment(1, 2, True), segment(1, 3, False)])
    measures = vinn.steering_error(None, vinn.VisualMethod("untrained", n_neighbors=1), data, 0, 1, 0)
    assert measures["error"] == pytest.approx([0.25]) and measures["score"] == pytest.approx([0.75])


def test_retrieval_gives_the_weighted_mean_of_the_nearest_pictures():
    """Features 0, 1, 2 and 5 on a line are at mean distance (1 + 1 + 1 + 3) / 4 = 1.5 of their nearest."""
    keys = torch.zeros(4, vinn.FEATURES)
    keys[:, 0] = torch.tensor([0.0, 1, 2, 5])
    action = torch.tensor([[1.0], [2], [3], [4]])
    query = torch.zeros(1, vinn.FEATURES)
    query[0, 0] = 0.75
    retrieved = vinn.retrieve(torch.nn.Identity(), keys, action, query, 2)
    weight = np.exp(-np.array([0.75, 0.25]) / 1.5)
    assert retrieved.item() == pytest.approx(weight @ [1, 2] / weight.sum(), rel=1e-5)


def test_an_augmented_picture_is_a_crop_of_it():
    rng = torch.Generator().manual_seed(0)
    images = torch.ones(200, 1, vinn.HEIGHT, vinn.WIDTH) * torch.linspace(-1, 1, vinn.WIDTH)
    augmented = vinn.augment(images, 0.6, rng)
    assert augmented.shape == images.shape
    slopes = (augmented[..., -3] - augmented[..., 2]).mean((1, 2)) / (images[0, 0, 0, -3] - images[0, 0, 0, 2])
    assert 0.6 * 0.6**0.5 - 0.01 < slopes.min() < 0.7 < 1.1 < slopes.max() < 1.4 + 0.01  # side times contrast


def test_self_supervision_does_not_see_actions_and_moves_the_encoder():
    images = torch.randn(60, 1, vinn.HEIGHT, vinn.WIDTH, generator=torch.Generator().manual_seed(0))
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        first = vinn.small_encoder()
        torch.manual_seed(0)
        trained = vinn.self_supervised_encoder(images, vinn.VisualMethod("retrieval", n_updates=2), 0)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), trained.parameters(), strict=True))
    assert not trained.training
