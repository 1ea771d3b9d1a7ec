"""What a watched policy plans, and its doubt, for the page: the control loop does not wait for it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ...core import Schema, UserError
from ...data.episode import Dataset
from ...envs.base import Env, PlanarMap
from ...envs.raster import Drawable
from ...evaluate.failure_detection import DoubtScore
from ...execute.actor import Actor, ObservationWrapper, PolicyActor, TransformedActor
from ...execute.base import sample_noise, sample_plans
from ...execute.doubt import DoubtMeasure
from ...execute.followed import Moment, NotingActor, wrap_policy
from ...execute.wrappers import WrappedActor
from ...policy import Planner

N_PLANS = 8  # of a policy that plans at random
SHARE = 0.2  # of the time in which plans are computed for the page, at most
POINTS = 16  # of a line, at most
N_DOUBTS = 200  # that the page shows, at most

Line = list[list[float]]


@dataclass(frozen=True)
class CalibratedDoubt:
    """A doubt score with the threshold of a failure detector.

    Args:
        demonstrations: What the policy was trained on.
        threshold: Doubt at which an alarm is raised.
    """

    score: DoubtScore
    demonstrations: Dataset
    threshold: float


class DoubtLoader(Protocol):
    """Interface of what loads the failure detector of a run as the commands of the terminal do."""

    def doubt(self, run: Path) -> CalibratedDoubt | None:
        """Loads the calibrated doubt of a run. None if it was not calibrated.

        Raises:
            UserError: It was calibrated for something else, or its demonstrations are missing.
        """


def load_doubt(loader: DoubtLoader, run: Path) -> CalibratedDoubt | UserError | None:
    """Returns the calibrated doubt of a run, or why there is none."""
    try:
        return loader.doubt(run)
    except UserError as error:
        return error


@dataclass(frozen=True, eq=False)
class Foresight:
    """What a policy would do next, and its doubt, at one moment.

    Args:
        lines: Where each plan leads in the picture: points (x, y) in fractions of its side, from the upper left corner,
            the first one where it begins. Empty if the picture does not show what an action moves.
        curves: Each plan, (n, steps, A), between 0 for the lowest and 1 for the highest action. Empty if there are
            lines, or if the plans are not those of the environment.
        names: Names of the components of the curves.
        n_steps: Number of steps of a plan, from the present one on.
        doubts: Step and doubt of this episode, as far as they were measured.
        threshold: Doubt at which an alarm is raised.
        note: What is not shown, and why.
    """

    lines: tuple[Line, ...] = ()
    curves: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0)))
    names: tuple[str, ...] = ()
    n_steps: int = 0
    doubts: tuple[tuple[int, float], ...] = ()
    threshold: float = np.inf
    note: str = ""

    @property
    def is_in_doubt(self) -> bool:
        """Whether the doubt has reached the threshold."""
        return bool(self.doubts) and self.doubts[-1][1] >= self.threshold

    @property
    def spread(self) -> float:
        """Largest difference between plans: of two ends, in sides of the picture, or of actions, in their range."""
        if self.lines:
            ends = np.array([line[-1] for line in self.lines])
            return float(np.linalg.norm(ends[:, None] - ends, axis=-1).max())
        return float(np.ptp(self.curves, axis=0).max()) if self.curves.size else 0.0


def picture_lines(plans: np.ndarray, start: np.ndarray, env: Drawable) -> tuple[Line, ...]:
    """Returns where plans lead in the picture of an environment whose map has "control".

    Args:
        plans: Planned actions, (n, H, A).
        start: Position of what they move, (2,).
    """
    assert isinstance(env, PlanarMap)
    control, ((x, y), side) = env.map()["control"], env.square
    moves = plans[..., list(control["components"])]
    if control["step"] is not None:
        moves = start + control["step"] * np.clip(moves, env.metadata["low"], env.metadata["high"]).cumsum(1)
    points = np.concatenate([np.broadcast_to(start, (len(plans), 1, 2)), moves], 1)
    across, up = ((points - (x, y)) / side).transpose(2, 0, 1)
    lines = _thinned(np.stack([across, 1 - up], -1))
    return tuple(np.round(lines, 4).tolist())


def _thinned(lines: np.ndarray) -> np.ndarray:
    """Returns lines, (n, steps, D), with `POINTS` of their steps at most."""
    steps = np.unique(np.linspace(0, lines.shape[1] - 1, POINTS).round().astype(int))
    return lines[:, steps]


class PlanWatch:
    """Asks a policy that acts for sampled plans and its doubt, in the thread of a page.

    The control loop only notes what the policy has observed. Before the first step of the first episode, while nothing
    moves, it measures how long the plans take. If that is longer than a step, there are none.

    Args:
        actor: The actor of the policy.
        features: The columns of the environment.
        limits: Lowest and highest action, (A,) each.
        period: Duration of a step, s.
        doubt: Its calibrated doubt, or why there is none.
        env: The environment, if its picture may show where actions lead.

    Attributes:
        actor: The actor that is to act instead.
    """

    def __init__(self, actor: Actor, features: Schema, limits: tuple[np.ndarray, np.ndarray], period: float,
                 doubt: CalibratedDoubt | UserError | None = None, env: Env | None = None):
        self._features, self._limits, self._period, self._env = features, limits, period, env
        self._note = f"Its doubt is not shown: {doubt}" if isinstance(doubt, UserError) else ""
        self._doubt = doubt if isinstance(doubt, CalibratedDoubt) else None
        self._planner: Planner | None = None
        self._measure: DoubtMeasure | None = None
        self._plans_are_actions = not _is_wrapped(actor)
        self._moment: Moment | None = None
        self._asked: Moment | None = None
        self._is_slow: bool | None = None  # None before it was measured
        self._foresight, self._free_at = Foresight(), 0.0
        self._doubts = deque[tuple[int, float]](maxlen=N_DOUBTS)
        self._lock = threading.Lock()
        self.actor = wrap_policy(actor, self._wrap) or actor

    def _wrap(self, policy: PolicyActor) -> Actor:
        self._planner = planner = policy.planner
        self._plans_are_actions &= not planner.is_discrete and planner.action_dim == self._features["action"].size
        if self._doubt is not None:
            self._measure = self._doubt.score.build(planner, self._doubt.demonstrations)
        return NotingActor(policy, self._take)

    def _take(self, moment: Moment) -> None:
        if self._is_slow is None:
            self._ask(moment)  # the first time is longer
            begun = time.perf_counter()
            self._ask(moment)
            self._is_slow = time.perf_counter() - begun > self._period
        self._moment = moment

    def latest(self) -> Foresight | None:
        """Returns what the policy plans, as of the last step or, where that would take too much time, of one before.

        Several threads may call it. None before the first episode, and for an actor without plans.
        """
        if (moment := self._moment) is None:
            return None
        if self._is_slow:
            what = "plans are" if self._measure is None else "plans and its doubt are"
            return Foresight(note=f"Its {what} not shown, because to compute them takes longer than a step.")
        if moment is not self._asked and time.perf_counter() >= self._free_at and self._lock.acquire(blocking=False):
            try:
                begun = time.perf_counter()
                self._foresight, self._asked = self._ask(moment), moment
                now = time.perf_counter()
                self._free_at = now + (now - begun) * (1 / SHARE - 1)
            finally:
                self._lock.release()
        return self._foresight

    @torch.no_grad()
    def _ask(self, moment: Moment) -> Foresight:
        step = int(moment.count[0])
        if self._doubts and step <= self._doubts[-1][0]:  # another episode, or the first step again
            self._doubts.clear()
        if self._measure is not None:
            self._doubts.append((step, float(self._measure(moment.obs, moment.key, moment.count)[0])))
        return Foresight(**self._drawn(moment) if self._plans_are_actions else {}, doubts=tuple(self._doubts),
                         threshold=self._doubt.threshold if self._doubt else np.inf, note=self._note)

    def _drawn(self, moment: Moment) -> dict[str, Any]:
        """Samples plans, and returns what shows them."""
        planner = self._planner
        assert planner is not None
        count = 1 if planner.is_deterministic else N_PLANS
        noise = sample_noise(planner, moment.key, moment.count, count)
        sampled = sample_plans(planner, moment.obs, noise, count)[0]
        plans = sampled[:, max(-planner.window.action_offset, 0):].double().cpu().numpy()
        if (start := self._position(moment.obs)) is not None:
            assert isinstance(self._env, Drawable)
            return {"lines": picture_lines(plans, start, self._env), "n_steps": plans.shape[1]}
        low, high = self._limits
        names = self._features["action"].names or tuple(map(str, range(plans.shape[2])))
        return {"curves": _thinned(np.clip((plans - low) / np.maximum(high - low, 1e-9), 0, 1)), "names": names,
                "n_steps": plans.shape[1]}

    def _position(self, obs: Mapping[str, torch.Tensor]) -> np.ndarray | None:
        """Returns the position from which plans lead through the picture, (2,), if the policy observes it."""
        env = self._env
        control = env.map().get("control") if isinstance(env, Drawable) and isinstance(env, PlanarMap) else None
        if control is None or control["column"] not in obs:
            return None
        return obs[control["column"]][0, -1, list(control["components"])].double().cpu().numpy()


def _is_wrapped(actor: Actor) -> bool:
    """Returns whether what the policy plans is not yet an action of the environment."""
    while isinstance(actor, (ObservationWrapper, TransformedActor)):
        actor = actor.actor
    return isinstance(actor, WrappedActor)
