"""Each score against a case whose answer is known beforehand."""

import re

import numpy as np
import pytest
import torch
from folders import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import digamma
from torch import Generator
from torch.func import functional_call

from understudy.audit.base import AuditReport, Score, StepScore
from understudy.audit.scores import (
    NETWORK_SCORES,
    SCORE_MEANINGS,
    SCORES,
    ActionConsistency,
    ActionVariance,
    Alignment,
    Brevity,
    Compatibility,
    Criticality,
    Datamodel,
    Expertise,
    FilterLikeYouTest,
    Influence,
    LocalUnimodality,
    Motion,
    MutualInformation,
    Novelty,
    Return,
    Smoothness,
    StateDiversity,
    StateSimilarity,
    TransitionDiversity,
    Typicality,
    Unimodality,
    ValidationWeights,
    select_within_budget,
    soft_capped_counts,
    state_action_coverage,
    trajectory_quality,
)
from understudy.audit.scores.alignment import aligned_steps, cycle_consistency_loss
from understudy.audit.scores.information import mutual_information_terms
from understudy.audit.scores.neighbors import nearest_neighbors
from understudy.audit.scores.network_scores import NetworkEnsemble
from understudy.audit.scores.step_table import StepTable
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.heads.regression import Regression
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig


def episode(state, action, **more):
    state, action = (np.asarray(v, np.float32).reshape(len(v), -1) for v in (state, action))
    meta = more.pop("metadata", {})
    return Episode({"observation.state": state, "action": action, **more}, meta)


def test_an_action_of_several_columns_has_the_scores_of_one_column():
    rng = np.random.default_rng(0)
    whole = [episode(rng.normal(size=(20, 3)), rng.normal(size=(20, 3)).cumsum(0), **{"next.reward": np.ones(20)})
             for _ in range(6)]
    parts = [e.replace({"action": None, "action.arm": e.steps["action"][:, :2], "action.grip": e.steps["action"][:, 2]})
             for e in whole]
    for name in SCORES.keys() - NETWORK_SCORES:
        np.testing.assert_array_equal(SCORES[name]()(Dataset(parts)), SCORES[name]()(Dataset(whole)), name)
    with pytest.raises(UserError, match="no numeric action"):
        Smoothness()(Dataset([e.replace({"action": None}) for e in whole]))


def line(n, action, seed=0, steps=30, slope=0.0):
    """n episodes along the same line, whose actions are action(rng, steps)."""
    rng = np.random.default_rng(seed)
    return [episode(np.linspace(0, 1, steps + 1) + 1e-3 * i, action(rng, steps)) for i in range(n)]


def data(*episodes):
    return Dataset([e for some in episodes for e in (some if isinstance(some, list) else [some])])


def steady(rng, n):
    return np.ones(n)


def noisy(rng, n):
    return rng.choice([-1.0, 3.0], n)


# -- the table ----------------------------------------------------------------------------------------------------


def test_the_table_is_in_standard_deviations_and_knows_what_follows():
    t = StepTable.from_data(data(episode([0, 1, 2, 3], [[5, 0], [5, 2], [5, 4]]), episode([4, 5], [[5, 6], [5, 8]])))
    assert t.state.std() == pytest.approx(1) and t.state.mean() == pytest.approx(0, abs=1e-6)
    assert (t.action[:, 0] == 0).all(), "a constant component says nothing"
    assert t.has_next.tolist() == [True, True, True, True, False]
    assert np.allclose((t.next_state - t.state)[t.has_next] * np.std([0, 1, 2, 4, 5]), 1)
    assert [v.tolist() for v in t.split(np.arange(5.0))] == [[0, 1, 2], [3, 4]]
    assert t.mean(np.array([1, 2, np.nan, 5, 7])).tolist() == [1.5, 6]


def test_rounding_is_no_variation():
    flat = np.full(50, 1e3) + 1e-5 * np.arange(50)
    assert (StepTable.from_data(data(episode(np.c_[np.arange(50.0), flat], np.arange(50.0)))).state[:, 1] == 0).all()


