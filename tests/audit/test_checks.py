"""Single checks of data."""

import re
from dataclasses import replace

import numpy as np
import pytest

from understudy.audit import find_problems
from understudy.audit.base import AuditReport
from understudy.audit.file_checks import check_files
from understudy.audit.purposes import FAULTY, rank_episodes
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import write_dataset
from understudy.data.formats.parts.reader_warnings import MisreadingWarning
from understudy.data.operations import Merge
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.improve.preferences import Segment, comparison


def demonstrations(episodes, name="fork"):
    env = make(name, episodes)
    return rollout(env.expert(), env, episodes, seed=1)


def test_a_doubt_of_a_reader_is_a_warning_in_whatever_words_and_after_a_merge():
    data = demonstrations(5)
    doubtful = Dataset(data.source, {"warnings": [MisreadingWarning("two clocks"), "rows are left out"]}, range(3))
    for each, place in ((doubtful, ""), (Merge().apply(doubtful, data[3:]), "data set: ")):
        told = {f.message: f.severity for f in find_problems(each) if f.code == "reader"}
        assert told == {f"{place}two clocks": "warning", f"{place}rows are left out": "note"}


def test_actions_at_their_limits_are_named_as_components():
    actions = np.random.default_rng(0).uniform(-2, 2, (200, 2)).clip(-1, 1)
    found = find_problems(Dataset([Episode({"observation.state": np.zeros((200, 1)), "action": actions})]))
    assert "at a limit of components 0, 1" in next(f.message for f in found if f.code == "saturated")


def test_a_time_limit_that_is_stored_as_an_end_by_the_environment_is_a_warning():
    def episodes(lengths, ended):
        return Dataset([Episode({"observation.state": np.zeros((n + 1, 1), np.float32),
                                    "action": np.zeros((n, 1), np.float32), "next.terminated": np.arange(n) == n - 1,
                                    "next.truncated": np.arange(n) == n - 1}
                                   if ended else {"observation.state": np.zeros((n + 1, 1), np.float32),
                                                  "action": np.zeros((n, 1), np.float32),
                                                  "next.terminated": np.zeros(n, bool)}) for n in lengths])

    def codes(data):
        return [f.code for f in find_problems(data) if f.code == "terminated-at-limit"]

    assert codes(episodes([20] * 3, True)) == ["terminated-at-limit"]
    assert not codes(episodes([20] * 2, True)) and not codes(episodes([20] * 3, False))
    assert not codes(episodes([20, 20, 19], True)) and not codes(episodes([9] * 3, True))


def test_actions_of_minari_that_are_links_are_no_damage_and_are_counted(tmp_path):
    h5py = pytest.importorskip("h5py")
    write_dataset(demonstrations(3), tmp_path / "data", "minari")
    path = tmp_path / "data/data/main_data.hdf5"
    with h5py.File(path, "a") as file:
        for name, episode in file.items():
            episode.move("actions", "infos/actions")
            episode["actions"] = h5py.SoftLink(f"/{name}/infos/actions")
    assert not [f for f in check_files(tmp_path / "data", checksums=False) if f.severity == "error"]
    with h5py.File(path, "a") as file:
        file["episode_1"].attrs["total_steps"] = 3
    found = [f.code for f in check_files(tmp_path / "data", checksums=False)]
    assert "counts-disagree" in found and "damaged-file" not in found


def recording(seed, steps=60):
    """A camera that sees something move."""
    rng = np.random.default_rng(seed)
    state = np.sin(0.3 * np.arange(steps)[:, None] + rng.uniform(0, 6, 2)).astype(np.float32)
    frames = rng.integers(40, 60, (steps, 8, 8, 3), dtype=np.uint8)
    frames[np.arange(steps), rng.integers(0, 8, steps)] += 100
    time = np.arange(steps, dtype=np.float32) / 10
    return Episode({"observation.state": state, "observation.images.front": frames, "timestamp": time,
                    "action": np.diff(state, axis=0, append=state[-1:])}, rows=steps)


def changed(episodes, column, change):
    """12 recordings. Some have another column."""
    each = [recording(i) for i in range(12)]
    return Dataset([e.replace({column: change(np.array(e.steps[column]))}) if i in episodes else e
                    for i, e in enumerate(each)], {"fps": 10})


def found(data, code):
    return [f for f in find_problems(data, frames=True) if f.code == code]


def hang(frames):
    return np.concatenate([frames[:10], frames[9:10].repeat(14, 0), frames[24:]])


@pytest.mark.parametrize(("code", "column", "change"), [
    ("image-black", "observation.images.front", lambda x: x * 0),
    ("image-frozen", "observation.images.front", hang),
    ("timestamp-gap", "timestamp", lambda t: t + (np.arange(len(t)) > 30) * np.float32(2)),
    ("timestamps-backwards", "timestamp", lambda t: t - (np.arange(len(t)) == 30) * np.float32(2))])
def test_a_defect_of_several_episodes_names_all_of_them(code, column, change):
    """The command that leaves faulty episodes out named only the first."""
    finding, = found(changed((2, 5, 7), column, change), code)
    assert sorted(finding.episodes) == [2, 5, 7] and finding.where.episode in (2, 5, 7)
    ranking, = (r for r in rank_episodes(AuditReport((finding,), n_episodes=12), "DATA") if r.name == FAULTY)
    assert ranking.command.endswith("--delete 2 5 7")


