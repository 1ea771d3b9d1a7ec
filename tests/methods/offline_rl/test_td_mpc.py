"""TD-MPC: the losses by hand, the planner on a model whose best plan is known, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from fixtures.learning import call_step

from understudy.core import ConfigError, Context, Unsupported
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.methods.offline_rl.td_mpc import TDMPC, LatentPlanning
from understudy.policy import Policy, PolicyConfig
from understudy.testing import check_learner

STATE, H = "observation.state", 3
SMALL = LatentPlanning(latent=4, hidden=(8,), n_critics=2, n_candidates=16, n_policy_candidates=2, n_elites=4)


@pytest.mark.slow
def test_it_keeps_the_contract_of_learners():
    check_learner(TDMPC(steps=10, batch_size=8), [PolicyConfig(SMALL, window=Window(horizon=2), inputs=(STATE,))])


def episode(n: int, terminated: bool, seed: int) -> Episode:
    rng = np.random.default_rng(seed)
    ends = np.zeros(n, bool)
    ends[-1] = terminated
    return Episode({STATE: rng.normal(size=(n + 1, 2)).astype(np.float32), "next.terminated": ends,
                    "action": rng.uniform(-1, 1, (n, 1)).astype(np.float32),
                    "next.reward": rng.normal(size=n).astype(np.float32)})


@pytest.fixture(scope="module")
def data() -> Dataset:
    return Dataset([episode(5, True, 0), episode(4, False, 1)])


@pytest.fixture(scope="module")
def learner(data):
    torch.manual_seed(0)
    config = TDMPC(batch_size=9, discount=0.8, expectile=0.7, beta=0.5, step_decay=0.6, consistency_weight=2.0,
                   reward_weight=3.0, value_weight=5.0, policy_weight=7.0, target_decay=0.0)
    policy = Policy(PolicyConfig(SMALL, window=Window(horizon=H), inputs=(STATE,)), data.features())
    learner = config.build(policy.fit_statistics(data), 0, 10, data)
    with torch.no_grad():
        for p in learner.nets.target.policy.parameters():
            p += 0.1
    return learner


def test_the_losses_are_those_of_each_step_of_the_unrolled_model(learner, data):
    """Written out for each window and step, from the episodes themselves."""
    batch, policy, target = learner.batch_sampler(data).gather(np.arange(9)), learner.policy, learner.nets.target.policy
    net, losses = policy.net, call_step(learner, "policy_loss", batch, torch.Generator())
    starts = [(e, t) for e in (0, 1) for t in range(len(data[e]))]
    by_hand = torch.zeros(5, 9)

    def encoded(actor, e, t):
        obs = {STATE: torch.from_numpy(data[e].steps[STATE][t:t + 1])[None]}
        return actor.net.encode(actor.context(obs))[0]
    with torch.no_grad():
        for row, (e, t) in enumerate(starts):
            latent = encoded(policy, e, t)
            for k in range(min(H, len(data[e]) - t)):
                stored = torch.from_numpy(data[e].steps["action"][t + k:t + k + 1])[None]
                action = policy.encode(stored, {STATE: batch.obs[STATE][row:row + 1]})[0, 0]
                reward = float(data[e].steps["next.reward"][t + k])
                goes_on = 0.0 if data[e].steps["next.terminated"][t + k] else 1.0
                goal = reward + 0.8 * goes_on * net.value(encoded(policy, e, t + k + 1))
                scores, best = net.critic_scores(latent, action), target.net.critic_scores(latent, action).min()
                advantage = best - net.value(latent)
                pair = torch.cat([latent, action])
                error = [net.dynamics(pair) - encoded(target, e, t + k + 1), net.reward(pair)[0] - reward,
                         scores - goal, advantage, net.policy_action(latent) - action]
                side = 0.7 if advantage > 0 else 0.3
                weighted = [2 * error[0].square().mean(), 3 * error[1] ** 2, 5 * error[2].square().sum(),
                            5 * side * advantage ** 2, 7 * (0.5 * advantage).exp() * error[4].square().sum()]
                by_hand[:, row] += 0.6**k * torch.stack(weighted)
                latent = net.dynamics(pair)
    torch.testing.assert_close(torch.stack(losses), by_hand)


def test_the_policy_network_moves_no_other(learner, data):
    batch = learner.batch_sampler(data).gather(np.arange(9))
    learner.policy.zero_grad()
    call_step(learner, "policy_loss", batch, torch.Generator())[4].sum().backward()
    assert {name.split(".")[1] for name, p in learner.policy.named_parameters()
            if p.grad is not None and p.grad.any()} == {"policy"}
    learner.policy.zero_grad()


class Known:
    """A model that is known: the encoding moves by the action, and the reward is the negative squared distance to 0.3.

    The policy network says 0, and the critics differ where the encoding is above `doubted`.
    """

    action_dim, bound, discount = 1, 1.0, 0.9

    def __init__(self, doubted: float = torch.inf):
        self.doubted = doubted

    def encode(self, context):
        return context.flat()

    def __call__(self, latent, action):
        latent = latent + action
        return latent, -(latent[..., 0] - 0.3).square()

    def critic_scores(self, latent, action):
        doubt = (latent[..., 0] > self.doubted) * 10.0
        return torch.stack([-doubt, doubt])

    def policy_action(self, latent):
        return torch.zeros_like(latent)

    def follow_policy(self, latent, noise):
        return noise.clamp(-1, 1)


def planned(head: LatentPlanning, net: Known) -> torch.Tensor:
    noise = torch.randn(2, *head.noise(H, 1), generator=torch.Generator().manual_seed(0))
    start = Context(torch.tensor([[[-0.5]], [[0.2]]]), torch.ones(2, 1, dtype=torch.bool))
    return head.sample(net, start, noise)[..., 0]


def test_the_plan_is_the_best_one_of_a_known_model():
    """From -0.5 it is 0.8 to the goal, and then to stay. Actions are at most 1."""
    head = LatentPlanning(n_candidates=256, n_policy_candidates=8, n_elites=16, n_iterations=12, min_std=0.01,
                          elite_temperature=20.0)
    plans = planned(head, Known())
    torch.testing.assert_close(plans, torch.tensor([[0.8, 0.0, 0.0], [0.1, 0.0, 0.0]]), atol=0.05, rtol=0)


def test_the_plan_stays_where_the_critics_agree():
    head = LatentPlanning(n_candidates=256, n_policy_candidates=8, n_elites=16, n_iterations=12, min_std=0.01,
                          elite_temperature=20.0)
    reached = planned(head, Known(doubted=0.0))[0].cumsum(0) - 0.5
    assert (reached <= 0.0).all() and reached[-1] > -0.2
    free = planned(replace(head, uncertainty_weight=0.0), Known(doubted=0.0))[0].cumsum(0) - 0.5
    assert (free - 0.3).abs().max() < 0.1


def test_scores_are_discounted_rewards_and_what_follows():
    head, net = LatentPlanning(uncertainty_weight=0.0), Known()
    net.critic_scores = lambda latent, action: torch.stack([latent[..., 0], 3 * latent[..., 0]])
    score = head.scores(net, torch.zeros(1, 1), torch.tensor([[[[0.3], [0.2], [0.0]]]]))
    assert score.item() == pytest.approx(0.9 * -0.04 + 0.81 * -0.04 + 0.729 * 2 * 0.5)
    doubted = replace(head, uncertainty_weight=1.0).scores(net, torch.zeros(1, 1),
                                                           torch.tensor([[[[0.3], [0.2], [0.0]]]]))
    spread = 2**0.5  # of x and 3 x is sqrt(2) |x|
    penalty = spread * (0.0 + 0.9 * 0.3 + 0.81 * 0.5 + 0.729 * 0.5)
    assert doubted.item() == pytest.approx(score.item() - penalty, abs=1e-6)


def test_the_held_out_error_is_that_of_the_policy_network_along_the_stored_actions(learner, data):
    batch, policy = learner.batch_sampler(data).gather(np.arange(2)), learner.policy
    net, coded = policy.net, policy.encode_batch(batch)
    with torch.no_grad():
        loss, latent = policy.loss(batch, torch.Generator()), net.encode(policy.context(batch.obs))
        later = net.dynamics(torch.cat([latent, coded[:, 0]], -1))
        for i, encoding in enumerate((latent, later)):
            error = (net.policy_action(encoding) - coded[:, i]).square().mean(-1)
            torch.testing.assert_close(loss[:, i], error)


def test_the_discount_of_the_learner_is_that_of_the_plans(learner):
    assert learner.policy.net.discount.item() == pytest.approx(0.8)


def test_what_it_does_not_learn_is_refused(data):
    for head, window in ((SMALL, Window(2, 3)), (SMALL, Window(1, 3, action_offset=1)), (Regression(), Window(1, 3))):
        policy = Policy(PolicyConfig(head, window=window, inputs=(STATE,)), data.features())
        with pytest.raises(Unsupported, match="one observation"):
            TDMPC().build(policy, 0, 1, data)
    classes = Dataset([e.replace({"action": np.zeros(len(e), np.int64)}) for e in data])
    with pytest.raises(Unsupported, match="these have none"):
        Policy(PolicyConfig(SMALL, inputs=(STATE,)), classes.features())
    own = Policy(PolicyConfig(SMALL, window=Window(1, 3), inputs=(STATE,)), data.features()).fit_statistics(data)
    with pytest.raises(Unsupported, match="trained by TDMPC alone"):
        fit_method(Method(own.config, learner=BehaviorCloning(1, 4)), data, 0)
    with pytest.raises(ConfigError, match="more than"):
        LatentPlanning(n_elites=100)
    assert TDMPC().method(horizon=7).policy.window.horizon == 7
