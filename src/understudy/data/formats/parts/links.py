"""Checks the links in a data folder. Links that lead out of the folder are not followed.

A folder that somebody else made may have a link to any file of the user, which would then become part of data, models
and reports that the user passes on.
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

from ....core import UserError

_own_links: set[str] = set()  # made by `make_link` in this process


class OutsideLink(UserError):
    """Raised when a link leads out of the folder of a data set."""


def check_links(folder: Path) -> None:
    """Checks that no link in a folder leads out of it.

    In the cache of the Hugging Face hub, files are links to the folder ``blobs`` of their repository. These links are
    allowed, and so are links that `make_link` made.

    Args:
        folder: The folder of a data set. It may itself be reached by a link. A file is not checked.

    Raises:
        OutsideLink: A link leads elsewhere, or to a folder above it.
    """
    top = os.path.realpath(folder)
    inside = tuple(os.path.join(root, "") for root in (top, *_hub_repository(Path(top))))
    folders = [top] if os.path.isdir(top) else []
    while folders:
        with os.scandir(folders.pop()) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(entry.path)
                elif entry.is_symlink() and entry.path not in _own_links:
                    target = os.path.realpath(entry.path)
                    if not target.startswith(inside) or os.path.join(target, "") in inside:
                        raise OutsideLink(f"it is a link that leads out of the data set, to {target}",
                                          where=folder / os.path.relpath(entry.path, top),
                                          hint="if you trust the data, copy them with what the links lead to: "
                                               f"cp -rL {shlex.quote(str(folder))} COPY")


def make_link(link: Path, target: Path) -> None:
    """Makes a link to a file or folder, which `check_links` allows in this process."""
    link.symlink_to(target.resolve())
    _own_links.add(os.path.join(os.path.realpath(link.parent), link.name))


def _hub_repository(folder: Path) -> list[Path]:
    """Returns the Hugging Face repository folder in the hub's cache that a folder is in, if any."""
    return [above for above in folder.parents
            if re.fullmatch(r"(datasets|models|spaces)--.+", above.name) and (above / "blobs").is_dir()]
