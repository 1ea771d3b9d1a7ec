"""Proximal policy optimization: advantages, passes, the early stop, a reference, and what it reaches."""

from __future__ import annotations

import tempfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from understudy import make
from understudy.checkpoint import FromStage, Scorer
from understudy.core import ConfigError, Feature, Unsupported
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset
from understudy.data.window import Window
from understudy.evaluate.evaluation import evaluate
from understudy.heads.likelihood.categorical import Categorical
from understudy.heads.likelihood.regression import Regression
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import (
    FIRST_EPISODE,
    CollectionRounds,
    RolloutCollector,
    TemperatureExploration,
    random_episodes,
)
from understudy.improve.retention import LastRounds
from understudy.improve.updates import Epochs
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.ppo import (
    ADVANTAGE,
    FIRST_UPDATE,
    LOG_PROB,
    PPO,
    REFERENCE_LOG_PROB,
    RETURN,
    EpochSampler,
)
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.run import Run
from understudy.learn.train import train
from understudy.methods import find_method
from understudy.methods.online_rl.loop import loop
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_collection, check_learner

STATE = "observation.state"
CLASSES = {STATE: Feature("float32", (1,)), "action": Feature("int64", (1,), "discrete", num_classes=(3,))}
NUMBERS = {STATE: Feature("float32", (1,)), "action": Feature("float32", (1,))}
CONSTANT = OptimizerConfig(lr=3e-3, weight_decay=0.0, lr_schedule="constant", grad_clip_norm=0.5)
SMALL = PPO(batch_size=8, optimizer=CONSTANT, value=CriticConfig((8,), n_critics=1))


def policy_config(head=None, **window) -> PolicyConfig:
    return PolicyConfig(head or SquashedGaussian("free"), FeedForward((8,), "tanh"), ConcatEncoder(),
                        window=Window(**window), inputs=(STATE,))


def episodes(lengths, terminated, features=NUMBERS) -> Dataset:
    rng = np.random.default_rng(0)

    def episode(length, ends):
        action = rng.uniform(-1, 1, (length, 1)).astype(np.float32)
        return Episode({STATE: rng.normal(size=(length + 1, 1)).astype(np.float32),
                        "action": action if features is NUMBERS else (action > 0).astype(np.int64) + (action > 0.5),
                        "next.reward": rng.normal(size=length).astype(np.float32),
                        "next.terminated": np.arange(length) == (length - 1 if ends else -1)}, schema=features)
    return Dataset([episode(n, t) for n, t in zip(lengths, terminated, strict=True)])


def learner_on(data, config=SMALL, head=None):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        policy = Policy(policy_config(head), data.features()).fit_statistics(data)
        return config.build(policy, 0, 100, data)


# -- what is added to episodes --------------------------------------------------------------------------------------


def test_it_keeps_the_contract_of_learners():
    policies = [policy_config(head, n_obs_steps=2) for head in (SquashedGaussian(), SquashedGaussian("free"))]
    check_learner(SMALL, policies)
    check_learner(replace(SMALL, max_kl=1e-6, entropy_weight=0.1), policies[1:])
    check_learner(replace(SMALL, cloning_weight=0.5), policies[1:])


