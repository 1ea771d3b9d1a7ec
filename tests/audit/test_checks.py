"""Single checks of data."""

import numpy as np
import pytest

from understudy.audit import find_problems
from understudy.audit.base import AuditReport
from understudy.audit.purposes import FAULTY, rank_episodes
from understudy.data.episode import Dataset, Episode
from understudy.data.formats.key_map import Doubt
from understudy.data.operations import Merge
from understudy.envs import make
from understudy.evaluate.rollout import rollout


def demonstrations(episodes, name="fork"):
    env = make(name, episodes)
    return rollout(env.expert(), env, episodes, seed=1)


def test_a_doubt_of_a_reader_is_a_warning_in_whatever_words_and_after_a_merge():
    data = demonstrations(5)
    doubtful = Dataset(data.source, {"warnings": [Doubt("two clocks"), "rows are left out"]}, range(3))
    for each, place in ((doubtful, ""), (Merge().apply(doubtful, data[3:]), "data set: ")):
        told = {f.message: f.severity for f in find_problems(each) if f.code == "reader"}
        assert told == {f"{place}two clocks": "warning", f"{place}rows are left out": "note"}


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
    """12 recordings of which some have another column."""
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
