"""An actor that starts again, within an episode, when a test reports that its attempt failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated

import torch
from torch import Tensor

from ..core import AtLeast, keys, part, put, take
from .actor import Actor, pass_record

ATTEMPT = "attempt"  # recorded column: number of the attempt, from 1


@part
class RetryActor(Actor):
    """Wraps an actor so that it starts again, in the same episode, when a test reports that its attempt failed.

    The actor is usually a script. Each attempt draws its own random numbers. The number of the attempt is recorded as
    the column `attempt`, (T, 1).

    Args:
        actor: Acts in one attempt. It begins where the failed attempt ended, so it must first let go, for example.
        failed: Called with the observation, {column: (B, ...)}. Returns whether the attempt has failed, (B,) bool. A
            new attempt begins at the step at which this becomes true, which needs an earlier observation.
        max_attempts: Largest number of attempts in an episode. The last one continues after it failed.

    References:
        Ha et al. (2023), Scaling Up and Distilling Down, arXiv:2307.14535.

    Example:
        >>> actor = RetryActor(script, lambda obs: obs["observation.state"][:, 7] < 0.01)  # the gripper is empty
        >>> episodes = rollout(actor, env, 100)
    """

    actor: Actor
    failed: Callable[[Mapping[str, Tensor]], Tensor]
    max_attempts: Annotated[int, AtLeast(1)] = 100

    def start(self, obs, key):
        attempt = torch.ones_like(key)
        return {"inner": self.actor.start(obs, _attempt_keys(key, attempt)), "key": key, ATTEMPT: attempt,
                "failed": self.failed(obs)}

    def act(self, obs, state):
        failed, inner = self.failed(obs), state["inner"]
        begins = failed & ~state["failed"] & (state[ATTEMPT] < self.max_attempts)
        attempt, rows = state[ATTEMPT] + begins, begins.nonzero().flatten()
        if len(rows):
            key = _attempt_keys(state["key"][rows], attempt[rows])
            inner = put(inner, rows, self.actor.start(take(obs, rows), key))
        action, inner = self.actor.act(obs, inner)
        return action, pass_record({"key": state["key"], ATTEMPT: attempt, "failed": failed}, inner,
                                   {ATTEMPT: attempt[:, None]})


def _attempt_keys(key: Tensor, attempt: Tensor) -> Tensor:
    """Returns a key for each attempt, (B,).

    Even the first attempt does not use the key of the episode. Otherwise retries within retries would draw the same
    numbers in both.
    """
    return torch.cat([keys(*one) for one in zip(key.tolist(), attempt.unsqueeze(1).tolist(), strict=True)])
