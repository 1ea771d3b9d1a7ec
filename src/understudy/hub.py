"""Data sets and policies on the Hugging Face hub: what hf:OWNER/NAME names, downloads and uploads.

Downloads are in the cache of huggingface_hub, which other software shares. Files that were downloaded completely are
kept when a download is interrupted. The size and the checksum of every file are compared with what the hub states, and
a snapshot is used only after that. An upload is one commit, so a repository never holds half of it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

from .core import UserError
from .files import check_absent, file_sha256, sync_file, sync_folder, write_text
from .hints import pluralize

PREFIX = "hf:"
RepositoryKind = Literal["dataset", "model"]
WORDS: dict[str, str] = {"dataset": "data set", "model": "policy"}
_PATTERN = re.compile(r"([\w.-]+/[\w.-]+)(?:@(.+))?", re.ASCII)
_CHECKED = ".understudy-checked"  # folder in a cached repository: an empty file for each snapshot that was checked
_AGAIN = "give the same command again: it continues with what is missing"
_LOG_IN = "log in first (hf auth login), or set HF_TOKEN"


@dataclass(frozen=True)
class Repository:
    """A data set or a policy on the hub.

    Args:
        name: OWNER/NAME.
        revision: A branch, a tag or a commit. None for the newest.
    """

    kind: RepositoryKind
    name: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.revision}" if self.revision else "")

    @staticmethod
    def parse(kind: RepositoryKind, text: str) -> Repository:
        """Reads OWNER/NAME or OWNER/NAME@REVISION, with or without hf: in front."""
        match = _PATTERN.fullmatch(text.removeprefix(PREFIX))
        if match is None:
            raise UserError("this is not the name of a repository", where=text,
                            hint=f"write OWNER/NAME or OWNER/NAME@REVISION, such as {PREFIX}lerobot/pusht")
        return Repository(kind, match[1], match[2])


def is_hub_name(text: object) -> bool:
    """Returns whether a text names a repository, as hf:OWNER/NAME does. An address such as hf://datasets does not."""
    return str(text).startswith(PREFIX) and not str(text).startswith(f"{PREFIX}/")


def is_downloaded(folder: Path) -> bool:
    """Returns whether a folder is in the cache of huggingface_hub, where nothing may be changed."""
    return _cached_repository(folder) is not None


def folder_name(folder: Path) -> str:
    """Returns the name of a folder; of one in the cache of huggingface_hub, OWNER/NAME."""
    repository = _cached_repository(folder)
    return folder.name if repository is None else repository.name.partition("--")[2].replace("--", "/", 1)


def _cached_repository(folder: Path) -> Path | None:
    return next((above for above in folder.absolute().parents if (above / "snapshots").is_dir()
                 and re.fullmatch(r"(datasets|models)--.+--.+", above.name)), None)


def download(repository: Repository) -> Path:
    """Returns the folder of a repository in the cache of huggingface_hub. What is missing is downloaded first.

    Without a network, the newest snapshot that was downloaded completely is used, and a note says so.
    """
    hub = _library()
    try:
        with _hub_errors(repository):
            listing = _files_of(repository)
    except _Unreachable:
        if (folder := _checked_snapshot(repository)) is None:
            raise
        print(f"{repository}: the hub cannot be reached; what was downloaded last is used", file=sys.stderr)
        return folder
    cached = [hub.try_to_load_from_cache(repository.name, file.rfilename, revision=listing.sha,
                                         repo_type=repository.kind) for file in listing.siblings]
    missing = [file for file, path in zip(listing.siblings, cached, strict=True) if not isinstance(path, str)]
    cache = Path(hub.constants.HF_HUB_CACHE)
    checked = _repository_folder(repository) / _CHECKED / listing.sha
    if missing or not checked.exists():
        _announce(repository, listing.sha, missing, cache)
        with _hub_errors(repository):
            folder = Path(hub.snapshot_download(repository.name, repo_type=repository.kind, revision=listing.sha))
        _remember_revision(repository, listing.sha)
        _check_files(repository, folder, listing.siblings)
        write_text(checked, "")
    return _repository_folder(repository) / "snapshots" / listing.sha


def pull(repository: Repository, to: Path) -> int:
    """Downloads a repository into a new folder. Returns its size in bytes.

    Until it is complete, the files are in a hidden folder next to it, from which the same call continues.
    """
    check_absent(to)
    hub = _library()
    with _hub_errors(repository):
        listing = _files_of(repository)
    part = to.with_name(f".{to.name}.{listing.sha[:8]}.download")
    missing = [file for file in listing.siblings if not (part / file.rfilename).exists()]
    _announce(repository, listing.sha, missing, to.parent)
    with _hub_errors(repository):
        hub.snapshot_download(repository.name, repo_type=repository.kind, revision=listing.sha, local_dir=part)
    _check_files(repository, part, listing.siblings)
    shutil.rmtree(part / ".cache", ignore_errors=True)  # what huggingface_hub notes about its downloads
    for path in part.rglob("*"):
        sync_folder(path) if path.is_dir() else sync_file(path)
    check_absent(to)
    os.rename(part, to)
    sync_folder(to.parent)
    return sum(file.size for file in listing.siblings)


