"""The same work on data sets of 100, 10,000 and 1,000,000 episodes: python benchmarks/growth.py

LeRobot v3.0 on disk, 20 steps an episode, written here as lerobot's own tools would: many episodes a file, large row
groups. A process of its own opens each one, lets the library make what it maps, holds every tenth episode out, draws
batches and trains; its anonymous memory (RssAnon of /proc; mapped pages are not counted, and it has no other processes)
is looked at twenty times a second. What a batch and a training step cost is timed in one process that has all three, in
turns.
"""

from __future__ import annotations

import measure

measure.one_thread()

import itertools  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import threading  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402

from understudy.data.episode import Dataset  # noqa: E402
from understudy.data.formats import open_dataset  # noqa: E402
from understudy.data.window import Window  # noqa: E402
from understudy.methods import find_method  # noqa: E402
from understudy.policy import Policy  # noqa: E402

SIZES, STEPS, FPS = (100, 10_000, 1_000_000), 20, 10
STATE, ACTION = 4, 2
TOGETHER = 10_000  # episodes a row group
MEMORY, OPENING = 1000.0, 2.0  # MB whatever the size; s for 10,000 episodes
SIZE, UPDATES = 64, 50  # of a batch, and of a timed turn


def write(folder: Path, count: int) -> None:
    """What the library reads of a LeRobot v3.0 data set; pictures and statistics are not needed."""
    columns = {"observation.state": ("float32", STATE), "action": ("float32", ACTION), "timestamp": ("float32", 1),
               **{name: ("int64", 1) for name in ("frame_index", "episode_index", "index", "task_index")}}
    data = folder / "data/chunk-000/file-000.parquet"
    episodes = folder / "meta/episodes/chunk-000/file-000.parquet"
    for file in (data, episodes):
        file.parent.mkdir(parents=True)
    types = {name: pa.from_numpy_dtype(np.dtype(dtype)) for name, (dtype, _) in columns.items()}
    schema = pa.schema([(n, pa.list_(types[n], width) if width > 1 else types[n]) for n, (_, width) in columns.items()])
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(data, schema, compression="none", use_dictionary=False) as writer:
        for first in range(0, count, TOGETHER):
            episode = np.repeat(np.arange(first, min(first + TOGETHER, count)), STEPS)
            step = np.tile(np.arange(STEPS), len(episode) // STEPS)
            values = {"timestamp": (step / FPS).astype(np.float32), "frame_index": step, "episode_index": episode,
                      "index": first * STEPS + np.arange(len(step)), "task_index": np.zeros_like(step)}
            for name, width in (("observation.state", STATE), ("action", ACTION)):
                flat = rng.random(len(step) * width, np.float32)
                values[name] = pa.FixedSizeListArray.from_arrays(pa.array(flat), width)
            writer.write_table(pa.table(values, schema=None).select(schema.names).cast(schema))
    number = np.arange(count)
    pq.write_table(pa.table({
        "episode_index": number, "length": np.full(count, STEPS), "data/chunk_index": np.zeros(count, np.int64),
        "data/file_index": np.zeros(count, np.int64), "dataset_from_index": number * STEPS,
        "dataset_to_index": (number + 1) * STEPS}), episodes)
    pq.write_table(pa.table({"task_index": [0], "task": ["reach"]}), folder / "meta/tasks.parquet")
    (folder / "meta/info.json").write_text(json.dumps({
        "codebase_version": "v3.0", "robot_type": None, "total_episodes": count, "total_frames": count * STEPS,
        "total_tasks": 1, "chunks_size": 1000, "fps": FPS, "splits": {"train": f"0:{count}"}, "video_path": None,
        "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        "features": {name: {"dtype": dtype, "shape": [width], "names": None}
                     for name, (dtype, width) in columns.items()}}))


def training(data: Dataset):
    """(a batch, an update) to be called."""
    selected = data.select(i for i in range(len(data)) if i % 10)
    method = find_method("bc", selected.features())
    torch.manual_seed(0)
    policy = Policy(method.policy, selected.features())
    # one pass over all of it is timed by scan.py
    policy.codec.fit_statistics(lambda: iter([next(policy.windows(selected).scan())]))
    learner = method.learner.build(policy, 0, 10**6, selected)
    windows, ours = Window(2, 16).windows(selected, ("observation.state",), "action"), policy.windows(selected)
    number = itertools.count()

    def batch():
        for _ in range(UPDATES):
            windows.batch(SIZE, next(number))

    def update():
        for _ in range(UPDATES):
            learner.update(ours.batch(SIZE, next(number)))
    return batch, update


class Watch:
    """The greatest RssAnon (MB) of this process, seen twenty times a second; it has no others."""

    def __init__(self):
        self.most, self._over = 0.0, threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self):
        while not self._over.wait(0.05):
            self.see()

    def see(self) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        kb = next(line.split()[1] for line in lines if line.startswith("RssAnon"))
        self.most = max(self.most, int(kb) / 1024)
        return self.most


def use(folder: Path) -> dict:
    """Opens, prepares and trains; what that took."""
    watch, sizes = Watch(), {}
    sizes["opened"] = measure.cpu(lambda: sizes.update(data=open_dataset(folder)))
    sizes["made"] = measure.cpu(lambda: sizes["data"][0].steps["action"])
    batch, update = training(sizes.pop("data"))
    batch(), update()
    return {**sizes, "memory": watch.see()}


def main() -> None:
    with tempfile.TemporaryDirectory() as place:
        os.environ["UNDERSTUDY_CACHE"] = str(Path(place) / "cache")
        used, lines = {}, []
        for size in SIZES:
            write(Path(place) / str(size), size)
            process = subprocess.run([sys.executable, __file__, "--use", Path(place) / str(size)], check=True,
                                  stdout=subprocess.PIPE, text=True)
            used[size] = json.loads(process.stdout)
        work = {size: training(open_dataset(Path(place) / str(size))) for size in SIZES}
        for which, what in enumerate((f"a batch of {SIZE} windows", "a training step of bc, batch and all")):
            timed = measure.interleaved({str(size): work[size][which] for size in SIZES})
            each = {name: [s / UPDATES for s in values] for name, values in timed.items()}
            lines += [measure.compared(f"{what}: {size:,} episodes; 100", each, str(size), "100", amount=0, unit="ms",
                                       goal=0.5 if which == 0 else 0.9) for size in SIZES[1:]]

    def seconds(value):
        return measure.Figure(value, value, value, "s")
    for size, process in used.items():
        lines.append(measure.Line(f"opening {size:,} episodes", seconds(process["opened"]),
                                  bound=OPENING if size == 10_000 else None))
        lines.append(measure.Line(f"mapping {size:,} episodes for the first time", seconds(process["made"])))
        memory = measure.Figure(process["memory"], process["memory"], process["memory"], "MB")
        lines.append(measure.Line(f"anonymous memory, {size:,} episodes opened, mapped and trained on", memory,
                                  bound=MEMORY))
    measure.save("growth", lines, packages=("torch", "numpy", "pyarrow"))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--use"]:
        print(json.dumps(use(Path(sys.argv[2]))))
    else:
        main()