def test_a_value_that_is_no_number_spoils_its_step_only():
    d = data(line(6, steady))
    d[2].steps["observation.state"][7] = np.nan
    steps = StateDiversity(n_neighbors=3).steps(d)
    assert [int(np.isnan(s).sum()) for s in steps] == [0, 0, 2, 0, 0, 0], "the step, and the one that leads there"
    assert np.isfinite(StateDiversity(n_neighbors=3)(d)).all()


def test_odd_episodes_spoil_nobody_else():
    """One without steps, one of a single step, one of numbers that are none: NaN or a number for them, and for the
    others the same as if these had none of it."""
    none = Episode({"observation.state": np.zeros((1, 1), np.float32), "action": np.zeros((0, 1), np.float32)})
    one = episode([0.5], [1.0])
    bad = episode(np.full(9, np.nan), np.full(8, np.nan))
    some = line(5, noisy, steps=12)
    for name, make in SCORES.items():
        if name in NETWORK_SCORES - {"alignment"}:
            continue
        found = make()(data(some, none, one, bad))
        assert found.shape == (8,), name
        assert np.isfinite(found[:5]).all() or name == "return", name
    assert np.array_equal(Smoothness()(data(some, bad))[:5], Smoothness()(data(some)))


@pytest.mark.parametrize("columns,message", [
    ({"observation.images.top": np.zeros((4, 8, 8, 3), np.uint8)}, "no numeric observation among action"),
    ({"observation.state": np.zeros((4, 2)), "action": None}, "no numeric action")])
def test_what_has_no_numbers_is_refused(columns, message):
    steps = {"action": np.zeros((4, 1), np.float32), **columns}
    with pytest.raises(UserError, match=message):
        ActionVariance()(data(Episode({k: v for k, v in steps.items() if v is not None})))


def test_choices_have_no_distance():
    """Action 2 is as far from 0 as 1 is."""
    d = data(Episode({"observation.state": np.zeros((3, 1)), "action": np.array([[0], [1], [2]])}))
    a = StepTable.from_data(d).action * np.array([v if np.isfinite(v) else 0 for v in StepTable.from_data(d).scales[3]])
    assert np.linalg.norm(a[0] - a[1]) == pytest.approx(np.linalg.norm(a[0] - a[2]))


# -- neighbors ---------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 5), st.integers(1, 6))
def test_nearest_is_what_looking_at_all_of_them_finds(seed, episodes, count):
    rng = np.random.default_rng(seed)
    whose = rng.integers(0, episodes, 40)
    points, among = rng.standard_normal((40, 2)), np.sort(rng.choice(40, 25, replace=False))
    far, near = nearest_neighbors(points, whose, count, among)
    for i in range(40):
        others = among[whose[among] != whose[i]]
        away = np.sort(np.linalg.norm(points[others] - points[i], axis=1))[:count]
        assert np.allclose(far[i, : len(away)], away) and np.isinf(far[i, len(away):]).all()
        assert np.allclose(np.linalg.norm(points[near[i, : len(away)]] - points[i], axis=1), away)
        assert (whose[near[i, : len(away)]] != whose[i]).all()


def test_action_variance_of_known_actions():
    """In every place one in two does +1 and one -1: of 2n values so, the variance without bias is 2n / (2n - 1) times
    that of the data."""
    d = data([episode(np.arange(10.0) + 1e-4 * i, np.full(10, (-1.0) ** i)) for i in range(6)])
    found = ActionVariance(n_neighbors=5)(d)
    assert found == pytest.approx(np.full(6, -6 / 5), rel=1e-3)
    assert ActionVariance(n_neighbors=5)(data(line(6, steady))) == pytest.approx(np.zeros(6))


def test_consistency_blames_who_does_otherwise():
    """Five do 0 and one does 6: of units of the standard deviation sqrt(5), the odd one is 6 / sqrt(5) off, and the
    others as much as their mean of five neighbors is, a fifth."""
    d = data([episode(np.arange(10.0) + 1e-4 * i, np.full(10, 6.0 * (i == 5))) for i in range(6)])
    assert ActionConsistency(n_neighbors=5)(d) == pytest.approx([-0.2 * 36 / 25] * 5 + [-36 / 5], rel=1e-3)


