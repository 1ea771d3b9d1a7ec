"""A client of `understudy serve` for Python without PyTorch. It needs NumPy, msgpack and websockets only."""

from __future__ import annotations

import copy
import itertools
import ssl
import threading
import time
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus, InvalidURI
from websockets.sync.client import ClientConnection, connect

from .address import is_this_machine
from .service import Fallback
from .wire import WireError, as_array, pack, unpack


class ServeError(RuntimeError):
    """Raised when a request to a server failed."""


class RequestRefused(ServeError):
    """Raised when the server refused a request or the connection. The text is the server's."""


class LinkLost(ServeError, ConnectionError):
    """Raised when the connection was lost, or a reply came too late. Replies to older requests are dropped."""


class MalformedReply(ServeError):
    """Raised when the server sent a reply that cannot be used."""


def reply_array(reply: Mapping[str, object], name: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Returns an array of a reply.

    Args:
        name: Its entry, such as "actions".
        shape: The shape that it must have. None for a dimension of any size but 0.

    Raises:
        MalformedReply: There is no array of numbers of this shape.
    """
    try:
        array = as_array(reply.get(name), name)
    except WireError as error:
        raise MalformedReply(f"the reply cannot be used: {error}") from None
    if len(array.shape) != len(shape) or any(n != m and (m is not None or n == 0)
                                             for n, m in zip(array.shape, shape, strict=True)):
        expected = ", ".join("any" if n is None else str(n) for n in shape)
        raise MalformedReply(f"the reply cannot be used: {name!r} has shape {array.shape}, but ({expected}) was asked "
                             "for")
    return array


class Client:
    """A client with a connection to a policy server.

    After an error the connection is closed. The next request connects again, and the server then knows nothing of the
    requests before.

    Args:
        url: Address, such as "ws://gpu:8000", or "wss://..." with TLS.
        token: Token, if the server needs one.
        schema: What the client sends and expects. The server compares it with the policy and refuses a difference:
            {"observations": {name: {"dtype", "shape", "names", "unit"}}, "action": {...}, "fps": 30,
            "normalization": "none", "action_convention": "..."}. All entries are optional.
        timeout: Seconds to wait for a connection or a reply.
        ca: PEM file with the certificate of the server or of its authority, for "wss://". By default the authorities
            that the system trusts.

    Attributes:
        checkpoints: The checkpoints that the server has planned with so far, oldest first.

    Raises:
        LinkLost: There is no server.
        RequestRefused: The server refused the token or the schema.

    Example:
        >>> with Client("ws://gpu:8000") as client:
        ...     actions = client.infer({"observation.state": state})["actions"]
    """

    def __init__(self, url: str, *, token: str | None = None, schema: Mapping[str, object] | None = None,
                 timeout: float = 10.0, ca: str | Path | None = None):
        self.url, self.schema, self.timeout = url, schema, timeout
        self._headers = {"Authorization": f"Bearer {token}"} if token else None
        self._tls = None
        if url.startswith("wss:"):
            self._tls = ssl.create_default_context(cafile=None if ca is None else str(ca))
        self._numbers, self._lock = itertools.count(), threading.Lock()
        self._connection: ClientConnection | None = None
        self._closing = ExitStack()
        self.metadata: dict[str, object] = {}
        self.checkpoints: list[str] = []
        with self._lock:
            self._connect()

    @property
    def policy(self) -> dict:
        """What the server says of its policy: schema, horizon, n_action_steps, n_obs_steps and others."""
        about = self.metadata.get("understudy")
        return about if isinstance(about, dict) else {}

    def infer(self, obs: Mapping[str, object], *, executed: int | None = None, delay: int | None = None,
              reset: bool = False, deadline: float | None = None, **options: object) -> dict:
        """Returns the reply to an observation: "actions" (n, A) and "server_timing", and "fallback" if the deadline
        passed.

        Args:
            obs: {column: array}. Text goes under "prompt". A policy that reads several steps (`policy["n_obs_steps"]`)
                needs all of them: give the observations since the last request, but no more than the last
                `n_obs_steps`, as one array (steps, ...), oldest first. The server refuses a request in which one of
                them is missing.
            executed: Number of actions of the last reply that were executed before this observation. By default
                `n_action_steps`.
            delay: Number of actions that will be executed before the reply is used, as measured. A policy with
                real-time chunking plans for it.
            reset: Starts an episode.
            deadline: Seconds until the server must reply, by a fallback if need be.
            **options: Further options, such as `mode="action"`.

        Raises:
            RequestRefused: The server says that the request is wrong.
            LinkLost: The connection was lost, or no reply came within the timeout.
        """
        entries = {"executed": executed, "delay": delay, "reset": reset or None, "deadline": deadline, **options}
        return self.request({**obs, "understudy": {k: v for k, v in entries.items() if v is not None}})

    def request(self, message: Mapping[str, object]) -> dict:
        """Sends a message and returns its reply.

        Args:
            message: The columns, with options under "understudy".

        Raises:
            ServeError: As in `infer`.
        """
        message_options = message.get("understudy")
        with self._lock:
            number = next(self._numbers)
            options = {**(message_options if isinstance(message_options, Mapping) else {}), "id": number}
            sent = pack({**message, "understudy": options})  # an error here leaves the connection as it is
            if self._connection is None:
                self._connect()
            return self._exchange(sent, number)

    def close(self) -> None:
        """Closes the connection."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # -- one connection ---------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        try:
            parts = urlsplit(self.url)
            if self._headers and parts.scheme == "ws" and not is_this_machine(parts.hostname or ""):
                warnings.warn(f"{self.url}: the token is sent without TLS, so others in the network can read it. "
                              "Serve with --tls-cert and --tls-key, and connect to wss://", stacklevel=4)
            self._connection = self._closing.enter_context(connect(
                self.url, compression=None, max_size=None, additional_headers=self._headers, ssl=self._tls,
                open_timeout=self.timeout, close_timeout=0.2))
            self.metadata = self._receive()
            self._note_checkpoint(self.policy)
        except InvalidStatus as error:
            text = bytes(error.response.body or b"").decode(errors="replace").strip()
            raise RequestRefused(f"{self.url}: {text or error}") from None
        except (OSError, InvalidHandshake) as error:
            raise self._lost(f"no connection ({error or type(error).__name__})") from None
        except (InvalidURI, ValueError) as error:  # a ValueError if the port is not a number
            raise RequestRefused(f"{self.url}: this is not an address of a server ({error})") from None
        if self.schema is not None:
            number = next(self._numbers)
            self._exchange(pack({"understudy": {"op": "hello", "schema": self.schema, "id": number}}), number)

    def _exchange(self, message: bytes, number: int) -> dict:
        assert self._connection is not None
        try:
            self._connection.send(message)
        except (ConnectionClosed, OSError) as error:
            raise self._lost(f"the connection was lost ({error})") from None
        reply = self._receive()
        answered = reply.get("understudy")
        if not isinstance(answered, dict) or answered.get("id") != number:
            raise self._lost("the reply belongs to another request")
        self._note_checkpoint(answered)
        return reply

    def _note_checkpoint(self, checkpoint: Mapping) -> None:
        if isinstance(name := checkpoint.get("checkpoint"), str) and self.checkpoints[-1:] != [name]:
            self.checkpoints.append(name)

    def _receive(self) -> dict:
        assert self._connection is not None
        try:
            message = self._connection.recv(timeout=self.timeout)
        except TimeoutError:  # a late reply must not be taken for that to the next request
            raise self._lost(f"no reply within {self.timeout:g} s") from None
        except (ConnectionClosed, OSError) as error:
            raise self._lost(f"the connection was lost ({error})") from None
        if isinstance(message, str):
            self._drop()
            raise RequestRefused(message)
        try:
            return unpack(message)
        except WireError as error:
            raise self._lost(f"the reply cannot be read ({error})") from None

    def _lost(self, problem: str) -> LinkLost:
        """Closes the lost connection, and returns the error that says why."""
        self._drop()
        return LinkLost(f"{self.url}: {problem}")

    def _drop(self) -> None:
        self._connection = None
        self._closing.close()


class RemoteRunner:
    """Runs a served policy at a fixed rate: `act` returns at once, while replies are under way.

    When `n_action_steps` actions of a chunk were executed, the next observation is sent. The old chunk continues until
    the reply comes, and the actions whose time has passed are skipped. The largest of the last delays in steps is
    measured and sent along, so that a policy with real-time chunking plans for the network too. A policy that reads
    several steps gets them, because each request has the observations since the one before.

    Args:
        deadline: Seconds after which a reply is late. From then on the fallback holds.
        fallback: What is executed while a reply is late or the link is lost: "last-chunk" continues the old chunk and
            repeats its last action, "hold" repeats the action before, "stop" raises `LinkLost`.
        patience: Seconds without a reply after which `LinkLost` is raised in any case.
        prompt: Words for a policy that reads them.

    Attributes:
        delays: The last delays in steps, oldest first.
        late: Whether the fallback holds now.
    """

    def __init__(self, client: Client, *, deadline: float = 0.5, fallback: Fallback = "last-chunk",
                 patience: float = 2.0, prompt: str | None = None):
        if fallback not in ("hold", "last-chunk", "stop"):
            raise ValueError(f"there is no fallback {fallback!r}; there are hold, last-chunk and stop")
        self.client, self.deadline, self.fallback, self.patience = client, deadline, fallback, patience
        self.prompt = {} if prompt is None else {"prompt": prompt}
        self.delays: deque[int] = deque(maxlen=10)
        self.late = False
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._pending: Future[dict] | None = None
        self._chunk: np.ndarray | None = None
        self._last: np.ndarray | None = None
        self._cursor = self._since = 0
        self._history: list[dict[str, object]] = []  # the last observations, as many as the policy reads
        self._asked_at: float | None = None  # when the oldest observation without a reply was sent
        self._new_session = False

    def reset(self) -> None:
        """Starts an episode. A reply that is under way is dropped."""
        if self._pending is not None:
            self._pending.exception()  # waits: one request at a time
        self._pending = self._chunk = self._last = self._asked_at = None
        self.late = False

    def act(self, obs: Mapping[str, object]) -> np.ndarray:
        """Returns the next action, (A,).

        Args:
            obs: The current observation, {column: array}.

        Raises:
            LinkLost: The link is lost, and the fallback is "stop" or the patience has ended.
            RequestRefused: The server says that the request is wrong.
            MalformedReply: The reply has no actions.
        """
        obs = {**obs, **self.prompt}
        if self._chunk is None:
            self._accept(self.client.infer(obs, reset=True), 0)
            self._history = []
        self._history = [*self._history, copy.deepcopy(obs)][-self.client.policy.get("n_obs_steps", 1):]
        self._receive()
        assert self._chunk is not None
        due = min(self.client.policy.get("n_action_steps", len(self._chunk)), len(self._chunk))
        if self._pending is None and self._cursor >= due:
            self._send()
        waited = 0.0 if self._asked_at is None else time.monotonic() - self._asked_at
        self.late = waited > self.deadline
        if waited > self.patience or (self.late and self.fallback == "stop"):
            raise LinkLost(f"{self.client.url}: no reply for {waited:.2f} s")
        if not (self.late and self.fallback == "hold" and self._last is not None):
            self._last = self._chunk[min(self._cursor, len(self._chunk) - 1)]
        self._cursor += 1
        self._since += 1
        return self._last

    def close(self) -> None:
        """Ends the background thread. The client stays open."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def __enter__(self) -> RemoteRunner:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _send(self) -> None:
        self._since = 0
        steps = self._history if self._new_session else self._history[-self._cursor:]
        if self._asked_at is None:
            self._asked_at = time.monotonic()
        self._pending = self._thread.submit(
            self.client.infer, _stacked(steps), executed=self._cursor,
            delay=max(self.delays) if self.delays else None, reset=self._new_session)

    def _receive(self) -> None:
        if self._pending is None or not self._pending.done():
            return
        pending, self._pending = self._pending, None
        try:
            reply = pending.result()
        except LinkLost:
            self._new_session = True  # the server has forgotten this client
            return
        self.delays.append(self._since)
        self._accept(reply, self._since)

    def _accept(self, reply: Mapping[str, object], delay: int) -> None:
        self._chunk, self._cursor = reply_array(reply, "actions", (None, None)), delay
        self._asked_at, self.late, self._new_session = None, False, False


def _stacked(steps: Sequence[Mapping[str, object]]) -> Mapping[str, object]:
    """Stacks observations of several steps, (steps, ...) a column. Words are those of the last step."""
    if len(steps) == 1:
        return steps[0]
    stacked: dict[str, object] = {}
    for name, last in steps[-1].items():
        values: list[Any] = [step[name] for step in steps]
        stacked[name] = (_stacked(values) if isinstance(last, Mapping) else
                         last if isinstance(last, str) else np.stack(values))
    return stacked
