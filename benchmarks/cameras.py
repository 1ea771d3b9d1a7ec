"""Two cameras beside a control loop: python benchmarks/cameras.py [--seconds 60] [--episodes 2]

`understudy record` records episodes of an emulated SO-101 with two emulated cameras of 640×480 pixels, 30 times a
second. It has two processor cores, and the emulated servos have others, where there are others. The encoder works on
the first episode while the second one is recorded. Measured are the lateness of the steps, from the recorded times; the
memory of `record` and the processes that it starts, every 20 ms; and frames that are not there, by the numbers in the
pictures. A loop at the same rate that does nothing else runs on the same cores, before the recording and beside it:
its lateness is what the machine and the encoder do to any program.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import measure
import numpy as np
import psutil

from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset
from understudy.robots.cameras import frame_number
from understudy.robots.servo_arm import ARM_TYPES

RATE = 30  # steps and frames a second
CAMERAS = ("front", "wrist")
MOST_MEMORY, MOST_LATE = 1500.0, 20.0  # MB, ms
MOST_FRAMES_MISSING = 2  # in a row: the camera and the loop have clocks of their own, which costs up to one
LOOP = """
import sys, time
due, worst = time.perf_counter(), 0.0
print(flush=True)
ends = due + float(sys.argv[1])
while due < ends:
    due += 1 / 30
    time.sleep(max(due - time.perf_counter(), 0))
    worst = max(worst, time.perf_counter() - due)
    due = max(due, time.perf_counter() - 1 / 30)
