"""Shows a robot in the Rerun viewer while it is recorded or acts."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ..core import UserError
from ..robots.safety import SafeRobot
from ..studio.html_page import encode_jpeg
from .live_view import ViewedStep, lower_priority

_PERIOD = 1 / 15  # s between two batches
_KEPT = 10_000  # steps that wait at most; older ones are left out


class RerunView:
    """Logs a robot to the Rerun viewer, in a thread of low priority, within the context of the view.

    The entities are /observation/state, /action and /sent with a line for each component, and
    /observation/images/NAME. The timeline is `seconds`.

    Args:
        robot: The robot. `SafeRobot.on_step` calls `step`.
        file: A file of Rerun to write. None to start the viewer.
    """

    def __init__(self, robot: SafeRobot, file: Path | None = None):
        try:
            import rerun as rr
        except ImportError:
            raise UserError("rerun-sdk is not installed", where="--rerun",
                            hint="pip install 'understudy[rerun]'") from None
        self._rr, self.robot = rr, robot
        self._out = rr.RecordingStream(f"understudy {robot.name}")
        if file is None:
            self._out.spawn()
        else:
            self._out.save(file)
        self._steps: deque[ViewedStep] = deque(maxlen=_KEPT)
        self._obs: Mapping[str, np.ndarray] = {}
        self._logged_frames: dict[str, np.ndarray] = {}
        self._n_steps, self._start, self._ended = 0, time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="rerun", daemon=True)

    def __enter__(self):
        names = self.robot.schema["action"].names
        for path in ("/observation/state", "/action", "/sent"):
            if names:
                self._out.log(path, self._rr.SeriesLines(names=list(names)), static=True)
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._ended.set()
        self._thread.join()
        self._out.flush()
        self._out.disconnect()

    def step(self, obs: Mapping[str, np.ndarray], command: np.ndarray, sent: np.ndarray) -> None:
        """Notes a step of the control loop, without copying or waiting."""
        self._obs = obs
        self._steps.append(ViewedStep(self._n_steps, time.monotonic(), self.robot.position(obs), command, sent))
        self._n_steps += 1

    def show(self, text: str) -> None:
        """Ignores the line of text, which the Rerun viewer does not show."""

    def _run(self) -> None:
        lower_priority()
        while not self._ended.wait(_PERIOD):
            self._log()
        self._log()

    def _log(self) -> None:
        rr = self._rr
        steps = [self._steps.popleft() for _ in range(len(self._steps))]
        if not steps:
            return
        times = rr.TimeColumn("seconds", duration=np.array([s.time - self._start for s in steps]))
        columns = {"/observation/state": [s.position for s in steps], "/action": [s.command for s in steps],
                   "/sent": [s.sent for s in steps]}
        for path, values in columns.items():
            self._out.send_columns(path, [times], rr.Scalars.columns(scalars=np.array(values, np.float64)))
        self._out.set_time("seconds", duration=steps[-1].time - self._start)
        for name, frame in self._obs.items():
            if frame.ndim == 3 and frame.dtype == np.uint8 and frame is not self._logged_frames.get(name):
                self._logged_frames[name] = frame
                self._out.log("/" + name.replace(".", "/"),
                              rr.EncodedImage(contents=encode_jpeg(frame), media_type="image/jpeg"))
