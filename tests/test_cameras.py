"""Cameras of OpenCV, for which video files stand in."""

import time

import av
import numpy as np
import pytest

from understudy.core import UserError
from understudy.robots.base import ConnectionLost
from understudy.robots.cameras import OpenCVCamera

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
