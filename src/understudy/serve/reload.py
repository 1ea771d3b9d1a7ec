"""Replaces the checkpoint of a running server. Each request is answered by one checkpoint."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from .access import Log
from .describe import same_interface
from .metrics import ServerMetrics
from .policy_service import PolicyService


class Reloader:
    """Loads a checkpoint in another thread, and then replaces the policy between two batches.

    A checkpoint that cannot be loaded, or that reads or plans something else, is refused, and the old one stays.

    Args:
        load: Loads the newest checkpoint as another service.
        newest: Identifies the newest checkpoint.
    """

    def __init__(self, service: PolicyService, load: Callable[[], PolicyService], newest: Callable[[], str],
                 metrics: ServerMetrics, log: Log):
        self.service, self.load, self.newest, self.metrics, self.log = service, load, newest, metrics, log
        self._refused, self._lock = "", asyncio.Lock()

    async def reload(self) -> bool:
        """Loads the newest checkpoint. Returns whether it is used now."""
        async with self._lock:
            name, before = "", self.service.checkpoint
            try:
                if (name := await asyncio.to_thread(self.newest)) == before:
                    self.log("unchanged", checkpoint=before)  # SIGHUP gets an answer
                    return False
                new = await asyncio.to_thread(self.load)
                if other := same_interface(self.service.metadata, new.metadata):
                    raise ValueError(f"it has another {other[0]}: it needs a server for itself")
            except Exception as error:  # a checkpoint is being written, or the user's code fails
                self._refused = name
                self.metrics.reloads.add(result="refused")
                self.log("reload_refused", checkpoint=name, error=str(error))
                return False
            self.service.replace_policy(new)
            self._refused = ""
            self.metrics.reloads.add(result="loaded")
            self.metrics.checkpoint.set(1, checkpoint=self.service.checkpoint)
            self.log("reloaded", before=before, checkpoint=self.service.checkpoint)
            return True

    async def watch(self, period: float = 1.0) -> None:
        """Reloads whenever there is a new checkpoint, until it is cancelled.

        Args:
            period: Seconds between two looks.
        """
        while True:
            await asyncio.sleep(period)
            try:
                name = await asyncio.to_thread(self.newest)
            except Exception:  # the checkpoint is being written
                continue
            if name not in (self.service.checkpoint, self._refused):
                await self.reload()
