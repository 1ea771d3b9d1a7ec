"""DSRL-NA: chunks of noise, episodes without noise, and the losses of both critics by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.checkpoint import FromStage
from understudy.core import ConfigError, Unsupported
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.toys.fork import Fork, ForkExpert
from understudy.envs.wrappers import WrappedEnv
from understudy.evaluate.rollout import rollout
from understudy.execute.wrappers import NoiseSteeringWrapper, is_wrapped
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.squashed_gaussian import SquashedGaussian
from understudy.improve.collection import random_episodes
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.noise_aliasing import CHUNK, NoiseAliasing, demonstrated_chunks, with_chunks
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

STATE, PERIOD = "observation.state", 4


@pytest.fixture(scope="module")
def demonstrations() -> Dataset:
    return rollout(ForkExpert(noise=0.1), Fork(3), 3, seed=1)


@pytest.fixture(scope="module")
def steering(demonstrations) -> NoiseSteeringWrapper:
    torch.manual_seed(0)
    config = PolicyConfig(Flow(n_steps=2), MLP(8, 1), window=Window(1, 6))
    return NoiseSteeringWrapper(Policy(config, demonstrations.features()).fit_statistics(demonstrations).eval(), PERIOD)


@pytest.fixture(scope="module")
def learner_and_batch(demonstrations, steering):
    own = with_chunks(random_episodes(WrappedEnv(Fork(2, limit=20), steering), 12, 0), steering)
    data = Dataset([*own, *demonstrated_chunks(demonstrations, steering)])
    config = NoiseAliasing(batch_size=16, policy_delay=2, temperature=0.1, target_entropy=None, steering=steering,
                           critic=CriticConfig(hidden=(8,)))
    policy = Policy(PolicyConfig(SquashedGaussian(), FeedForward((8,))), data.features()).fit_statistics(data)
    learner = config.build(policy, 0, 10, data)
    return learner, learner.batch_sampler(learner.annotate(data, None)).gather(np.arange(16))


def test_the_chunk_of_noise_is_what_the_environment_executes(steering):
    class Recorded(Fork):
        def step(self, action):
            actions.append(action.clone())
            return super().step(action)
    actions = []
    episode = with_chunks(random_episodes(WrappedEnv(Recorded(1, limit=8), steering), 2, 0), steering)[0]
    executed = torch.stack(actions)[:PERIOD * 2].reshape(2, -1).numpy()
    np.testing.assert_allclose(episode.steps[CHUNK][:2], executed, rtol=0, atol=1e-6)


def test_demonstrations_are_cut_into_chunks(demonstrations, steering):
    """The last chunk repeats the last action. Rewards are summed, and the observations are those before each chunk."""
    episode, cut = demonstrations[0], demonstrated_chunks(demonstrations, steering)[0]
    n = -(-len(episode) // PERIOD)
    assert len(cut) == n == 4 and len(episode) == 15 and is_wrapped(cut, steering)
    flat = cut.steps[CHUNK].reshape(n * PERIOD, 2)
    np.testing.assert_array_equal(flat[:len(episode)], episode.steps["action"][:len(episode)])
    assert (flat[len(episode):] == episode.steps["action"][len(episode) - 1]).all()
    np.testing.assert_array_equal(cut.steps[STATE][:n], episode.steps[STATE][:len(episode)][::PERIOD])
    assert cut.steps["next.reward"].sum() == pytest.approx(episode.steps["next.reward"].sum())
    assert cut.steps["next.terminated"].tolist() == [False] * (n - 1) + [True]
    assert with_chunks(Dataset([cut]), steering)[0] is cut


class Folded(Policy):
    """A frozen policy to which all negative noise is the same."""

    def plan(self, obs, noise, guides=()):
        return 1.5 - noise.clamp(min=0)


def test_what_is_known_of_a_chunk_holds_for_every_noise_that_leads_to_it():
    """The second of two steps gives 1 - (a - 1/2)^2. Episodes have no noise, and their column of noise is wrong."""
    data = Dataset([Episode({STATE: np.array([[0], [1], [1]], np.float32), "action": np.full((2, 1), a, np.float32),
                             "next.reward": np.array([0, 1 - (a - 0.5) ** 2], np.float32),
                             "next.terminated": np.array([False, True])}) for a in np.linspace(0, 1.5, 64)])
    torch.manual_seed(0)
    config = PolicyConfig(Flow(n_steps=1), MLP(8, 1), codec=Normalizer("identity", "identity"), window=Window(1, 1))
    steering = NoiseSteeringWrapper(Folded(config, data.features()).eval(), 1)
    chunks = Dataset([e.replace({"action": np.array([[-1.5], [1.5]], np.float32)})
                      for e in demonstrated_chunks(data, steering)])
    policy = Policy(PolicyConfig(SquashedGaussian(), FeedForward((16,))), chunks.features()).fit_statistics(chunks)
    learner = NoiseAliasing(batch_size=64, temperature=0.01, target_entropy=None, steering=steering, target_decay=0.95,
                            critic=CriticConfig(hidden=(32, 32)), optimizer=OptimizerConfig(
                                lr=3e-3, lr_schedule="constant")).build(policy, 0, 600, chunks)
    sampler = learner.batch_sampler(learner.annotate(chunks, None))
    for n in range(600):
        learner.update(sampler.batch(64, n, 0))
    noise = torch.tensor([-1.4, -1.0, -0.6, -0.2, 0.2, 0.6, 1.0, 1.4])
    with torch.no_grad():
        first, last = (learner.nets.noise_critic.scores({STATE: torch.full((8, 1, 1), x)}, noise.view(8, 1, 1)).mean(0)
                       for x in (0.0, 1.0))
        steered = policy.plan({STATE: torch.ones(1, 1, 1)}, torch.zeros(1, *policy.noise_shape)).item()
    torch.testing.assert_close(last, 1 - (noise.clamp(min=0) - 1) ** 2, atol=0.2, rtol=0)
    torch.testing.assert_close(first, torch.full((8,), 0.99), atol=0.15, rtol=0)  # data's own actions have 0.75
    assert steered == pytest.approx(1, abs=0.4)


def test_the_critic_learns_of_chunks_by_temporal_differences(learner_and_batch):
    learner, batch = learner_and_batch
    config, critic, target = learner.config, learner.nets.critic, learner.nets.target.critic
    chunk = batch.extra[CHUNK].reshape(16, PERIOD, 2)
    rng = torch.Generator().manual_seed(3)
    loss = call_step(learner, "critic_loss", batch, rng)
    rng.manual_seed(3)
    with torch.no_grad():
        coded, log_prob = learner.policy.sample_log_prob(learner.policy.context(batch.next), rng)
        noise = learner.policy.decode(coded, batch.next)[:, 0]
        after = target.scores(batch.next, config.steering.chunks(batch.next, noise)).amin(0) - 0.1 * log_prob[:, 0]
        goes_on = ~batch.extra["next.terminated"][:, 0].bool()
        value = batch.extra["next.reward"][:, 0] + 0.99 * goes_on * after
        by_hand = (critic.scores(batch.obs, chunk) - value).square().sum(0)
    torch.testing.assert_close(loss, by_hand)


def test_noise_learns_the_score_of_its_chunk(learner_and_batch):
    learner, batch = learner_and_batch
    loss = call_step(learner, "distillation_loss", batch, torch.Generator().manual_seed(3))
    noise, chunks = learner.config.draw_chunks(batch.obs, torch.Generator().manual_seed(3))
    clipped = noise.clamp(-1.5, 1.5).unflatten(1, (6, 2))
    assert (noise.abs() > 1.5).any() and noise.shape == (16, 12)
    by_hand = learner.config.steering.policy.plan(batch.obs, clipped)[:, :PERIOD]
    torch.testing.assert_close(chunks, by_hand)
    pairs = learner.nets.noise_critic.scores(batch.obs, noise[:, None]), learner.nets.critic.scores(batch.obs, chunks)
    torch.testing.assert_close(loss, (pairs[0] - pairs[1]).square().sum(0))
    loss.mean().backward()
    assert all(p.grad is None for p in learner.nets.critic.parameters())


def test_the_policy_follows_the_critic_of_noise_which_learns_in_every_second_update(learner_and_batch):
    learner, batch = learner_and_batch
    rng = torch.Generator().manual_seed(3)
    loss = call_step(learner, "policy_loss", batch, rng)
    rng.manual_seed(3)
    coded, log_prob = learner.policy.sample_log_prob(learner.policy.context(batch.obs), rng)
    score = learner.nets.noise_critic.scores(batch.obs, learner.policy.decode(coded, batch.obs)).amin(0)
    torch.testing.assert_close(loss, 0.1 * log_prob[:, 0] - score)
    assert ["noise_critic/loss" in learner.update(batch) for _ in range(4)] == [True, False, True, False]


def test_what_the_frozen_policy_reads_must_be_read_by_that_of_its_noise(demonstrations, steering):
    other = demonstrations.map(lambda e: e.replace({"observation.other": e.steps[STATE]}))
    reader = Policy(steering.policy.config, other.features()).fit_statistics(other)
    policy = Policy(PolicyConfig(SquashedGaussian(), FeedForward((8,))),
                    demonstrations.features()).fit_statistics(demonstrations)
    with pytest.raises(Unsupported, match="reads observation.other, which the policy of its noise does not"):
        NoiseAliasing(temperature=0.1, steering=replace(steering, policy=reader)).build(policy, 0, 1, demonstrations)


def test_its_defaults_are_those_of_sac_and_noise_is_not_held_at_that_of_demonstrations():
    """Which is 0, because it is unknown."""
    assert NoiseAliasing().steering.policy == FromStage("base") and NoiseAliasing().temperature
    with pytest.raises(ConfigError, match="no noise to stay near to"):
        NoiseAliasing(bc_weight=0.4)
