"""Compiles whole updates (losses, gradients, AdamW, target networks, averaged weights) to one graph, for speed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from itertools import chain, repeat
from typing import Any, Literal

import torch
from torch import Generator, Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.overrides import TorchFunctionMode

from ..core import Batch, Unsupported, UserError, key
from ..data import one_hot
from ..nets import linear
from ..nets.ema import EMA
from .algorithm import Engine
from .fit import Learner, LearnerConfig
from .gradient_learner import Loss
from .optimizer import OptimizerState
from .targets import REWARD, ReturnBound

MOST_DEVIATION = 0.02  # of the moments of gradients of a graph, as a fraction of what the update changes
Draw = tuple[Callable[..., Tensor], tuple, dict[str, Any]]
Leaves = dict[tuple[str, ...], Tensor]  # the tensors of a batch
Moments = dict[str, list[Tensor]]  # the first moments by the names of networks


@dataclass(frozen=True)
class Graph:
    """A training update that was captured as a graph.

    Args:
        run: A function of weights and moments, the batch, noise and rates. It writes the new weights and moments, and
            returns the metrics. The last of these says whether all losses and gradients are finite. If not, nothing has
            changed.
        metrics: Names of the metrics, without the last one.
        draws: What is drawn from each generator. The key None is the generator of the preparations, and a number is the
            generator of the loss with this number.
        trained: The network of each loss.
    """

    run: Callable[..., Tensor]
    metrics: list[str]
    draws: dict[int | None, list[Draw]]
    trained: list[str]


def capture(learner: Learner, *, compiled: bool = True) -> None:
    """Lets the updates of a learner run as graphs from now on: see `CapturedUpdates`."""
    if not isinstance(learner, Engine):
        raise _unsupported(learner.config, "this learner, such as that of PPO, has no `Engine`")
    learner.captured = CapturedUpdates(learner, compiled=compiled)


class CapturedUpdates:
    """Makes the updates of an `Engine` by graphs, which `torch.compile` turns into machine code.

    The graphs compute the same as `Engine.update`, with the same noise, up to rounding. The engine keeps all state. A
    graph is made when the first batch of its form comes, which takes half a minute or more. It is compared once with an
    update of the engine, with other noise and the rows in another order, and refused if the gradients differ.

    Args:
        compiled: Whether graphs are compiled. False calls their operations one by one.

    Raises:
        Unsupported: The updates of the method cannot be captured. The message says why.
    """

    def __init__(self, engine: Engine, *, compiled: bool = True):
        _check(engine)
        self.engine, self.compiled = engine, compiled
        self.graphs: dict[Any, Graph] = {}
        self.copies: list[EMA] = [*engine.averages.values(), *engine.targets.values()]
        self.read_state()

    def read_state(self) -> None:
        """Takes the weights and moments of the engine, after it was built or restored."""
        self.graphs.clear()  # they may hold tensors from before
        names = {step.of for step in self.engine.config.steps_of_update()}
        self.adams = {name: _Adam(optimizer) for name, optimizer in self.engine.optimizers.items() if name in names}
        self.state = [t for a in self.adams.values() for t in (*a.parameters, *a.means, *a.squares)]
        self.state += [t for ema in self.copies for t in ema.weights]

    def update(self, batch: Batch) -> dict[str, float]:
        """Makes an update of the weights, and returns its metrics."""
        leaves = leaves_of(batch)
        form = self.form_of(leaves)
        if form not in self.graphs:
            self.graphs[form] = self._capture(leaves)
        graph = self.graphs[form]
        with torch.no_grad():
            inputs = *self.state, *leaves.values(), *self.noise(graph), *self.rates(graph)
            *values, is_finite = graph.run(*inputs).tolist()
        metrics = dict(zip(graph.metrics, values, strict=True))
        if is_finite:
            self.count_update(graph)
        return metrics

    def count_update(self, graph: Graph) -> None:
        """Counts an update, on which the rates of later ones depend."""
        for name in graph.trained:
            self.adams[name].count += 1
        for ema in self.copies:
            ema.updates += 1
            ema.copy_buffers()

    def copy_counts(self, other: CapturedUpdates) -> None:
        """Takes the numbers of updates of another learner of the same method."""
        for name, adam in self.adams.items():
            adam.count = other.adams[name].count
        for ema, other_ema in zip(self.copies, other.copies, strict=True):
            ema.updates = other_ema.updates

    def form_of(self, leaves: Leaves) -> Any:
        """Returns what decides which graph an update needs: its steps, and the shapes of the batch."""
        due = self.engine.due_steps(self.engine.n_updates)
        return tuple(due), tuple((path, leaf.shape, leaf.dtype) for path, leaf in leaves.items())

    def noise(self, graph: Graph) -> Iterator[Tensor]:
        """Draws the random numbers that the steps of an update need."""
        for number, calls in graph.draws.items():
            rng = self.engine.generator() if number is None else Generator(self.engine.device).manual_seed(
                key(self.engine.loss_key(self.engine.n_calls + number), 0))
            for function, args, kwargs in calls:
                yield function(*args, **kwargs, generator=rng)

    def rates(self, graph: Graph) -> Sequence[Tensor]:
        """Returns step size, correction of the second moments and factor of the weights of each loss, then the weight
        of each copy.
        """
        return torch.tensor(self._rates(graph.trained)).unbind()

    def _rates(self, trained: Sequence[str]) -> list[float]:
        rates: list[float] = []
        for i, name in enumerate(trained):
            rates += self.adams[name].rates(self.engine.n_updates, 1 + trained[:i].count(name))
        return rates + [1 - ema.decay.value(ema.updates + 1) for ema in self.copies]

    def _capture(self, leaves: Leaves) -> Graph:
        graph = self.trace(leaves)
        inputs, moments, _ = self.trial(graph, leaves)
        run_trial(graph.run, inputs, self.engine.config)
        self.check(inputs, moments, MOST_DEVIATION)
        return replace(graph, run=compiled(graph.run)) if self.compiled else graph

    def trace(self, leaves: Leaves) -> Graph:
        """Captures the graph of an update with such a batch, which is neither checked nor compiled."""
        draws, trained, names = _Draws(), list[str](), list[str]()

        def function(*inputs: Tensor) -> Tensor:
            # The first run is for the draws alone, and how many rates it needs is not known yet.
            numbers = iter(inputs) if draws.is_replay else chain(inputs, repeat(torch.tensor(0.5)))
            traced = _Traced(self, numbers, draws)
            batch = _batch({path: next(numbers) for path in leaves})
            draws.begin(numbers)
            with draws, traced.inputs_in_place():
                metrics = traced.trace(batch, numbers)
            trained[:], names[:] = traced.trained, list(metrics)[:-1]
            return torch.stack([value.float().reshape(()) for value in metrics.values()])

        bounds = self.engine.metric_bounds.values()
        if any(isinstance(bound, ReturnBound) for bound in bounds) and ("extra", REWARD) not in leaves:
            raise _unsupported(self.engine.config, "rewards are computed in the update")
        state = [t.detach().clone() for t in self.state]
        with _traceable(self.engine), self._unchanged_buffers():
            function(*state, *leaves.values())
            draws.is_replay = True
            graph = Graph(function, names, draws.calls, trained)
            inputs = *state, *leaves.values(), *self.noise(graph), *self.rates(graph)
            try:
                trace = make_fx(function, {torch.ops.aten.bmm.default: linear.products}, tracing_mode="real")
                run = trace(*inputs)
            except RuntimeError as error:
                raise _unsupported(self.engine.config, "an update reads a value that it computes, or has a shape that "
                                   f"depends on one ({str(error).splitlines()[0]})") from None
        if dependent := [str(node.target) for node in run.graph.nodes if _has_dependent_shape(node)]:
            raise _unsupported(self.engine.config, f"an update has shapes that depend on its values ({dependent[0]})")
        return replace(graph, run=run)

    @contextmanager
    def _unchanged_buffers(self) -> Iterator[None]:
        """Raises Unsupported if its body has changed a buffer, and restores the buffer. A context manager."""
        buffers = [b for m in self.engine.all_modules() for b in m.buffers(recurse=False)]
        saved = [buffer.clone() for buffer in buffers]
        yield
        if not all(torch.equal(a, b) for a, b in zip(buffers, saved, strict=True)):
            for buffer, value in zip(buffers, saved, strict=True):
                buffer.copy_(value)
            raise _unsupported(self.engine.config, "an update changes a buffer, such as a running mean")

    def trial(self, graph: Graph, leaves: Leaves) -> tuple[list[Tensor], Moments, dict[str, float]]:
        """Makes another update without the graph, to check it. Returns inputs for the graph, moments and metrics."""
        engine, now = self.engine, self.engine.n_updates
        due = engine.due_steps(now)
        later = next((n for n in range(now + 1, now + 50) if engine.due_steps(n) == due), now)
        others = {path: leaf.flip(0) for path, leaf in leaves.items()}
        twin = copy.deepcopy(engine, {id(self): None})
        twin.n_updates = later
        twin.make_steps(_batch(others))
        try:
            engine.n_updates = later  # noise and rates depend on it
            inputs = [*(t.detach().clone() for t in self.state), *others.values(), *self.noise(graph),
                      *self.rates(graph)]
        finally:
            engine.n_updates = now
        moments = {name: twin.optimizers[name].moments()[0] for name in self.adams}
        return inputs, moments, twin.end_update(moves_copies=False)

    def check(self, state: Sequence[Tensor], moments: Moments, most_deviation: float) -> None:
        """Raises Unsupported if the moments after a graph differ from those of a normal update."""
        new_state = iter(state)
        for name, adam in self.adams.items():
            # The first steps of AdamW hardly depend on the size of a gradient, but its moments do.
            _, means, _ = ([next(new_state) for _ in adam.parameters] for _ in range(3))
            old, new, expected = (torch.cat([t.detach().flatten() for t in tensors]) for tensors in (
                adam.means, means, moments[name]))
            if (new - expected).norm() > most_deviation * (expected - old).norm() + 1e-7:
                raise _unsupported(self.engine.config, f"an update of {name!r} depends on more than its inputs")


class _Adam:
    """The weights of an optimizer, their moments, and the number of its steps."""

    def __init__(self, optimizer: OptimizerState):
        self.optimizer, self.config, self.parameters = optimizer, optimizer.config, optimizer.parameters
        self.means, self.squares, counters = optimizer.moments()
        self.counters = [*{id(counter): counter for counter in counters}.values()]  # weights may share one

    @property
    def count(self) -> int:
        return int(self.counters[0]) if self.counters else 0

    @count.setter
    def count(self, value: int) -> None:
        if self.counters:
            torch._foreach_add_(self.counters, value - self.count)

    def rates(self, update: int, more: int) -> list[float]:
        count, (beta, beta2), rate = self.count + more, self.config.betas, self.optimizer.rate(update)
        return [rate / (1 - beta**count), (1 - beta2**count) ** -0.5, 1 - rate * self.config.weight_decay]


class _Traced(Engine):
    """An engine whose weights are inputs of a graph, in which its steps compute new weights."""

    def __init__(self, owner: CapturedUpdates, inputs: Iterator[Tensor], draws: _Draws):
        vars(self).update(vars(owner.engine))
        self.adams, self.draws, self.trained = owner.adams, draws, list[str]()
        self._metrics = {}
        self._n_calls, self.is_finite = 0, torch.ones((), dtype=torch.bool)

        def take(like: Sequence[Tensor]) -> list[Tensor]:
            return [next(inputs) for _ in like]
        self.before = {name: [take(a.parameters), take(a.means), take(a.squares)] for name, a in self.adams.items()}
        self.now = {name: [list(tensors) for tensors in lists] for name, lists in self.before.items()}
        self.averages_now = [(ema, take(ema.weights)) for ema in owner.copies]

    def trace(self, batch: Batch, rates: Iterator[Tensor]) -> dict[str, Tensor]:
        """Makes the steps of an update, and writes the new weights and moments into the inputs."""
        self.rates = rates
        self.make_steps(batch)
        sources = {id(p): new for name, a in self.adams.items()
                   for p, new in zip(a.parameters, self.now[name][0], strict=True)}
        with torch.no_grad():
            for ema, averages in self.averages_now:
                weight = next(rates)
                for average, value in zip(averages, ema.sources, strict=True):
                    moved = torch.lerp(average, sources[id(value)] if id(value) in sources else value.detach(), weight)
                    average.copy_(torch.where(self.is_finite, moved, average))
            for name, lists in self.before.items():
                for olds, news in zip(lists, self.now[name], strict=True):
                    for old, new in zip(olds, news, strict=True):
                        if new is not old:
                            old.copy_(torch.where(self.is_finite, new, old))
        return {name: sum(values) / len(values) for name, values in self._metrics.items()} | {"": self.is_finite}

    def minimize(self, name: str, loss: Loss, batch: Batch, weights: Tensor | None = None, *,
                 normalize: Literal["weights", "rows"] = "weights") -> None:
        parameters, means, squares = self.now[name]
        leaves = [p.detach().requires_grad_() for p in parameters]
        self.put(self.adams[name].parameters, leaves)
        self._logged = {}
        number, self._n_calls = self._n_calls, self._n_calls + 1
        with self.optimizers[name].autocast():
            terms = loss(batch, self.draws.generator(number))
            value = self._weighting(weights, batch, normalize).reduce(name, terms, slice(None), (
                batch.mask.shape[0], batch.mask.shape[1]))
        gradients = torch.autograd.grad(value, leaves, allow_unused=True)
        with torch.no_grad():
            norm = torch.stack([g.square().sum() for g in gradients if g is not None]).sum().sqrt()
            self.is_finite = self.is_finite & (norm + value).isfinite()
            step, root, keep = (next(self.rates) for _ in range(3))
            limit, (beta, beta2) = self.adams[name].config.grad_clip_norm, self.adams[name].config.betas
            scale = None if limit is None else (limit / (norm + 1e-6)).clamp(max=1.0)
            for i, gradient in enumerate(gradients):
                if gradient is not None:
                    gradient = gradient if scale is None else gradient * scale
                    means[i] = torch.lerp(means[i], gradient, 1 - beta)
                    squares[i] = squares[i] * beta2 + (1 - beta2) * gradient * gradient
                    weight = parameters[i] * keep if parameters[i].ndim >= 2 else parameters[i]
                    parameters[i] = weight - step * means[i] / (squares[i].sqrt() * root + 1e-8)
        self.put(self.adams[name].parameters, parameters)
        self.trained.append(name)
        self._record(name, loss=value.detach(), gradient=norm)
        self._record(name, **{k: total / count for k, (total, count) in self._logged.items()})

    def generator(self, stream: int = 0) -> Generator:
        return self.draws.generator(None)

    def _is_whole(self, batch: Batch) -> bool:
        return False

    def put(self, parameters: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Makes the networks compute with these tensors in place of their parameters."""
        for parameter, tensor in zip(parameters, tensors, strict=True):
            for place, name in self.places[id(parameter)]:
                place[name] = tensor

    @contextmanager
    def inputs_in_place(self) -> Iterator[None]:
        """Makes networks and their copies compute with a graph's inputs while its body runs. A context manager."""
        modules = {id(m): m for m in self.all_modules()}
        modules |= {id(m): m for ema, _ in self.averages_now for m in ema.module.modules()}
        saved = [(m._parameters, dict(m._parameters)) for m in modules.values()]
        self.places: dict[int, list[tuple[dict[str, Any], str]]] = {}
        for place, contents in saved:
            for name, parameter in contents.items():
                self.places.setdefault(id(parameter), []).append((place, name))
        try:
            for name, (parameters, *_) in self.before.items():
                self.put(self.adams[name].parameters, parameters)
            for ema, averages in self.averages_now:
                self.put(ema.weights, averages)
            yield
        finally:
            for place, contents in saved:
                place.update(contents)


