"""A served policy as a planner or an actor, for commands and programs that have PyTorch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .. import config
from ..core import Feature, Schema, State, Unsupported, UserError
from ..data.window import Window
from ..execute.actor import Actor, PolicyActor, check_action
from ..execute.base import Executor
from ..policy import Inpaint, LastChunk, Planner, camera_sizes
from .client import Client, LinkLost, ServeError
from .schema import PROTOCOL

TOKEN_VARIABLE = "UNDERSTUDY_TOKEN_FILE"  # environment variable with a file whose first token is sent


class RemotePlanner(Planner):
    """Plans on a server. Executors run here, and `AsynchronousRunner` hides the network.

    The server draws the same noise as the policy would here, so that plans are equal up to rounding. A lost link, or a
    reply that does not come within the timeout of the client, raises an error: on a robot, `act_on_robot` then stops.

    Args:
        client: The connection.
        trust: Packages whose executors may be loaded.

    Attributes:
        executor: The executor of the served method.

    Raises:
        UserError: The server does not serve a policy of understudy.
    """

    def __init__(self, client: Client, trust: tuple[str, ...] = ("understudy",)):
        self.client, about = client, client.policy
        if about.get("protocol") != PROTOCOL:
            raise UserError(f"the server does not say what its policy reads in protocol {PROTOCOL}", where=client.url,
                            hint="serve it with the same version of understudy serve, or use Client.infer")
        self.inputs = tuple(name for name in about["inputs"] if name not in about.get("defaults", ()))
        self.features: Schema = {k: Feature.from_json(f) for k, f in about["features"].items()}
        self.window: Window = config.load(about["window"], where=client.url)
        self.executor: Executor | None = (
            None if about["executor"] is None else config.load(about["executor"], trust, where=client.url))
        self.action_dim, self.device = int(about["action_dim"]), torch.device("cpu")
        self.is_discrete, self.is_deterministic = bool(about.get("is_discrete")), bool(
            about.get("is_deterministic"))

    @property
    def action_scale(self) -> Tensor:
        if (scale := self.client.policy.get("action_scale")) is None:
            return super().action_scale
        return torch.as_tensor(scale)

    def plan(self, obs, noise, guides=()):
        sent = {name: value.cpu().numpy() for name, value in obs.items()}
        options = {"op": "plan", "key": noise[:, 0].numpy(), "count": noise[:, 1].numpy(),
                   "guides": [self._guide(g) for g in guides]}
        reply = _asked(lambda: self.client.request({**sent, "understudy": options}))
        return torch.from_numpy(np.asarray(reply["actions"]))

    def noise(self, key, count):
        """The server draws the noise, so this is what it depends on, (B, 2)."""
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
    """Acts on a server, which also executes the chunks and keeps the state of each row.

    The state here is a number of each row. After a step, the state before it is gone, so episodes cannot be forked.

    Args:
        client: The connection.
    """

    client: Client

    def start(self, obs, key):
        reply = self._request("start", obs, key=key.numpy())
        return {"row": torch.from_numpy(np.asarray(reply["rows"]))}

    def act(self, obs, state: State):
        reply = self._request("act", obs, rows=state["row"].numpy())
        action = torch.from_numpy(np.asarray(reply["actions"]))
        check_action(action)
        return action, state

    def _request(self, op: str, obs: Mapping[str, Tensor], **options: object) -> dict:
        names = {*self.client.policy["schema"]["observations"], *self.client.policy["inputs"]}
        sent = {k: v.cpu().numpy() if isinstance(v, Tensor) else np.asarray(v) for k, v in obs.items() if k in names}
        return _asked(lambda: self.client.request({**sent, "understudy": {"op": op, **options}}))


def connect_policy(address: str, timeout: float = 10.0) -> Client:
    """Connects to a server, with the token in the file that the environment variable UNDERSTUDY_TOKEN_FILE names.

    Args:
        address: Such as "ws://gpu:8000".
        timeout: Seconds to wait for a connection or a reply.

    Raises:
        UserError: There is no server, or it refuses the token.
    """
    from .access import read_tokens

    path = os.environ.get(TOKEN_VARIABLE)
    token = None if path is None else read_tokens(Path(path))[0]
    return _asked(lambda: Client(address, token=token, timeout=timeout))


def remote_actor(planner: RemotePlanner, executor: Executor | None = None) -> Actor:
    """Returns the actor of a served policy. Chunks are executed here, or on the server if they have to be.

    Args:
        planner: The planner.
        executor: The executor. None for that of the served method.
    """
    if executor is None and not planner.client.policy["chunks"]:
        return RemoteActor(planner.client)
    executor = executor or planner.executor
    assert executor is not None
    executor.check_planner(planner)
    return PolicyActor(planner, executor, camera_sizes({n: planner.features[n] for n in planner.inputs}))


def _asked(request: Callable):
    try:
        return request()
    except LinkLost as error:
        raise UserError(str(error), where="server",
                        hint="is it running, and is this its address? understudy serve RUN --port N") from error
    except ServeError as error:
        raise UserError(str(error), where="server", hint="the server's log has the request; a token comes from the "
                        f"file that {TOKEN_VARIABLE} names") from error
