"""The world and the measure of the claim about imagined goals, and the arm whose rewards are of pictures."""

from dataclasses import replace

import numpy as np
import torch
from claims.features_of_states import imagined_goals as claim
from fixtures.learning import call_step

from understudy.core import keys
from understudy.data.episode import Dataset
from understudy.learn.fit_method import fit_method
from understudy.learn.method import find_references, resolve_references, training_data
from understudy.policy import Policy


def test_an_action_lasts_four_steps_and_nothing_ends_an_episode_early():
    data = claim.RandomWalks(3).load(5)
    assert set(data.lengths) == {claim.LIMIT} and not any(e.steps["next.terminated"].any() for e in data)
    env = claim.Strides(1)
    env.reset(torch.arange(1), keys(0, [0]))
    env.state["at"][:] = env.state["goal"][:] = 1.6
    out = env.step(torch.tensor([[0.5, -1.0]]))
    assert np.allclose(out.obs[claim.STATE], [[1.8, 1.2]]) and not (out.terminated | out.info["success"]).any()


def test_the_agent_is_brightest_at_its_place_and_near_pictures_overlap():
    env = claim.Blobs(claim.Strides(3))
    places = torch.tensor([[1.0, 1.0], [6.2, 2.2], [3.9, 7.1]])
    share = (env._draw(places).float() - torch.from_numpy(env.rooms).float()).abs().sum(-1)
    at = torch.stack([(2 * places[:, 0]).long(), 15 - (2 * places[:, 1]).long()], 1)
    peaks = [np.abs(np.argwhere(x.numpy() >= 0.9 * x.max().item())[:, ::-1] - p.numpy()).max(1).min() for x, p in
             zip(share, at, strict=True)]
    assert max(peaks) <= 1 and (share > 0).float().mean() > 0.1


def test_the_way_that_is_left_goes_around_walls():
    places = [np.array(p, np.float32) for p in ((3.5, 3.5), (3.6, 3.4), (4.5, 3.5), (2.5, 3.5))]
    assert [claim.steps_to_go(places[0], p) for p in places] == [0, 0, 5 * claim.STEPS[35, 3, 3], 5]
    assert claim.STEPS[35, 3, 3] > 1  # a wall stands between the two


def test_pixels_are_compared_with_the_picture_of_the_same_goal():
    """Rewards of windows whose goal is what follows are zero, and the others are distances of pictures."""
    option = replace(claim.Practice(claim.PICTURES, p_randomgoal=0.6), n_vae=1)
    data, method = claim.RandomWalks(3).load(5), option.method
    vae = fit_method(method.stages[0].method, data, 0)
    (reference,) = find_references(method.transforms)
    method = resolve_references(method, {reference: vae.policy})
    data = Dataset(list(training_data(data, method)))
    learner = method.learner.build(Policy(method.policy, data.features()).fit_statistics(data), 0, 1, data)
    batch = call_step(learner, "rewarded", learner.batch_sampler(data).batch(200, 0), torch.Generator().manual_seed(0))
    steps = batch.extra[f"{claim.LATER}.steps"][:, 0]
    assert 0.3 < steps.isinf().float().mean() < 0.5 and not batch.extra["next.reward"][steps == 1].any()
    codes = batch.obs["observation.latent_goal"][:, 0].numpy()
    pictures = {tuple(z): x for e in data for z, x in zip(e.steps["observation.latent"], e.steps[claim.PICTURE],
                                                          strict=True)}
    goals = np.stack([pictures[tuple(z)] for z in codes]).astype(float)
    expected = np.sqrt(np.square(batch.next[claim.PICTURE][:, 0].numpy() - goals).sum((1, 2, 3))) / 255
    assert np.allclose(batch.extra["next.reward"][:, 0], -expected, atol=1e-4)
