"""Row 025: several skills in a row, by one policy, or by one that reads which skill is due.

The published benchmark has printed objects and a real robot. Here an assembly in the plane has the same four stages.
An earlier design hid the peg's angle in the hand, and only one arm could remember the stage. Now the observation shows
the stage, and no arm has a memory.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    RATE,
    SCORE,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
)
from understudy.core import Feature, normal, uniform
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs.toy import Toy, distance, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, CountingActor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import PolicyConfig

ROWS = 100
SKILLS = ("grasp", "place", "regrasp", "insert")
# m: from a peg's centre to where it is held
SEEN_SIZES, UNSEEN_SIZES = (0.05, 0.1, 0.15, 0.2), (0.075, 0.125, 0.175, 0.225)
FLAT_WIDTH, SKILL_WIDTH = 92, 64  # of the hidden layers
SPEED, REACH, TOLERANCE = 0.1, 0.04, 0.03  # m a step; m


class Assembly(Toy):
    """A peg that lies askew is grasped, put into a fixture, which turns it upright, grasped again and put into a hole.

    observation.state (12): hand, whether it holds the peg, where to hold it, cosine and sine of the peg's angle, its
    size, fixture, hole. observation.skill (4): which of the skills it is time for, which follows from the state. action
    (3): velocity of the hand, and whether it closes (above 0). An upright peg in the hole ends the episode.

    Best possible success: 1.0. `AssemblyExpert(noise=0)` attains it.
    """

    state_columns = ("observation.state",)

    def __init__(self, rows: int = 1, limit: int = 80, sizes: tuple[float, ...] = SEEN_SIZES):
        self.sizes = np.array(sizes, np.float32)
        self.features = {
            "observation.state": named_vector("hand.x", "hand.y", "held", "handle.x", "handle.y", "cos", "sin", "size",
                                       "fixture.x", "fixture.y", "hole.x", "hole.y"),
            "observation.skill": named_vector(*SKILLS),
            "action": Feature("float32", (3,), names=("x", "y", "close"))}
        self.metadata = {"env": "assembly", "version": 2, "fps": 10, "limit": limit, "optimum": 1.0,
                      "success": f"the upright peg within {TOLERANCE} m of the hole"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        u = uniform(key, torch.zeros_like(key), (10,)).numpy().astype(np.float32)
        size = self.sizes[(u[:, 0] * len(self.sizes)).astype(int)]
        angle = 0.5 + (2 * np.pi - 1) * u[:, 1]  # never upright
        turn = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
        return {"hand": u[:, 2:4], "held": np.zeros(len(key), bool), "turn": turn, "size": size,
                "handle": u[:, 4:6], "fixture": u[:, 6:8], "hole": u[:, 8:10]}

    def observe(self):
        s = self.state
        now = 2 * (s["turn"][:, 0] == 1) + s["held"]
        parts = (s["hand"], s["held"][:, None], s["handle"], s["turn"], s["size"][:, None], s["fixture"], s["hole"])
        return {"observation.state": np.concatenate(parts, 1).astype(np.float32),
                "observation.skill": np.eye(4, dtype=np.float32)[now.astype(int)]}

    def state_from_columns(self, steps):
        hand, grip, handle, turn, size, fixture, hole = np.split(steps["observation.state"], [2, 3, 5, 7, 8, 10], 1)
        return {"hand": hand, "held": grip[:, 0] > 0.5, "handle": handle, "turn": turn,
                "size": size[:, 0], "fixture": fixture, "hole": hole}

    def advance(self, action):
        s, close = self.state, action[:, 2] > 0
        s["hand"] = s["hand"] + SPEED * action[:, :2]
        s["handle"] = np.where(s["held"][:, None], s["hand"], s["handle"])
        lets = s["held"] & ~close
        placed = lets & (distance(s["hand"], s["fixture"]) < REACH)  # it slides to the fixture's middle
        s["turn"] = np.where(placed[:, None], np.array([1, 0], np.float32), s["turn"])
        s["handle"] = np.where(placed[:, None], s["fixture"] + s["size"][:, None] * s["turn"], s["handle"])
        takes = ~s["held"] & close & (distance(s["hand"], s["handle"]) < REACH)
        s["held"] = (s["held"] & ~lets) | takes
        s["handle"] = np.where(s["held"][:, None], s["hand"], s["handle"])
        success = s["held"] & (s["turn"][:, 0] == 1) & (distance(self._peg_center(), s["hole"]) < TOLERANCE)
        return success, success, np.zeros_like(success)

    def _peg_center(self):
        return self.state["handle"] - self.state["size"][:, None] * self.state["turn"]

    def expert(self):
        return AssemblyExpert()

    def map(self):
        mark = {"kind": "circle", "radius": 0.03}
        return {"x": (0.0, 1.2), "y": (-0.2, 1.0), "path": ("observation.state", 0, 1), "shapes": [], "marks": [
            {**mark, "column": ("observation.state", 8, 9), "role": "waypoint"},
            {**mark, "column": ("observation.state", 10, 11), "role": "goal"}]}

    def frame(self, row):
        from understudy.envs.raster import render_map

        s = {k: v[row] for k, v in self.state.items()}
        return render_map(self.map(), [{"kind": "circle", "at": tuple(s[k]), "radius": 0.02, "role": role}
                                    for k, role in (("fixture", "waypoint"), ("hole", "goal"), ("hand", "agent"))])


@dataclass(frozen=True)
class AssemblyExpert(CountingActor):
    """noise: standard deviation of its unsteadiness, of the hand's full speed."""

    noise: float = 0.2

    def act(self, obs, state):
        observed = obs["observation.state"]
        hand, _, handle, turn, size, fixture, hole = observed.split([2, 1, 2, 2, 1, 2, 2], 1)
        which = obs["observation.skill"].argmax(1)
        goals = torch.stack([handle, fixture, handle, hole + size * turn], 1)
        aim = (goals[torch.arange(len(hand)), which] - hand) / SPEED
        arrived = aim.norm(dim=1) < 0.3
        push = aim / aim.norm(dim=1, keepdim=True).clamp(min=1)
        push = push + self.noise * normal(state["key"], state["count"], (2,), stream=2) * (~arrived).unsqueeze(1)
        close = torch.where(arrived, torch.tensor([1.0, -1, 1, 1])[which], torch.tensor([-1.0, 1, -1, 1])[which])
        return torch.cat([push, close.unsqueeze(1)], 1), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class SkillConditionedActor(Actor):
    """`low` reads observation.skill, which `high` chooses from the same observation. Neither remembers anything.

    The chosen skill of each step is recorded as "chosen".
    """

    high: Actor
    low: Actor

    def _choose_skill(self, obs, state):
        scores, state = self.high.act(obs, state)
        chosen = scores.argmax(1)
        return chosen, {**obs, "observation.skill": torch.eye(4)[chosen]}, state

    def start(self, obs, key):
        high = self.high.start(obs, key)
        return {"high": high, "low": self.low.start(self._choose_skill(obs, high)[1], key)}

    def act(self, obs, state):
        chosen, low_obs, high = self._choose_skill(obs, state["high"])
        action, low = self.low.act(low_obs, state["low"])
        return action, {"high": high, "low": low, "record": {"chosen": chosen}}


