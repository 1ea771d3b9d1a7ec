"""Cameras of OpenCV, for which video files stand in, and emulated ones."""

import time
from itertools import pairwise
from types import SimpleNamespace

import av
import numpy as np
import pytest
from fixtures.collections import Constant

from understudy.commands.parts.robot_options import LiveViewOptions, live_view
from understudy.core import Feature, UserError, keys
from understudy.data.formats import open_dataset
from understudy.robots.acting import act_on_robot
from understudy.robots.base import ConnectionLost, RobotError, Teleoperator
from understudy.robots.cameras import (
    CameraStatus,
    EmulatedCamera,
    OpenCVCamera,
    ThreadedCamera,
    camera_features,
    frame_number,
    read_cameras,
)
from understudy.robots.lerobot import LeRobotRobot
from understudy.robots.limits import SafetyLimits
from understudy.robots.recording import NoKeys, RecordingTimes, RobotSession
from understudy.robots.registry import RobotConfig, make_robot, parse_cameras
from understudy.robots.safety import SafeRobot
from understudy.robots.simulated import SimulatedArm

pytest.importorskip("cv2", reason="extra cameras not installed")


@pytest.fixture
def video(tmp_path):
    """A red, then a green frame, and so on."""
    path = tmp_path / "camera.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for i in range(20):
            frame = np.zeros((48, 64, 3), np.uint8)
            frame[..., int(i >= 10)] = 255
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    return str(path)


def test_frames_are_rgb_and_an_old_frame_is_a_lost_camera(video):
    now = [0.0]
    camera = OpenCVCamera(video, 64, 48, clock=lambda: now[0])
    camera.connect()
    deadline = time.monotonic() + 10
    while camera.read()[0, 0].argmax() != 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    frame = camera.read()
    assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
    assert frame[..., 1].mean() > 200 > 60 > frame[..., [0, 2]].mean()  # the last frames are green
    now[0] = 0.6  # the file is over, so no new frame comes
    with pytest.raises(ConnectionLost, match="no new frame for more than 0.5 s"):
        camera.read()
    camera.disconnect()


def test_wrong_sizes_and_missing_cameras_are_named(video, tmp_path):
    with pytest.raises(ConnectionLost, match="64 x 48 pixels, not 640 x 480\n.*set width: 64, height: 48"):
        OpenCVCamera(video).connect()
    with pytest.raises(UserError, match="the camera cannot be opened"):
        OpenCVCamera(str(tmp_path / "none.mp4")).connect()


def test_frames_are_rotated_clockwise_and_sizes_are_those_after_the_rotation(tmp_path):
    path = tmp_path / "halves.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=30)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        frame = np.zeros((48, 64, 3), np.uint8)
        frame[:, :32] = 255  # the left half is white
        for _ in range(5):
            for packet in stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")):
                file.mux(packet)
        for packet in stream.encode():
            file.mux(packet)
    for rotation, (width, height), white in ((90, (48, 64), np.s_[:30]), (180, (64, 48), np.s_[:, 34:]),
                                             (270, (48, 64), np.s_[34:]), (-90, (48, 64), np.s_[34:])):
        camera = OpenCVCamera(str(path), width, height, rotation=rotation, max_age=60)
        camera.connect()
        frame = camera.read()
        camera.disconnect()
        assert frame.shape == (height, width, 3) and frame[white].min() > 200 and frame.mean() < 140


def test_a_format_that_the_camera_does_not_have_is_named(video):
    with pytest.raises(ConnectionLost, match=r"it sends 'FMP4' and not 'MJPG' at 64 x 48 pixels\n.*leave fourcc out"):
        OpenCVCamera(video, 64, 48, fourcc="MJPG").connect()
    camera = OpenCVCamera(video, 64, 48, fourcc="FMP4", max_age=60)
    camera.connect()
    assert camera.read().shape == (48, 64, 3)
    camera.disconnect()


@pytest.mark.parametrize(("settings", "message"), [
    ("type: emulated, rotation: 45", "rotation is 45, but must be 0, 90, 180 or 270"),
    ("type: emulated, rotation: true", "rotation is True"),
    ("type: emulated, width: 0", "width is 0, but must be a whole number from 1 to 8192"),
    ("type: emulated, width: 6.5", "width is 6.5"),
    ("type: emulated, fps: 0", "fps is 0, but must be above 0"),
    ("type: emulated, fps: fast", "fps is 'fast'"),
    ("type: emulated, depth: 3", "depth is 3, but must be true or false"),
    ("type: emulated, width: 8, height: 8", "16 x 16 is the smallest"),
    ("type: emulated, index_or_path: 0", "type emulated takes depth, fps, height, max_age, rotation, width"),
    ("type: opencv", "it needs index_or_path, and takes fourcc, fps, height, index_or_path"),
    ("index_or_path: 0, fourcc: JPEG2000", "fourcc is 'JPEG2000', but must have four letters"),
    ("index_or_path: 0, fourcc: 5", "fourcc is 5, but must have four letters"),
    ("type: emulatd", "did you mean 'emulated'"),
])
def test_wrong_settings_name_the_camera_and_the_cure(settings, message):
    cameras = parse_cameras(f"{{front: {{{settings}}}}}")
    with pytest.raises(UserError, match="camera front") as refusal:
        make_robot(RobotConfig("so101_follower", "none", cameras=cameras))
    assert message in str(refusal.value)


