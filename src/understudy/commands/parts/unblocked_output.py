"""Makes standard output and error never block a control loop, for example when a terminal is stopped."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

_PROMPT_SECONDS = 0.2  # longest wait before a question, which is not printed through these streams
_MAX_WAITING = 10_000  # texts that wait for a terminal that does not read


class _UnblockedStream(io.TextIOBase):
    """A text stream that a thread writes into another one, so that `write` and `flush` return at once.

    Lines that replace the one before (they begin with a carriage return) wait only until the next one comes. If too
    many other texts wait, the oldest is dropped.
    """

    def __init__(self, stream: TextIO):
        self._stream, self._descriptor = stream, stream.fileno()
        self._waiting: deque[str] = deque(maxlen=_MAX_WAITING)
        self._changed, self._is_ended = threading.Condition(), False
        threading.Thread(target=self._write_all, daemon=True, name="output").start()

    @property
    def encoding(self):
        return self._stream.encoding

    @property
    def errors(self):
        return self._stream.errors

    def fileno(self):
        return self._descriptor

    def isatty(self):
        return self._stream.isatty()

    def writable(self):
        return True

    def write(self, text):
        with self._changed:
            if text.startswith("\r") and self._waiting and self._waiting[-1].startswith("\r"):
                self._waiting.pop()
            if text:  # print(end="") writes an empty text
                self._waiting.append(text)
            self._changed.notify_all()
        return len(text)

    def drain(self, seconds: float | None = None) -> None:
        """Waits until everything is written, at most some seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting, seconds)

    def end(self) -> None:
        """Waits until everything is written, and ends the thread."""
        self.drain()
        with self._changed:
            self._is_ended = True
            self._changed.notify_all()

    def _write_all(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_ended)
                if not self._waiting:
                    return
                text = self._waiting[0]
            data = text.encode(self._stream.encoding or "utf-8", "replace")
            with suppress(OSError):  # nobody reads any more
                while data:  # not through the buffer of the stream: its lock would be held while this waits
                    data = data[os.write(self._descriptor, data):]
            with self._changed:
                if self._waiting and self._waiting[0] is text:
                    self._waiting.popleft()
                self._changed.notify_all()


@contextmanager
def unblocked_output() -> Iterator[None]:
    """Makes printing never wait for its reader, such as a terminal after Ctrl-S. A context manager.

    Its end waits until everything is read, as `print` does otherwise: release the robot before.
    """
    streams: dict[str, TextIO] = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        with suppress(OSError, AttributeError):  # a stream of a test or a notebook, which never waits
            stream.flush()
            setattr(sys, name, _UnblockedStream(stream))
            streams[name] = stream
    try:
        yield
    finally:
        for name, stream in streams.items():
            unblocked = getattr(sys, name)
            setattr(sys, name, stream)
            unblocked.end()


def wait_for_output() -> None:
    """Waits shortly until what was printed in `unblocked_output` is there, before a question that comes after it."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, _UnblockedStream):
            stream.drain(_PROMPT_SECONDS)
