"""The live view of a robot: a real browser's protocol, and a loop that no viewer delays."""

import asyncio
import base64
import http.client
import json
import re
import socket
import subprocess
import sys
import time

import numpy as np
import pytest

from understudy.core import ConfigError, Feature, UserError
from understudy.data import video
from understudy.robots.base import Robot
from understudy.robots.cameras import EmulatedCamera
from understudy.robots.limits import SafetyLimits
from understudy.robots.pace import Pace
from understudy.robots.safety import SafeRobot
from understudy.robots.simulated import SimulatedArm

websockets = pytest.importorskip("websockets", reason="extra serve not installed")
from websockets.asyncio.client import connect  # noqa: E402
from websockets.exceptions import InvalidStatus  # noqa: E402

from understudy.commands.parts.robot_options import live_view  # noqa: E402
from understudy.commands.record import RecordOptions  # noqa: E402
from understudy.serve.live_view import LiveView  # noqa: E402

LIMITS = SafetyLimits((-90.0, -90.0), (90.0, 90.0), (60.0, 60.0), slow_start=0)


class Filmed(Robot):
    """A simulated arm with two cameras, whose picture k has the brightness k."""

    name = "filmed"

    def __init__(self, shape=(480, 640, 3)):
        self.arm, self.shape, self.n = SimulatedArm(clock=time.monotonic), shape, 0
        self.schema = {**self.arm.schema, **{f"observation.images.{n}": Feature("uint8", shape, "image") for n in "ab"}}
        self.connect, self.send, self.stop, self.disconnect = (
            self.arm.connect, self.arm.send, self.arm.stop, self.arm.disconnect)

    def observe(self):
        self.n += 1
        frames = {f"observation.images.{n}": np.full(self.shape, self.n % 250, np.uint8) for n in "ab"}
        return {**self.arm.observe(), **frames}

    connect = send = stop = disconnect = None


def protocols(view, token=None):
    coded = base64.urlsafe_b64encode((token or view.token).encode()).decode().rstrip("=")
    return ["understudy", f"token.{coded}"]


def address(view):
    return "ws" + view.address.partition("#")[0].removeprefix("http")


@pytest.fixture
def shown():
    """A robot that is shown, and its view."""
    robot = SafeRobot(Filmed(), LIMITS, watchdog=False)
    with robot, LiveView(robot, 50) as view:
        robot.on_step = view.step
        yield robot, view


def run(robot, steps, fps=50):
    """Runs a control loop. Returns the duration of the part of each step that hands it over, in seconds."""
    durations, inner = [], robot.on_step

    def timed(*step):
        began = time.perf_counter()
        inner(*step)
        durations.append(time.perf_counter() - began)
    robot.on_step = timed
    pace = Pace(fps)
    for i in range(steps):
        robot.observe()
        robot.send(np.array([i, 200.0]))
        pace.wait()
    robot.on_step = inner
    return durations


def test_a_browser_gets_joints_cameras_and_state(shown):
    robot, view = shown
    view.show("episode 3, step 7, 2 late | enter: end | q: quit")
    run(robot, 20)

    async def browse():
        async with connect(address(view), subprotocols=protocols(view),
                           origin=address(view)[:-1].replace("ws", "http", 1)) as viewer:
            first = json.loads(await viewer.recv())
            await asyncio.to_thread(run, robot, 10)
            later = [json.loads(await viewer.recv()) for _ in range(4)]
            return first, later
    first, later = asyncio.run(browse())
    assert (first["robot"], first["names"]) == ("filmed", ["shoulder.pos", "elbow.pos"])
    assert (first["state"], first["keys"]) == ("episode 3, step 7, 2 late", "enter: end | q: quit")
    assert [s[0] for s in first["samples"]] == list(range(20))
    number, sent_at, position, command, sent = first["samples"][-1]
    assert command == [19, 200] and sent[1] <= 90 and -1 < sent_at - first["now"] <= 0 and len(position) == 2
    numbers = [s[0] for message in later for s in message["samples"]]
    assert numbers == list(range(20, 20 + len(numbers))) and numbers, "each step is sent once"
    camera = first["cameras"][0]
    assert (camera["name"], camera["width"], camera["height"]) == ("a", 640, 480)
    picture = video.decode_image(base64.b64decode(camera["frame"]), 3, "frame")
    assert picture.shape == (240, 320, 3) and abs(int(picture.mean()) - robot.robot.n % 250) <= 32


def test_a_camera_says_its_own_rate_and_dropped_frames():
    camera = EmulatedCamera(64, 48, fps=20)
    camera.connect()
    try:
        robot = SafeRobot(Filmed((48, 64, 3)), LIMITS, watchdog=False)
        robot.robot.cameras = {"a": camera}
        with robot, LiveView(robot, 50) as view:
            robot.on_step = view.step
            run(robot, 40)
            a, b = view.describe()["cameras"]
    finally:
        camera.disconnect()
    status = camera.status()
    assert a["dropped"] == status.dropped and abs(a["rate"] - status.rate) < 8, "of the camera, not of the loop"
    assert b["dropped"] is None and b["rate"] > a["rate"], "of another robot: the new frames that the loop saw"


