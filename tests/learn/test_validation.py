"""Validation against closed forms: what the energy score of known distributions is, and which episodes are held out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from understudy.core import DataWarning, Feature, UserError
from understudy.data.codec import Normalizer
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.base import Head
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.preflight import check_training_data
from understudy.learn.training_episodes import validation_episodes
from understudy.learn.validation import Validation, energy_score, target_scale
from understudy.policy import Policy, PolicyConfig


@dataclass(frozen=True)
class Known(Head):
    """Draws from a mixture that it is told: `centres` with equal odds, each with deviation `std`."""

    centres: tuple[float, ...] = (0.0,)
    std: float = 1.0

    def noise(self, horizon, coded_dim):
        return (horizon, 2 * coded_dim) if self.std or len(self.centres) > 1 else (horizon, 0)

    def build(self, trunk, coded_dim, spec):
        return torch.nn.Linear(coded_dim, 1)

    def loss(self, net, context, action, mask, rng):
        return action.square().mean(-1)

    def sample(self, net, context, noise):
        if not noise.shape[-1]:
            return noise.new_full((*noise.shape[:2], net.in_features), self.centres[0])
        which, spread = noise.chunk(2, -1)
        odds = torch.special.ndtr(which[:, :1].expand_as(which))  # one choice for the whole chunk
        centre = torch.tensor(self.centres)[(odds * len(self.centres)).long().clamp(max=len(self.centres) - 1)]
        return centre + self.std * spread


def actions(*episodes, name="action") -> Dataset:
    """Episodes with these actions, (T,) or (T, A) each."""
    columns = [np.asarray(e, np.float32).reshape(len(e), -1) for e in episodes]
    return Dataset([Episode({"observation.state": np.zeros((len(c), 1), np.float32), name: c}) for c in columns])


def knows(data, head=None, **window) -> Policy:
    recipe = PolicyConfig(head or Known(), codec=Normalizer("identity", "identity"), window=Window(**window))
    return Policy(recipe, data.features()).eval()


def crps(y, mean=0.0, std=1.0):
    """Of a Gaussian (Gneiting and Raftery 2007, equation 21, with the sign of an error)."""
    z = (y - mean) / std
    return std * (z * (2 * norm.cdf(z) - 1) + 2 * norm.pdf(z) - 1 / math.sqrt(math.pi))


# -- the score -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("y, mean, std", [(0.0, 0.0, 1.0), (1.3, 0.0, 1.0), (-2.0, 0.5, 0.3)])
def test_the_energy_score_of_a_gaussian(y, mean, std):
    draws = mean + std * torch.randn(1, 3000, 1, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    score = energy_score(draws, (draws - y).abs()[..., 0, 0], torch.ones(1, 1, 1, 1, dtype=torch.bool))
    assert score.item() == pytest.approx(crps(y, mean, std), abs=0.02)


@pytest.mark.parametrize("K", [2, 3, 8])
def test_it_is_unbiased_for_any_number_of_samples(K):
    """The plug-in estimate with 1 / K^2 would be too large by 1 / (sqrt(pi) K): 0.28 for K = 2."""
    draws = torch.randn(200_000 // K, K, 1, 1, generator=torch.Generator().manual_seed(K), dtype=torch.float64)
    scores = energy_score(draws, (draws - 0.7).abs()[..., 0, 0], torch.ones(1, 1, 1, 1, dtype=torch.bool))
    error = scores.std() / len(scores) ** 0.5
    assert abs(scores.mean() - crps(0.7)) < 4 * error and error < 0.005


def test_of_many_components_it_is_that_of_their_root_mean_square():
    """E|X - y| of a standard Gaussian in d dimensions about its centre is sqrt(2) G((d+1)/2) / G(d/2), and
    |X - X'| is sqrt(2) times as long (the chi distribution)."""
    H, A = 4, 3
    d = H * A
    length = math.sqrt(2) * math.gamma((d + 1) / 2) / math.gamma(d / 2) / math.sqrt(d)
    data = actions(np.zeros((2000, A)))
    errors = Validation(n_windows=1500, n_samples=4).evaluate(knows(data, horizon=H), data)
    assert errors["energy"] == pytest.approx(length * (1 - math.sqrt(2) / 2), rel=0.02)
    assert errors["mean"] == pytest.approx(length, rel=0.01)


