"""Files of strangers that are made to do harm: small ones that fill the memory, and names that steer a terminal."""

from __future__ import annotations

import io
import shutil
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fixtures.array_files import refused
from fixtures.lerobot_files import LEROBOT

from understudy import cli


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def converted(tmp_path):
    """A LeRobot data set whose vectors are lists of any length, and its file of numbers."""
    shutil.copytree(LEROBOT / "v3.0_converted/images", tmp_path / "data")
    return tmp_path / "data", tmp_path / "data/data/chunk-000/file-000.parquet"


def peak_bytes(function) -> int:
    """The most memory that Arrow had at a time while the function ran."""
    pool = pa.system_memory_pool()
    before, pa_default = pool.bytes_allocated(), pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        function()
    finally:
        pa.set_memory_pool(pa_default)
    return pool.max_memory() - before


def test_a_small_parquet_file_whose_values_would_fill_the_memory(converted):
    """Equal values take next to nothing in the file: 22 rows of a million numbers are 176 MB when they are decoded."""
    path, file = converted
    table = pq.read_table(file)
    many = pa.array([np.zeros(1_000_000, np.float32)] * table.num_rows)
    table = table.set_column(table.column_names.index("action"), "action", many)
    pq.write_table(table, file)
    assert file.stat().st_size < 1_000_000
    assert peak_bytes(lambda: refused(path, "file-000.parquet, action", "it has 22,000,000 values",
                                      "the shape in meta/info.json says 44")) < 20_000_000


def test_a_small_parquet_file_with_more_rows_than_all_episodes(converted):
    path, file = converted
    table = pq.read_table(file)
    rows = np.r_[np.arange(22), np.full(2_000_000, 21)]
    pq.write_table(table.drop_columns(["observation.images.top"]).take(rows) if "observation.images.top" in
                   table.column_names else table.take(rows), file)
    refused(path, "it has 2,000,022 rows, 2,000,000 more than all episodes")


def test_an_npz_array_whose_shape_says_more_than_the_file_has(tmp_path):
    """The header of a few bytes says 8 TB."""
    path, header = tmp_path / "d.npz", io.BytesIO()
    about = {"descr": "<f8", "fortran_order": True, "shape": (1_000_000, 1_000_000)}
    np.lib.format.write_array_header_1_0(header, about)
    np.savez(path, actions=np.zeros((22, 1), np.float32), episode_ends=[22])
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("states.npy", header.getvalue() + bytes(800))
    refused(path, "states", "the array is cut short: 7999999999200 bytes are missing")


def test_names_of_strangers_do_not_steer_the_terminal(tmp_path, capsys):
    path = tmp_path / "d.npz"
    np.savez(path, **{"observation.state": np.zeros((22, 2), np.float32), "action": np.zeros((22, 1), np.float32),
                      "a\x1b[2Jb\u202ec\x9b": np.ones((22, 1), np.float32)})
    for command in ("inspect", "audit"):
        cli.main([command, str(path)])
        printed = "".join(capsys.readouterr())
        assert "a\\x1b[2Jb\\u202ec\\x9b" in printed and not set("\x1b\u202e\x9b") & set(printed)
    assert cli.main(["eval", "run\x1b[31m", str(path)]) == 2
    error = capsys.readouterr().err
    assert "run\\x1b[31m" in error and "\x1b" not in error
