"""Runs the updates of several training seeds as one graph."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..core import Batch, Diverged, Unsupported
from ..nets.linear import products
from .algorithm import Engine
from .captured import CapturedUpdates, Graph, Leaves, compiled, leaves_of, run_trial

MOST_DEVIATION = 1e-4  # of the metrics of a graph, and of its moments as a fraction of what the update changes


class StackedUpdates:
    """The updates of several engines as one graph, which `vmap` makes of a captured update.

    Weights, moments, and whatever else differs between the engines, such as statistics of their data, get an axis of
    engines in front. Each engine draws its own noise and checks its own metrics. Each graph is compared once with the
    updates of all engines.

    Args:
        engines: Engines of one method, which differ in their seeds and data.
        compiled: Whether graphs are compiled. False calls their operations one by one.

    Raises:
        Unsupported: The updates cannot be captured, or not be computed at once. The message says why.
    """

    def __init__(self, engines: Sequence[Engine], *, compiled: bool = False):
        self.engines, self.compiled = engines, compiled
        self.parts = [CapturedUpdates(engine, compiled=False) for engine in engines]
        self.state = _stack([part.state for part in self.parts])
        self.graphs: dict[Any, tuple[Graph, list[Tensor]]] = {}

    def update(self, batches: Sequence[Batch]) -> list[dict[str, float]]:
        """Makes an update of each engine with its batch, and returns their metrics."""
        first, leaves = self.parts[0], [leaves_of(batch) for batch in batches]
        form = first.form_of(leaves[0])
        if form not in self.graphs:
            self.write_state()
            self.graphs[form] = self._capture(leaves)
        graph, constants = self.graphs[form]
        with torch.no_grad():
            own = _stack([[*rows.values(), *part.noise(graph)] for part, rows in zip(self.parts, leaves, strict=True)])
            values = graph.run(*self.state, *own, *first.rates(graph), *constants).tolist()
        first.count_update(graph)
        return [_finish(engine, batch, dict(zip(graph.metrics, row[:-1], strict=True)))
                for engine, batch, row in zip(self.engines, batches, values, strict=True)]

    def write_state(self) -> None:
        """Gives the engines their weights and moments, which are those of before the first update until then."""
        with torch.no_grad():
            for i, part in enumerate(self.parts):
                for tensor, stacked in zip(part.state, self.state, strict=True):
                    tensor.copy_(stacked[i])
                part.copy_counts(self.parts[0])

    def _capture(self, leaves: Sequence[Leaves]) -> tuple[Graph, list[Tensor]]:
        """Returns the graph of an update, and the tensors that it reads after state, batch, noise and rates."""
        first = self.parts[0]
        graph = first.trace(leaves[0])
        constants, axes = self._of_engines(_constants_as_inputs(graph.run))
        trials = []
        for part, rows in zip(self.parts, leaves, strict=True):
            with _seed_named(part.engine):
                trials.append(part.trial(graph, rows))
        n_rates = len(first.rates(graph))
        n_own = len(trials[0][0]) - n_rates
        own = _stack([inputs[:n_own] for inputs, *_ in trials])
        inputs = [*own, *trials[0][0][n_own:], *constants]
        try:
            update = torch.func.vmap(graph.run, (*[0] * n_own, *[None] * n_rates, *axes))
            run = make_fx(update, {torch.ops.aten.bmm.default: products}, tracing_mode="fake")(*inputs)
        except Exception as error:  # noqa: BLE001  (whatever it is, separate trainings do without it)
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"
            raise Unsupported(f"PyTorch cannot batch the networks ({reason})", where=type(first.engine.config).__name__,
                              hint="train the seeds one after the other") from None
        rows = run_trial(run, inputs, first.engine.config).tolist()
        for i, (part, (_, moments, expected)) in enumerate(zip(self.parts, trials, strict=True)):
            part.check([tensor[i] for tensor in own[:len(self.state)]], moments, MOST_DEVIATION)
            for name, value in zip(graph.metrics, rows[i], strict=False):
                if not math.isclose(value, expected[name], rel_tol=MOST_DEVIATION, abs_tol=1e-6):
                    raise Unsupported(f"the {name} of seed {part.engine.seed} would be {value} and not "
                                      f"{expected[name]}", where=type(part.engine.config).__name__,
                                      hint="train the seeds one after the other")
        return replace(graph, run=compiled(run) if self.compiled else run), constants

    def _of_engines(self, constants: Sequence[Tensor]) -> tuple[list[Tensor], list[int | None]]:
        """Stacks tensors of the first engine with those of the others. Returns them and their axes, None if equal."""
        of_engines = [_tensors(engine) for engine in self.engines]
        numbers, results, axes = {id(tensor): i for i, tensor in enumerate(of_engines[0])}, [], []
        for tensor in constants:
            number = numbers.get(id(tensor))
            tensors = [tensor] if number is None else [of_engine[number].detach() for of_engine in of_engines]
            is_equal = all(torch.equal(tensor, other) for other in tensors)
            results.append(tensors[0] if is_equal else torch.stack(tensors))
            axes.append(None if is_equal else 0)
        return results, axes


@dataclass(frozen=True)
class _MadeUpdate:
    """An update of an engine whose new weights have been computed elsewhere, in a common graph."""

    metrics: dict[str, float]

    def update(self, batch: Batch) -> dict[str, float]:
        return self.metrics

    def read_state(self) -> None:
        """Does nothing: the engine is not restored."""


def _finish(engine: Engine, batch: Batch, metrics: dict[str, float]) -> dict[str, float]:
    """Counts an update whose weights have been computed, and checks its metrics."""
    engine.captured = _MadeUpdate(metrics)
    try:
        with _seed_named(engine):
            return engine.update(batch)
    finally:
        engine.captured = None


@contextmanager
def _seed_named(engine: Engine) -> Iterator[None]:
    """Adds the seed to errors of training. A context manager."""
    try:
        yield
    except Diverged as error:
        raise Diverged(error.problem, where=f"seed {engine.seed}, {error.where}", hint=error.hint) from None


def _tensors(engine: Engine) -> list[Tensor]:
    """Returns the weights and buffers of all networks, and of their copies."""
    copies = [m for ema in (*engine.averages.values(), *engine.targets.values()) for m in ema.module.modules()]
    return [tensor for module in (*engine.all_modules(), *copies) for tensors in (module._parameters, module._buffers)
            for tensor in tensors.values() if tensor is not None]


def _constants_as_inputs(module: Any) -> list[Tensor]:
    """Turns the tensors that a graph stores into its last inputs, and returns them."""
    graph, inputs = module.graph, dict[str, torch.fx.Node]()
    graph.eliminate_dead_code()
    *_, last = (node for node in graph.nodes if node.op == "placeholder")
    for node in list(graph.nodes):
        if node.op == "get_attr":
            if node.target not in inputs:
                with graph.inserting_after(last):
                    last = inputs[node.target] = graph.placeholder(node.target)
            node.replace_all_uses_with(inputs[node.target])
            graph.erase_node(node)
    module.recompile()
    return [getattr(module, name) for name in inputs]


def _stack(rows: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Stacks the tensors of several lists, one of each, with an axis of lists in front."""
    return [torch.stack([t.detach() for t in tensors]) for tensors in zip(*rows, strict=True)]
