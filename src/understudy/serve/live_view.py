"""A page that shows a robot while it is recorded or acts: cameras, joints and the state of the episode.

The control loop only hands over references to its latest step. A thread of low priority encodes and sends them. Each
browser gets the next message when it has taken the last one.
"""

from __future__ import annotations

import asyncio
import base64
import http
import json
import logging
import os
import secrets
import sys
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

from ..robots.cameras import Camera
from ..robots.safety import SafeRobot
from ..studio.html_page import encode_jpeg
from .access import SUBPROTOCOL, is_allowed
from .page import open_page_port, page_response

SECONDS = 10.0  # of joints that the page shows
_RATE = 15.0  # messages per second, at most
_LARGEST = 480  # pixels of the longer side of a picture
_PREFIX = "observation.images."


def lower_priority() -> None:
    """Lowers the priority of this thread, where threads have one: on Linux."""
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)


@dataclass(frozen=True)
class ViewedStep:
    """A step of a control loop that is shown. Its arrays must not change later.

    Args:
        time: When its action was sent (s).
        position: Measured position of each component of the action, (A,).
        command: What was commanded, (A,).
        sent: What was sent, after the safety limits, (A,).
    """

    number: int
    time: float
    position: np.ndarray
    command: np.ndarray
    sent: np.ndarray


class LiveView:
    """A web page that shows a robot while its context is open.

    Args:
        robot: The robot. `SafeRobot.on_step` calls `step`.
        fps: Steps per second of the control loop.
        port: Port. 0 for any that is free.

    Attributes:
        token: What a browser needs to connect.
        address: Address of the page, with the token behind #, which browsers do not send.
    """

    def __init__(self, robot: SafeRobot, fps: float, host: str = "127.0.0.1", port: int = 0):
        self.robot, self.fps, self.token = robot, fps, secrets.token_urlsafe(24)
        self._socket, page, self._origins = open_page_port(host, port, f"--view-address {host}:{port}")
        self.address = f"{page}/#{self.token}"
        size = robot.schema["action"].size
        self._names = list(robot.schema["action"].names or map(str, range(1, size + 1)))
        self._steps: deque[ViewedStep] = deque(maxlen=max(int(SECONDS * fps), 2))
        self._frames: dict[str, np.ndarray] = {}
        self._encoded: dict[str, tuple[np.ndarray, str]] = {}
        self._new_frames: dict[str, deque[float]] = {}
        self._text, self._n_steps = "", 0
        self._loop, self._stopping, self._started = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="live view", daemon=True)

    def __enter__(self):
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *error):
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join()
        self._socket.close()

    def step(self, obs: Mapping[str, np.ndarray], command: np.ndarray, sent: np.ndarray) -> None:
        """Notes a step of the control loop, without copying or waiting."""
        now = time.monotonic()
        for name, value in obs.items():
            if name.startswith(_PREFIX):
                if value is not self._frames.get(name):
                    self._new_frames.setdefault(name, deque(maxlen=100)).append(now)
                self._frames[name] = value
        self._steps.append(ViewedStep(self._n_steps, now, self.robot.position(obs), command, sent))
        self._n_steps += 1

    def show(self, text: str) -> None:
        """Takes the line of text that says what the loop does, as `RobotSession` and `act_on_robot` show it."""
        self._text = text

    def describe(self, after: int = -1) -> dict[str, Any]:
        """Returns the state of the robot that a page gets: new steps, the line of text, and the rates.

        Args:
            after: Number of the last step that it knows.
        """
        now, steps = time.monotonic(), self._steps.copy()
        gaps = np.diff([s.time for s in steps if s.time > now - SECONDS])
        state, _, keys = self._text.partition(" | ")
        return {
            "now": round(now, 3), "robot": self.robot.name, "names": self._names, "seconds": SECONDS,
            "state": state, "keys": keys,
            "loop": {"fps": self.fps, "rate": _rate((s.time for s in steps), now),
                     "slowest": round(1000 * max(gaps, default=0.0)),
                     "age": round(now - steps[-1].time, 1) if steps else None},
            "cameras": [self._describe_camera(name, now) for name in list(self._frames)],
            "samples": [[s.number, round(s.time, 3), *(np.round(v, 2).tolist() for v in (
                s.position, s.command, s.sent))] for s in steps if s.number > after]}

    def _describe_camera(self, column: str, now: float) -> dict[str, Any]:
        name, frame = column.removeprefix(_PREFIX), self._frames[column]
        cameras: Any = getattr(self.robot.robot, "cameras", {})
        status = cameras[name].status() if isinstance(cameras.get(name), Camera) else None
        encoded_frame, encoded = self._encoded.get(column, (None, ""))
        if encoded_frame is not frame:
            stride = max(1, -(-max(frame.shape[:2]) // _LARGEST))
            encoded = base64.b64encode(encode_jpeg(frame[::stride, ::stride])).decode()
            self._encoded[column] = frame, encoded
        used = _rate(self._new_frames[column].copy(), now)
        return {"name": name, "frame": encoded, "width": frame.shape[1], "height": frame.shape[0],
                "rate": used if status is None else round(status.rate, 1), "dropped": status and status.dropped}

    # -- the thread of the server ------------------------------------------------------------------------------------

    def _run(self) -> None:
        lower_priority()
        logging.getLogger("websockets").setLevel(logging.CRITICAL)
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        async with serve(self._handle, sock=self._socket, compression=None, max_size=100, server_header=None,
                         close_timeout=1, process_request=self._process_request, origins=[None, *self._origins],
                         subprotocols=[Subprotocol(SUBPROTOCOL)]) as server:
            self.server = server
            self._started.set()
            await self._stopping.wait()

    async def _handle(self, connection: ServerConnection) -> None:
        last = -1
        while True:
            message = self.describe(last)
            last = message["samples"][-1][0] if message["samples"] else last
            try:
                await connection.send(json.dumps(message))  # waits for a browser that is slow
            except ConnectionClosed:
                return
            await asyncio.sleep(1 / _RATE)

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if "Upgrade" not in request.headers:
            if request.path.partition("?")[0] != "/":
                return connection.respond(http.HTTPStatus.NOT_FOUND, "there is nothing at this path\n")
            return page_response(connection, "live", self.robot.name)
        if not is_allowed((self.token,), request.headers):
            return connection.respond(http.HTTPStatus.UNAUTHORIZED, "a token is needed\n")
        return None


def _rate(times: Iterable[float], now: float) -> float:
    """Returns the number of events per second, over the last two seconds."""
    recent = [t for t in times if t > now - 2]
    return round((len(recent) - 1) / (recent[-1] - recent[0]), 1) if len(recent) > 1 else 0.0
