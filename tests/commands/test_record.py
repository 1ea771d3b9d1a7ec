"""understudy record and replay: what is recorded, and what an interrupted recording keeps."""

from __future__ import annotations

import signal
import time

import numpy as np
from fixtures.cli import document, refused, start

from understudy.data.formats import open_dataset

# -- help -----------------------------------------------------------------------------------------------------------


def test_a_recording_spares_what_is_none(call, place):
    before = sorted((place / "a").rglob("*"))
    refused(call("record", "fork", "--out", place / "a", "--episodes", 2), "another folder")
    assert sorted((place / "a").rglob("*")) == before


# -- what one sees on a good day ------------------------------------------------------------------------------------


def test_record_goes_on_and_is_the_same_whatever_runs_beside(call, tmp_path, place):
    status, out, _ = call("record", "fork", "--out", tmp_path / "d", "--episodes", 1, "--rows", 2)
    assert status == 0 and "1 episode, " in out
    status, out, _ = call("record", "fork", "--out", tmp_path / "d", "--episodes", 5, "--rows", 2)
    assert status == 0 and "5 episodes" in out and "5 of 5 succeeded" in out
    assert call("record", "fork", "--out", tmp_path / "d", "--episodes", 12, "--rows", 3)[0] == 0
    grown, whole = open_dataset(tmp_path / "d"), open_dataset(place / "demos")
    assert grown.fingerprint() == whole.fingerprint()
    assert [e.metadata["number"] for e in grown] == list(range(12))
    for episodes in (3, 12):
        status, out, err = call("record", "fork", "--out", tmp_path / "d", "--episodes", episodes)
        assert status == 0 and "saved" not in err and "Written to" not in out
        assert f"{tmp_path / 'd'} already has 12 episodes, " in out and f"--episodes {episodes} is the total" in out
        assert f"--episodes {12 + episodes}, to add" in out
    assert len(open_dataset(tmp_path / "d")) == 12  # never fewer
    refused(call("record", "fork", "--out", tmp_path / "d", "--episodes", 20, "--actor", "random"), "'random'",
            "'scripted'", "episode 0")
    refused(call("record", "fork", "--out", tmp_path / "d", "--episodes", 20, "--seed", 1),
            "the recording has seed 0, but this run has seed 1")
    refused(call("record", "particle", "--out", tmp_path / "d", "--episodes", 20), "env", "particle")


def test_random_actions_fill_the_action_space(call, tmp_path):
    assert call("record", "Pendulum-v1", "--out", tmp_path / "d", "--episodes", 3, "--actor", "random")[0] == 0
    torque = np.concatenate([e.steps["action"] for e in open_dataset(tmp_path / "d")])
    assert torque.shape == (600, 1) and np.abs(torque).max() <= 2
    # Uniform on [-2, 2]: mean 0 and variance 4/3, both within four standard errors of 600 draws.
    assert abs(torque.mean()) < 4 * (4 / 3 / 600) ** 0.5
    assert abs(torque.var() - 4 / 3) < 4 * ((16 / 5 - 16 / 9) / 600) ** 0.5
    assert call("record", "CartPole-v1", "--out", tmp_path / "c", "--episodes", 8, "--actor", "random")[0] == 0
    pushed = np.concatenate([e.steps["action"] for e in open_dataset(tmp_path / "c")])
    assert set(pushed.flatten().tolist()) == {0, 1}
    refused(call("record", "Pendulum-v1", "--out", tmp_path / "e", "--episodes", 3), "no expert",
            "LeRobot v3.0", "plain .npz (observations, actions, episode_ends)")


def test_replay(call, place):
    replay = document(call("replay", place / "demos", "fork", "--json"))
    assert [t["divergence"] for t in replay["episodes"]] == [None] * 12
    one = document(call("replay", place / "demos", "fork", "--episode", 3, "--state", "--json"))
    assert [(t["episode"], t["success"]) for t in one["episodes"]] == [(3, True)]
    refused(call("replay", place / "demos", "fork", "--episode", 12), "there is no episode 12; the last one is 11")
    refused(call("replay", place / "demos", "particle"))


# -- interrupts -----------------------------------------------------------------------------------------------------


def test_a_recording_that_is_interrupted_keeps_what_ended(call, tmp_path):
    args = ["record", "push", "--out", "d", "--episodes", "5000", "--rows", "1"]
    process, ended = start(*args, cwd=tmp_path), tmp_path / "d" / "meta" / "understudy" / "episodes.jsonl"
    while process.poll() is None and not ended.exists():  # info.json is there before the first episode has ended
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "the same command continues" in err, err
    kept = open_dataset(tmp_path / "d")
    assert 0 < len(kept) < 5000 and [e.metadata["number"] for e in kept] == list(range(len(kept)))
    more = str(len(kept) + 3)
    assert call("record", "push", "--out", tmp_path / "d", "--episodes", more)[0] == 0
    assert call("record", "push", "--out", tmp_path / "whole", "--episodes", more)[0] == 0
    assert open_dataset(tmp_path / "d").fingerprint() == open_dataset(tmp_path / "whole").fingerprint()
