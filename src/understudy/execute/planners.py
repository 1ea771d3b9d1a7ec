"""Planners that are made of other planners, such as the best of several plans."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from ..checkpoint import FromStage, Scorer
from ..core import Above, AtLeast, ConfigError, Feature, Schema, Unsupported, UserError, part, take, tree_map
from ..heads.memory.neighbors import Neighbors
from ..policy import Guide, Planner, Policy, StepwisePlanner, sampling_guides
from .base import check_samples, require_stepwise, sample_noise, sample_plans

Unresolved: TypeAlias = Any  # in place of a module, until `PlannerWrapper.over` fills it in


def _forwarded(name: str) -> Any:
    """Defines a property of a `PlannerWrapper` that returns the value of the wrapped planner."""
    return property(lambda self: getattr(self.planner, name))


class PlannerWrapper(Planner):
    """Base class of planners that change another planner. Attributes that it does not change are passed on.

    In a `Method`, the planner that is changed is None. Other fields for planners and scorers hold a `FromStage`, the
    name of a module of the same checkpoint, or a `PlannerWrapper` around one of these. `over` fills in the modules.

    Attributes:
        inner: Name of the field with the planner that is changed.
        module_types: Type of the modules in each other field that holds modules.
    """

    planner: Planner | Unresolved
    inner: ClassVar[str] = "planner"
    module_types: ClassVar[Mapping[str, type]] = MappingProxyType({})

    def __post_init__(self):
        for name, kind, module in self._modules():
            if not isinstance(module, (str, FromStage, kind)):
                raise ConfigError(f"{'None' if module is None else type(module).__name__} is not a {kind.__name__}",
                                  where=f"{type(self).__name__}.{name}",
                                  hint=f"name a {kind.__name__} that a learner has trained, or give FromStage(STAGE, "
                                       "MODULE)")
        if self.missing is None:
            self.check_modules()

    def check_modules(self) -> None:
        """Checks that the modules fit each other. It is called once all of them are filled in."""

    @property
    def missing(self) -> str | None:
        """The first field whose module is not filled in, such as "BestOfN.scorer". None if all are."""
        if getattr(self, self.inner) is None:
            return f"{type(self).__name__}.{self.inner}"
        for name, _, module in self._modules():
            if isinstance(module, PlannerWrapper) and module.missing:
                return module.missing
            if isinstance(module, (str, FromStage)):
                return f"{type(self).__name__}.{name}"
        return None

    def over(self, planner: Planner, modules: Mapping[str, Any]) -> PlannerWrapper:
        """Returns the wrapper with its inner planner, and the modules that its fields name, filled in.

        Args:
            modules: The modules of the checkpoint by name, "policy" among them. References to stages are resolved.
        """
        class_name = type(self).__name__
        if getattr(self, self.inner) is not None:
            raise ConfigError("it changes another planner already", where=f"{class_name}.{self.inner}",
                              hint="leave this field out in Method.inference")
        filled = _filled(replace(self, **{self.inner: planner}), modules,  # ty: ignore[invalid-argument-type]
                         class_name)
        if filled.missing:
            raise ConfigError("there is no module", where=filled.missing,
                              hint="give the name of a module of the checkpoint, or FromStage(STAGE, MODULE)")
        return filled

    def _modules(self) -> Iterator[tuple[str, type, Any]]:
        """Yields name, type and value of each module field. A None is left out if it is the default of its field."""
        for name, kind in {self.inner: Planner, **self.module_types}.items():
            value = getattr(self, name)
            if value is not None or getattr(type(self), name, "required") is not None:
                yield from ((name, kind, module) for module in (value if isinstance(value, tuple) else (value,)))

    inputs = _forwarded("inputs")
    features = _forwarded("features")
    window = _forwarded("window")
    action_dim = _forwarded("action_dim")
    action_scale = _forwarded("action_scale")
    device = _forwarded("device")
    is_discrete = _forwarded("is_discrete")
    is_deterministic = _forwarded("is_deterministic")
    noise = _forwarded("noise")
    context = _forwarded("context")
    encode = _forwarded("encode")
    decode = _forwarded("decode")


def _filled(value: Any, modules: Mapping[str, Any], where: str) -> Any:
    """Returns the value of a planner's field with modules in place of their names."""
    if isinstance(value, tuple):
        return tuple(_filled(part, modules, where) for part in value)
    if isinstance(value, PlannerWrapper) and value.missing:
        return replace(value, **{name: _filled(getattr(value, name), modules, f"{type(value).__name__}.{name}")
                                 for name in (value.inner, *value.module_types)})
    if not isinstance(value, str):
        return value
    if value not in modules:
        raise UserError(f"the checkpoint has no module {value!r}; it has {', '.join(modules)}", where=where,
                        hint="name one of these, or train one with a learner that has it")
    return modules[value]