def test_the_token_and_the_page_of_the_view_are_needed(shown):
    robot, view = shown
    host, port = re.fullmatch(r"http://([\d.]+):(\d+)/#.{32}", view.address).groups()
    assert host == "127.0.0.1" == view._socket.getsockname()[0]

    async def status(**options):
        try:
            async with connect(address(view), **options):
                return 101
        except InvalidStatus as error:
            return error.response.status_code
    assert asyncio.run(status()) == 401
    assert asyncio.run(status(subprotocols=protocols(view, "wrong-token-of-24-letters"))) == 401
    assert asyncio.run(status(subprotocols=protocols(view), origin="http://evil.example")) == 403
    assert asyncio.run(status(subprotocols=protocols(view))) == 101
    client = http.client.HTTPConnection(host, int(port), timeout=10)
    client.request("GET", "/")
    page = client.getresponse()
    text = page.read().decode()
    assert page.status == 200 and "default-src 'none'" in page.headers["Content-Security-Policy"]
    assert view.token not in text and "filmed" in text, "the page alone shows nothing"
    client = http.client.HTTPConnection(host, int(port), timeout=10)
    client.request("GET", "/other")
    assert client.getresponse().status == 404


def test_a_viewer_that_stands_still_does_not_delay_the_loop_and_is_sent_little(shown):
    """It connects and never reads. Another viewer still gets new messages, and nothing queues up for the first."""
    robot, view = shown
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    robot.robot.observe = lambda: {**robot.robot.arm.observe(), **{f"observation.images.{n}": np.roll(
        noise, time.monotonic_ns() % 600, 1) for n in "ab"}}

    stalled = socket.socket()
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.connect(view._socket.getsockname())
    stalled.sendall(("GET / HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
                     f"Sec-WebSocket-Protocol: {', '.join(protocols(view))}\r\n\r\n").encode())

    def waiting():
        return [c.transport.get_write_buffer_size() for c in view.server.connections]
    while not any(waiting()):
        run(robot, 25)

    async def browse():
        async with connect(address(view), subprotocols=protocols(view), max_size=None) as viewer:
            durations = await asyncio.to_thread(run, robot, 150)
            numbers = []
            while not numbers or numbers[-1] < view._n_steps - 1:
                numbers += [s[0] for s in json.loads(await viewer.recv())["samples"]]
            return durations
    durations = asyncio.run(asyncio.wait_for(browse(), 60))
    assert np.median(durations) < 0.001 and np.mean(np.array(durations) > 0.02) < 0.05, sorted(durations)[-10:]
    assert 0 < max(waiting()) < 1_000_000, "the messages queue up for a viewer that takes nothing"
    stalled.close()


def test_options_that_cannot_work_are_refused(shown):
    from understudy.cli import main

    robot, view = shown
    port = view._socket.getsockname()[1]
    for address, kind, text in ((f"127.0.0.1:{port}", UserError, "the server cannot listen there"),
                                ("8080", ConfigError, "is not a host and a port"),
                                ("127.0.0.1:99999", ConfigError, "is not a host and a port")):
        o = RecordOptions(out=None, episodes=1, view=True, view_address=address)
        with pytest.raises(kind, match=text), live_view(o, robot, 50, print):
            pass
    assert main(["record", "fork", "--out", "never", "--episodes", "1", "--view"]) == 2


def test_a_command_shows_its_loop_until_it_ends(tmp_path):
    """The command of a user, in a process of its own."""
    (tmp_path / "hand.py").write_text(
        "import numpy as np, time\nfrom understudy.robots.base import Teleoperator\n"
        "class Hand(Teleoperator):\n"
        "    def read(self): return np.array([30 * np.sin(time.monotonic()), 10], np.float32)\n")
    args = ["record", "--robot", "simulated_arm", "--teleop", "hand:Hand", "--trust", "hand", "--fps", "20", "--view",
            "--out", "demos", "--episodes", "1", "--warmup-time-s", "0", "--episode-time-s", "4", "--reset-time-s", "0"]
    process = subprocess.Popen([sys.executable, "-m", "understudy", *args], cwd=tmp_path, text=True,
                               stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    line = process.stderr.readline()
    url, token = re.fullmatch(r"view: http(://127\.0\.0\.1:\d+/)#(.+)\n", line).groups()

    async def browse():
        names = ["understudy", "token." + base64.urlsafe_b64encode(token.encode()).decode().rstrip("=")]
        async with connect("ws" + url, subprotocols=names) as viewer:
            while True:
                message = json.loads(await viewer.recv())
                if message["samples"] and message["state"].startswith("episode 0, step"):
                    return message
    message = asyncio.run(asyncio.wait_for(browse(), 60))
    assert message["names"] == ["shoulder.pos", "elbow.pos"] and message["loop"]["fps"] == 20
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err


def test_the_rerun_viewer_gets_every_step(tmp_path):
    reader = pytest.importorskip("rerun.chunk", reason="extra rerun not installed")
    from understudy.serve.live_rerun import RerunView

    robot = SafeRobot(Filmed((32, 48, 3)), LIMITS, watchdog=False)
    with robot, RerunView(robot, tmp_path / "live.rrd") as view:
        robot.on_step = view.step
        run(robot, 40)
    actions, frames = [], 0
    for chunk in reader.RrdReader(str(tmp_path / "live.rrd")).stream():
        if not chunk.is_static and chunk.entity_path == "/action":
            actions += chunk.to_record_batch()["Scalars:scalars"].to_pylist()
        frames += chunk.entity_path == "/observation/images/a"
    assert actions == [[i, 200.0] for i in range(40)] and frames > 0
