"""TACR: losses of a peer, which steps and rewards belong together, and padding."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fixtures.d3rlpy import HIDDEN, LOSSES, RNG, STATE, TanhNet, fill_critic, make_policy, sines
from fixtures.learning import call_step

from understudy.core import Batch, ConfigError, Context, Unsupported
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.methods.offline_rl.tacr import TACR, single_steps
from understudy.nets.encoders import TokenEncoder
from understudy.nets.mlp import MLP
from understudy.nets.transformer import Transformer
from understudy.policy import PolicyConfig
from understudy.testing import check_learner

HISTORY = Window(4, 4, action_offset=-3)


class EachStep(TanhNet):
    """The network of a peer for the observation at each step."""

    def forward(self, x, t, context):
        each = context.tokens.reshape(-1, 1, 3)
        steps = Context(each, torch.ones(each.shape[:2], dtype=torch.bool))
        return super().forward(x, t, steps).reshape(-1, 4, 2)


def build(**options) -> Engine:
    config = TACR(critic=CriticConfig(HIDDEN, n_critics=1), target_noise=0.0, **options)
    learner = config.build(make_policy(Regression(), window=HISTORY), 0, 1, Dataset([]))
    learner.policy.net = learner.nets.target.policy.net = EachStep(100)
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    return learner


def make_histories() -> Batch:
    obs, action, reward, ends = sines((2, 5, 3), 0), sines((2, 5, 2), 9), sines((2, 5), 4), torch.arange(10) % 4 == 3
    return Batch({STATE: obs[:, :4]}, action[:, :4], torch.ones(2, 4, dtype=torch.bool), {
        "next.reward": reward[:, :4], "next.terminated": ends.reshape(2, 5)[:, :4]}, {STATE: obs[:, 1:]})


def test_losses_equal_those_of_d3rlpy():
    """The peer weighs the score by 2.5, and sums the distance over two components."""
    learner, batch = build(bc_weight=2 / 2.5), make_histories()
    critic, policy = call_step(learner, "critic_loss", batch, RNG), call_step(learner, "policy_loss", batch, RNG)
    assert critic.shape == policy.shape == (2, 4)
    assert critic.mean().item() == pytest.approx(LOSSES["tacr"]["critic"], abs=1e-5)
    assert 2.5 * policy.mean().item() == pytest.approx(LOSSES["tacr"]["policy"], abs=1e-5)


def test_each_step_has_its_own_observation_reward_and_next_observation():
    """In steps that are numbered. Steps before the start are padding."""
    number = np.arange(7, dtype=np.float32)
    data = Dataset([Episode({STATE: np.repeat(number[:, None], 3, 1), "action": number[:6, None].repeat(2, 1) / 10,
                             "next.reward": 10 * number[:6], "next.terminated": number[:6] == 5})])
    learner = build()
    batch = learner.batch_sampler(data).gather(np.array([1, 5]))
    steps = single_steps(batch)
    assert steps.mask[:, 0].tolist() == [False] * 2 + [True] * 6
    real = [0, 1, 2, 3, 4, 5]
    for column, expected in ((steps.obs[STATE][2:, 0, 0], real), (steps.next[STATE][2:, 0, 0], [1, 2, 3, 4, 5, 6]),
                             (steps.action[2:, 0, 0], [i / 10 for i in real]),
                             (steps.extra["next.reward"][2:, 0], [10 * i for i in real]),
                             (steps.extra["next.terminated"][2:, 0].float(), [0, 0, 0, 0, 0, 1])):
        assert column.tolist() == pytest.approx(expected)


def test_padding_changes_no_other_step():
    learner, batch = build(), make_histories()
    batch.mask[0, :2] = False
    losses = [(call_step(learner, "critic_loss", batch, RNG), call_step(learner, "policy_loss", batch, RNG))]
    batch.obs[STATE][0, :2], batch.extra["next.reward"][0, :2] = 9.0, 7.0
    losses.append((call_step(learner, "critic_loss", batch, RNG), call_step(learner, "policy_loss", batch, RNG)))
    for before, after in zip(*losses, strict=True):
        torch.testing.assert_close(before[batch.mask], after[batch.mask])
        assert not torch.allclose(before[~batch.mask], after[~batch.mask])


def test_it_keeps_the_contract_of_learners():
    trunk = Transformer(16, 1, 1, "block_causal", encoder_depth=1, dropout=0.2)
    check_learner(TACR(batch_size=8, critic=CriticConfig((8,))), (PolicyConfig(
        Regression(), trunk, TokenEncoder(16), window=Window(3, 3, action_offset=-2, obs_pad_mask=True),
        inputs=(STATE,)),))


def test_bad_settings_are_refused():
    for options in ({"n_step": 3}, {"critic_bc_weight": 0.1}):
        with pytest.raises(ConfigError, match="those of TD3 after single steps"):
            TACR(**options)
    for window in (Window(4, 4), Window(4, 3, action_offset=-3), Window(1, 2)):
        with pytest.raises(Unsupported, match="of numbers for each step that it reads"):
            TACR().build(make_policy(Regression(), trunk=MLP(8, 1), window=window), 0, 1, Dataset([]))
