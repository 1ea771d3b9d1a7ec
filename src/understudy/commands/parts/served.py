"""Connects commands to policies that are served."""

from __future__ import annotations

import atexit
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import UserError
from ...serve.address import served_address

if TYPE_CHECKING:
    from ...serve.client import Client


def changed_checkpoint(run: Path | str) -> str | None:
    """Returns the warning if a server has changed its checkpoint since this process connected.

    Returns:
        A sentence, or None for a run, and for a server that still has the same checkpoint.
    """
    if (address := served_address(run)) is None:
        return None
    checkpoints = served_client(address).checkpoints
    if len(set(checkpoints)) < 2:
        return None
    return f"{address} changed its checkpoint meanwhile: {', then '.join(checkpoints)}"


@cache
def served_client(address: str) -> Client:
    """Returns the connection of this process to a server. It is closed when the process ends."""
    try:
        from ...serve.remote import connect_policy
    except ImportError as error:
        raise UserError(f"the package {error.name} is not installed", where=address,
                        hint="pip install 'understudy[serve]'") from None
    client = connect_policy(address)
    atexit.register(client.close)
    return client
