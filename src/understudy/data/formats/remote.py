"""Data sets at URLs: hf://datasets/OWNER/NAME[@revision], s3://BUCKET/KEY, https://HOST/FILE and all other URLs that
fsspec knows. Each file is downloaded once into the cache and read there.

The data and video files of a LeRobot data set are downloaded when they are first read. The files of other data sets are
downloaded before anything is read. An interrupted download continues where it stopped. A copy is identified by the
version that the source reports, so a changed file is downloaded again. Without a network, the last copy is read.

The size limit is the limit of the cache (UNDERSTUDY_CACHE_GB). The least recently used data sets are removed first.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

from ...core import UserError
from ...files import read_json, write_json
from .. import cache
from .parts.read_errors import first_line

_BLOCK = 2**23  # bytes fetched at a time
_ANSWER = 60.0  # seconds in which a source has to answer at all
_REPORTED_BYTES = 10**6  # bytes from which a download is reported
# Of a hidden folder, the cache removes nothing: it cannot see what is in use there.
_FOLDER, _LIST = ".fetched", ".understudy.json"
_open_folders: set[Path] = set()  # data sets that this process reads


def url_of(path: str | Path) -> str | None:
    """Converts a path to a URL, with the second slash, which a Path drops. None for a path on this machine."""
    text = str(path)
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.+)", text)  # one letter is a drive
    if match is None or Path(text).exists():
        return None
    protocol, address = match[1].lower(), match[2]
    if protocol == "hf" and address.partition("/")[0] not in ("datasets", "models", "spaces", "buckets"):
        address = f"datasets/{address}"
    return f"{protocol}://{address}"


def local_path(path: str | Path) -> Path:
    """Returns where a data set is stored on this machine: the path itself or, for a URL, its copy in the cache.

    Files that are needed to open the data set are downloaded now.
    """
    if (url := url_of(path)) is None:
        return Path(path).expanduser()
    if url.startswith("file://"):
        return Path("/" + url[7:].lstrip("/"))
    root = cache.folder() / _FOLDER
    try:
        with remote_errors(url):
            fs, place = _answering(url)
            files = _listed(fs, place)
    except _Unreachable as unreachable:  # no network: the last copy is used
        last = root / f"{cache.json_digest('address', url)}.json"
        if not last.exists() or not (root / read_json(last)["entry"]).is_dir():
            raise unreachable from None
        print(f"{url} cannot be reached; what was fetched of it last is read", file=sys.stderr)
        entry = root / read_json(last)["entry"]
    else:
        entry = root / cache.json_digest("fetched", url, {n: f["mark"] for n, f in files.items()})
        if not (entry / _LIST).exists():
            write_json(entry / _LIST, {"address": url, "files": files})
        write_json(root / f"{cache.json_digest('address', url)}.json", {"entry": entry.name})
    _open_folders.add(entry)
    os.utime(entry)
    files = _read_listing(entry)["files"]
    name = next(iter(files)) if len(files) == 1 and files[next(iter(files))]["alone"] else ""
    _fetch(entry, _now(files))
    return entry / name


def exists(path: Path) -> bool:
    """Returns whether a file exists on this machine, or will be downloaded when it is read."""
    return path.is_file() or _entry(path)[0] is not None


def fetch_file(path: Path) -> Path:
    """Returns `path`. If it is a file of a remote data set that is not here yet, it is downloaded first."""
    if not path.exists():
        entry, name = _entry(path)
        if entry is not None:
            _fetch(entry, [name])
    return path


def version_key(path: Path) -> list:
    """Returns a key that changes when the file changes: its size and time, or the version that its source reports."""
    entry, name = _entry(path)
    if entry is not None:
        return [_read_listing(entry)["files"][name]["mark"]]
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns]


# -- what is where ----------------------------------------------------------------------------------------------------


def _entry(path: Path) -> tuple[Path | None, str]:
    """Returns the cached copy that contains a path, and the path's name in it, if the source has such a file."""
    root = cache.folder() / _FOLDER
    if not path.is_relative_to(root):
        return None, ""
    entry = root / path.relative_to(root).parts[0]
    name = path.relative_to(entry).as_posix()
    return (entry, name) if (entry / _LIST).exists() and name in _read_listing(entry)["files"] else (None, "")


@lru_cache(16)
def _read_listing(entry: Path) -> Mapping[str, Any]:
    return read_json(entry / _LIST)


def _now(files: Mapping[str, Any]) -> list[str]:
    """Returns the files of a remote data set that are needed before any episode is read."""
    roots = [n[: -len("meta/info.json")] for n in files if n == "meta/info.json" or n.endswith("/meta/info.json")]
    later = tuple(f"{r}{part}/" for r in roots for part in ("data", "videos", "images"))
    return [n for n in files if not (later and n.startswith(later)) and not n.startswith(".git")]


def _answering(at: str):
    """Like `open_url`, but only if the source answers in time. Some sources, such as gs:// without credentials, try for
    hours."""
    answers: list = []

    def ask():
        try:
            fs, place = open_url(at)
            fs.info(place)
            answers.append((fs, place))
        except BaseException as error:  # raised below, where it is caught
            answers.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_ANSWER)
    if not answers:
        raise _Unreachable(f"there was no answer within {_ANSWER:g} s", where=at,
                           hint="check the address, the network and the right to read it (gs: gcloud auth "
                           "application-default login), and run the same again")
    if isinstance(answers[0], BaseException):
        raise answers[0]
    return answers[0]


def open_url(at: str):
    """Returns the fsspec file system of a URL, and the path in it."""
    import fsspec

    return fsspec.core.url_to_fs(at)