class _Draws(TorchFunctionMode):
    """Records random draws from generators, and later replaces them by inputs of the graph."""

    def __init__(self):
        super().__init__()
        self.calls: dict[int | None, list[Draw]] = {}
        self.is_replay = False

    def begin(self, noise: Iterator[Tensor]) -> None:
        self.generators: dict[int | None, Generator] = {}
        if self.is_replay:
            self.noise = {number: [next(noise) for _ in calls] for number, calls in self.calls.items()}

    def generator(self, number: int | None) -> Generator:
        """Returns the generator of a loss, or of the preparations."""
        return self.generators.setdefault(number, Generator())

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        number = next((n for n, rng in self.generators.items() if rng is kwargs.get("generator")), "")
        if number == "":
            return function(*args, **kwargs)
        if self.is_replay:
            return self.noise[number].pop(0)
        others = {name: value for name, value in kwargs.items() if name != "generator"}
        if any(isinstance(value, Tensor) for value in (*args, *others.values())):
            raise Unsupported(f"{function.__name__} draws from numbers that are computed", where="--compile",
                              hint="train without --compile")
        self.calls.setdefault(number, []).append((function, args, others))
        return function(*args, **kwargs)


def _check(engine: Engine) -> None:
    """Raises Unsupported if updates of this engine do more than a graph can."""
    config, optimizers = engine.config, engine.optimizers.values()
    if engine.device.type != "cpu":
        raise _unsupported(config, f"graphs are captured on CPUs so far, and this is {engine.device}")
    if engine.processes.count > 1:
        raise _unsupported(config, "there are several processes")
    if any(o.config.accumulation_steps > 1 for o in optimizers):
        raise _unsupported(config, "batches are accumulated", "set --optimizer.accumulation-steps to 1, or train "
                           "without --compile")
    if any(o.precision == "fp16" for o in optimizers):
        raise _unsupported(config, "gradients of fp16 are scaled", "set --optimizer.precision to bf16 or fp32, or "
                           "train without --compile")
    if not any(o.parameters for o in optimizers):
        raise _unsupported(config, "there are no weights to train")
    rates = (getattr(m, name, 0) for m in engine.all_modules() for name in ("p", "dropout"))
    if any(rate for rate in rates if isinstance(rate, float)):  # else `dropout` is a module, whose rate is `p`
        raise _unsupported(config, "a network has dropout", "set its dropout to 0, or train without --compile")


