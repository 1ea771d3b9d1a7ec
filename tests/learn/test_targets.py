"""Targets of values, in closed form and against a peer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from understudy.core import Batch, DataError, Diverged, UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.likelihood.gaussian import Gaussian
from understudy.learn.critic import CriticConfig
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.targets import ReturnBound, check_rewards, expectile_loss, gae, td_loss, td_terms
from understudy.methods.offline_rl.iql import IQL
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

STATE, COLUMNS = "observation.state", ("next.reward", "next.terminated")


def rewarded(rewards, terminated: bool) -> Episode:
    ends = np.zeros(len(rewards), bool)
    ends[-1] = terminated
    state, action = (np.zeros((n, 1), np.float32) for n in (len(rewards) + 1, len(rewards)))
    return Episode({STATE: state, "action": action, "next.reward": np.array(rewards, np.float32),
                    "next.terminated": ends})


def terms(episodes, discount, horizon=1, n_step=0) -> tuple[list[float], list[float]]:
    windows = Window(horizon=horizon).windows(Dataset(episodes), (STATE,), "action", extra=COLUMNS, lookahead=n_step)
    reward, bootstrap = td_terms(windows.gather(np.arange(len(windows))), discount, n_step)
    return reward.tolist(), bootstrap.tolist()


@pytest.mark.parametrize("options", [{"horizon": 4}, {"n_step": 4}])
def test_rewards_of_one_are_a_geometric_series(options):
    """An episode that terminates has nothing afterwards. One that is cut off has the value after its last step."""
    sums, powers = [(1 - 0.9**n) / 0.1 for n in (4, 4, 3, 2, 1)], [0.9**n for n in (4, 4, 3, 2, 1)]
    reward, bootstrap = terms([rewarded([1] * 5, True), rewarded([1] * 5, False)], 0.9, **options)
    assert reward == pytest.approx([*sums, *sums])
    # The fourth step of the first episode is followed by one more, so that its window of four ends before it.
    assert bootstrap == pytest.approx([0.9**4, 0, 0, 0, 0, *powers])


def test_n_steps_are_those_of_the_episode_alone():
    """Episodes of one step, and windows that are longer than any episode."""
    reward, bootstrap = terms([rewarded([3], True), rewarded([5], False), rewarded([1, 10, 100], False)], 0.5, n_step=8)
    assert reward == [3, 5, 1 + 5 + 25, 10 + 50, 100]
    assert bootstrap == [0, 0.5, 0.125, 0.25, 0.5]


def test_expectiles_of_a_known_distribution():
    """The expectile m of samples balances them: tau * mean((x - m)+) = (1 - tau) * mean((m - x)+)."""
    samples = torch.linspace(0, 1, 101).square()
    for expectile in (0.5, 0.7, 0.9, 0.999):
        value = torch.zeros((), requires_grad=True)
        optimizer = torch.optim.LBFGS([value], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

        def closure(value=value, optimizer=optimizer, expectile=expectile):
            optimizer.zero_grad()
            loss = expectile_loss(samples - value, expectile).mean()
            loss.backward()
            return loss
        optimizer.step(closure)
        above, below = (samples - value.detach()).clamp(min=0).mean(), (value.detach() - samples).clamp(min=0).mean()
        assert (expectile * above).item() == pytest.approx(((1 - expectile) * below).item(), abs=1e-5)
    assert value.item() > 0.95  # towards 1 it is the largest sample
    torch.testing.assert_close(expectile_loss(samples - 0.3, 0.5), 0.5 * (samples - 0.3).square())


def test_quantiles_of_a_known_distribution():
    """The loss is least at the quantiles, if they are far apart in comparison with the width of Huber's parabola."""
    target = 100.0 * torch.arange(11)[:, None]  # (n_targets, B)
    quantiles = torch.tensor([100.0, 300.0, 500.0, 700.0, 900.0])  # of the levels 0.1, 0.3, 0.5, 0.7 and 0.9
    for shift, expected in ((0.0, 0.0), (50.0, 1 / 11), (-50.0, -1 / 11)):
        prediction = (quantiles + shift)[None, :, None].requires_grad_()
        td_loss(prediction, target).sum().backward()
        levels = torch.linspace(0.1, 0.9, 5) if shift < 0 else 1 - torch.linspace(0.1, 0.9, 5)
        torch.testing.assert_close(prediction.grad[0, :, 0], expected * levels)
    one_target = td_loss(torch.tensor([[[1.0], [3.0]]]), torch.tensor([2.5]))  # errors of 1.5 and -0.5
    torch.testing.assert_close(one_target, torch.tensor([[0.25 * 1.0 + 0.25 * 0.125]]))


def test_advantages_of_one_step_and_of_whole_returns():
    reward, value = torch.tensor([1.0, 2, 3, 4]), torch.tensor([0.5, 0.1, 0.2, 0.3])
    next_value = torch.tensor([0.1, 7.0, 0.3, 0.9])  # the second step terminates, the last is cut off
    terminated, last = torch.tensor([False, True, False, False]), torch.tensor([False, True, False, True])
    one_step = gae(reward, value, next_value, terminated, last, 0.9, 0.0)
    torch.testing.assert_close(one_step, torch.tensor([1 + 0.09 - 0.5, 2 - 0.1, 3 + 0.27 - 0.2, 4 + 0.81 - 0.3]))
    returns = gae(reward, value, next_value, terminated, last, 0.9, 1.0)
    torch.testing.assert_close(returns + value, torch.tensor([1 + 1.8, 2, 3 + 0.9 * (4 + 0.81), 4 + 0.81]))


def test_small_rewards_and_flags_are_no_divergence():
    """Flags had no absolute value, and the first scores of a critic were called divergence of small rewards."""
    bound = ReturnBound(Dataset([], {}), 0.9)
    flags, small = (Batch({}, torch.zeros(2, 1, 1), torch.ones(2, 1), {"next.reward": reward})
                    for reward in (torch.tensor([True, False]), torch.tensor([1e-6, 0])))
    bound.check(99.0, flags, 1)
    with pytest.raises(Diverged, match="layer-norm"):
        bound.check(101.0, flags, 1)
    with pytest.raises(UserError, match=r"(?s)the rewards are small.*--reward-scale 1e\+05"):
        ReturnBound(Dataset([], {}), 0.9).check(0.1, small, 1)


@pytest.mark.parametrize("name", ["next.reward", "next.terminated"])
def test_a_reward_and_an_end_are_finite_numbers(name):
    steps = {"observation.state": np.zeros((4, 1), np.float32), "action": np.zeros((4, 1), np.float32),
             "next.reward": np.arange(4.0), "next.terminated": np.zeros(4)}
    method = Method(PolicyConfig(Gaussian(), MLP(8, 1)), learner=IQL(1, 4, critic=CriticConfig((8,))))
    policy = Policy(method.policy, Dataset([Episode(steps)]).features())
    for given in (None, policy):
        with pytest.raises(DataError, match=f"column {name!r}: there are 2 numbers per step"):
            fit_method(method, Dataset([Episode({**steps, name: np.ones((4, 2))})]), 0, policy=given)
    with pytest.raises(UserError, match=f"episode 0, step 0, {name}"):
        check_rewards(Dataset([Episode({**steps, name: np.full(4, np.nan)})]))
