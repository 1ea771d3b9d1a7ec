"""Steers a policy while it acts: by several conditions or policies, a learned scorer, or points of a person."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType, SimpleNamespace
from typing import Annotated, Any, cast

import torch
from torch import Tensor

from ..checkpoint import Scorer
from ..core import Above, AtLeast, Below, ConfigError, Context, Unsupported, UserError, part, take
from ..heads.likelihood.categorical import Categorical
from ..policy import EnergyGuidance, LimitedCostGuidance, NetworkGuidance, Planner, Policy, sampling_guides
from .actor import Actor, ObservationWrapper, PolicyActor, TransformedActor
from .base import check_numeric_actions
from .planners import PlannerWrapper, ScoredPlanner, Unresolved

Points = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class ComposedConditions(NetworkGuidance):
    """Guidance that follows several conditions at once, each with its own scale: goals, words, skills.

    The prediction starts from the prediction without any condition. For each condition, `scale` times the change that
    this condition alone makes is added. The policy must be trained with `ConditionDropout` for each condition, so that
    it can act with one condition alone and with none.

    Args:
        conditions: The conditions, each with the names of its columns.
        scales: Scale of each condition. A negative scale avoids what the condition asks for.

    References:
        Liu et al. (2022), Compositional Visual Generation with Composable Diffusion Models, arXiv:2206.01714.
        Ajay et al. (2023), Is Conditional Generative Modeling All You Need for Decision-Making?, arXiv:2211.15657.
    """

    conditions: tuple[tuple[str, ...], ...]
    scales: tuple[float, ...]

    def __post_init__(self):
        if len(self.conditions) != len(self.scales):
            raise UserError(f"there are {len(self.conditions)} conditions but {len(self.scales)} scales",
                            where="ComposedConditions", hint="give one scale for each condition")

    def guided_net(self, net, without, encode):
        columns = {key for keys in self.conditions for key in keys}
        unconditional = without(*sorted(columns))
        conditional = [without(*sorted(columns.difference(keys))) for keys in self.conditions]

        def wrapped(x, t, context):
            plain = net(x, t, unconditional)
            pulls = [scale * (net(x, t, condition) - plain)
                     for scale, condition in zip(self.scales, conditional, strict=True)]
            return plain + sum(pulls)
        return wrapped


@dataclass(frozen=True)
class _OtherPolicies(NetworkGuidance):
    """Guidance that averages the predictions of several networks. The first weight belongs to the guided network."""

    nets: tuple[Any, ...]
    contexts: tuple[Context, ...]
    weights: tuple[float, ...]

    def select_rows(self, rows):
        return replace(self, contexts=tuple(take(c, rows) for c in self.contexts))

    def guided_net(self, net, without, encode):
        def wrapped(x, t, context):
            others = zip(self.weights[1:], self.nets, self.contexts, strict=True)
            weighted = [weight * other(x, t, own_context) for weight, other, own_context in others]
            return self.weights[0] * net(x, t, context) + sum(weighted)
        return wrapped


@dataclass(frozen=True)
class ComposedPolicies(PlannerWrapper):
    """Planner that samples from several policies together by averaging their predictions while sampling.

    The policies may read different columns, such as a camera and words, or come from different data. A plan is likely
    under all of them. They need the same head and the same statistics of actions, scale and offset, because the steps
    of sampling are taken in coded actions.

    Of policies with the head `Categorical` the logits are averaged. The weights ``(1, b, -b)`` emulate fine-tuning: if
    the second policy was fine-tuned from the third, the first policy acts as if it had been fine-tuned in the same way.

    Args:
        planner: A policy whose head samples step by step, such as `Diffusion` or `Flow`, or is `Categorical`.
        weights: Weight of each policy, beginning with the weight of `planner`. The weights sum to 1.

    References:
        Mitchell et al. (2024), An Emulator for Fine-Tuning Large Language Models using Small Language Models,
        arXiv:2310.12962.
        Wang et al. (2024), PoCo: Policy Composition from and for Heterogeneous Robot Learning, arXiv:2402.02511.
    """

    planner: Planner | Unresolved = None
    others: tuple[Policy | Unresolved, ...] = ()
    weights: tuple[float, ...] = ()

    module_types = MappingProxyType({"others": Policy})

    def __post_init__(self):
        class_name, n_policies = "ComposedPolicies", 1 + len(self.others)
        if len(self.weights) != n_policies:
            raise UserError(f"there are {n_policies} policies but {len(self.weights)} weights", where=class_name,
                            hint="give one weight for each policy, that of the first one first")
        if not math.isclose(total := sum(self.weights), 1, abs_tol=1e-3):  # NaN is not close
            average = tuple(round(w / total, 3) for w in self.weights) if math.isfinite(total) and total else ()
            raise ConfigError(f"the weights are {self.weights} and sum to {total:g}, but an average needs a sum of 1",
                              where=f"{class_name}.weights",
                              hint=f"use {average}" if average else "give (0.5, 0.5) for two policies")
        super().__post_init__()

    def check_modules(self):
        first_policy, class_name = self.planner, "ComposedPolicies"
        if not isinstance(first_policy, Policy):
            raise UserError(f"the first policy is a {type(first_policy).__name__}", where=class_name,
                            hint="compose policies first, then wrap the composition")
        if not isinstance(head := first_policy.config.head, Categorical):
            _ = first_policy.head  # raises Unsupported for a head that answers in one step
        elif head.autoregressive or head.draw_levels:
            raise Unsupported("the logits of a class depend on what was drawn before", where=class_name,
                              hint="use Categorical with autoregressive=False and draw_levels=False")
        for number, other in enumerate(self.others, 1):
            for name, a, b in (("head", first_policy.config.head, other.config.head),
                               ("window", first_policy.window, other.window),
                               ("action_dim", first_policy.action_dim, other.action_dim),
                               ("number of classes", first_policy.target.num_classes, other.target.num_classes)):
                if a != b:
                    raise UserError(f"policy {number} has another {name}, {b}, than the first, {a}", where=class_name,
                                    hint="train both with the same head and window")
            if (difference := first_policy.codec.target_difference(other.codec)) is not None:
                raise UserError(f"a code of policy {number} is another action than one of the first policy: "
                                f"{difference}", where=class_name,
                                hint="continue one policy from the other (understudy train --from), or train both on "
                                     "data with the same range of actions")

    @property
    def inputs(self):
        return tuple(dict.fromkeys(name for p in (self.planner, *self.others) for name in p.inputs))

    @property
    def features(self):
        return {name: f for p in reversed((self.planner, *self.others)) for name, f in p.features.items()}

    def plan(self, obs, noise, guides=()):
        contexts = tuple(p.context({k: obs[k] for k in p.inputs}) for p in self.others)
        first, own_obs = cast(Policy, self.planner), {k: obs[k] for k in self.planner.inputs}
        if not isinstance(first.config.head, Categorical):
            guidance = _OtherPolicies(tuple(p.net for p in self.others), contexts, self.weights)
            return first.plan(own_obs, noise, (*guides, guidance))
        if sampling_guides(guides):
            _ = first.guided_head  # raises Unsupported
        guidance = _OtherPolicies(tuple(p.net.trunk for p in self.others), contexts, self.weights)
        net = SimpleNamespace(trunk=guidance.guided_net(first.net.trunk, None, None), layers=None,
                              num_classes=first.net.num_classes)
        return first.codec.decode(first.config.head.sample(net, first.context(own_obs), noise), own_obs)


@dataclass(frozen=True)
class ScorerGuidance(EnergyGuidance):
    """Guidance that multiplies the density of plans by ``exp(scale * score)``, along the gradient of the score.

    Args:
        scorer: Scores plans in world units, differentiably.
        obs: Observation windows with the columns that the scorer reads, (B, To, ...).
    """

    scorer: Scorer
    obs: Mapping[str, Tensor]
    scale: float

    def select_rows(self, rows):
        return replace(self, obs=take(self.obs, rows))

    def cost(self, coded_action, encode, decode):
        return -self.scale * self.scorer(self.obs, decode(coded_action))


@part
class ScorerGuided(ScoredPlanner):
    """Planner that guides the plans of a policy towards a higher score, by the gradient of the scorer.

    With the log-probability of a classifier as the score, this is classifier guidance: at `scale` 1, plans are drawn
    from what the policy does, given the class. With a critic it is guidance by a value, and `scale` says how much a
    value counts.

    The policy is not trained further. Classifiers that guide image models, and the value function of Diffuser, are
    trained on noisy inputs. Here the scorer reads the policy's estimate of the clean plan, so that any scorer of plans
    can be used. With a large `scale`, plans differ from everything that was demonstrated.

    Args:
        planner: A policy whose head samples step by step, such as `Diffusion`, `EDM` or `Flow`.
        scorer: Scores plans, differentiably, such as a critic.
        scale: Factor of the score. 0 is the plain policy. A negative scale avoids plans with a high score.

    References:
        Dhariwal and Nichol (2021), Diffusion Models Beat GANs on Image Synthesis, arXiv:2105.05233.
        Janner et al. (2022), Planning with Diffusion for Flexible Behavior Synthesis, arXiv:2205.09991.
    """

    planner: Planner | Unresolved = None
    scorer: Scorer | Unresolved = "critic"
    scale: Annotated[float, Above(-math.inf), Below(math.inf)] = 1.0

    module_types = MappingProxyType({"scorer": Scorer})

    def check_modules(self):
        check_numeric_actions(self.planner, "ScorerGuided", "moves actions along the gradient of a score")
        self.scorer.check_window(self.planner.window, "ScorerGuided.scorer")
        _check_guidable(self.planner)

    def plan(self, obs, noise, guides=()):
        return self.planner.plan(obs, noise, (*guides, ScorerGuidance(self.scorer, obs, self.scale)))


@dataclass(frozen=True)
class PathCost(LimitedCostGuidance):
    """Guidance that draws the positions to which a chunk leads towards points or a path.

    The cost is half the squared distance of each position to the nearest point, as a mean over the steps of the chunk
    that are still to come. A single point holds what moves near it. A path needs points up to where the motion shall
    end.

    Args:
        points: Points in world units, (K, D): one for a click, several for a drawn path.
        start: Current position, (B, D).
        components: The D components of the action that move the position.
        step: Change of the position in one step for an action of 1. None for actions that are positions themselves.
        skip: Number of steps of the chunk that lie in the past. They have moved the position already.
        through_network: Whether the gradient passes back through the network: see `CostGuidance`.
    """

    points: Tensor
    start: Tensor
    components: tuple[int, ...]
    step: float | None
    scale: float
    skip: int = 0
    through_network: bool = True

    def select_rows(self, rows):
        return replace(self, start=self.start[rows])

    def cost(self, coded_action, encode, decode):
        action = decode(coded_action)[:, self.skip:, list(self.components)]
        positions = action if self.step is None else self.start.unsqueeze(1) + self.step * action.cumsum(1)
        squared_distance = (positions.unsqueeze(2) - self.points.to(positions)).square().sum(-1).amin(2)
        return 0.5 * self.scale * squared_distance.mean(1)


class LivePoints:
    """Points that a person can change while a policy acts, such as by a click.

    There are none at first. Any thread may change them.

    Example:
        >>> points = LivePoints()
        >>> actor = steer_actor(actor, points, step=0.1, scale=100.0)  # acts in another thread
        >>> points.set((0.6, 0.45))  # the next plan is drawn to this point
        >>> points.clear()
    """

    def __init__(self) -> None:
        self._points: Points = ()

    def __call__(self) -> Points:
        return self._points

    def set(self, *points: tuple[float, ...]) -> None:
        """Replaces the points. Each is in the units of the observed position."""
        self._points = _as_points(points, "LivePoints.set")

    def clear(self) -> None:
        """Removes all points. The policy is no longer steered."""
        self._points = ()


def _check_guidable(planner: Planner) -> None:
    while isinstance(planner, PlannerWrapper):
        planner = planner.planner
    if isinstance(planner, Policy):
        _ = planner.guided_head  # raises Unsupported for a head that answers in one step


def _as_points(points: Iterable[Iterable[float]], where: str) -> Points:
    """Converts points to tuples of numbers."""
    try:
        coordinates = tuple(tuple(float(x) for x in point) for point in points)
    except (TypeError, ValueError):
        raise ConfigError(f"every point is a list of numbers, but the points are {points!r}", where=where,
                          hint="such as ((0.6, 0.45),) for one point in the plane") from None
    if not all(math.isfinite(x) for point in coordinates for x in point):
        raise ConfigError(f"every number must be finite, but the points are {points}", where=where,
                          hint="give the points in the units of the observed position")
    return coordinates


@part
class Steered(PlannerWrapper):
    """Planner that draws a policy's plans towards points that a person gives, by a click or a drawn path.

    The policy stays as it was trained. Where its demonstrations go two ways, a path chooses the way. A small `scale`
    does not reach it, and a large one leaves what was demonstrated. The effect saturates: no sampling step is guided
    past the points, however large `scale` is. A single point holds what moves near it, so it suits a place to go to,
    and a path of several points suits a way to take.

    Args:
        planner: A policy whose head samples step by step, such as `Diffusion` or `Flow`.
        points: The points in world units, each with D numbers. Or a function that returns them, such as `LivePoints`.
            It is called before each plan. While it returns no point, the policy is not steered.
        column: The observed column with the position of what moves.
        components: Which components of the column are the position, and which of the action move it.
        step: Change of the position in one step for an action of 1. None for actions that are positions themselves.
        scale: Strength of the guidance, at least 0. 0 is the plain policy.
        through_network: Whether the gradient passes back through the network. False saves the second evaluation and
            the backward pass of each step. It suits flows with nearly straight paths, such as `reflow-policy`.

    References:
        Wang et al. (2025), Inference-Time Policy Steering through Human Interactions, arXiv:2411.16627.
        Patel et al. (2025), FlowChef: Steering Rectified Flow Models in the Vector Field, arXiv:2412.00100.
    """

    planner: Planner | Unresolved = None
    points: Points | Callable[[], Points] = ()
    column: str = "observation.state"
    components: tuple[int, ...] = (0, 1)
    step: Annotated[float | None, Above(-math.inf), Below(math.inf)] = None
    scale: Annotated[float, AtLeast(0), Below(math.inf)] = 1.0
    through_network: bool = True

    def __post_init__(self):
        if not callable(self.points):
            if not _as_points(self.points, "Steered.points"):
                raise UserError("there are no points", where="Steered.points",
                                hint="give at least one, or a function that returns them later")
            self._check_widths(self.points)
        super().__post_init__()

    def check_modules(self):
        check_numeric_actions(self.planner, "Steered", "moves actions towards points")
        _check_guidable(self.planner)
        if self.column not in self.planner.inputs:
            raise UserError(f"the policy does not read {self.column!r}", where="Steered.column",
                            hint=f"it reads {', '.join(self.planner.inputs)}")
        width = min(self.planner.features[self.column].size, self.planner.action_dim)
        if not self.components or max(self.components) >= width or min(self.components) < 0:
            raise UserError(f"the components are {self.components}, but column and action share {width}",
                            where="Steered.components", hint=f"name components from 0 to {width - 1}")
        if not 0 <= self._skip < self.planner.window.horizon:
            window = self.planner.window
            raise UserError("the chunks of the policy do not contain the current step, from whose position they move: "
                            f"action_offset is {window.action_offset} and horizon {window.horizon}", where="Steered",
                            hint="train it with an action_offset from 1 - horizon to 0")

    def _check_widths(self, points: Points) -> None:
        if any(len(point) != len(self.components) for point in points):
            raise UserError(f"every point needs {len(self.components)} numbers, but the points are {points}",
                            where="Steered.points", hint="give one number for each component")

    def _current_points(self) -> Points:
        if not callable(self.points):
            return self.points
        points = _as_points(cast(Points, self.points()), "Steered.points")
        self._check_widths(points)
        return points

    @property
    def _skip(self) -> int:
        """Number of steps of a chunk that lie in the past."""
        return -self.planner.window.action_offset

    def plan(self, obs, noise, guides=()):
        if not (points := self._current_points()):
            return self.planner.plan(obs, noise, guides)
        now = obs[self.column][:, -1, list(self.components)].float()
        cost = PathCost(torch.tensor(points, device=now.device), now, self.components, self.step, self.scale,
                        self._skip, self.through_network)
        return self.planner.plan(obs, noise, (*guides, cost))


def steer_actor(actor: Actor, points: Points | Callable[[], Points], **options: Any) -> Actor:
    """Returns the actor of a policy with its plans drawn towards points.

    Args:
        points: The points, or a function that returns them, such as `LivePoints`.
        **options: Further arguments of `Steered`, such as ``step=0.1, scale=100.0``.
    """
    if isinstance(actor, (ObservationWrapper, TransformedActor)):
        return replace(actor, actor=steer_actor(actor.actor, points, **options))
    if not isinstance(actor, PolicyActor):
        raise Unsupported(f"{type(actor).__name__} does not plan with a policy", where="steer_actor",
                          hint="steer a PolicyActor")
    return replace(actor, planner=Steered(actor.planner, points, **options))