@part
class FixedBatch(PlannerWrapper, StepwisePlanner):
    """Planner that calls its network with batches of exactly `rows` rows, however many are asked for.

    Matrix products of different sizes differ in their last bits. With this wrapper, the plan of a row does not depend
    on the number of other rows.

    Args:
        rows: The number of rows in each call. A last group that is too small is filled with copies of its first row.
    """

    planner: Planner
    rows: Annotated[int, AtLeast(1)] = 16

    @property
    def head(self):
        return require_stepwise(self.planner, "FixedBatch").head

    def plan(self, obs, noise, guides=()):
        return self.in_groups(self.planner.plan, _n_rows(obs), obs, noise, guides)

    def context(self, obs):
        return self.in_groups(self.planner.context, _n_rows(obs), obs)

    def encode(self, action, obs):
        return self.in_groups(self.planner.encode, action.shape[0], action, obs)

    def decode(self, coded, obs):
        return self.in_groups(self.planner.decode, coded.shape[0], coded, obs)

    def denoise_step(self, context, x, t, t_next):
        inner = require_stepwise(self.planner, "FixedBatch")
        return self.in_groups(inner.denoise_step, x.shape[0], context, x, t, t_next)

    def in_groups(self, function, n, *arguments):
        """Calls `function` on groups of rows and joins the results.

        Arguments are trees of tensors with n rows, or tuples of guides.
        """
        if n == self.rows:
            return function(*arguments)
        results = []
        for first in range(0, n, self.rows):
            index = torch.arange(first, first + self.rows, device=self.device)
            index = torch.where(index < n, index, first)
            results.append(function(*(tuple(g.select_rows(index) for g in a) if isinstance(a, tuple)
                                      else take(a, index) for a in arguments)))
        return tree_map(lambda *parts: torch.cat(parts)[:n], *results)


def _n_rows(obs: Mapping[str, Tensor]) -> int:
    return next(iter(obs.values())).shape[0]


@dataclass(frozen=True)
class Guided(PlannerWrapper):
    """Planner that adds fixed guidance to another planner, besides the guidance of the executor."""

    planner: Planner | Unresolved = None
    guides: tuple[Guide, ...] = ()

    def plan(self, obs, noise, guides=()):
        return self.planner.plan(obs, noise, self.guides + guides)


class ScoredPlanner(PlannerWrapper):
    """Base class of planners with a scorer of plans, which read the columns of both."""

    scorer: Any

    @property
    def inputs(self):
        return tuple(dict.fromkeys((*self.planner.inputs, *self.scorer.inputs)))

    @property
    def features(self):
        return {**self.scorer.features, **self.planner.features}


class _PlanChoice(ScoredPlanner):
    """Base class of planners that draw `n` plans and take one of them."""

    n: Annotated[int, AtLeast(1)]

    def check_modules(self):
        check_samples(self.planner, type(self).__name__)

    def noise(self, key, count):
        return sample_noise(self.planner, key, count, self.n)


