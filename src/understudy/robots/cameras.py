"""Cameras: the interface, and OpenCV's cameras."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np

from ..core import Feature, UserError
from .base import ConnectionLost

MAX_AGE = 0.5  # s; an older frame counts as a lost connection


class Camera(ABC):
    """A camera.

    Attributes:
        width: Width of its frames in pixels.
        height: Height.
    """

    width: int
    height: int

    @abstractmethod
    def connect(self) -> None:
        """Opens the camera, and waits for its first frame.

        Raises:
            ConnectionLost: It cannot be opened, or sends frames of another size.
        """

    @abstractmethod
    def read(self) -> np.ndarray:
        """Returns the latest frame, (H, W, 3) uint8 RGB, without waiting for the next one.

        Raises:
            ConnectionLost: The latest frame is too old.
        """

    @abstractmethod
    def disconnect(self) -> None:
        """Closes the camera."""


def camera_features(cameras: Mapping[str, Camera]) -> dict[str, Feature]:
    """Columns of the frames of cameras: observation.images.NAME."""
    return {f"observation.images.{n}": Feature("uint8", (c.height, c.width, 3), "image") for n, c in cameras.items()}


def read_cameras(cameras: Mapping[str, Camera]) -> dict[str, np.ndarray]:
    """The latest frame of each camera, by column."""
    return {f"observation.images.{n}": c.read() for n, c in cameras.items()}


class OpenCVCamera(Camera):
    """A camera, or a video file, that OpenCV reads in a separate thread.

    Args:
        index_or_path: Number of the camera, its device file, or a video file.
        width: Width of the frames in pixels.
        height: Height.
        fps: Frames per second that are asked for.
        max_age: Age of a frame that counts as a lost connection (s).
        clock: Current time (s).
    """

    def __init__(self, index_or_path: int | str, width: int = 640, height: int = 480, fps: float = 30,
                 max_age: float = MAX_AGE, clock: Callable[[], float] = time.monotonic):
        self.index_or_path, self.width, self.height, self.fps = index_or_path, width, height, fps
        self.max_age, self.clock = max_age, clock
        self._frame: np.ndarray | None = None
        self._taken = 0.0
        self._ended, self._first = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def connect(self):
        cv2 = _opencv()
        capture = cv2.VideoCapture(self.index_or_path)
        if not capture.isOpened():
            raise ConnectionLost("the camera cannot be opened", where=f"camera {self.index_or_path}",
                                 hint="understudy robot find-cameras lists what there is")
        for setting, value in ((cv2.CAP_PROP_FRAME_WIDTH, self.width), (cv2.CAP_PROP_FRAME_HEIGHT, self.height),
                               (cv2.CAP_PROP_FPS, self.fps), (cv2.CAP_PROP_BUFFERSIZE, 1)):
            capture.set(setting, value)
        self._ended.clear()
        self._first.clear()
        self._thread = threading.Thread(target=self._grab, args=(capture,), daemon=True, name="camera")
        self._thread.start()
        self._first.wait(10)
        if self._frame is None:
            self.disconnect()
            raise ConnectionLost("no frame came", where=f"camera {self.index_or_path}",
                                 hint="close other programs that use the camera")
        if self._frame.shape[:2] != (self.height, self.width):
            high, wide = self._frame.shape[:2]
            self.disconnect()
            raise ConnectionLost(f"its frames have {wide} x {high} pixels, not {self.width} x {self.height}",
                                 where=f"camera {self.index_or_path}", hint=f"set width: {wide}, height: {high}")

    def read(self):
        if self._frame is None or self.clock() - self._taken > self.max_age:
            raise ConnectionLost(f"no new frame for more than {self.max_age:g} s",
                                 where=f"camera {self.index_or_path}", hint="check its cable")
        return self._frame

    def disconnect(self):
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._frame = None

    def _grab(self, capture) -> None:
        cv2 = _opencv()
        try:
            while not self._ended.is_set():
                found, frame = capture.read()
                if not found:
                    break
                self._frame, self._taken = cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), self.clock()
                self._first.set()
        finally:
            self._first.set()
            capture.release()


def find_cameras(most: int = 10) -> list[dict[str, int | float | str]]:
    """The cameras that OpenCV can open: index or path, width, height and fps of each."""
    cv2 = _opencv()
    paths: list[int | str] = sorted(map(str, Path("/dev").glob("video*"))) or list(range(most))
    found = []
    for path in paths:
        capture = cv2.VideoCapture(path)
        if capture.isOpened() and capture.read()[0]:
            found.append({"index_or_path": path, "width": int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
                          "height": int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
                          "fps": capture.get(cv2.CAP_PROP_FPS)})
        capture.release()
    return found


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"OpenCV cannot be imported: {error}", where="cameras",
                        hint="pip install 'understudy[cameras]'") from None
    return cv2
