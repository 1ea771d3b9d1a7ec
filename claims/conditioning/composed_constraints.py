"""Row 222: do plans satisfy two constraints together, if training showed one of them at a time?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from understudy.claims.base import (
    RATE,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.claims.measures import train_policy
from understudy.core import Feature, normal, uniform
from understudy.data.augment import ConditionDropout
from understudy.data.column_changes import ReturnToGo
from understudy.data.episode import Dataset, Episode
from understudy.data.relabel import NextObservation
from understudy.data.window import Window
from understudy.envs.toy import Toy, distance, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, CountingActor, ObservationWrapper, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch, Guided, InverseDynamicsPlanner
from understudy.execute.steering import ComposedConditions
from understudy.heads.denoising.diffusion import Diffusion
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.base import Encoder
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.feed_forward import FeedForward
from understudy.nets.mlp import MLP
from understudy.policy import ClassifierFreeGuidance, NetworkGuidance, PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
HEIGHT = 0.45  # m, of the way past the pillar
LIMIT = 12  # steps of an episode under constraints, and of its plan
LONG, SHORT = 20, 4  # steps of an episode for a return, and of a plan
PILLAR, PILLAR_RADIUS = (0.6, 0.0), 0.15
END, END_RADIUS = (1.2, 0.4), 0.15  # the upper end; the lower one has the opposite y
STATE, NEXT, SIDE, GOAL = "observation.state", "observation.next", "observation.side", "observation.end"
RETURN = "observation.return_to_go"
SCALE = 1.2  # of the paper


class Plane(Toy):
    """A point passes a pillar above or below and goes to the upper or the lower end.

    observation.state (2): position, m. observation.side (1) and observation.end (1): the way past the pillar and the
    end that are asked for, 1 for above and -1 for below. simulator.state (1): the side on which the pillar was passed,
    0 before. action (2): velocity, m/s, clipped to [-1, 1]. A step is 0.2 s. An episode ends at either end, where the
    reward is the fraction of time that is left, or where the point touches the pillar.

    Best possible success: 1.0. `PlaneExpert(noise=0)` attains it.
    """

    state_columns = (STATE, SIDE, GOAL, "simulator.state")

    def __init__(self, rows: int = 1, limit: int = LIMIT):
        flag = Feature("bool", ())
        self.features = {STATE: named_vector("x", "y", unit="m"), SIDE: named_vector("side"), GOAL: named_vector("end"),
                         f"{SIDE}?": flag, f"{GOAL}?": flag, "simulator.state": named_vector("passed"),
                         "action": named_vector("x", "y", unit="m/s")}
        self.metadata = {"env": "plane", "version": 1, "fps": 5, "limit": limit, "optimum": 1.0,
                         "success": f"within {END_RADIUS} m of the end that was asked for, past the pillar on the side "
                                    "that was asked for"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        zero = torch.zeros_like(key)
        asked = np.where(uniform(key, zero, (2,), stream=1).numpy() < 0.5, -1.0, 1.0).astype(np.float32)
        return {"at": 0.05 * normal(key, zero, (2,)).numpy(), "side": asked[:, :1], "end": asked[:, 1:],
                "passed": np.zeros((len(key), 1), np.float32)}

    def observe(self):
        s, all_known = self.state, np.ones(self.rows, bool)
        return {STATE: s["at"], SIDE: s["side"], GOAL: s["end"], f"{SIDE}?": all_known, f"{GOAL}?": all_known,
                "simulator.state": s["passed"]}

    def state_from_columns(self, steps):
        return {"at": steps[STATE], "side": steps[SIDE], "end": steps[GOAL], "passed": steps["simulator.state"]}

    def advance(self, action):
        s = self.state
        s["at"] = at = s["at"] + 0.2 * action
        passes = (s["passed"] == 0) & (at[:, :1] >= PILLAR[0])
        s["passed"] = np.where(passes, np.where(at[:, 1:] > 0, 1, -1), s["passed"]).astype(np.float32)
        touched = distance(at, PILLAR) < PILLAR_RADIUS
        arrived = np.minimum(distance(at, END), distance(at, (END[0], -END[1]))) < END_RADIUS
        asked = (s["passed"] == s["side"])[:, 0] & (np.sign(at[:, 1]) == s["end"][:, 0])
        success = arrived & asked & ~touched
        remaining = 1 - self.clock.numpy() / self.limit
        return np.where(touched, 0, arrived * remaining), success, touched | arrived

    def expert(self):
        return PlaneExpert()

    def map(self):
        ends = [{"kind": "circle", "at": (END[0], y), "radius": END_RADIUS, "role": "goal"} for y in (END[1], -END[1])]
        return {"x": (-0.2, 1.4), "y": (-0.8, 0.8), "path": (STATE, 0, 1), "shapes": [
            {"kind": "circle", "at": PILLAR, "radius": PILLAR_RADIUS, "role": "obstacle"}, *ends]}

    def frame(self, row):
        from understudy.envs.raster import render_map

        at = self.state["at"][row]
        return render_map(self.map(), [{"kind": "circle", "at": tuple(at), "radius": 0.03, "role": "agent"}])


@dataclass(frozen=True)
class PlaneExpert(CountingActor):
    """Passes the pillar on the side that is asked for and goes to the end that is asked for.

    Args:
        noise: Standard deviation of Gaussian noise on the action, m/s.
    """

    noise: float = 0.1

    def act(self, obs, state):
        at = obs[STATE]
        around = torch.cat([torch.full_like(obs[SIDE], PILLAR[0]), HEIGHT * obs[SIDE]], 1)
        end = torch.cat([torch.full_like(obs[GOAL], END[0]), END[1] * obs[GOAL]], 1)
        aim = torch.where(at[:, :1] < PILLAR[0] - 0.05, around, end) - at
        length = (aim * aim).sum(1, keepdim=True).sqrt()
        action = aim / length.clamp(min=0.2) + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class Traveler(Actor):
    """Goes as the expert does, but each episode at a speed of its own and at its own distance from the pillar."""

    def start(self, obs, key):
        drawn = uniform(key, torch.zeros_like(key), (2,), stream=3).float()
        return {"speed": 0.4 + 0.6 * drawn[:, :1], "height": (0.1 + 0.35 * drawn[:, 1:]) / HEIGHT,
                "expert": PlaneExpert().start(obs, key)}

    def act(self, obs, state):
        action, expert = PlaneExpert().act({**obs, SIDE: obs[SIDE] * state["height"]}, state["expert"])
        return state["speed"] * action, {**state, "expert": expert}


@dataclass(frozen=True)
class MixedEpisodes(DemonstrationSource):
    """Episodes of any quality, those that touch the pillar or do not arrive included."""

    episodes: int

    def load(self, seed):
        return rollout(Traveler(), Plane(ROWS, LONG), self.episodes, recording_seed(seed))


@dataclass(frozen=True)
class SingleLabels(DemonstrationSource):
    """Successful episodes of the expert. Half of them tell only the side, and the others only the end."""

    episodes: int

    def load(self, seed):
        env = Plane(ROWS)
        rollouts = rollout(env.expert(), env, self.episodes, recording_seed(seed))
        demonstrations = rollouts.filter(lambda e: e.metadata["success"])
        return Dataset([self.hide(e, (GOAL, SIDE)[number % 2]) for number, e in enumerate(demonstrations)])

    def hide(self, episode: Episode, name: str) -> Episode:
        return episode.replace({f"{name}?": np.zeros(len(episode) + 1, bool)})


@dataclass(frozen=True)
class Diffuser:
    """A diffusion over states with inverse dynamics, and how it plans. Arms share the training of each seed.

    Args:
        states: How the diffusion over states is trained.
        guidance: Guidance of the planned states.
        asked: The return that is asked for. None where nothing reads it.
    """

    states: Method
    guidance: NetworkGuidance
    asked: float | None = None


def roll_out(experiment, option: Diffuser, data: Dataset, seed: int, episodes: int, starts: int) -> Dataset:
    """Trains an option and rolls it out. Half of a short plan is executed, or the whole of a plan for an episode."""
    states = train_policy(experiment, option.states, data, seed)
    actions = train_policy(experiment, ACTIONS, data, seed)
    planner = InverseDynamicsPlanner(Guided(states, (option.guidance,)), actions)
    limit, horizon = dict(experiment.env_options)["limit"], states.window.horizon
    executor = RecedingHorizon(horizon if horizon == limit else horizon // 2)
    actor: Actor = PolicyActor(FixedBatch(planner, ROWS), executor)
    if option.asked is not None:
        actor = ObservationWrapper(actor, {RETURN: torch.tensor([option.asked])})
    return rollout(actor, Plane(ROWS, limit), episodes, seed=starts)


def constraints_satisfied(experiment, option: Diffuser, data: Dataset, seed: int, episodes: int, starts: int
                          ) -> dict[str, list[float]]:
    """Rolls out plans under constraints.

    Returns:
        0 or 1 per start. "both": an end is reached and both constraints are satisfied. "side" and "end": an end is
        reached and this constraint is satisfied. "arrived": an end is reached.
    """
    rollouts = roll_out(experiment, option, data, seed, episodes, starts)
    last = {k: np.stack([e.steps[k][-1] for e in rollouts]) for k in Plane.state_columns}
    touched = np.array([(distance(e.steps[STATE], PILLAR) < PILLAR_RADIUS).any() for e in rollouts])
    arrived = ~touched & (distance(np.abs(last[STATE]), END) < END_RADIUS)
    side = (last["simulator.state"] == last[SIDE])[:, 0]
    end = np.sign(last[STATE][:, 1]) == last[GOAL][:, 0]
    measures = {"both": arrived & side & end, "side": arrived & side, "end": arrived & end, "arrived": arrived}
    return {name: flags.astype(float).tolist() for name, flags in measures.items()}


def rollout_returns(experiment, option: Diffuser, data: Dataset, seed: int, episodes: int, starts: int
                    ) -> dict[str, list[float]]:
    """Rolls out plans for a return. "return" of each start, between 0 and 1."""
    rollouts = roll_out(experiment, option, data, seed, episodes, starts)
    return {"return": [float(e.steps["next.reward"].sum()) for e in rollouts]}


def constrained_arm(name: str, side: float, end: float) -> Arm:
    """Plans that follow both conditions, with a scale for each of them. 0 leaves a condition out."""
    return Arm(name, (Diffuser(CONSTRAINED, ComposedConditions(((SIDE,), (GOAL,)), (side, end))),))


def return_arm(name: str, asked: float, scale: float = SCALE) -> Arm:
    return Arm(name, (Diffuser(RETURNING, ClassifierFreeGuidance((RETURN,), scale), asked),))


def without_second_constraint(experiment: Experiment) -> Experiment:
    return experiment.replace_arms(constrained_arm("composed", SCALE, 0.0))


def diffusion_over_states(encoder: Encoder, horizon: int, inputs: tuple[str, ...], *conditions: str) -> PolicyConfig:
    return PolicyConfig(Diffusion(10, prediction="sample"), MLP(128, 2), encoder, inputs=(STATE, *inputs),
                        window=Window(1, horizon, action_offset=1), target=STATE,
                        augmentations=tuple(ConditionDropout(key, 0.25) for key in conditions))


OPTIMIZER = OptimizerConfig(lr=2e-3, warmup_steps=100)
LEARNER = BehaviorCloning(5000, 64, OPTIMIZER)
ACTIONS = Method(PolicyConfig(Regression(), FeedForward((64,)), ConcatEncoder(), inputs=(STATE, NEXT)),
                 learner=BehaviorCloning(1000, 64, OPTIMIZER), transforms=(NextObservation(),))
CONSTRAINED = Method(
    diffusion_over_states(ConcatEncoder(), LIMIT, (SIDE, GOAL, f"{SIDE}?", f"{GOAL}?"), SIDE, GOAL), learner=LEARNER)
RETURNING = Method(
    diffusion_over_states(TokenEncoder(32), SHORT, (RETURN,), RETURN), learner=LEARNER, transforms=(ReturnToGo(),))

PLANE = Experiment(
    SingleLabels(400),
    "plane",
    (
        constrained_arm("composed", SCALE, SCALE),
        constrained_arm("unguided", 0.0, 0.0),
        constrained_arm("side alone", SCALE, 0.0),
        constrained_arm("end alone", 0.0, SCALE),
    ),
    constraints_satisfied,
    tuned_by="both",
    seeds=tuple(range(640, 650)),
    env_options=(("limit", LIMIT),),
    episodes=500,
    measures=tuple((name, RATE) for name in ("both", "side", "end", "arrived")),
    starts_seed=640,
    looks=((5, 0.02), (10, 0.03)),
    sanity=(("unguided", "arrived", 0.7), ("side alone", "side", 0.7), ("end alone", "end", 0.7)),
)
AT_ONCE = replace(PLANE, seeds=PLANE.seeds[:5], looks=(), sanity=(), arms=(
    PLANE.arms[0], Arm("both as inputs", (Diffuser(CONSTRAINED, ClassifierFreeGuidance((SIDE, GOAL), SCALE)),))))
RETURNS = Experiment(
    MixedEpisodes(400),
    "plane",
    (
        return_arm("asked for 0.65", 0.65),
        return_arm("asked for 0.25", 0.25),
        return_arm("no return", 0.65, 0.0),
    ),
    rollout_returns,
    tuned_by="return",
    seeds=PLANE.seeds[:5],
    env_options=(("limit", LONG),),
    episodes=200,
    measures=(("return", Measure("bounded", "return fraction")),),
    starts_seed=640,
    sanity=(("no return", "return", 0.2),),
)
OVER_UNGUIDED = GreaterThan("both", "composed", "unguided", 0.4)
OVER_SIDE = GreaterThan("both", "composed", "side alone", 0.2)
OVER_END = GreaterThan("both", "composed", "end alone", 0.2)
OVER_NO_RETURN = GreaterThan("return", "asked for 0.65", "no return")
MORE_FOR_MORE = GreaterThan("return", "asked for 0.65", "asked for 0.25", 0.2)

CLAIM = Claim(
    name="composed-constraints",
    rows=("222",),
    parts=(
        ClaimPart("constraints", PLANE, AllOf((OVER_UNGUIDED, OVER_SIDE, OVER_END))),
        ClaimPart("both as inputs", AT_ONCE, GreaterThan("both", "composed", "both as inputs"), is_decisive=False),
        ClaimPart("returns", RETURNS, AllOf((OVER_NO_RETURN, MORE_FOR_MORE)), is_decisive=False),
    ),
    negative_control=NegativeControl(
        without_second_constraint, "constraints", removes=(OVER_UNGUIDED, OVER_SIDE, OVER_END)
    ),
)
