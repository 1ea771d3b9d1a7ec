"""Which frame of a video belongs to which row: times are rounded, drift or have an offset, or frames are missing."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from fixtures.foreign_lerobot import FPS, FRONT, brightness, check_episode, times_of, write_v3, write_v21
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy.audit import audit, check_usable, training_warnings
from understudy.cli import main
from understudy.core import DataError, UserError
from understudy.data.formats import open_dataset
from understudy.data.formats.lerobot_videos import match_frames

LENGTHS = [9, 12, 7]
TIMES = times_of(LENGTHS)
STARTS = np.cumsum([0, *LENGTHS])[:-1] / FPS
CUT = np.split(np.arange(sum(LENGTHS)), np.cumsum(LENGTHS)[:-1])
B_FRAMES = {"g": "9", "bf": "3", "crf": "10"}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("times, begins, options", [
    (TIMES, STARTS, {"tick": Fraction(1, 1000)}),
    (TIMES, STARTS, {"tick": Fraction(1, 50)}),  # multiples of 20 ms
    (TIMES + 0.5, STARTS, {}),
    (TIMES + 0.05, STARTS, {}),  # half a step
    (TIMES, STARTS + 0.5, {}),
    (TIMES, STARTS + 0.06 * np.arange(3), {}),
    (TIMES, STARTS - 0.05 * np.arange(3), {}),
    (TIMES * 1.03, STARTS, {}),  # a camera that is 3% slower: almost one frame at the end
    (TIMES + 0.5, STARTS, {"options": B_FRAMES}),
    (TIMES, STARTS, {"options": B_FRAMES}),
])
def test_frames_are_those_of_their_rows_whatever_their_times(times, begins, options, tmp_path):
    data = open_dataset(write_v3(tmp_path / "d", LENGTHS, video_times=times, begins=begins, **options))
    for e, n in enumerate(LENGTHS):
        check_episode(data[e], e, n)


@pytest.mark.parametrize("times, begins, warning", [
    (TIMES, STARTS, None), (np.round(TIMES * 1.001, 3), STARTS, None), (TIMES + 0.5, STARTS, "5 frames later"),
    (TIMES * 1.03, STARTS, "0.81 frames later"), (TIMES, STARTS + 0.05 * np.arange(3), "1 frames earlier"),
])
def test_an_offset_is_a_warning(times, begins, warning, tmp_path):
    write_v3(tmp_path / "d", LENGTHS, video_times=times, begins=begins)
    findings = [f for f in audit(tmp_path / "d").findings if f.code.startswith("frame")]
    assert [f.severity for f in findings] == ["warning"] * (warning is not None)
    assert all(warning in f.message for f in findings)
    texts = training_warnings(open_dataset(tmp_path / "d"))
    assert len([text for text in texts if "frames are up to" in text]) == len(findings)


@pytest.mark.parametrize("begins", [STARTS - 0.1 * np.arange(3), STARTS + 0.1 * np.arange(3)])
def test_episodes_that_begin_whole_frames_off_are_refused(begins, tmp_path):
    """The first clip is too short and the last too long, or the times in the tables are wrong: nothing tells which."""
    data = open_dataset(write_v3(tmp_path / "d", LENGTHS, video_times=TIMES, begins=begins))
    for episode in data:
        with pytest.raises(UserError, match="not certain to which rows"):
            episode.steps[FRONT]
    with pytest.raises(DataError, match="frame-times"):
        check_usable(data)


def test_clips_that_are_shorter_than_their_rows_do_not_shift_the_next(tmp_path):
    """As lerobot joins them: each episode begins where the video of the one before ends."""
    clips = [brightness(e, n)[:-1] for e, n in enumerate(LENGTHS)]
    begins = np.cumsum([0, *(len(c) for c in clips[:-1])]) / FPS
    grays = np.concatenate(clips)
    data = open_dataset(write_v3(tmp_path / "d", LENGTHS, video_times=np.arange(len(grays)) / FPS, grays=grays,
                                 begins=begins))
    for e, n in enumerate(LENGTHS):
        frames = {int(r): image.mean() for rows, image in _until_error(data.frames(FRONT, e)) for r in rows}
        assert sorted(frames) == list(range(n - 1))
        np.testing.assert_allclose([frames[r] for r in range(n - 1)], clips[e], atol=2)


def test_frames_of_other_rows_are_never_read(tmp_path):
    """With an offset and a frame too many or too few, it is not certain which frame belongs to which row."""
    grays = np.concatenate([brightness(e, n) for e, n in enumerate(LENGTHS)])
    for n in (1, -1):
        path = tmp_path / f"d{n}"
        cut = np.append(grays, 0) if n > 0 else grays[:n]
        write_v3(path, LENGTHS, video_times=np.arange(len(cut)) / FPS + 0.2, grays=cut)
        for episode in open_dataset(path):
            with pytest.raises(UserError, match="not certain to which rows"):
                episode.steps[FRONT]


def test_a_dropped_frame_costs_its_row_and_shifts_none(tmp_path):
    """One frame is missing in the second episode, one is left over at the end: as many frames as rows."""
    grays = np.concatenate([brightness(e, n) for e, n in enumerate(LENGTHS)])
    kept = np.delete(np.arange(29), 15)
    write_v3(tmp_path / "d", LENGTHS, video_times=kept / FPS, grays=np.append(grays, 0)[kept])
    data = open_dataset(tmp_path / "d")
    for e in (0, 2):
        check_episode(data[e], e, LENGTHS[e])
    with pytest.raises(UserError, match="episode 1, frame 6: there is no frame at 1.5000 s"):
        data[1].steps[FRONT]
    for rows, image in _until_error(data.frames(FRONT, 1)):
        assert abs(image.mean() - brightness(1, 12)[rows]).max() < 2


def _until_error(frames):
    with pytest.raises(UserError):
        yield from frames


@pytest.mark.parametrize("lost", [1, 3])
def test_episodes_that_are_no_longer_in_the_tables_leave_the_times_of_the_others(lost, tmp_path):
    """As many frames more than rows: their times say which belong to the rows."""
    grays = np.concatenate([brightness(e + lost, n) for e, n in enumerate(LENGTHS)])
    shown = np.concatenate([np.full(10 * lost, 250), grays])
    times = np.arange(len(shown)) / FPS
    write_v3(tmp_path / "d", LENGTHS, video_times=times, grays=shown, begins=STARTS + lost)
    for e, episode in enumerate(open_dataset(tmp_path / "d")):
        expected = brightness(e + lost, LENGTHS[e])
        np.testing.assert_allclose(np.asarray(episode.steps[FRONT], float).mean((1, 2, 3)), expected, atol=2)


def test_repair_keeps_what_has_its_frames(tmp_path, capsys):
    write_v3(tmp_path / "d", LENGTHS, video_times=TIMES + 0.5)
    assert main(["repair", str(tmp_path / "d"), "--out", str(tmp_path / "out")]) == 0
    assert "3 episodes, 28 steps can be read: nothing is lost" in capsys.readouterr().out
    for e, episode in enumerate(open_dataset(tmp_path / "out")):
        check_episode(episode, e, LENGTHS[e])


def test_v21_with_one_file_for_each_episode(tmp_path):
    for e, episode in enumerate(open_dataset(write_v21(tmp_path / "d", LENGTHS, LENGTHS))):
        check_episode(episode, e, LENGTHS[e])


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_row_has_its_frame_or_none(data):
    """Any jitter below a sixth of a step, any offset, and any lost frames."""
    lengths = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    total = sum(lengths)
    lost = data.draw(st.sets(st.integers(0, total - 1), max_size=3))
    offset = 0.0 if lost else data.draw(st.floats(-3, 3))
    jitter = np.array(data.draw(st.lists(st.floats(-0.16, 0.16), min_size=total, max_size=total))) / FPS
    times = np.arange(total) / FPS + jitter + offset
    rows = np.split(np.arange(total) / FPS, np.cumsum(lengths)[:-1])
    kept = np.array(sorted(set(range(total)) - lost), int)
    matched = np.concatenate([m.times for m in match_frames(times[kept], rows, FPS)])
    has_frame = np.isfinite(matched)
    np.testing.assert_array_equal(matched[has_frame], times[has_frame])
    assert not has_frame[sorted(lost)].any()
    if 0 not in lost:
        assert has_frame[kept].all()