@pytest.mark.parametrize("decay", [0.0, 0.9, 1.0])
def test_advantages_are_direct_sums_and_time_limits_are_no_ends(decay):
    data = episodes([4, 3, 5], [True, False, False])
    learner = learner_on(data, replace(SMALL, discount=0.8, gae_decay=decay))
    for episode, annotated in zip(data, learner.annotate(data, None), strict=True):
        with torch.no_grad():
            value = learner.value({STATE: torch.from_numpy(episode.steps[STATE])[:, None]}).numpy()
        ends, rewards = episode.steps["next.terminated"], episode.steps["next.reward"]
        errors = rewards + 0.8 * value[1:] * ~ends - value[:-1]
        sums = [sum((0.8 * decay) ** (k - t) * errors[k] for k in range(t, len(errors))) for t in range(len(errors))]
        np.testing.assert_allclose(annotated.steps[ADVANTAGE], sums, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(annotated.steps[RETURN], np.array(sums) + value[:-1], rtol=1e-4, atol=1e-5)
        assert annotated.metadata[FIRST_UPDATE] == 0 and annotated.steps[LOG_PROB].shape == (len(episode),)


def test_an_episode_is_compared_with_the_others_of_its_group():
    """LOOP, with a discount of 0.5. The returns of the first group are 1, 4 and 0.25. The means of the others are
    2.125, 0.625 and 2.5. The last episode is alone in its group."""
    rewards = [[1.0, 0.0], [2.0, 4.0], [0.0, 0.0, 1.0], [2.0]]
    data = Dataset([e.replace({"next.reward": np.float32(r)}) for e, r in zip(
        episodes([2, 2, 3, 1], [True] * 4), rewards, strict=True)])
    learner = learner_on(data, replace(SMALL, discount=0.5, group_size=3))
    annotated = learner.annotate(data, 0)
    assert [e.steps[ADVANTAGE].tolist() for e in annotated] == [
        pytest.approx([a] * n) for a, n in ((-1.125, 2), (3.375, 2), (-2.25, 3), (0.0, 1))]


def test_advantages_of_groups_are_not_standardized_and_train_no_value():
    data = episodes([8, 8], [True, True])
    learner = learner_on(data, replace(SMALL, group_size=2))
    losses, seen = learner.minimize, {}

    def minimize(name, function, batch):
        seen[name] = batch.extra[ADVANTAGE]
        return losses(name, function, batch)
    learner.minimize = minimize
    annotated = learner.annotate(data, 0)
    batch = learner.batch_sampler(annotated).batch(8, 0)
    learner.update(batch)
    assert list(seen) == ["policy"] and torch.equal(seen["policy"], batch.extra[ADVANTAGE])


def test_episodes_of_a_group_begin_alike_and_act_differently():
    data = random_episodes(make("particle", 3, limit=6), 4, 0)
    method = replace(loop(2, 3, 4, 1, data.features()), policy=replace(policy_config(), inputs=()))
    method = replace(method, learner=replace(method.learner, steps=8, batch_size=8))
    with tempfile.TemporaryDirectory() as folder:
        train(method, data, folder + "/run", env=make("particle", 5, limit=6))
        collected = [e for round in ("000000", "000001") for e in open_dataset(f"{folder}/run/collection/{round}")]
    assert [e.metadata["number"] - FIRST_EPISODE for e in collected] == list(range(24))  # groups are consecutive
    starts = np.stack([np.concatenate([v[0].ravel() for k, v in sorted(e.steps.items()) if k.startswith("observation")])
                       for e in collected]).reshape(6, 4, -1)
    actions = np.stack([e.steps["action"][0] for e in collected]).reshape(6, 4, -1)
    assert (starts == starts[:, :1]).all() and len(np.unique(starts[:, 0], axis=0)) == 6
    assert len(np.unique(actions.reshape(24, -1), axis=0)) == 24


class Product(Scorer):
    """The score of an action is the state times the action."""

    inputs, features = (STATE,), NUMBERS

    def forward(self, obs, plan):
        return obs[STATE][:, -1, 0] * plan[:, 0, 0]

    def save(self, folder):
        raise NotImplementedError

    load = staticmethod(save)


def test_scores_of_a_frozen_critic_are_the_advantages():
    """DVPO: neither rewards nor a value count, and no value is trained."""
    data = episodes([4, 4], [True, False])
    learner = learner_on(data, replace(SMALL, critic=Product()))
    annotated = learner.annotate(data, 0)
    for episode, scored in zip(data, annotated, strict=True):
        product = episode.steps[STATE][:-1, 0] * episode.steps["action"][:, 0]
        np.testing.assert_allclose(scored.steps[ADVANTAGE], product, rtol=1e-5)
    before = {k: v.clone() for k, v in learner.value.state_dict().items()}
    policy = {k: v.clone() for k, v in learner.policy.state_dict().items()}
    learner.update(learner.batch_sampler(annotated).batch(8, 0))
    assert all(torch.equal(v, before[k]) for k, v in learner.value.state_dict().items())
    assert any(not torch.equal(v, policy[k]) for k, v in learner.policy.state_dict().items())


def test_a_frozen_critic_that_cannot_be_used_is_refused():
    with pytest.raises(ConfigError, match="both say what an advantage is"):
        replace(SMALL, critic=FromStage("values", "critic"), group_size=2)
    critic = Product()
    critic.inputs = ("observation.other",)
    with pytest.raises(Unsupported, match="the critic reads observation.other"):
        learner_on(episodes([4], [True]), replace(SMALL, critic=critic))


def test_densities_are_those_of_the_policy_that_acted():
    env = make("particle", 4, limit=6)
    data = random_episodes(env, 30, 0)
    config = replace(policy_config(), inputs=())
    policy = Policy(config, data.features()).fit_statistics(data)
    learner = SMALL.build(policy, 0, 1, data)
    batch = policy.windows(data).gather(np.arange(10))
    expected = policy.log_prob(policy.context(batch.obs), policy.encode_batch(batch), batch.mask)[:, 0]
    stored = np.concatenate([e.steps[LOG_PROB] for e in learner.annotate(data, 0)])[:10]
    torch.testing.assert_close(torch.from_numpy(stored), expected.detach())


def test_a_last_step_that_no_observation_follows_does_not_count():
    """Its density was stored as 1, with which updates compared that of the present policy."""
    data = episodes([4, 3], [False, True]).map(lambda e: e.replace({STATE: e.steps[STATE][:len(e)]}))
    learner = learner_on(data)
    batch = learner.batch_sampler(learner.annotate(data, 0)).batch(7, 0)
    unknown = batch.extra["index"][:, 0] == 3  # the last step of the episode that did not terminate
    assert batch.mask[:, 0].equal(~unknown) and unknown.sum() == 1
    ratio = (learner.log_prob(learner.policy, batch) - batch.extra[LOG_PROB]).exp()
    torch.testing.assert_close(ratio[~unknown], torch.ones(6, 1))


# -- passes ---------------------------------------------------------------------------------------------------------


def test_passes_read_every_step_once():
    data = episodes([7, 4, 9], [True] * 3)
    windows = learner_on(data).policy.windows(data)
    sampler = EpochSampler(windows, 30)
    rows = torch.cat([sampler.batch(8, 30 + n, seed=5).extra["index"] for n in range(10)]).flatten()
    for first in range(0, 80, 20):  # batches go over the ends of passes
        assert sorted(rows[first:first + 20].tolist()) == list(range(20))
    assert rows[:20].tolist() != rows[20:40].tolist() != list(range(20))
    parts = [sampler.batch(8, 32, 5, rows) for rows in (slice(0, 3), slice(3, 8))]
    assert torch.equal(torch.cat([p.extra["index"] for p in parts]).flatten(), rows[16:24])
    assert not torch.equal(EpochSampler(windows, 40).batch(8, 40, 5).extra["index"].flatten(), rows[:8])


@pytest.mark.parametrize(("lengths", "change"), [
    ([7, 9], lambda reward: 100 * reward),
    ([1] * 16, lambda reward: reward + 2**17)], ids=["scale", "shift"])
def test_scale_and_shift_of_rewards_change_nothing_with_standardized_advantages(lengths, change):
    """Where the value says 0 and is not trained, advantages are sums of rewards."""
    weights = []
    for rewards in (lambda reward: reward, change):
        data = episodes(lengths, [True] * len(lengths)).map(lambda e, f=rewards: e.replace({
            "next.reward": f(np.round(e.steps["next.reward"] * 32) / 32)}))
        learner = learner_on(data, replace(SMALL, gae_decay=1.0))
        for parameter in learner.value.parameters():
            parameter.requires_grad_(False).zero_()
        sampler = learner.batch_sampler(learner.annotate(data, 0))
        for step in range(4):
            learner.update(sampler.batch(8, step))
        weights.append(torch.cat([p.flatten() for p in learner.policy.parameters()]))
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)