@dataclass(frozen=True)
class AssemblyDemonstrations(DemonstrationSource):
    """The first `episodes` of the expert's rollouts that succeed."""

    episodes: int

    @cached_load
    def load(self, seed):
        env = Assembly(min(ROWS, self.episodes))
        rollouts = rollout(AssemblyExpert(), env, 2 * self.episodes, recording_seed(seed))
        return Dataset([e for e in rollouts if e.metadata["success"]][: self.episodes], rollouts.metadata)


@dataclass(frozen=True)
class SkillMethod:
    """One policy ("flat"), or one that reads the skill that another network chooses ("chosen").

    Args:
        kind: "flat" or "chosen".
        lr: Learning rate of each network.
        steps: Number of updates of all networks together.
        shuffle_skills: Permute the skills between the steps of each demonstration.
    """

    kind: Literal["flat", "chosen"]
    lr: float
    steps: int = 1600
    shuffle_skills: bool = False

    def method(self, *inputs: str, target: str = "action") -> Method:
        """A policy. The flat one has as many parameters and updates as the two of the other arm together."""
        width, steps = (FLAT_WIDTH, self.steps) if self.kind == "flat" else (SKILL_WIDTH, self.steps // 2)
        config = PolicyConfig(
            Regression(), trunk=MLP(width, 2), encoder=ConcatEncoder(), window=Window(), inputs=inputs, target=target
        )
        return Method(config, RecedingHorizon(), BehaviorCloning(steps=steps, optimizer=OptimizerConfig(lr=self.lr)))


def stage_success(
    experiment, method: SkillMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Success on pegs of sizes that were shown, and the rate at which each stage is passed.

    "unseen success" is on pegs of other sizes, in half as many episodes. "skills right" is the fraction of the
    steps of an episode with the right skill.
    """
    rng = np.random.default_rng(seed)

    def with_skill_target(e: Episode) -> Episode:
        skill = e.steps["observation.skill"]
        skill = rng.permutation(skill) if method.shuffle_skills else skill
        return e.replace({"observation.skill": skill, "skill": skill[:-1]})
    data = Dataset([with_skill_target(e) for e in data])

    def trained_actor(*inputs, target="action"):
        skill_method = method.method(*inputs, target=target)
        return PolicyActor(FixedBatch(fit_method(skill_method, data, seed).policy, ROWS), skill_method.executor)
    if method.kind == "flat":
        actor = trained_actor("observation.state")
    else:
        actor = SkillConditionedActor(trained_actor("observation.state", target="skill"),
                                      trained_actor("observation.skill", "observation.state"))
    out = {}
    for name, sizes in (("", SEEN_SIZES), ("unseen ", UNSEEN_SIZES)):
        count = episodes // 2 if name else episodes
        rollouts = rollout(actor, Assembly(min(ROWS, count), sizes=sizes), count, seed=starts)
        out[f"{name}success"] = [float(e.metadata["success"]) for e in rollouts]
        if not name:
            stage = [int(e.steps["observation.skill"].argmax(1).max()) for e in rollouts]
            out |= {f"{passed} passed": [float(s > n) for s in stage] for n, passed in enumerate(SKILLS[:-1])}
            if method.kind == "chosen":
                out["skills right"] = [_fraction_right(e) for e in rollouts]
    return out


def _fraction_right(episode: Episode) -> float:
    chosen = episode.steps["chosen"]
    return float((episode.steps["observation.skill"].argmax(1)[: len(chosen)] == chosen).mean())


def shuffled_skills(experiment: Experiment) -> Experiment:
    return experiment.change_options(lambda o: replace(o, shuffle_skills=True), "chosen")


ASSEMBLY = Experiment(
    AssemblyDemonstrations(100),
    "assembly",
    tuple(Arm(kind, tuple(SkillMethod(kind, lr) for lr in (3e-2, 1e-2, 3e-3))) for kind in ("flat", "chosen")),
    stage_success,
    seeds=tuple(range(210, 218)),
    tuning_seeds=(920, 921),
    episodes=200,
    tuning_episodes=100,
    starts_seed=112,
    looks=((5, 0.02), (8, 0.03)),
    measures=(*((k, RATE) for k in ("grasp passed", "place passed", "regrasp passed", "unseen success")),
              ("skills right", SCORE)),
    sanity=(("flat", "success", 0.2), ("chosen", "success", 0.3), ("chosen", "skills right", 0.8)),
)

CLAIM = Claim(
    name="functional-manipulation",
    rows=("025",),
    parts=(ClaimPart("assembly", ASSEMBLY, GreaterThan("success", "chosen", "flat")),),
    negative_control=NegativeControl(shuffled_skills, "assembly"),
)
