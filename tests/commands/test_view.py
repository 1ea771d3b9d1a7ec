"""The command understudy view: conditions, and what its errors name."""

from dataclasses import replace

import numpy as np
import pytest
from fixtures.cli import refused

from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.envs import make
from understudy.evaluate.rollout import rollout


@pytest.fixture
def mixed(place, tmp_path):
    """Twelve demonstrations, four of them failures."""
    data = open_dataset(place / "demos")
    labeled = Dataset([replace(e, metadata={**e.metadata, "success": i % 3 > 0}) for i, e in enumerate(data)])
    write_dataset(labeled, tmp_path / "mixed.npz")
    return tmp_path / "mixed.npz"


@pytest.mark.parametrize("word", ["true", "True", "TRUE"])
def test_true_is_understood_in_any_case(call, mixed, tmp_path, word):
    assert call("view", "make", mixed, "--out", tmp_path / "v.json", "--filter", f"success={word}")[0] == 0
    assert len(open_dataset(tmp_path / "v.json")) == 8
    assert call("view", "make", mixed, "--out", tmp_path / "w.json", "--label", f"checked={word}")[0] == 0
    assert {e.metadata["checked"] for e in open_dataset(tmp_path / "w.json")} == {True}


def test_a_condition_that_no_episode_satisfies_says_what_the_values_are(call, mixed, tmp_path):
    refused(call("view", "make", mixed, "--out", tmp_path / "v.json", "--filter", "success=yes"),
            "--filter: no episode satisfies 'success=yes'\n  -> values of success: false, true\n")
    refused(call("view", "make", mixed, "--out", tmp_path / "v.json", "--delete", *range(12)),
            f"understudy: {mixed}: the view has no episodes\n")
    assert not (tmp_path / "v.json").exists()


def test_what_a_subcommand_needs(call, mixed, tmp_path):
    refused(call("view", "make", mixed), "understudy view make: make needs --out FILE\n")
    refused(call("view", "show", mixed, "--out", tmp_path / "v.json"), "show writes nothing, so it takes no --out\n")
    refused(call("view", "make", "--out", tmp_path / "v.json"), "make needs a path\n")


@pytest.mark.parametrize("words, says", [
    (["materialize", "--out", "d", "--filter", "success=true"], "--filter: has no effect with materialize"),
    (["show", "--crop", "1:2"], "--crop: has no effect with show"),
    (["list", "--delete", 1], "--delete: has no effect"),
    (["make", "--out", "w.json", "--strict"], "--strict: has no effect with make"),
    (["make", "--out", "w.json", "--descending"], "--descending: has no effect without --sort"),
    (["make", "--out", "w.json", "--rule", "linear"], "--rule: has no effect without --fps"),
    (["make", "--out", "w.json", "--seed", 1], "--seed: has no effect without --sample")])
