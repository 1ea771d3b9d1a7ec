"""BEAR: losses of a peer, the multiplier, the warm-up, and plans that stay where the data are."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from fixtures.d3rlpy import (
    HIDDEN,
    LOSSES,
    RNG,
    STATE,
    ActionNet,
    StateNet,
    fill_critic,
    inject_noise,
    make_batch,
    make_policy,
)
from fixtures.learning import call_step

from understudy.core import Unsupported, UserError
from understudy.data.episode import Dataset
from understudy.data.window import Window
from understudy.execute.planners import BestOfN
from understudy.heads.likelihood.gmm import GMM
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.algorithm import Engine
from understudy.learn.critic import CriticConfig
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods import find_method
from understudy.methods.offline_rl.bear import BEAR
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig
from understudy.testing import check_learner

EXPECTED = LOSSES["bear"]
UPDATES = 50
FAST = OptimizerConfig(lr=0.03, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)


def build(steps: int = 1, **options) -> Engine:
    config = BEAR(critic=CriticConfig(HIDDEN), **options)
    learner = config.build(make_policy(SquashedGaussian(temperature=1.0)), 0, steps, Dataset([]))
    learner.policy.net.trunk = StateNet()
    autoencoder = learner.nets.behavior.net
    autoencoder.posterior, autoencoder.decoder = ActionNet(2, (4, 4), 600), ActionNet(4, (2,), 700)
    fill_critic(learner.nets.critic, 200)
    fill_critic(learner.nets.target.critic, 300)
    return learner


def test_losses_equal_those_of_d3rlpy(monkeypatch):
    """Without the entropy, which the peer adds."""
    inject_noise(monkeypatch)
    learner, batch = build(threshold=0.02, kernel_width=2.0, n_samples=4, warmup_fraction=0.0), make_batch()
    learner.nets.log_multiplier[0].data.fill_(0.7).log_()
    policy, multiplier = call_step(learner, "policy_loss", batch, RNG)
    assert call_step(learner, "behavior_loss", batch, RNG).mean().item() == pytest.approx(EXPECTED["vae"], abs=1e-5)
    assert call_step(learner, "critic_loss", batch, RNG).mean().item() == pytest.approx(EXPECTED["critic"], abs=1e-5)
    assert policy.mean().item() == pytest.approx(EXPECTED["policy"], abs=1e-5)
    assert multiplier.mean().item() == pytest.approx(-EXPECTED["constraint"], abs=1e-5)


def test_the_warm_up_lowers_the_mmd_alone():
    learner, batch = build(4, warmup_fraction=0.5), make_batch()
    expected = call_step(learner, "mmd", batch, RNG.manual_seed(3)) - 0.05
    steps = [step for step in learner.config.steps_of_update() if step.of == "policy"]
    for n_updates in range(4):
        (name,) = [step.name for step in steps if step.when(learner.config, n_updates, learner.steps)]
        loss = call_step(learner, name, batch, RNG.manual_seed(3))[0]
        if n_updates < 2:
            torch.testing.assert_close(loss, expected)
        else:
            assert (loss - expected).abs().min() > 1e-3


def test_the_autoencoder_learns_before_what_the_base_class_trains():
    names = [step.name for step in BEAR.steps_of_update()]
    assert names == ["behavior_loss", "critic_loss", "warmup_loss", "policy_loss"]


@pytest.mark.parametrize(("threshold", "rises"), [(0.0, True), (10.0, False)])
def test_the_multiplier_rises_while_the_mmd_is_above_the_threshold(threshold, rises):
    learner, batch = build(threshold=threshold), make_batch()
    for start, border in ((0.0, 0.0), (10.0, 10.0) if rises else (-5.0, -5.0)):
        learner.nets.log_multiplier[0].data.fill_(start)
        assert learner.update(batch)["behavior/loss"] > 0  # which is trained along
        value = learner.nets.log_multiplier[0].item()
        assert value == border if start else (value > 0) == rises


def trained(threshold: float) -> tuple[float, float]:
    """The mean of the first component of plans, which the scores favor, and the MMD, where data have about 0."""
    torch.manual_seed(0)
    config = BEAR(critic=CriticConfig(HIDDEN), threshold=threshold, kernel_width=1.0, optimizer=FAST)
    learner = config.build(make_policy(SquashedGaussian(temperature=1.0), trunk=MLP(16, 1)), 0, UPDATES, Dataset([]))
    batch = make_batch().replace(action=0.1 * make_batch().action)
    critic = learner.nets.critic
    critic.scores = lambda obs, plan, n_critics=2: 0.5 * plan[..., 0, 0].expand(n_critics, *plan.shape[:-2])
    for _ in range(UPDATES):
        for name in ("behavior", "policy"):
            learner.minimize(name, partial(call_step, learner, f"{name}_loss"), batch)
        learner.end_update()
    with torch.no_grad():
        plans = learner.policy.sample(learner.policy.context(batch.obs).repeat(50), RNG.manual_seed(0))
        return plans[..., 0].mean().item(), call_step(learner, "mmd", batch, RNG).mean().item()


def test_plans_follow_the_scores_as_far_as_the_data_go():
    (near, low), (far, high) = trained(0.1), trained(10.0)
    assert far > 0.9 and abs(near) < 0.2 and low < high / 3


def test_it_keeps_the_contract_of_learners():
    check_learner(BEAR(batch_size=8, critic=CriticConfig((8,)), n_samples=2, n_mmd_samples=2), (
        PolicyConfig(SquashedGaussian(), MLP(16, 1, dropout=0.2), window=Window(2, 3), inputs=(STATE,)),))


def test_the_best_of_as_many_actions_is_taken():
    method = find_method("bear", n_samples=7)
    assert method.learner.n_samples == 7 and method.inference == (BestOfN(n=7),)


def test_bad_settings_are_refused():
    with pytest.raises(Unsupported, match="samples of GMM are not compared"):
        BEAR().build(make_policy(GMM()), 0, 1, Dataset([]))
    for options, says in (({"threshold": -0.1}, "threshold"), ({"n_samples": 0}, "n_samples")):
        with pytest.raises(UserError, match=says):
            find_method("bear", **options)
    with pytest.raises(UserError, match="warmup_fraction"):
        BEAR(warmup_fraction=1.0)
