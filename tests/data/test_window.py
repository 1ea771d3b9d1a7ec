"""Windows against a loop that takes them one at a time, and what a draw promises."""

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import numpy as np
import pytest
import torch
from fixtures.windows import counted
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from understudy.core import UserError
from understudy.data.device_windows import DeviceWindows
from understudy.data.episode import Dataset, Episode
from understudy.data.packed_columns import PackedColumns
from understudy.data.window import Goal, Window
from understudy.learn.targets import td_terms


def test_window_alignment_and_padding():
    data = Dataset([counted(5, 0)])

    def scan(w, inputs=("observation.x",), target="action"):
        return next(w.windows(data, inputs, target).scan())
    b = scan(Window(n_obs_steps=2, horizon=3))
    assert b.obs["observation.x"][0, :, 0].tolist() == [0, 0] and b.obs["observation.x"][3, :, 0].tolist() == [2, 3]
    assert b.action[3].flatten().tolist() == [30, 40, 40] and b.mask[3].tolist() == [True, True, False]
    assert b.extra["index"].flatten().tolist() == [0, 1, 2, 3, 4]
    b = scan(Window(n_obs_steps=2, obs_offset=1))  # inverse dynamics sees what came after, to the very last
    assert b.obs["observation.x"][4, :, 0].tolist() == [4, 5] and b.action[4].item() == 40
    # a world model's last target is the end
    b = scan(Window(action_offset=1), ("observation.x", "action"), "observation.x")
    assert b.action[4].tolist() == [[5, -5]] and b.mask.all()
    b = scan(Window(horizon=2, action_offset=-1))
    assert b.mask[0].tolist() == [False, True]


def naive(data, w: Window, inputs, target, extra, following):
    """One window at a time, by the words of the docstrings."""
    for episode in data:
        T = min(len(c) for c in episode.steps.values())
        columns = {k: np.asarray(v)[: T + 1] for k, v in episode.steps.items()}
        end = len(columns[target])
        if following and all(len(columns[k]) == T for k in inputs if k != "observation.task"):
            end -= 1  # nothing is known of what follows the last step

        def row(name, t, columns=columns):
            return columns[name][min(max(t, 0), len(columns[name]) - 1)]
        for t in range(T):
            yield {
                "obs": {
                    k: np.stack([row(k, t + w.obs_offset + i) for i in range(1 - w.n_obs_steps, 1)]) for k in inputs
                },
                "action": np.stack([row(target, t + w.action_offset + i).reshape(-1) for i in range(w.horizon)]),
                "mask": [0 <= t + w.action_offset + i < end for i in range(w.horizon)],
                "extra": {k: np.stack([row(k, t + w.action_offset + i) for i in range(w.horizon)]) for k in extra},
                "next": {
                    k: np.stack(
                        [
                            row(k, t + w.action_offset + w.horizon + w.obs_offset + i)
                            for i in range(1 - w.n_obs_steps, 1)
                        ]
                    )
                    for k in inputs
                }
                if following
                else None,
            }


@st.composite
def datasets(draw):
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    lengths = draw(st.lists(st.integers(1, 7), min_size=1, max_size=5))
    last = draw(st.booleans())  # the observation has one row more
    how = draw(st.sampled_from(["own", "one array", "mixed"]))
    root = rng.normal(size=(sum(lengths) + 40, 2, 3)).astype(np.float32)
    episodes, at = [], 3
    for i, n in enumerate(lengths):
        x = root[at:at + n + last] if how != "own" and (how == "one array" or i % 2) else rng.normal(
            size=(n + last, 2, 3)).astype(np.float32)
        at += n + 1 + i  # with gaps between them
        episodes.append(Episode({"observation.x": x, "action": rng.normal(size=(n, 2)),
                                 "intervention": rng.random(n) < 0.5,
                                 "observation.task": np.broadcast_to(np.uint8([i, 7]), (n + 1, 2)),
                                 "observation.raw": rng.integers(0, 9, (n, 1)), "next.reward": rng.random((n, 1))}))
    return Dataset(episodes)


