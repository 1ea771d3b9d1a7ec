"""Batches of windows for training, two observation rows and sixteen actions each: python benchmarks/windows.py

Our side is what training calls: `Windows.batch`, which draws the windows and gives torch tensors, over a LeRobot data
set on disk. lerobot reads the same folder through its own data set and PyTorch's loader, in this process (workers 0).
robomimic holds the same numbers in memory (`hdf5_cache_mode="all"`); it cannot give fewer observations than actions and
gives 17 rows of each, so a line of its own has ours give as many. Every side shuffles.
"""

from __future__ import annotations

import measure

measure.one_thread()

import contextlib  # noqa: E402
import io  # noqa: E402
import itertools  # noqa: E402
import os  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import lerobot as files  # noqa: E402
from understudy.data.formats import open_dataset  # noqa: E402
from understudy.data.window import Window  # noqa: E402

STATE, ACTION, FPS = 14, 7, 10
SMALL, LARGE = (200, 100), (1000, 1000)  # episodes, steps of each
WINDOW = Window(n_obs_steps=2, horizon=16)
BATCHES = (64, 256)


def episodes(count: int, steps: int) -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset([Episode({"observation.state": rng.normal(size=(steps, STATE)).astype(np.float32),
                             "action": rng.normal(size=(steps, ACTION)).astype(np.float32)}) for _ in range(count)],
                   {"fps": FPS})


def stored(folder: Path, count: int, steps: int) -> Dataset:
    files.write(episodes(count, steps), folder)
    return open_dataset(folder)


def drawing(window: Window, data: Dataset, size: int, batches: int):
    """`batches` batches a call, each another."""
    windows, number = window.windows(data, ("observation.state",), "action"), itertools.count()

    def work():
        for _ in range(batches):
            windows.batch(size, next(number))
    return work


def of_loader(loader, batches: int):
    """`batches` batches a call, going on where the last call ended."""
    batch = itertools.chain.from_iterable(itertools.repeat(loader))

    def work():
        for _ in range(batches):
            next(batch)
    return work


def lerobot():
    sys.path.insert(0, str(measure.HERE.parent / "tests"))
    import upstream_lerobot

    upstream_lerobot.stand_in()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset
    from torch.utils.data import DataLoader

    with tempfile.TemporaryDirectory() as folder:
        data = stored(Path(folder) / "data", *SMALL)
        peer = LeRobotDataset("none/none", root=Path(folder) / "data", video_backend="pyav", delta_timestamps={
            "observation.state": [-1 / FPS, 0], "action": [i / FPS for i in range(WINDOW.horizon)]})
        row, ours = (
            peer[137],
            next(WINDOW.windows(data, ("observation.state",), "action").scan()).select_rows(slice(137, 138)),
        )
        np.testing.assert_array_equal(row["observation.state"], ours.obs["observation.state"][0])
        np.testing.assert_array_equal(row["action"], ours.action[0])
        for size in BATCHES:
            seconds = {}
            sides = {"ours": (drawing(WINDOW, data, size, 1000), 1000),
                     "peer": (of_loader(DataLoader(peer, size, shuffle=True), 128 // size or 1), 128 // size or 1)}
            timed = measure.interleaved({name: work for name, (work, _) in sides.items()})
            for name, (_, batches) in sides.items():
                seconds[name] = [s / (batches * size) for s in timed[name]]
            yield measure.compared(f"batches of {size}; lerobot's loader", seconds, "ours", "peer", amount=1,
                                   unit="windows/s", goal=1000)


def robomimic():
    import h5py
    import robomimic.utils.obs_utils as specs
    from robomimic.utils.dataset import SequenceDataset
    from torch.utils.data import DataLoader

    with tempfile.TemporaryDirectory() as folder:
        data = stored(Path(folder) / "data", *SMALL)
        with h5py.File(Path(folder) / "data.hdf5", "w") as file:
            for number, episode in enumerate(data):
                demo = file.create_group(f"data/demo_{number}")
                demo.attrs["num_samples"] = len(episode)
                demo["obs/state"], demo["actions"] = episode.steps["observation.state"], episode.steps["action"]
            file["data"].attrs["total"] = data.steps
        specs.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["state"], "rgb": []}})
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            peer = SequenceDataset(str(Path(folder) / "data.hdf5"), ("state",), ("actions",), frame_stack=2,
                                   seq_length=WINDOW.horizon, pad_frame_stack=True, pad_seq_length=True,
                                   hdf5_cache_mode="all", hdf5_use_swmr=False, load_next_obs=False)
        as_many = Window(n_obs_steps=17, horizon=17, obs_offset=15, action_offset=-1)
        ours = next(as_many.windows(data, ("observation.state",), "action").scan()).select_rows(slice(137, 138))
        np.testing.assert_array_equal(peer[137]["obs"]["state"], ours.obs["observation.state"][0])
        np.testing.assert_array_equal(peer[137]["actions"], ours.action[0])
        for size in BATCHES:
            timed = measure.interleaved({"ours": drawing(WINDOW, data, size, 1000),
                                         "as many": drawing(as_many, data, size, 1000),
                                         "peer": of_loader(DataLoader(peer, size, shuffle=True), 4096 // size)})
            seconds = {name: [s / (4096 if name == "peer" else 1000 * size) for s in values]
                       for name, values in timed.items()}
            for name, rows in (("ours", ""), ("as many", ", 17 rows of both")):
                yield measure.compared(f"batches of {size}{rows}; robomimic, all cached", seconds, name, "peer",
                                       amount=1, unit="windows/s", goal=10)


def alone():
    with tempfile.TemporaryDirectory() as folder:
        small, large = (stored(Path(folder) / name, *size) for name, size in (("small", SMALL), ("large", LARGE)))
        for size in BATCHES:
            timed = measure.interleaved({"large": drawing(WINDOW, large, size, 1000),
                                         "small": drawing(WINDOW, small, size, 1000)})
            seconds = {name: [s / (1000 * size) for s in values] for name, values in timed.items()}
            yield measure.compared(f"batches of {size}, of 1 M steps; of 20 k, ours too", seconds, "large", "small",
                                   amount=1, unit="windows/s", goal=0.5)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["UNDERSTUDY_CACHE"] = cache
        lines, versions = measure.beside({"lerobot": lerobot, "robomimic": robomimic, "": alone},
                                         ("torch", "numpy", "lerobot", "robomimic"))
        measure.save("windows", lines, more={"versions": versions})