def test_operations_that_would_not_be_done_are_refused(words, says, call, mixed, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert call("view", "make", mixed, "--out", "v.json", "--sample", 3, "--seed", 1)[0] == 0
    refused(call("view", words[0], "v.json", *words[1:]), says)
    assert not {"d", "w.json"} & {path.name for path in tmp_path.iterdir()}


def test_a_value_is_compared_with_numbers_and_with_text(call, mixed, tmp_path):
    """Some episodes have the number 1, others the text "1": no episode of theirs is kept or left out alone."""
    marked = Dataset([replace(e, metadata={"who": [1, "1", "b"][i % 3]}) for i, e in enumerate(open_dataset(mixed))])
    write_dataset(marked, tmp_path / "marked.npz")
    for condition, n in (("who=1", 8), ("who!=1", 4), ("who=1,b", 12)):
        path = tmp_path / f"{n}.json"
        assert call("view", "make", tmp_path / "marked.npz", "--out", path, "--filter", condition)[0] == 0
        assert len(open_dataset(path)) == n


def test_a_text_with_commas_is_one_value_if_an_episode_has_it(call, mixed, tmp_path):
    words = ["lift it", "lift it, then pour", "stop"]
    told = Dataset([replace(e, metadata={"task": words[i % 3]}) for i, e in enumerate(open_dataset(mixed))])
    write_dataset(told, tmp_path / "told.npz")
    for n, (value, kept) in enumerate((("lift it, then pour", words[1:2]), ("lift it,stop", words[::2]))):
        path = tmp_path / f"{n}.json"
        assert call("view", "make", tmp_path / "told.npz", "--out", path, "--filter", f"task={value}")[0] == 0
        assert {e.metadata["task"] for e in open_dataset(path)} == set(kept)


def test_a_value_that_no_episode_has_leaves_none_out_and_says_so(call, mixed, tmp_path):
    code, out, err = call("view", "make", mixed, "--out", tmp_path / "v.json", "--filter", "success!=yes", "--json")
    assert code == 0 and err == "warning: success is yes in no episode, so none is left out\n"


def test_times_that_contradict_the_rate_are_warned_of(call, mixed, tmp_path):
    """Times in minutes: nothing but the rate of the data tells that they are not seconds."""
    def timed(e):
        return e.replace({"timestamp": np.arange(len(e)) / 600})
    write_dataset(Dataset(list(map(timed, open_dataset(mixed))), {"fps": 10.0}), tmp_path / "minutes.npz")
    code, out, err = call("view", "make", tmp_path / "minutes.npz", "--out", tmp_path / "v.json", "--fps", 5)
    assert code == 0 and "warning: timestamps are 0.001667 s apart (600 a second), fps says 10 (" in err


@pytest.fixture
def arm(tmp_path):
    """Three episodes of 6, 7 and 8 steps of an arm with named joints, whose values say joint and step."""
    f = Feature("float64", (3,), names=("pan", "lift", "grip"))
    episodes = []
    for n in (6, 7, 8):
        values = np.arange(n)[:, None] + np.array([100.0, 200, 300])
        episodes.append(Episode({"observation.state": values, "action": values}, {}, n,
                                {"observation.state": f, "action": f}))
    write_dataset(Dataset(episodes, {"fps": 10.0}), tmp_path / "arm")
    return tmp_path / "arm"


T = np.arange(6.0)


@pytest.mark.parametrize("words, rows", [
    (["--shift", "action=-2"], T[2:, None] + [100, 200, 300]), (["--shift", "action=2"], T[:4, None] + [100, 200, 300]),
    (["--scale", "action=deg2rad"], np.deg2rad(T[:, None] + [100, 200, 300])),
    (["--scale", "action[grip,0]=0.5"], (T[:, None] + [100, 200, 300]) * [0.5, 1, 0.5]),
    (["--sign", "action[1]"], (T[:, None] + [100, 200, 300]) * [1, -1, 1]),
    (["--sign", "action"], -(T[:, None] + [100, 200, 300])),
    (["--swap", "action[pan, grip]"], T[:, None] + [300, 200, 100]),
    (["--reorder", "action=grip,0,lift"], T[:, None] + [300, 100, 200]),
    (["--cut", "every=4"], T[:4, None] + [100, 200, 300]),
    (["--cut", "0=2", "--cut", "2=1,3"], T[:2, None] + [100, 200, 300]),
    # in this order, whatever the order of the options
    (["--reorder", "action=2,1,0", "--scale", "action[grip]=2", "--cut", "at=3", "--shift", "action=-1"],
     T[1:3, None] * [2, 1, 1] + [600, 200, 100])])
def test_each_correction_has_an_option(words, rows, call, arm, tmp_path):
    assert call("view", "make", arm, "--out", tmp_path / "v.json", *words)[0] == 0
    data = open_dataset(tmp_path / "v.json")
    assert np.allclose(data[0].steps["action"], rows)
    names = {"action=grip,0,lift": ("grip", "pan", "lift"), "action=2,1,0": ("grip", "lift", "pan")}
    assert data.features()["action"].names == names.get(words[1], ("pan", "lift", "grip"))
    first = 2 if words[1] == "action=2" else 0
    assert np.allclose(data[0].steps["observation.state"][0], np.array([100, 200, 300]) + first)


@pytest.mark.parametrize("words, says", [
    (["--shift", "action=late"], "--shift: 'late' is not a whole number of steps\n  -> such as action=-3"),
    (["--shift", "action"], "--shift: 'action' is not two names with = between them"),
    (["--shift", "action=-6"], "{arm}: shift, action, episode 0: leaves nothing of its 6 steps"),
    (["--scale", "action=often"], "{arm}: scale, action: there is no conversion 'often'"),
    (["--scale", "action[wrist]=2"], "{arm}: scale, action: there is no component 'wrist'; there are pan, lift, grip"),
    (["--sign", "act"], "{arm}: scale: there is no column 'act'"),
    (["--swap", "action[pan]"], "--swap: 'action[pan]' does not name two components"),
    (["--reorder", "action=pan,lift"], "{arm}: reorder, action: 2 components are named, and the column has 3"),
    (["--cut", "every=two"], "--cut: 'every=two' does not say where to cut"),
    (["--cut", "every=2,3"], "does not say where to cut"),
    (["--cut", "every=2", "--cut", "at=3"], "every= is given with other"),
    (["--cut", "1=7"], "{arm}: cut, episode 1: there is no row 7 to cut at; the episode has 7 steps"),
    (["--cut", "at=8"], "{arm}: cut: no episode is cut: they have at most 8 steps")])
def test_corrections_that_do_not_fit_name_file_column_and_place(words, says, call, arm, tmp_path):
    refused(call("view", "make", arm, "--out", tmp_path / "v.json", *words), says.format(arm=arm))
    assert not (tmp_path / "v.json").exists()


@pytest.mark.parametrize("words, lengths", [
    (["--crop", "1=2:-1"], (6, 4, 8)), (["--crop", "0,2=:3"], (3, 7, 3)),
    (["--crop", "1=2:", "--crop", ":4", "--crop", "1=1:"], (4, 3, 4)),
    (["--delete", 0, "--crop", "0=3:"], (4, 8))])  # numbers are those after the deletion
def test_one_episode_is_cropped(words, lengths, call, arm, tmp_path):
    assert call("view", "make", arm, "--out", tmp_path / "v.json", *words)[0] == 0
    data = open_dataset(tmp_path / "v.json")
    assert tuple(len(e) for e in data) == lengths
    starts = [e.steps["action"][0, 0] - 100 for e in data]
    assert starts == {(6, 4, 8): [0, 2, 0], (3, 7, 3): [0, 0, 0], (4, 3, 4): [0, 3, 0], (4, 8): [3, 0]}[lengths]


@pytest.mark.parametrize("words, values", [
    (["1:good=false"], [None, False, None]), (["0,2:good=ok"], ["ok", None, "ok"]),
    (["good=true", "--label", "1:good=false"], [True, False, True]),
    (["1:good=false", "--label", "1,2:good=true"], [None, True, True]), (["1:good=1:2"], [None, "1:2", None]),
    (["good=1:2", "--label", "1:good=3"], ["1:2", 3, "1:2"])])
def test_one_episode_is_labeled(words, values, call, arm, tmp_path):
    assert call("view", "make", arm, "--out", tmp_path / "v.json", "--label", *words)[0] == 0
    assert [e.metadata.get("good") for e in open_dataset(tmp_path / "v.json")] == values


def test_a_field_may_have_a_colon(call, arm, tmp_path):
    words = ["--label", "lab:arm=2", "--label", "1:lab:arm=3"]
    assert call("view", "make", arm, "--out", tmp_path / "v.json", *words)[0] == 0
    assert [e.metadata["lab:arm"] for e in open_dataset(tmp_path / "v.json")] == [2, 3, 2]


def test_show_names_the_episodes_of_an_operation(call, arm, tmp_path):
    words = ["--crop", "2=1:-2", "--label", "2:success=false"]
    assert call("view", "make", arm, "--out", tmp_path / "v.json", *words)[0] == 0
    shown = call("view", "show", tmp_path / "v.json")[1]
    assert "1. crop(start=1, stop=-2, episodes=[2])\n" in shown
    assert '2. label(field="success", value=false, episodes=[2])\n' in shown


NO_RANGE = "is not of the form A:B\n  -> such as --crop 5:-5, --crop=:-5 or, of episode 3 alone, --crop 3=5:-2"
NO_NUMBERS = "has no episode numbers before the colon\n  -> such as --label 3:success=false"


@pytest.mark.parametrize("option, text, says", [
    ("--crop", "3=5:", "{arm}: crop, episodes: there is no episode 3; there are 0 to 2\n  -> they are counted from 0"),
    ("--crop", "1=7:", "{arm}: crop, episode 1: leaves nothing of its 7 steps\n  -> crop less"),
    ("--crop", "1=2", "--crop: '1=2' " + NO_RANGE), ("--crop", "1=", "--crop: '1=' " + NO_RANGE),
    ("--crop", "-1=2:", "--crop: '-1=2:' " + NO_RANGE), ("--crop", "a=2:", "--crop: 'a=2:' " + NO_RANGE),
    ("--label", "3:good=1", "{arm}: label, episodes: there is no episode 3; there are 0 to 2\n  -> they are counted"),
    ("--label", "-1:good=1", "--label: '-1:good=1' " + NO_NUMBERS), ("--label", "0-2:a=1", "'0-2:a=1' " + NO_NUMBERS),
    ("--label", "1:2:good=1", "--label: '1:2:good=1' " + NO_NUMBERS), ("--label", ":good=1", NO_NUMBERS),
    ("--label", "1:good", "--label: 'good' is not two names with = between them"),
    ("--label", "1:success=no", "{arm}: label: 'success' = 'no' cannot be set")])
def test_operations_on_one_episode_that_do_not_fit_are_refused(option, text, says, call, arm, tmp_path):
    refused(call("view", "make", arm, "--out", tmp_path / "v.json", f"{option}={text}"), says.format(arm=arm))
    assert not (tmp_path / "v.json").exists()


def test_episodes_of_an_arm_become_those_of_a_shorter_one(call, tmp_path):
    env = make("planar_arms:reach-human", rows=20)
    write_dataset(rollout(env.expert(), env, 20, 3), tmp_path / "human.npz")
    words = "view", "make", tmp_path / "human.npz", "--out"
    arm = "--retarget", "0.3,0.25,0.15", "--turn", "0.15"
    code, _, warning = call(*words, tmp_path / "v.json", *arm)
    robot = open_dataset(tmp_path / "v.json")
    assert code == 0 and 0 < len(robot) < 20
    assert f"which reaches 0.7 m. {20 - len(robot)} of 20 episodes are left out; most in episode " in warning
    tips = np.concatenate([e.steps["observation.state"][:, 3:] for e in robot])
    assert np.linalg.norm(tips, axis=1).max() <= 0.7 + 2e-3
    _, _, warning = call(*words, tmp_path / "w.json", *arm, "--reach", "clip")
    assert len(open_dataset(tmp_path / "w.json")) == 20 and "end at the nearest point in reach there" in warning
    refused(call(*words, tmp_path / "x.json", "--retarget", "long"), "--retarget: 'long' does not give the lengths")
    refused(call(*words, tmp_path / "x.json", "--reach", "clip"), "--reach: has no effect without --retarget")