@settings(max_examples=150, deadline=None)
@given(data=datasets(), obs=st.integers(1, 3), horizon=st.integers(1, 5), ahead=st.integers(-2, 2),
       look=st.integers(-1, 2), target=st.sampled_from(["action", "observation.x"]), following=st.booleans(),
       many=st.sampled_from([1, 1000]))
def test_windows_are_those_of_the_loop(data, obs, horizon, ahead, look, target, following, many):
    with mock.patch("understudy.data.window.TABLE_MIN_EPISODES", many):
        same_as_the_loop(data, Window(obs, horizon, ahead, look), target, following)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=30))
def test_an_episode_is_found_in_two_looks_where_none_is_much_shorter(lengths):
    data = Dataset([counted(n, i) for i, n in enumerate(lengths)])
    with mock.patch("understudy.data.window.TABLE_MIN_EPISODES", 1):
        windows = Window().windows(data, ("observation.x",), "action")
    assert (windows.episode_table is not None) == (4 * min(lengths) * len(lengths) >= sum(lengths))
    if windows.episode_table is not None:
        assert len(windows.episode_table) <= 4 * len(lengths)
    batch = windows.gather(np.arange(len(windows)))
    assert batch.action.flatten().tolist() == [1000.0 * i + 10 * t for i, n in enumerate(lengths) for t in range(n)]


def test_columns_that_lie_alike_share_where():
    root = np.arange(40.0, dtype=np.float32).reshape(20, 2)
    data = Dataset([Episode({"a": root[i: i + 5], "b": -root[i: i + 5], "c": root[i: i + 6]}) for i in (0, 10)])
    columns = PackedColumns.from_episodes(data, ("a", "b", "c")).columns
    assert columns["b"].lengths is columns["a"].lengths and columns["b"].starts is not columns["a"].starts
    assert columns["c"].starts is columns["a"].starts and columns["c"].lengths is not columns["a"].lengths


@pytest.mark.parametrize(("horizon", "lookahead"), [(1, 0), (3, 0), (1, 4)])
def test_a_last_step_counts_if_an_observation_follows_it_or_the_episode_terminated(horizon, lookahead):
    """Otherwise the windows are those of the episode without it."""
    def windows(*episodes):
        return Window(horizon=horizon).windows(Dataset(episodes), ("observation.x",), "action", next_obs=True,
                                               extra=("next.reward", "next.terminated"), lookahead=lookahead)

    def episode(rows, steps, terminated):
        return Episode({"observation.x": np.arange(rows)[:, None] * 1.0, "action": np.arange(steps)[:, None] * 1.0,
                        "next.reward": np.arange(steps) + 0.5,
                        "next.terminated": np.arange(steps) == (steps - 1 if terminated else -1)})

    def targets(batch):
        return torch.stack(td_terms(batch, 0.9, lookahead))
    cut, shorter, ended = episode(6, 6, False), episode(6, 5, False), episode(6, 6, True)
    found, expected = windows(cut, ended).gather(np.arange(5)), windows(shorter).gather(np.arange(5))
    assert torch.equal(targets(found), targets(expected)) and torch.equal(found.mask, expected.mask)
    assert torch.equal(found.next["observation.x"], expected.next["observation.x"])
    last = windows(cut, ended).gather(np.array([5, 11]))
    assert last.mask[:, 0].tolist() == [False, True] and targets(last)[:, 1].tolist() == [5.5, 0]
    drawn = windows(cut, ended).batch(2000, 0).extra["index"]
    assert set(drawn.flatten().tolist()) == {*range(5), *range(6, 12)}
    with pytest.raises(UserError, match="no observation follows any of the steps"):
        windows(episode(1, 1, False)).batch(2, 0)


def test_what_follows_a_chunk_that_ends_before_the_present():
    data = Dataset([counted(3, 0), counted(4, 1)])
    w = Window(action_offset=-2)
    batch = next(w.windows(data, ("observation.x",), "action", next_obs=True).scan())
    want = [one["next"]["observation.x"] for one in naive(data, w, ("observation.x",), "action", (), True)]
    assert np.array_equal(batch.next["observation.x"].numpy(), np.float32(want))


