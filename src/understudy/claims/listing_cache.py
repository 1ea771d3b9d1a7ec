"""The list of claims as it was last made: to know which records are stale takes reading most of understudy, once for
each claim.

Kept in the cache's folder for as long as no file of understudy and no record changes.
"""

from __future__ import annotations

import hashlib
import sys
from contextlib import suppress
from pathlib import Path

from ..core import UserError
from ..data import cache
from ..files import read_json, write_json

PACKAGE = Path(__file__).parents[1]


def cached_listing() -> list[dict]:
    """What `records.listing` says."""
    file, mark = cache.folder() / "claims" / "listing.json", _source_digest()
    with suppress(UserError, OSError, TypeError, KeyError):  # there is none, or it is damaged
        kept = read_json(file)
        if kept["mark"] == mark:
            return kept["claims"]
    from . import records

    found = records.list_claims()
    with suppress(OSError):  # a cache that cannot be written costs time alone
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, {"mark": mark, "claims": found})
    return found


def _source_digest() -> str:
    """Of all that the list is made from. Python's version too: syntax trees differ."""
    mark = hashlib.sha256(sys.version.encode())
    for file in sorted((*PACKAGE.rglob("*.py"), *PACKAGE.glob("claims/results/*.json"), *PACKAGE.glob("claims/probes/*.json"))):
        text = file.read_bytes()
        mark.update(f"{file.relative_to(PACKAGE)} {len(text)} ".encode() + text)
    return mark.hexdigest()
