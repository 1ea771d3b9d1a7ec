"""The thread of a server that runs the network. It plans for all waiting clients in one call."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from .metrics import ServerMetrics
from .service import Reply, Request, Service


@dataclass
class Job:
    """A request that waits for its reply.

    Args:
        reply: Gets (reply, seconds in the network) in the thread of the event loop.
        in_time: Whether the client still waits.
    """

    request: Request
    reply: asyncio.Future[tuple[Reply, float]]
    in_time: bool = True


class InferenceThread:
    """Runs `Service.run` in another thread, so that the event loop never waits for the network.

    The requests that wait when the network becomes free are one batch.

    Args:
        max_batch: Largest number of requests in a batch.
    """

    def __init__(self, service: Service, metrics: ServerMetrics, max_batch: int = 64):
        self.service, self.metrics, self.max_batch = service, metrics, max_batch
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Job:
        """Puts a request into the queue. Call it in the thread of the event loop."""
        job = Job(request, self._loop.create_future())
        self._jobs.put(job)
        return job

    def close(self, timeout: float) -> None:
        """Ends the thread after the jobs that wait, and waits for it for at most `timeout` seconds.

        A thread that is inside PyTorch when Python ends would abort the process.
        """
        self._jobs.put(None)
        self._thread.join(timeout)

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            batch = [job]
            with suppress(queue.Empty):
                while len(batch) < self.max_batch:
                    if (other := self._jobs.get_nowait()) is None:
                        self._jobs.put(None)  # end after this batch
                        break
                    batch.append(other)
            began = time.perf_counter()
            try:
                replies: Sequence[Reply | Exception] = self.service.run([j.request for j in batch])
            except Exception as error:  # a defect of the service: each client of the batch is told
                replies = [error] * len(batch)
            seconds = time.perf_counter() - began
            self.metrics.inference.add(seconds)
            self.metrics.batch.add(len(batch))
            try:
                self._loop.call_soon_threadsafe(self._deliver, batch, replies, seconds)
            except RuntimeError:  # the loop has been closed
                return

    @staticmethod
    def _deliver(batch: Sequence[Job], replies: Sequence[Reply | Exception], seconds: float) -> None:
        for job, reply in zip(batch, replies, strict=True):
            if isinstance(reply, Reply):
                reply.commit(job.in_time)
            if job.reply.done():  # the server is closing
                continue
            if isinstance(reply, Exception):
                job.reply.set_exception(reply)
                job.reply.exception()  # nobody may be waiting for it
            else:
                job.reply.set_result((reply, seconds))
