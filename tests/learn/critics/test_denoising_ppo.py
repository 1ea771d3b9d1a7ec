"""PPO of denoising steps: densities, what a chunk is worth, and what it learns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.distributions import Normal

from understudy import make
from understudy.core import Unsupported, keys
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.execute.actor import PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.temporal_ensemble import TemporalEnsemble
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.denoising.flow import Flow
from understudy.heads.likelihood.regression import Regression
from understudy.heads.solvers import DDPM
from understudy.improve.collection import CollectionRounds, RolloutCollector, random_episodes
from understudy.improve.practice import DenoisingExploration
from understudy.improve.retention import LastRounds
from understudy.improve.updates import Epochs
from understudy.learn.critic import CriticConfig
from understudy.learn.critics.denoising_ppo import CHAIN, PLANS, DenoisingPPO, chain_log_prob, sample_chain
from understudy.learn.critics.ppo import ADVANTAGE, LOG_PROB, RETURN
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.learn.rewards.discriminator_reward import DiscriminatorReward
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_collection

STATE = "observation.state"
WINDOW = Window(n_obs_steps=2, horizon=4, action_offset=-1)  # executes 3 steps of each chunk, after one in the past
HEADS = [Flow(3), Flow(3, prediction="sample"), Diffusion(3), Diffusion(3, prediction="sample")]
SMALL = DenoisingPPO(batch_size=8, value=CriticConfig((8,), n_critics=1))


def episodes(lengths, rewards=None) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset([Episode({
        STATE: rng.normal(size=(n + 1, 1)).astype(np.float32),
        "action": rng.uniform(-1, 1, (n, 1)).astype(np.float32),
        "next.reward": np.asarray(rng.normal(size=n) if rewards is None else rewards[i], np.float32),
        "next.terminated": np.arange(n) == n - 1}) for i, n in enumerate(lengths)])


def policy_of(head, data, window=WINDOW) -> Policy:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = PolicyConfig(head, FeedForward((8,)), ConcatEncoder(), window=window, inputs=(STATE,))
        return Policy(config, data.features()).fit_statistics(data)


def acted(learner, data, n_action_steps=3) -> Dataset:
    """The episodes with the chunks of an exploring actor that observes them."""
    executor = RecedingHorizon(n_action_steps, skip=-learner.policy.window.action_offset)
    actor = learner.exploring_actor(PolicyActor(learner.policy, executor))

    def with_chains(number, episode):
        records, actions, state = [], [], None
        for row in torch.from_numpy(episode.steps[STATE][:len(episode)]):
            state = actor.start({STATE: row[None]}, keys(0, [number])) if state is None else state
            action, state = actor.act({STATE: row[None]}, state)
            actions.append(action[0])
            records.append({name: column[0] for name, column in state.pop("record").items()})
        columns = {name: torch.stack([r[name] for r in records]).numpy() for name in records[0]}
        return episode.replace({**columns, "action": torch.stack(actions).numpy()})
    return Dataset([with_chains(i, episode) for i, episode in enumerate(data)])


# -- densities ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", HEADS)
def test_without_noise_a_chain_ends_at_the_deployed_plan(head):
    data = episodes([5])
    policy = policy_of(head, data).eval()
    obs = {STATE: torch.randn(6, 2, 1, generator=torch.Generator().manual_seed(0))}
    noise = torch.randn(6, 4, *policy.noise_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        chain = sample_chain(policy, obs, noise, 0.0)
        torch.testing.assert_close(policy.decode(chain[:, -1], obs), policy.plan(obs, noise[:, 0]))
    assert torch.equal(chain[:, 0], noise[:, 0])


@pytest.mark.parametrize("head", HEADS)
def test_densities_are_those_of_the_noise_that_was_added(head):
    """Each step adds std times the noise to the mean, so its density is that of this noise."""
    policy = policy_of(head, episodes([5])).eval()
    obs = {STATE: torch.randn(6, 2, 1, generator=torch.Generator().manual_seed(0))}
    noise = torch.randn(6, 4, *policy.noise_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        chain = sample_chain(policy, obs, noise, 0.2)
        expected = Normal(0.0, 0.2).log_prob(0.2 * noise[:, 1:]).sum((2, 3))
        torch.testing.assert_close(chain_log_prob(policy, policy.context(obs), chain, 0.2), expected, rtol=1e-3,
                                   atol=1e-3)


def test_at_a_ratio_of_one_the_gradient_is_that_of_the_weighted_densities():
    data = episodes([7, 4])
    learner = replace(SMALL, denoising_discount=0.5).build(policy_of(Flow(3), data), 0, 1, data)
    sampler = learner.batch_sampler(learner.annotate(acted(learner, data), 0))
    batch = sampler.batch(5, 0)
    parameters = list(learner.policy.net.parameters())
    gradient = torch.autograd.grad(learner.policy_loss(batch, None).mean(), parameters, allow_unused=True)
    densities = learner.log_prob(learner.policy, batch)
    weighted = (densities * torch.tensor([0.25, 0.5, 1.0]) * learner.column(batch, ADVANTAGE)).mean(1)
    expected = torch.autograd.grad(-weighted.mean(), parameters, allow_unused=True)
    for actual, correct in zip(gradient, expected, strict=True):
        torch.testing.assert_close(actual, correct)


# -- chunks ---------------------------------------------------------------------------------------------------------


def test_a_chunk_is_worth_the_rewards_of_its_executed_steps():
    rewards = [[1, 2, 3, 4, 5, 6, 7], [10, 20]]
    data = episodes([7, 2], rewards)
    data = Dataset([data[0], data[1].replace({"next.terminated": np.zeros(2, bool)})])  # the second was cut off
    learner = replace(SMALL, discount=0.5, gae_decay=1.0).build(policy_of(Flow(3), data), 0, 1, data)
    annotated = learner.annotate(acted(learner, data), 0)
    starts = [0, 3, 6]
    assert annotated[0].steps[PLANS].tolist() == [t in starts for t in range(7)]
    with torch.no_grad():
        value_end = float(learner.value({STATE: torch.from_numpy(data[1].steps[STATE][-2:])[None]}))
    returns = [episode.steps[RETURN].ravel() for episode in annotated]
    np.testing.assert_allclose(returns[0][starts], [6 + 7.5 + 1.75, 15 + 3.5, 7], rtol=1e-5)
    np.testing.assert_allclose(returns[1], [30 + 0.5 * value_end, 0], rtol=1e-5)
    assert not annotated[0].steps[ADVANTAGE][[1, 2, 4, 5]].any()


def test_passes_read_each_chunk_once_with_its_own_density():
    data = episodes([7, 5])
    learner = SMALL.build(policy_of(Diffusion(3), data), 0, 1, data)
    annotated = learner.annotate(acted(learner, data), 0)
    batch = learner.batch_sampler(annotated).batch(5, 0)
    assert sorted(batch.extra["index"].flatten().tolist()) == [0, 3, 6, 7, 10]
    torch.testing.assert_close(learner.column(batch, LOG_PROB), learner.log_prob(learner.policy, batch).detach())
    assert learner.divergence(batch) == pytest.approx(0, abs=1e-9)
    assert annotated[0].steps[CHAIN].shape == (7, 4 * 4 * 1)


# -- what it learns -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [Flow(2), Diffusion(2)])
def test_actions_move_to_where_rewards_are(head):
    data = episodes([2] * 100)
    config = replace(SMALL, batch_size=100, std=0.3, policy_optimizer=OptimizerConfig(lr=1e-2, lr_schedule="constant"))
    learner = config.build(policy_of(head, data, Window(horizon=2)), 0, 1000, data)
    actor, distances = learner.exploring_actor(PolicyActor(learner.policy, RecedingHorizon(2))), []
    rows = {STATE: torch.from_numpy(np.stack([e.steps[STATE][0] for e in data]))}
    for number in range(30):
        first, state = actor.act(rows, actor.start(rows, keys(number, range(100))))
        record = state.pop("record")
        actions = np.stack([first.numpy(), actor.act(rows, state)[0].numpy()], 1)
        rewards = -np.square(actions[..., 0] - 0.5)
        distances.append(-rewards.mean())
        chains, plans = record[CHAIN].numpy()[:, None].repeat(2, 1), np.array([True, False])
        of_round = Dataset([e.replace({"action": a, "next.reward": r, CHAIN: c, PLANS: plans})
                            for e, a, r, c in zip(data, actions, rewards, chains, strict=True)])
        sampler = learner.batch_sampler(learner.annotate(of_round, number))
        for _ in range(5):
            learner.update(sampler.batch(100, learner.n_updates))
    assert distances[-1] < 0.5 * distances[0]


@pytest.mark.slow
def test_rounds_keep_the_contract_of_collection():
    data = random_episodes(make("particle", 2, limit=6), 12, 0)
    policy = PolicyConfig(Flow(2), FeedForward((8,)), ConcatEncoder(), window=WINDOW)
    rounds = CollectionRounds(2, RolloutCollector(3, exploration=DenoisingExploration()), retention=LastRounds(1),
                              updates=Epochs(2))
    method = Method(policy, RecedingHorizon(3, skip=1), SMALL, collection=rounds)
    check_collection(method, data, lambda rows: make("particle", rows, limit=6))


def test_what_it_cannot_learn_is_refused():
    data = episodes([4])
    for head, message in ((Regression(), "Regression has no denoising steps"), (Flow(2, times="each"), "no denoising"),
                          (Diffusion(2, solver=DDPM()), r"deployed sampler\n.*DDIM"),
                          (Diffusion(2, n_extra_steps=1), "deployed sampler")):
        with pytest.raises(Unsupported, match=message):
            SMALL.build(policy_of(head, data), 0, 1, data)
    with pytest.raises(Unsupported, match="a chunk"):
        replace(SMALL, reward=DiscriminatorReward()).build(policy_of(Flow(2), data), 0, 1, data)
    learner = SMALL.build(policy_of(Flow(2), data), 0, 1, data)
    with pytest.raises(Unsupported, match="one executed after the other"):
        learner.exploring_actor(PolicyActor(learner.policy, TemporalEnsemble(skip=1)))
    with pytest.raises(Unsupported, match="leave the sampling weights out"):
        learner.batch_sampler(data, np.ones)