def test_it_stops_for_the_round_when_the_policy_is_far_away():
    data = episodes([20, 20], [True, True])
    config = replace(SMALL, max_kl=1e-4, optimizer=replace(CONSTANT, lr=0.05))
    learner = learner_on(data, config)
    sampler = learner.batch_sampler(learner.annotate(data, 0))
    metrics = [learner.update(sampler.batch(8, step)) for step in range(6)]
    stopped = ["loss" not in m for m in metrics]
    assert not stopped[0] and stopped[-1] and stopped == sorted(stopped)
    tensors, metadata = learner.state()
    again = learner_on(data, config)
    again.restore({k: v.clone() for k, v in tensors.items()}, metadata)
    again.batch_sampler(learner_on(data, config).annotate(data, 0))  # the same round
    assert "loss" not in again.update(sampler.batch(8, 6))
    following = learner.batch_sampler(learner.annotate(data, 1))
    assert "loss" in learner.update(following.batch(8, 6))


# -- the reference --------------------------------------------------------------------------------------------------


def test_the_divergence_from_a_reference_has_the_exact_gradient():
    """With every class once, weighted by its probability, the mean over samples is the exact divergence."""
    data = episodes([3], [True], CLASSES)
    data = data.map(lambda e: e.replace({STATE: np.zeros((4, 1), np.float32), "action": np.arange(3)[:, None]}))
    data = Dataset([replace(e, schema=CLASSES) for e in data])
    learner = learner_on(data, head=Categorical())
    with torch.random.fork_rng():
        torch.manual_seed(5)
        reference = Policy(policy_config(Categorical()), CLASSES).fit_statistics(data)
    learner.config = replace(SMALL, kl_reference=reference, kl_weight=1.0)
    annotated = learner.annotate(data, 0)
    batch = learner.batch_sampler(annotated).windows.gather(np.arange(3))
    batch = batch.replace(extra={**batch.extra, ADVANTAGE: torch.zeros(3, 1)})
    probability = batch.extra[LOG_PROB][:, 0].exp()
    assert float(probability.sum()) == pytest.approx(1, abs=1e-5)
    (probability * learner.policy_loss(batch, torch.Generator())).sum().backward()
    gradients = [p.grad.clone() for p in learner.policy.net.parameters()]
    learner.policy.zero_grad()
    log_p = learner.log_prob(learner.policy, batch)[:, 0]
    exact = (log_p.exp() * (log_p - batch.extra[REFERENCE_LOG_PROB][:, 0])).sum()
    assert float(exact.detach()) > 0.01
    exact.backward()
    for gradient, parameter in zip(gradients, learner.policy.net.parameters(), strict=True):
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-6)


