"""What the claims about curation stand on: arms see what is marked for them, and their little worlds are as said."""

import numpy as np
import pytest
import torch
from evidence.families.bad_demonstrations.dataset_quality import (
    GOAL,
    HIGH_QUALITY,
    LEARNED,
    LIMIT,
    LOW_QUALITY,
    MOVES,
    SETS,
    GridDatasets,
    GridLearner,
    next_cell,
    run_episode,
    train_preferences,
)
from evidence.families.bad_demonstrations.extraneous_segments import DetourExpert, _f1_score
from evidence.families.bad_demonstrations.out_of_dynamics import infer_actions, sharpen
from evidence.families.measuring.behavior_entropy import SidedDemonstrations, side_of_pillar

from evidence.worlds.curation import CuratedMethod, cloning_method, curated_arms, train_curated, with_keep_columns
from understudy.data.episode import Episode
from understudy.envs.toys.fork import ForkExpert


def test_marks_are_of_episodes_or_of_steps():
    data = with_keep_columns(
        [Episode({"action": np.zeros((3, 1))})] * 2, {"a": [1.0, 0.0], "b": [np.array([1, 0, 2]), 0.0]}
    )
    assert [e.steps["keep.a"].tolist() for e in data] == [[1, 1, 1], [0, 0, 0]]
    assert data[0].steps["keep.b"].tolist() == [1, 0, 2]


def test_an_arm_learns_from_what_is_marked_for_it_alone():
    """One episode does 1 and another does 3 in the same states, and half of the first does 5."""
    state = np.random.default_rng(0).uniform(-1, 1, (40, 2)).astype(np.float32)
    first = np.r_[np.full(20, 5.0), np.full(20, 1.0)].astype(np.float32)[:, None]
    data = with_keep_columns([Episode({"observation.state": state, "action": first}),
                   Episode({"observation.state": state, "action": np.full((40, 1), 3, np.float32)})],
                  {"half": [np.arange(40) >= 20, 0.0], "second": [0.0, 1.0], "both": [np.arange(40) >= 20, 0.5]})
    plans = {}
    for by in ("half", "second", "both"):
        policy = train_curated(CuratedMethod(cloning_method(3e-3, steps=60), by), data, 0)
        obs = {"observation.state": torch.from_numpy(state[20:, None])}
        plans[by] = float(policy.plan(obs, policy.noise(torch.zeros(20, dtype=torch.int64),
                                                        torch.zeros(20, dtype=torch.int64))).mean())
    assert plans["half"] == pytest.approx(1, abs=0.3) and plans["second"] == pytest.approx(3, abs=0.1)
    assert 1.4 < plans["both"] < 2.6
    assert [a.name for a in curated_arms("half", "both")] == ["half", "both"]
    assert len({len(a.options) for a in curated_arms("a")}) == 1


def test_the_maze():
    """Its shortest way is 12 steps, which earn 1 - 0.9 * 12 / 60; who stands still earns nothing in all of the time."""
    way, at = {(0, 0): None}, [(0, 0)]
    for here in at:
        for a in range(len(MOVES)):
            there = next_cell(here, a)
            if there not in way:
                way[there] = (here, a)
                at.append(there)
    steps, here = [], GOAL
    while way[here]:
        here, a = way[here]
        steps.append(a)
    plan = iter(reversed(steps))
    best = run_episode(lambda at: next(plan))
    assert len(best) == 12 and best.steps["next.reward"].sum() == pytest.approx(1 - 0.9 * 12 / LIMIT)
    idle = run_episode(lambda at: 1)
    assert len(idle) == LIMIT and idle.steps["next.reward"].sum() == 0


def test_sets_of_the_maze_are_as_large_as_said_and_ranked_by_their_makers():
    data = GridDatasets(steps=300).load(3)
    sizes = {name: sum(len(e) for e in data if e.metadata["set"] == name) for name in SETS}
    assert all(300 <= n < 300 + 2 * LIMIT for n in sizes.values()), sizes
    tq = data.metadata["TQ"]
    assert tq["expert"] == 1 and tq["random"] == 0 and 0 < tq["mixed"] < tq["noisy"] < 1
    assert data.metadata["SACo"]["expert"] == min(data.metadata["SACo"].values())
    assert max(tq[name] for name in LOW_QUALITY) < min(tq[name] for name in HIGH_QUALITY)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["BCQ", "CQL"])
def test_offline_learners_find_a_way_that_the_data_rarely_take(kind):
    """The mixed set has the best way in one of five steps. Its shortest way is 12 steps."""
    likes = train_preferences(GridLearner(kind), GridDatasets().load(11), 11)[LEARNED.index("mixed")]
    assert len(run_episode(lambda at: likes[at].argmax())) == 12


@pytest.mark.parametrize(("seed", "frequent"), [(6, "left"), (7, "right")])
def test_sets_of_demonstrations_pass_the_pillar_at_the_stated_odds(seed, frequent):
    data = SidedDemonstrations(20).load(seed)
    sets = {name: data.filter(lambda e, name=name: bool(e.steps[f"keep.{name}"].all()))
            for name in ("even", "uneven", "even again")}
    assert {name: len(some) for name, some in sets.items()} == dict.fromkeys(sets, 20) and len(data) == 60
    shares = {name: np.mean([side_of_pillar(e) == frequent for e in some]) for name, some in sets.items()}
    assert shares == {"even": 0.5, "uneven": 0.9, "even again": 0.5}
    assert len({e.steps["observation.state"][0].tobytes() for e in data}) == 60  # no demonstration is in two sets


def test_a_circle_ends_where_it_began():
    actor = DetourExpert(ForkExpert(side=1, noise=0.0), detour_steps=8)
    obs, key = {"observation.state": torch.zeros(5, 2)}, torch.arange(5)
    state, went, busy = actor.start(obs, key), [], []
    for _ in range(20):
        action, state = actor.act(obs, state)
        busy.append(state.pop("record")["extraneous"])
        went.append(torch.where(busy[-1].unsqueeze(1), action, 0.0))
    assert torch.stack(went).sum(0).abs().max() < 1e-5
    assert (torch.stack(busy).sum(0) == 8).all()


def test_f1_of_known_answers():
    true = [np.array([True, True, False, False])]
    assert _f1_score(true, true) == 1 and _f1_score([~true[0]], true) == 0
    assert _f1_score([np.array([True, False, False, True])], true) == pytest.approx(0.5)


def test_what_states_imply_and_weights_that_are_sharp():
    episode = infer_actions(np.array([[0, 0], [0.05, 0], [0.05, 0.3]]))
    assert episode.steps["action"] == pytest.approx(np.array([[0.5, 0], [0, 1]]))
    weights = sharpen(np.array([0.1, 0.5, 0.6]))
    assert weights[0] == 0 and weights[2] == 1 and 0.3 < weights[1] < 0.4
