"""Cameras of robots: the base class, OpenCV's cameras, and emulated ones."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import numpy as np

from ..core import ConfigError, Feature, UserError
from .base import ConnectionLost

MAX_AGE = 0.5  # s; an older frame counts as a lost connection
_ROTATIONS = (0, 90, 180, 270, -90)  # degrees clockwise; LeRobot writes -90 for 270
_NUMBER_BITS = 16  # of the frame number in an emulated picture
_BEHIND = 1.5  # a frame that is later than this many periods shows that others were dropped


@dataclass(frozen=True)
class CameraStatus:
    """How many frames a camera has sent since it was connected, and how regularly.

    Args:
        rate: Frames per second, over the last second.
        mean_rate: Frames per second, over all frames.
        dropped: Frames that did not come although the rate of the camera promises them, estimated from the times of the
            frames that came.
    """

    frames: int
    rate: float
    dropped: int
    mean_rate: float = 0.0


class Camera(ABC):
    """Base class of cameras.

    Attributes:
        width: Width of its frames in pixels.
        height: Height.
    """

    width: int
    height: int
    has_depth: bool = False

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

    def read_depth(self) -> np.ndarray:
        """Returns the depth of the frame that `read` returned last, (H, W, 1) uint16 in mm. 0 is unknown."""
        raise NotImplementedError

    def status(self) -> CameraStatus | None:
        """Returns what the camera has sent so far. None if it does not count."""
        return None

    @abstractmethod
    def disconnect(self) -> None:
        """Closes the camera."""


def camera_features(cameras: Mapping[str, Camera]) -> dict[str, Feature]:
    """Returns the columns of cameras: observation.images.NAME, and observation.depth.NAME where depth is measured."""
    color = {f"observation.images.{n}": Feature("uint8", (c.height, c.width, 3), "image") for n, c in cameras.items()}
    depth = {f"observation.depth.{n}": Feature("uint16", (c.height, c.width, 1), "depth", unit="mm")
             for n, c in cameras.items() if c.has_depth}
    return {**color, **depth}


def read_cameras(cameras: Mapping[str, Camera]) -> dict[str, np.ndarray]:
    """Reads the latest frame of each camera, by column."""
    frames = {f"observation.images.{n}": c.read() for n, c in cameras.items()}
    return {**frames, **{f"observation.depth.{n}": c.read_depth() for n, c in cameras.items() if c.has_depth}}


@dataclass(frozen=True)
class _Frame:
    color: np.ndarray
    time: float
    depth: np.ndarray | None = None


class ThreadedCamera(Camera):
    """Base class of cameras that are read in a thread of their own, so that `read` never waits.

    Args:
        label: The camera in error messages.
        width: Width of the frames in pixels, after the rotation.
        height: Height, after the rotation.
        rotation: Degrees by which frames are rotated clockwise: 0, 90, 180 or 270.
        max_age: Age of a frame that counts as a lost connection (s).
    """

    def __init__(self, label: str, width: int, height: int, fps: float, rotation: int, max_age: float,
                 clock: Callable[[], float]):
        self.label, self.max_age, self.clock = label, max_age, clock
        for name, size in (("width", width), ("height", height)):
            if type(size) is not int or not 1 <= size <= 8192:
                raise ConfigError(f"{name} is {size!r}, but must be a whole number from 1 to 8192", where=label,
                                  hint="understudy robot find-cameras shows the sizes of the cameras here")
        if isinstance(fps, (bool, str)) or not 0 < fps <= 1000:
            raise ConfigError(f"fps is {fps!r}, but must be above 0 and at most 1000", where=label, hint="such as 30")
        if isinstance(rotation, bool) or rotation not in _ROTATIONS:
            raise ConfigError(f"rotation is {rotation!r}, but must be 0, 90, 180 or 270", where=label,
                              hint="it is in degrees clockwise")
        self.width, self.height, self.fps, self.rotation = width, height, fps, rotation % 360
        self._latest: _Frame | None = None
        self._returned: _Frame | None = None
        self._ended, self._first = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._n_frames, self._n_dropped, self._due = 0, 0, 0.0
        self._first_at = self._latest_at = 0.0  # times of the first and the latest frame
        self._times: deque[float] = deque(maxlen=256)

    @abstractmethod
    def _open(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        """Opens the camera. Returns an iterator that waits for each frame and yields it, rotated, with its depth."""

    def connect(self):
        frames = self._open()
        self._ended.clear()
        self._first.clear()
        self._n_frames = self._n_dropped = 0
        self._times.clear()
        self._thread = threading.Thread(target=self._read_frames, args=(frames,), daemon=True, name="camera")
        self._thread.start()
        self._first.wait(10)
        if self._latest is None:
            self.disconnect()
            raise ConnectionLost("no frame came", where=self.label, hint="close other programs that use the camera")
        height, width = self._latest.color.shape[:2]
        if (height, width) != (self.height, self.width):
            self.disconnect()
            raise ConnectionLost(f"its frames have {width} x {height} pixels, not {self.width} x {self.height}",
                                 where=self.label, hint=f"set width: {width}, height: {height}")

    def read(self):
        frame = self._latest
        if frame is None or self.clock() - frame.time > self.max_age:
            raise ConnectionLost(f"no new frame for more than {self.max_age:g} s", where=self.label,
                                 hint="check its cable")
        self._returned = frame
        return frame.color

    def read_depth(self):
        assert self._returned is not None and self._returned.depth is not None  # `read` is called first
        return self._returned.depth

    def status(self):
        recent = [t for t in self._times.copy() if t > self.clock() - 1]
        gaps = [b - a for a, b in pairwise(recent)]
        elapsed = self._latest_at - self._first_at
        return CameraStatus(self._n_frames, 1 / np.mean(gaps).item() if gaps else 0.0, self._n_dropped,
                            (self._n_frames - 1) / elapsed if elapsed else 0.0)

    def disconnect(self):
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self._latest = None

    @property
    def _captured_size(self) -> tuple[int, int]:
        """Width and height of the captured frames before the rotation."""
        return (self.height, self.width) if self.rotation % 180 else (self.width, self.height)

    def _read_frames(self, frames: Iterator[tuple[np.ndarray, np.ndarray | None]]) -> None:
        try:
            for color, depth in frames:
                self._count(now := self.clock())
                self._latest = _Frame(color, now, depth)
                self._first.set()
                if self._ended.is_set():
                    break
        finally:
            self._first.set()

    def _count(self, now: float) -> None:
        period = 1 / self.fps
        lateness = now - self._due if self._n_frames else 0.0
        if lateness > _BEHIND * period:
            n = round(lateness / period)
            self._n_dropped += n
            lateness -= n * period
        self._due = now + period - 0.9 * lateness  # follows a camera whose rate is slightly different
        self._first_at, self._latest_at = self._first_at if self._n_frames else now, now
        self._n_frames += 1
        self._times.append(now)


class OpenCVCamera(ThreadedCamera):
    """A camera, or a video file, read by OpenCV. Other arguments are those of `ThreadedCamera`.

    Args:
        index_or_path: Number of the camera, its device file, or a video file.
        fps: Frames per second that are asked for.
        fourcc: Format in which the camera sends frames, such as "MJPG" or "YUYV". None leaves it to the camera. Two
            USB cameras at one controller often need "MJPG".
    """

    def __init__(self, index_or_path: int | str, width: int = 640, height: int = 480, fps: float = 30,
                 rotation: int = 0, fourcc: str | None = None, max_age: float = MAX_AGE,
                 clock: Callable[[], float] = time.monotonic):
        super().__init__(f"camera {index_or_path}", width, height, fps, rotation, max_age, clock)
        if fourcc is not None and not (isinstance(fourcc, str) and len(fourcc) == 4 and fourcc.isascii()):
            raise ConfigError(f"fourcc is {fourcc!r}, but must have four letters", where=self.label,
                              hint="such as MJPG or YUYV")
        self.index_or_path, self.fourcc = index_or_path, fourcc

    def _open(self):
        cv2 = _opencv()
        capture = cv2.VideoCapture(self.index_or_path)
        if not capture.isOpened():
            raise ConnectionLost("the camera cannot be opened", where=self.label,
                                 hint="understudy robot find-cameras lists what there is")
        if self.fourcc is not None:  # before the size, which a camera may not have in another format
            capture.set(cv2.CAP_PROP_FOURCC, cv2.VideoWriter_fourcc(*self.fourcc))
        width, height = self._captured_size
        for setting, value in ((cv2.CAP_PROP_FRAME_WIDTH, width), (cv2.CAP_PROP_FRAME_HEIGHT, height),
                               (cv2.CAP_PROP_FPS, self.fps), (cv2.CAP_PROP_BUFFERSIZE, 1)):
            capture.set(setting, value)
        actual = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little", signed=True).decode("latin-1")
        if self.fourcc not in (None, actual):
            capture.release()
            raise ConnectionLost(f"it sends {actual!r} and not {self.fourcc!r} at {width} x {height} pixels",
                                 where=self.label, hint="leave fourcc out, or choose a format that the camera has: "
                                                        "v4l2-ctl --list-formats-ext shows them on Linux")
        return self._grab(cv2, capture)

    def _grab(self, cv2: ModuleType, capture) -> Iterator[tuple[np.ndarray, None]]:
        turns = {90: cv2.ROTATE_90_CLOCKWISE, 180: cv2.ROTATE_180, 270: cv2.ROTATE_90_COUNTERCLOCKWISE}
        try:
            while True:
                succeeded, frame = capture.read()
                if not succeeded:
                    return
                if self.rotation:
                    frame = cv2.rotate(frame, turns[self.rotation])
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB), None
        finally:
            capture.release()


class EmulatedCamera(ThreadedCamera):
    """Camera that shows a moving test picture, for trying commands without hardware.

    The first 16 columns of blocks, an eighth of the picture high, are white for the ones and black for the zeros of the
    frame number, most significant bit first. `frame_number` reads it, also after lossy video. Depth is
    400 + x + y + frame number % 1000 mm, before the rotation. It takes the arguments of `ThreadedCamera`.
    """

    def __init__(self, width: int = 640, height: int = 480, fps: float = 30, rotation: int = 0, depth: bool = False,
                 max_age: float = MAX_AGE, clock: Callable[[], float] = time.monotonic):
        super().__init__("emulated camera", width, height, fps, rotation, max_age, clock)
        if not isinstance(depth, bool):
            raise ConfigError(f"depth is {depth!r}, but must be true or false", where=self.label, hint="such as true")
        if min(self._captured_size) < _NUMBER_BITS:
            raise ConfigError(f"the size is {width} x {height}, but {_NUMBER_BITS} x {_NUMBER_BITS} is the smallest",
                              where=self.label, hint="such as width: 640, height: 480")
        self.has_depth = depth

    def _open(self):
        return self._film()

    def _film(self) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        width, height = self._captured_size
        x, y = np.meshgrid(np.arange(2 * width), np.arange(height))
        scene = np.stack([128 + 100 * np.sin(2 * np.pi * (x / width + phase) + y / 40) for phase in (0, 1 / 3, 2 / 3)],
                         -1).astype(np.uint8)
        ramp = (400 + np.add.outer(np.arange(height), np.arange(width))).astype(np.uint16)[..., None]
        began, number = time.monotonic(), 0
        while not self._ended.wait(max(began + number / self.fps - time.monotonic(), 0)):
            shift = number % width
            color = scene[:, shift:shift + width].copy()
            bits = np.arange(_NUMBER_BITS - 1, -1, -1)
            color[:height // 8, :width // _NUMBER_BITS * _NUMBER_BITS] = np.repeat(
                255 * (number >> bits & 1), width // _NUMBER_BITS)[:, None]
            depth = self._rotate(ramp + np.uint16(number % 1000)) if self.has_depth else None
            yield self._rotate(color), depth
            # A thread that is late misses frames, as the thread of a real camera does.
            number = max(number + 1, int((time.monotonic() - began) * self.fps))

    def _rotate(self, picture: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(np.rot90(picture, -(self.rotation // 90)))


def frame_number(picture: np.ndarray) -> int:
    """Returns the number of a frame of an `EmulatedCamera` without rotation, modulo 65,536.

    Args:
        picture: The frame, (H, W, 3) uint8. It may come from a video.
    """
    height, width = picture.shape[:2]
    size = width // _NUMBER_BITS
    blocks = picture[:height // 8, :size * _NUMBER_BITS].reshape(height // 8, _NUMBER_BITS, size, 3)
    return int("".join("01"[int(mean > 127)] for mean in blocks.mean((0, 2, 3))), 2)


def find_cameras() -> list[dict[str, int | float | str]]:
    """Lists the cameras that OpenCV can open: index or path, width, height and fps of each."""
    cv2 = _opencv()
    paths: list[int | str] = sorted(map(str, Path("/dev").glob("video*"))) or list(range(10))
    cameras = []
    for path in paths:
        capture = cv2.VideoCapture(path)
        if capture.isOpened() and capture.read()[0]:
            cameras.append({"index_or_path": path, "width": int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)),
                            "height": int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)),
                            "fps": capture.get(cv2.CAP_PROP_FPS)})
        capture.release()
    return cameras


def _opencv() -> ModuleType:
    try:
        import cv2
    except ImportError as error:
        raise UserError(f"OpenCV cannot be imported: {error}", where="cameras",
                        hint="pip install 'understudy[cameras]'") from None
    return cv2
