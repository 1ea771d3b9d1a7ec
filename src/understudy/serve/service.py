"""Base class of the services that a server asks for replies."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Fallback = Literal["hold", "last-chunk", "stop"]
OPTIONS = {"op", "id", "reset", "executed", "delay", "deadline", "mode", "seed", "episode", "schema", "key", "count",
           "guides", "rows"}  # of the key "understudy" in a request


class RequestError(ValueError):
    """Raised for a request that cannot be answered. The client gets the text."""


@dataclass
class Session:
    """What the server keeps of a client. It is changed in the thread of the event loop only, and none of a client's
    requests is planned at the same time as another one.

    Args:
        name: Its address, for the log.
        sent: The actions of the last reply, (n, A). None before the first one.
        state: What the service keeps of the client.
        previous_seconds: Time from the last request to its reply.
    """

    number: int
    name: str = ""
    sent: np.ndarray | None = None
    state: dict = field(default_factory=dict)
    previous_seconds: float | None = None


@dataclass(frozen=True)
class Request:
    """A request of a client, with its observation and options.

    Args:
        columns: What it observed, by the names in the message.
        options: The content of the key "understudy". Empty for clients of openpi.
    """

    session: Session
    columns: Mapping[str, object]
    options: Mapping[str, object]

    def whole(self, name: str, default: int | None) -> int | None:
        """Returns an option of the request that must be a whole number.

        Raises:
            RequestError: It is something else, or below 0.
        """
        value = self.options.get(name)
        if value is None:
            return default
        if isinstance(value, np.integer):
            value = int(value)
        if type(value) is not int or not 0 <= value < 2**62:
            raise RequestError(f"the option {name!r} is {value!r}, but must be a whole number of 0 or more")
        return value


@dataclass(frozen=True)
class Reply:
    """The reply to a request: the actions and further entries.

    Args:
        commit: Called in the thread of the event loop before the reply is sent. It stores the state of the client. Its
            argument is False if the client got something else meanwhile, because its deadline had passed.
        checkpoint: The weights that planned it. None if it was not planned, or if the weights have no name.
    """

    values: dict[str, object]
    commit: Callable[[bool], None] = lambda in_time: None
    checkpoint: str | None = None


class Service(ABC):
    """Base class of services, which answer requests.

    `run` is called in the thread of the network. The other methods are called in the thread of the event loop.

    Attributes:
        schema: What the policy reads and plans, for the handshake. None if the schema is not known.
    """

    metadata: dict[str, object]
    schema: dict[str, object] | None = None

    @property
    def checkpoint(self) -> str:
        """Name of the checkpoint that plans now."""
        return ""

    def check(self, request: Request) -> None:
        """Raises RequestError for a request that no batch should contain."""

    @abstractmethod
    def run(self, requests: Sequence[Request]) -> list[Reply | Exception]:
        """Returns the replies to requests of several clients."""

    def fallback(self, request: Request, kind: Fallback) -> dict[str, object] | None:
        """Returns a reply to a request whose deadline has passed. None if the client must stop.

        Args:
            kind: "hold" repeats the last executed action. "last-chunk" continues the last chunk, whose last action is
                repeated. "stop" has no reply.
        """
        sent = request.session.sent
        if kind == "stop" or sent is None or request.options.get("reset") or request.options.get("op"):
            return None
        executed = min(request.whole("executed", self.default_executed(request)) or 0, len(sent))
        if kind == "hold":
            actions = np.repeat(sent[max(executed - 1, 0)][None], len(sent), 0)
        else:
            actions = np.concatenate([sent[executed:], np.repeat(sent[-1:], executed, 0)])
        self.accept_fallback(request, actions)
        return {"actions": actions}

    def default_executed(self, request: Request) -> int:
        """The number of actions of its last reply that a client has executed, if it does not say so."""
        return 1

    def accept_fallback(self, request: Request, actions: np.ndarray) -> None:
        """Notes the fallback actions that a client got in place of a plan."""
        request.session.sent = actions
