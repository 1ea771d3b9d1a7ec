"""Damaged files of every format are read right, refused or found; never a traceback, a crash or a hang."""

import importlib.util
import random
import sys

import pytest
from folders import BENCHMARKS


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz", BENCHMARKS / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_what_becomes_of_a_file_is_told_apart(fuzz, tmp_path):
    import numpy as np

    def save(name, **more):
        arrays = {"observations": np.arange(8).reshape(4, 2), "actions": np.ones((4, 1)), "episode_ends": [1, 4]}
        np.savez(tmp_path / name, **{**arrays, **more})
        return tmp_path / name
    was, warned, data = fuzz.read(save("data.npz"))
    errors, alarms = fuzz.audited(data, tmp_path / "data.npz")
    assert errors == [] and "constant" in alarms
    assert fuzz.judged(save("cut.npz", episode_ends=[2, 4]), was, warned, False) == ("warned", "constant")
    warned = [*warned, *alarms]
    assert fuzz.judged(save("same.npz"), was, warned, True) == ("right", "")
    assert fuzz.judged(save("short.npz", episode_ends=[1, 5]), was, warned, True)[0] == "refused"
    other = save("other.npz", actions=np.zeros((4, 1)))
    assert fuzz.judged(other, was, warned, False) == ("other", "values")
    assert fuzz.judged(other, was, warned, True) == ("wrong", "values")  # a zip has checksums
    assert fuzz.judged(save("cut.npz", episode_ends=[2, 4]), was, warned, False) == ("wrong", "steps, values")


def test_one_thing_is_broken_and_the_source_is_not(fuzz, tmp_path):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/a.json").write_text('{"fps": 10, "names": ["x", "y"]}')
    (tmp_path / "source/b.bin").write_bytes(bytes(1000))
    before = {p.name: p.read_bytes() for p in (tmp_path / "source").iterdir()}
    changed = 0
    for seed in range(30):
        place = tmp_path / str(seed)
        fuzz.broken(tmp_path / "source", place, random.Random(seed))
        changed += {p.name: p.read_bytes() for p in place.iterdir()} != before
    assert changed > 15  # zeros that are zeroed are as they were
    assert {p.name: p.read_bytes() for p in (tmp_path / "source").iterdir()} == before


@pytest.mark.slow
def test_five_hundred(fuzz, shared):
    for extra in ("h5py", "zarr", "mcap", "rosbags"):
        if importlib.util.find_spec(extra) is None:
            pytest.skip("extra bags not installed")
    result = fuzz.run(shared / "fixtures", 500, seed=7, say=lambda line: print(line, file=sys.stderr))
    assert sum(sum(t.values()) for t in result["formats"].values()) == 500 and len(result["formats"]) >= 15
    assert result["defects"] == []
