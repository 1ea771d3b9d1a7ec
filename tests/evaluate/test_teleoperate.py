"""People at keys, sticks and arms, and what is recorded of them."""

from __future__ import annotations

import os
import select
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from understudy import make
from understudy.core import UserError, keys
from understudy.data.formats import open_dataset
from understudy.data.recording.recorder import Recorder
from understudy.envs.devices import HOLD_SECONDS, DiscreteKeyboard, Gamepad, Keyboard, LeaderArm
from understudy.evaluate.replay import replay
from understudy.evaluate.teleoperate import Screen, render_ansi, teleoperate

QUICK = Screen(lambda text: None, sleep=lambda seconds: None)


@pytest.fixture
def pipe():
    read, write = os.pipe()
    yield read, write
    os.close(read)
    os.close(write)


def test_keys_move_for_as_long_as_they_are_held(pipe):
    now = [0.0]
    keyboard = Keyboard((-2, -1), (2, 3), pipe[0], lambda: now[0])
    assert keyboard.read().tolist() == [0, 0]
    os.write(pipe[1], b"dw")
    assert keyboard.read().tolist() == [2, 3]
    now[0] = HOLD_SECONDS - 0.01
    os.write(pipe[1], b"\x1b[C")  # the right arrow, once more
    assert keyboard.read().tolist() == [2, 3]
    now[0] += 0.02
    assert keyboard.read().tolist() == [2, 0]
    os.write(pipe[1], b"\x1bODs")  # the other way, and down
    assert keyboard.read().tolist() == [-2, -1]
    os.write(pipe[1], b" ")
    assert keyboard.read().tolist() == [0, 0] and keyboard.commands() == []
    os.write(pipe[1], b"\nXyn?q")
    assert keyboard.read().tolist() == [0, 0]
    assert keyboard.commands() == ["enter", "discard", "success", "failure", "quit"] and keyboard.commands() == []
    os.write(pipe[1], b"w")
    one = Keyboard((-2,), (3,), pipe[0], lambda: now[0])
    assert one.read().tolist() == [3]  # of a pedal, up and right are more
    os.write(pipe[1], b"a")
    assert one.read().tolist() == [-2]
    with pytest.raises(UserError, match="one or two numbers with limits, but they have 3"):
        Keyboard((-1,) * 3, (1,) * 3)
    with pytest.raises(UserError, match="with limits, and these have none"):
        Keyboard((np.nan,), (np.nan,))
    with pytest.raises(UserError, match="no terminal to read keys from"), keyboard.listening():
        pass


def test_each_key_is_one_move_of_a_grid_and_the_episode_waits_for_it(pipe, tmp_path):
    env, screens = make("words", 1), []
    start = env.reset(torch.arange(1), keys(7, [0]))["observation.state"][0].numpy()
    moves = {"d": (1, 0), "w": (0, 1), "\x1b[D": (-1, 0), "s": (0, -1)}
    hand = DiscreteKeyboard(handle=pipe[0])
    pressed = [*moves, "q"]

    def sleep(_):
        """A key while the environment waits; the same for ever would be a mistake of `teleoperate`."""
        assert pressed, "an episode that was left goes on"
        os.write(pipe[1], pressed.pop(0).encode())
    walked = []
    step = env.step

    def watched(action):
        done = step(action)
        walked.append(done.obs["observation.state"][0].numpy())
        return done
    env.step = watched
    assert len(teleoperate(env, hand, 1, tmp_path / "d", 7, screen=Screen(screens.append, 4, sleep=sleep))) == 0
    at = start
    for walk, way in zip(walked, moves.values(), strict=True):
        at = np.clip(at + way, 0, 5)
        np.testing.assert_array_equal(walk, at)
    assert len(walked) == 4
    mission = bytes(env.state["said"][0]).rstrip(b"\0").decode()
    assert f"episode 0, step 0: {mission}\n" in screens[0]
    assert hand.read() is None


def test_a_gamepad_scales_its_sticks_and_knows_when_it_is_gone(tmp_path):
    read, write = os.pipe()
    with open(read, "rb", buffering=0) as source:
        pad = Gamepad(axes=(0, 3), scale=(2.0, -1.0), dead=0.2, source=source)

        def event(value, kind, number):
            os.write(write, struct.pack("<IhBB", 0, value, kind, number))
        assert pad.read().tolist() == [0, 0]
        event(0, 0x82, 0)  # as it is at the start
        event(32767, 2, 0)
        event(-32767, 2, 3)
        event(500, 2, 1)
        event(1, 1, 7)
        assert pad.read().tolist() == [2, 1] and pad.buttons == {7}
        event(6000, 2, 0)  # within the dead part
        event(int(0.6 * 32767), 2, 3)
        event(0, 1, 7)
        np.testing.assert_allclose(pad.read(), [0, -0.5], atol=1e-3)
        assert pad.buttons == set()
        os.close(write)
        with pytest.raises(UserError, match="the gamepad is gone"):
            pad.read()
    with pytest.raises(UserError, match="there is no gamepad"):
        Gamepad(path=tmp_path / "js0")


def test_the_follower_is_where_the_leader_is():
    at = [[0.0, 1.0]]
    leader = LeaderArm(lambda: at[0], scale=(1, -1), offset=(0.5, 0))
    assert leader.read().tolist() == [0.5, -1.0] and leader.read().dtype == np.float32
    at[0] = [0.0, float("nan")]
    with pytest.raises(UserError, match="the joints are not finite"):
        leader.read()


