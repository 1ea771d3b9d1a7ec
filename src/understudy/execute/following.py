"""Search-based control: follow the demonstration that was most similar, and search again when it no longer is."""

from __future__ import annotations

from typing import Annotated, Any, cast

import torch

from ..core import AtLeast, ConfigError, Unsupported, part
from ..heads.memory.neighbors import Neighbors
from ..policy import Planner, Policy
from .base import Executor, check_alignment
from .planners import PlannerWrapper


@part
class FollowDemonstration(Executor):
    """Executor that repeats the recorded actions of the nearest demonstration until it is no longer near.

    It runs policies with the head `Neighbors`, whose memory has every step of the demonstrations. At each step the
    observation is compared with the observation that the demonstration has at the same step. The memory is searched
    again if the distance has grown to more than `ratio` times what it was when the demonstration was chosen, if
    `max_steps` steps were executed, or if the demonstration has ended. Nothing is trained. To do another task, give
    other demonstrations.

    Args:
        max_steps: Largest number of steps until the next search.
        ratio: Largest distance from the demonstration while it is followed, relative to the distance at the search.
            None only searches after `max_steps` steps and at the end of a demonstration.
        min_distance: A distance below this, in units of the encoder, is never a divergence. Without this limit,
            following would end one step after an exact match.

    References:
        Malato et al. (2023), Behavioral Cloning via Search in Embedded Demonstration Dataset, arXiv:2306.09082.
        Malato et al. (2024), Zero-shot Imitation Policy via Search in Demonstration Dataset, arXiv:2401.16398.
    """

    max_steps: Annotated[int, AtLeast(1)] = 128
    ratio: Annotated[float | None, AtLeast(0)] = 2.0
    min_distance: Annotated[float, AtLeast(0)] = 0.1

    def check_planner(self, planner):
        check_alignment(self, planner)
        policy_with_memory(planner, "FollowDemonstration")

    def start(self, planner, obs, key):
        self.check_planner(planner)
        zero = torch.zeros_like(key, device=planner.device)
        return {"row": zero, "step": zero, "distance": zero.float(), "is_searching": zero == 0}

    def act(self, planner, obs, state):
        policy, context = policy_with_memory(planner, "FollowDemonstration"), planner.context(obs)
        head, net = policy.config.head, cast(Any, policy.net)  # with the buffers of the memory
        assert isinstance(head, Neighbors)
        is_searching = state["is_searching"] | (state["step"] >= self.max_steps)
        if self.ratio is not None:
            now = (net.keys[state["row"]] - context.flat()).square().sum(-1).sqrt()
            is_searching |= now > (self.ratio * state["distance"].clamp(min=1e-9)).clamp(min=self.min_distance)
        rows, distances = head.nearest(net, context)
        row = torch.where(is_searching, rows[:, 0], state["row"])
        action = planner.decode(net.values[row][:, :1], obs)[:, 0]
        has_ended = net.known[row, 1] == 0  # the row is the last of its episode
        return action, {
            "row": (row + 1).clamp(max=len(net.keys) - 1),
            "step": torch.where(is_searching, 0, state["step"]) + 1,
            "distance": torch.where(is_searching, distances[:, 0].float(), state["distance"]),
            "is_searching": has_ended,
        }


def policy_with_memory(planner: Planner, where: str) -> Policy:
    """Returns the policy that has a memory of demonstrations, from inside planners around it.

    Raises:
        Unsupported: The policy has no memory.
        ConfigError: The memory does not tell where a demonstration ends.
    """
    inner = planner
    while isinstance(inner, PlannerWrapper):
        inner = inner.planner
    if not isinstance(inner, Policy) or not isinstance(inner.config.head, Neighbors):
        raise Unsupported("the demonstrations are not stored in the policy", where=where,
                          hint="use a policy with the head Neighbors, or another executor")
    if inner.window.horizon < 2:
        raise ConfigError("the window has a horizon of 1, which does not tell where a demonstration ends", where=where,
                          hint="use Window(horizon=2)")
    return inner
