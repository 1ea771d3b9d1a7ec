"""LeRobot data sets whose tables or videos contradict the rows: what is whole is kept."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from fixtures.foreign_lerobot import FPS, FRONT, brightness, check_episode, times_of, write_v3, write_v21

from understudy.audit import audit
from understudy.cli import main
from understudy.data import video
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, open_dataset
from understudy.data.recording.recovery import recover

LENGTHS = [9, 12, 7, 9]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def check_recovered(path, lengths, n_problems=0):
    """Repairs a data set, and checks that each episode has its first rows."""
    with recover(path) as recovered:
        assert [len(e) for e in recovered.data] == list(lengths) and len(recovered.problems) == n_problems
        for number, episode in enumerate(recovered.data):
            check_episode(episode, number, lengths[number])
        return recovered.problems


@pytest.mark.parametrize("with_video", [False, True])
@pytest.mark.parametrize("lengths", [[9, 9, 9, 9], [9, 0, 7, 9], [1, 1, 1, 1], [900, 12, 7, 9], [12, 9, 9, 7]])
def test_lengths_that_contradict_the_rows_lose_none(lengths, with_video, tmp_path):
    times = times_of(LENGTHS) if with_video else None
    check_recovered(write_v3(tmp_path / "d", LENGTHS, table_lengths=lengths, video_times=times), LENGTHS)


def test_episodes_that_the_tables_or_totals_do_not_name_are_kept(tmp_path):
    path = write_v3(tmp_path / "d", LENGTHS)
    info = json.loads((path / "meta/info.json").read_text())
    (path / "meta/info.json").write_text(json.dumps({**info, "total_episodes": 2, "total_frames": 3}))
    check_recovered(path, LENGTHS)
    table = path / "meta/episodes/chunk-000/file-000.parquet"
    pq.write_table(pq.read_table(table).slice(0, 3), table)
    check_recovered(path, LENGTHS)


def test_lengths_of_v21_that_contradict_the_rows(tmp_path):
    path = write_v21(tmp_path / "d", LENGTHS, LENGTHS)
    rows = [{"episode_index": e, "tasks": ["push"], "length": 9} for e in range(4)]
    (path / "meta/episodes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    check_recovered(path, LENGTHS)


def test_a_gap_in_the_rows_costs_what_follows_it(tmp_path):
    path = write_v3(tmp_path / "d", LENGTHS)
    file = path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.take([i for i in range(len(table)) if i != 9 + 5]), file)
    (problem,) = check_recovered(path, [9, 5, 7, 9], n_problems=1)
    assert "episode 1: 5 of its 11 rows can be read" in problem


@pytest.mark.parametrize("n_missing", [1, 3])
def test_videos_that_are_shorter_than_their_rows_keep_the_rows_with_frames(n_missing, tmp_path, capsys):
    shorter = [n - n_missing for n in LENGTHS]
    path = write_v21(tmp_path / "d", LENGTHS, shorter)
    problems = check_recovered(path, shorter, n_problems=4)
    assert f"episode 1: {n_missing} of its 12 rows have no frame" in problems[1]
    main(["repair", str(path), "--out", str(tmp_path / "out")])
    assert f"4 episodes, {sum(shorter)} steps could be read" in capsys.readouterr().out
    for number, episode in enumerate(open_dataset(tmp_path / "out")):
        check_episode(episode, number, shorter[number])


@pytest.mark.parametrize("n_missing", [1, 3])
def test_a_view_without_the_rows_that_have_no_frames_is_read(n_missing, tmp_path, capsys):
    shorter = [n - n_missing for n in LENGTHS]
    path, view, out = write_v21(tmp_path / "d", LENGTHS, shorter), tmp_path / "v.json", tmp_path / "out"
    assert main(["view", "make", str(path), "--crop", f":-{n_missing}", "--out", str(view)]) == 0
    assert main(["convert", str(view), str(out)]) == 0
    for number, episode in enumerate(open_dataset(out)):
        check_episode(episode, number, shorter[number])
    assert not [f for f in audit(view).findings if f.severity == "error"]
    assert main(["view", "make", str(path), "--crop", "1:", "--out", str(tmp_path / "all.json")]) == 0
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "all.json"), str(tmp_path / "no")]) == 2
    assert "understudy repair" in capsys.readouterr().err and not (tmp_path / "no").exists()
    assert [f.code for f in audit(tmp_path / "all.json").findings if f.severity == "error"] == ["frame-damaged"]


def test_a_view_of_other_episodes_than_that_of_the_short_video_is_read(tmp_path):
    path, view = write_v21(tmp_path / "d", LENGTHS, [9, 11, 7, 9]), tmp_path / "v.json"
    assert main(["view", "make", str(path), "--delete", "1", "--out", str(view)]) == 0
    assert main(["convert", str(view), str(tmp_path / "out")]) == 0
    assert [len(e) for e in open_dataset(tmp_path / "out")] == [9, 7, 9]


def test_a_slower_view_reads_only_its_frames(tmp_path):
    path, view = write_v21(tmp_path / "d", [9, 7], [9, 6]), tmp_path / "v.json"
    assert main(["view", "make", str(path), "--fps", "3.3333", "--crop", ":-1", "--out", str(view)]) == 0
    shown = [np.asarray(e.steps[FRONT], float).mean((1, 2, 3)) for e in open_dataset(view)]
    for number, grays in enumerate(shown):
        np.testing.assert_allclose(grays, brightness(number, 9)[[0, 3, 6]][:len(grays)], atol=2)


def test_one_video_of_clips_that_are_too_short(tmp_path):
    """As lerobot joins them in v3.0: the next episode begins where the clip before ends."""
    clips = [brightness(e, n)[:n - 1] for e, n in enumerate(LENGTHS)]
    grays = np.concatenate(clips)
    begins = np.cumsum([0, *(len(c) for c in clips[:-1])]) / FPS
    path = write_v3(tmp_path / "d", LENGTHS, video_times=np.arange(len(grays)) / FPS, grays=grays, begins=begins)
    check_recovered(path, [n - 1 for n in LENGTHS], n_problems=4)


def test_an_offset_stays_right_where_an_episode_is_lost(tmp_path):
    """Without its rows, there are more frames than rows, and their times decide."""
    path = write_v3(tmp_path / "d", LENGTHS, video_times=times_of(LENGTHS) + 0.5)
    file = path / "data/chunk-000/file-000.parquet"
    table = pq.read_table(file)
    pq.write_table(table.slice(9), file)
    with recover(path) as recovered:
        assert len(recovered.data) == 3 and "0 of its 9 rows" in recovered.problems[0]
        for number, episode in enumerate(recovered.data, 1):
            check_episode(episode, number, LENGTHS[number])


def test_a_cut_episode_of_a_recording_loses_the_observation_after_its_last_action(tmp_path):
    frames = np.repeat(20 + 10 * np.arange(6, dtype=np.uint8), 32 * 32 * 3).reshape(6, 32, 32, 3)
    steps = {"observation.state": np.arange(7, dtype=np.float32)[:, None], "action": np.zeros((6, 1), np.float32),
             FRONT: frames}
    lerobot.write(Dataset([Episode(steps)] * 2, {"fps": 10}), tmp_path / "d", images="h264")
    file = next((tmp_path / "d").rglob("*.mp4"))
    writer = video.VideoWriter(file, "libx264", (32, 32, 3), 10)
    writer.add([*frames, *frames[:4]], np.arange(10) / 10)
    writer.close()
    with recover(tmp_path / "d") as recovered:
        assert [len(e) for e in recovered.data] == [6, 4]
        states = [e.steps["observation.state"][:, 0].tolist() for e in recovered.data]
        assert states == [[0, 1, 2, 3, 4, 5, 6], [0, 1, 2, 3]]