# -- demonstrations -------------------------------------------------------------------------------------------------


def test_the_loss_of_cloning_has_the_exact_gradient():
    """Without advantages only cloning is left, and the gradient of the cross entropy in the logits is p - q, with
    demonstrated frequencies q = (0, 1/4, 3/4)."""
    def with_actions(*actions):
        n = len(actions)
        steps = {STATE: np.zeros((n + 1, 1), np.float32), "action": np.array(actions)[:, None],
                 "next.reward": np.zeros(n, np.float32), "next.terminated": np.arange(n) == n - 1}
        return Episode(steps, schema=CLASSES)
    data = Dataset([with_actions(2, 1, 2, 2), replace(with_actions(0, 1, 2, 0), metadata={"expert": False})])
    learner = learner_on(data, replace(SMALL, cloning_weight=0.3, batch_size=4), head=Categorical())
    batch = learner.batch_sampler(learner.annotate(data, 0)).batch(4, 0)
    assert sorted(batch.action.flatten().tolist()) == [0, 0, 1, 2]
    batch = batch.replace(extra={**batch.extra, ADVANTAGE: torch.zeros(4, 1)})
    batch.others["expert"] = learner.policy.windows(data.select([0]), extra=learner.batch_columns).gather(np.arange(4))
    learner.policy_loss(batch, torch.Generator()).mean().backward()
    with torch.no_grad():
        p = learner.policy.log_prob(learner.policy.context({STATE: torch.zeros(3, 1, 1)}), torch.eye(3)[:, None],
                                    torch.ones(3, 1, dtype=torch.bool)).exp()[:, 0]
    bias = [parameter for parameter in learner.policy.net.parameters() if parameter.shape == (3,)][-1]
    torch.testing.assert_close(bias.grad, 0.3 * (p - torch.tensor([0.0, 0.25, 0.75])), rtol=1e-4, atol=1e-6)


def test_demonstrations_keep_the_policy_near_what_they_do():
    """The reward is for class 0, and demonstrations show class 2."""
    env = make("tabular:bandit", 8)
    data = random_episodes(env, 50, 0).map(lambda e: replace(
        e.replace({"action": np.full_like(e.steps["action"], 2)}), metadata={}, schema=e.schema))
    method = bandit_method(4)
    likely = {weight: probabilities(fit_method(replace(method, learner=replace(method.learner, cloning_weight=weight)),
                                               data, 0, env=env).policy, env) for weight in (0.0, 10.0)}
    assert likely[0.0][2] < 0.3 and likely[10.0][2] > 0.8


def bandit_method(n_rounds: int = 8, **fields) -> Method:
    collector = RolloutCollector(n_steps=64, exploration=TemperatureExploration())
    config = replace(policy_config(Categorical()), inputs=())
    learner = replace(SMALL, batch_size=32, optimizer=replace(CONSTANT, lr=0.02))
    return Method(config, learner=learner, **fields, collection=CollectionRounds(
        n_rounds, collector, retention=LastRounds(1), updates=Epochs(4)))


