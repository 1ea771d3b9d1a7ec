"""Data sets at addresses: fetched once, piece by piece, as far as they are read; on fsspec's own file systems."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures import closed_form
from fixtures.lerobot_files import CAMERA, LEROBOT, closed

from understudy.cli import main
from understudy.core import UserError
from understudy.data import cache
from understudy.data.formats import lerobot, open_dataset, preview_dataset, remote

fsspec = pytest.importorskip("fsspec", reason="extra cloud not installed")
from fsspec.implementations.memory import MemoryFileSystem  # noqa: E402


class Opened:
    """What was opened of a Counted file system, how many bytes were read, and where reading is to break."""

    names: list[str] = []
    read = 0
    breaks: int | None = None
    away = False


class Breaking:
    def __init__(self, file):
        self.file = file

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def seek(self, place):
        self.file.seek(place)

    def read(self, size):
        if Opened.breaks is not None and Opened.read >= Opened.breaks:
            raise OSError("the line is dead")
        piece = self.file.read(size)
        Opened.read += len(piece)
        return piece


class Counted(MemoryFileSystem):
    """memory://, watched."""

    protocol = "counted"
    store, pseudo_dirs = {}, [""]
    cachable = False

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).replace("counted://", "memory://"))

    def info(self, path, **more):
        if Opened.away:
            raise ConnectionError("no network")
        return super().info(path, **more)

    def open(self, path, mode="rb", **more):
        handle = super().open(path, mode, **more)
        if mode == "rb":
            Opened.names.append(path)
            return Breaking(handle)
        return handle


@pytest.fixture(autouse=True)
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    fsspec.register_implementation("counted", Counted, clobber=True)
    Opened.names, Opened.read, Opened.breaks, Opened.away = [], 0, None, False
    Counted.store.clear()
    MemoryFileSystem.store.clear()
    remote._open_folders.clear()
    yield
    remote._read_listing.cache_clear()


def put(folder: Path, at: str, protocol="counted"):
    fs = fsspec.filesystem(protocol)
    for file in folder.rglob("*"):
        if file.is_file():
            fs.pipe_file(f"/{at}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"{protocol}://{at}"


def opened():
    return {n.rsplit("/", 1)[-1] if "videos" not in n else "film" for n in Opened.names}


@pytest.mark.parametrize("given, address", [
    ("hf://datasets/lerobot/pusht", "hf://datasets/lerobot/pusht"), ("hf:/lerobot/pusht@v3.0",
                                                                     "hf://datasets/lerobot/pusht@v3.0"),
    (Path("s3://bucket/a/b"), "s3://bucket/a/b"), ("https:/host.org/d.npz?x=1", "https://host.org/d.npz?x=1"),
    ("C:/data", None), ("data/set", None), ("/abs:/x", None), ("module:function", None), ("gym:A/B-v0", None)])
def test_what_an_address_is(given, address):
    assert remote.url_of(given) == address


def test_a_folder_of_that_name_is_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "s3:" / "bucket").mkdir(parents=True)
    assert remote.url_of("s3:/bucket") is None
    assert remote.local_path(f"file://{tmp_path}") == tmp_path and remote.local_path(f"file:{tmp_path}") == tmp_path


def test_metadata_first_then_what_is_read(tmp_path):
    at = put(LEROBOT / "v3.0/video_many_files", "bucket/films")
    data = open_dataset(at)
    assert opened() == {"info.json", "stats.json", "tasks.parquet", "file-000.parquet"}
    assert not any("/data/" in n for n in Opened.names)
    assert data.metadata["path"] == at and [len(e) for e in data] == closed_form.LENGTHS
    Opened.names.clear()
    assert np.array_equal(data[3].steps["action"], closed_form.episode(3)["action"])
    assert all("/data/" in n for n in Opened.names) and Opened.names
    Opened.names.clear()
    assert data[1].steps[CAMERA].shape == (1, 64, 64, 3)
    assert len(Opened.names) == 1 and "videos" in Opened.names[0]  # one film of four
    Opened.names.clear()
    again = open_dataset(at)
    for e in again:
        np.asarray(e.steps[CAMERA])
    assert len(Opened.names) == 3 and again.fingerprint() == open_dataset(
        LEROBOT / "v3.0/video_many_files").fingerprint()


def test_one_file_and_what_lies_beside_it(tmp_path):
    np.savez(tmp_path / "d.npz", observations=np.zeros((9, 3)), actions=np.ones((9, 2)), episode_ends=[4, 9])
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/some/d.npz", (tmp_path / "d.npz").read_bytes())
    data = open_dataset("memory://some/d.npz")
    assert [len(e) for e in data] == [4, 5] and data.metadata["path"] == "memory://some/d.npz"
    assert open_dataset(Path("memory://some/d.npz")).fingerprint() == data.fingerprint()  # as a command has it


def test_a_changed_source_is_fetched_anew(tmp_path):
    for n in (4, 7):
        np.savez(tmp_path / "d.npz", observations=np.zeros((n, 3)), actions=np.ones((n, 2)), episode_ends=[n])
        fsspec.filesystem("counted").pipe_file("/d.npz", (tmp_path / "d.npz").read_bytes())
        assert len(open_dataset("counted://d.npz")[0]) == n
    before = len(Opened.names)
    assert len(open_dataset("counted://d.npz")[0]) == 7 and len(Opened.names) == before


