"""Converting and windowing data larger than memory: python benchmarks/memory.py [--mb 10 200 2000] [--to FORMAT ...]

Data of each size are made (an .npz of episodes of 1 MB, 1000 steps of 250 numbers), converted into each format, opened
there, and windows drawn from them, in a process of its own whose anonymous memory (RssAnon of /proc; mapped pages are
not counted) is looked at a hundred times a second. What it had before it began is told apart.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np

BOUND = 1000.0  # MB
STEPS, WIDE = 1000, 240


def write_data(path: Path, megabytes: int) -> None:
    """An .npz of that many episodes of 1 MB, written piece by piece."""
    from understudy.data.formats.parts.npz_arrays import write_npz

    rng = np.random.default_rng(0)
    piece = rng.integers(-99, 99, (STEPS, WIDE)).astype(np.float32)  # so that it is quickly packed
    count = max(megabytes, 1)
    write_npz(path, [
        ("observations", (count * STEPS, WIDE), np.dtype("f4"), lambda: (piece + e for e in range(count))),
        ("actions", (count * STEPS, 8), np.dtype("f4"), lambda: (piece[:, :8] for _ in range(count))),
        ("episode_ends", (count,), np.dtype("i8"), lambda: [STEPS * np.arange(1, count + 1)]),
        ("operator", (count,), np.dtype("U3"), lambda: [np.array(["Ada"] * count)])])


def anonymous() -> float:
    return int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 1024


class Watch:
    """The greatest RssAnon (MB) of this process while it is open."""

    def __enter__(self):
        self.most, self._over = anonymous(), threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()
        return self

    def _look(self):
        while not self._over.wait(0.01):
            self.most = max(self.most, anonymous())

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()
        self.most = max(self.most, anonymous())


def use(source: Path, path: Path, to: str) -> dict:
    """What converting and windowing took, in MB, beyond what the libraries take."""
    from understudy.data.formats import WRITERS, conversion_losses, open_dataset, write_dataset
    from understudy.data.window import Window

    def windows(data):
        drawn = Window(2, 8).windows(data, ("observation.state",), "action")
        for i in range(20):
            drawn.batch(64, i)
    small = source.with_name("small.npz")  # what is made once, whatever the size
    write_data(small, 1)
    write_dataset(open_dataset(small), path.with_name(f"small-{path.name}"), to)
    windows(open_dataset(path.with_name(f"small-{path.name}")))
    assert to in WRITERS
    before, peaks = anonymous(), {}
    data = open_dataset(source)
    with Watch() as watch:
        conversion_losses(data, to)
        write_dataset(data, path, to)
    peaks["converting"] = watch.most - before
    with Watch() as watch:
        windows(open_dataset(path))
    return {**peaks, "windowing": watch.most - before, "before": before}


def measured(source: Path, place: Path, to: str) -> dict:
    """`use` in a process of its own."""
    process = subprocess.run([sys.executable, __file__, "--use", source, place, to], check=True, stdout=subprocess.PIPE,
                          env={**os.environ, "UNDERSTUDY_CACHE": str(place.parent / "cache"),
                               "UNDERSTUDY_CACHE_GB": "100"})
    for path in (place, *place.parent.glob("small*"), *place.parent.glob(f"{place.name}.*"), place.parent / "cache"):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return json.loads(process.stdout)


def main() -> None:
    import measure

    from understudy.data.formats import WRITERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, nargs="*", default=[10, 200, 2000])
    parser.add_argument("--to", nargs="*", default=list(WRITERS), choices=list(WRITERS))
    o = parser.parse_args()
    took: dict[str, dict[int, dict]] = {to: {} for to in o.to}
    for size in o.mb:
        with tempfile.TemporaryDirectory() as folder:
            write_data(source := Path(folder) / "data.npz", size)
            for to in o.to:
                took[to][size] = peak = measured(source, Path(folder) / "written", to)
                print(f"{to}, {size:,} MB: converting {peak['converting']:.0f} MB, windowing {peak['windowing']:.0f}",
                      flush=True)
    measure.save("memory", [line(to, of) for to, of in took.items()], packages=("numpy", "pyarrow", "h5py", "zarr"))


def line(to: str, took: dict[int, dict]):
    """The most that any size took; each of them in the note."""
    import measure

    most = max(seconds[what] for seconds in took.values() for what in ("converting", "windowing"))
    each = "; ".join(f"{size:,} MB: {seconds['converting']:.0f} and {seconds['windowing']:.0f}"
                     for size, seconds in took.items())
    return measure.Line(f"into {to}, and windows of it", measure.Figure(most, most, most, "MB"), bound=BOUND, note=each)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--use"]:
        print(json.dumps(use(Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])))
    else:
        main()