def _unsupported(config: LearnerConfig, reason: str, hint: str = "train without --compile") -> Unsupported:
    return Unsupported(f"updates cannot be compiled: {reason}", where=type(config).__name__, hint=hint)


def _has_dependent_shape(node: torch.fx.Node) -> bool:
    """Returns whether a graph node's result is no tensor, or has a shape that depends on values."""
    tags = getattr(node.target, "tags", ())
    if node.target is torch.ops.aten.index.Tensor:  # row numbers give a fixed shape, a mask does not
        return any(node.meta["val"].dtype == torch.bool for node in node.all_input_nodes[1:])
    return torch.Tag.dynamic_output_shape in tags or torch.Tag.data_dependent_output in tags


def run_trial(run: Callable[..., Tensor], inputs: Sequence[Tensor], config: LearnerConfig) -> Tensor:
    """Runs a graph with other inputs than those of its capture, and raises Unsupported if it cannot."""
    try:
        with torch.no_grad():
            return run(*inputs)
    except RuntimeError as error:
        raise _unsupported(config, f"an update has shapes that depend on its values ({error})") from None


def compiled(graph: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Returns a graph as machine code, which is made in the first call."""
    run = torch.compile(graph, fullgraph=True, dynamic=False,  # the form of a batch is checked before
                        options={"guard_filter_fn": lambda guards: [False for _ in guards]})

    def call(*inputs: Tensor) -> Tensor:
        try:
            return run(*inputs)
        except Exception as error:
            if "InvalidCxxCompiler" not in repr(error):
                raise
            raise UserError("there is no C++ compiler", where="--compile",
                            hint="install one (apt install g++), or train without --compile") from None
    return call


@contextmanager
def _traceable(engine: Engine) -> Iterator[None]:
    """Replaces layers by operations that PyTorch's compiler can trace while its body runs. A context manager."""
    onednn: Any = torch.backends.mkldnn
    linear.IS_TRACED, one_hot.READS_VALUES = True, False
    before = onednn.enabled
    if any(isinstance(m, nn.RNNBase) for m in engine.all_modules()):  # else an operation without a gradient
        onednn.enabled = False
    try:
        yield
    finally:
        linear.IS_TRACED, one_hot.READS_VALUES, onednn.enabled = False, True, before


def leaves_of(batch: Batch) -> Leaves:
    """Returns the tensors of a batch by their paths."""
    return dict(_leaves(batch))


def _leaves(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Tensor]]:
    """Yields the tensors of a batch, with their paths."""
    if isinstance(value, Tensor):
        yield path, value
    elif isinstance(value, Batch):
        for f in fields(value):
            yield from _leaves(getattr(value, f.name), (*path, f.name))
    elif value is not None:
        for name, part in value.items():
            yield from _leaves(part, (*path, name))


def _batch(leaves: Leaves) -> Batch:
    """Builds the batch of these tensors: the inverse of `leaves_of`."""
    tree: dict[str, Any] = {}
    for path, tensor in leaves.items():
        node = tree
        for name in path[:-1]:
            node = node.setdefault(name, {})
        node[path[-1]] = tensor
    tree["others"] = {name: _of_parts(part) for name, part in tree.get("others", {}).items()}
    return _of_parts(tree)


def _of_parts(parts: dict[str, Any]) -> Batch:
    return Batch(**parts)
