"""The studio of a robot in a browser: two emulated arms and two cameras are recorded, checked and trained on."""

import base64
import re
import time
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest
from fixtures.hands import Hand
from fixtures.studios import handle, press, served, tab
from fixtures.waiting import wait_until

from understudy.data.formats import open_dataset
from understudy.data.video import decode_image
from understudy.robots.calibration import MotorCalibration, write_calibration
from understudy.robots.cameras import frame_number
from understudy.robots.emulator import emulate_arm
from understudy.robots.servo_arm import ARM_TYPES

pytest.importorskip("nicegui", reason="extra studio not installed")
pytest.importorskip("scservo_sdk", reason="extra feetech not installed")
pytestmark = pytest.mark.slow
CAMERAS = "{front: {type: emulated, width: 320, height: 240}, wrist: {type: emulated, width: 160, height: 120}}"


@contextmanager
def arms(folder):
    """The options of a follower and a leader, which a hand moves."""
    options = []
    with emulate_arm(ARM_TYPES["so101_follower"]) as follower, emulate_arm(ARM_TYPES["so101_leader"]) as leader:
        for device, kind, bus in (("robot", "so101_follower", follower), ("teleop", "so101_leader", leader)):
            servos = ARM_TYPES[kind].servos
            write_calibration(folder / f"{kind}.json", {
                name: MotorCalibration(motor.id, 0, 0, 1000, 3000) for name, motor in servos.items()})
            options += [f"--{device}", kind, f"--{device}.port", bus.port, f"--{device}.calibration-dir", str(folder)]
        with Hand(leader, size=200):
            yield options


def number_of(shape):
    """The number of the frame that a shape shows."""
    jpeg = base64.b64decode(shape["image"].partition(",")[2])
    return frame_number(decode_image(jpeg, 3, "page"))


def says(page, text):
    page.get_by_role("status").filter(has_text=text).wait_for()


def follow(page, answers, until):
    """Reads the line below the picture, and presses keys as a person does, until a text is there. Returns that line.

    On a busy machine the page can be silent for a second, after which the robot holds, or a trial is to be repeated.

    Args:
        answers: The key for each text.
        until: A pattern.
    """
    read = page.get_by_role("status").first.inner_text
    pressed = {}

    def is_over():
        text = read()
        if re.search(until, text):
            return True
        words = next((words for words in answers if words in text), None)
        if words is not None and time.monotonic() > pressed.get(words, 0.0) + 5:  # the answer takes a moment to show
            pressed.clear()
            pressed[words] = time.monotonic()
            page.locator(".live").press(answers[words])
        page.wait_for_timeout(50)
        return False
    wait_until(is_over, 120)
    return read()


def watch_and_take_over(page, folder):
    """A policy acts, the leader takes over, and the policy learns from it."""
    tab(page, "Watch")
    page.get_by_text("plans one step at a time").wait_for()
    page.get_by_text("10 steps per second, for 60 s at most. No joint moves faster than").wait_for()
    press(page, "Watch")
    says(page, "Arrange the scene. Enter begins.")
    follow(page, {"Enter begins": "Enter", "P continues": "p"}, "the policy acts")
    press(page, "Take over")
    follow(page, {"P continues": "t"}, "you act")
    for _ in range(5):
        (number,) = re.findall(r"tep (\d+): you act", follow(page, {"P continues": "t"}, r"tep \d+: you act"))
        follow(page, {"P continues": "t"}, rf"tep (?!{number}:)\d+: you act")
    follow(page, {"you act": "t", "P continues": "p"}, "the policy acts")
    follow(page, {"the policy acts": "y", "P continues": "y"}, "Enter begins")
    page.get_by_text("1 of 1 succeeded").wait_for()
    press(page, "Stop watching")
    (path,) = (folder / "runs" / "1-1" / "collection" / "unfinished-000000").glob("[0-9]*")
    episode = open_dataset(path / "episodes.npz")[0]
    assert np.asarray(episode.steps["intervention"]).any() and episode.metadata["success"] is True
    press(page, "Learn from them")
    page.get_by_text("Improve: done.").wait_for()


def judge(page, folder):
    """The policy and what it has become are compared in blind trials."""
    tab(page, "Compare")
    press(page, "Begin blind trials")
    says(page, "Round 1, first of two trials")
    answers = {"One of the two acts": "y", "How did trial": "y"}
    follow(page, {"Round 1, first": "Enter", **answers}, "Round 1, second of two trials")
    answers = dict.fromkeys(answers, "n")
    follow(page, {"Round 1, second": "Enter", **answers}, "Round 2, first of two trials")
    press(page, "End the comparison")
    page.get_by_text("Cannot tell whether Policy 1-1 or Policy 1 is better").wait_for()
    assert (folder / "trials" / "1.jsonl").exists()


def test_a_robot_is_recorded_checked_and_trained_on(page, tmp_path):
    folder = tmp_path / "project"
    with ExitStack() as devices:
        options = devices.enter_context(arms(tmp_path))
        times = ["--fps", "10", "--warmup-time-s", "600", "--reset-time-s", "600", "--task", "follow the hand"]
        with served(folder, *options, "--robot.cameras", CAMERAS, *times, env="") as address:
            page.goto(address)
            press(page, "Start showing")
            page.get_by_role("status").filter(has_text="warm-up").wait_for()
            for count in (1, 2):
                press(page, "Next")
                begun = re.compile(r"^step [1-9]\d")
                page.get_by_role("status").filter(has_text=begun).wait_for()
                press(page, "Success")
                press(page, "Next")
                page.get_by_text(f"{count} shown").wait_for()
            press(page, "Stop showing")
            page.get_by_role("button", name="Start showing").wait_for()
            data = open_dataset(folder / "demonstrations" / "1")
            assert len(data) == 2 and all(e.metadata["success"] and e.metadata["by"] == "so101_leader" for e in data)
            assert np.ptp(np.asarray(data[1].steps["observation.state"]), axis=0).max() > 2  # the hand moved it

            tab(page, "Check")
            press(page, "Look at demonstration 2")
            page.get_by_text("Demonstration 2, step 0 of").wait_for()
            handle(page, "Step of demonstration 2").press("ArrowRight")
            page.get_by_text("Demonstration 2, step 1 of").wait_for()
            shown = [number_of(shape) for shape in page.evaluate("document.querySelector('.live').shapes")]
            stored = [frame_number(data[1].steps[f"observation.images.{name}"][1]) for name in ("front", "wrist")]
            assert shown == stored
            press(page, "It was a failure")
            page.get_by_text("1 of them failed").wait_for()

            tab(page, "Train")
            page.get_by_label("Updates").fill("3")
            page.get_by_role("combobox", name="Method").fill("bc:")
            page.get_by_role("option", name=re.compile("^bc: ")).click()
            press(page, "Train")
            page.get_by_text("Train: done.").wait_for()
            watch_and_take_over(page, folder)
            judge(page, folder)
        with served(None, env=str(folder)) as address:  # the folder knows the robot
            page.goto(address)
            page.get_by_text("2 shown").wait_for()
            press(page, "Start showing")
            page.get_by_role("status").filter(has_text="warm-up").wait_for()
            devices.close()  # both arms are gone
            page.get_by_role("alert").filter(has_text=re.compile("connection is gone|does not answer")).wait_for()
            page.get_by_role("button", name="Start showing").wait_for()