def _take_best(plans: Tensor, scores: Tensor) -> Tensor:
    """Returns the plan (B, H, A) with the highest score among plans (B, n, H, A), given scores (B, n)."""
    return plans[torch.arange(scores.shape[0], device=scores.device), scores.argmax(1)]


@part
class BestOfN(_PlanChoice):
    """Planner that draws `n` plans and takes the one with the highest score.

    Unlike guidance, it works with every head. It reads the columns of the planner and of the scorer.

    Args:
        scorer: Scores each plan alone, such as a critic.

    References:
        Hansen-Estruch et al. (2023), IDQL: Implicit Q-Learning as an Actor-Critic Method, arXiv:2304.10573.
    """

    planner: Planner | Unresolved = None
    scorer: Scorer | Unresolved = "critic"
    n: int = 16

    module_types = MappingProxyType({"scorer": Scorer})

    def check_modules(self):
        super().check_modules()
        self.scorer.check_window(self.planner.window, f"{type(self).__name__}.scorer")

    def plan(self, obs, noise, guides=()):
        plans = sample_plans(self.planner, obs, noise, self.n, guides)
        return _take_best(plans, self.scores(obs, plans))

    def scores(self, obs: Mapping[str, Tensor], plans: Tensor) -> Tensor:
        """Returns the score of each plan, (B, n), for plans (B, n, H, A)."""
        return self.scorer.score_plans(obs, plans)


class SetScorer(ABC):
    """Config of a scorer that compares all drawn plans with each other. Subclasses are frozen dataclasses."""

    inputs: tuple[str, ...] = ()
    features: Schema = MappingProxyType({})

    @abstractmethod
    def score(self, obs: Mapping[str, Tensor], plans: Tensor, scale: Tensor) -> Tensor:
        """Scores the plans of each row.

        Args:
            obs: Observation windows, (B, To, ...).
            plans: The plans in world units from the current step on, (B, n, H, A).
            scale: Scale of each action component, (A,). See `Planner.action_scale`.

        Returns:
            Scores, (B, n). Higher is better.
        """


@part
class KernelDensity(SetScorer):
    """Scorer that prefers the plan most similar to the other plans, which avoids outliers.

    Args:
        bandwidth: Standard deviation of the kernel, as root mean square distance per step and component in units of
            the action scale.

    References:
        Pearce et al. (2023), Imitating Human Behaviour with Diffusion Models, arXiv:2301.10677.
    """

    bandwidth: Annotated[float, Above(0)] = 0.1

    def score(self, obs, plans, scale):
        flat = (plans / scale).flatten(2)
        distance = torch.cdist(flat, flat, compute_mode="donot_use_mm_for_euclid_dist").square() / flat.shape[-1]
        return (-0.5 * distance / self.bandwidth**2).logsumexp(-1)


@part
class SampleSelector(_PlanChoice):
    """Planner that draws `n` plans and takes the one that a `SetScorer` scores highest."""

    planner: Planner | Unresolved = None
    scorer: SetScorer = KernelDensity()
    n: int = 16

    def plan(self, obs, noise, guides=()):
        plans = sample_plans(self.planner, obs, noise, self.n, guides)
        now = max(-self.window.action_offset, 0)  # steps before it lie in the past
        return _take_best(plans, self.scorer.score(obs, plans[:, :, now:], self.action_scale))


