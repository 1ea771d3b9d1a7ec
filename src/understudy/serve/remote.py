"""Makes a served policy a planner or an actor, for commands and programs that have PyTorch."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from .. import config
from ..core import Feature, Schema, State, Unsupported, UserError
from ..data.window import Window
from ..execute.actor import Actor, PolicyActor, check_action
from ..execute.base import Executor
from ..policy import Inpaint, LastChunk, Planner, camera_sizes
from .client import Client, LinkLost, MalformedReply, ServeError, reply_array
from .schema import PROTOCOL
from .wire import as_array

TOKEN_VARIABLE = "UNDERSTUDY_TOKEN_FILE"  # environment variable with a file whose first token is sent


class PolicyConnection(Protocol):
    """What a policy in another process is asked through: a `Client`, or a `LeRobotProcess`."""

    url: str
    checkpoints: list[str]

    @property
    def policy(self) -> dict:
        """What the other side says of its policy."""
        ...

    def request(self, message: Mapping[str, object]) -> dict:
        """Sends a message and returns its reply."""
        ...


class RemotePlanner(Planner):
    """Planner that plans on a server. Executors run here, and `AsynchronousRunner` hides the network.

    The server draws the same noise as the policy would here, so that plans are equal up to rounding. A lost link, or a
    reply that does not come within the timeout of the client, raises an error: on a robot, `act_on_robot` then stops.

    Args:
        trust: Packages whose executors may be loaded.
    """

    def __init__(self, client: PolicyConnection, trust: tuple[str, ...] = ("understudy",)):
        self.client, self._trust, about = client, trust, client.policy
        if about.get("protocol") != PROTOCOL:
            raise UserError(f"the server does not say what its policy reads in protocol {PROTOCOL}", where=client.url,
                            hint="serve it with the same version of understudy serve, or use Client.infer")
        with _reading_description(client.url):
            self.inputs = tuple(str(name) for name in about["inputs"] if name not in about.get("defaults", ()))
            self.features: Schema = {k: Feature.from_json(f) for k, f in about["features"].items()}
            self.window: Window = config.load(about["window"], where=client.url)
            self.action_dim, self.device = int(about["action_dim"]), torch.device("cpu")
            self.is_discrete, self.is_deterministic = bool(about.get("is_discrete")), bool(
                about.get("is_deterministic"))
            scale = about.get("action_scale")
            self._action_scale = None if scale is None else torch.from_numpy(
                as_array(scale, "action_scale").reshape(self.action_dim))
            _check_description(about, self)

    @cached_property
    def executor(self) -> Executor | None:
        """The executor of the served method."""
        stored = self.client.policy.get("executor")
        with _reading_description(self.client.url):
            executor = None if stored is None else config.load(stored, self._trust, where=self.client.url)
            if not (executor is None or isinstance(executor, Executor)):
                raise ValueError(f"the executor {executor!r}")
        return executor

    @property
    def action_scale(self) -> Tensor:
        return super().action_scale if self._action_scale is None else self._action_scale

    def plan(self, obs, noise, guides=()):
        sent = {name: value.cpu().numpy() for name, value in obs.items()}
        options = {"op": "plan", "key": noise[:, 0].numpy(), "count": noise[:, 1].numpy(),
                   "guides": [self._guide(g) for g in guides]}
        shape = len(noise), self.window.horizon, self.action_dim
        return _request_array(self.client, {**sent, "understudy": options}, "actions", shape)

    def noise(self, key, count):
        """Returns key and count, (B, 2), from which the server draws the noise."""
        return torch.stack([key, count], 1)

    def _guide(self, guide) -> dict[str, object]:
        if isinstance(guide, LastChunk):
            return {"kind": "last_chunk", "chunk": guide.chunk.numpy(), "cursor": guide.cursor.numpy(),
                    "exists": guide.exists.numpy()}
        if isinstance(guide, Inpaint):
            return {"kind": "inpaint", "action": guide.action.numpy(), "weight": guide.weight.numpy()}
        raise Unsupported(f"{type(guide).__name__} cannot be sent to a server", where=self.client.url,
                          hint="use an executor such as RecedingHorizon or RealTimeChunking")


@dataclass(frozen=True)
class RemoteActor(Actor):
    """Actor that acts on a server, which also executes the chunks and keeps the state of each row.

    The state here is a number of each row. After a step, the state before it is gone, so episodes cannot be forked.
    """

    client: PolicyConnection

    def start(self, obs, key):
        return {"row": self._request("start", obs, "rows", (len(key),), key=key.numpy())}

    def act(self, obs, state: State):
        shape = len(state["row"]), int(self.client.policy["action_dim"])
        action = self._request("act", obs, "actions", shape, rows=state["row"].numpy())
        check_action(action)
        return action, state

    def _request(self, op: str, obs: Mapping[str, Tensor], reply: str, shape: tuple[int, ...],
                 **options: object) -> Tensor:
        names = {*self.client.policy["schema"]["observations"], *self.client.policy["inputs"]}
        sent = {k: v.cpu().numpy() if isinstance(v, Tensor) else np.asarray(v) for k, v in obs.items() if k in names}
        return _request_array(self.client, {**sent, "understudy": {"op": op, **options}}, reply, shape)


def connect_policy(address: str) -> Client:
    """Connects to a server, with the token in the file that the environment variable UNDERSTUDY_TOKEN_FILE names.

    Args:
        address: Such as "ws://gpu:8000".
    """
    from .access import read_tokens

    path = os.environ.get(TOKEN_VARIABLE)
    token = None if path is None else read_tokens(Path(path))[0]
    client = _asked(lambda: Client(address, token=token))
    RemotePlanner(client)  # refuses what is not a policy of understudy
    return client


def remote_actor(planner: RemotePlanner, executor: Executor | None = None) -> Actor:
    """Returns the actor of a served policy. Chunks are executed here, or on the server if they have to be.

    Args:
        executor: The executor. None for the executor of the served method.
    """
    if executor is None and not planner.client.policy["chunks"]:
        return RemoteActor(planner.client)
    executor = executor or planner.executor
    assert executor is not None
    executor.check_planner(planner)
    return PolicyActor(planner, executor, camera_sizes({n: planner.features[n] for n in planner.inputs}))


@contextmanager
def _reading_description(url: str) -> Iterator[None]:
    """Turns errors about an unusable description from a server into UserError. A context manager."""
    try:
        yield
    except UserError:
        raise
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"the server's description of its policy cannot be read ({type(error).__name__}: {error})",
                        where=url, hint="serve it with the same version of understudy serve") from error


def _check_description(about: Mapping, planner: RemotePlanner) -> None:
    """Raises ValueError or the like if a server's description of its policy has unusable entries."""
    kinds = {"schema": dict, "inputs": list, "checkpoint": str, "chunks": bool}
    if invalid := [name for name, kind in kinds.items() if not isinstance(about[name], kind)]:
        raise TypeError(f"{invalid[0]} is {about[invalid[0]]!r}"[:100])
    if not isinstance(planner.window, Window) or not isinstance(about["schema"]["observations"], dict):
        raise TypeError("the window or the observations")
    if any(len(planner.features[name].shape) != 1 for name in about.get("texts", ())) or any(
            name not in planner.features for name in about["inputs"]):
        raise ValueError("the columns that it reads")
    if (fps := about["schema"].get("fps")) is not None and not 0 < fps < math.inf:
        raise ValueError(f"{fps!r} steps per second")


def _request_array(client: PolicyConnection, message: Mapping[str, object], name: str, shape: tuple[int, ...]
                   ) -> Tensor:
    return torch.from_numpy(_asked(lambda: reply_array(client.request(message), name, shape)))


def _asked(request: Callable):
    try:
        return request()
    except LinkLost as error:
        raise UserError(str(error), where="server",
                        hint="is it running, and is this its address? understudy serve RUN --port N") from error
    except MalformedReply as error:
        raise UserError(str(error), where="server",
                        hint="serve the policy with the same version of understudy serve") from error
    except ServeError as error:
        raise UserError(str(error), where="server", hint="the server's log has the request; a token comes from the "
                        f"file that {TOKEN_VARIABLE} names") from error
