"""The recorder: what is there while it runs and after it stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from fixtures.recordings import SCHEMA, SEEN, holds, settled, show, told
from folders import TESTS

from understudy.core import Feature, UserError
from understudy.data import journal
from understudy.data.episode import Episode
from understudy.data.formats import lerobot, open_dataset
from understudy.data.recording import encoder
from understudy.data.recording import recorder as recording
from understudy.data.recording.recorder import Recorder, repair
from understudy.data.sources import DecodedFramesSource

STATE, FRONT = "observation.state", "observation.images.front"


def test_what_is_recorded_is_what_is_read(tmp_path):
    saved = []
    with Recorder(SEEN, tmp_path / "d", fps=20, clock=None, images="png", robot_type="arm", on_saved=saved.append,
                  metadata={"operator": "Ada"}) as r:
        for number in range(3):
            end = {STATE: np.float32([number, 99])} if number != 1 else {}
            assert show(r, number, 4 + number, True, success=number == 1, obs=end, scene=number) == number
    assert saved == [0, 1, 2]
    data = open_dataset(tmp_path / "d")
    assert (data.fps, data.metadata["robot_type"], data.metadata["warnings"]) == (20, "arm", [])
    assert data.features()[STATE] == SCHEMA[STATE]
    for number, episode in enumerate(data):
        assert holds(episode, number, 4 + number)
        assert len(episode.steps[STATE]) == 4 + number + (number != 1)
        assert (episode.steps["task"] == f"do {number}").all()
        assert (episode.steps[FRONT] == 10 * number + np.arange(4 + number)[:, None, None, None]).all()
        assert episode.metadata == {"operator": "Ada", "success": number == 1, "scene": number, "dropped": 0}
    assert not list((tmp_path / "d").rglob("*.part"))
    with Recorder(SEEN, tmp_path / "d", fps=20, clock=None) as r:  # goes on
        assert show(r, 3, 2, True) == 3
    assert [len(e) for e in open_dataset(tmp_path / "d")] == [4, 5, 6, 2]


def test_the_last_episode_is_labelled_discarded_and_recorded_again(tmp_path):
    with Recorder(SCHEMA, tmp_path / "d", clock=None) as r:
        show(r, 0, 2, success=True)
        r.label(success=False, quality=3)
        show(r, 7, 2)
        r.discard()
        with pytest.raises(UserError, match="just finished can be labeled, but there is none"):
            r.label(success=True)
        assert show(r, 1, 3) == 1
        r.step(*told(8, 0))
        with pytest.raises(UserError, match="one is still running"):
            r.label(quality=1)
        r.discard()
        assert r.end() is None and show(r, 2, 1) == 2
    data = open_dataset(tmp_path / "d")
    assert [holds(e, n, s) for e, n, s in zip(data, range(3), (2, 3, 1), strict=True)] == [True] * 3
    assert data[0].metadata == {"success": False, "quality": 3, "dropped": 0}


def test_late_steps_are_facts_and_keep_their_own_times(tmp_path):
    times = [0.0, 0.1, 0.2, 0.36, 0.46, 0.9]
    clock = iter(100 + t for t in times)
    with Recorder(SCHEMA, tmp_path / "d", fps=10, clock=lambda: next(clock)) as r:
        show(r, 0, len(times))
        for at in (5.0, 5.1):
            r.step(*told(1, 0), time=at)
        with pytest.raises(UserError, match="times must increase, but 5.1 comes after 5.1"):
            r.step(*told(1, 0), time=5.1)
        r.end()
    data = open_dataset(tmp_path / "d")
    np.testing.assert_allclose(data[0].steps["timestamp"], times, atol=1e-6)
    assert [(e.metadata["late"], e.metadata["dropped"]) for e in data] == [(2, 0), (0, 0)]


def test_steps_that_find_no_room_are_dropped_and_leave_a_gap(tmp_path, monkeypatch):
    slow, write = [True], os.write

    def stuck(handle, data):
        while slow[0]:
            time.sleep(0.01)
        return write(handle, data)
    monkeypatch.setattr(journal.os, "write", stuck)
    r = Recorder(SCHEMA, tmp_path / "d", fps=10, clock=None, max_queued_bytes=60)  # 12 bytes a step
    kept = [r.step(*told(0, t)) for t in range(10)]  # a step that waited for the disk would wait for ever
    assert kept == [True] * 5 + [False] * 5
    slow[0] = False
    r.end()
    r.close()
    episode = open_dataset(tmp_path / "d")[0]
    assert holds(episode, 0, 5) and episode.metadata["dropped"] == 5
    slow[0] = True
    # 20 bytes a step
    r = Recorder({**SCHEMA}, tmp_path / "timed", fps=10, clock=lambda: float(len(at)), max_queued_bytes=75)
    at: list[bool] = []
    for t in range(5):
        at.append(r.step(*told(0, t)))
    slow[0] = False
    while r._queued_bytes:
        time.sleep(0.01)
    at.append(r.step(*told(0, 5)))
    r.end()
    r.close()
    assert at == [True] * 3 + [False, False, True]
    np.testing.assert_allclose(open_dataset(tmp_path / "timed")[0].steps["timestamp"], [0, 1, 2, 5])


def test_mistakes_name_the_column(tmp_path):
    def refused(text, work):
        with pytest.raises(UserError, match=text):
            work()
    r = Recorder(SCHEMA, tmp_path / "d", fps=10, clock=None)
    refused("column 'observation.state': the step has the columns action, but the schema", lambda: r.step({}, [0.0]))
    refused("'observation.x'", lambda: r.step({STATE: np.zeros(2), "observation.x": 1}, np.zeros(1)))
    refused(r"'action': the value is float64 \(2,\), but the schema says float32 \(1,\)",
            lambda: r.step({STATE: np.zeros(2)}, np.zeros(2)))
    refused("a step cannot have a time", lambda: r.step(*told(0, 0), time=1.0))
    refused("another recorder is working", lambda: Recorder(SCHEMA, tmp_path / "d"))
    refused("another recorder is working", lambda: repair(tmp_path / "d"))
    show(r, 0, 2)
    r.close()
    refused("column 'action': the episodes there have float32 .* but the schema has float64", lambda: Recorder(
        {**SCHEMA, "action": Feature("float64", (1,))}, tmp_path / "d"))
    refused("have 10 steps a second, but fps is 20", lambda: Recorder(SCHEMA, tmp_path / "d", fps=20))
    refused("no column action", lambda: Recorder({STATE: SCHEMA[STATE]}, tmp_path / "e"))
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").write_text("")
    refused("does not contain a recording", lambda: Recorder(SCHEMA, tmp_path / "other"))
    with Recorder(SCHEMA, tmp_path / "d", fps=10, clock=None) as again:  # the refused ones hold no lock
        refused("'action': the other episodes have float32", lambda: again.add(
            Episode({STATE: np.zeros((2, 2), np.float32), "action": np.zeros((2, 3), np.float32)})))
    assert len(open_dataset(tmp_path / "d")) == 1


@pytest.mark.parametrize("dtype, given_dtype, number", [("uint8", "uint16", 300), ("int32", "int64", 2**40),
                                                        ("int8", "uint8", 200)])
def test_numbers_that_the_column_does_not_hold_are_refused_and_not_wrapped(dtype, given_dtype, number, tmp_path):
    given = np.full((8, 8, 3), number, given_dtype)
    with Recorder({**SCHEMA, "observation.grid": Feature(dtype, (8, 8, 3))}, tmp_path / "d", clock=None) as r:
        seen = {STATE: np.zeros(2, np.float32)}
        with pytest.raises(UserError, match=f"observation.grid': {dtype} does not hold {number}"):
            r.step({**seen, "observation.grid": given}, np.zeros(1))
        r.step({**seen, "observation.grid": given % 100}, np.zeros(1))
        r.end()
    assert (open_dataset(tmp_path / "d")[0].steps["observation.grid"] == given % 100).all()


# -- what is there while it runs, and after it stopped --------------------------------------------------------------


def test_an_interrupted_recording_shows_what_was_finished(tmp_path, capsys):
    from understudy.cli import main

    r = Recorder(SEEN, tmp_path / "d", fps=10, clock=None, images="png")
    show(r, 0, 3, True)
    r.flush()
    show(r, 1, 2, True, success=True)
    for t in range(4):
        r.step(*told(2, t, True))
    settled(r)
    live = open_dataset(tmp_path / "d")
    assert [holds(e, n, s) for e, n, s in zip(live, (0, 1), (3, 2), strict=True)] == [True, True]
    assert live.metadata["warnings"] == ["it is being recorded: 1 episode not in the files yet"]
    assert (live[1].steps[FRONT][:, 0, 0, 0] == [10, 11]).all() and live[1].metadata["success"]
    assert main(["repair", str(tmp_path / "d")]) == 2 and "another recorder is working" in capsys.readouterr().err
    r._lock.close()  # as if its process were gone
    reopened = open_dataset(tmp_path / "d")
    assert (
        "understudy repair" in reopened.metadata["warnings"][0]
        and "one that was not finished" in reopened.metadata["warnings"][0])
    assert reopened.fingerprint() == live.fingerprint()
    before = {p: p.read_bytes() for p in (tmp_path / "d").rglob("*.parquet") if "file-" in p.name}
    assert main(["repair", str(tmp_path / "d")]) == 0
    out, err = capsys.readouterr()
    assert "2 episodes put into the files" in out and "3 episodes, 9 steps" in out
    assert err == ("lost: episode 2 was not finished: its 4 steps are kept, with the metadata \"interrupted\"; "
                   "training leaves it out unless asked (--include-interrupted)\n")
    assert all(p.read_bytes() == b for p, b in before.items()) and before
    data = open_dataset(tmp_path / "d")
    assert data[:2].fingerprint() == live.fingerprint() and data.metadata["warnings"] == []
    assert holds(data[2], 2, 4) and data[2].metadata == {"interrupted": True}
    assert main(["repair", str(tmp_path / "d")]) == 0 and "Nothing was left" in capsys.readouterr().out


def test_frames_that_wait_for_the_encoder_are_read_one_at_a_time(tmp_path, monkeypatch):
    r = Recorder(SEEN, tmp_path / "d", fps=10, clock=None, images="png")
    show(r, 1, 3, True)
    settled(r)
    data, read, column = open_dataset(tmp_path / "d"), [], journal.JournalEpisode.column

    def noted_column(episode, name, rows=slice(None)):
        read.append(rows)
        return column(episode, name, rows)
    monkeypatch.setattr(journal.JournalEpisode, "column", noted_column)
    frames = data.frames(FRONT, 0)
    row, frame = next(frames)
    assert (row, frame[0, 0, 0], read) == (0, 10, [slice(0, 1)])
    assert [(row, frame[0, 0, 0]) for row, frame in frames] == [(1, 11), (2, 12)]


def test_cached_frames_of_an_interrupted_recording_are_not_those_of_an_earlier_one_in_its_place(tmp_path):
    folder = tmp_path / "d"
    for number in (1, 2):
        r = Recorder(SEEN, folder, fps=10, clock=None, images="png")
        show(r, number, 3, True)
        settled(r)
        source = open_dataset(folder).source
        frames = DecodedFramesSource(source, (16, 16), folder).column(FRONT, 0)
        assert (frames[:, 0, 0, 0] == 10 * number + np.arange(3)).all()
        r._lock.close()  # as if its process were gone
        folder.rename(tmp_path / f"earlier{number}")


def test_who_goes_on_after_an_interruption_is_told_and_finds_it_in_inspect_and_audit(tmp_path, capsys):
    from understudy.audit import audit
    from understudy.cli import main
    from understudy.core import DataWarning

    r = Recorder(SCHEMA, tmp_path / "d", fps=10, clock=None)
    show(r, 0, 3)
    for t in range(4):
        r.step(*told(1, t))
    settled(r)
    r._lock.close()  # as if its process were gone
    with pytest.warns(DataWarning, match=r"d: episode 1 was not finished: its 4 steps are kept.*--include-inter") as w:
        again = Recorder(SCHEMA, tmp_path / "d", fps=10, clock=None)
    assert len(w) == 1 and w[0].filename == __file__
    show(again, 2, 3)
    for t in range(2):
        again.step(*told(3, t))
    with pytest.warns(DataWarning, match="episode 3 was not finished: its 2 steps are kept"):
        again.close()
    findings = [f for f in audit(tmp_path / "d").findings if f.code == "interrupted"]
    assert [(f.severity, f.where.episode) for f in findings] == [("warning", 1)]
    assert "2 episodes" in findings[0].message and "1 (4 steps), 3 (2 steps)" in findings[0].message
    assert "--include-interrupted" in findings[0].remedy
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "d")]) == 0 and "1 (4 steps), 3 (2 steps)" in capsys.readouterr().out
    with Recorder(SCHEMA, tmp_path / "clean", fps=10, clock=None) as r:
        show(r, 0, 3)
    assert "interrupted" not in {f.code for f in audit(tmp_path / "clean").findings}


def test_the_command_that_records_tells_of_what_was_interrupted(tmp_path, capsys):
    from understudy.cli import main
    from understudy.evaluate.evaluation import recording_seed

    d, args = tmp_path / "d", ["record", "fork", "--out", str(tmp_path / "d"), "--episodes"]
    assert main([*args, "1"]) == 0
    assert "interrupted" not in capsys.readouterr().err
    first = open_dataset(d)[0]
    r = Recorder(first.features(), d, fps=open_dataset(d).fps, clock=None)
    r.begin(**{k: first.metadata[k] for k in ("env", "by")}, seed=recording_seed(0), number=1)
    for t in range(3):
        row = {n: first.steps[n][t] for n in first.steps}
        r.step({n: v for n, v in row.items() if n != "action"}, row["action"])
    settled(r)
    r._lock.close()
    assert main([*args, "3"]) == 0
    err = capsys.readouterr().err
    assert f"warning: {d}: episode 1 was not finished: its 3 steps are kept" in err and ".py" not in err
    assert [bool(e.metadata.get("interrupted")) for e in open_dataset(d)] == [False, True, False]


def test_a_recording_without_an_episode_can_be_inspected(tmp_path, capsys):
    from understudy.cli import main

    Recorder(SCHEMA, tmp_path / "d", fps=10).close()
    assert main(["repair", str(tmp_path / "d")]) == 0
    capsys.readouterr()
    assert main(["inspect", str(tmp_path / "d"), "--json"]) == 0
    description = json.loads(capsys.readouterr().out)
    assert (description["episodes"], description["steps"],
            description["warnings"]) == (0, 0, ["the data set has no episodes"])
    assert description["features"][STATE] == {"dtype": "float32", "shape": [2], "names": ["x", "y"]}
    assert main(["inspect", str(tmp_path / "d")]) == 0
    assert main(["train", "bc", str(tmp_path / "d"), "--out", str(tmp_path / "run")]) == 2
    assert "there are no episodes" in capsys.readouterr().err
    with Recorder(SCHEMA, tmp_path / "d", fps=10, clock=None) as r:
        show(r, 0, 2)
    assert holds(open_dataset(tmp_path / "d")[0], 0, 2)


@pytest.mark.slow
def test_upstream_lerobot_opens_it(tmp_path):
    """In a process of its own, as tests/data/formats/test_upstream_lerobot.py."""
    pytest.importorskip("lerobot")
    with Recorder(SCHEMA, tmp_path / "d", fps=10) as r:
        for number in range(3):
            show(r, number, 4)
            r.flush()
    script = TESTS / "upstream_lerobot.py"
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    done = subprocess.run([sys.executable, script, tmp_path / "d", tmp_path / "out.npz"], capture_output=True,
                          text=True, env={**os.environ, **offline})
    assert done.returncode == 0, done.stderr[-2000:]
    upstream_arrays = np.load(tmp_path / "out.npz")
    assert (int(upstream_arrays["episodes"]), int(upstream_arrays["fps"])) == (3, 10)
    np.testing.assert_array_equal(upstream_arrays[STATE], [[n, t] for n in range(3) for t in range(4)])
    np.testing.assert_array_equal(upstream_arrays["timestamp"],
                                  np.concatenate([e.steps["timestamp"] for e in open_dataset(tmp_path / "d")]))


@pytest.mark.slow
def test_long_recordings_are_put_into_the_files_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "SEGMENT_BYTES", 2000)
    monkeypatch.setattr(encoder, "yield_processor", lambda pid: None)
    with Recorder(SEEN, tmp_path / "d", fps=10, clock=None, images="png") as r:
        for number in range(8):
            show(r, number, 3, True)
            settled(r)
        worker = r._encoder._process
        began = time.monotonic()
        while len(journal.segment_files(tmp_path / "d" / journal.JOURNAL_FOLDER)) > 1 and time.monotonic() < began + 60:
            time.sleep(0.05)
        there = lerobot.open_lerobot(tmp_path / "d")
        assert len(there) == 8 and all(holds(e, n, 3) for n, e in enumerate(there))
        assert json.loads((tmp_path / "d/meta/info.json").read_text())["total_episodes"] == 7  # the last may change
    assert worker.poll() == 0
    assert all(holds(e, n, 3) for n, e in enumerate(open_dataset(tmp_path / "d")))


# -- names that policies read, and numbers that are none ------------------------------------------------------------


def test_a_recording_that_no_policy_can_read_is_refused_before_it_begins(tmp_path):
    own = {"qpos": Feature("float32", (2,)), "front": Feature("uint8", (8, 8, 3), "image"),
           "action": Feature("float32", (1,))}
    with pytest.raises(UserError, match="no policy can read") as error:
        Recorder(own, tmp_path / "d")
    assert "qpos -> observation.state" in error.value.hint and "front -> observation.images.front" in error.value.hint
    assert "require_observation=False" in error.value.hint
    assert not (tmp_path / "d").exists()
    with Recorder(own, tmp_path / "d", clock=None, require_observation=False) as r:
        r.step({"qpos": np.zeros(2, np.float32), "front": np.zeros((8, 8, 3), np.uint8)}, np.zeros(1, np.float32))
        r.end()
    assert set(open_dataset(tmp_path / "d")[0].steps) >= {"qpos", "front", "action"}


def test_a_column_that_no_policy_reads_is_told_of(tmp_path):
    own = {**SCHEMA, "joints": Feature("float32", (2,)), "intervention": Feature("bool", ())}
    with pytest.warns(UserWarning, match="'joints'.*observation.joints") as caught:
        Recorder(own, tmp_path / "d").close()
    assert len(caught) == 1 and "intervention" not in str(caught[0].message)


def test_numbers_that_are_none_are_refused_and_cost_nothing_that_was_recorded(tmp_path):
    """Column, component and step are named; the steps before and after stay, and the episode goes on."""
    schema = {**SCHEMA, "next.reward": Feature("float32", ()), "note": Feature("float32", ())}
    with Recorder(schema, tmp_path / "d", fps=10, clock=None) as r:
        fine = ({STATE: np.zeros(2)}, np.zeros(1), {"next.reward": 0.0, "note": np.nan})  # of no known role
        assert r.step(*fine)
        for bad, location in ((({STATE: np.zeros(2)}, [np.nan], fine[2]), r"step 1, column 'action'\[0\]"),
                              (({STATE: np.array([0, np.inf])}, np.zeros(1), fine[2]), r"step 1, column .*\[y\]"),
                              (({STATE: np.zeros(2)}, np.zeros(1), {"next.reward": np.nan, "note": 0.0}),
                               "step 1, column 'next.reward'")):
            with pytest.raises(UserError, match=location):
                r.step(*bad)
        assert r.step(*fine)
        with pytest.raises(UserError, match="the last observation"):
            r.end(obs={STATE: np.array([np.nan, 0])})
        assert r.steps == 2 and r.end() == 0
        with pytest.raises(UserError, match="column 'action'.*step 1"):
            r.add(Episode({**{n: np.zeros((2, *f.shape), f.dtype) for n, f in schema.items()},
                           "action": np.float32([[0], [np.nan]])}))
    assert [len(e) for e in open_dataset(tmp_path / "d")] == [2]


def test_a_sensor_that_gave_nothing_is_recorded_as_such(tmp_path):
    force = "observation.force"
    schema = {**SCHEMA, force: Feature("float32", (3,)), f"{force}?": Feature("bool", ())}
    with Recorder(schema, tmp_path / "d", fps=10, clock=None) as r:
        assert r.step({STATE: np.zeros(2), force: np.full(3, np.nan), f"{force}?": False}, np.zeros(1))
        with pytest.raises(UserError, match="column 'observation.force'") as error:
            r.step({STATE: np.zeros(2), force: np.full(3, np.nan), f"{force}?": True}, np.zeros(1))
        assert f"{force}?" in error.value.hint
        r.end()
    episode = open_dataset(tmp_path / "d")[0]
    assert not episode.steps[f"{force}?"].any() and (episode.steps[force] == 0).all()