@dataclass(frozen=True)
class FactoredPlanner(Planner):
    """Planner made of several planners, each for a slice of the action, such as one arm of two.

    Args:
        planners: The planners. Their windows have the same n_obs_steps, horizon and action_offset.
        slices: The components of the action that each of them plans. Together they are all components, without
            overlap.

    Example:
        >>> FactoredPlanner((left, right), (slice(0, 7), slice(7, 14)))
    """

    planners: tuple[Planner, ...]
    slices: tuple[slice, ...]

    def __post_init__(self):
        if not self.planners or len(self.planners) != len(self.slices):
            raise UserError(f"there are {len(self.planners)} planners and {len(self.slices)} slices",
                            where="FactoredPlanner", hint="give one slice for each planner")
        size = sum(p.action_dim for p in self.planners)
        covered = [list(range(size))[s] for s in self.slices]
        if sorted(sum(covered, [])) != list(range(size)) or [len(c) for c in covered] != [
                p.action_dim for p in self.planners]:
            raise UserError(f"the slices {', '.join(f'{s.start}:{s.stop}' for s in self.slices)} do not divide the "
                            f"{size} components among planners of {', '.join(str(p.action_dim) for p in self.planners)}"
                            " components", where="FactoredPlanner.slices", hint="each component belongs to one planner")
        windows = {(p.window.n_obs_steps, p.window.horizon, p.window.action_offset) for p in self.planners}
        if len(windows) > 1:
            raise UserError("the planners have different windows: (n_obs_steps, horizon, action_offset) are "
                            f"{' and '.join(map(str, sorted(windows)))}", where="FactoredPlanner",
                            hint="train them with the same window")

    @property
    def inputs(self):
        return tuple(dict.fromkeys(name for p in self.planners for name in p.inputs))

    @property
    def features(self):
        return {name: f for p in self.planners for name, f in p.features.items() if name in p.inputs}

    @property
    def window(self):
        return self.planners[0].window

    @property
    def action_dim(self):
        return sum(p.action_dim for p in self.planners)

    @property
    def action_scale(self):
        return self._join([p.action_scale for p in self.planners])

    @property
    def device(self):
        return self.planners[0].device

    @property
    def is_discrete(self):
        return any(p.is_discrete for p in self.planners)

    @property
    def is_deterministic(self):
        return all(p.is_deterministic for p in self.planners)

    def noise(self, key, count):
        # Keys that differ, so that equal planners draw independently.
        return {str(i): p.noise(key + i, count) for i, p in enumerate(self.planners)}

    def plan(self, obs, noise, guides=()):
        return self._join([
            p.plan(obs, noise[str(i)], tuple(g.select_components(s) for g in guides))
            for i, (p, s) in enumerate(zip(self.planners, self.slices, strict=True))])

    def _join(self, parts: list[Tensor]) -> Tensor:
        """Joins the parts (..., its action_dim) of the slices' planners to one tensor (..., A)."""
        out = parts[0].new_empty(*parts[0].shape[:-1], self.action_dim)
        for plan, components in zip(parts, self.slices, strict=True):
            out[..., components] = plan
        return out


