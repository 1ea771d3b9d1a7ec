"""Converting and windowing take no more memory for more data: anonymous memory (MB), of a process of its own.

Readers and writers hold some pieces of 8 to 16 MB at once, and libraries keep what they once had: a hundred is usual.
"""

import importlib.util
import sys

import pytest
from folders import BENCHMARKS

from understudy.data.formats import WRITERS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")


@pytest.fixture(scope="module")
def memory():
    spec = importlib.util.spec_from_file_location("memory", BENCHMARKS / "memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def taken(memory, folder, megabytes, to):
    memory.write_data(folder / "data.npz", megabytes)
    took = memory.measured(folder / "data.npz", folder / "written", to)
    return max(took["converting"], took["windowing"])


@pytest.mark.parametrize("to", ["lerobot", "robomimic"])
@pytest.mark.slow
def test_forty_megabytes(memory, tmp_path, to):
    assert taken(memory, tmp_path, 40, to) < 150


@pytest.mark.slow
@pytest.mark.parametrize("to", [name for name in WRITERS if name != "csv"])
def test_two_hundred_megabytes(memory, tmp_path, to):
    assert taken(memory, tmp_path, 200, to) < 200


@pytest.mark.slow
def test_two_gigabytes(memory, tmp_path):
    assert taken(memory, tmp_path, 2000, "lerobot") < 250