def push(files: Mapping[str, Path | bytes], repository: Repository, *, private: bool = False, tag: str | None = None
         ) -> str:
    """Uploads files as one commit, after which the repository holds nothing else. Returns the address of its page.

    Args:
        files: By their paths in the repository.
        private: Make a new repository private.
        tag: A tag that is moved to the commit.
    """
    hub = _library()
    sizes = [len(file) if isinstance(file, bytes) else file.stat().st_size for file in files.values()]
    print(f"{repository}: uploading {pluralize(len(files), 'file')}, {sum(sizes) / 1e6:,.1f} MB, as a "
          f"{WORDS[repository.kind]}", file=sys.stderr)
    with _hub_errors(repository):
        api = _api()
        api.create_repo(repository.name, repo_type=repository.kind, private=private or None, exist_ok=True)
        before = api.repo_info(repository.name, repo_type=repository.kind)
        if private and not before.private:
            raise UserError("there is already a public repository of this name", where=repository,
                            hint=f"make it private on {_page(repository)}/settings, or choose another name")
        stale = {file.rfilename for file in before.siblings} - {*files, ".gitattributes"}
        api.create_commit(
            repository.name, repo_type=repository.kind, commit_message="Upload with understudy", operations=[
                *(hub.CommitOperationAdd(name, file) for name, file in files.items()),
                *(hub.CommitOperationDelete(name) for name in sorted(stale))])
        if tag is not None:
            with suppress(hub.errors.RevisionNotFoundError):
                api.delete_tag(repository.name, repo_type=repository.kind, tag=tag)
            api.create_tag(repository.name, repo_type=repository.kind, tag=tag)
    return _page(repository)


def kinds_of(name: str) -> list[RepositoryKind]:
    """Returns which repositories of this name can be read: a data set, a policy, both or none."""
    kinds: tuple[RepositoryKind, ...] = ("dataset", "model")
    readable = []
    for kind in kinds:
        with _hub_errors(repository := Repository.parse(kind, name)):
            if _api().repo_exists(repository.name, repo_type=kind):
                readable.append(kind)
    return readable


# -- files and checksums ----------------------------------------------------------------------------------------------


def _files_of(repository: Repository) -> Any:
    """Returns what the hub states about a revision: its commit, and its files with sizes and checksums."""
    listing = _api().repo_info(repository.name, repo_type=repository.kind, revision=repository.revision,
                            files_metadata=True)
    for file in listing.siblings:
        if file.rfilename.startswith("/") or ".." in Path(file.rfilename).parts:
            raise UserError(f"it holds a file with the name {file.rfilename!r}", where=repository,
                            hint="ask its owner for files with relative names")
    return listing


def _check_files(repository: Repository, folder: Path, files: Sequence[Any]) -> None:
    """Compares files with the checksums that the hub states. Removes files that differ, and raises UserError."""
    damaged = [file for file in files if not _is_intact(folder / file.rfilename, file)]
    for file in damaged:
        path = folder / file.rfilename
        path.resolve().unlink(missing_ok=True)  # in a cache it is a link
        path.unlink(missing_ok=True)
    if damaged:
        raise UserError(f"{damaged[0].rfilename} is damaged: its checksum is not the one that the hub states ("
                        f"{pluralize(len(damaged), 'such file')} of {len(files)})", where=repository,
                        hint="what is damaged was removed; give the same command again to download it once more")


def _is_intact(path: Path, file: Any) -> bool:
    if file.lfs is not None:
        return file_sha256(path) == file.lfs.sha256
    content = path.read_bytes()  # git stores it, so it is small
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == file.blob_id


def _announce(repository: Repository, commit: str, missing: Sequence[Any], into: Path) -> None:
    """Says what is downloaded and how large it is. Raises UserError if the disk has no room for it."""
    if not missing:
        return
    size = sum(file.size for file in missing)
    print(f"{repository}: downloading {pluralize(len(missing), 'file')}, {size / 1e6:,.1f} MB, of the "
          f"{WORDS[repository.kind]} at revision {commit[:8]} into {into}", file=sys.stderr)
    place = next(folder for folder in (into.absolute(), *into.absolute().parents) if folder.exists())
    if size > (free := shutil.disk_usage(place).free):
        raise UserError(f"it needs {size / 1e9:.2f} GB of disk, and {free / 1e9:.2f} GB are free in {place}",
                        where=repository, hint="free some space, or set HF_HOME to a folder on another disk"
                        if into == Path(_library().constants.HF_HUB_CACHE) else "choose another place with --to")


def _repository_folder(repository: Repository) -> Path:
    hub = _library()
    return Path(hub.constants.HF_HUB_CACHE) / f"{repository.kind}s--{repository.name.replace('/', '--')}"