def test_a_camera_whose_picture_never_changes_is_a_warning():
    still = changed(range(12), "observation.images.front", lambda x: x[:1].repeat(len(x), 0))
    finding, = found(still, "image-frozen")
    assert finding.severity == "warning" and finding.where.episode is None  # no single episode is faulty
    often, = found(changed(range(12), "observation.images.front", hang), "image-frozen")
    assert often.severity == "note" and not found(changed((), "timestamp", None), "image-frozen")


def test_actions_that_are_all_nan_are_not_large():
    data = changed(range(12), "action", lambda a: a * np.nan)
    assert found(data, "not-finite") and not found(data, "range")


def test_times_that_float32_rounds_to_one_are_told_why():
    finding, = found(changed(range(12), "timestamp", lambda t: t + np.float32(1.7e9)), "timestamps-backwards")
    assert "most timestamps are equal" in finding.message and "float32 does not hold" in finding.remedy


def arm(seed, change=lambda s, a: (s, a)):
    """A joint from -90 to 90 and a gripper from 0 to 100, which go half of the way to their targets in a step."""
    rng = np.random.default_rng(seed)
    action = [0, 50] + [60, 30] * np.sin(0.2 * np.arange(80)[:, None] * rng.uniform(0.5, 1.5, 2) + rng.uniform(0, 6, 2))
    state = np.empty((81, 2))
    state[0] = action[0]
    for t in range(80):
        state[t + 1] = state[t] + 0.5 * (action[t] - state[t]) + 0.1 * rng.normal(size=2)
    state, action = change(state, action)
    return Episode({"observation.state": state.astype(np.float32), "action": action.astype(np.float32)}, rows=80)


@pytest.mark.parametrize(("change", "name", "factor"), [
    (lambda s, a: (s, a * [np.pi / 180, 1]), "action[0]", np.pi / 180),
    (lambda s, a: (s * [np.pi / 180, 1], a), "action[0]", 180 / np.pi),
    (lambda s, a: (s, a * [1, 0.01]), "action[1]", 0.01)])
@pytest.mark.parametrize("episodes", [(4,), (1, 4, 6, 7)])
def test_one_component_in_another_unit(episodes, change, name, factor):
    """A smaller one was not found: a joint may just rest. Its motion says that it does not."""
    data = Dataset([arm(i, change) if i in episodes else arm(i) for i in range(20)], {"fps": 10})
    finding, = (f for f in find_problems(data) if f.code == "scale")
    found_name, found_factor = re.search(r"in which (.*) has (.*) times", finding.message).groups()
    assert (finding.episodes, found_name) == (episodes, name) and float(found_factor) == pytest.approx(factor, rel=0.15)


def test_other_units_of_all_components_are_found_once_and_none_where_there_is_none():
    data = Dataset([arm(i, lambda s, a: (s, a / 57.3)) if i == 4 else arm(i) for i in range(20)], {"fps": 10})
    assert [f.episodes for f in find_problems(data) if f.code == "scale"] == [(4,)]

    def rests(*columns):
        return [column * [1, 0.01] + [0, 49.5] for column in columns]
    data = Dataset([arm(i, rests) if i == 4 else arm(i) for i in range(20)], {"fps": 10})
    assert not [f for f in find_problems(data) if f.code == "scale"]


def test_equal_actions_in_other_pictures_are_no_duplicate():
    episodes = [recording(i, 6).replace({"observation.state": None, "action": np.array([0, 1, 1, 0, 2, 0])})
                for i in range(4)]
    assert not found(Dataset(episodes, {"fps": 10}), "duplicate-episode")
    finding, = found(Dataset([*episodes, episodes[1]], {"fps": 10}), "duplicate-episode")
    assert finding.episodes == (4,)


def test_a_label_of_1_and_a_column_without_success_disagree():
    """1 and 0 count as flags, and were not compared."""
    for label, disagrees in ((1, True), (0, False), (True, True)):
        episode = recording(0).replace({"next.success": np.zeros(60, bool)})
        data = Dataset([replace(episode, metadata={"success": label})] * 2, {"fps": 10})
        assert bool(found(data, "success-disagrees")) == disagrees


def test_the_next_segment_of_a_comparison_is_no_jump():
    """Both segments of a comparison stand end to end. One pair is of places far apart."""
    rng = np.random.default_rng(0)

    def walk(start: float) -> Episode:
        action = rng.normal(size=(40, 2)).astype(np.float32)
        state = start + 0.1 * np.cumsum(np.concatenate([np.zeros((1, 2)), action[:-1]]), 0)
        return Episode({"observation.state": state.astype(np.float32), "action": action})
    walks = Dataset([walk(0.0) for _ in range(7)] + [walk(300.0)], {"fps": 10})
    pairs = [(Segment(i % 7, i % 30), Segment((i + 1) % 7, i % 30)) for i in range(60)]
    pairs.append((Segment(0, 3), Segment(7, 3)))
    compared = [comparison(walks, pair, 8, "first") for pair in pairs]
    assert "jump" not in {f.code for f in find_problems(Dataset(compared, walks.metadata))}
    state = np.array(compared[5].steps["observation.state"])
    state[3:8] += 20.0  # within the first segment
    compared[5] = compared[5].replace({"observation.state": state})
    assert "jump" in {f.code for f in find_problems(Dataset(compared[:-1], walks.metadata))}