def test_a_certain_policy_has_its_absolute_error():
    data = actions([1.0, -2.0, 4.0], [0.5])
    errors = Validation().evaluate(knows(data, Known((0.0,), 0.0)), data)
    assert errors == pytest.approx({k: (1 + 2 + 4 + 0.5) / 4 for k in ("energy", "mean", "best")})


def test_errors_are_in_units_of_each_component():
    data = actions([[1.0, 100.0], [-1.0, -100.0]])
    errors = Validation().evaluate(knows(data, Known((0.0,), 0.0)), data, torch.tensor([1.0, 100.0]))
    assert errors["energy"] == pytest.approx(1.0)
    # the distribution moves with its unit
    wide = Validation(64, 8).evaluate(knows(data, Known(std=1.0)), data, torch.tensor([2.0, 2.0]))
    assert wide["energy"] == pytest.approx(0.5 * Validation(64, 8).evaluate(knows(data), data)["energy"], rel=1e-5)


def test_knowing_both_ways_beats_their_mean_and_either():
    """Two answers at +1 and -1: the score of the truth is 1 - 1/2, that of each other is 1."""
    data = actions(np.where(np.arange(400) % 2, 1.0, -1.0))
    judge = Validation(n_windows=400, n_samples=8).evaluate
    both = judge(knows(data, Known((-1.0, 1.0), 0.0)), data)
    mean = judge(knows(data, Known((0.0,), 0.0)), data)
    one = judge(knows(data, Known((1.0,), 0.0)), data)
    assert both["energy"] == pytest.approx(0.5, abs=0.05)
    assert mean["energy"] == pytest.approx(1.0) and one["energy"] == pytest.approx(1.0)
    assert both["best"] < 0.05 < 0.9 < both["mean"]  # 2^-7 of the fans are on the other side altogether


@settings(deadline=None)
@given(st.integers(0, 5), st.floats(-50, 50))
def test_what_lies_beyond_the_end_does_not_count(seed, ghost):
    """Whatever the policy says there, and whatever the shape of the episode."""
    rng = np.random.default_rng(seed)
    target = torch.from_numpy(rng.normal(size=(4, 1, 5, 2)))
    plans = torch.from_numpy(rng.normal(size=(4, 6, 5, 2)))
    mask = torch.arange(5)[None] < torch.tensor([1, 3, 5, 2])[:, None]
    spoiled = torch.where(mask[:, None, :, None], plans, plans + ghost)
    from understudy.learn.validation import _root_mean_square

    def score(x):
        m = mask[:, None, :, None]
        return energy_score(x, _root_mean_square(x - target, m), m)
    assert torch.equal(score(plans), score(spoiled))
    # and a window of n real steps has the score of a chunk of n
    real = torch.ones(1, 1, 3, 1)
    short = energy_score(plans[1:2, :, :3], _root_mean_square((plans - target)[1:2, :, :3], real), real)
    torch.testing.assert_close(score(plans)[1:2], short)


def test_the_draws_are_the_same_every_time_and_for_every_batch():
    data = actions(np.random.default_rng(0).normal(size=300))
    policy, judge = knows(data, horizon=3), Validation(n_windows=50)
    first = judge.evaluate(policy, data)
    torch.manual_seed(9)
    assert judge.evaluate(policy, data) == first
    one = torch.cat([plans for _, plans in judge.sampled_plans(policy, data, size=64)])
    assert torch.equal(one, torch.cat([plans for _, plans in judge.sampled_plans(policy, data, size=7)]))
    assert one.shape == (50, 8, 3, 1) and one.unique().numel() == one.numel()


def test_windows_are_spread_over_the_data_and_judging_leaves_the_mode():
    data = actions(np.arange(101.0))
    policy = knows(data).train()
    steps_read = (
        torch.cat([b.extra["index"] for b, _ in Validation(n_windows=5).sampled_plans(policy, data)]).flatten().tolist()
    )
    assert steps_read == [0, 25, 50, 75, 100]
    Validation(n_windows=5).evaluate(policy, data)
    assert policy.training