def test_state_diversity_is_a_mean_distance():
    """Two still episodes 3 apart, so that the mean distance is 3, in units of a standard deviation of 1.5."""
    d = data(episode(np.zeros(5), np.zeros(5)), episode(np.full(5, 3.0), np.zeros(5)))
    assert StateDiversity(n_neighbors=2)(d) == pytest.approx([2, 2])
    assert StateSimilarity(n_neighbors=2)(d) == pytest.approx([-2, -2])


def test_transition_diversity_is_the_noise_of_the_system():
    """From the same state by the same action: always the same place, or one of two."""
    def walk(seed, noise):
        rng = np.random.default_rng(seed)
        return [episode(np.cumsum(np.r_[0, 1 + noise * rng.choice([-1, 1], 20)]) % 7, np.ones(20)) for _ in range(20)]
    still, gusty = (np.nanmean(TransitionDiversity(n_neighbors=8)(data(walk(0, n)))) for n in (0.0, 0.9))
    assert still == pytest.approx(0, abs=1e-6) and gusty > 0.3


def test_typicality_finds_the_outlier():
    d = data(line(8, steady), episode(np.linspace(0, 1, 31) + 50, np.ones(30)))
    found = Typicality(n_neighbors=3)(d)
    assert found.argmin() == 8 and found[8] < 5 * found[:8].min()


def test_two_ways_are_told_from_scatter_and_from_one_way():
    two = data(line(20, lambda rng, n: np.full(n, rng.choice([-1.0, 1.0]))))
    scatter = data(line(20, lambda rng, n: rng.uniform(-1, 1, n)))
    assert np.nanmean(Unimodality()(two)) < -0.7
    assert np.nanmean(Unimodality()(scatter)) > -0.35
    assert np.nanmean(Unimodality()(data(line(20, steady)))) == 0


def test_actions_that_follow_the_state_are_one_way():
    """Every episode goes to a goal of its own, left or right of where it starts. A linear function of the state gives
    the actions, and nothing is left. Without the goal in the state, two ways remain."""
    def episodes(shown):
        rng = np.random.default_rng(0)
        def one(goal):
            at = np.sort(rng.uniform(-0.1, 0.1, 20))
            return episode(np.stack([at, np.full(20, goal * shown)], 1), goal - at)
        return data([one(goal) for goal in rng.choice([-1.0, 1.0], 20) + rng.uniform(-0.3, 0.3, 20)])
    assert np.nanmean(LocalUnimodality()(episodes(1.0))) > -0.01
    assert np.nanmean(LocalUnimodality()(episodes(0.0))) < -0.5


@pytest.mark.parametrize("score", [ActionVariance(), StateDiversity(), Typicality(), Unimodality(),
                                   LocalUnimodality(), Compatibility(),
                                   Alignment()])
def test_one_episode_has_nobody_to_be_compared_with(score):
    assert np.isnan(score(data(line(1, steady)))).all()


def test_subsampling_is_decided_by_its_seed():
    d = data(line(10, noisy))
    a, b, c = (StateDiversity(max_steps=40, seed=s)(d) for s in (1, 1, 2))
    assert (a == b).all() and (a != c).any()


# -- information --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("r", [0.0, 0.6, 0.9])
def test_mutual_information_of_gaussians(r):
    """-log(1 - r^2) / 2 in nats."""
    rng = np.random.default_rng(0)
    x, e = rng.standard_normal((2, 1500, 1))
    assert mutual_information_terms(x, r * x + np.sqrt(1 - r * r) * e).mean() == pytest.approx(
        -0.5 * np.log(1 - r * r), abs=0.06
    )


