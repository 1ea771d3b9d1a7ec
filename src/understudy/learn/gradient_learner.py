"""Base class of learners that train networks by gradient descent."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Generator, Tensor, nn

from ..checkpoint import CheckpointModule, load_tensors
from ..core import Batch, Diverged, UserError, as_seed, key
from ..data.episode import Dataset
from ..nets.ema import EMA, ConstantDecay, EMADecay
from ..policy import Policy
from .critic import Critic
from .devices import Processes, keep_freed_memory, seeded
from .fit import Learner, LearnerConfig
from .optimizer import OptimizerConfig, OptimizerState
from .targets import ReturnBound

Loss = Callable[[Batch, Generator], "Tensor | tuple[Tensor, ...]"]  # unreduced: (B,) or (B, H)

M = TypeVar("M", bound=nn.Module)


@dataclass(frozen=True)
class _Network:
    """A registered module with its optimizer, and with what is trained with it."""

    module: nn.Module
    trained: nn.ModuleList  # the module and its auxiliary modules
    optimizer: OptimizerState | None
    n_parts: int  # parts of a batch that this process works through


class GradientLearner(Learner):
    """Base class of learners with one or several networks, each with its own optimizer.

    Most learners are an `Algorithm`, which is trained by the subclass `Engine`. A subclass registers its networks, and
    in `update` it minimizes losses that are given as functions of a batch and a random generator. This class does the
    rest: it splits batches for gradient accumulation and for several processes, weights and reduces the losses, applies
    autocast and gradient clipping, seeds noise and dropout, updates target networks and averaged weights, and saves and
    restores everything.

    The noise and the dropout of a part of a batch depend on the seed, the number of the update, the number of the
    `minimize` call within it and the number of the part. The processes share the parts. A result therefore does not
    depend on how many processes share the same parts, and a restored learner continues bit for bit.

    Attributes:
        steps: Number of updates that will be made. Learning-rate schedules depend on it.
        n_updates: Number of updates made.
        device: The device of the policy. Registered modules are moved there.
        main: Name of the network whose metrics have no prefix.

    Args:
        policy: The policy to train. It is not registered by itself, because optimizers differ.
        seed: Seed of noise and dropout.
    """

    def __init__(self, config: LearnerConfig, policy: Policy, seed: int, steps: int):
        self.config, self.policy, self.seed, self.steps = config, policy, as_seed(seed), steps
        self.device = policy.device
        keep_freed_memory()
        self.n_updates, self.main = 0, "policy"
        self.processes = Processes.current()
        self.averages: dict[str, EMA] = {}  # averaged weights, which act
        self.targets: dict[str, EMA] = {}  # target networks, which losses read
        self._networks: dict[str, _Network] = {}
        self._bounds: list[Any] = []
        self._metrics: dict[str, list[Any]] = {}  # of this update: numbers, or tensors without axes
        self._logged: dict[str, list[Tensor]] = {}  # sum and number of what this call of `minimize` has logged
        self._n_calls = 0  # of `minimize` in this update
        self._modules: list[nn.Module] | None = None  # all that are in a registered network
        self._others: dict[str, list[nn.Parameter]] = {}  # by network: the weights of all other networks

    # -- what a subclass calls when it is built -------------------------------------------------------------------

    def register(self, name: str, module: M, optimizer: OptimizerConfig | None = None, *,
                 auxiliary: Sequence[nn.Module] = ()) -> M:
        """Adds a network, and returns it. It is saved and restored with the learner.

        Args:
            name: A name without dots, such as "critic". The policy is called "policy".
            module: The network. It is moved to the learner's device and set to training mode.
            optimizer: Optimizer of its parameters that require gradients. None for a module that is only saved.
            auxiliary: Further modules that the same optimizer trains, such as a decoder that an auxiliary loss needs.
        """
        if name in self._networks or "." in name:
            raise ValueError(f"{type(self).__name__}.register: {name!r} is not a new name without dots")
        module.to(self.device).train()
        trained = nn.ModuleList([module, *auxiliary]).to(self.device)
        state, n_parts = None, 1
        if optimizer is not None:
            n_parts = -(-optimizer.accumulation_steps // self.processes.count)
            if self.config.batch_size < (total := n_parts * self.processes.count):
                raise UserError(f"batch_size is {self.config.batch_size}, but each batch is split into {total} parts: "
                                f"accumulation_steps={optimizer.accumulation_steps}, "
                                f"{self.processes.count} processes", where=type(self.config).__name__,
                                hint="use a larger batch_size or smaller accumulation_steps")
            state = optimizer.build(trained, self.steps, self.device)
        self._networks[name], self._modules, self._others = _Network(module, trained, state, n_parts), None, {}
        return module

    def target_network(self, name: str, decay: float | EMADecay = 0.995) -> Any:
        """Keeps a slowly updated copy of a registered network, for use in losses.

        After each update, `target = decay * target + (1 - decay) * network`. Buffers are copied.

        Args:
            decay: Fraction of the target that an update keeps. 0 copies the network.

        Returns:
            The target network, of the class of the registered one, in evaluation mode and without gradients.
        """
        decay = decay if isinstance(decay, EMADecay) else ConstantDecay(decay)
        self.targets[name] = EMA(self._networks[name].module, decay)
        return self.targets[name].module

    def average_weights(self, name: str, decay: EMADecay) -> nn.Module:
        """Keeps averaged weights of a registered network. They act and are stored in checkpoints.

        Returns:
            A copy of the network with averaged weights, in evaluation mode and without gradients.
        """
        self.averages[name] = EMA(self._networks[name].module, decay)
        return self.averages[name].module

    def score_bound(self, data: Dataset, discount: float) -> ReturnBound:
        """Returns a `ReturnBound` that keeps the largest reward so far, also when the learner is restored."""
        self._bounds.append(ReturnBound(data, discount))
        return self._bounds[-1]

    # -- what a subclass calls in `update` ------------------------------------------------------------------------

    def generator(self, stream: int = 0) -> Generator:
        """Returns a random generator that depends on the seed, the number of updates made and `stream` alone.

        For draws outside of a loss, of which `stream` keeps several in one update apart. It is the same in every
        process. A loss uses the generator that it receives.
        """
        return Generator(self.device).manual_seed(key(self._update_key(), -(1 << 32) - stream))

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Turns off gradients, and sets all networks to evaluation mode, while its body runs. A context manager.

        For what an update computes outside of a loss, such as advantages. Networks stay in training mode otherwise,
        and their dropout is seeded only within a loss.
        """
        training = [m for m in self.all_modules() if m.training]
        for module in training:
            vars(module)["training"] = False  # `module.training = False` takes 10 times as long
        try:
            with torch.no_grad():
                yield
        finally:
            for module in training:
                vars(module)["training"] = True

    def all_modules(self) -> list[nn.Module]:
        """Returns every module inside the registered networks, and inside what is trained with them."""
        if self._modules is None:  # a walk through all modules takes longer than a layer of a small network
            self._modules = [m for n in self._networks.values() for m in n.trained.modules()]
        return self._modules

    @contextmanager
    def _others_frozen(self, name: str) -> Iterator[None]:
        """Turns off gradients of all weights that the network's optimizer does not train. A context manager.

        Otherwise `nets.linear` computes the gradients of all weights that a loss reads, and they are dropped.
        """
        if name not in self._others:
            own = {id(p) for p in self._networks[name].trained.parameters()}
            every = [p for n in self._networks.values() for p in n.trained.parameters()]
            self._others[name] = [p for p in every if id(p) not in own]
        others = [p for p in self._others[name] if p.requires_grad]
        for parameter in others:
            parameter.requires_grad = False
        try:
            yield
        finally:
            for parameter in others:
                parameter.requires_grad = True

    def minimize(self, name: str, loss: Loss, batch: Batch, weights: Tensor | None = None, *,
                 normalize: Literal["weights", "rows"] = "weights") -> None:
        """Makes one optimizer step on a network.

        Only the parameters of that network receive gradients, whatever other networks the loss reads.

        Args:
            loss: `loss(batch, rng)`, called for each part of the batch. `rng` is the source of all randomness but
                dropout. It returns the loss of each window (B,) or of each step (B, H), never reduced. A tuple adds
                further terms. Only the first term is weighted.
            batch: This process's part of the batch.
            weights: Weight of each window, (B,) or (B, 1), or of each step, (B, H), at least 0. The loss is
                `sum(weight * loss) / sum(weight)`. None weights all equally. Padded steps have weight 0 in any case.
                The weight of a window is the mean of the weights of its steps that are not padding.
            normalize: "rows" divides by the number of windows or of steps that are not padding, and not by the sum of
                their weights: the loss is `mean(weight * loss)`.

        Raises:
            Diverged: The loss or the gradient is not finite. No weight has changed then.
        """
        network, P = self._networks[name], self.processes
        optimizer = network.optimizer
        if optimizer is None:
            raise ValueError(f"{type(self).__name__}.minimize: {name!r} was registered without an optimizer")
        batch = batch.to(self.device)
        weighting = self._weighting(weights, batch, normalize)
        self._logged = {}
        call_key, size = self.loss_key(self._n_calls), len(batch) if P.count == 1 else round(float(weighting.rows))
        self._n_calls += 1  # no two calls of an update have the same key
        numbers = range(P.rank * network.n_parts, (P.rank + 1) * network.n_parts + 1)
        cuts = [size * k // (network.n_parts * P.count) for k in numbers]
        total = torch.zeros((), device=self.device)
        for number, low, high in zip(numbers[:-1], cuts[:-1], cuts[1:], strict=True):
            rows = slice(low - cuts[0], high - cuts[0])
            if low == high:
                continue
            rng = Generator(self.device).manual_seed(key(call_key, 2 * number))
            dropout_key = key(call_key, 2 * number + 1)
            with torch.enable_grad(), seeded(dropout_key, self.device), optimizer.autocast(), self._others_frozen(name):
                terms = loss(batch if high - low == len(batch) else batch.select_rows(rows), rng)
                value = weighting.reduce(name, terms, rows, (high - low, batch.mask.shape[1]))
            optimizer.backward(value)
            total += value.detach()
        logged = [pair for pairs in self._logged.values() for pair in pairs]
        P.all_reduce([total, *logged, *(p.grad for p in optimizer.parameters if p.grad is not None)])
        norm = optimizer.clip_gradients()
        loss_value, norm_value, *logged = _read([total, norm, *logged])
        self._check_finite(optimizer, name, loss=loss_value, gradient=norm_value)
        self._record(name, loss=loss_value, gradient=norm_value, rate=optimizer.step(self.n_updates))
        self._record(name, **{k: logged[2 * i] / logged[2 * i + 1] for i, k in enumerate(self._logged)})

    def log(self, **values: Tensor) -> None:
        """Log the mean of values within a loss, such as the score of a critic. `end_update` returns it.

        The mean is over the whole batch, also if it is worked through in parts.

        Args:
            **values: Tensors of any shape with the windows on the first axis. They need no gradient.
        """
        for name, value in values.items():
            value = value.detach().float()
            pair = value.sum(), value.new_tensor(value.numel())
            self._logged[name] = [a + b for a, b in zip(self._logged[name], pair, strict=True)] \
                if name in self._logged else list(pair)

    def end_update(self, *, moves_copies: bool = True, **metrics: float) -> dict[str, float]:
        """Updates target networks, averaged weights and the counter. Call it once, at the end of `update`.

        Returns:
            Loss, gradient norm and learning rate of each network, and what `log` has logged, as means over the calls of
            `minimize`; and `metrics`. The keys are "loss", "gradient" and "rate" for the policy, and begin with the
            name for any other network, as "critic/loss".
        """
        for copies in (self.averages, self.targets) if moves_copies else ():
            for name, ema in copies.items():
                ema.update(self._networks[name].module)
        self.n_updates += 1
        result = {name: float(values[0] if len(values) == 1 else sum(values) / len(values))
                  for name, values in self._metrics.items()}
        self._metrics, self._n_calls = {}, 0
        return {**result, **metrics}

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The registered networks by name."""
        return {name: n.module for name, n in self._networks.items()}

    @property
    def optimizers(self) -> dict[str, OptimizerState]:
        """The optimizers by the names of their networks."""
        return {name: n.optimizer for name, n in self._networks.items() if n.optimizer is not None}

    # -- what training needs --------------------------------------------------------------------------------------

    @property
    def trained_policy(self) -> Policy:
        """The policy to act with: with averaged weights, if "policy" has them."""
        return cast(Policy, self.averages["policy"].module) if "policy" in self.averages else self.policy

    @property
    def modules(self) -> dict[str, CheckpointModule]:
        """The registered networks that a checkpoint stores, with averaged weights if they have them.

        Networks without averaged weights are copied, so that acting with them changes nothing.
        """
        modules: dict[str, Any] = {
                   name: self.averages[name].module if name in self.averages else copy.deepcopy(n.module).eval()
                   for name, n in self._networks.items() if isinstance(n.module, CheckpointModule) and name != "policy"}
        return {"policy": self.trained_policy, **modules}

    def initialize(self, name: str, source: CheckpointModule) -> None:
        place, names = f"InitializeFrom.into, {name!r}", [n for n in self._networks if n != "policy"]
        if name not in names:
            raise UserError(f"the learner has no module {name!r}; it has {', '.join(names) or 'only the policy'}",
                            where=place, hint="name one of these" if names else "leave this InitializeFrom out")
        module = self._networks[name].module
        if isinstance(module, Critic):
            module.check_source(source, place)
            module.codec = copy.deepcopy(module.codec)  # it gets the statistics of the stage, and the policy does not
        try:
            load_tensors(module, source.state_dict())
        except RuntimeError as error:
            raise UserError(f"the weights of the stage do not fit: {error}", where=place,
                            hint="give it the networks and the window of the stage's") from None
        for copies in (self.averages, self.targets):
            if name in copies:
                copies[name].restart(module)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        groups, scalers = {}, {}
        for name, network in self._networks.items():
            groups[f"networks.{name}"] = network.trained.state_dict()
            if network.optimizer is not None:
                groups[f"optimizers.{name}"], scalers[name] = network.optimizer.state()
        for kind, copies in (("averages", self.averages), ("targets", self.targets)):
            for name, ema in copies.items():  # copies have the buffers of the network
                groups[f"{kind}.{name}"] = dict(ema.module.named_parameters())
        tensors = {f"{group}.{k}": v.detach() for group, tree in groups.items() for k, v in tree.items()}
        return tensors, {"updates": self.n_updates, "scalers": scalers,
                         "largest_rewards": [bound.largest_reward for bound in self._bounds],
                         "averages": {name: ema.updates for name, ema in self.averages.items()},
                         "targets": {name: ema.updates for name, ema in self.targets.items()}}

    def restore(self, tensors: dict[str, Tensor], metadata: dict[str, Any]) -> None:
        def group(name: str) -> dict[str, Tensor]:
            return {k[len(name) + 1:]: v for k, v in tensors.items() if k.startswith(name + ".")}

        for name, network in self._networks.items():
            load_tensors(network.trained, group(f"networks.{name}"))
            if network.optimizer is not None:
                network.optimizer.restore(group(f"optimizers.{name}"), metadata["scalers"][name])
        for kind, copies in (("averages", self.averages), ("targets", self.targets)):
            for name, ema in copies.items():
                load_tensors(ema.module, {**self._networks[name].module.state_dict(), **group(f"{kind}.{name}")})
                ema.updates = metadata[kind][name]
        self.n_updates = metadata["updates"]
        for bound, largest in zip(self._bounds, metadata.get("largest_rewards", ()), strict=False):
            bound.largest_reward = largest

    # -- parts of `minimize` --------------------------------------------------------------------------------------

    def _update_key(self) -> int:
        return key(self.seed, self.n_updates)

    def loss_key(self, number: int) -> int:
        """Returns the key of the random numbers of a call of `minimize` in this update, which are numbered from 0."""
        update_key = self._update_key()
        return key(update_key, -number) if number else update_key

    def _weighting(self, weights: Tensor | None, batch: Batch, normalize: str) -> Weighting:
        # Without a GPU, reading the mask does not wait. Equal weights need no operations.
        if weights is None and self.processes.count == 1 and self._is_whole(batch):
            return Weighting(None, None, batch.mask.numel(), len(batch), len(batch))
        step_weights = _step_weights(weights, batch)
        row_weights = step_weights.sum(1) / batch.mask.sum(1).clamp(min=1)
        sums = torch.stack([step_weights.sum(), row_weights.sum(), step_weights.new_tensor(len(batch))])
        if normalize == "rows":
            sums[0], sums[1] = batch.mask.sum(), sums[2]
        self.processes.all_reduce([sums])
        return Weighting(step_weights, row_weights, *sums[:2].clamp(min=1e-8), sums[2])

    def _is_whole(self, batch: Batch) -> bool:
        """Returns whether it is known that no step of the batch is padding."""
        return self.device.type == "cpu" and bool(batch.mask.all())

    def _check_finite(self, optimizer: OptimizerState, name: str, **values: float) -> None:
        scaled = optimizer.scaler.is_enabled()  # then a gradient too large is skipped and the scale lowered
        for kind, value in values.items():
            if not abs(value) < float("inf") and not (scaled and kind == "gradient"):
                optimizer.zero_grad()
                self._metrics, self._n_calls = {}, 0
                of_network = "" if name == self.main else f" of {name!r}"
                raise Diverged(f"the {kind}{of_network} is {value}", where=f"update {self.n_updates + 1}",
                               hint="lower the learning rate (--optimizer.lr), clip harder, or look for odd "
                                    "values in the data (understudy inspect)")

    def _record(self, name: str, **values: float | Tensor) -> None:
        for kind, value in values.items():
            self._metrics.setdefault(kind if name == self.main else f"{name}/{kind}", []).append(value)


@dataclass(frozen=True)
class Weighting:
    """Combines the losses of windows or steps to the loss of the whole batch.

    Args:
        step_weights: Weight of each step, (B, H), 0 at padding. None weights all equally, and nothing is padded.
        row_weights: Weight of each window, (B,). None as for `step_weights`.
        of_steps: What the sum of the losses of steps is divided by.
        of_rows: What the sum of the losses of windows is divided by.
        rows: Number of windows in all processes.
    """

    step_weights: Tensor | None
    row_weights: Tensor | None
    of_steps: Tensor | int
    of_rows: Tensor | int
    rows: Tensor | int

    def reduce(self, name: str, terms: Tensor | tuple[Tensor, ...], rows: slice, shape: tuple[int, int]) -> Tensor:
        """Returns the contribution of the windows `rows`, (B, H) = `shape`, to the loss of the whole batch."""
        first, *others = terms if isinstance(terms, tuple) else (terms,)
        if first.shape == shape:
            weights, divisor = self.step_weights, self.of_steps
        elif first.shape == shape[:1]:
            weights, divisor = self.row_weights, self.of_rows
        else:
            raise ValueError(f"the loss of {name!r} has shape {tuple(first.shape)}: return one number per window, "
                             f"({shape[0]},), or per step, {shape}, not reduced")
        first = first.float()
        value = (first if weights is None else weights[rows] * first).sum() / divisor
        for term in others:
            if term.shape != shape[:1]:
                raise ValueError(f"a further term of the loss of {name!r} has shape {tuple(term.shape)}: return one "
                                 f"number per window, ({shape[0]},), not reduced")
            value = value + term.float().sum() / self.rows
        return value


def _read(numbers: list[Tensor]) -> list[float]:
    """Copies numbers to the host, with one wait for a GPU."""
    if numbers[0].device.type == "cpu":
        return [number.item() for number in numbers]
    return torch.stack([number.to(numbers[0].dtype) for number in numbers]).tolist()


def _step_weights(weights: Tensor | None, batch: Batch) -> Tensor:
    """Returns the weight of each step, (B, H), which is 0 at padding."""
    if weights is None:
        weights = batch.action.new_ones(len(batch), dtype=torch.float32)
    with torch.no_grad():
        return (weights.unsqueeze(1) if weights.ndim == 1 else weights) * batch.mask
