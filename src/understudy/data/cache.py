"""Cache of derived files outside the user's folders: arrays for memory-mapping, made from parquet, zip and video files.

The name of an entry is a digest of its source, so a changed source gets a new entry. If the size limit is reached, the
least recently used entries are removed, except entries that this process uses. You can delete the folder at any time.
`UNDERSTUDY_CACHE` sets the folder, and `UNDERSTUDY_CACHE_GB` the limit in gigabytes (20 by default).
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from ..core import UserError
from ..files import whole_folder

_LAYOUT = 1  # a new layout makes all old entries stale
_STALE_SECONDS = 24 * 3600  # s; an incomplete entry of this age was left by a killed process
FREE_SPACE = "free some space, or set UNDERSTUDY_CACHE to a folder on another disk"  # a hint
_mapped_entries: set[Path] = set()  # entries that this process has mapped and must not remove
_sizes: dict[str, int] = {}  # path of a complete entry: its bytes, which do not change


def folder() -> Path:
    """Returns the folder of the cache: `UNDERSTUDY_CACHE`, or the usual place of the operating system."""
    if custom_folder := os.environ.get("UNDERSTUDY_CACHE"):
        return Path(custom_folder)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "understudy"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "understudy" / "cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "understudy"


def max_bytes() -> int:
    """Returns the size limit of all entries together, in bytes. `UNDERSTUDY_CACHE_GB` must be positive."""
    text = os.environ.get("UNDERSTUDY_CACHE_GB", "20")
    try:
        size = float(text)
    except ValueError:
        size = -1.0
    if not size > 0:
        raise UserError(f"this must be a positive number of gigabytes, not {text!r}",
                        where="environment variable UNDERSTUDY_CACHE_GB", hint="set it to a number, such as 20")
    return int(size * 1e9)


def json_digest(*parts) -> str:
    """Returns 32 hex digits that identify plain JSON values."""
    text = json.dumps([_LAYOUT, *parts], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def files_digest(files: Iterable[Path], *parts) -> str:
    """Returns 32 hex digits that identify files by path, inode, size and times, together with plain JSON values."""
    stats = [(file, file.stat()) for file in files]
    return json_digest([[str(file.resolve()), s.st_ino, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for file, s in stats],
                       *parts)


def contains(key: str) -> bool:
    """Returns whether the cache has an entry of this name."""
    return (folder() / key).is_dir()


def memmap_arrays(key: str, size: int, build: Callable[[Path], None], description: str) -> dict[str, np.ndarray]:
    """Returns the arrays of an entry by name, as read-only memory maps.

    Args:
        size: Size of the entry in bytes. It must fit into the limit and the free disk space.
        build: Fills a folder with arrays made by `create_array`. It runs only if the entry does not exist, in one of
            the processes that need it. The entry is written completely or not at all.
        description: What error messages call the entry.
    """
    place = folder() / key
    for _ in range(3):  # another process may remove the entry between build and use
        if not place.is_dir():
            _build_entry(place, size, build, description)
        try:
            os.utime(place)
            _mapped_entries.add(place)
            arrays = {unquote(p.name[:-4]): np.asarray(np.load(p, mmap_mode="r")) for p in place.glob("*.npy")}
            if arrays:
                return arrays
        except FileNotFoundError:
            pass
        except ValueError:  # a damaged array can be made again
            _remove(place)
    raise UserError("other processes removed the cache entry again and again", where=place,
                    hint="set UNDERSTUDY_CACHE_GB to a larger number: several processes do not fit into it")


def columns(key: str, layout: Mapping[str, tuple[tuple[int, ...], Any]], fill: Callable[[dict[str, np.ndarray]], None],
            what: str) -> dict[str, np.ndarray]:
    """Returns arrays that are computed once and kept in the cache, as read-only memory maps.

    Args:
        key: Digest of what they are made from.
        layout: Shape and dtype of each array, by name.
        fill: Writes the values into the arrays. It runs only if the entry does not exist.
        what: What error messages call the source.
    """
    size = sum(math.prod(shape) * np.dtype(dtype).itemsize for shape, dtype in layout.values())

    def build(part: Path) -> None:
        out = {name: create_array(part, name, shape, np.dtype(dtype)) for name, (shape, dtype) in layout.items()}
        fill({**out})
        for array in out.values():
            array.flush()
    return memmap_arrays(key, size, build, what)


def create_array(folder: Path, name: str, shape: tuple[int, ...], dtype) -> np.memmap:
    """Creates an array in the folder of an entry that is being built. Returns it as a writable memory map."""
    path = folder / f"{quote(name, safe='')}.npy"
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if sys.platform == "linux":  # so that a full disk raises an error here, instead of a signal when a page is written
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, path.stat().st_size)
    return array


class DiskError(UserError):
    """Raised when there is no space on a disk, or no permission to write. The data may be in order."""


def _build_entry(folder: Path, size: int, build, what: str) -> None:
    bound = max_bytes()
    if size > bound:
        raise DiskError(f"needs {size / 1e9:.2f} GB of cache, which may hold {bound / 1e9:.2f} GB", where=what,
                        hint="choose a smaller image size, or set UNDERSTUDY_CACHE_GB to a larger number")
    try:
        (folder.parent / ".locks").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"the folder for the cache cannot be written ({error.strerror})", where=folder.parent,
                        hint="set UNDERSTUDY_CACHE to a folder of yours") from None
    with locked(folder.parent / ".locks" / folder.name):
        if folder.is_dir():  # another process has just made it
            return
        _evict(bound - size, folder)
        check_free_space(size, folder.parent)
        try:
            with disk_errors(folder.parent, FREE_SPACE), whole_folder(folder) as part:
                build(part)
        except (UserError, OSError):
            if not folder.is_dir():  # without locks, another process may have been faster
                raise


def check_free_space(size: int, folder: Path) -> None:
    """Raises UserError if the disk of `folder` has less than `size` bytes of free space."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise DiskError(f"needs {size / 1e9:.2f} GB of disk, but only {free / 1e9:.2f} GB are free", where=folder,
                        hint=FREE_SPACE)


