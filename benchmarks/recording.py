"""What a recorder costs the control loop: python benchmarks/recording.py

A loop of 100 steps a second, as a robot's, calls `Recorder.step` and measures by the wall clock how long each call
takes, while the journal is written, synced and put into video files beside it. The peer is lerobot's `add_frame`, which
gets the same frames, once as it comes (pictures are written in the call) and once with its image writer's four threads.
A figure is the median over the calls of a turn, then over the turns; the notes have the slowest one in a hundred. Steps
whose call took longer than half a period are late.
"""

from __future__ import annotations

import measure

measure.one_thread()

import os  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Callable  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.core import Feature  # noqa: E402
from understudy.data.recording.recorder import Recorder  # noqa: E402

RATE, STEPS, TURNS = 100, 100, 5
CAMERA = "observation.images.front"
SIZES = {"14 numbers": None, "14 numbers and a 96×96 camera": (96, 96), "14 numbers and a 640×480 camera": (480, 640)}
BOUNDS = {None: 200.0, (96, 96): 500.0, (480, 640): 2000.0}  # µs


def rows_of(size) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    rows = [{"observation.state": rng.normal(size=7).astype(np.float32)} for _ in range(10)]
    for row in rows if size else ():
        row[CAMERA] = rng.integers(0, 256, (*size, 3), np.uint8)
    return rows


def calls(step: Callable[[dict, np.ndarray], object], rows: list) -> list[float]:
    """Seconds of each call, at RATE."""
    action, took = np.zeros(7, np.float32), []
    due = time.perf_counter()
    for t in range(STEPS):
        began = time.perf_counter()
        step(rows[t % len(rows)], action)
        took.append(time.perf_counter() - began)
        due = max(due + 1 / RATE, time.perf_counter())
        time.sleep(max(0.0, due - time.perf_counter()))
    return took


def line(what: str, turns: list[list[float]], bound: float | None = None, more: str = "") -> measure.Line:
    medians = [1e6 * statistics.median(took) for took in turns]
    slow = 1e6 * float(np.quantile(np.concatenate(turns), 0.99))
    late = sum(s > 0.5 / RATE for took in turns for s in took)
    note = f"one in a hundred takes {slow:,.0f} µs or more; {late} of {sum(map(len, turns)):,} late{more}"
    return measure.Line(what, measure.Figure.of(medians, "µs"), bound=bound, note=note)


def ours():
    with tempfile.TemporaryDirectory() as place:
        for what, size in SIZES.items():
            schema = {"observation.state": Feature("float32", (7,)), "action": Feature("float32", (7,)),
                      **({CAMERA: Feature("uint8", (*size, 3), "image")} if size else {})}
            rows, turns = rows_of(size), []
            with Recorder(schema, Path(place) / what, fps=RATE) as r:
                for _ in range(TURNS):
                    turns.append(calls(r.step, rows))
                    r.end()
                lag = r.sync_lag
            yield line(f"{what}; ours", turns, BOUNDS[size], f"; on the disk after {lag:.2f} s at most")


def record_peer():
    sys.path.insert(0, str(measure.HERE.parent / "tests"))
    import upstream_lerobot

    upstream_lerobot.stand_in()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    with tempfile.TemporaryDirectory() as place:
        for what, size in SIZES.items():
            features = {"observation.state": {"dtype": "float32", "shape": (7,), "names": None},
                        "action": {"dtype": "float32", "shape": (7,), "names": None}}
            if size:
                features[CAMERA] = {"dtype": "video", "shape": (*size, 3), "names": ["height", "width", "channels"]}
            for threads in (0, 4) if size else (0,):
                rows = rows_of(size)
                data = LeRobotDataset.create("none/none", RATE, features, root=Path(place) / f"{what}-{threads}",
                                             image_writer_threads=threads, video_backend="pyav")

                def step(obs, action, data=data):
                    data.add_frame({**obs, "action": action, "task": "push"})
                turns = [calls(step, rows) for _ in range(2)]
                data.clear_episode_buffer()
                if threads:
                    data.stop_image_writer()
                yield line(f"{what}; lerobot's add_frame{f', {threads} threads' * bool(threads)}", turns)


if __name__ == "__main__":
    os.environ |= {"SVT_LOG": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    lines, versions = measure.beside({"": ours, "lerobot": record_peer}, ("torch", "numpy", "av", "lerobot"))
    measure.save("recording", lines, more={"versions": versions})
