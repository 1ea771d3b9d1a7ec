"""A planner that records its plans as a CUDA graph and replays them.

A sampler with many small steps launches thousands of kernels, and on a GPU launching them takes longer than their work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..core import Unsupported, tree_map
from ..execute.planners import PlannerWrapper
from ..policy import Planner, sampling_guides

WARMUP_RUNS = 3  # calls before the recording, in which libraries allocate memory and choose algorithms


class CapturedPlanner(PlannerWrapper):
    """A planner whose plans are replayed on CUDA. On other devices it plans normally, with the same buffers.

    There is one graph for each number of rows and shape of observations, so keep that number constant (`FixedBatch`). A
    graph reads fixed memory. It follows weights that an optimizer changes in place. After a run is restored, or a
    memory is filled again, make a new planner. With guides, it plans without a graph, because guides are new functions
    in every plan. Use it from one thread.

    Raises:
        Unsupported: The plan waits for the GPU, which no graph can contain.
    """

    def __init__(self, policy: Planner):
        self.planner = policy
        self._graphs: dict[tuple, _CapturedGraph] = {}

    @torch.no_grad()
    def plan(self, obs, noise, guides=()):
        if sampling_guides(guides):
            return self.planner.plan(obs, noise, guides)
        inputs = {"obs": {k: obs[k] for k in sorted(obs)}, "noise": noise}
        kind = (*inputs["obs"], *_leaves(tree_map(lambda t: (tuple(t.shape), t.dtype, t.device), inputs)))
        if kind not in self._graphs:
            self._graphs[kind] = _CapturedGraph(lambda g: self.planner.plan(g["obs"], g["noise"]), inputs)
        return self._graphs[kind](inputs)


class _CapturedGraph:
    """A CUDA graph of a captured function. It reads its arguments from fixed memory and writes its results there."""

    def __init__(self, function: Callable[[dict], Tensor], inputs: dict):
        self.inputs = tree_map(torch.clone, inputs)
        if (device := next(_leaves(self.inputs)).device).type == "cuda":
            with torch.cuda.device(device):
                graph = self._capture(function)

            def replay():
                with torch.cuda.device(device):
                    graph.replay()
            self.replay = replay
        else:
            self.plan = function(self.inputs)
            self.replay = lambda: self.plan.copy_(function(self.inputs))

    def _capture(self, function) -> torch.cuda.CUDAGraph:
        """Captures the graph on the current device, on a separate stream."""
        aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARMUP_RUNS):
                function(self.inputs)
        torch.cuda.current_stream().wait_stream(aside)
        try:
            with torch.cuda.graph(graph, stream=aside, capture_error_mode="thread_local"):
                self.plan = function(self.inputs)
        except RuntimeError as error:
            raise Unsupported(f"the plan cannot be recorded as a CUDA graph: {error}", where="CapturedPlanner",
                              hint="plan with the policy itself") from error
        return graph

    def __call__(self, inputs: dict) -> Tensor:
        tree_map(lambda own, new: own.copy_(new), self.inputs, inputs)
        self.replay()
        return self.plan.clone()


def _leaves(tree):
    if isinstance(tree, dict):
        for value in tree.values():
            yield from _leaves(value)
    else:
        yield tree
