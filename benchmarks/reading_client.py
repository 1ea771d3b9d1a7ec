"""A page of the studio without a browser: it reads what the server sends, and sends what a person would.

A browser that renders in software takes more of two processor cores than the server that is measured.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
import urllib.request
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import socketio

ACKNOWLEDGE = 3.0  # s between two messages that say what has been read, as of NiceGUI's page
ESCAPES = (("&#36;", "$"), ("&#96;", "`"), ("&gt;", ">"), ("&lt;", "<"), ("&amp;", "&"))


@dataclass(frozen=True)
class ReadPicture:
    """A picture that has come.

    Args:
        at: When, by `time.monotonic`.
        shapes: What it shows, as JSON.
        text: The line below it.
    """

    at: float
    shapes: str
    text: str


class ReadingClient:
    """A page of the studio. A context manager, in a loop of asyncio.

    Args:
        address: Where the studio is.
        loading: How long it takes to load a picture (s).
        on_picture: Called with each picture.
    """

    def __init__(self, address: str, loading: float = 0.0, on_picture: Callable[[ReadPicture], None] = lambda p: None):
        self.address, self.loading, self.on_picture = address.rstrip("/"), loading, on_picture
        self.elements: dict[str, dict[str, Any]] = {}
        self._next_message, self._tasks = 0, set()
        self._socket = socketio.AsyncClient(reconnection=False)
        for name, handler in (("update", self._update), ("run_javascript", self._run), ("*", self._ignore)):
            self._socket.on(name, handler)

    async def __aenter__(self) -> ReadingClient:
        with urllib.request.urlopen(self.address) as answer:
            html = answer.read().decode()
        (text,), (self._id,) = (re.findall(pattern, html, re.DOTALL) for pattern in (
            r"parseElements\(String\.raw`(.*?)`\)", r"'client_id': '([^']+)'"))
        for escape, character in ESCAPES:
            text = text.replace(escape, character)
        self.elements = json.loads(text)
        query = {"client_id": self._id, "next_message_id": 0, "implicit_handshake": "true",
                 "document_id": uuid.uuid4(), "tab_id": uuid.uuid4()}
        await self._socket.connect(f"{self.address}?{urlencode(query)}", headers={"Origin": self.address},
                                   transports=["websocket"], socketio_path="/_nicegui_ws/socket.io")
        self._start(self._acknowledge())
        return self

    async def __aexit__(self, *error) -> None:
        for task in self._tasks:
            task.cancel()
        await self._socket.disconnect()

    # -- what a person does ---------------------------------------------------------------------------------------

    async def press(self, label: str) -> None:
        """Presses the button of this name, once it is there."""
        await self.wait_until(lambda: self.has_button(label))
        await self._emit(self._buttons(label)[0], "click", {})

    async def order(self, key: str) -> None:
        """Presses a key that is a command, such as "Enter"."""
        await self._emit(self._picture(), "order", key)

    async def hold(self, keys: Sequence[str]) -> None:
        """Says which keys are held."""
        await self._emit(self._picture(), "held", {"held": list(keys), "axes": [0, 0]})

    async def wait_until(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        until = time.monotonic() + seconds
        while not condition():
            if problem := self._text_of("alert") or "the connection is lost" * (not self._socket.connected):
                raise RuntimeError(problem)
            if time.monotonic() > until:
                raise TimeoutError(f"the page still says: {self.status()}")
            await asyncio.sleep(0.02)

    # -- what the page shows --------------------------------------------------------------------------------------

    def status(self) -> str:
        """The line below the picture."""
        return self._text_of("status")

    def has_button(self, label: str) -> bool:
        return bool(self._buttons(label))

    def says(self, text: str) -> bool:
        """Whether the page has a text."""
        return any(text in (e.get("text") or "") for e in self.elements.values())

    # -- messages ---------------------------------------------------------------------------------------------------

    def _text_of(self, role: str) -> str:
        return next(e.get("text", "") for e in self.elements.values() if e.get("props", {}).get("role") == role)

    def _buttons(self, label: str) -> list[str]:
        return [i for i, e in self.elements.items() if e.get("props", {}).get("label") == label]

    def _picture(self) -> str:
        return next(i for i, e in self.elements.items() if any(x["type"] == "loaded" for x in e.get("events", ())))

    async def _emit(self, element: str, event: str, argument: Any) -> None:
        listener = next(x["listener_id"] for x in self.elements[element]["events"] if x["type"] == event)
        await self._socket.emit("event", {"id": int(element), "client_id": self._id, "listener_id": listener,
                                          "args": [json.dumps(argument)]})

    def _start(self, work) -> None:
        self._tasks.add(task := asyncio.ensure_future(work))
        task.add_done_callback(self._tasks.discard)

    async def _acknowledge(self) -> None:
        while True:
            await asyncio.sleep(ACKNOWLEDGE)
            await self._socket.emit("ack", {"client_id": self._id, "next_message_id": self._next_message})

    def _update(self, message: dict[str, Any]) -> None:
        self._next_message = message.pop("_id") + 1
        for element, value in message.items():
            if value is None:
                self.elements.pop(element, None)
            else:
                self.elements[element] = value

    async def _run(self, message: dict[str, Any]) -> None:
        self._next_message = message["_id"] + 1
        if drawing := re.fullmatch(r'return runMethod\((\d+), "draw", \[(.*), ?(\d+)\]\)', message["code"], re.DOTALL):
            self.on_picture(ReadPicture(time.monotonic(), drawing[2], self.status()))
            await asyncio.sleep(self.loading)
            await self._emit(drawing[1], "loaded", int(drawing[3]))

    def _ignore(self, name: str, message: dict[str, Any]) -> None:
        if isinstance(message, dict) and "_id" in message:
            self._next_message = message["_id"] + 1