# -- choices ---------------------------------------------------------------------------------------------------------


def test_choices_are_judged_by_their_one_hot_vectors():
    """One choice, drawn from p: E|X - y| = 1 - p_y, E|X - X'| = 1 - sum p^2, in units of two different one-hots."""
    p = torch.tensor([0.5, 0.3, 0.2])
    draws = torch.multinomial(p, 4000, True, generator=torch.Generator().manual_seed(0)).reshape(1, -1, 1, 1).float()
    mask = torch.ones(1, 1, 1, 1, dtype=torch.bool)
    for y in range(3):
        score = energy_score(draws, (draws != y).float()[..., 0, 0], mask, choices=True)
        assert score.item() == pytest.approx((1 - p[y] - (1 - (p**2).sum()) / 2).item(), abs=0.015)


def test_wrong_choices_are_counted_and_densities_give_nats():
    """A network of zeros: even odds, of which the likeliest is the first."""
    target = np.array([[0, 0], [1, 3], [0, 1], [0, 0]])
    data = Dataset([Episode({"observation.state": np.zeros((4, 1), np.float32), "action": target}, schema={
        "action": Feature("int64", (2,), "discrete", num_classes=(2, 4))})])
    policy = Policy(PolicyConfig(Categorical(), window=Window()), data.features()).fit_statistics(data)
    for p in policy.parameters():
        torch.nn.init.zeros_(p)
    errors = Validation().evaluate(policy, data)
    assert errors["wrong"] == pytest.approx(3 / 8)
    assert errors["log loss"] == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert errors["energy"] == pytest.approx((0 + 1 + math.sqrt(0.5) + 0) / 4)  # certain: as far as it is wrong


# -- units and held-out episodes -------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.floats(-1e4, 1e4))
def test_the_unit_is_the_standard_deviation_over_all_steps(lengths, offset):
    rng = np.random.default_rng(len(lengths))
    rows = [rng.normal(size=(n, 2)) + offset for n in lengths]
    data = Dataset([Episode({"action": np.concatenate([r, np.full((len(r), 1), offset)], 1)}) for r in rows])
    std = np.concatenate(rows).std(0)
    expected = np.where(std > 1e-6 * np.abs(offset), std, 1.0)
    if sum(lengths) > 1:
        np.testing.assert_allclose(target_scale(data, "action")[:2].numpy(), expected, rtol=1e-5)
    assert target_scale(data, "action")[2] == 1.0  # never changes: the data's own unit


@pytest.mark.parametrize("offset, rounding", [(1.7e9, 128), (4.5e6, 0.5), (1e4, None)])
def test_numbers_that_float32_rounds_are_told(recwarn, offset, rounding):
    """Such as seconds since 1970, or meters of a map. The second component is constant, and loses nothing."""
    state = np.stack([offset + np.linspace(0, 8, 9), np.full(9, 1.7e9)], 1)
    data = Dataset([Episode({"observation.state": state, "action": np.zeros((8, 1), np.float32)})])
    check_training_data(Policy(PolicyConfig(Known()), data.features()), data)
    said = [str(w.message) for w in recwarn if w.category is DataWarning]
    assert len(said) == (rounding is not None)
    if rounding:
        assert f"from {offset:.10g} to {offset + 8:.10g}." in said[0] and f"multiples of {rounding:g}." in said[0]


def test_whole_episodes_are_held_out():
    assert (
        validation_episodes(4, 0.1) == []
        and len(validation_episodes(5, 0.1)) == 1
        and len(validation_episodes(30, 0.1)) == 3
    )
    assert (
        validation_episodes(20, 0.25) == validation_episodes(20, 0.25) and len(set(validation_episodes(20, 0.25))) == 5
    )
    assert validation_episodes(50, 0.0) == []
    assert validation_episodes(6, [4, 2, 4]) == [2, 4]
    for fraction in (1.0, -0.1, [7], [0, 1, 2, 3, 4, 5]):
        with pytest.raises(UserError):
            validation_episodes(6, fraction)


def test_options_that_mean_nothing_are_refused():
    with pytest.raises(UserError, match="n_samples is 1, but must be at least 2"):
        Validation(n_samples=1)
