"""What the claim about frozen encoders of pictures records and measures, on cases with known answers."""

from collections import Counter

import numpy as np
import torch
from claims.features_of_pictures import frozen_encoders as claim

from understudy.core import Batch
from understudy.data.episode import Dataset, Episode
from understudy.policy import Policy


def test_parts_have_their_goals_and_the_block_starts_near_its_place():
    data = claim.PushesToGoals(12, 2, 3).load(5)
    starts = np.array([np.asarray(e.steps[claim.STATE])[0] for e in data])
    numbers = [int(np.abs(np.array(claim.GOALS) - start[6:]).sum(1).argmin()) for start in starts]
    assert Counter(zip(numbers, (e.metadata["dataset"] for e in data), strict=True)) == {
        (0, "task"): 2, (0, "prior"): 2, (0, "more"): 3, (1, "prior"): 4, (2, "prior"): 4}
    assert np.abs(starts[:, 2:4] - claim.BLOCK).max() <= 0.1 and np.abs(starts[:, :2] - claim.DISC).max() <= 0.06
    assert all(e.metadata["success"] for e in data)


def test_features_of_episodes_are_those_of_the_environment():
    data = claim.PushesToGoals(3, 1, 0).load(5)
    policy = Policy(claim.RIVALS["random"].encoder.policy, data.features()).fit_statistics(data).eval()
    env = claim.EncodedPictures(claim.NearPush(4), policy)
    obs = env.reset(torch.arange(4), torch.arange(4))
    features = obs[claim.FEATURES]
    steps = {name: obs[name].numpy() for name in (claim.PICTURE, claim.OWN, claim.STATE)}
    encoded = env.transform_episode(Episode({**steps, "action": np.zeros((4, 2), np.float32)}, schema=data.features()))
    np.testing.assert_allclose(encoded.steps[claim.FEATURES], features, atol=1e-6)
    assert features.shape == (4, claim.WIDTH) and features.std(0).max() > 1e-4


def test_progress_is_the_part_of_the_way_that_is_done():
    def episode(end, success=False):
        state = np.zeros((3, 8), np.float32)
        state[:, 2] = 0.1, 0.9, end
        return Episode({claim.STATE: state, "action": np.zeros((3, 2), np.float32)}, {"success": success})
    np.testing.assert_allclose([claim.progress(episode(e)) for e in (0.1, 0.05, 0.3)], [0, 0.5, 0], atol=1e-6)
    assert claim.progress(episode(0.05, True)) == 1


def test_the_probe_explains_what_features_hold():
    rng = np.random.default_rng(0)

    def episode(part):
        state = rng.uniform(0.2, 0.8, (40, 8)).astype(np.float32)
        features = np.concatenate([state[:, 2:4] @ [[1, 2], [3, -1]], rng.normal(size=(40, 1))], 1).astype(np.float32)
        return Episode({claim.STATE: state, claim.FEATURES: features, "action": state[:, :2]}, {"dataset": part})
    fits = claim.pose_fit(Dataset([episode(part) for part in ("prior",) * 5 + ("more",) * 5]))
    assert fits[claim.POSITION][0] > 0.999 and fits[claim.ANGLE][0] < 0.1


def test_the_control_keeps_the_encodings_of_a_window_and_loses_their_order():
    data = claim.PushesToGoals(3, 1, 0).load(5)
    config = claim.frozen(claim.LatentDynamics(), 5).encoder.policy
    policy = Policy(config, data.features()).fit_statistics(data).eval()
    batch: Batch = policy.windows(data).gather(np.arange(20, 52))
    tokens = policy.context(batch.obs).tokens.detach()
    rng = torch.Generator().manual_seed(0)
    plain = claim.LatentDynamics().build(policy).sequence({"context": tokens}, rng)
    shuffled = claim.ShuffledDynamics().build(policy).sequence({"context": tokens}, rng)
    torch.testing.assert_close(plain.sum(1), shuffled.sum(1))
    torch.testing.assert_close(plain.sort(1).values, shuffled.sort(1).values)
    assert 0.05 < (plain == shuffled).all(-1).float().mean() < 0.5
