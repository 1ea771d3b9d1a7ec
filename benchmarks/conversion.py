"""Converting state columns, beside an upstream reader that only reads them: python benchmarks/conversion.py

100 episodes of 500 steps as Meta-World has them: 39 observed numbers, 4 of action, a reward. Ours opens a data set of
each format and writes all of it as LeRobot v3.0, statistics and all, its cache empty each time; the peer reads every
episode of the same files into arrays with the format's own library. The goal is half the peer's speed. Images: the
same with one 96x96 camera in LeRobot's PNG, reported without a goal.
"""

from __future__ import annotations

import measure

measure.one_thread()

import os  # noqa: E402
import shutil  # noqa: E402
import tempfile  # noqa: E402
import warnings  # noqa: E402
from itertools import count  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import open_dataset, write_dataset  # noqa: E402

EPISODES, STEPS, STATE, ACTION, SIDE = 100, 500, 39, 4, 96
GOAL = 0.5


def demonstrations(camera: bool = False, episodes: int = EPISODES, steps: int = STEPS) -> Dataset:
    rng = np.random.default_rng(0)
    frame = np.repeat(np.repeat(rng.integers(0, 256, (SIDE // 8, SIDE // 8, 3)), 8, 0), 8, 1).astype(np.uint8)

    def episode():
        end = np.arange(steps) == steps - 1
        return Episode({
            "observation.state": rng.normal(size=(steps + 1, STATE)).astype(np.float32),
            **({"observation.images.front": frame + np.arange(steps, dtype=np.uint8)[:, None, None, None]}
               if camera else {}),
            "action": rng.uniform(-1, 1, (steps, ACTION)).astype(np.float32),
            "next.reward": rng.random(steps).astype(np.float32), "next.terminated": end, "next.truncated": end & False})
    return Dataset([episode() for _ in range(episodes)], {"fps": 20.0})


def line(what: str, data: Dataset, form: str, read, goal: float | None = GOAL) -> measure.Line:
    """read: (path) -> a number that takes all of the values."""
    with tempfile.TemporaryDirectory() as place:
        place, number = Path(place), count()
        path = place / f"data-{form}"
        write_dataset(data, path, form, **({"images": "png"} if form.startswith("lerobot") else {}))

        def ours():
            os.environ["UNDERSTUDY_CACHE"] = str(place / "cache")
            out = place / str(next(number))
            write_dataset(open_dataset(path), out, "lerobot", images="png")
            shutil.rmtree(out)
            shutil.rmtree(place / "cache", ignore_errors=True)
        seconds = measure.interleaved({"ours": ours, "peer": lambda: read(path)})
        return measure.compared(what, seconds, "ours", "peer", amount=data.steps, unit="steps/s", goal=goal)


def plain():
    import h5py
    import zarr

    def hdf5(path):
        with h5py.File(path) as file:
            return sum(file["data"][demo][key][()].sum() for demo in file["data"]
                       for key in ("obs/state", "actions", "rewards", "dones"))

    def replay(path):
        group = zarr.open_group(path, mode="r")
        ends = group["meta/episode_ends"][:]
        columns = [group[f"data/{key}"] for key in group["data"]]
        return sum(c[first:end].sum() for c in columns for first, end in zip([0, *ends[:-1]], ends, strict=True))

    def flat(path):
        with h5py.File(path) as file:
            return sum(file[key][()].sum() for key in ("observations", "next_observations", "actions", "rewards"))
    data = demonstrations()
    yield line("robomimic; h5py", data, "robomimic", hdf5)
    yield line("zarr; zarr", data, "zarr", replay)
    yield line("D4RL; h5py", data, "d4rl", flat)
    yield line("npz; NumPy", data, "npz", lambda path: sum(np.sum(a) for a in np.load(path).values()))
    pictures = demonstrations(True, 4, 100)

    def read_images(path):
        with h5py.File(path) as file:
            return sum(file["data"][d]["obs/front"][()].sum() for d in file["data"])
    yield line("robomimic with a camera, written as PNG; h5py", pictures, "robomimic", read_images, None)


def minari():
    import minari

    def read(path):
        data = minari.MinariDataset.__new__(minari.MinariDataset)
        data.__init__(path / "data")
        return sum(e.observations.sum() + e.actions.sum() + e.episode_returns.sum() for e in data.iterate_episodes())
    yield line("Minari; minari", demonstrations(), "minari", read)


def robomimic():
    """Into memory once, as its training does before the first batch."""
    import contextlib
    import io

    import robomimic.utils.obs_utils as specs
    from robomimic.utils.dataset import SequenceDataset

    specs.initialize_obs_utils_with_obs_specs({"obs": {"low_dim": ["state"], "rgb": []}})

    def read(path):
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            data = SequenceDataset(str(path), ("state",), ("actions", "rewards", "dones"), frame_stack=1, seq_length=1,
                                   hdf5_cache_mode="low_dim", hdf5_use_swmr=False, load_next_obs=False)
        return len(data)
    yield line("robomimic; robomimic", demonstrations(), "robomimic", read)


def lerobot():
    import sys

    sys.path.insert(0, str(measure.HERE.parent / "tests"))
    import upstream_lerobot

    upstream_lerobot.stand_in()
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    def read(path):
        rows = LeRobotDataset("none/none", root=path).hf_dataset.with_format("numpy")
        return sum(rows[:][key].sum() for key in ("observation.state", "action", "next.reward"))
    yield line("LeRobot; lerobot (all rows at once)", demonstrations(), "lerobot", read)


if __name__ == "__main__":
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    warnings.simplefilter("ignore")
    lines, versions = measure.beside({"": plain, "minari": minari, "lerobot": lerobot, "robomimic": robomimic},
                                     ("numpy", "pyarrow", "h5py", "zarr", "minari", "lerobot", "robomimic"))
    measure.save("conversion", lines, more={"versions": versions})
