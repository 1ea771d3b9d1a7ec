"""Limits the number of connections with a pending handshake, so that they cannot take all descriptors."""

from __future__ import annotations

import asyncio
import os
import ssl

from websockets.asyncio.server import ServerConnection

from .access import SummarizedLog
from .metrics import ServerMetrics

MAX_PENDING = 128
ACCEPTED_AT_ONCE = 16  # connections; the oldest pending ones can be dropped before the next are accepted
_RESERVED = 16  # descriptors for files, such as a new checkpoint


def connection_limits(max_clients: int) -> tuple[int, int]:
    """Returns how many pending handshakes and clients the free file descriptors of this process allow."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MAX_PENDING, max_clients
    free = resource.getrlimit(resource.RLIMIT_NOFILE)[0] - len(os.listdir("/dev/fd"))
    usable = max(free - ACCEPTED_AT_ONCE - _RESERVED, 2)
    pending = min(MAX_PENDING, usable // 2)
    return pending, min(max_clients, usable - pending)


class PendingHandshakes:
    """The connections whose handshake is not done. If there are too many, the oldest is dropped."""

    def __init__(self, limit: int, metrics: ServerMetrics, log: SummarizedLog):
        self.limit, self.metrics, self.log = limit, metrics, log
        self._transports: dict[ServerConnection, asyncio.Transport] = {}

    def add(self, connection: ServerConnection, transport: asyncio.Transport) -> None:
        """Adds a connection that was accepted."""
        self._transports[connection] = transport
        if len(self._transports) > self.limit:
            self._transports.pop(next(iter(self._transports))).abort()
            self.metrics.refused.add(reason="handshake")
            self.log("refused", reason="handshake", message=f"more than {self.limit} connections without a handshake: "
                     "the oldest are dropped")

    def remove(self, connection: ServerConnection) -> None:
        """Removes a connection whose handshake is done, or that was lost."""
        self._transports.pop(connection, None)

    def close(self) -> None:
        """Drops all connections whose handshake is not done."""
        for transport in self._transports.values():
            transport.abort()
        self._transports.clear()


class CountedConnection(ServerConnection):
    """A connection that counts as pending until its handshake is done, with TLS from its first byte.

    TLS starts here, because asyncio's own server has no access to connections before TLS is there.
    """

    def __init__(self, *args, pending: PendingHandshakes, tls: ssl.SSLContext | None, **options):
        super().__init__(*args, **options)
        self._pending, self._tls = pending, tls
        self._starting: asyncio.Task[None] | None = None
        self._is_made, self._early = False, b""  # bytes may come before `start_tls` returns

    def connection_made(self, transport):
        self._pending.add(self, transport)
        if self._tls is None:
            self._make(transport)
        else:
            transport.pause_reading()  # bytes that have come belong to TLS
            self._starting = self.loop.create_task(self._start_tls(transport, self._tls))

    def data_received(self, data):
        if self._is_made:
            super().data_received(data)
        else:
            self._early += data

    def eof_received(self):
        return super().eof_received() if self._is_made else None

    def connection_lost(self, exc):
        self._pending.remove(self)
        if self._is_made:
            super().connection_lost(exc)

    def _make(self, transport: asyncio.BaseTransport) -> None:
        self._is_made = True
        super().connection_made(transport)

    async def _start_tls(self, transport: asyncio.Transport, tls: ssl.SSLContext) -> None:
        try:
            secure = await self.loop.start_tls(transport, self, tls, server_side=True, ssl_handshake_timeout=10)
        except OSError:  # no TLS, or a lost connection
            secure = None
        if secure is None:
            self._pending.remove(self)
            transport.abort()
        else:
            self._make(secure)
            if self._early:
                super().data_received(self._early)
