"""A planner whose plans are recorded once as a CUDA graph and then replayed: a sampler of many small steps launches
thousands of kernels, and on a GPU launching them takes longer than their work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core import Unsupported
from ..execute.planners import Over, _each
from ..policy import Planner

WARM = 3  # calls before one is recorded: what allocates or chooses an algorithm at first does so in these


class Captured(Over):
    """`policy`, whose plans are replayed on CUDA; elsewhere it plans as it is, by the same way through held memory.

    One graph for each number of rows and shape of observation, so let that number stay the same (`Fixed`). A graph
    reads memory where it lay: weights that an optimizer changes in place are followed, but after a run is restored or a
    memory filled anew, make another. With guides it plans as the policy does: they are functions, new in every plan.
    For one thread. Raises Unsupported for a plan that waits for the GPU on its way, which no graph can hold.
    """

    def __init__(self, policy: Planner):
        self.policy = policy
        self._known: dict[tuple, _Replayed] = {}

    @torch.no_grad()
    def plan(self, obs, noise, guides=()):
        if guides:
            return self.policy.plan(obs, noise, guides)
        given = {"obs": {k: obs[k] for k in sorted(obs)}, "noise": noise}
        kind = (*given["obs"], *_leaves(_each(lambda t: (tuple(t.shape), t.dtype, t.device), given)))
        if kind not in self._known:
            self._known[kind] = _Replayed(lambda g: self.policy.plan(g["obs"], g["noise"]), given)
        return self._known[kind](given)


class _Replayed:
    """A function of a tree of tensors that reads them where they lie and writes its answer where it lay before."""

    def __init__(self, function: Callable[[dict], Tensor], given: dict):
        self.held = _each(torch.clone, given)
        if (where := next(_leaves(self.held)).device).type == "cuda":
            with torch.cuda.device(where):
                graph = self._recorded(function)

            def replay():
                with torch.cuda.device(where):
                    graph.replay()
            self.replay = replay
        else:
            self.said = function(self.held)
            self.replay = lambda: self.said.copy_(function(self.held))

    def _recorded(self, function) -> torch.cuda.CUDAGraph:
        """On the current device, aside from what else is under way there."""
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM):
                function(self.held)
        torch.cuda.current_stream().wait_stream(aside)
        try:
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                self.said = function(self.held)
        except RuntimeError as error:
            raise Unsupported(f"expected a plan that a graph can hold, found {error}", where="Captured",
                              do="plan with the policy itself") from error
        return graph

    def __call__(self, given: dict) -> Tensor:
        _each(lambda mine, new: mine.copy_(new), self.held, given)
        self.replay()
        return self.said.clone()


def _leaves(tree):
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _leaves(value)
    else:
        yield tree
