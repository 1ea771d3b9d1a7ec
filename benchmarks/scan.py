"""Every row of every episode of a data set of 1 M steps, page cache warm: python benchmarks/scan.py

1,000 episodes of 1,000 steps as Meta-World has them: 39 observed numbers, 4 of action, a reward. Every side gives each
episode's columns as NumPy arrays and adds them up, by a product with ones, the quickest way to touch every number
(NumPy's sum would be most of our side's time); the sums are the same. Ours reads a LeRobot data set as `open_dataset`
gives it, whose columns were mapped when it was first read (the notes say what that took). Minari reads its own files.
zarr and h5py have one array a column, of which an episode is a slice: zarr in chunks of one episode, which suits it
best; HDF5 in an array that can grow, as a recorder needs (h5py then chooses the chunks), and in one that cannot.
"""

from __future__ import annotations

import measure

measure.one_thread()

import os  # noqa: E402
import tempfile  # noqa: E402
import warnings  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import lerobot as files  # noqa: E402
from understudy.data.formats import open_dataset  # noqa: E402

EPISODES, STEPS, STATE, ACTION = 1000, 1000, 39, 4
COLUMNS = ("observation.state", "action", "next.reward")
GOALS = {"Minari": 25, "zarr": 100, "one HDF5 array that can grow": 9}


def columns() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    n = EPISODES * STEPS
    return {"observation.state": rng.normal(size=(n, STATE)).astype(np.float32),
            "action": rng.uniform(-1, 1, size=(n, ACTION)).astype(np.float32),
            "next.reward": rng.random(n).astype(np.float32)}


def spans() -> list[slice]:
    return [slice(e * STEPS, (e + 1) * STEPS) for e in range(EPISODES)]


ONES = np.ones((STEPS + 1) * STATE, np.float32)  # Minari has what was seen last as well


def added(*values: np.ndarray) -> float:
    return sum(float(np.dot(column.reshape(-1), ONES[:column.size])) for column in values)


def exactly(*values: np.ndarray) -> float:
    return sum(float(column.sum(dtype=np.float64)) for column in values)


def line(name: str, whole: dict, episodes) -> measure.Line:
    """`episodes()` gives the peer's columns of each."""
    with tempfile.TemporaryDirectory() as place:
        files.write(Dataset([Episode({k: v[s] for k, v in whole.items()}) for s in spans()], {"fps": 20}),
                    Path(place) / "data")
        data = open_dataset(Path(place) / "data")

        def ours():
            return (tuple(episode.steps[k] for k in COLUMNS) for episode in data)

        def scan(which, add=added):
            return sum(add(*values) for values in which())
        first = measure.cpu(lambda: scan(ours))
        np.testing.assert_allclose(scan(ours, exactly), scan(episodes, exactly), rtol=1e-9)
        seconds = measure.interleaved({"ours": lambda: scan(ours), "peer": lambda: scan(episodes)})
        return measure.compared(name, seconds, "ours", "peer", amount=0, unit="ms", goal=GOALS.get(name),
                                note=f"ours the first time: {first:.2f} s")


def minari():
    with tempfile.TemporaryDirectory() as place:
        warnings.simplefilter("ignore")  # of what a data set for others should say of itself
        os.environ["MINARI_DATASETS_PATH"] = place
        import gymnasium
        import minari
        from minari.data_collector import EpisodeBuffer

        whole = columns()
        printed = []
        for number, s in enumerate(spans()):
            observed = whole["observation.state"][s]
            over = np.zeros(STEPS, bool)
            over[-1] = True
            printed.append(EpisodeBuffer(
                id=number, observations=np.concatenate([observed, np.zeros_like(observed[:1])]),
                actions=whole["action"][s], rewards=whole["next.reward"][s], terminations=over,
                truncations=np.zeros(STEPS, bool)))
        box = gymnasium.spaces.Box
        stored = minari.create_dataset_from_buffers(
            "benchmark/scan-v0", printed, observation_space=box(-np.inf, np.inf, (STATE,), np.float32),
            action_space=box(-1, 1, (ACTION,), np.float32), requirements=[])

        yield line("Minari", whole, lambda: ((e.observations, e.actions, np.asarray(e.episode_returns))
                                             for e in stored.iterate_episodes()))


def zarr():
    import zarr

    with tempfile.TemporaryDirectory() as place:
        whole, group = columns(), zarr.open_group(place, mode="w")
        for name, values in whole.items():
            group.create_array(name, data=values, chunks=(STEPS, *values.shape[1:]))
        stored = [group[name] for name in COLUMNS]
        yield line("zarr", whole, lambda: (tuple(column[s] for column in stored) for s in spans()))


def h5py():
    import h5py

    whole = columns()
    for name, grows in (("one HDF5 array that can grow", True), ("one HDF5 array that cannot", False)):
        with tempfile.TemporaryDirectory() as place:
            with h5py.File(Path(place) / "data.hdf5", "w") as file:
                for key, values in whole.items():
                    file.create_dataset(key, data=values, maxshape=(None, *values.shape[1:]) if grows else None)
            with h5py.File(Path(place) / "data.hdf5") as file:
                stored = [file[key] for key in COLUMNS]
                yield line(name, whole, lambda stored=stored: (tuple(column[s] for column in stored)
                                                               for s in spans()))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as cache:
        os.environ["UNDERSTUDY_CACHE"] = cache
        lines, versions = measure.beside({"minari": minari, "zarr": zarr, "": h5py},
                                         ("numpy", "pyarrow", "minari", "zarr", "h5py"))
        measure.save("scan", lines, more={"versions": versions})
