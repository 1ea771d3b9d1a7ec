"""Worlds and arms of the claims on token policies are as they say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from claims.token_policies import cross_episodic_curriculum as cross
from claims.token_policies import dual_phase, masked_trajectories, procedure_cloning

from evidence.worlds import named_places
from understudy.core import keys
from understudy.data.episode import Dataset, Episode
from understudy.envs.episode_wrappers import NEW_TRIAL, MultiTrialEnv
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import training_data
from understudy.learn.sample_weights import ColumnWeights
from understudy.methods.reasoning.procedure_cloning import GridSearch
from understudy.policy import Policy
from understudy.testing import check_env

# -- procedure cloning -------------------------------------------------------------------------------------------------


def test_the_maze_of_cells_keeps_the_contract_and_the_expert_takes_the_shortest_way():
    check_env(procedure_cloning.GridMaze)
    env = procedure_cloning.GridMaze(50)
    episodes = rollout(env.expert(), env, 100, seed=2)
    assert all(e.metadata["success"] for e in episodes)
    for e in list(episodes)[:10]:
        maps = GridSearch().search(e.steps["observation.grid"][0])
        i, j = e.steps["observation.cell"][0]
        assert len(e) == (maps[:, i, j] == 0).sum()  # the ring of the search that reaches the start


def test_training_mazes_are_few_and_not_those_of_other_seeds_or_of_the_test():
    def mazes(data):
        return {(e.steps["observation.grid"][0] == procedure_cloning.WALL).tobytes() for e in data}
    source = procedure_cloning.MazeDemonstrations(3, 8)
    one, other = mazes(source.load(1)), mazes(source.load(2))
    env = procedure_cloning.GridMaze(20)
    test = mazes(rollout(env.expert(), env, 20, seed=680))
    assert len(one) == len(other) == 3 and len(test) == 20 and not one & other and not (one | other) & test


def test_the_control_searches_another_maze_with_the_same_goal_and_changes_nothing_else():
    data = procedure_cloning.MazeDemonstrations(2, 2).load(1)
    grid = data[0].steps["observation.grid"][0]
    right, misled, again = (search.search(grid)
                            for search in (GridSearch(), *[procedure_cloning.OtherMazeSearch()] * 2))
    assert not np.array_equal(right[-1], misled[-1]) and np.array_equal(misled, again)
    goal = tuple(np.argwhere(grid == procedure_cloning.GOAL)[0])
    assert misled[-1][goal] == 0 and (misled[-1][::2, ::2] > 0).sum() == 24  # every other room is reached
    experiment = procedure_cloning.MAZES
    control = procedure_cloning.CLAIM.negative_control.change(experiment)
    assert control.arms[1:] == experiment.arms[1:]
    one, two = (repr(e.arms[0]) for e in (experiment, control))
    assert two.replace("OtherMazeSearch", "GridSearch") == one


# -- 280 ----------------------------------------------------------------------------------------------------------


def test_the_goal_on_the_cross_is_seen_where_it_is_and_stays_in_all_trials():
    check_env(cross.Cross)
    check_env(lambda rows: MultiTrialEnv(cross.make_trial(rows), 3, redraw=False))
    for knows, rate in ((0.0, 0.25), (0.5, 0.625), (1.0, 1.0)):
        episodes = rollout(cross.CrossWalker(knows), cross.make_trial(50), 600, seed=1)
        assert {len(e) for e in episodes} == {cross.LIMIT}
        assert np.mean([e.metadata["success"] for e in episodes]) == pytest.approx(rate, abs=0.05)
        for e in episodes:
            observations = np.asarray(e.steps[cross.SEEN])
            assert (observations[2:, 2] == e.metadata["success"]).all() and not observations[:2, 2].any()
            assert np.abs(observations[2, :2]).sum() == cross.REACH
    env = MultiTrialEnv(cross.make_trial(50), cross.N_TRIALS, redraw=False)
    trials = rollout(cross.CrossWalker(0.0), env, 50, seed=1)
    for e in trials:
        assert len(e) == cross.N_TRIALS * cross.LIMIT and len(set(e.steps[cross.GOAL][:, 0])) == 1
        successes = e.steps[cross.SEEN][2:-1:cross.LIMIT, 2]
        assert cross.successes(e) == successes.tolist()


def test_a_cleared_memory_starts_again_at_each_trial():
    class Counter(Actor):
        """Its action is how many steps it remembers, and its state the key that it was started with."""

        def start(self, obs, key):
            return {"steps": torch.zeros_like(key), "key": key}

        def act(self, obs, state):
            return state["steps"][:, None] % 4, {**state, "steps": state["steps"] + 1}
    env = MultiTrialEnv(cross.make_trial(3), 2, redraw=False)
    remembers, forgets = (rollout(actor, env, 3, seed=1) for actor in (Counter(), cross.ForgetfulActor(Counter())))
    assert [e.steps["action"][:, 0].tolist() for e in remembers] == [[0, 1, 2, 3, 0, 1]] * 3
    assert [e.steps["action"][:, 0].tolist() for e in forgets] == [[0, 1, 2, 0, 1, 2]] * 3
    actor, key, started = cross.ForgetfulActor(Counter()), keys(0, [0, 1]), []
    state = actor.start({NEW_TRIAL: torch.ones(2, 1)}, key)
    for new in ([1.0, 1.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]):
        _, state = actor.act({NEW_TRIAL: torch.tensor(new)[:, None]}, state)
        started.append(state["inner"]["key"].tolist())
    assert len({row[0] for row in started}) == 3 and started[0] == started[1] and len({row[1] for row in started}) == 1


def test_the_curriculum_joins_walkers_to_the_same_goal():
    data = cross.WalkersOfAllLevels(40).load(1)
    for arm in cross.CROSS.arms:
        for operation in arm.options[0].method.transforms:
            for e in replace(operation, n_episodes=20).apply(data):
                parts = [data[i].metadata for i in e.metadata["joined"]]
                levels = [p["proficiency"] for p in parts]
                assert len({p["goal"] for p in parts}) == 1 and 3 <= len(parts) <= 6
                assert arm.name in ("shuffled", "reversed") or levels == sorted(levels)
                assert arm.name != "reversed" or levels == sorted(levels, reverse=True)


def test_crowded_places_keep_the_contract_of_environments():
    check_env(lambda rows: dual_phase.CrowdedPlaces(rows, limit=12))
    check_env(dual_phase.seen_places)
    episodes = rollout(dual_phase.StraightWalker(noise=0.0), dual_phase.CrowdedPlaces(20), 40, seed=1)
    assert all(e.metadata["success"] for e in episodes)


def test_few_episodes_of_each_place_have_words_and_half_of_the_sampling_rate():
    data = dual_phase.PlayAndDemonstrations(20, per_place=2).load(0)
    has_words = [bool(e.steps[named_places.TASK + "?"][0]) for e in data]
    words = [int(e.steps[named_places.TASK][0, 0]) for e in data]
    assert has_words == [False] * 20 + [True] * 16 and words == [0] * 20 + sorted([*range(8)] * 2)
    assert all(bool(e.steps[dual_phase.LABELED].all()) == word for e, word in zip(data, has_words, strict=True))
    rates = [sum(e.steps[named_places.RATE_COLUMN].sum() for e in some) for some in (data[:20], data[20:])]
    assert rates == pytest.approx([0.5, 0.5], rel=1e-5)


def test_the_first_phase_of_the_control_has_the_same_steps_in_another_order():
    data = dual_phase.PlayAndDemonstrations(20, per_place=2).load(0)
    shuffled = dual_phase.shuffled_in_time(data, 0)
    for before, after in zip(data, shuffled, strict=True):
        views = [np.sort(e.steps[dual_phase.VIEW], 0) for e in (before, after)]
        assert np.array_equal(views[0], views[1]) and np.array_equal(before.steps["action"], after.steps["action"])
    assert sum(np.array_equal(a.steps[dual_phase.VIEW], b.steps[dual_phase.VIEW])
               for a, b in zip(data, shuffled, strict=True)) < 3


def test_the_second_phase_trains_the_trunk_only_where_it_says():
    data = dual_phase.PlayAndDemonstrations(20, per_place=1).load(0)
    for trunk in ("frozen", "train"):
        method = dual_phase.TwoPhaseMethod(3, 3, trunk).method
        first = fit_method(method.stages[0].method, data, 0)
        second = fit_method(method, data, 0, stages={"trunk": first})
        before, after = (dict(result.policy.named_parameters()) for result in (first, second))
        equal = [torch.equal(after[name], value) for name, value in before.items() if "encoder.trunk" in name]
        assert all(equal) if trunk == "frozen" else not any(equal)
        assert any(name.startswith("encoder.prompt") for name in after.keys() - before.keys())


def test_one_phase_learns_to_act_from_episodes_with_words_alone():
    data = dual_phase.PlayAndDemonstrations(20, per_place=1).load(0)
    learner = dual_phase.TwoPhaseMethod(0, 3, "joint").method.learner
    assert isinstance(learner, BehaviorCloning) and isinstance(learner.sample_weights, ColumnWeights)
    assert len(learner.auxiliary_losses) == 3 and learner.sampling_column == named_places.RATE_COLUMN
    fitted = fit_method(dual_phase.TwoPhaseMethod(0, 3, "joint").method, data, 0)
    batch = fitted.policy.windows(data, extra=(dual_phase.LABELED,)).batch(64, 0, 0)
    weights = learner.sample_weights(batch, fitted.policy)
    words = batch.obs[named_places.TASK + "?"][:, -1]
    assert torch.equal(weights, words[:, None].expand(weights.shape).float()) and 0 < words.float().mean() < 1


def test_cut_episodes_end_at_their_goals():
    episode = Episode({"observation.state": np.arange(62.0, dtype=np.float32).reshape(31, 2),
                       "action": np.arange(30.0, dtype=np.float32)[:, None]})
    pieces = masked_trajectories.CutAtGoals(repeats=2).apply(Dataset([episode]))
    assert np.array_equal(np.concatenate([p.steps["action"] for p in pieces]), np.tile(episode.steps["action"], (2, 1)))
    assert len({len(p) for p in pieces}) > 3 and all(1 <= len(p) <= 9 for p in pieces)
    for piece in pieces:
        state, time_left = piece.steps["observation.state"], piece.steps["observation.time_left"]
        assert (piece.steps["observation.goal"] == state[-1]).all()
        assert np.array_equal(time_left[:, 0], np.arange(len(piece), -1, -1))
        assert state[0, 0] == 2 * piece.steps["action"][0, 0]  # the state and the action are of the same step


@pytest.mark.parametrize("n_goals", [1, 3])
def test_goals_of_masked_trajectories_are_reached_in_time_only_if_they_are_given_in_time(monkeypatch, n_goals):
    """In place of the network, straight lines through the states that are given."""
    def interpolate(obs, noise, guides=()):
        state, known_mask = obs["observation.state"].numpy(), obs["observation.state?"].numpy()
        known_steps.append([k.nonzero()[0].tolist() for k in known_mask])
        assert not obs["action?"].any()
        lines = np.stack([[np.interp(np.arange(11), k.nonzero()[0], s[k, i]) for i in (0, 1)]
                          for s, k in zip(state, known_mask, strict=True)])
        return torch.from_numpy(10 * np.diff(lines, axis=2).transpose(0, 2, 1)).float()
    data, method, known_steps = masked_trajectories.strolls(2, 1), masked_trajectories.masked(0.5), []
    policy = Policy(method.policy, training_data(data, method).features())
    monkeypatch.setattr(policy, "plan", interpolate)
    pace = np.array([[0.05, 0.0], [0.02, 0.05]], np.float32)
    path = 0.5 + pace[:, None] * np.arange(10, dtype=np.float32)[:, None]
    steps = np.array([[3, 6, 9], [2, 4, 7]])[:, -n_goals:]
    walked = masked_trajectories.complete_trajectory(policy, path, steps, steps)
    rows = np.arange(2)[:, None]
    assert np.allclose(walked[rows, steps], path[rows, steps], atol=1e-5)
    early = masked_trajectories.complete_trajectory(policy, path, steps, np.ceil(steps / 3).astype(int))
    assert np.allclose(early[rows, [[3]]][:, 0], path[rows, steps[:, -1:]][:, 0], atol=1e-5)  # both are due at step 3
    assert known_steps == [[[0, *s] for s in steps.tolist()], [[0, *[1, 2, 3][-n_goals:]]] * 2]


def test_cloning_is_given_the_next_goal_and_the_steps_until_it(monkeypatch):
    data, method, goals = masked_trajectories.strolls(2, 1), masked_trajectories.cloning(), []

    def go(obs, noise, guides=()):
        goals.append((obs["observation.goal"][:, 0, 0].tolist(), obs["observation.time_left"][:, 0, 0].tolist()))
        now, goal, time_left = (obs[f"observation.{k}"] for k in ("state", "goal", "time_left"))
        return 10 * (goal - now) / time_left
    policy = Policy(method.policy, training_data(data, method).features())
    monkeypatch.setattr(policy, "plan", go)
    path = np.linspace(0.5, 1.4, 10, dtype=np.float32)[None, :, None].repeat(2, 2)
    steps = np.array([[3, 6, 8]])
    walked = masked_trajectories.follow_goals(policy, path, steps, steps)
    assert np.allclose(walked[0, :9], path[0, :9], atol=1e-5)
    assert np.allclose([g for (g,), _ in goals], path[0, [3, 3, 3, 6, 6, 6, 8, 8, 8], 0])
    assert [n for _, (n,) in goals] == [3, 2, 1, 3, 2, 1, 2, 1, 1]