def test_an_interrupted_transfer_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "_BLOCK", 1000)
    path = tmp_path / "d.npz"
    rng = np.random.default_rng(0)
    np.savez(path, observations=rng.random((500, 3)), actions=rng.random((500, 2)), episode_ends=[500])
    size = path.stat().st_size
    fsspec.filesystem("counted").pipe_file("/d.npz", path.read_bytes())
    Opened.breaks = size // 2
    with pytest.raises(UserError, match="d.npz: the source does not answer .OSError: the line is dead"):
        open_dataset("counted://d.npz")
    first, Opened.breaks = Opened.read, None
    assert open_dataset("counted://d.npz").fingerprint() == open_dataset(path).fingerprint()
    assert Opened.read == size and first >= size // 2  # nothing twice


def test_without_a_network_what_was_fetched_is_read(capsys):
    at = put(LEROBOT / "v3.0/images", "bucket/images")
    whole = open_dataset(at).fingerprint()
    Opened.away = True
    assert open_dataset(at).fingerprint() == whole
    assert "cannot be reached; what was fetched of it last is read" in capsys.readouterr().err
    with pytest.raises(UserError, match="the source does not answer .ConnectionError: no network"):
        open_dataset("counted://bucket/other")


def test_downloads_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "0.0005")
    rng = np.random.default_rng(0)
    for i in range(3):
        np.savez(tmp_path / "d.npz", observations=rng.random((8000, 3)), actions=np.zeros((8000, 1)),
                 episode_ends=[8000])
        fsspec.filesystem("counted").pipe_file(f"/{i}.npz", (tmp_path / "d.npz").read_bytes())
        remote.local_path(f"counted://{i}.npz")
        remote._open_folders.clear()
    root = tmp_path / "cache" / ".fetched"
    kept = sum(f.stat().st_size for f in root.rglob("*") if f.is_file())
    assert kept <= 500_000 + 10_000 and len([e for e in root.iterdir() if e.is_dir()]) < 3
    fsspec.filesystem("counted").pipe_file("/big.npz", bytes(600_000))
    with pytest.raises(UserError, match="needs 0.00 GB of cache, which may hold 0.00 GB"):
        remote.local_path("counted://big.npz")


def test_downloads_do_not_fill_the_disk(tmp_path, monkeypatch):
    remote.local_path(put(LEROBOT / "v3.0/images", "bucket/images"))
    remote._open_folders.clear()
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: full)
    fsspec.filesystem("counted").pipe_file("/big.npz", bytes(600_000))
    with pytest.raises(UserError, match="needs 0.00 GB of disk, but only 0.00 GB are free"):
        remote.local_path("counted://big.npz")


def test_derived_arrays_do_not_push_downloads_out(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "0.0005")
    local = remote.local_path(put(LEROBOT / "v3.0/images", "bucket/images"))
    for folder in (local, *local.parents[:2]):
        os.utime(folder, (0, 0))
    for key in ("one", "two"):
        cache.columns(key, {"a": ((300_000,), np.uint8)}, lambda out: None, "test")
        cache._mapped_entries.clear()
    assert (local / "meta/info.json").exists() and not (cache.folder() / "one").exists()


@pytest.mark.parametrize("at, match", [
    ("memory://nothing/here", "there is nothing at this address"),
    ("nosuch://a/b", "addresses that start with nosuch:// are not known"),
])
def test_addresses_that_lead_nowhere(at, match, capsys):
    with pytest.raises(UserError, match=match):
        open_dataset(at)
    assert main(["inspect", at]) == 2


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "fsspec", None)
    with pytest.raises(UserError, match=r"pip install 'understudy\[cloud\]'"):
        open_dataset("s3://bucket/set")


def test_names_that_leave_the_folder_are_refused():
    class Sly(MemoryFileSystem):
        protocol = "sly"

        def info(self, path, **more):
            return {"name": path, "type": "directory"}

        def find(self, path, **more):
            return {f"{path}/../../evil": {"size": 1, "type": "file"}}

    fsspec.register_implementation("sly", Sly, clobber=True)
    with pytest.raises(UserError, match="a file named .*evil"):
        open_dataset("sly://x")


def test_commands_take_addresses(tmp_path, capsys, shared):
    at = put(LEROBOT / "v3.0/images", "set", "memory")
    assert main(["inspect", at, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["episodes"] == 4
    assert main(["convert", at, str(tmp_path / "out"), "--to", "lerobot-v2.1"]) == 0
    assert open_dataset(tmp_path / "out").fingerprint() == open_dataset(LEROBOT / "v3.0/images").fingerprint()
    bags = put(shared / "fixtures/rosbag/ros2_mcap", "bags", "memory")
    assert [len(e) for e in preview_dataset(bags)] == closed_form.LENGTHS
    lerobot.write(closed(), tmp_path / "demos")
    at = put(tmp_path / "demos", "demos", "memory")
    assert main(["train", "bc", at, "--out", str(tmp_path / "run"), "--steps", "2", "--val-fraction", "0"]) == 0
    assert main(["eval", str(tmp_path / "run"), at]) == 0




def test_a_source_that_does_not_answer(monkeypatch, capsys):
    """As gs:// without a right to read, which tries on and on."""
    import time

    monkeypatch.setattr(remote, "_ANSWER", 0.2)
    monkeypatch.setattr(remote, "open_url", lambda at: time.sleep(30))
    began = time.monotonic()
    assert main(["inspect", "gs://bucket/set"]) == 2
    assert "there was no answer within 0.2 s" in capsys.readouterr().err and time.monotonic() - began < 20
