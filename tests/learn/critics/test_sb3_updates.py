"""One update of SAC, TD3 and PPO equals that of stable-baselines3 (see benchmarks/peers/sb3_updates.py)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from folders import TESTS

from understudy.core import Feature
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.ppo import ADVANTAGE, LOG_PROB, PPO, RETURN
from understudy.learn.critics.sac import SAC
from understudy.learn.critics.td3 import TD3
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.targets import gae
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig

STATE = "observation.state"
OPTIMIZER = OptimizerConfig(lr=0.01, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=None)
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}
with np.load(TESTS / "fixtures" / "sb3_updates.npz") as stored:
    SB3 = {k: torch.from_numpy(stored[k]) for k in stored.files}


def weights(name: str, kind: str, layers: str) -> dict[str, torch.Tensor]:
    """Weights or gradients of stable-baselines3 of some layers, in our order.

    Args:
        layers: Names of the layers. "a+b" is one layer of ours whose outputs are those of a and then those of b.
    """
    tensors = {}
    for number, layer in enumerate(layers.split()):
        for key in ("weight", "bias"):
            parts = [SB3[f"{name}/{kind}/{part}.{key}"] for part in layer.split("+")]
            tensors[f"{2 * number}.{key}"] = torch.cat(parts)
    return tensors


def load(layers: torch.nn.Module, name: str, names: str) -> None:
    layers.load_state_dict(weights(name, "before", names))


def check(layers: torch.nn.Module, gradients: dict, name: str, names: str, scale: float = 1.0) -> None:
    """Compares gradients, times `scale`, and the weights after the update."""
    before, expected = weights(name, "gradient", names), weights(name, "after", names)
    for key, parameter in layers.named_parameters():
        torch.testing.assert_close(scale * gradients[parameter], before[key], **TOLERANCE)
        torch.testing.assert_close(parameter.detach(), expected[key], **TOLERANCE)
        assert not torch.allclose(parameter.detach(), weights(name, "before", names)[key])


def keep_gradients(learner) -> dict:
    """The gradient of each parameter in the next update, which is filled by it."""
    gradients = {}
    for optimizer in learner.optimizers.values():
        def step(update, optimizer=optimizer, usual=optimizer.step):
            gradients.update({p: p.grad.clone() for p in optimizer.parameters if p.grad is not None})
            return usual(update)
        optimizer.step = step
    return gradients


def policy_and_data(head, actions, **columns) -> tuple[Policy, Dataset]:
    """A policy whose codec changes nothing, and one episode for each row of the stored batch."""
    features = {STATE: Feature("float32", (3,)), "action": Feature("float32", (2,))}
    if isinstance(head, Categorical):
        features["action"] = Feature("int64", (1,), "discrete", num_classes=(3,))
    rows = [Episode({STATE: torch.stack([SB3["obs"][i], SB3["next_obs"][i]]).numpy(), "action": actions[i:i + 1],
                     **{k: v[i:i + 1].numpy() for k, v in columns.items()}}, schema=features) for i in range(16)]
    trunk = FeedForward((8, 8), "relu")
    config = PolicyConfig(head, trunk, ConcatEncoder(), Normalizer(obs="identity"), Window())
    policy = Policy(config, features)
    limits = [Episode({**rows[0].steps, "action": np.full_like(actions[:1], v)}, schema=features) for v in (-1, 1)]
    return policy.fit_statistics(Dataset(limits) if not isinstance(head, Categorical) else Dataset(rows)), Dataset(rows)


def off_policy(method, head, monkeypatch, noise, **fields):
    policy, data = policy_and_data(head, SB3["actions"].numpy(), **{
        "next.reward": SB3["rewards"][:, 0], "next.terminated": SB3["dones"][:, 0] > 0})
    config = method(batch_size=16, optimizer=OPTIMIZER, critic=CriticConfig((8, 8)), policy_delay=1, **fields)
    learner = config.build(policy, 0, 1, data)
    drawn = iter(noise)
    monkeypatch.setattr(torch, "randn", lambda *shape, **options: next(drawn).unsqueeze(1))
    return learner, learner.batch_sampler(data).gather(np.arange(16)), keep_gradients(learner)


CRITICS = ("qf0.0 qf0.2 qf0.4", "qf1.0 qf1.2 qf1.4")


def load_critics(learner, name: str) -> None:
    networks, targets = learner.nets.critic.layers, learner.nets.target.critic.layers
    for layers, target, names in zip(networks, targets, CRITICS, strict=True):
        load(layers, f"{name}-critic", names)
        load(target, f"{name}-critic_target", names)


def test_sac(monkeypatch):
    one, other = SB3["noise"]
    learner, batch, gradients = off_policy(SAC, SquashedGaussian(), monkeypatch, [other, one], temperature=0.7)
    actor = "latent_pi.0 latent_pi.2 mu+log_std"
    load(learner.policy.net.trunk.layers, "sac-actor", actor)
    load_critics(learner, "sac")
    metrics = learner.update(batch)
    assert metrics["critic/loss"] == pytest.approx(2 * float(SB3["sac/loss/critic_loss"]), rel=1e-5)
    losses = SB3["sac/loss/actor_loss"] + SB3["sac/loss/ent_coef_loss"]
    assert metrics["loss"] == pytest.approx(float(losses), rel=1e-5)
    assert float(learner.nets.temperature().detach()) == pytest.approx(float(SB3["sac/temperature"]), rel=1e-6)
    assert metrics["temperature"] == pytest.approx(0.7) != float(SB3["sac/temperature"])
    check(learner.policy.net.trunk.layers, gradients, "sac-actor", actor)
    for layers, names in zip(learner.nets.critic.layers, CRITICS, strict=True):
        check(layers, gradients, "sac-critic", names, 0.5)
    for target, names in zip(learner.nets.target.critic.layers, CRITICS, strict=True):
        before = weights("sac-critic_target", "before", names)
        for key, parameter in target.named_parameters():  # tau = 0.005
            after = weights("sac-critic", "after", names)[key]
            torch.testing.assert_close(parameter, 0.995 * before[key] + 0.005 * after, **TOLERANCE)


def test_td3(monkeypatch):
    empty, noise = torch.zeros(16, 2), SB3["noise"][1]
    learner, batch, gradients = off_policy(TD3, SquashedGaussian("free"), monkeypatch, [empty, noise, empty])
    actor = "mu.0 mu.2 mu.4"
    load(learner.policy.net.trunk.layers, "td3-actor", actor)
    load(learner.nets.target.policy.net.trunk.layers, "td3-actor_target", actor)
    load_critics(learner, "td3")
    metrics = learner.update(batch)
    assert metrics["critic/loss"] == pytest.approx(float(SB3["td3/loss/critic_loss"]), rel=1e-5)
    size = float(SB3["td3/loss/actor_loss"]) / metrics["loss"]  # ours is relative to the mean absolute score
    assert size > 0
    check(learner.policy.net.trunk.layers, gradients, "td3-actor", actor, size)
    for layers, names in zip(learner.nets.critic.layers, CRITICS, strict=True):
        check(layers, gradients, "td3-critic", names)


@pytest.mark.parametrize("name", ["ppo-numbers", "ppo-classes"])
def test_ppo(name):
    is_classes = name == "ppo-classes"
    head = Categorical() if is_classes else SquashedGaussian("free")
    actions = SB3[f"{name}/actions"].reshape(16, -1).numpy()
    actions = actions.astype(np.int64) if is_classes else actions
    ends = torch.cat([SB3[f"{name}/starts"][1:], torch.zeros(1)]) > 0  # there, values of ended episodes do not count
    policy, rows = policy_and_data(head, actions, **{"next.reward": SB3["rewards"][:, 0], "next.terminated": ends})
    config = PPO(batch_size=16, optimizer=OPTIMIZER, value=CriticConfig((8, 8), n_critics=1), entropy_weight=0.1)
    learner = config.build(policy, 0, 1, rows)
    trunk, value = policy.net.trunk.layers, learner.value.layers[0]
    actor = "mlp_extractor.policy_net.0 mlp_extractor.policy_net.2 action_net"
    critic = "mlp_extractor.value_net.0 mlp_extractor.value_net.2 value_net"
    load(trunk, name, actor)
    load(value, name, critic)
    if not is_classes:
        policy.net.log_std.data.copy_(SB3[f"{name}/before/log_std"])
    batch = learner.policy.windows(rows).gather(np.arange(16))
    torch.testing.assert_close(learner.log_prob(policy, batch)[:, 0], SB3[f"{name}/log_prob"], **TOLERANCE)
    torch.testing.assert_close(learner.value(batch.obs), SB3[f"{name}/values"], **TOLERANCE)
    batch = batch.replace(extra={LOG_PROB: SB3[f"{name}/old_log_prob"][:, None],
                                 ADVANTAGE: SB3[f"{name}/advantages"][:, None],
                                 RETURN: SB3[f"{name}/returns"][:, None]})
    assert learner.divergence(batch) == pytest.approx(float(SB3[f"{name}/loss/approx_kl"]), rel=1e-4)
    values = SB3[f"{name}/values"]
    following = torch.cat([values[1:], SB3[f"{name}/last_value"]])
    last = ends | (torch.arange(16) == 15)
    advantages = gae(SB3["rewards"][:, 0], values, following, ends, last, 0.99, 0.95)
    torch.testing.assert_close(advantages, SB3[f"{name}/advantages"], **TOLERANCE)
    gradients = keep_gradients(learner)
    if not is_classes:  # without a closed form, the entropy there is that of the stored actions
        learner.policy.entropy = lambda context, rng: -learner.policy.log_prob(
            context, policy.encode_batch(batch), batch.mask)
    metrics = learner.update(batch)
    expected = SB3[f"{name}/loss/policy_gradient_loss"] + 0.1 * SB3[f"{name}/loss/entropy_loss"]
    assert metrics["loss"] == pytest.approx(float(expected), rel=1e-5)
    assert metrics["value/loss"] == pytest.approx(float(SB3[f"{name}/loss/value_loss"]), rel=1e-5)
    check(trunk, gradients, name, actor)
    check(value, gradients, name, critic)
    if not is_classes:
        torch.testing.assert_close(gradients[policy.net.log_std], SB3[f"{name}/gradient/log_std"], **TOLERANCE)
        torch.testing.assert_close(policy.net.log_std.detach(), SB3[f"{name}/after/log_std"], **TOLERANCE)
