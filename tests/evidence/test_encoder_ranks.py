"""The world, the features and the rules of the claim about ranks of encoders."""

from dataclasses import replace

import numpy as np
import torch
from claims.features_of_pictures import encoder_ranks as claim
from understudy.claims.runner import _spread

from evidence.experiment import expert_of
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.evaluate.rollout import rollout


def test_rewards_of_an_episode_are_ten_times_what_the_push_comes_nearer():
    env = claim.RewardedPush(3, 1)
    def remaining(state):
        block, ahead = state[2:4], state[6:] - state[2:4]
        distance = np.linalg.norm(ahead)
        return distance + 0.5 * np.linalg.norm(state[:2] - block + 0.115 * ahead / distance)  # 0.115 m: disc and block
    for episode in rollout(expert_of(env), env, 3, seed=1):
        state = np.asarray(episode.steps[claim.STATE], float)[:len(episode)]
        rewards = np.asarray(episode.steps["next.reward"][:len(episode)], float)
        nearer = [remaining(before) - remaining(after) for before, after in zip(state, state[1:], strict=False)]
        np.testing.assert_allclose(rewards[:-1], 10 * np.array(nearer), atol=1e-4)
        assert episode.metadata["success"] and 0.9 < rewards[-1] < 1.4
        np.testing.assert_allclose(state[0, 6:], claim.GOALS[1])


def test_principal_components_are_those_of_the_pixels():
    rng, n = np.random.default_rng(0), 60
    loads, patterns = (np.linalg.qr(rng.normal(size=(size, n)))[0] for size in (n, 5 * 5 * 3))
    sizes = 300 / 1.07 ** np.arange(n)  # of equal sizes, float32 does not tell components apart
    pictures = (128 + (loads * sizes) @ patterns.T).round().clip(0, 255).astype(np.uint8).reshape(n, 5, 5, 3)
    encode = claim.PrincipalComponents().encoder(Dataset([
        Episode({claim.PICTURE: part, "action": np.zeros((30, 2), np.float32)}) for part in np.split(pictures, 2)]))
    pixels = pictures.reshape(60, -1) / 255
    _, _, axes = np.linalg.svd(pixels - pixels.mean(0), full_matrices=False)
    expected = np.abs((pixels - pixels.mean(0)) @ axes[:claim.WIDTH].T)
    features = encode({claim.PICTURE: torch.from_numpy(pictures)}).abs().flip(1)
    np.testing.assert_allclose(features, expected, atol=1e-5)


def test_features_take_the_place_of_pictures():
    env = claim.FeaturesAlone(claim.RewardedPush(4, 0), lambda obs: obs[claim.PICTURE].float().mean((1, 2)) / 255)
    obs = env.reset(torch.arange(4), torch.arange(4))
    whole = env.env.observe()
    assert claim.PICTURE not in obs and env.features[claim.FEATURES].shape == (3,)
    np.testing.assert_allclose(obs[claim.FEATURES], whole[claim.PICTURE].mean((1, 2)) / 255, atol=1e-5)
    assert torch.equal(obs[claim.STATE], torch.from_numpy(whole[claim.STATE]))


def test_td3_learns_from_what_it_collects_alone():
    data = claim.PushesToGoals(3, 0, 0).load(5)
    rounds = claim.learners()[claim.TD3].collection
    collected = [replace(data[0], metadata={**data[0].metadata, ROUND: number}) for number in range(claim.N_ROUNDS)]
    stored = rounds.retention.keep(Dataset([*data, *collected]))
    assert [e.metadata.get(ROUND) for e in stored] == list(range(claim.N_ROUNDS))


def measured(cloning, td3):
    """Measurements of tables (encoders, goals, seeds)."""
    return {arm: {claim.CLONING: np.transpose(c).tolist(), claim.TD3: np.transpose(t).tolist()}
            for arm, c, t in zip(claim.ENCODERS, cloning, td3, strict=True)}


def test_rules_see_an_order_that_repeats_other_orders_and_variance():
    rng = np.random.default_rng(0)
    levels, noise = np.linspace(0.2, 0.9, 6)[:, None, None], rng.normal(size=(2, 6, 3, 5))
    repeats, differ, seeds = (claim.REPEATS, *claim.RULES)
    same = measured(levels + 0.01 * noise[0], levels + 0.1 * noise[1])
    assert [rule.judge(same).verdict for rule in (repeats, seeds)] == ["holds", "holds"]
    assert differ.judge(same).verdict != "holds" and differ.judge(same).conditions[0].estimate > 0.8
    other = measured(levels + 0.01 * noise[0], levels[::-1] + 0.01 * noise[1])
    assert differ.judge(other).verdict == "holds" and seeds.judge(other).verdict != "holds"


def test_in_the_control_there_is_no_order_to_repeat():
    noise = 0.8 + 0.01 * np.random.default_rng(1).normal(size=(20, 2, 6, 3, 5))
    verdicts = [claim.REPEATS.judge(measured(*pair)).verdict for pair in noise]
    assert verdicts.count("fails") >= 18
    swapped = np.array([0.1, 0.4, 0.2, 0.5, 0.3, 0.6])[:, None, None] * [1, 1, 1, 1, 1]  # four of five pairs agree
    swapped[:, :, 1::2] = np.linspace(0.1, 0.6, 6)[:, None, None]
    assert claim.REPEATS.judge(measured(swapped, swapped)).verdict == "undecided"
    control = claim.CLAIMS[0].negative_control.change(claim.TABLE.experiment)
    arms = {arm.name: arm.options[0] for arm in control.arms}
    assert [arms[name] for name in claim.ENCODERS] == [claim.TrueState(i) for i in range(1, 7)]


def test_a_pilot_of_rules_about_all_arms_tells_their_intervals():
    noise = np.random.default_rng(1).normal(size=(2, 6, 3, 3))
    sentence = _spread(claim.CLAIMS[0], claim.CLAIMS[0].parts[0], claim.RULES[0], measured(*noise))
    assert sentence.startswith("push-images: tau of cloning and TD3 = ") and sentence.endswith("must be below 0.8.")