def test_the_estimator_is_the_published_formula():
    """Kraskov et al. 2004, equation 8, written out for each point."""
    x, y = np.random.default_rng(0).standard_normal((2, 14, 2))
    for i, found in enumerate(mutual_information_terms(x, y, (3,))):
        others = [j for j in range(14) if j != i]
        far_x, far_y = ([abs(v[j] - v[i]).max() for j in others] for v in (x, y))
        reach = sorted(map(max, zip(far_x, far_y, strict=True)))[2]
        n_x, n_y = (sum(d < reach for d in far) for far in (far_x, far_y))
        assert found == pytest.approx(digamma(3) - digamma(n_x + 1) - digamma(n_y + 1) + digamma(14))


def test_varied_and_predictable_is_informative():
    rng = np.random.default_rng(1)
    states = [rng.standard_normal(60) for _ in range(8)]
    d = data([episode(s, s if i < 4 else rng.standard_normal(60)) for i, s in enumerate(states)])
    found = MutualInformation()(d)
    assert found[:4].min() > found[4:].max() + 0.3
    assert (MutualInformation()(d) == found).all()


# -- one episode by itself ----------------------------------------------------------------------------------------


def test_length_return_motion_and_smoothness():
    t = np.arange(10.0)
    d = data(episode(t, t**3, **{"next.reward": np.ones(10)}), episode(np.zeros(6), 5 * t[:6], **{
        "next.reward": np.r_[0, 0, 0, 0, 0, 4.0]}))
    assert Brevity()(d).tolist() == [-10, -6]
    assert Return()(d).tolist() == [10, 4] and Return(random_return=4, best_return=10)(d).tolist() == [1, 0]
    assert trajectory_quality(d, random=1, best=9) == pytest.approx(0.75)
    spread = np.concatenate([t**3, 5 * t[:6]]).std()
    assert Smoothness()(d) == pytest.approx([-np.log(36 / spread**2), -np.log(1e-12)], rel=1e-4)
    assert Motion()(d).tolist() == [1, 0]
    with pytest.raises(UserError, match="best return must be above 5"):
        Return(random_return=5, best_return=5)(d)
    assert np.isnan(Return(best_return=1.0)(data(line(1, steady)))).all()


def test_coverage_counts_pairs_in_the_bins_of_the_reference():
    """The reference has 10 cells; the other is in the lowest of them, however narrow its own range, and in one beyond,
    which counts with the highest."""
    reference = data(episode(np.arange(10.0), np.zeros(10)))
    assert state_action_coverage(reference, reference, bins=10) == 1
    assert state_action_coverage(
        data(episode(np.linspace(0, 0.5, 10), np.zeros(10))), reference, bins=10
    ) == pytest.approx(0.1)
    assert state_action_coverage(data(episode([0, 99, 99], np.zeros(3))), reference, bins=10) == pytest.approx(2 / 3)
    twice = data(episode(np.repeat(np.arange(5.0), 2), np.zeros(10)))
    assert state_action_coverage(twice, reference, bins=10) == pytest.approx(0.5)


def test_novelty_is_what_nobody_else_has():
    d = data(episode([0, 1, 2, 3], np.zeros(4)), episode([2, 3, 4, 4], np.zeros(4)))
    assert Novelty(n_bins=5)(d) == pytest.approx([2 / 4, 1 / 3])


def test_critical_steps_are_where_the_action_turns():
    d = data(episode(np.zeros(10), np.r_[np.ones(5), -np.ones(5)]))
    assert np.flatnonzero(Criticality().critical_steps(d, 0.2)[0]).tolist() == [0, 5]
    assert Criticality().steps(d)[0] == pytest.approx([1, 0, 0, 0, 0, 2, 0, 0, 0, 0])


# -- networks -----------------------------------------------------------------------------------------------------


