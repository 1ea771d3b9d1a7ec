"""Trials of Overcooked: both players' views of a table that is written here, and real ones."""

import csv
import json

import numpy as np
import pytest

from understudy.core import UserError
from understudy.data.formats import open_dataset

LAYOUT = [["X", "P", "X"], ["O", " ", "S"], ["X", "D", "X"]]


def row(t, **changes):
    state = {"players": [{"position": [1, 1], "orientation": [0, -1], "held_object": None},
                         {"position": [1, 1], "orientation": [1, 0],
                          "held_object": {"name": "dish", "position": [1, 1]}}],
             "objects": [{"name": "soup", "position": [1, 0], "_cooking_tick": t,
                          "_ingredients": [{"name": "onion"}, {"name": "tomato"}, {"name": "onion"}]},
                         {"name": "onion", "position": [2, 2]}]}
    return {"state": json.dumps(state), "joint_action": json.dumps([[-1, 0], "interact"]), "reward": 20 * t,
            "time_elapsed": 3 + t / 2, "cur_gameloop": 1 + t, "layout": json.dumps(LAYOUT), "layout_name": "small",
            "trial_id": "a", "player_0_is_human": True, "player_1_is_human": True, **changes}


def written(path, rows):
    with open(path, "w", newline="") as handle:
        table = csv.DictWriter(handle, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
    return path


def test_a_trial_is_an_episode_for_each_person_in_it(tmp_path):
    data = open_dataset(written(tmp_path / "trials.csv", [row(0), row(1)]))
    assert [len(e) for e in data] == [2, 2] and [e.metadata["player"] for e in data] == [0, 1]
    own_view, other = ([1, 1, 0, -1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 1, 0])
    for episode, state, action in zip(data, (own_view + other, other + own_view), (3, 5), strict=True):
        steps = episode.steps
        np.testing.assert_array_equal(steps["observation.state"], [state] * 2)
        np.testing.assert_array_equal(steps["action"], [[action]] * 2)
        np.testing.assert_array_equal(steps["next.reward"], [0, 20])
        np.testing.assert_array_equal(steps["timestamp"], [0, 0.5])
        np.testing.assert_array_equal(steps["next.truncated"], [False, True])
        layout, objects = steps["observation.layout"], steps["observation.objects"]
        assert layout.shape == (2, 3, 3, 6) and "".join("XPOTDS"[i] for i in layout[0, 1][[0, 2]].argmax(-1)) == "OS"
        assert not layout[0, 1, 1].any() and (layout[0] == layout[1]).all()
        np.testing.assert_array_equal(objects[:, 0, 1], [[0, 0, 0, 2, 1, 0, 1], [0, 0, 0, 2, 1, 1, 1]])
        np.testing.assert_array_equal(objects[1, 2, 2], [1, 0, 0, 0, 0, 0, 0])
        assert objects.sum() == 2 * (2 + 1 + 1 + 1) + 1


def test_only_people_demonstrate_and_smaller_kitchens_are_padded(tmp_path):
    wide = json.dumps([line + ["X"] for line in LAYOUT])
    data = open_dataset(written(tmp_path / "trials.csv", [
        row(0, player_1_is_human=False), row(0, trial_id="b", layout=wide, layout_name="wide")]))
    assert [(e.metadata["trial"], e.metadata["player"], e.metadata["layout_name"]) for e in data] == [
        ("a", 0, "small"), ("b", 0, "wide"), ("b", 1, "wide")]
    layouts = [e.steps["observation.layout"][0] for e in data]
    assert layouts[0].shape == (3, 4, 6) and not layouts[0][:, 3].any() and layouts[1][:, 3, 0].all()


@pytest.mark.parametrize("rows, said", [
    ([row(0), row(2)], "row 1, cur_gameloop: step 3 of the game follows step 1"),
    ([row(0, joint_action='[[9, 9], "interact"]')], "row 0, joint_action: [[9, 9], 'interact'] is not two actions"),
    ([row(0, state="{")], "row 0, state: this is not JSON"),
    ([row(0, state='{"players": []}')], "row 0, state: there are 0 players instead of two"),
    ([row(0, layout="")], "the layout 'small' is not known"),
    ([row(0, layout='["XX", "X"]')], "layout: the rows of the grid differ in length"),
    ([row(0, reward="much")], "row 0, reward: this is not a number: 'much'"),
    ([row(0, layout='["X"]')], "row 0, state, objects: the position 1, 0 is outside the kitchen of 1 by 1"),
])
def test_what_is_wrong_is_said_with_its_row(tmp_path, rows, said):
    with pytest.raises(UserError) as error:
        open_dataset(written(tmp_path / "trials.csv", rows))
    assert said in str(error.value) and "trials.csv" in str(error.value)


def test_trials_of_2020(shared):
    data = open_dataset(shared / "fixtures/overcooked")
    with open(shared / "fixtures/overcooked/dummy_2020_two_trials.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [len(e) for e in data] == [60] * 4 and data.metadata["format"] == "overcooked"
    names = {"[0, -1]": 0, "[0, 1]": 1, "[1, 0]": 2, "[-1, 0]": 3, "[0, 0]": 4, '"interact"': 5}
    for n, trial in enumerate(("trial_0", "trial_3")):
        of = [r for r in rows if r["trial_id"] == trial]
        for player in (0, 1):
            steps = data[2 * n + player].steps
            action_indices = [names[json.dumps(json.loads(r["joint_action"])[player])] for r in of]
            np.testing.assert_array_equal(steps["action"][:, 0], action_indices)
            at = [json.loads(r["state"])["players"][player]["position"] for r in of]
            np.testing.assert_array_equal(steps["observation.state"][:, :2], at)


@pytest.mark.slow
def test_trials_of_2019_have_the_returns_that_are_known_of_them(shared):
    """89 in training, 91 in the test set (SOURCE.md), of 39 and 37 trials."""
    for name, trials, mean_return in (("train", 39, 89), ("test", 37, 91)):
        data = open_dataset(shared / f"data/overcooked/human_human_2019_{name}.parquet")
        assert len(data) == 2 * trials
        assert round(np.mean([e.steps["next.reward"].sum() for e in data])) == mean_return
