"""Pictures and arms of the claim on retrieval are as they say."""

import numpy as np
import pytest
import torch
from claims.retrieval import few_demonstrations as few
from claims.retrieval import vinn_few_demonstrations as vinn

from understudy.envs.toys.peg_insertion import STEP
from understudy.methods.retrieval.retrieve_align_replay import rotate


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


def test_a_log_of_demonstrations_and_play_surrounds_one_demonstration_of_each_outline():
    data = few.TaskAndLog(n_hidden=2, play=6).load(1)
    task, hidden, play = data[:5], data[5:15], data[15:]
    assert [e.metadata[few.DATASET_NAME] for e in data] == ["task"] * 5 + ["prior"] * 16
    assert [e.metadata[few.DEMONSTRATION] for e in data] == [True] * 15 + [False] * 6
    outlines = [[tuple(e.steps[few.OUTLINE][0]) for e in part] for part in (task, hidden)]
    assert len(set(outlines[0])) == 5 and sorted(outlines[1]) == sorted(2 * outlines[0])
    ends = [e.steps[few.PEG][-1 - few.LAST_STEPS] for e in task]
    assert all(min(np.abs(e.steps[few.PEG][0] - end).max() for end in ends) < 1e-6 for e in play)


def test_demonstrated_velocities_are_in_the_frame_of_the_peg():
    """Turned by the angle of the peg, they are the motion of its tip, before it touches the wall."""
    for episode in few.TaskAndLog(n_hidden=0, play=1).load(1)[:5]:
        pose, action = (torch.from_numpy(np.asarray(episode.steps[k])[:3]) for k in (few.PEG, "action"))
        motion = torch.from_numpy(np.diff(np.asarray(episode.steps[few.PEG])[:3], axis=0) / STEP)
        turned = rotate(action, pose[:, 2])[:2].clamp(-1, 1)
        torch.testing.assert_close(motion[:, 2], turned[:, 2], atol=1e-4, rtol=0)
        torch.testing.assert_close(motion[:, :2], turned[:, :2], atol=1e-4, rtol=0)