def probabilities(policy, env) -> np.ndarray:
    first = env.reset(torch.arange(1), torch.zeros(1, dtype=torch.int64))
    obs = {k: v[:1, None].expand(3, 1, -1) for k, v in first.items() if k in policy.inputs}
    with torch.no_grad():
        coded = torch.eye(3)[:, None]
        return policy.log_prob(policy.context(obs), coded, torch.ones(3, 1, dtype=torch.bool)).exp()[:, 0].numpy()


def test_the_optimum_of_a_bandit():
    env = make("tabular:bandit", 8)
    data = random_episodes(env, 50, 0)
    result = fit_method(bandit_method(12), data, 0, env=env)
    assert probabilities(result.policy, env)[0] > 0.95
    assert evaluate(result.actor, env, 200).success.high > 0.9  # of the best action


@pytest.mark.slow
def test_a_reference_keeps_the_policy_near_a_stage(tmp_path):
    """Interrupted in the stage and in a round, it continues bit for bit."""
    env = make("tabular:bandit", 8)
    data = random_episodes(env, 50, 0)
    data = data.filter(lambda e: int(e.steps["action"][0, 0]) != 0)  # clones the two worse actions
    base = bandit_method(1)
    cloned = Method(base.policy, learner=BehaviorCloning(150, 32, CONSTANT))
    method = replace(bandit_method(6), stages=(Stage("cloned", cloned),))
    reference = replace(method.learner, kl_reference=FromStage("cloned"), kl_weight=5.0)
    anchored, free = (fit_method(replace(method, learner=learner), data, 0, env=env)
                      for learner in (reference, method.learner))
    assert probabilities(free.policy, env)[0] > 0.6 > 0.4 > probabilities(anchored.policy, env)[0]

    def stop(at):
        def callback(step, learner, metrics):
            if step == at and "loss" in metrics:
                raise KeyboardInterrupt
        return callback
    options = {"device": "cpu", "env": env, "val_fraction": 0.0, "progress": False}
    method = replace(method, learner=reference)
    with pytest.raises(KeyboardInterrupt):
        train(method, data, tmp_path / "run", **options, stage_callbacks=lambda stage, run: (stop(70),))
    assert not Run(tmp_path / "run").saved_steps()
    with pytest.raises(KeyboardInterrupt):
        train(method, data, tmp_path / "run", **options, callbacks=[stop(13)])
    policy = train(method, data, tmp_path / "run", **options)
    for one, other in zip(policy.parameters(), anchored.policy.parameters(), strict=True):
        assert torch.equal(one, other)


# -- the method -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["particle", "tabular:bandit"])
def test_stopped_within_and_between_rounds_it_is_the_same_run(name):
    env = make(name, 2, limit=6)
    data = random_episodes(env, 20, 0)
    small = find_method("ppo", data.features(), n_rounds=2, n_steps=16, n_epochs=2)
    small = replace(small, learner=replace(small.learner, batch_size=8), policy=replace(
        small.policy, trunk=FeedForward((8,), "tanh")))
    check_collection(small, data, lambda rows: make(name, rows, limit=6))


def test_what_it_cannot_learn_is_refused():
    data = episodes([4], [True])
    with pytest.raises(Unsupported, match=r"one action for each observation\n.*horizon=1"):
        SMALL.build(Policy(policy_config(horizon=2), NUMBERS), 0, 1, data)
    with pytest.raises(Unsupported, match="Regression has no density"):
        SMALL.build(Policy(policy_config(Regression()), NUMBERS), 0, 1, data)
    with pytest.raises(ConfigError, match="batch_size is 1, but must be at least 2"):
        PPO(batch_size=1)
    learner = learner_on(data)
    with pytest.raises(Unsupported, match="leave the sampling weights out"):
        learner.batch_sampler(learner.annotate(data, 0), np.ones)
    for window in (Window(1, 4), Window(2)):  # a chunk of 4 would have the density of an action four times
        other = Policy(replace(policy_config(), window=window), NUMBERS)
        with pytest.raises(Unsupported, match="the window of the reference is"):
            replace(SMALL, kl_reference=other).build(learner.policy, 0, 1, data)
    with pytest.raises(ConfigError, match="targets are those of all networks"):
        replace(SMALL, value=CriticConfig((8,), target_subset_size=1)).build(learner.policy, 0, 1, data)
    other = Policy(PolicyConfig(Categorical()), {**CLASSES, "observation.more": Feature("float32", (2,))})
    with pytest.raises(Unsupported, match="the reference reads observation.more"):
        replace(SMALL, kl_reference=other).build(learner.policy, 0, 1, data)