def test_compatibility_refuses_another_way_where_it_knows_and_not_where_it_does_not():
    def way(low, action, n, seed):
        rng = np.random.default_rng(seed)
        return [episode(rng.uniform(low, low + 1, (20, 1)), action + 0.05 * rng.standard_normal(20)) for _ in range(n)]
    base = data(way(0, 1.0, 8, 0))
    score = Compatibility(base, n_members=2, n_updates=120)
    new = data(way(0, 1.0, 3, 1), way(0, -1.0, 3, 2), way(60, -1.0, 3, 3))
    bad = score.compare_to_base(new).n_incompatible()
    assert (bad[:3] <= 4).all() and (bad[3:6] >= 12).all() and (bad[6:] == 0).all()
    steps = score(new)
    assert steps[3:6].max() < 0.2 and steps[:3].min() > 0.5 and (steps[6:] == 1).all()
    with pytest.raises(UserError, match="no base demonstrations"):
        Compatibility().compare_to_base(new)
    with pytest.raises(UserError, match="states have 2 numbers and actions 1, but those to compare with have 1 and 1"):
        score.compare_to_base(data(episode(np.zeros((4, 2)), np.zeros(4))))


def test_without_a_base_the_odd_one_is_judged_by_the_others():
    d = data(line(9, lambda rng, n: 1 + 0.05 * rng.standard_normal(n)), line(1, lambda rng, n: np.full(n, -3.0)))
    assert Compatibility(n_members=2, n_updates=80, folds=2)(d).argmin() == 9


def test_expertise_finds_the_demonstrators_who_guess():
    def person(name, skilled, seed):
        rng = np.random.default_rng(seed)
        x = rng.uniform(-1, 1, (40, 1))
        return episode(x, np.where(rng.random((40, 1)) < skilled, np.sin(3 * x), rng.uniform(-1, 1, (40, 1))),
                       metadata={"operator": name})
    d = data([person("abcd"[i % 4], (0.95, 0.95, 0.1, 0.1)[i % 4], i) for i in range(12)])
    found = Expertise(demonstrator_key="operator", n_updates=300)(d)
    assert found[[0, 1]].min() > 0.6 > 0.4 > found[[2, 3]].max()
    with pytest.raises(UserError, match="'team'"):
        Expertise(demonstrator_key="team")(d)


# -- influence ----------------------------------------------------------------------------------------------------


def test_a_datamodel_finds_what_each_episode_is_worth():
    truth = np.arange(6.0) - 2
    d = Dataset([Episode({"action": np.full((3, 1), v)}) for v in truth])
    found = Datamodel(lambda part: sum(float(e.steps["action"][0, 0]) for e in part), n_subsets=100, ridge=1e-6)(d)
    assert np.diff(found) == pytest.approx(np.ones(5), abs=1e-4), "up to a constant, since halves are equally large"


def test_influence_follows_the_outcome_of_rollouts():
    """A linear policy of a constant state: an episode's gradient is to its action, and those that lead to what went
    well come first."""
    torch.manual_seed(0)
    def constant(action, **meta):
        return episode(np.ones((6, 2)), np.full(5, action), metadata=meta)
    d = data([constant(a) for a in (-1.0, 0.0, 1.0)])
    recipe = PolicyConfig(Regression(), trunk=MLP(16, 1), encoder=ConcatEncoder(), window=Window())
    policy = Policy(recipe, d.features()).fit_statistics(d)
    ran = data(constant(0.9, success=True), constant(-0.9, success=False))
    assert (np.diff(Influence(policy, ran)(d)) > 0).all()
    flipped = data(constant(0.9, success=False), constant(-0.9, success=True))
    assert Influence(policy, flipped)(d) == pytest.approx(-Influence(policy, ran)(d))
    with pytest.raises(UserError, match="the same outcome"):
        Influence(policy, ran[:1])(d)


def test_weights_that_are_tested_leave_out_the_corrupted():
    rng = np.random.default_rng(0)
    def some(corrupted):
        x = rng.uniform(-1, 1, (30, 1))
        return episode(x, (-x if corrupted else x) + 0.05 * rng.standard_normal(x.shape))
    d, test = data([some(i % 2 == 1) for i in range(10)]), data([some(False) for _ in range(3)])
    found = ValidationWeights(test, n_updates=80)(d)
    assert found[::2].min() > found[1::2].max()
    mixed = ValidationWeights(
        test, base_scores=(Brevity(), Scored(tuple(i % 2 == 0 for i in range(10)))), n_updates=80
    )(d)
    assert mixed[::2].min() > mixed[1::2].max()


