"""A web page that shows a policy acting in an environment, and steers it to where a person clicks."""

from __future__ import annotations

import asyncio
import base64
import http
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.http11 import Request, Response
from websockets.typing import Origin

from ..core import Unsupported
from ..data.video import encode_png
from ..envs.base import Env, PlanarMap, Renderable, StepResult
from ..envs.raster import map_point
from ..evaluate.rollout import rollout
from ..execute.actor import Actor
from ..execute.steering import LivePoints, steer_actor
from .page import page_response

POLICY_VIOLATION = 1008
PAUSE = 1.0  # s, for which the last picture of an episode stays


class SteeringPage:
    """Serves a page with the pictures of a policy that acts. A click draws its plans to a point.

    The point holds until another click, or until it is removed. It also holds in the next episodes. A click changes
    the next plan, so the steps of the current chunk are executed first. Everybody with the page sees the same episode.

    Args:
        env: An environment with one row whose map has the entry "control", such as `fork`, `particle` or `push`.
        scale: Strength of the steering: see `execute.steering.Steered`.

    Attributes:
        points: The points towards which plans are drawn.

    Raises:
        Unsupported: The environment does not say where in the plane a click on its picture is.
    """

    def __init__(self, actor: Actor, env: Env, scale: float = 100.0, seed: int = 0, title: str = "Steering"):
        plane = env.map() if isinstance(env, PlanarMap) else {}
        if "control" not in plane or not isinstance(env, Renderable):
            raise Unsupported("the environment does not say which position a click on its picture means, and how "
                              "actions move it", where=env.metadata["env"],
                              hint='use fork, particle or push, or add "control" to its map')
        self.points, self.plane, self.seed, self.title = LivePoints(), plane, seed, title
        self.actor = steer_actor(actor, self.points, scale=scale, **plane["control"])
        self.env = _LiveEnv(env, self)
        self._clicked: tuple[float, float] | None = None  # where, as in `map_point`
        self._shown: dict[str, Any] = {}
        self._last = "{}"
        self._pages: set[ServerConnection] = set()
        self._stopping = threading.Event()

    async def run(self, listening: socket.socket, origins: Sequence[Origin] | None = None) -> None:
        """Serves the page and runs episodes until it is cancelled.

        Args:
            listening: A socket that listens.
            origins: Addresses under which the page may be opened, such as "http://127.0.0.1:8000". None for any.
        """
        logging.getLogger("websockets").setLevel(logging.CRITICAL)
        self._loop = asyncio.get_running_loop()
        async with serve(self._handle, sock=listening, compression=None, max_size=1000, server_header=None,
                         process_request=self._process_request, origins=origins):
            try:
                await asyncio.to_thread(self._run_episodes)
            finally:
                self._stopping.set()

    def follow(self, message: str | bytes) -> None:
        """Handles a message of the page: ``{"click": [across, down]}`` as in `envs.raster.map_point`, or null.

        Raises:
            ValueError: The message is none of these.
        """
        click = json.loads(message)["click"]
        if click is None:
            self.points.clear()
        else:
            across, down = map(float, click)
            if not (0 <= across <= 1 and 0 <= down <= 1):
                raise ValueError(f"there is no point {click} in the picture")
            self.points.set(map_point(self.plane, across, down))
            click = across, down
        self._clicked = click
        self._show()

    def update(self, **values: Any) -> None:
        """Changes what the page shows. It is called in the thread of the episodes.

        Raises:
            _Stopped: The server ends.
        """
        if self._stopping.is_set():
            raise _Stopped
        self._loop.call_soon_threadsafe(self._show, values)

    def _show(self, values: dict[str, Any] | None = None) -> None:
        self._shown |= values or {}
        self._last = json.dumps({**self._shown, "click": self._clicked})
        broadcast(self._pages, self._last)

    def _run_episodes(self) -> None:
        number, successes = 0, 0
        try:
            while True:
                self.update(episode=number, outcome="")
                episode = rollout(self.actor, self.env, 1, self.seed, first=number)[0]
                success, number = episode.metadata.get("success"), number + 1
                successes += bool(success)
                self.update(outcome={None: "end", True: "success", False: "failure"}[success],
                            tally=f"{successes} of {number} succeeded" if success is not None else "")
                self._stopping.wait(PAUSE)
        except _Stopped:
            pass

    async def _handle(self, connection: ServerConnection) -> None:
        self._pages.add(connection)
        try:
            await connection.send(self._last)
            async for message in connection:
                try:
                    self.follow(message)
                except (ValueError, TypeError, KeyError, OverflowError):
                    await connection.close(POLICY_VIOLATION, "the message is not a click")
        finally:
            self._pages.discard(connection)

    def _process_request(self, connection: ServerConnection, request: Request) -> Response | None:
        if "Upgrade" in request.headers:
            return None
        if request.path != "/":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "there is nothing at this path\n")
        return page_response(connection, "steering", self.title)


class _Stopped(Exception):
    """Raised in a running episode when the server ends."""


class _LiveEnv(Env):
    """Wraps an environment so that it shows each step on a page, at its own rate."""

    def __init__(self, env: Renderable, page: SteeringPage):
        self.env, self.page = env, page
        self.rows, self.features, self.metadata = env.rows, env.features, env.metadata
        self.period = 1 / float(env.metadata.get("fps") or 10)
        self.step_number, self.due = 0, -math.inf

    def reset(self, which, key):
        obs = self.env.reset(which, key)
        self.step_number, self.due = 0, time.monotonic()
        self._show()
        return obs

    def step(self, action) -> StepResult:
        self.due = max(self.due + self.period, time.monotonic())
        self.page._stopping.wait(self.due - time.monotonic())
        out = self.env.step(action)
        self.step_number += 1
        self._show()
        return out

    def _show(self) -> None:
        self.page.update(step=self.step_number, frame=base64.b64encode(encode_png(self.env.frame(0))).decode())

