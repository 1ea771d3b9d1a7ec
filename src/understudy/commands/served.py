"""Connections of commands to policies that are served."""

from __future__ import annotations

import atexit
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..serve.client import Client


@cache
def served_client(address: str) -> Client:
    """Returns the connection of this process to a server. It is closed when the process ends."""
    from ..core import UserError

    try:
        from ..serve.remote import connect_policy
    except ImportError as error:
        raise UserError(f"the package {error.name} is not installed", where=address,
                        hint="pip install 'understudy[serve]'") from None
    client = connect_policy(address)
    atexit.register(client.close)
    return client