def same_as_the_loop(data, w: Window, target, following):
    inputs, extra = ("observation.x", "observation.task", "observation.raw"), ("next.reward", "intervention")
    windows = w.windows(data, inputs, target, extra=extra, next_obs=following)
    want = list(naive(data, w, inputs, target, extra, following))
    assert len(windows) == len(want) == data.steps
    for batches in (list(windows.scan(4)), list(DeviceWindows(windows, torch.device("cpu")).scan(4))):
        same_batches(batches, want, inputs, extra, following)


def same_batches(found, want, inputs, extra, following):
    assert [len(b) for b in found] == [4] * (len(want) // 4) + [len(want) % 4] * (len(want) % 4 > 0)
    rows = [(b, i) for b in found for i in range(len(b))]
    for n, ((b, i), one) in enumerate(zip(rows, want, strict=True)):
        for k in inputs:
            assert np.array_equal(b.obs[k][i].numpy(), one["obs"][k].astype(b.obs[k].numpy().dtype)), k
            if following:
                assert np.array_equal(b.next[k][i].numpy(), one["next"][k].astype(b.next[k].numpy().dtype)), k
        assert np.array_equal(b.action[i].numpy(), one["action"].astype(np.float32))
        assert b.mask[i].tolist() == one["mask"]
        for k in extra:
            assert np.array_equal(b.extra[k][i].numpy(), one["extra"][k].astype(b.extra[k].numpy().dtype)), k
        assert b.extra["index"][i].item() == n
        assert (b.next is None) != following


def test_kinds_keep_their_types():
    b = next(Window().windows(Dataset([Episode({
        "observation.x": np.zeros((3, 2)), "observation.task": np.zeros((3, 4), np.uint8),
        "observation.c": np.zeros((3, 1), np.int64), "action": np.zeros((3, 2), np.float32)})]),
        ("observation.x", "observation.task", "observation.c"), "action").scan())
    assert [b.obs[f"observation.{k}"].dtype for k in ("x", "task", "c")] == [torch.float32, torch.uint8, torch.int64]


def test_a_mask_says_the_length_of_the_target():
    """A column that is one row longer may be a target to its very last row, and no further."""
    b = next(
        Window(horizon=3, action_offset=0).windows(Dataset([counted(4, 0)]), ("observation.x",), "observation.x").scan()
    )
    assert b.mask[3].tolist() == [True, True, False] and b.mask[2].all()


# -- goals ----------------------------------------------------------------------------------------------------------


def goals_of(goal: Goal, lengths=(4, 9, 1), size=4000, seed=0):
    data = Dataset([counted(n, e) for e, n in enumerate(lengths)])
    w = Window(n_obs_steps=2, goals=(goal,))
    b = w.windows(data, ("observation.x", goal.into), "action", next_obs=True).batch(size, 0, seed)
    now = b.obs["observation.x"][:, -1, 0].numpy()
    goals = b.obs[goal.into][..., 0].numpy()
    assert (goals[:, 0] == goals[:, 1]).all(), "one goal for a whole window"
    assert torch.equal(b.next[goal.into], b.obs[goal.into]), "and the same one for what follows"
    return now, goals[:, 0], b.extra[f"{goal.into}.reached"][:, 0].numpy()


def test_a_goal_is_a_later_row_of_its_episode_uniformly():
    now, goal, reached = goals_of(Goal("observation.x"))
    last = np.isin(now, [3, 108, 200])  # of which no row is later
    assert (now // 100 == goal // 100).all() and (reached == (goal == now)).all()
    assert (goal > now)[~last].all() and (goal == now)[last].all()
    from_start = goal[now == 100]  # 9 steps, first of the second episode
    count = np.bincount((from_start - 101).astype(int), minlength=8)
    assert len(count) == 8
    assert abs(count / len(from_start) - 1 / 8).max() < 4.5 * np.sqrt(1 / 8 * 7 / 8 / len(from_start))


def test_a_foreign_goal_is_any_other_row_alike():
    now, goal, reached = goals_of(Goal("observation.x", p_randomgoal=1.0), lengths=(4, 9, 1), size=40_000)
    rows = np.array([*range(4), *range(100, 109), 200])
    for row in (0, 104, 200):
        count = np.bincount(np.searchsorted(rows, goal[now == row]), minlength=14)
        assert count[rows == row] == 0 and count.sum() == (now == row).sum()
        share = count[rows != row] / count.sum()
        assert abs(share - 1 / 13).max() < 4.5 * np.sqrt(1 / 13 * 12 / 13 / count.sum())
    assert not reached.any()
    for lone in (Goal("observation.x", p_randomgoal=1.0), Goal("observation.x"), Goal("observation.x", discount=0.9)):
        assert goals_of(lone, lengths=(1,), size=10)[2].all()  # there is no other row


def test_goals_geometrically_near():
    now, goal, _ = goals_of(Goal("observation.x", discount=0.5), lengths=(60,), size=20_000)
    gap = (goal - now)[now < 30]
    for k in range(1, 5):
        p = 0.5**k
        assert abs((gap == k).mean() - p) < 4.5 * np.sqrt(p * (1 - p) / len(gap))
    assert (gap >= 1).all()


@pytest.mark.parametrize("now_share, other", [(0.3, 0.2), (0.0, 1.0), (1.0, 0.0)])
def test_shares_of_present_and_foreign_goals(now_share, other):
    now, goal, reached = goals_of(
        Goal("observation.x", p_curgoal=now_share, p_randomgoal=other, discount=0.9), (50, 50), 20_000
    )

    def near(found, want):
        return abs(found - want) <= 4.5 * np.sqrt(want * (1 - want) / 20_000)
    assert near((now == goal).mean(), now_share + (1 - now_share - other) / 50)  # a fiftieth is last, and has no later
    assert near((now // 100 != goal // 100).mean(), other * 50 / 99)
    assert (reached == (now == goal)).all()


def test_two_goals_are_drawn_apart():
    data = Dataset([counted(50, 0)])
    w = Window(
        goals=(Goal("observation.x", "observation.near"), Goal("observation.x", "observation.far", p_curgoal=1.0))
    )
    b = w.windows(data, ("observation.near", "observation.far"), "action").batch(500, 3)
    assert b.extra["observation.far.reached"].all()
    assert torch.equal(b.extra["observation.near.reached"], b.extra["index"] == 49)


# -- signed distances of goals --------------------------------------------------------------------------------------


def steps_of(goal: Goal, lengths=(4, 9, 1), size=40_000, seed=0):
    """Row number within the episode, row of the goal, signed steps, of each window; the episodes are 100 apart."""
    data = Dataset([counted(n, e) for e, n in enumerate(lengths)])
    b = Window(goals=(goal,)).windows(data, ("observation.x", goal.into), "action").batch(size, 0, seed)
    now, then = (b.obs[k][:, -1, 0].numpy() for k in ("observation.x", goal.into))
    steps = b.extra[f"{goal.into}.steps"]
    assert steps.shape == (size, 1) and steps.dtype == torch.float32
    assert torch.equal(b.extra[f"{goal.into}.reached"], steps == 0)
    same = now // 100 == then // 100
    assert (steps[same, 0].numpy() == (then - now)[same]).all() and torch.isinf(steps[~same, 0]).all()
    return now, then, steps[:, 0].numpy()


def fits(count, expected):
    """Whether counts agree with their expectation (chi-square; the seed is fixed, so this never changes)."""
    count, expected = np.asarray(count, float), np.asarray(expected, float)
    assert not count[expected == 0].any()
    count, expected = count[expected > 0], expected[expected > 0]
    assert len(count) == 1 or chisquare(count, expected * count.sum() / expected.sum()).pvalue > 1e-3


def test_steps_are_signed_and_infinite_for_another_episode():
    steps_of(Goal("observation.x", p_curgoal=0.2, p_randomgoal=0.3, p_pastgoal=0.3))


def test_past_goals_are_earlier_rows_uniformly():
    now, _, steps = steps_of(Goal("observation.x", p_pastgoal=1.0), lengths=(6,))
    for row in range(6):
        fits(np.bincount(-steps[now == row].astype(int), minlength=6),
             [1, 0, 0, 0, 0, 0] if row == 0 else [0] + [1] * row + [0] * (5 - row))


def test_past_goals_geometrically_near():
    now, _, steps = steps_of(Goal("observation.x", p_pastgoal=1.0, discount=0.5), lengths=(5,))
    fits(np.bincount(-steps[now == 4].astype(int), minlength=5), [0, 1 / 2, 1 / 4, 1 / 8, 1 / 8])


def test_fractions_of_all_kinds_of_goals():
    """Exact probability of each distance from row 3 of 10, of two episodes of 10."""
    goal = Goal("observation.x", p_curgoal=0.1, p_randomgoal=0.2, p_pastgoal=0.3)
    now, _, steps = steps_of(goal, (10, 10), 100_000)
    here = now == 3
    p = np.zeros(21)  # distances -3 to 6 within the episode at 0 to 9, then another episode
    p[:10] += 0.2 / 19
    p[3] = 0.1
    p[:3] += 0.3 / 3
    p[4:10] += 0.4 / 6
    p[10] = 0.2 * 10 / 19
    place = np.where(np.isinf(steps[here]), 10, steps[here] + 3).astype(int)
    fits(np.bincount(place, minlength=21), p)


@pytest.mark.parametrize("discount, near", [(None, [1 / 3, 1 / 3, 1 / 3]), (0.5, [1 / 2, 1 / 4, 1 / 4])])
def test_max_steps_limits_the_distance_on_both_sides(discount, near):
    now, _, steps = steps_of(Goal("observation.x", p_pastgoal=0.5, discount=discount, max_steps=3), lengths=(20,))
    assert abs(steps).max() == 3
    middle = steps[(now >= 3) & (now <= 16)].astype(int)
    fits(np.bincount(middle + 3, minlength=7), [*near[::-1], 0, *near])
    assert set(steps[now == 18]) == {-3, -2, -1, 1}


def test_goals_without_new_options_are_drawn_as_before():
    """A second writing of the draws, in the order in which they always were."""
    lengths, rng = np.array([4, 9, 1]), np.random.default_rng(5)
    episode = rng.integers(0, 3, 500)
    t = (rng.random(500) * lengths[episode]).astype(int)
    for goal in (Goal("x"), Goal("x", discount=0.8), Goal("x", p_curgoal=0.3, p_randomgoal=0.4)):
        draws, sampled = np.random.default_rng(1), goal.sample_rows(episode, t, lengths, np.random.default_rng(1))
        steps_left = lengths[episode] - 1 - t
        later = draws.integers(np.minimum(1, steps_left), steps_left + 1) if goal.discount is None else np.minimum(
            draws.geometric(1 - goal.discount, 500), steps_left)
        fraction, any_row = draws.random(500), draws.integers(0, 13, 500)
        rows = [(e, r) for e, n in enumerate(lengths) for r in range(n)]
        for i in range(500):
            others = [r for r in rows if r != (episode[i], t[i])]
            want = (episode[i], t[i] + later[i])
            if fraction[i] < goal.p_randomgoal:
                want = others[any_row[i]]
            if fraction[i] >= 1 - goal.p_curgoal:
                want = (episode[i], t[i])
            assert (sampled[0][i], sampled[1][i]) == want


@pytest.mark.parametrize("options, words", [
    ({"p_pastgoal": 1.2}, "at least 0 and at most 1"), ({"p_curgoal": -0.1}, "at least 0 and at most 1"),
    ({"p_curgoal": 0.6, "p_pastgoal": 0.6}, "more than 1"), ({"max_steps": 0}, "at least 1")])
def test_goals_without_meaning_are_refused(options, words):
    with pytest.raises(UserError, match=words):
        Goal("observation.x", **options)


# -- draws ----------------------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step():
    data = Dataset([counted(n, e) for e, n in enumerate((5, 9, 2))])

    def windows():
        return Window(2, 3, goals=(Goal("observation.x"),)).windows(
            data, ("observation.x", "observation.goal"), "action"
        )

    def same(a, b):
        return torch.equal(a.action, b.action) and all(torch.equal(a.obs[k], b.obs[k]) for k in a.obs)
    one, two = windows(), windows()
    for step in (7, 0, 10**6):  # out of order, after nothing, and in another object
        assert same(one.batch(16, step, 3), two.batch(16, step, 3))
    assert not same(one.batch(16, 0, 3), one.batch(16, 1, 3)) and not same(one.batch(16, 0, 3), one.batch(16, 0, 4))
    assert same(one.batch(16, 2, -1), one.batch(16, 2, 2**64 - 1))
    assert not same(one.batch(16, 2, -1), one.batch(16, 2, -2))  # as floats they would be the same number
    assert same(next(one.scan()), next(two.scan()))


def test_draws_are_those_of_a_generator_with_that_key():
    """The generator is used again and again; what it gives must be what a new one with the key (seed, step) gives."""
    windows = Window().windows(Dataset([counted(9, 0), counted(4, 1)]), ("observation.x",), "action")
    for seed, step in ((0, 0), (3, 10**6), (-1, 7)):
        fresh = np.random.Generator(np.random.Philox(key=np.array([seed % 2**64, step], np.uint64)))
        assert windows.batch(33, step, seed).extra["index"][:, 0].tolist() == fresh.integers(0, 13, 33).tolist()


def test_batches_drawn_by_several_threads_are_those_drawn_by_one():
    windows = Window(2, 3, goals=(Goal("observation.x"),)).windows(
        Dataset([counted(n, e) for e, n in enumerate((50, 90))]), ("observation.x", "observation.goal"), "action")
    alone = [windows.batch(500, step) for step in range(40)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda step: windows.batch(500, step), range(40)))
    for a, b in zip(alone, together, strict=True):
        assert torch.equal(a.action, b.action) and torch.equal(a.obs["observation.goal"], b.obs["observation.goal"])


def test_without_a_draw_all_steps_are_as_likely():
    data = Dataset([counted(n, e) for e, n in enumerate((5, 1, 14))])
    windows = Window().windows(data, ("observation.x",), "action")
    counts = np.bincount(np.concatenate([windows.batch(1000, s).extra["index"].numpy().ravel() for s in range(20)]))
    assert len(counts) == 20 and abs(counts / 20_000 - 0.05).max() < 4.5 * np.sqrt(0.05 * 0.95 / 20_000)


def later(episode: Episode) -> np.ndarray:
    """Nothing of the first two steps, and then each step as often as its number says."""
    return np.maximum(np.arange(len(episode)) - 1.0, 0) * (1 + episode.metadata["number"])


def test_a_draw_weighs_the_steps():
    data = Dataset([counted(n, e) for e, n in enumerate((5, 1, 6))])
    windows = Window().windows(data, ("observation.x",), "action", sampling_weights=later)
    odds = np.concatenate([later(e) for e in data])
    counts = np.bincount(np.concatenate([windows.batch(1000, s).extra["index"].numpy().ravel() for s in range(40)]),
                         minlength=len(odds))
    p = odds / odds.sum()
    assert (counts[p == 0] == 0).all() and abs(counts / 40_000 - p).max() < 4.5 * np.sqrt(0.25 / 40_000)


@pytest.mark.parametrize("odds", [0.0, -1.0, np.nan, np.inf])
def test_a_draw_without_meaning_is_refused(odds):
    with pytest.raises(UserError, match="must be finite and not negative"):
        Window().windows(
            Dataset([counted(3, 0)]), ("observation.x",), "action", sampling_weights=lambda e: np.full(len(e), odds)
        )


@pytest.mark.parametrize("more", [-1, 1])
def test_a_draw_of_other_length_is_refused(more):
    """The steps of all later episodes would be drawn by their neighbors' numbers."""
    with pytest.raises(UserError, match=r"the weights have shape \(\d+,\), but the data have 9 steps"):
        Window().windows(Dataset([counted(4, 0), counted(5, 1)]), ("observation.x",), "action",
                         sampling_weights=lambda e: np.ones(len(e) + more))
