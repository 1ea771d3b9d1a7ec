"""Row 301: is it enough to learn the third of the steps that matter?

The published agents are language models. Here a small network first learns from a generalist, who walks and handles
things as he should and chooses his subgoals by lot. It is then fine-tuned on demonstrations of an errand, as the
language models are, on all steps or on some.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from claims.worlds.curation import cached_load, with_keep_columns
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
from understudy.claims.memo import Memo
from understudy.core import Feature, uniform
from understudy.data.episode import Dataset, Episode
from understudy.envs.grid import MOVES, cost_to_go
from understudy.envs.toy import Toy, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

ROWS = 250
SIZE = 7  # cells along each side; those with two odd coordinates may be walls
THINGS = ("key", "left chest", "right chest", "place")
KEY, PLACE = 0, 3
INTERACT = 4  # the fifth primitive, after the four moves
SLIP = 0.1  # probability that a move goes in a random direction
# Tuning trials, at one learning rate: in the earlier grid of three rates, success depended on rate times updates alone.
LEARNING_RATE, UPDATES = 1e-3, (15, 30, 60, 120, 240, 480)
SCRIPT_STREAM = 2  # of random numbers


class Errand(Toy):
    """Fetch the key, with it the parcel out of one of two chests, and bring it to the place.

    A step is a thought and a primitive, as a step of a language agent is a thought and an action. The thought names one
    of the four things and stays written down; the primitive is a move or the handling of what is here. Which chest the
    parcel is in is only seen by opening it. One move of ten goes in a random direction. Walls differ by episode.

    observation.state (29): the things relative to the agent, which of them is here, which cells around are closed, what
    is carried, which chests are known to be empty, the thought. simulator.state (26): everything else that decides.
    action (1): 5 x thought + primitive. With `errand` False, success is to be at the thing that was first thought of.

    Best possible success: 1.0 but for slips. `ErrandScript(is_expert=True)` attains it.
    """

    low, high = 0.0, 19.0
    state_columns = ("simulator.state",)

    def __init__(self, rows: int = 1, limit: int = 40, errand: bool = True, slip: float = SLIP):
        self.errand, self.slip = errand, slip
        self.features = {
            "observation.state": named_vector(
                *(f"{thing} {axis}" for thing in THINGS for axis in "xy"), *(f"at {thing}" for thing in THINGS),
                *(f"closed {i}" for i in range(8)), "has key", "has parcel", "left empty", "right empty",
                *(f"thinks {thing}" for thing in THINGS), "thinks nothing"),
            "simulator.state": named_vector(*(f"s{i}" for i in range(26))),
            "action": Feature("int64", (1,), "discrete", num_classes=(20,))}
        self.metadata = {"env": "errand", "version": 1, "fps": 1, "limit": limit, "optimum": 1.0,
                         "success": "the parcel is at the place" if errand else "at the thing first thought of"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        n, n_walls = len(key), (SIZE // 2) ** 2
        drawn = uniform(key, torch.zeros_like(key), (SIZE**2 + n_walls + 2,)).numpy()
        cells = drawn[:, : SIZE**2].copy()
        grid = np.arange(SIZE**2).reshape(SIZE, SIZE)
        cells[:, grid[1::2, 1::2].ravel()] = 2.0  # where walls may be, nothing lies
        at = np.stack(np.divmod(cells.argsort(1)[:, :5], SIZE), 2)
        thought = np.full(n, 4) if self.errand else (4 * drawn[:, -1]).astype(np.int64)
        return {"at": at[:, 0], "things": at[:, 1:], "walls": drawn[:, SIZE**2: -2] < 0.5,
                "full": 1 + (drawn[:, -2] < 0.5).astype(np.int64), "has": np.zeros((n, 2), bool),
                "empty": np.zeros((n, 2), bool), "thought": thought, "first": thought.copy()}

    def observe(self):
        s, rows = self.state, np.arange(self.rows)[:, None]
        off = s["things"] - s["at"][:, None]
        wide = np.pad(walls_on_grid(s["walls"]), ((0, 0), (1, 1), (1, 1)), constant_values=True)
        around = np.delete(np.array([(i, j) for i in range(3) for j in range(3)]), 4, 0)
        neighbors = s["at"][:, None] + around
        is_wall = wide[rows, neighbors[..., 0], neighbors[..., 1]]
        visible = (off.reshape(self.rows, -1) / SIZE, (off == 0).all(2), is_wall, s["has"], s["empty"],
                   np.eye(5)[s["thought"]])
        whole = (s["at"], s["things"].reshape(self.rows, -1), s["walls"], s["full"][:, None], s["has"], s["empty"],
                 s["thought"][:, None], s["first"][:, None])
        return {"observation.state": np.concatenate(visible, 1).astype(np.float32),
                "simulator.state": np.concatenate(whole, 1).astype(np.float32)}

    def state_from_columns(self, steps):
        return parse_state(steps["simulator.state"])

    def advance(self, action):
        s, rows = self.state, np.arange(self.rows)
        s["thought"], primitive = np.divmod(np.rint(action[:, 0]).astype(np.int64), 5)
        lot = uniform(self.key, self.clock, (2,), stream=1).numpy()
        slips = lot[:, 0] < self.slip
        move = MOVES[np.where(slips, (4 * lot[:, 1]).astype(np.int64), np.minimum(primitive, 3))]
        there = np.clip(s["at"] + move, 0, SIZE - 1)
        moves = (primitive != INTERACT) & ~walls_on_grid(s["walls"])[rows, there[:, 0], there[:, 1]]
        s["at"] = np.where(moves[:, None], there, s["at"])
        here = (s["things"] == s["at"][:, None]).all(2) & (primitive == INTERACT)[:, None]
        success = here[:, PLACE] & s["has"][:, 1]
        opened = here[:, 1:3] & s["has"][:, :1]
        holds = s["full"][:, None] == np.array([1, 2])
        s["has"] = s["has"] | np.stack([here[:, KEY], (opened & holds).any(1)], 1)
        s["empty"] = s["empty"] | opened & ~holds
        if not self.errand:
            aim = s["things"][rows, np.minimum(s["first"], 3)]
            success = (s["at"] == aim).all(1)
        return success.astype(np.float32), success, np.zeros_like(success)

    def expert(self):
        return ErrandScript()

    def map(self):
        return {"x": (-0.5, SIZE - 0.5), "y": (-0.5, SIZE - 0.5), "path": ("simulator.state", 0, 1), "shapes": []}

    def frame(self, row):
        from understudy.envs.raster import render_map

        return render_map(self.map(), [{"kind": "circle", "at": tuple(self.state["at"][row]), "radius": 0.3,
                                        "role": "agent"}])


def parse_state(whole: np.ndarray) -> dict[str, np.ndarray]:
    """The parts of "simulator.state", (rows, 26)."""
    at, things, walls, full, has, empty, thought, first = np.split(
        np.rint(whole).astype(np.int64), [2, 10, 19, 20, 22, 24, 25], 1)
    return {"at": at, "things": things.reshape(-1, 4, 2), "walls": walls > 0, "full": full[:, 0], "has": has > 0,
            "empty": empty > 0, "thought": thought[:, 0], "first": first[:, 0]}


def walls_on_grid(walls: np.ndarray) -> np.ndarray:
    """(rows, SIZE, SIZE) which cells are closed, from the cells that may be, (rows, 9)."""
    closed = np.zeros((len(walls), SIZE, SIZE), bool)
    closed[:, 1::2, 1::2] = walls.reshape(-1, SIZE // 2, SIZE // 2)
    return closed


@dataclass(frozen=True)
class ErrandScript(Actor):
    """Takes a shortest way, each as likely as the others, to what it thinks of, and handles it there.

    Args:
        is_expert: Its thoughts are those of the errand, with either chest first. Otherwise it thinks of another thing,
            drawn by lot, each time it has handled one.
    """

    is_expert: bool = True

    def start(self, obs, key):
        return {"key": key, "count": torch.zeros_like(key), "handled": torch.zeros_like(key, dtype=torch.bool)}

    def act(self, obs, state):
        s = parse_state(obs["simulator.state"].numpy())
        rows = np.arange(len(s["at"]))
        lot = uniform(state["key"], state["count"], (6,), stream=SCRIPT_STREAM).numpy()
        before, handled = s["thought"], state["handled"].numpy()
        if self.is_expert:
            chest = 1 + np.where(s["empty"].any(1), s["empty"][:, 0], lot[:, 0] < 0.5).astype(np.int64)
            chest = np.where(np.isin(before, (1, 2)) & ~s["empty"].any(1), before, chest)
            thought = np.where(s["has"][:, 1], PLACE, np.where(s["has"][:, 0], chest, KEY))
        else:
            other = (before + 1 + (3 * lot[:, 0]).astype(np.int64)) % 4
            thought = np.where(before == 4, (4 * lot[:, 0]).astype(np.int64), np.where(handled, other, before))
        closed = walls_on_grid(s["walls"])
        aim = s["things"][rows, thought]
        arrived = (s["at"] == aim).all(1)
        cost = np.ones((len(rows), 4, SIZE, SIZE), np.float32) + np.where(closed, np.inf, 0)[:, None]
        remaining_cost = np.where(closed, np.inf, cost_to_go(cost, aim))
        there = s["at"][:, None] + MOVES
        inside = ((there >= 0) & (there < SIZE)).all(2)
        x, y = np.clip(there, 0, SIZE - 1).transpose(2, 0, 1)
        ahead = np.where(inside, remaining_cost[rows[:, None], x, y], np.inf)
        ahead = ahead + 0.5 * lot[:, 1:5]  # lots among equal ways
        primitive = np.where(arrived, INTERACT, ahead.argmin(1))
        return torch.from_numpy(5 * thought + primitive).unsqueeze(1), {
            **state, "count": state["count"] + 1, "handled": torch.from_numpy(arrived)}


def critical_steps(episode: Episode) -> np.ndarray:
    """(T,) the steps that the paper's definition calls critical, by what happened, right or wrong.

    Plan creation: another subgoal is thought of. Critical action: the key or the parcel is taken, the parcel is
    delivered. Critical observation: a chest turns out to be empty. Self correction: the thought that follows from that.
    """
    s = episode.steps["simulator.state"]
    before, after = s[:-1], s[1:]
    plans = before[:, 24] != after[:, 24]
    learns = (before[:, 20:24] != after[:, 20:24]).any(1)
    return plans | learns | np.asarray(episode.steps["next.success"], bool)


@dataclass(frozen=True)
class ErrandDemonstrations(DemonstrationSource):
    """`n_episodes` errands of the expert, with a column for each arm.

    Args:
        n_episodes: Number of demonstrations.
        shuffle_steps: Which steps are critical is exchanged within each demonstration.
    """

    n_episodes: int
    shuffle_steps: bool = False
    probe_sizes = {"n_episodes": 8}

    @cached_load
    def load(self, seed):
        count = 2 * self.n_episodes
        rollouts = rollout(ErrandScript(), Errand(min(ROWS, count)), count, recording_seed(seed))
        data = Dataset([e for e in rollouts if e.metadata["success"]][: self.n_episodes], rollouts.metadata)
        rng = np.random.default_rng(seed)
        critical = [critical_steps(e) for e in data]
        if self.shuffle_steps:
            critical = [rng.permutation(c) for c in critical]
        lot = [rng.permutation(c) for c in critical]
        balanced = balanced_steps([np.asarray(e.steps["action"])[:, 0] for e in data], critical, rng)
        return with_keep_columns(data, {"all": [1.0] * len(data), "critical": critical, "random": lot,
                                        "balanced": balanced})


def balanced_steps(
    actions: list[np.ndarray], chosen: list[np.ndarray], rng: np.random.Generator
) -> list[np.ndarray]:
    """Draws random steps that have each action as often as the chosen steps do.

    Args:
        actions: The action of each step, (T,) for each demonstration.
        chosen: (T,) for each demonstration, which steps are chosen.
        rng: Draws the steps.

    Returns:
        (T,) for each demonstration, which steps are drawn.
    """
    every, is_chosen = np.concatenate(actions), np.concatenate(chosen)
    drawn = np.zeros(len(every), bool)
    for action in np.unique(every):
        has = np.flatnonzero(every == action)
        drawn[rng.choice(has, int(is_chosen[has].sum()), replace=False)] = True
    return np.split(drawn, np.cumsum([len(a) for a in actions])[:-1])


@dataclass(frozen=True)
class FineTuning:
    """A base, and its fine-tuning on the steps with the column "keep.KEEP".

    Args:
        keep: Name of the arm. "none" is the base itself.
        lr: Learning rate of the fine-tuning.
        steps: Updates of the fine-tuning.
        n_base_episodes: Episodes of the generalist.
        base_steps: Updates of the base.
    """

    keep: Literal["none", "all", "critical", "random", "balanced"]
    lr: float
    steps: int
    n_base_episodes: int = 400
    base_steps: int = 700
    probe_sizes = {"n_base_episodes": 20}

    def method(self, lr: float, steps: int) -> Method:
        config = PolicyConfig(Categorical(), trunk=MLP(64, 1), encoder=ConcatEncoder(), inputs=("observation.state",))
        return Method(config, RecedingHorizon(), BehaviorCloning(steps=steps, optimizer=OptimizerConfig(lr=lr)))


_bases = Memo()  # all arms of a seed start from the same one


def trained_base(method: FineTuning, seed: int) -> Policy:
    """The policy before it is fine-tuned."""
    key = method.n_base_episodes, method.base_steps, seed

    def train() -> Policy:
        n = method.n_base_episodes
        data = rollout(ErrandScript(is_expert=False), Errand(min(ROWS, n)), n, recording_seed(seed), first=100_000)
        return fit_method(method.method(3e-3, method.base_steps), data, seed).policy
    return _bases.get(key, train)


def errand_success(
    experiment, method: FineTuning, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """success on the errand, in layouts that no demonstration shows; "walks": success at reaching what it first thinks
    of within 30 steps; "share": of the steps that the arm learns from; "inside": 1 if the trial is neither the one with
    the fewest nor the one with the most updates."""
    policy = trained_base(method, seed)
    share, inside = 0.0, method.steps in UPDATES[1:-1]
    if method.keep != "none":
        column = f"keep.{method.keep}"
        share = float(np.concatenate([e.steps[column] for e in data]).mean())
        policy = fit_method(method.method(method.lr, method.steps), data, seed, policy=policy,
                            sampling_weights=lambda e: e.steps[column]).policy
    rows = min(ROWS, episodes)
    actor = PolicyActor(FixedBatch(policy, ROWS), RecedingHorizon())
    rollouts = rollout(actor, Errand(rows), episodes, seed=starts)
    walked = rollout(actor, Errand(rows, limit=30, errand=False), episodes // 2, seed=starts)
    return {"success": [float(e.metadata["success"]) for e in rollouts],
            "walks": [float(e.metadata["success"]) for e in walked], "share": [share],
            "inside": [float(inside)]}


def shuffled_steps(experiment: Experiment) -> Experiment:
    return replace(experiment, source=replace(experiment.source, shuffle_steps=True))


def tuning_options(keep: Any) -> tuple[FineTuning, ...]:
    """The tuning trials of an arm, the same for each. The base itself has nothing to tune."""
    return tuple(FineTuning(keep, LEARNING_RATE, UPDATES[1] if keep == "none" else steps) for steps in UPDATES)


ERRAND = Experiment(
    ErrandDemonstrations(30),
    "errand",
    tuple(Arm(keep, tuning_options(keep)) for keep in ("none", "all", "critical")),
    errand_success,
    seeds=tuple(range(240, 252)),
    tuning_seeds=(921, 922, 923),
    episodes=400,
    tuning_episodes=200,
    starts_seed=142,
    measures=(("walks", RATE), ("share", SCORE), ("inside", SCORE)),
    sanity=(("none", "walks", 0.8), ("all", "success", 0.3), ("all", "inside", 1.0), ("critical", "inside", 1.0)),
)


def with_kept_steps(*names: Any) -> Experiment:
    """The experiment with other arms."""
    return replace(ERRAND, arms=tuple(Arm(keep, tuning_options(keep)) for keep in names), sanity=())


CLAIM = Claim(
    name="critical-steps",
    rows=("301",),
    parts=(
        ClaimPart("errand", ERRAND, GreaterThan("success", "critical", "all")),
        ClaimPart("random", with_kept_steps("critical", "random"), GreaterThan("success", "critical", "random"), False),
        ClaimPart("balanced", with_kept_steps("critical", "balanced"),
                  GreaterThan("success", "critical", "balanced"), False),
    ),
    negative_control=NegativeControl(shuffled_steps, "errand", probed=False),
)
