"""Actors that follow what a policy observes while it acts, so that others can ask the policy about it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .actor import Actor, ObservationWrapper, PolicyActor, TransformedActor
from .wrappers import WrappedActor


@dataclass(frozen=True)
class Moment:
    """What a policy knew when it chose an action.

    Args:
        obs: Observation windows, (B, To, ...).
        key: Source of all randomness of each row in this episode, (B,) int64.
        count: The number of the step within the episode, (B,).
    """

    obs: Mapping[str, Tensor]
    key: Tensor
    count: Tensor


@dataclass(frozen=True)
class FollowedActor(Actor):
    """Base class of actors that act like the policy that they wrap, and are told each moment.

    Args:
        actor: The policy. Its state has the windows of observations, "seen".
    """

    actor: Actor

    @abstractmethod
    def follow(self, moment: Moment) -> Mapping[str, Tensor]:
        """Returns columns of a step that are recorded, rows first."""

    def start(self, obs, key):
        return {"actor": self.actor.start(obs, key), "key": key, "count": torch.zeros_like(key)}

    @torch.no_grad()
    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["actor"])
        record = self.follow(_moment(inner, state["key"], state["count"]))
        state = {**state, "actor": inner, "count": state["count"] + 1}
        return action, {**state, "record": {k: v.cpu() for k, v in record.items()}} if record else state


def _moment(state, key: Tensor, count: Tensor) -> Moment:
    device = next(iter(state["seen"].values())).device
    return Moment(state["seen"], key.to(device), count.to(device))


@dataclass(frozen=True)
class NotingActor(FollowedActor):
    """Wraps the actor of a policy to note each moment at which it chooses an action.

    Args:
        note: Called at the start of an episode and at each step, in the thread that acts. It has to be quick.
    """

    note: Callable[[Moment], None]

    def start(self, obs, key):
        state = super().start(obs, key)
        self.note(_moment(state["actor"], key, state["count"]))
        return state

    def follow(self, moment):
        self.note(moment)
        return {}


def wrap_policy(actor: Actor, wrap: Callable[[PolicyActor], Actor]) -> Actor | None:
    """Wraps the actor of a policy inside of other actors. Returns None if there is none, as of a served policy."""
    if isinstance(actor, PolicyActor):
        return wrap(actor)
    if isinstance(actor, (ObservationWrapper, TransformedActor, WrappedActor)):
        inner = wrap_policy(actor.actor, wrap)
        return None if inner is None else replace(actor, actor=inner)
    return None