@dataclass(frozen=True)
class RetrievalPlanner(PlannerWrapper):
    """A policy with the head `Neighbors` that also returns which stored window is nearest."""

    planner: Policy

    def __post_init__(self):
        if not isinstance(self.planner.config.head, Neighbors):
            raise Unsupported(f"{type(self.planner.config.head).__name__} stores no windows", where="RetrievalPlanner",
                              hint="use a policy with the head Neighbors")

    def plan(self, obs, noise, guides=()):
        return self.planner.plan(obs, noise, guides)

    def nearest(self, obs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Returns the stored window that is nearest to each observation window, (B, To, ...).

        Returns:
            The number of the window in the data that the policy was fitted to, (B,), which is
            `batch.extra["index"]` there, and the Euclidean distance of the encoded observations, (B,).
        """
        head = self.planner.config.head
        assert isinstance(head, Neighbors)
        rows, distance = head.nearest(self.planner.net, self.planner.context(obs))
        return rows[:, 0], distance[:, 0]


class _TwoLevelPlanner(PlannerWrapper):
    """Base class of planners of two levels: the low-level planner reads the plans of a high-level planner."""

    high: Planner | Unresolved
    low: Planner | Unresolved

    inner = "low"
    module_types = MappingProxyType({"high": Planner})

    @property
    def planner(self):
        return self.low

    @property
    def features(self):
        return {**self.high.features, **self.low.features}

    @property
    def is_deterministic(self):
        return self.high.is_deterministic and self.low.is_deterministic


@dataclass(frozen=True)
class Hierarchical(_TwoLevelPlanner):
    """Planner of two levels: the high level predicts a column that the low level reads as an input.

    The column can be a subgoal (HIQL), a thought (Thought Cloning), a procedure, a skill or a video. Both planners
    are trained separately on the same episodes.

    Args:
        high: Predicts the column `as_key`.
        low: Plans the actions.
        as_key: The column that `low` reads.
    """

    high: Planner | Unresolved
    low: Planner | Unresolved = None
    as_key: str = "observation.subgoal"

    def check_modules(self):
        horizon, n_obs_steps = self.high.window.horizon, self.high.window.n_obs_steps
        if not n_obs_steps == self.low.window.n_obs_steps == horizon:
            raise UserError("the horizon of the high-level policy and the observation windows of both policies must be "
                            f"equally long, but they are {horizon}, {n_obs_steps} and "
                            f"{self.low.window.n_obs_steps} steps", where="Hierarchical",
                            hint="train both policies with the same n_obs_steps, and the high-level policy with this "
                            "number as its horizon")

    @property
    def inputs(self):
        return tuple(dict.fromkeys((*self.high.inputs, *(k for k in self.low.inputs if k != self.as_key))))

    def noise(self, key, count):
        return {"high": self.high.noise(key, count), "low": self.low.noise(key + 1, count)}

    def plan(self, obs, noise, guides=()):
        subgoal = self.high.plan(obs, noise["high"])
        return self.low.plan({**obs, self.as_key: _as_column(self.low, self.as_key, subgoal)}, noise["low"], guides)

    def context(self, obs):
        raise Unsupported("the low-level planner reads what the high-level planner draws, so that there is no context "
                          "without noise", where="Hierarchical", hint="use an executor that plans whole chunks")


def _as_column(planner: Planner, name: str, plan: Tensor) -> Tensor:
    """Converts a plan (B, H, A) to the shape (B, H, *shape) in which a planner reads a column."""
    feature = planner.features[name]
    plan = plan.unflatten(-1, feature.shape or (1,))
    return plan.to(feature.torch_dtype) if feature.kind in ("discrete", "text") else plan


@part
class IteratedPlanner(PlannerWrapper):
    """Planner that applies a policy repeatedly, which predicts the next result of a computation from the last one.

    The first result is zero. The computation ends when a step changes nothing, and after `n_steps` steps at the latest.
    All steps of a plan have the same noise. With a `Hierarchical` planner, the last result is an input of another
    policy.

    Args:
        planner: Predicts a column that it also reads, one step later: ``Window(1, 1, action_offset=1)``.
        n_steps: Largest number of steps.

    References:
        Yang et al. (2022), Chain of Thought Imitation with Procedure Cloning, arXiv:2205.10816.
    """

    planner: Planner | Unresolved = None
    column: str = "observation.procedure"
    n_steps: Annotated[int, AtLeast(1)] = 100

    def check_modules(self):
        window = self.planner.window
        if (window.n_obs_steps, window.horizon, window.action_offset) != (1, 1, 1):
            raise UserError("the policy must predict one result from the one before, but its window is "
                            f"(n_obs_steps, horizon, action_offset) = {window.n_obs_steps}, {window.horizon}, "
                            f"{window.action_offset}", where="IteratedPlanner",
                            hint="train it with Window(1, 1, action_offset=1)")
        if self.column not in self.planner.inputs:
            raise UserError(f"the policy reads {', '.join(self.planner.inputs)}, and not the results {self.column!r}",
                            where="IteratedPlanner.column", hint=f"add {self.column!r} to its inputs")

    @property
    def inputs(self):
        return tuple(k for k in self.planner.inputs if k != self.column)

    def plan(self, obs, noise, guides=()):
        feature, like = self.planner.features[self.column], next(iter(obs.values()))
        result = torch.zeros((*like.shape[:2], *feature.shape), dtype=feature.torch_dtype, device=like.device)
        plan = result.flatten(2).float()
        for _ in range(self.n_steps):
            plan = self.planner.plan({**obs, self.column: result}, noise, guides)
            last, result = result, _as_column(self.planner, self.column, plan)
            if bool((result == last).all()):
                break  # a result that a step does not change stays as it is, so that rows do not wait for each other
        return plan


@dataclass(frozen=True)
class InverseDynamicsPlanner(_TwoLevelPlanner):
    """Planner of two levels: the high level predicts the next states, and the low level the actions that lead to them.

    An action is planned for each predicted state: from the current state to the first, from the first to the second,
    and so on. Both planners are trained separately on the same episodes.

    Args:
        high: Predicts the rows of `column` after the current one, with ``Window(action_offset=1)``.
        low: The inverse dynamics: plans one action from the columns `column` and `as_key`.
        as_key: The column in which `low` reads the next state.

    References:
        Ajay et al. (2023), Is Conditional Generative Modeling All You Need for Decision-Making?, arXiv:2211.15657.
    """

    high: Planner | Unresolved
    low: Planner | Unresolved = None
    column: str = "observation.state"
    as_key: str = "observation.next"

    def check_modules(self):
        class_name = "InverseDynamicsPlanner"
        if self.high.window.action_offset != 1:
            raise UserError("the plans of the high-level policy must begin with the next state, but it was trained "
                            f"with action_offset={self.high.window.action_offset}", where=class_name,
                            hint="train it with Window(action_offset=1)")
        if (self.low.window.n_obs_steps, self.low.window.horizon) != (1, 1):
            raise UserError(f"the inverse dynamics read {self.low.window.n_obs_steps} steps and plan "
                            f"{self.low.window.horizon}, but they must read and plan 1", where=class_name,
                            hint="train them with Window(n_obs_steps=1, horizon=1)")
        if set(self.low.inputs) != {self.column, self.as_key}:
            raise UserError(f"the inverse dynamics read {', '.join(self.low.inputs)}, but they must read "
                            f"{self.column} and {self.as_key}", where=class_name,
                            hint=f"train them with inputs=({self.column!r}, {self.as_key!r})")
        if self.high.action_dim != (size := self.low.features[self.column].size):
            raise UserError(f"the high-level policy plans {self.high.action_dim} numbers, but {self.column!r} has "
                            f"{size}", where=class_name, hint=f"train it with target={self.column!r}")

    @property
    def inputs(self):
        return tuple(dict.fromkeys((*self.high.inputs, self.column)))

    @property
    def window(self):
        return replace(self.high.window, action_offset=0)

    def noise(self, key, count):
        low = sample_noise(self.low, key + 1, count, self.window.horizon)
        return {"high": self.high.noise(key, count), "low": low}

    def plan(self, obs, noise, guides=()):
        if sampling_guides(guides):
            raise Unsupported("guides of actions cannot change a plan of states", where="InverseDynamicsPlanner",
                              hint="guide the high-level policy, with costs of states")
        following = self.high.plan(obs, noise["high"])  # (B, H, D)
        current = torch.cat([obs[self.column][:, -1:].to(following), following[:, :-1]], 1)
        pairs = {self.column: current.flatten(0, 1).unsqueeze(1), self.as_key: following.flatten(0, 1).unsqueeze(1)}
        action = self.low.plan(pairs, tree_map(lambda x: x.flatten(0, 1), noise["low"]))
        return action.flatten(0, 1).unflatten(0, following.shape[:2])

    def context(self, obs):
        raise Unsupported("actions follow from planned states, so that there is no context for actions alone",
                          where="InverseDynamicsPlanner", hint="use an executor that plans whole chunks")


@dataclass(frozen=True)
class MaskedGoalPlanner(PlannerWrapper):
    """Planner that lets a model of masked trajectories plan actions from the current state to a goal.

    The first row of the window is given the current state, and the row at which the goal shall be reached is given the
    goal. All other states and all actions are hidden, and the policy predicts them. With `RecedingHorizon(1)` it plans
    again at every step, with the goal one row nearer.

    Args:
        planner: The policy. It observes the columns `column` and `action` over the rows that it predicts, and the first
            components of its target are the action. `RandomMasking` trains it.
        goal: Column of the goal, a value of `column`.
        time_left: Column of the number of steps in which the goal shall be reached. Goals that are due now or earlier
            are put into the next row, and goals beyond the window into its last row.

    References:
        Liu et al. (2022), Masked Autoencoding for Scalable and Generalizable Decision Making, arXiv:2211.12740.
    """

    planner: Planner | Unresolved = None
    column: str = "observation.state"
    action: str = "action"
    goal: str = "observation.goal"
    time_left: str = "observation.time_left"

    def check_modules(self):
        class_name, window = "MaskedGoalPlanner", self.planner.window
        if not (window.n_obs_steps == window.horizon == window.obs_offset + 1 > 1 and window.action_offset == 0):
            raise UserError(f"the policy must observe the rows that it predicts, at least two, but its window is "
                            f"{window}", where=class_name,
                            hint="train it with Window(n_obs_steps=K, horizon=K, obs_offset=K - 1)")
        if set(self.planner.inputs) != {self.column, self.action}:
            raise UserError(f"the policy reads {', '.join(self.planner.inputs)}, but it must read {self.column} and "
                            f"{self.action}", where=class_name,
                            hint=f"train it with inputs=({self.column!r}, {self.action!r})")
        if self.planner.action_dim < self.action_dim:
            raise UserError(f"the policy predicts {self.planner.action_dim} numbers, but {self.action!r} has "
                            f"{self.action_dim}", where=class_name,
                            hint="train it with a target that starts with the action, as ConcatColumns("
                                 f"({self.action!r}, {self.column!r}), offset=0) makes it")

    @property
    def inputs(self):
        return self.column, self.goal, self.time_left

    @property
    def features(self):
        state = self.planner.features[self.column]
        return {**self.planner.features, self.goal: state, self.time_left: Feature("float32", (1,))}

    @property
    def window(self):
        return replace(self.planner.window, n_obs_steps=1, obs_offset=0, obs_pad_mask=False)

    @property
    def action_dim(self):
        return self.planner.features[self.action].size

    @property
    def action_scale(self):
        return self.planner.action_scale[:self.action_dim]

    def goal_row(self, time_left: Tensor) -> Tensor:
        """Returns the window row in which the goal is given, (B, 1) int64, from the steps until it is due, (B, 1).
        """
        return time_left.round().long().clamp(1, self.planner.window.horizon - 1)

    def plan(self, obs, noise, guides=()):
        if sampling_guides(guides):
            raise Unsupported("guides of actions cannot change a plan of states and actions", where="MaskedGoalPlanner",
                              hint="use an executor without guides, such as RecedingHorizon(1)")
        now, goal, time_left = (obs[name][:, -1] for name in self.inputs)
        step = torch.arange(self.window.horizon, device=now.device)
        is_goal = step == self.goal_row(time_left)  # (B, H)
        state = torch.where(is_goal.reshape(*is_goal.shape, *(1,) * (now.ndim - 1)), goal.unsqueeze(1),
                            now.unsqueeze(1))
        feature = self.planner.features[self.action]
        action = torch.zeros(*is_goal.shape, *feature.shape, dtype=feature.torch_dtype, device=now.device)
        masked_obs = {self.column: state, f"{self.column}?": is_goal | (step == 0),
                      self.action: action, f"{self.action}?": torch.zeros_like(is_goal)}
        return self.planner.plan(masked_obs, noise)[..., :self.action_dim]

    def context(self, obs):
        raise Unsupported("the context is that of a trajectory, so that there is none for actions alone",
                          where="MaskedGoalPlanner", hint="use an executor that plans whole chunks")
