"""The list of claims as it was last made. To know which records are stale takes parsing most of understudy.

The list is kept in the cache folder until a file of understudy, a claim, a record or a probe changes.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress

from ..core import UserError
from ..data import cache
from ..files import read_json, write_json
from .folder import PACKAGE, claims_folder


def cached_listing() -> list[dict]:
    """The entries of `records.list_claims`."""
    file, mark = cache.folder() / "claims" / "listing.json", _source_digest()
    with suppress(UserError, OSError, TypeError, KeyError):  # there is none, or it is damaged
        kept = read_json(file)
        if kept["mark"] == mark:
            return kept["claims"]
    from . import records

    entries = records.list_claims()
    with suppress(OSError):  # a cache that cannot be written costs time alone
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"mark": mark, "claims": entries})
    return entries


def _source_digest() -> str:
    """Digest of all that the list is made from, and of Python's version, because syntax trees differ."""
    mark, folder = hashlib.sha256(sys.version.encode()), claims_folder()
    records = (file for file in folder.rglob("*.json") if not file.name.endswith(".figures.json"))
    for file in sorted((*PACKAGE.rglob("*.py"), *folder.rglob("*.py"), *folder.rglob("*.md"), *records)):
        text = file.read_bytes()
        mark.update(f"{file} {len(text)} ".encode() + text)
    return mark.hexdigest()