def _listed(fs, place: str) -> dict[str, dict[str, Any]]:
    """Lists the files of a remote data set by name: size (None if unknown), version and path in the source."""
    entry = fs.info(place)
    alone = entry["type"] == "file"
    entries = {place: entry} if alone else fs.find(place, detail=True)
    if not entries:
        raise FileNotFoundError(place)
    out = {}
    for full, f in entries.items():
        name = PurePosixPath(full.partition("?")[0]).name if alone else full[len(place.rstrip("/")) + 1:]
        if not name or name.startswith("/") or ".." in PurePosixPath(name).parts:
            raise ValueError(f"a file named {full!r}")
        version = next((str(f[k]) for k in ("ETag", "etag", "blob_id", "md5", "mtime", "LastModified", "last_modified",
                                            "created") if f.get(k)), "")
        out[name] = {"size": f.get("size"), "mark": [f.get("size"), version], "at": full, "alone": alone}
    return out


# -- fetching ---------------------------------------------------------------------------------------------------------


def _fetch(entry: Path, names: list[str]) -> None:
    listing = _read_listing(entry)
    missing = [n for n in names if not (entry / n).exists()]
    if not missing:
        return
    size = sum(listing["files"][n]["size"] or 0 for n in missing)
    _make_room(entry, size, listing["address"])
    if size >= _REPORTED_BYTES:
        print(f"fetching {len(missing)} file{'s' * (len(missing) > 1)}, {size / 1e6:,.1f} MB, "
              f"from {listing['address']} into {entry}", file=sys.stderr)
    with remote_errors(listing["address"]):
        fs, _ = open_url(listing["address"])
    done, last_report = 0, time.monotonic()
    for name in missing:
        (entry / name).parent.mkdir(parents=True, exist_ok=True)
        with cache.locked(entry / ".locks" / cache.json_digest(name)), \
                cache.disk_errors(entry, cache.FREE_SPACE):
            if not (entry / name).exists():
                for n in _copy(fs, listing["files"][name], entry / name, f"{listing['address']}, {name}"):
                    done += n
                    if time.monotonic() - last_report > 10:
                        last_report = time.monotonic()
                        print(f"{done / 1e6:,.1f} of {size / 1e6:,.1f} MB", file=sys.stderr)


def _copy(fs, file: Mapping[str, Any], to: Path, where: str):
    """Downloads a file and yields the size of each block. An interrupted download is continued."""
    part = to.with_name(f"{to.name}.part")
    begin = part.stat().st_size if part.exists() and file["size"] is not None else 0
    with remote_errors(where), fs.open(file["at"], "rb") as source, open(part, "ab" if begin else "wb") as out:
        if begin:
            source.seek(begin)
            yield begin
        while piece := source.read(_BLOCK):
            out.write(piece)
            yield len(piece)
        out.flush()
        os.fsync(out.fileno())
    if file["size"] is not None and part.stat().st_size != file["size"]:
        size = part.stat().st_size
        part.unlink()
        raise UserError(f"the file has {size} bytes, but the listing says {file['size']}", where=where,
                        hint="run the same again")
    os.replace(part, to)


def _make_room(entry: Path, size: int, what: str) -> None:
    """Removes the least recently used remote data sets from the cache, but none that this process reads."""
    bound = cache.max_bytes()
    sizes = {e: sum(f.stat().st_size for f in e.rglob("*") if f.is_file())
             for e in entry.parent.iterdir() if e.is_dir()}
    total = sum(sizes.values()) + size
    for old in sorted((e for e in sizes if e not in _open_folders), key=lambda e: e.stat().st_mtime):
        if total <= bound:
            break
        shutil.rmtree(old, ignore_errors=True)
        total -= sizes[old]
    if total > bound:
        raise UserError(f"needs {total / 1e9:.2f} GB of cache, which may hold {bound / 1e9:.2f} GB", where=what,
                        hint="set UNDERSTUDY_CACHE_GB to more")
    cache.check_free_space(size, entry)


class _Unreachable(UserError):
    """Raised when the source of a remote data set cannot be reached now."""


@contextmanager
def remote_errors(where: str):
    """Turns any error about a URL into `UserError`. A context manager."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # each protocol raises its own errors
        raise _user_error(error, where) from None


def _user_error(error: Exception, where: str) -> UserError:
    protocol, text, line = where.partition(":")[0], f"{type(error).__name__} {error}", first_line(error)
    if isinstance(error, ImportError):
        extra = protocol in ("hf", "s3", "s3a") or "fsspec" in text
        return UserError(f"the package that reads {protocol}:// addresses is not installed ({line})", where=where,
                         hint="pip install 'understudy[cloud]'" if extra else
                         "pip install what it names, or fetch the files yourself and name their folder")
    if isinstance(error, ValueError) and "Protocol not known" in text:
        return UserError(f"addresses that start with {protocol}:// are not known", where=where,
                         hint="known are hf, s3, gs, https and what else fsspec knows; or name a folder")
    if isinstance(error, ValueError):
        return _Unreachable(f"the answer cannot be read ({line})", where=where,
                            hint="check the address and the network")
    if isinstance(error, FileNotFoundError) or "NotFound" in text or "404" in text:
        return UserError(f"there is nothing at this address ({line})", where=where,
                         hint="check the address; a private one also takes the right to read it (HF_TOKEN, "
                         "AWS_ACCESS_KEY_ID ...)")
    if isinstance(error, PermissionError) or "redential" in text:
        return UserError(f"you have no right to read it ({line})", where=where,
                         hint="log in first (hf auth login, aws configure), or check the address")
    return _Unreachable(f"the source does not answer ({type(error).__name__}: {line})", where=where,
                        hint="check the address and the network, and run the same again")
