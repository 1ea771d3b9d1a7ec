"""A planner whose plans are recorded once as a CUDA graph and then replayed: a sampler of many small steps launches
thousands of kernels, and on a GPU launching them takes longer than their work."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core import Unsupported, tree_map
from ..execute.planners import PlannerWrapper
from ..policy import Planner, sampling_guides

WARMUP_RUNS = 3  # calls before one is recorded: what allocates or chooses an algorithm at first does so in these


class CapturedPlanner(PlannerWrapper):
    """`policy`, whose plans are replayed on CUDA; elsewhere it plans as it is, by the same way through held memory.

    One graph for each number of rows and shape of observation, so let that number stay the same (`FixedBatch`). A graph
    reads memory where it lay: weights that an optimizer changes in place are followed, but after a run is restored or a
    memory filled anew, make another. With guides it plans as the policy does: they are functions, new in every plan.
    For one thread. Raises Unsupported for a plan that waits for the GPU on its way, which no graph can hold.
    """

    def __init__(self, policy: Planner):
        self.planner = policy
        self._graphs: dict[tuple, _CapturedGraph] = {}

    @torch.no_grad()
    def plan(self, obs, noise, guides=()):
        if sampling_guides(guides):
            return self.planner.plan(obs, noise, guides)
        given = {"obs": {k: obs[k] for k in sorted(obs)}, "noise": noise}
        kind = (*given["obs"], *_leaves(tree_map(lambda t: (tuple(t.shape), t.dtype, t.device), given)))
        if kind not in self._graphs:
            self._graphs[kind] = _CapturedGraph(lambda g: self.planner.plan(g["obs"], g["noise"]), given)
        return self._graphs[kind](given)


class _CapturedGraph:
    """A function of a tree of tensors that reads them where they lie and writes its answer where it lay before."""

    def __init__(self, function: Callable[[dict], Tensor], given: dict):
        self.held = tree_map(torch.clone, given)
        if (where := next(_leaves(self.held)).device).type == "cuda":
            with torch.cuda.device(where):
                graph = self._capture(function)

            def replay():
                with torch.cuda.device(where):
                    graph.replay()
            self.replay = replay
        else:
            self.said = function(self.held)
            self.replay = lambda: self.said.copy_(function(self.held))

    def _capture(self, function) -> torch.cuda.CUDAGraph:
        """On the current device, aside from what else is under way there."""
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUP_RUNS):
                function(self.held)
        torch.cuda.current_stream().wait_stream(aside)
        try:
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                self.said = function(self.held)
        except RuntimeError as error:
            raise Unsupported(f"expected a plan that a graph can hold, found {error}", where="Captured",
                              hint="plan with the policy itself") from error
        return graph

    def __call__(self, given: dict) -> Tensor:
        tree_map(lambda mine, new: mine.copy_(new), self.held, given)
        self.replay()
        return self.said.clone()


def _leaves(tree):
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _leaves(value)
    else:
        yield tree