print(worst)
"""


@dataclass(frozen=True)
class Trial:
    """What was measured. Times are in ms, memory in MB.

    Args:
        episodes: Steps of each episode.
        late: Largest lateness of a step in each episode.
        dropped: Steps that the recorder dropped.
        missing: For each camera, the most frames in a row that no step has.
        memory: Largest memory of all processes together.
        threads: Most threads of the encoder.
        idle: Largest lateness of a loop that does nothing, before the recording.
        beside: The same beside the recording.
        finishing: Time from the end of the last episode to the end of the command (s).
    """

    episodes: list[int]
    late: list[float]
    dropped: int
    missing: list[int]
    memory: float
    threads: int
    idle: float
    beside: float
    finishing: float


def cores() -> tuple[set[int], set[int]]:
    """Two cores for `record`, and the others, or the same if there are no others."""
    every = sorted(os.sched_getaffinity(0))
    return set(every[:2]), set(every[2:] or every)


@contextmanager
def emulated_arms(others: set[int], env: dict[str, str]) -> Iterator[list[str]]:
    """The ports of a follower and of a leader that a hand moves."""
    arms = [subprocess.Popen([sys.executable, "-m", "understudy", "robot", "emulate", option, name, "--wave"], env=env,
                             stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                             preexec_fn=lambda: os.sched_setaffinity(0, others))
            for option, name in (("--robot", "so101_follower"), ("--teleop", "so101_leader"))]
    try:
        yield [arm.stdout.readline().split()[1] for arm in arms]  # ty: ignore[unresolved-attribute]
    finally:
        for arm in arms:
            arm.send_signal(signal.SIGINT)
            arm.wait()


def write_calibration(folder: Path) -> None:
    for name in ("so101_follower", "so101_leader"):
        (folder / name).mkdir(parents=True)
        servos = {joint: {"id": motor.id, "drive_mode": 0, "homing_offset": 0, "range_min": 1000, "range_max": 3000}
                  for joint, motor in ARM_TYPES[name].motors.items()}
        (folder / name / "mine.json").write_text(json.dumps(servos))


class Memory(threading.Thread):
    """Samples the memory of a process and of those that it started (MB), and the most threads of one of the latter."""

    def __init__(self, process: subprocess.Popen):
        super().__init__(daemon=True)
        self.process, self.most, self.threads = psutil.Process(process.pid), 0.0, 0

    def run(self):
        while self.process.is_running() and self.process.status() != psutil.STATUS_ZOMBIE:
            try:
                below = self.process.children(recursive=True)
                self.threads = max([self.threads, *(p.num_threads() for p in below)])
                self.most = max(self.most, sum(p.memory_info().rss for p in (self.process, *below)) / 1e6)
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.02)


def idle_loop(seconds: float, ours: set[int]) -> subprocess.Popen:
    loop = subprocess.Popen([sys.executable, "-c", LOOP, str(seconds)], stdout=subprocess.PIPE, text=True,
                            preexec_fn=lambda: os.sched_setaffinity(0, ours))
    assert loop.stdout is not None
    loop.stdout.readline()
    return loop


def worst_of(loop: subprocess.Popen) -> float:
    return 1000 * float(loop.communicate()[0])


def record_arm(folder: Path, episodes: int, seconds: float) -> Trial:
    """Records an emulated SO-101."""
    write_calibration(folder / "calibration")
    env = environment(folder)
    with emulated_arms(cores()[1], env) as (follower, leader):
        return record(folder, episodes, seconds, [
            "--robot", "so101_follower", "--robot.port", follower, "--robot.id", "mine",
            "--teleop", "so101_leader", "--teleop.port", leader, "--teleop.id", "mine", "--yes"])


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "UNDERSTUDY_CALIBRATION": str(folder / "calibration"),
            "PYTHONPATH": os.pathsep.join([str(measure.HERE.parent / "src"), str(folder)])}


def record(folder: Path, episodes: int, seconds: float, devices: Sequence[str]) -> Trial:
    """Records with two cameras.

    Args:
        folder: A folder for the recording. Its modules can be imported.
        episodes: Number of episodes.
        seconds: Length of each.
        devices: Options of `record` for the robot and the teleoperator.
    """
    ours, _ = cores()
    cameras = {name: {"type": "emulated", "width": 640, "height": 480, "fps": RATE} for name in CAMERAS}
    idle = worst_of(idle_loop(min(10, seconds), ours))
    process = subprocess.Popen(
        [sys.executable, "-m", "understudy", "record", "--out", str(folder / "demos"), *devices, "--robot.cameras",
         json.dumps(cameras), "--fps", str(RATE), "--episodes", str(episodes), "--warmup-time-s", "2",
         "--episode-time-s", str(seconds), "--reset-time-s", "1"],
        env=environment(folder), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, ours))
    memory = Memory(process)
    memory.start()
    loop = idle_loop(episodes * (seconds + 1) + 2, ours)
    assert process.stderr is not None
    lines, ended = [], 0.0
    for line in process.stderr:
        lines.append(line)
        ended = time.monotonic() if line.startswith("saved") else ended
    finishing = time.monotonic() - ended
    if process.wait():
        raise SystemExit(f"record ended with status {process.returncode}:\n{''.join(lines)}")
    memory.join()
    beside = worst_of(loop)
    data = open_dataset(folder / "demos")
    gaps = [1000 * (np.diff(np.asarray(e.steps["timestamp"], np.float64)) - 1 / RATE) for e in data]
    return Trial([len(e) for e in data], [float(g.max()) for g in gaps], sum(e.metadata["dropped"] for e in data),
                 [max(_missing(data, f"observation.images.{name}", i) for i in range(len(data))) for name in CAMERAS],
                 memory.most, memory.threads, idle, beside, finishing)


def _missing(data: Dataset, camera: str, episode: int) -> int:
    """The most frames in a row that the camera sent and no step has."""
    numbers = {int(row): frame_number(frame) for rows, frame in data.frames(camera, episode)
               for row in np.atleast_1d(rows)}
    return int(np.diff([numbers[row] for row in sorted(numbers)]).max()) - 1


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--episodes", type=int, default=2)
    o = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        trial = record_arm(Path(folder), o.episodes, o.seconds)
    what = f"{o.episodes} episodes of {o.seconds:g} s, two 640×480 cameras at {RATE} Hz, two cores"

    def figure(value: float, unit: str) -> measure.Figure:
        return measure.Figure.of([value], unit)
    note = (f"an idle loop is late by {trial.idle:.1f} ms before and {trial.beside:.1f} ms beside it; "
            f"{sum(trial.episodes):,} steps, {trial.dropped} dropped")
    lines = [
        measure.Line(f"{what}; latest step", figure(max(trial.late), "ms"), bound=MOST_LATE, note=note),
        measure.Line(f"{what}; memory of all processes", figure(trial.memory, "MB"), bound=MOST_MEMORY,
                     note=f"the encoder has up to {trial.threads} threads"),
        measure.Line(f"{what}; frames in a row that no step has", figure(max(trial.missing), ""),
                     bound=MOST_FRAMES_MISSING),
        measure.Line(f"{what}; from the last episode to the end", figure(trial.finishing, "s")),
    ]
    measure.save("cameras", lines, packages=("numpy", "av"))


if __name__ == "__main__":
    main()