def test_an_emulated_camera_shows_the_number_of_each_frame_and_its_depth():
    camera = EmulatedCamera(96, 64, fps=200, depth=True)
    assert camera_features({"top": camera}) == {
        "observation.images.top": Feature("uint8", (64, 96, 3), "image"),
        "observation.depth.top": Feature("uint16", (64, 96, 1), "depth", unit="mm")}
    turned = EmulatedCamera(64, 96, fps=200, rotation=90)
    camera.connect()
    turned.connect()
    frames, until = {}, time.monotonic() + 10
    while len(frames) < 20 and time.monotonic() < until:
        both = read_cameras({"top": camera})
        frames[frame_number(both["observation.images.top"])] = both
        time.sleep(0.001)
    unturned = np.rot90(turned.read())
    camera.disconnect()
    turned.disconnect()
    y, x = np.mgrid[:64, :96]
    assert list(frames) == sorted(frames) and len(frames) == 20
    for number, both in frames.items():
        np.testing.assert_array_equal(both["observation.depth.top"][..., 0], 400 + x + y + number)
    pictures = [both["observation.images.top"][8:] for both in frames.values()]
    assert all((a != b).mean() > 0.5 for a, b in pairwise(pictures))  # it moves
    assert frame_number(unturned) < 2000 and unturned.shape == (64, 96, 3)


class _Scripted(ThreadedCamera):
    """A camera whose frames come at given times."""

    def __init__(self, times, fps):
        self.times, self.now = list(times), 0.0
        super().__init__("scripted", 2, 2, fps, 0, 0.5, lambda: self.now)

    def _open(self):
        for now in self.times:
            self.now = now
            yield np.zeros((2, 2, 3), np.uint8), None


@pytest.mark.parametrize(("times", "dropped", "rate"), [
    (np.arange(60) / 30, 0, 30),
    (np.delete(np.arange(60) / 30, [10, 20, 21, 22]), 4, 30),  # one frame and three frames do not come
    (np.arange(60) / 30 + 0.01 * np.sin(np.arange(60)), 0, 30),  # jitter of 10 ms
    (np.arange(300) / 29.97, 0, 29.97),
    (np.arange(60) / 15, 59, 15),  # half the rate that was asked for: one is missing in each gap
])
def test_frames_that_do_not_come_are_counted(times, dropped, rate):
    camera = _Scripted(times, 30)
    assert camera.status() == CameraStatus(0, 0.0, 0)
    camera.connect()
    camera._thread.join()
    status = camera.status()
    assert status.frames == len(times) and status.dropped == pytest.approx(dropped, abs=1)
    assert status.rate == pytest.approx(rate, rel=0.03)
    assert status.mean_rate == pytest.approx((len(times) - 1) / (times[-1] - times[0]))


class _Resized(ThreadedCamera):
    """Its frames are half as large once `is_small`."""

    is_small = False

    def __init__(self):
        super().__init__("camera", 64, 48, 200, 0, 60, time.monotonic)

    def _open(self):
        return self._film()

    def _film(self):
        while not self._ended.wait(0.005):
            yield np.zeros((24, 32, 3) if self.is_small else (48, 64, 3), np.uint8), None


@pytest.mark.parametrize("does", ["act", "teleoperate", "record"])
def test_a_camera_that_changes_its_size_stops_the_robot(does, tmp_path):
    camera = _Resized()
    arm = SimulatedArm(cameras={"front": camera}, clock=time.monotonic)
    robot = SafeRobot(arm, SafetyLimits((-90.0,) * 2, (90.0,) * 2, (50.0,) * 2))
    steps = []

    def count_steps(text):
        steps.append(text)
        camera.is_small = len(steps) > 5

    class Still(Teleoperator):
        def read(self):
            return np.zeros(2, np.float32)
    names = r"observation.images.front now have 32 x 24 pixels, and before 64 x 48, so the robot stopped"
    with robot, pytest.raises(RobotError, match=names):
        session = RobotSession(robot, Still(), NoKeys(), 50, count_steps)
        if does == "act":
            act_on_robot(robot, Constant(0.0), keys(0, [0]), fps=50, seconds=60, show=count_steps)
        elif does == "teleoperate":
            session.teleoperate(60)
        else:
            session.record(1, tmp_path / "d", times=RecordingTimes(0, 60, 0), images="png")
    assert robot._is_holding and len(steps) > 5
    if does == "record":
        assert len(open_dataset(tmp_path / "d")[0]) > 3  # what was recorded before


@pytest.mark.parametrize(("times", "said"), [(np.arange(60) / 30, ""), (np.arange(30) / 15, "camera top sent 15.0 ")])
def test_a_camera_that_was_slower_than_its_rate_is_told_at_the_end(times, said, capsys):
    camera = _Scripted(times, 30)
    camera.connect()
    camera._thread.join()
    camera.disconnect()
    limits = SafetyLimits((-90.0,) * 2, (90.0,) * 2, (50.0,) * 2)
    with live_view(LiveViewOptions(), SafeRobot(SimulatedArm(cameras={"top": camera}), limits), 30, print):
        pass
    assert said in (text := capsys.readouterr().err) and bool(text) == bool(said), text


@pytest.mark.parametrize("image", [np.zeros((6, 4, 3), np.uint8), np.full((4, 6, 3), 0.7), np.full((4, 6, 3), 300)])
def test_an_image_of_lerobots_driver_that_is_not_as_announced_is_refused_and_not_converted(image):
    device = SimpleNamespace(observation_features={"lift.pos": float, "front": (4, 6, 3)}, config=None,
                             action_features={"lift.pos": float})
    device.get_observation = lambda: {"lift.pos": 1.0, "front": np.full((4, 6, 3), 7, np.uint8)}
    robot = LeRobotRobot("toy", device)
    assert (robot.observe()["observation.images.front"] == 7).all()
    device.get_observation = lambda: {"lift.pos": 1.0, "front": image}
    with pytest.raises(ConnectionLost, match=f"the image 'front' is {image.dtype} .* announced as uint8"):
        robot.observe()