def _remember_revision(repository: Repository, commit: str) -> None:
    """Notes which commit a branch stood for, for times without a network, as huggingface_hub does."""
    write_text(_repository_folder(repository) / "refs" / (repository.revision or "main"), commit)


def _checked_snapshot(repository: Repository) -> Path | None:
    """Returns the snapshot of this revision that was downloaded and checked before, if there is one."""
    folder = _repository_folder(repository)
    named = folder / "refs" / (repository.revision or "main")
    commit = named.read_text().strip() if named.is_file() else repository.revision or ""
    snapshot = folder / "snapshots" / commit
    return snapshot if commit and (folder / _CHECKED / commit).is_file() and snapshot.is_dir() else None


# -- errors -----------------------------------------------------------------------------------------------------------


def _library() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "huggingface_hub":
            raise
        raise UserError("the Hugging Face hub needs the package huggingface_hub, which is not installed",
                        hint="pip install 'understudy[hub]'") from None
    huggingface_hub.utils.logging.set_verbosity_error()  # what it warns of becomes an error of ours, or was overcome
    if not sys.stderr.isatty():
        huggingface_hub.utils.disable_progress_bars()
    return huggingface_hub


def _api() -> Any:
    return _library().HfApi(library_name="understudy")


class _Unreachable(UserError):
    """Raised when the hub cannot be reached now."""


@contextmanager
def _hub_errors(repository: Repository) -> Iterator[None]:
    """Turns errors of huggingface_hub into `UserError` with a remedy. A context manager."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of huggingface_hub, of its HTTP library, or of the system
        if (user_error := _user_error(error, repository)) is None:
            raise
        raise user_error from error


def _user_error(error: BaseException, repository: Repository) -> UserError | None:
    hub = _library()
    errors, word = hub.errors, WORDS[repository.kind]
    if isinstance(error, errors.GatedRepoError):
        return UserError(f"the owner of this {word} gives access on request only", where=repository,
                         hint=f"ask for it on {_page(repository)}, and {_LOG_IN}")
    if isinstance(error, errors.RepositoryNotFoundError):
        other: RepositoryKind = "model" if repository.kind == "dataset" else "dataset"
        if _exists(other, repository.name):
            return UserError(f"this is a {WORDS[other]}, not a {word}", where=repository,
                             hint="name it where the command takes " + ("RUN" if other == "model" else "DATA"))
        return UserError(f"there is no such {word} on the hub, or it is private and you have no access to it",
                         where=repository, hint="check the name; for a private one "
                         + ("use an account that may read it (hf auth login)" if hub.get_token() else _LOG_IN))
    if isinstance(error, errors.RevisionNotFoundError):
        return UserError(f"the {word} has no revision {repository.revision!r}", where=repository,
                         hint=f"check it on {_page(repository)}, or leave it out for the newest one")
    if isinstance(error, errors.LocalTokenNotFoundError):
        return UserError("you are not logged in to the hub", where=repository, hint=_LOG_IN)
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.HfHubHTTPError) and status is not None:
        return _refused(status, error, repository)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return UserError("no space is left on the disk", where=repository, hint=f"free some space, and {_AGAIN}")
    is_of_network = type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "requests", "urllib3")
    if is_of_network or isinstance(error, (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)):
        return _Unreachable(f"the hub does not answer at {hub.constants.ENDPOINT}", where=repository,
                            hint=f"check the network, and {_AGAIN}")
    if isinstance(error, OSError) and "onsistency check failed" in str(error):
        return UserError("a file arrived incomplete", where=repository, hint=_AGAIN)
    if isinstance(error, RuntimeError) and error.__cause__ is not None:  # of a thread that uploads
        return _user_error(error.__cause__, repository)
    return None


def _refused(status: int, error: Any, repository: Repository) -> UserError:
    """Returns the error for an HTTP status."""
    if status == 401:
        return UserError("the hub does not know you: you are not logged in, or your token is no longer valid",
                         where=repository, hint=_LOG_IN)
    if status == 403:
        return UserError("your account or token has no right to do this", where=repository,
                         hint="use a token that may write, of an account that owns the repository (hf auth login)")
    if status >= 500 or status == 429:
        return _Unreachable(f"the hub answers with the error {status}", where=repository,
                            hint=f"wait a while, and {_AGAIN}")
    text = getattr(error, "server_message", None) or str(error).partition("\n")[0]
    return UserError(f"the hub refuses this with the error {status}: {text}", where=repository,
                     hint=f"see {_page(repository)}")


def _exists(kind: RepositoryKind, name: str) -> bool:
    try:
        return bool(_api().repo_exists(name, repo_type=kind))
    except Exception:  # it is asked only to explain another error
        return False


def _page(repository: Repository) -> str:
    """Returns the address of the page of a repository."""
    folder = "datasets/" if repository.kind == "dataset" else ""
    return f"{_library().constants.ENDPOINT}/{folder}{repository.name}"
