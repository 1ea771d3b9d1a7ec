"""Connections of commands to policies that are served."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..serve.client import Client


@cache
def served_client(address: str) -> Client:
    """Returns the connection of this process to a server."""
    from ..core import UserError

    try:
        from ..serve.remote import connect_policy
    except ImportError as error:
        raise UserError(f"the package {error.name} is not installed", where=address,
                        hint="pip install 'understudy[serve]'") from None
    return connect_policy(address)