class Hand:
    """Somebody who acts as the expert does, and gives the commands of `plan` at their steps: (call, command)."""

    def __init__(self, env, seed, plan):
        self.env, self.seed, self.plan, self.calls, self.seen = env, seed, plan, 0, None

    def commands(self):
        self.calls += 1
        return self.plan.pop(self.calls, [])

    def read(self):
        at = self.env.state["at"][0]
        aim = np.float32([0.6, 0.45]) if at[0] < 0.55 else np.float32([1.2, 0.0])
        return (aim - at) / max(0.1, float(np.linalg.norm(aim - at)))


def test_what_a_person_did_is_recorded_discarded_labelled_and_replayed(tmp_path):
    env = make("fork", 1)
    # Episode 0 ends by itself within 25 calls and is labeled a failure; 1 is begun, discarded, begun anew and saved
    # early; then the person quits.
    plan = {26: ["failure"], 27: ["enter"], 31: ["discard"], 36: ["enter"], 37: ["success"], 38: ["quit"]}
    saved, screens = [], []
    hand = Hand(env, 5, plan)
    data = teleoperate(env, hand, 5, tmp_path / "d", 5, on_saved=saved.append,
                       screen=Screen(screens.append, 10, sleep=lambda s: None))
    assert saved == [0, 1] and len(data) == 2
    first, second = data
    assert first.metadata == {"seed": 5, "env": "fork", "by": "keyboard", "number": 0, "success": False, "dropped": 0}
    assert (
        second.metadata["stopped"]
        and second.metadata["success"]
        and second.metadata["number"] == 1
        and len(second) == 4)
    assert first.steps["next.success"][-1] and first.steps["next.terminated"][-1] and len(first) < 25
    for n, e in enumerate(data):  # from the start that its number says, and step by step what the toy does
        obs = env.reset(torch.arange(1), keys(5, [n]))
        for t in range(len(e)):
            np.testing.assert_array_equal(obs["observation.state"][0], e.steps["observation.state"][t])
            obs = env.step(torch.tensor(e.steps["action"][t: t + 1])).obs
        np.testing.assert_array_equal(obs["observation.state"][0], e.steps["observation.state"][len(e)])
    assert replay(data[:1], make("fork", 1))
    assert any("labeled a failure" in s for s in screens) and all(s.count("\n") == 11 for s in screens)
    again = Hand(env, 5, {3: ["quit"]})
    assert len(teleoperate(env, again, 5, tmp_path / "d", 5, screen=QUICK)) == 2  # what was begun is discarded
    with pytest.raises(UserError, match="the recording has seed 5, but this run has seed 6"):
        teleoperate(env, again, 5, tmp_path / "d", 6, screen=QUICK)


def test_pictures_become_text():
    frame = np.zeros((8, 8, 3), np.uint8)
    frame[:4] = 255
    lines = render_ansi(frame, 2).split("\n")
    assert [line.count("▀") for line in lines] == [4, 4]
    assert lines[0].startswith("\x1b[38;5;231m\x1b[48;5;231m▀") and lines[1].startswith("\x1b[38;5;16m\x1b[48;5;16m▀")


@pytest.mark.slow
def test_the_command_in_a_terminal(tmp_path):
    pty = pytest.importorskip("pty")
    ours, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "understudy", "record", "push", "--actor", "keyboard", "--out", "d", "--episodes", "2"],
        cwd=tmp_path,
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
        start_new_session=True)
    output, shown = b"", b""

    def until(text: bytes):
        nonlocal output, shown
        began = time.monotonic()
        while text not in output:
            assert time.monotonic() < began + 120 and process.poll() is None, output[-300:]
            if select.select([ours], [], [], 0.1)[0]:
                output += os.read(ours, 65536)
        before, _, output = output.partition(text)
        shown += before
    until(b"step 2")
    os.write(ours, b"d")
    until(b"step 6")
    os.write(ours, b"\n")
    until(b"stopped by you")
    os.write(ours, b"y")
    until(b"labeled a success")
    os.write(ours, b"q")
    while process.poll() is None:
        if select.select([ours], [], [], 0.1)[0]:
            os.read(ours, 65536)
    assert process.returncode == 0 and shown.count(b"saved 0") == 1
    (episode,) = open_dataset(tmp_path / "d")
    assert episode.metadata["success"] is True and len(episode) >= 5
    assert set(np.round(episode.steps["action"][:, 0], 2).tolist()) == {0.0, 0.25}
    piped = subprocess.run([sys.executable, "-m", "understudy", "record", "push", "--actor", "keyboard", "--out", "e",
                            "--episodes", "1"], cwd=tmp_path, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert piped.returncode == 2 and "no terminal to read keys from" in piped.stderr and not (tmp_path / "e").exists()


def test_a_loop_of_ones_own_with_any_device(tmp_path):
    """As docs/recording.md shows it: whatever has `read`."""
    env = make("fork", 1)
    device = LeaderArm(lambda: [1.0, 0.0])
    with Recorder(env.features, tmp_path / "d", fps=10, clock=None) as r:
        obs = env.reset(torch.arange(1), keys(0, [0]))
        for _ in range(3):
            action = device.read()
            r.step({k: v[0].numpy() for k, v in obs.items()}, action)
            obs = env.step(torch.as_tensor(action)[None]).obs
        r.end()
    (episode,) = open_dataset(tmp_path / "d")
    np.testing.assert_allclose(np.diff(episode.steps["observation.state"][:, 0]), 0.1, atol=1e-6)
