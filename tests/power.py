"""A power cut, as far as a process can act one: what it has synced is there afterwards, and nothing else for sure.

`watch(place, record)` replaces os.fsync in this process. At each sync of a file the inode is kept (by a hard link in
`record`) with its length; at each sync of a folder, the names in it. `cut(place, record, into)` builds what a disk may
hold that lost everything else: of each folder the names of its last sync, of each file the bytes of its last sync, and
of bytes after that zeros, as a file system that wrote the length first leaves them.
"""

import contextlib
import json
import os
import stat
from pathlib import Path


def watch(place: Path, record: Path) -> None:
    record.mkdir()
    log = os.open(record / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    sync = os.fsync

    def fsync(handle) -> None:
        sync(handle)
        number = handle if isinstance(handle, int) else handle.fileno()
        status = os.fstat(number)
        synced: dict = {"inode": status.st_ino}
        at = os.readlink(f"/proc/self/fd/{number}")
        if stat.S_ISDIR(status.st_mode):
            synced["names"] = {}
            for e in os.scandir(at):
                try:
                    synced["names"][e.name] = e.inode()
                    if e.is_file():
                        _link(e.path, record, e.inode())
                except FileNotFoundError:
                    pass
        else:
            synced["size"] = status.st_size
            _link(at, record, status.st_ino)
        os.write(log, (json.dumps(synced) + "\n").encode())
    os.fsync = fsync


def _link(path, record: Path, inode: int) -> None:
    with contextlib.suppress(FileExistsError, FileNotFoundError):
        os.link(path, record / str(inode))


def cut(place: Path, record: Path, into: Path) -> None:
    names, sizes = {}, {}
    for line in (record / "log").read_text().splitlines():
        synced = json.loads(line)
        if "names" in synced:
            names[synced["inode"]] = synced["names"]
        else:
            sizes[synced["inode"]] = synced["size"]

    def build(inode: int, to: Path) -> None:
        if inode in names:
            to.mkdir()
            for name, below in names[inode].items():
                build(below, to / name)
        elif (record / str(inode)).exists():
            data, size = (record / str(inode)).read_bytes(), sizes.get(inode, 0)
            to.write_bytes(data[:size] + bytes(len(data) - min(size, len(data))))
        else:  # a folder whose own names were never synced
            to.mkdir()
    above = names.get(os.stat(place.parent).st_ino, {})
    if place.name in above:
        build(above[place.name], into)
