"""The studio on two cores, with a reading client in place of a browser: python benchmarks/studio.py [--seconds 600]

robot    `understudy studio` with an emulated SO-101, its leader and two emulated cameras of 640×480 pixels records
         episodes of a minute, 30 steps a second. Measured are lost steps, from the recorded times; lost frames, by the
         numbers in the pictures; how often a picture comes to the page; and the memory of the server
toy      a person holds keys in `push`. With each message of the page, the client sends the time, and the server notes
         at each step how old the last message is. The step itself takes as long as the environment's period
watch    a policy acts in `push`, and its sampled plans are drawn. Compared is the time from a step to the next with
         that of a studio which asks for no plans

The client sends what a person holds as often as the page does, and loads each picture at once. `--only NAME` runs one
part, whose lines replace those of the last run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cameras
import measure
import numpy as np
import psutil
from reading_client import ReadingClient, ReadPicture

from understudy.data.formats import open_dataset
from understudy.robots.cameras import frame_number

PACKAGES = ("numpy", "av", "nicegui", "python-socketio")
RATE, CAMERAS = cameras.RATE, cameras.CAMERAS
EPISODE, RESET = 60.0, 1.0  # s
LONGEST_WAIT = 100.0  # ms between two pictures on average: at least 10 a second
OLDEST_INPUT = 50.0  # ms
MOST_GROWTH, FLAT = 10.0, 300.0  # MB, and from how many seconds on: before, the server still loads libraries
MOST_FRAMES_MISSING = 2  # in a row: camera and loop have clocks of their own, which costs up to one
SAMPLE = 5.0  # s between two looks at the memory
CLOCK = "clock:"  # begins what the client sends beside the keys: the time


# -- the server -------------------------------------------------------------------------------------------------------


def serve(ages: Path, draws_plans: bool, words: Sequence[str]) -> None:
    """`understudy studio`, which writes down the time of each step and the age of the last message (ms)."""
    from understudy.cli import main
    from understudy.studio.browser.live import PageInput, TakeoverInput
    from understudy.studio.browser.plans import PlanWatch

    receive, sent = PageInput.receive, [0.0]

    def noted_receive(self, keys, axes):
        sent[0] = max(float(key.removeprefix(CLOCK)) for key in keys if key.startswith(CLOCK))
        receive(self, keys, axes)

    def noting(read):
        def noted_read(self):
            action = read(self)
            if action is not None:
                log.write(f"{time.monotonic()} {1000 * (time.monotonic() - sent[0])}\n")
            return action
        return noted_read
    PageInput.receive = noted_receive
    PageInput.read, TakeoverInput.read = noting(PageInput.read), noting(TakeoverInput.read)
    if not draws_plans:
        PlanWatch.latest = lambda self: None
    with open(ages, "w", buffering=1) as log:
        sys.exit(main(["studio", *words]))


@contextmanager
def served(command: Sequence[str], env: dict[str, str]) -> Iterator[tuple[subprocess.Popen, str]]:
    """A studio on two cores, and its address."""
    env = {k: v for k, v in env.items() if not k.startswith("PYTEST_")}  # NiceGUI acts otherwise in tests
    process = subprocess.Popen([sys.executable, *command, "--no-browser", "--port", "0"], env=env, text=True,
                               stdout=subprocess.PIPE, start_new_session=True,
                               preexec_fn=lambda: os.sched_setaffinity(0, cameras.cores()[0]))
    try:
        assert process.stdout is not None
        address = re.search(r"http://\S+:(\d+)/", process.stdout.readline())
        assert address is not None, "the studio does not start"
        until = time.monotonic() + 60
        while not _listens(int(address[1])) and time.monotonic() < until:
            time.sleep(0.05)
        yield process, address[0]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def page_interval() -> float:
    """How often the page says what is held (s)."""
    script = measure.HERE.parent / "src/understudy/studio/browser/live_picture.js"
    interval = re.search(r"const INTERVAL = (\d+);", script.read_text(encoding="utf-8"))
    assert interval is not None
    return int(interval[1]) / 1000


async def tell(page: ReadingClient, keys: Callable[[], Sequence[str]]) -> None:
    """Says what is held, as the page does, until it is canceled."""
    interval = page_interval()
    while True:
        await page.hold([*keys(), f"{CLOCK}{time.monotonic()}"])
        await asyncio.sleep(interval)


# -- the robot --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recorded:
    """What a recording on the robot has shown. Memory is in MB.

    Args:
        steps: Steps of all episodes.
        n_lost: Steps that are missing, by the recorded times, or that the recorder dropped.
        frames: Frames of all cameras that no step has.
        most_frames: The most of them in a row.
        gaps: Times between two pictures on the page (s).
        size: Median size of the message with a picture (kB).
        server: Memory that only the server has, every few seconds.
        tree: Memory of the server and the processes that it started.
    """

    steps: int
    n_lost: int
    frames: int
    most_frames: int
    gaps: np.ndarray
    size: float
    server: list[float]
    tree: list[float]


def record_robot(folder: Path, seconds: float) -> Recorded:
    """Records episodes of a minute, or a shorter one."""
    length = min(EPISODE, seconds)
    episodes = max(1, round(seconds / length))
    cameras.write_calibration(folder / "calibration")
    env = cameras.environment(folder)
    two = {name: {"type": "emulated", "width": 640, "height": 480, "fps": RATE} for name in CAMERAS}
    with cameras.emulated_arms(cameras.cores()[1], env) as (follower, leader):
        command = ["-m", "understudy", "studio", "--out", str(folder / "project"), "--yes",
                   "--robot", "so101_follower", "--robot.port", follower, "--robot.id", "mine",
                   "--teleop", "so101_leader", "--teleop.port", leader, "--teleop.id", "mine",
                   "--robot.cameras", json.dumps(two), "--fps", str(RATE), "--warmup-time-s", "2",
                   "--episode-time-s", str(length), "--reset-time-s", str(RESET)]
        with served(command, env) as (process, address):
            pictures, server, tree = asyncio.run(_show(address, process, episodes, length))
    data = open_dataset(folder / "project" / "demonstrations" / "1")
    assert len(data) == episodes, f"{len(data)} episodes are there"
    times = [np.asarray(e.steps["timestamp"], np.float64) for e in data]
    n_lost = sum(round((t[-1] - t[0]) * RATE) + 1 - len(t) for t in times) + sum(e.metadata["dropped"] for e in data)
    missing = np.concatenate([_missing_frames(data, f"observation.images.{name}", i)
                              for name in CAMERAS for i in range(episodes)])
    recorded = [p for p in pictures if p.text.startswith("step")]
    gaps = np.diff([p.at for p in pictures if recorded[0].at <= p.at <= recorded[-1].at])
    return Recorded(sum(map(len, times)), n_lost, int(missing.sum()), int(missing.max()), gaps,
                    statistics.median(len(p.shapes) for p in recorded) / 1000, server, tree)


async def _show(address: str, process: subprocess.Popen, episodes: int, length: float):
    """The pictures that come while so many episodes are recorded, and the memory meanwhile."""
    pictures: list[ReadPicture] = []
    memory: list[tuple[float, float]] = []

    async def look() -> None:
        while True:
            memory.append(await asyncio.to_thread(_memory, process.pid))
            await asyncio.sleep(SAMPLE)
    async with ReadingClient(address, on_picture=pictures.append) as page:
        tasks = [asyncio.create_task(tell(page, list)), asyncio.create_task(look())]
        await page.press("Start showing")
        await page.wait_until(lambda: page.says(f"{episodes} shown;"), 120 + 2 * episodes * (length + RESET))
        for task in tasks:
            task.cancel()
        await page.press("Stop showing")
        await page.wait_until(lambda: page.has_button("Start showing"), 600)
    return pictures, *map(list, zip(*memory, strict=True))


def _memory(pid: int) -> tuple[float, float]:
    """Memory that only a process has, and that of it and of those that it started (MB)."""
    process, tree = psutil.Process(pid), 0.0
    for each in (process, *process.children(recursive=True)):
        with suppress(psutil.NoSuchProcess):
            tree += each.memory_full_info().pss / 1e6
    return process.memory_full_info().uss / 1e6, tree


def _missing_frames(data, camera: str, episode: int) -> np.ndarray:
    """Between each two steps, the frames that the camera sent and no step has."""
    numbers = [frame_number(frame) for _, frame in data.frames(camera, episode)]
    return np.maximum(np.diff(numbers) - 1, 0)


def robot(seconds: float) -> list[measure.Line]:
    with tempfile.TemporaryDirectory() as folder:
        r = record_robot(Path(folder), seconds)
    early, late = r.server[len(r.server) // 6:len(r.server) // 2], r.server[-len(r.server) // 3:]
    grown = statistics.median(late) - statistics.median(early)
    gaps, what = 1000 * r.gaps, f"two 640×480 cameras at {RATE} Hz for {seconds:g} s"
    return [
        measure.Line(f"{what}; steps that are lost", _figure(r.n_lost, "steps"), bound=0, note=f"of {r.steps:,}"),
        measure.Line(f"{what}; frames in a row that no step has", _figure(r.most_frames, ""),
                     bound=MOST_FRAMES_MISSING, note=f"{r.frames:,} of {len(CAMERAS) * r.steps:,} in all"),
        measure.Line(f"{what}; time between two pictures on the page, mean", _figure(float(gaps.mean()), "ms"),
                     bound=LONGEST_WAIT, note=f"{1000 / gaps.mean():.1f} a second, of {r.size:.0f} kB"),
        measure.Line(f"{what}; time between two pictures on the page, p99", _figure(float(np.percentile(gaps, 99)),
                                                                                   "ms")),
        measure.Line(f"{what}; growth of the server's memory", measure.Figure(
            max(grown, 0.0), min(r.server), max(r.server), "MB"), bound=MOST_GROWTH if seconds >= FLAT else None,
            note=f"from the second sixth to the middle, to the last third; in MB at the start and then each minute: "
                 f"{', '.join(f'{megabytes:.0f}' for megabytes in r.server[::round(60 / SAMPLE)])}"),
        measure.Line(f"{what}; memory of all processes", _figure(max(r.tree), "MB"),
                     note="with the encoder of the videos"),
    ]


# -- the toy ----------------------------------------------------------------------------------------------------------


async def _hold_keys(address: str, seconds: float) -> None:
    def keys() -> list[str]:
        moment = time.monotonic() % 2  # an episode that has ended goes on with a key that is pressed anew
        return [] if moment % 1 > 0.8 else ["ArrowRight" if moment < 1 else "ArrowLeft"]
    async with ReadingClient(address) as page:
        await page.press("Start showing")
        telling = asyncio.create_task(tell(page, keys))
        await asyncio.sleep(seconds)
        telling.cancel()
        await page.press("Stop showing")
        await page.wait_until(lambda: page.has_button("Start showing"))


def toy(seconds: float) -> list[measure.Line]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with served([__file__, "--serve", str(folder / "ages"), "plans", "push", "--out", str(folder / "project")],
                    cameras.environment(folder)) as (_, address):
            asyncio.run(_hold_keys(address, seconds))
        noted = np.loadtxt(folder / "ages")
    ticks = step_times(noted)
    ages, what = noted[:, 1], f"keys in push for {seconds:g} s"
    return [
        measure.Line(f"{what}; age of the last message at a step, p95", _figure(float(np.percentile(ages, 95)), "ms"),
                     bound=OLDEST_INPUT, note=f"{len(ages):,} steps; the page sends one every "
                                              f"{1000 * page_interval():.0f} ms"),
        measure.Line(f"{what}; age of the last message at a step, p50", _figure(float(np.median(ages)), "ms")),
        measure.Line(f"{what}; age of the last message at a step, p99", _figure(float(np.percentile(ages, 99)), "ms")),
        measure.Line(f"{what}; from a step to the next, p50", _figure(float(np.median(ticks)), "ms"),
                     note="the tick of the environment"),
        measure.Line(f"{what}; from a step to the next, p95", _figure(float(np.percentile(ticks, 95)), "ms")),
    ]


def step_times(noted: np.ndarray) -> np.ndarray:
    """The times from a step to the next (ms). Between two episodes it waits."""
    times = np.diff(noted[:, 0])
    return 1000 * times[times < 0.5]


# -- a policy that is watched -----------------------------------------------------------------------------------------


async def _watch(address: str, seconds: float, draws_plans: bool) -> None:
    async with ReadingClient(address) as page:
        telling = asyncio.create_task(tell(page, list))
        await page.press("Watch")
        await page.wait_until(lambda: page.status().startswith("step"))
        await asyncio.sleep(seconds)
        assert page.says("The lines are") == draws_plans
        telling.cancel()
        await page.press("Stop watching")
        await page.wait_until(lambda: page.has_button("Watch"))


def watch(seconds: float) -> list[measure.Line]:
    lines, what = [], f"a policy acts in push for {seconds:g} s"
    with tempfile.TemporaryDirectory() as name:
        folder, project = Path(name), Path(name) / "project"
        env = cameras.environment(folder)
        data, run = project / "demonstrations" / "1", project / "runs" / "1"
        for words in (["record", "push", "--episodes", "10", "--out", str(data)],
                      ["train", "bc-gmm", str(data), "--out", str(run), "--steps", "20"]):
            subprocess.run([sys.executable, "-m", "understudy", *words], env=env, check=True, capture_output=True)
        for drawn, text in (("plans", "8 plans are drawn"), ("none", "no plans are drawn")):
            with served([__file__, "--serve", str(folder / drawn), drawn, "push", "--out", str(project)],
                        env) as (_, address):
                asyncio.run(_watch(address, seconds, drawn == "plans"))
            times = step_times(np.loadtxt(folder / drawn))
            for percent, note in ((50, f"{len(times):,} steps"), (95, "")):
                lines.append(measure.Line(f"{what}, and {text}; from a step to the next, p{percent}",
                                          _figure(float(np.percentile(times, percent)), "ms"), note=note))
    return lines


def _figure(value: float, unit: str) -> measure.Figure:
    return measure.Figure.of([value], unit)


PARTS = {"robot": robot, "toy": lambda seconds: toy(min(seconds, 60)),
         "watch": lambda seconds: watch(min(seconds, 60))}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--serve", nargs=argparse.REMAINDER)
    o = parser.parse_args()
    if o.serve:
        serve(Path(o.serve[0]), o.serve[1] == "plans", o.serve[2:])
        return
    parts = {name: partial(part, o.seconds) for name, part in PARTS.items()}
    measure.save_parts("studio", parts, o.only, PACKAGES)


if __name__ == "__main__":
    main()