def lines(seed, n_episodes):
    """Episodes that go towards 0, and every second one away from it."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(n_episodes):
        x = rng.uniform(-1, 1, (30, 1))
        found.append(episode(x, (x if i % 2 else -x) + 0.05 * rng.standard_normal(x.shape)))
    return data(found)


def test_a_scoring_network_learns_from_one_pool_what_to_keep_of_another():
    pool, new, downstream = lines(0, 20), lines(1, 10), lines(2, 6)[::2]
    found = FilterLikeYouTest(downstream, pool=pool, n_updates=150, scorer_lr=3e-3)(new)
    assert found[::2].min() > found[1::2].max()
    wrong = FilterLikeYouTest(lines(2, 6)[1::2], pool=pool, n_updates=150, scorer_lr=3e-3)(new)
    assert wrong[1::2].min() > wrong[::2].max(), "the downstream data decide"


def test_the_scoring_network_follows_the_exact_derivative_of_the_downstream_loss():
    """After one update, as if the loss had been differentiated through the update of the reference model."""
    pool = StepTable.from_data(lines(0, 4))
    test = StepTable.from_data(lines(2, 4)[::2], like=pool)
    found = FilterLikeYouTest(lines(2, 1), n_updates=1, batch_size=16, seed=5)._train(pool, test)

    x, y, tx, ty = map(torch.as_tensor, (pool.state, pool.action, test.state, test.action))
    rng, reference, scorer = Generator().manual_seed(5), NetworkEnsemble(1, 1, seed=5), NetworkEnsemble(2, 1, seed=6)
    at, some = torch.randint(len(x), (16,), generator=rng), torch.randint(len(tx), (16,), generator=rng)
    optim = torch.optim.Adam(scorer.parameters(), 1e-3)
    share = torch.softmax(scorer(torch.cat([x, y], 1)[at])[0, :, 0], 0)
    theta = dict(reference.named_parameters())

    def losses(weights, x, y):
        return (functional_call(reference, weights, (x,))[0] - y).square().mean(1)
    slope = torch.autograd.grad((share * losses(theta, x[at], y[at])).sum(), list(theta.values()), create_graph=True)
    after = {k: v - 0.5 * g for (k, v), g in zip(theta.items(), slope, strict=True)}
    losses(after, tx[some], ty[some]).mean().backward()
    optim.step()
    for a, b in zip(found.parameters(), scorer.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


class Scored(Score):
    def __init__(self, values):
        self.values = values

    def __call__(self, data):
        return np.array(self.values, float)


def test_soft_cap_takes_the_good_more_often_but_not_for_ever():
    logits = np.array([3.0, 3.0, 0.0, -20.0])
    free, capped = soft_capped_counts(logits, 200, penalty=0.0), soft_capped_counts(logits, 200, penalty=0.2)
    assert free.sum() == capped.sum() == 200 and free[3] == capped[3] == 0
    assert capped[2] > 2 * free[2] and abs(int(capped[0]) - int(capped[1])) < 25
    # In the end each logit has fallen to the same: the good are ahead by 3 / 0.2 draws.
    assert capped[:2].mean() - capped[2] == pytest.approx(15, abs=8)
    assert (soft_capped_counts(logits, 50, seed=3) == soft_capped_counts(logits, 50, seed=3)).all()


# -- alignment ----------------------------------------------------------------------------------------------------


def test_the_walk_passes_over_what_the_others_do_not_do():
    """Steps along a quarter of a circle; one demonstration leaves it for three steps after its fourth."""
    angle = np.linspace(0, np.pi / 2, 10)
    plain = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1)
    odd = np.concatenate([plain[:4], np.tile([0.0, 0.0, 1.0], (3, 1)), plain[4:]])
    kept = aligned_steps([plain] * 5 + [odd], tolerance=1)
    assert all(k.all() for k in kept[:5])
    assert np.flatnonzero(~kept[5]).tolist() == [4, 5, 6]


def test_a_cycle_of_what_is_alike_is_closed():
    u = 30 * torch.eye(6)[None]
    assert cycle_consistency_loss(u, u) == pytest.approx(0, abs=1e-6)
    assert cycle_consistency_loss(u, u.flip(1)) == pytest.approx(0, abs=1e-6), (
        "order plays no part in finding the way back"
    )
    assert cycle_consistency_loss(u, torch.zeros(1, 6, 6)) == pytest.approx(
        float(((torch.arange(6) - 2.5) / 6).square().mean()), rel=1e-3
    )


def test_a_detour_is_extraneous():
    def drive(i):
        way = np.linspace(0, 2, 21)
        state, action = np.c_[way[:-1], np.zeros(20)], np.tile([1.0, 0.0], (20, 1))
        if i == 0:
            side = np.sin(np.linspace(0, np.pi, 8))
            detour = np.c_[np.full(8, 1.0), side]
            state = np.concatenate([state[:10], detour, state[10:]])
            action = np.concatenate([action[:10], np.tile([0.0, 1.0], (4, 1)), np.tile([0.0, -1.0], (4, 1)),
                                     action[10:]])
        return episode(state, action)
    kept = Alignment(n_updates=100).steps(data([drive(i) for i in range(8)]))
    assert kept[0][11:17].mean() < 0.4 < 0.8 < min(k.mean() for k in kept[1:])


# -- what to collect next -----------------------------------------------------------------------------------------


def test_the_farthest_is_collected_first_within_the_budget():
    points = np.array([[0.0], [1.0], [4.0], [10.0], [10.5]])
    assert select_within_budget(points, 2, existing=np.array([[0.0]])) == [4, 2]
    assert select_within_budget(points, 2) == [0, 4]
    assert select_within_budget(points, 3, existing=np.array([[0.0]]), cost=np.array([1, 1, 1, 2, 9.0])) == [3, 2]
    assert select_within_budget(points, 1, existing=np.array([[0.0]]), value_of=np.array([1, 1, 9, 1, 1.0])) == [2]
    assert sorted(select_within_budget(points, 99)) == [0, 1, 2, 3, 4] and select_within_budget(points, 0) == []
    with pytest.raises(UserError, match="cost above 0"):
        select_within_budget(points, 2, cost=np.zeros(5))


def test_data_sets_are_chosen_by_their_first_states():
    def starts(*at):
        return data([episode([a, 99.0, a], np.zeros(2)) for a in at])
    assert select_within_budget(starts(0.1, 3.0, 9.0), 2, existing=starts(0.0)) == [2, 1]


# -- the list -----------------------------------------------------------------------------------------------------


def test_every_score_stands_by_the_interface():
    """One number an episode, the same at every call; steps are of each step; nothing is written into the data."""
    env = data(line(5, noisy, steps=12))
    before = env.fingerprint()
    assert set(NETWORK_SCORES) < set(SCORES)
    for name, make in SCORES.items():
        score = make()
        assert isinstance(score, Score) and score == make(), name
        if name in NETWORK_SCORES:
            continue  # slow; each has its own test
        values = score(env)
        assert values.shape == (5,) and values.dtype == float, name
        assert np.array_equal(values, score(env), equal_nan=True), name
        if isinstance(score, StepScore):
            assert [len(s) for s in score.steps(env)] == [12] * 5, name
    assert env.fingerprint() == before
    AuditReport((), {"brevity": SCORES["brevity"]()(env)}).to_json()


def test_the_page_of_scores_says_what_a_high_score_means():
    page = (REPOSITORY / "docs/scores.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| ([\w-]+)(?: \*)? \| `\w+` \| ([^|]+) \|", page, re.MULTILINE))
    assert rows == SCORE_MEANINGS and SCORE_MEANINGS.keys() == SCORES.keys()