@contextmanager
def disk_errors(where: Path, fix: str = "free some space, and run the same again") -> Iterator[None]:
    """Turns errors about a full disk, a quota or a file size limit into `UserError`. A context manager."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:  # HDF5 raises any of them, and names the number
        codes = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if getattr(error, "errno", None) not in codes and not any(f"errno = {n}," in str(error) for n in codes):
            raise
        raise DiskError("the disk is full; nothing that was finished is lost", where=where, hint=fix) from None


def _evict(max_bytes: int, making: Path) -> None:
    """Removes entries of killed processes, then the least recently used ones until the rest fits the limit."""
    names = os.listdir(making.parent)
    for part in (making.parent / name for name in names if name.startswith(".") and name.endswith(".part")):
        # we hold the lock of `making`
        if part.name.startswith(f".{making.name}.") or _seconds_since_use(part) > _STALE_SECONDS:
            shutil.rmtree(part, ignore_errors=True)
    sizes = {}
    for path in (os.path.join(making.parent, name) for name in names if not name.startswith(".")):
        if path not in _sizes and os.path.isdir(path):
            with suppress(FileNotFoundError):  # another process evicts too
                _sizes[path] = sum(f.stat().st_size for f in os.scandir(path))
        if path in _sizes:
            sizes[path] = _sizes[path]
    total = sum(sizes.values())
    if total <= max_bytes:
        return
    removable = {entry: size for path, size in sizes.items() if (entry := Path(path)) not in _mapped_entries}
    for entry in sorted(removable, key=_seconds_since_use, reverse=True):
        if total <= max_bytes:
            return
        _remove(entry)
        total -= removable[entry]


def _seconds_since_use(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _remove(entry: Path) -> None:
    """Removes a cache entry. It is renamed first, so that nobody maps an incomplete one."""
    try:
        hidden_entry = entry.rename(entry.with_name(f".{entry.name}.{os.getpid()}.part"))
    except OSError:  # another process removes it, or has it open on a system that forbids removal
        return
    shutil.rmtree(hidden_entry, ignore_errors=True)


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Locks a path, so that one process at a time runs the body. A context manager.

    The operating system releases the lock of a process that died. On a system without file locks there is no lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as handle:
        try:
            import fcntl

            fcntl.flock(handle, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield
