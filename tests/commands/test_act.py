"""What act counts and stores of each episode, and its exit status, with a policy behind a real websocket."""

import io
import os
import re
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("websockets", reason="extra serve not installed")

from fixtures.cli import TINY  # noqa: E402
from fixtures.replies import RIGHT, description, reply, server  # noqa: E402

from understudy.cli import main  # noqa: E402
from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import open_dataset, write_dataset  # noqa: E402
from understudy.evaluate.behavior.demo_distance import DemonstrationIndex  # noqa: E402
from understudy.evaluate.behavior.scaling import TrajectoryScaling  # noqa: E402
from understudy.evaluate.failure_detection import FailureDetector  # noqa: E402
from understudy.robots import acting  # noqa: E402

ARM = ["--robot", "simulated_arm", "--robot.slow-start", "0", "--fps", "20"]


def counts(line):
    return {name: int(n) for n, name in re.findall(r"(\d+) (steps|clipped|stale|late)", line)}


def test_a_run_of_clipped_actions_says_so_and_ends_with_status_3(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with server(description(), lambda number, id: reply(id, actions=RIGHT + 500)) as url:
        command = ["act", url, *ARM, "--episode-time-s", "0.7"]
        assert main([*command, "--episodes", "2", "--out", "acted"]) == 3
        captured = capsys.readouterr()
        assert main([*command, "--max-bad-share", "1"]) == 0
    first, second, both, *_ = captured.out.splitlines()
    assert first.startswith("episode 0: ") and both.startswith("2 episodes: ")
    assert counts(first)["clipped"] == counts(first)["steps"] > 8
    assert counts(both)["steps"] == counts(first)["steps"] + counts(second)["steps"] == counts(both)["clipped"]
    assert captured.err.startswith("100% of the steps were clipped, stale or late, and --max-bad-share allows 20%")
    for episode, line in zip(open_dataset("acted"), (first, second), strict=True):
        stored = episode.metadata["execution"]
        assert {k: n for k, n in stored.items() if n and k != "retries"} == counts(line)


@pytest.mark.parametrize("executor", ["receding-horizon", "server"])
def test_a_server_that_stands_still_is_counted(executor, capsys):
    """The third request takes 2 s, in an episode of 3 s. Chunks have 8 actions, which are 0.4 s."""
    def answer(number, id):
        if number == 3:
            time.sleep(2)
        if executor == "server":
            return reply(id, **({"actions": RIGHT[0, :1]} if number else {"rows": np.zeros(1, np.int64)}))
        return reply(id, actions=RIGHT)
    with server(description(), answer) as url:
        assert main(["act", url, *ARM, "--episode-time-s", "3", "--executor", executor]) == 3
    captured = capsys.readouterr()
    assert counts(captured.out.splitlines()[0])["stale"] > 15
    assert "of the steps were clipped, stale or late" in captured.err


def test_a_robot_without_the_cameras_of_the_policy_is_told_the_option(capsys):
    about = description()
    front = {"dtype": "uint8", "shape": [8, 8, 3], "kind": "image", "names": None, "unit": None, "num_classes": None}
    policy = about["understudy"]
    policy["inputs"], policy["features"] = [*policy["inputs"], "observation.images.front"], {
        **policy["features"], "observation.images.front": front}
    with server(about, lambda number, id: reply(id, actions=RIGHT)) as url:
        assert main(["act", url, *ARM, "--episode-time-s", "0.5"]) == 2
    assert "\n  -> name the cameras that the policy reads, as in the recording: --robot.cameras with front\n" in (
        capsys.readouterr().err)


def test_steps_as_the_policy_commands_them_are_not_counted(capsys):
    with server(description(), lambda number, id: reply(id, actions=RIGHT)) as url:
        assert main(["act", url, *ARM, "--episode-time-s", "0.5", "--max-bad-share", "1"]) == 0
        assert main(["act", url, *ARM, "--max-bad-share", "1.5"]) == 2
    captured = capsys.readouterr()
    assert re.fullmatch(r"episode 0: \d+ steps(, \d+ late)?\n", captured.out)
    assert "--max-bad-share: must be at least 0 and at most 1" in captured.err


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """A policy of the simulated arm, and two episodes ("acted") that it recorded."""
    monkeypatch.chdir(tmp_path)
    state = np.linspace([0, 0], [60, -20], 31, dtype=np.float32)
    demonstration = Episode({"observation.state": state, "action": state[1:]})
    write_dataset(Dataset([demonstration] * 3, {"fps": 20}), "demos.npz", "npz")
    assert main(["train", "bc", "demos.npz", "--out", "run", *TINY]) == 0
    assert main(["act", "run", *ARM, "--episode-time-s", "0.7", "--episodes", "2", "--max-bad-share", "1",
                 "--out", "acted"]) == 0
    return tmp_path


def test_a_session_of_trials_goes_on_with_the_same_limits_only(run, monkeypatch, capsys):
    """A slower robot may fail where the faster one succeeded."""
    monkeypatch.setattr("sys.stdin", io.StringIO())
    session = ["eval", "run", "--interactive", "--threshold", "0.5", *ARM, "--robot.max-velocity"]
    for velocity, status in (("50", 130), ("50", 130), ("5", 2)):
        assert main([*session, velocity]) == status
    assert "with options" in (text := capsys.readouterr().err) and "--robot.max-velocity and 50.0" in text


class _Terminal(io.TextIOWrapper):
    def isatty(self):
        return True


def test_a_terminal_that_stops_reading_does_not_stop_a_trial(run, monkeypatch):
    """The terminal is full when the trial begins. An output that waited for it would raise BlockingIOError here."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    acted = []

    def act(*arguments, **options):
        for size in (4096, 1):
            with pytest.raises(BlockingIOError):
                while os.write(write_end, size * b"x"):
                    pass
        acted.append(act_on_robot(*arguments, **options))
        os.read(read_end, 1 << 20)
        return acted[-1]
    act_on_robot = acting.act_on_robot
    monkeypatch.setattr(acting, "act_on_robot", act)
    monkeypatch.setattr("sys.stdin", io.StringIO("\n3\nquit\n"))
    with _Terminal(os.fdopen(write_end, "wb")) as terminal:
        monkeypatch.setattr("sys.stderr", terminal)
        command = ["eval", "run", "--interactive", "--threshold", "0.5", *ARM, "--episode-time-s", "0.4"]
        assert main(command) == 130
    os.close(read_end)
    assert acted[0].counts.steps > 4


def test_a_policy_acts_at_the_rate_of_its_data_or_says_that_it_is_unknown(run, capsys):
    write_dataset(Dataset(list(open_dataset("demos.npz"))), "unknown.npz", "npz")
    assert main(["train", "bc", "unknown.npz", "--out", "unknown", *TINY]) == 0
    for policy, says in (("run", False), ("unknown", True)):
        capsys.readouterr()
        assert main(["act", policy, *ARM[:-2], "--episode-time-s", "0.2", "--max-bad-share", "1"]) == 0
        assert ("unknown does not say at which rate" in capsys.readouterr().err) == says
    for data, says in (("demos.npz", False), ("unknown.npz", True)):
        assert main(["replay", data, *ARM[:-2]]) == 0
        assert ("unknown.npz does not say at which rate" in capsys.readouterr().err) == says


def label(*successes, by=None):
    """Writes the recorded episodes with what a person would have said of them."""
    acted = open_dataset("acted")
    write_dataset(Dataset([replace(e, metadata={**e.metadata, **({"by": by} if by else {}), "success": success})
                           for e, success in zip(acted, successes, strict=True)], acted.metadata), "labeled.npz", "npz")


def test_the_detector_of_recorded_episodes_ends_an_episode(run, capsys):
    label(True, False)
    calibrate = ["calibrate", "run", "labeled.npz", "--score", "novelty", "--rate", "0.5"]
    assert main(calibrate) == 0
    assert "understudy act run --robot TYPE --detect" in (text := capsys.readouterr().out) and "from 1 failure." in text
    detector = FailureDetector.load(Path("run"))
    state = "observation.state"
    points = Dataset([Episode({state: np.asarray(e.steps[state])[:len(e)]}) for e in open_dataset("demos.npz")])
    demonstrated = DemonstrationIndex.from_data(points, TrajectoryScaling.from_data(points))
    doubts = demonstrated.distances(open_dataset("labeled.npz")[1], count=len(open_dataset("labeled.npz")[1]))[0]
    assert detector.threshold == pytest.approx(float(doubts.max()), rel=1e-5)
    for threshold, ended in ((0.0, True), (1e9, False)):
        replace(detector, threshold=threshold).save(Path("run/detector.json"))
        assert main(["act", "run", *ARM, "--episode-time-s", "0.4", "--max-bad-share", "1", "--detect", "--out",
                     f"watched-{ended}"]) == 0
        line = capsys.readouterr().out.splitlines()[0]
        assert ("ended by alarm of the failure detector" in line) == ended and line.startswith("episode 0: 0") == ended
    assert "alarm" not in open_dataset("watched-False")[0].metadata


def test_what_no_detector_of_a_robot_can_be_made_of_is_refused(run, capsys):
    for args, *messages in (
            (["calibrate", "run", "acted"], "acted, episode 0", "nobody said whether it is a success", "y or n"),
            (["act", "run", *ARM, "--detect"], "the run has no failure detector", "understudy calibrate"),
            (["act", "ws://127.0.0.1:1", *ARM, "--fps", "30", "--detect"], "a server does not send the doubt",
             "the run on this machine"),
            (["calibrate", "run", "acted", "--episodes", "4"], "--episodes", "all recorded episodes are used")):
        assert main(args) == 2
        error = capsys.readouterr().err
        assert all(m in error for m in messages), error
    label(True, False, by="somebody")
    assert main(["calibrate", "run", "labeled.npz", "--score", "novelty", "--rate", "0.5"]) == 2
    assert "labeled.npz, episode 0: it was recorded by somebody, and not by policy " in capsys.readouterr().err
