"""Critics: encoded once for many plans, shared encoders, subsets for targets."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fixtures.staged import episodes, method

from understudy.core import ConfigError, UserError
from understudy.data.window import Window
from understudy.execute.planners import BestOfN
from understudy.execute.steering import ScorerGuided
from understudy.heads.denoising.flow import Flow
from understudy.learn.critic import CriticConfig, QFunction, mix_networks
from understudy.learn.fit_method import fit_method
from understudy.methods import find_method
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.policy import Policy

STATE = "observation.state"
ENCODERS = {"concat": ConcatEncoder(), "tokens": TokenEncoder(8)}


@pytest.fixture(scope="module")
def policy() -> Policy:
    data = episodes()
    return Policy(method().policy, data.features()).fit_statistics(data)


@pytest.fixture(scope="module")
def batch(policy):
    return policy.windows(episodes()).batch(6, 0)


@pytest.mark.parametrize("name", ENCODERS)
@pytest.mark.parametrize("share", [False, True])
def test_networks_score_plans_as_each_does_alone(policy, batch, name, share):
    critic = CriticConfig((16,), ENCODERS[name], n_critics=3, share_encoder=share).build(policy)
    plans = batch.action[:, None] + torch.linspace(-1, 1, 5)[:, None, None]
    scores = critic.scores(batch.obs, plans)
    coded = policy.codec.encode_obs(batch.obs)
    for c, layers in enumerate(critic.layers):
        encoder = critic.encoders[min(c, len(critic.encoders) - 1)]
        for n in range(5):
            plan = policy.codec.encode(plans[:, n], batch.obs).flatten(1)
            alone = layers(torch.cat([encoder(coded).flat(), plan], -1)).squeeze(-1)
            torch.testing.assert_close(scores[c, :, n], alone)
            torch.testing.assert_close(critic.scores(batch.obs, plans[:, n])[c], alone)
    torch.testing.assert_close(critic.score_plans(batch.obs, plans), scores.amin(0))
    torch.testing.assert_close(super(QFunction, critic).score_plans(batch.obs, plans), scores.amin(0))
    assert len(critic.encoders) == (3 if name == "tokens" and not share else 1)


def test_best_of_n_encodes_each_observation_once(policy, batch):
    critic, rows = CriticConfig((16,), TokenEncoder(8), share_encoder=True).build(policy), []
    critic.encoders[0].register_forward_hook(lambda module, arguments, out: rows.append(len(out.tokens)))
    noise = torch.randn(6, 4, *policy.noise_shape)
    BestOfN(policy, critic, 4).plan(batch.obs, noise)
    assert rows == [6]


def test_a_value_needs_no_plan(policy, batch):
    value = CriticConfig((16,), n_critics=2).build(policy, action=False)
    assert torch.equal(value(batch.obs), value(batch.obs, batch.action)) and value(batch.obs).shape == (6,)
    encoded = value.encode(batch.obs)
    assert torch.equal(value.scores(encoded), value.scores(batch.obs))


def test_targets_are_the_smallest_of_a_drawn_subset(policy, batch):
    config = CriticConfig((16,), n_critics=4, target_subset_size=2)
    critic, subsets = config.build(policy), set()
    scores = critic.scores(batch.obs, batch.action)
    for seed in range(40):
        target = critic.target_score(batch.obs, batch.action, torch.Generator().manual_seed(seed))
        subsets |= {(i, j) for i in range(4) for j in range(i) if torch.equal(target, scores[[i, j]].amin(0))}
    assert len(subsets) == 6  # each pair is drawn
    critic.about = replace(critic.about, networks=replace(config, target_subset_size=None))
    assert torch.equal(critic.target_score(batch.obs, batch.action, torch.Generator()), scores.amin(0))
    with pytest.raises(ConfigError, match="the subset has 3 of 2 networks"):
        CriticConfig(target_subset_size=3)


def test_scores_are_means_of_quantiles_and_targets_those_of_the_network_with_the_smallest(policy, batch):
    torch.manual_seed(0)
    critic = CriticConfig((16,), n_critics=3, n_quantiles=5).build(policy)
    plans = torch.stack([batch.action, -batch.action], 1)
    quantiles, scores = critic.quantiles(batch.obs, plans), critic.scores(batch.obs, plans)
    assert quantiles.shape == (3, 5, 6, 2) and torch.equal(scores, quantiles.mean(1))
    target = critic.target_score(batch.obs, plans, torch.Generator())
    mixed, smallest, largest = mix_networks(quantiles, 0.75), scores.argmin(0), scores.argmax(0)
    assert len(smallest.unique()) > 1 and len(largest.unique()) > 1
    for b in range(6):
        for n in range(2):
            low, high = (quantiles[best[b, n], :, b, n] for best in (smallest, largest))
            assert torch.equal(target[:, b, n], low)
            torch.testing.assert_close(mixed[:, b, n], 0.75 * low + 0.25 * high)


@pytest.mark.parametrize("name", ["iql", "ppo", "gcivl", "crl", "iq-learn"])
def test_learners_without_a_loss_of_quantiles_refuse_them(name):
    data = episodes()
    method = find_method(name, data.features())
    field = "value" if name == "ppo" else "critic"
    learner = replace(method.learner, **{field: CriticConfig((8,), n_quantiles=4)})
    built = Policy(method.policy, data.features())
    with pytest.raises(ConfigError, match="does not learn quantiles"):
        learner.build(built, 0, 1, data)


@pytest.mark.parametrize("name, options", [
    ("dwsl", {"n_critics": 5}), ("dwsl", {"share_encoder": True}), ("qrl", {"n_critics": 5}),
    ("qrl", {"share_encoder": True}), ("crl", {"share_encoder": True}), ("fb", {"share_encoder": True})])
def test_options_without_effect_are_refused(name, options):
    data = episodes()
    method = find_method(name, data.features())
    method = replace(method, learner=replace(method.learner, steps=1, critic=CriticConfig((8,), **options)))
    with pytest.raises(ConfigError, match=f"CriticConfig.{next(iter(options))}: "):
        fit_method(method, data, 0)
    fit_method(replace(method, learner=replace(method.learner, critic=CriticConfig((8,)))), data, 0)


@pytest.mark.parametrize("window", [Window(1, 3), Window(2), Window(1, 2, action_offset=-1)])
def test_plans_of_another_window_are_refused_before_they_are_scored(window):
    """`idql` with chunks, and a critic of single actions, would fail when it acts."""
    data = episodes()
    scored = Policy(method().policy, data.features())
    planner = Policy(replace(scored.config, head=Flow(2), window=window), data.features())
    critic = CriticConfig((8,)).build(scored)
    for build in (BestOfN, ScorerGuided):
        with pytest.raises(UserError, match=rf"{build.__name__}.scorer: \(n_obs_steps, horizon, action_offset\) of"):
            build(planner, critic)
        build(planner, CriticConfig((8,)).build(scored, action=False))  # the value of an observation has no plan
