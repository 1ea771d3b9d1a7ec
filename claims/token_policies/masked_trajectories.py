"""Row 288: does hiding different fractions of trajectories teach more than hiding always the same fraction?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    RATE,
    SCORE,
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
from understudy.core import keys, uniform
from understudy.data.augment import RandomMasking
from understudy.data.episode import Dataset, Episode
from understudy.data.operations import Operation
from understudy.data.relabel import ConcatColumns
from understudy.data.window import Window
from understudy.envs.toy import distance
from understudy.envs.toys.four_rooms import SHUT, SPEED, FourRooms, FourRoomsExpert
from understudy.envs.toys.maze import walk
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.execute.planners import MaskedGoalPlanner
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method, training_data
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder, TokenEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
STATE, GOAL, LEFT, ACTION = "observation.state", "observation.goal", "observation.time_left", "action"
LENGTH = 10  # steps of a window: 20 states and actions
SHORTEST, RADIUS = 5, 0.3  # steps to the last goal, at least; m
STEPS = 40  # of an episode
WALK = FourRoomsExpert(waypoints=True)
N_GOALS = {"one goal": 1, "three goals": 3}  # the last one at `SHORTEST` steps or later, the others evenly before it


# -- data -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stroller(Actor):
    """Walks from place to place, with 0.4 to 1 times the speed of the expert of `FourRooms` in each episode."""

    def start(self, obs, key):
        pace = 0.4 + 0.6 * uniform(key, torch.zeros_like(key), (1,), stream=9)
        return {"pace": pace, "walk": WALK.start(obs, key)}

    def act(self, obs, state):
        action, walked = WALK.act(obs, state["walk"])
        return state["pace"] * action, {**state, "walk": walked}


def strolls(episodes: int, seed: int) -> Dataset:
    """Episodes of `Stroller` in the four rooms."""
    return rollout(Stroller(), FourRooms(min(episodes, ROWS), STEPS, "play"), episodes, seed)


@dataclass(frozen=True)
class StrollEpisodes(DemonstrationSource):
    """Episodes without a task: strolls through the four rooms."""

    episodes: int = 200

    @cached_load
    def load(self, seed):
        return strolls(self.episodes, recording_seed(seed))


@dataclass(frozen=True)
class CutAtGoals(Operation):
    """Cuts episodes at random steps into pieces of 1 to `LENGTH` - 1 steps. The last state of each piece is its goal.

    Args:
        repeats: How often each episode is cut, each time at other steps.
    """

    repeats: int = 5

    def apply(self, data):
        rng, pieces = np.random.default_rng(0), []
        for episode in (e for _ in range(self.repeats) for e in data):
            state, action = (np.asarray(episode.steps[k]) for k in (STATE, ACTION))
            ends = np.cumsum(rng.integers(1, LENGTH, len(action)))
            for first, end in zip([0, *ends], [*ends[ends < len(action)], len(action)], strict=False):
                piece = state[first:end + 1]
                remaining_steps = np.arange(len(piece) - 1, -1, -1, dtype=np.float32)[:, None]
                pieces.append(Episode({STATE: piece, GOAL: np.repeat(piece[-1:], len(piece), 0), LEFT: remaining_steps,
                                       ACTION: action[first:end]}))
        return Dataset(pieces)


# -- tasks ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GoalReacher:
    """A method, and where in the window it is given the goals.

    Args:
        early: Give each goal at a third of its step.
    """

    method: Method
    early: bool = False


def reach_goals(experiment, option: GoalReacher, data: Dataset, seed: int, episodes: int, starts: int
                ) -> dict[str, list[float]]:
    """Trains a method. Its goals are states of other strolls, each with the step at which it was reached.

    Returns:
        For each start, whether the goals of each task of `N_GOALS` are reached in time, and "tasks", the fraction of
        tasks in which they are. One "explained" of masked policies: see `explained_fraction`.
    """
    policy = train_policy(experiment, option.method, data, seed).eval()
    path, last = _paths(episodes, starts)
    measures = {}
    for name, n in N_GOALS.items():
        steps = np.ceil(last[:, None] * np.arange(1, n + 1) / n).astype(int)  # (episodes, goals)
        act = follow_goals if GOAL in policy.inputs else complete_trajectory
        given_steps = np.ceil(steps / 3).astype(int) if option.early else steps
        walked = act(policy, path, steps, given_steps)
        reached = distance(walked, path)[np.arange(episodes)[:, None], steps] < RADIUS
        measures[name] = reached.all(1).astype(float).tolist()
    measures["tasks"] = np.mean(list(measures.values()), 0).tolist()
    if ACTION in policy.inputs:
        measures["explained"] = [explained_fraction(policy, training_data(strolls(ROWS, starts), option.method))]
    return measures


def _paths(episodes: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Pieces of strolls, (episodes, LENGTH, 2), and the steps of their last goals, (episodes,)."""
    drawn = uniform(keys(seed, range(episodes)), torch.zeros(episodes, dtype=torch.int64), (2,), stream=10).numpy()
    first = (drawn[:, 0] * (STEPS - LENGTH)).astype(int)
    states = np.stack([np.asarray(e.steps[STATE])[:STEPS] for e in strolls(episodes, seed)])
    path = states[np.arange(episodes)[:, None], first[:, None] + np.arange(LENGTH)]
    return path, SHORTEST + (drawn[:, 1] * (LENGTH - SHORTEST)).astype(int)


@torch.no_grad()
def complete_trajectory(policy: Policy, path: np.ndarray, steps: np.ndarray, given_steps: np.ndarray) -> np.ndarray:
    """Executes the actions of one completed trajectory.

    Args:
        policy: A policy that completes trajectories.
        path: States, (n, LENGTH, 2). Row 0 is the current one.
        steps: Rows of the states that are goals, (n, goals).
        given_steps: Rows at which the policy is given these states.

    Returns:
        The states that are visited, (n, LENGTH, 2).
    """
    n, states = len(path), torch.from_numpy(path)
    noise = policy.noise(keys(0, range(n)), torch.zeros(n, dtype=torch.int64))
    if steps.shape[1] == 1:
        goal, remaining_steps = states[range(n), steps[:, 0]], torch.from_numpy(given_steps).float()
        obs = {STATE: states[:, :1], GOAL: goal[:, None], LEFT: remaining_steps[:, None]}
        return _walk(path, MaskedGoalPlanner(policy).plan(obs, noise).numpy())
    state, is_given = torch.zeros_like(states), torch.zeros(n, LENGTH, dtype=torch.bool)
    for step, row in zip((np.zeros(n, int), *steps.T), (np.zeros(n, int), *given_steps.T), strict=True):
        state[range(n), row], is_given[range(n), row] = states[range(n), step], True
    hidden = torch.zeros_like(is_given)
    obs = {STATE: state, f"{STATE}?": is_given, ACTION: torch.zeros_like(state), f"{ACTION}?": hidden}
    return _walk(path, policy.plan(obs, noise)[..., :2].numpy())


@torch.no_grad()
def follow_goals(policy: Policy, path: np.ndarray, steps: np.ndarray, given_steps: np.ndarray) -> np.ndarray:
    """Acts step by step with a policy that reads the next goal and the number of steps that are left.

    Args and result are those of `complete_trajectory`.
    """
    n, rows = len(path), np.arange(len(path))
    noise = policy.noise(keys(0, range(n)), torch.zeros(n, dtype=torch.int64))

    def act(at, step):
        upcoming = np.minimum((given_steps <= step).sum(1), given_steps.shape[1] - 1)
        remaining_steps = np.maximum(given_steps[rows, upcoming] - step, 1)
        obs = {STATE: at, GOAL: path[rows, steps[rows, upcoming]], LEFT: remaining_steps[:, None].astype(np.float32)}
        return policy.plan({k: torch.from_numpy(v)[:, None] for k, v in obs.items()}, noise)[:, 0].numpy()
    return _walk(path, act)


def _walk(path, actions):
    visited, shut = [path[:, 0]], np.broadcast_to(SHUT, (len(path), *SHUT.shape))
    for step in range(LENGTH - 1):
        action = actions(visited[-1], step) if callable(actions) else actions[:, step]
        visited.append(walk(visited[-1], np.clip(action, -SPEED, SPEED), shut))
    return np.stack(visited, 1)


@torch.no_grad()
def explained_fraction(policy: Policy, data: Dataset) -> float:
    """The fraction of the squared actions that a masked policy explains, where 15 % of the entries are hidden."""
    batch = policy.windows(data).batch(1000, 0)
    obs = RandomMasking((STATE, ACTION), (0.15,))(batch.obs, torch.Generator().manual_seed(0))
    errors = policy.plan(obs, torch.zeros(1000, LENGTH, 0))[..., :2] - batch.action[..., :2]
    hidden = ~obs[f"{ACTION}?"] & batch.mask
    return 1 - float(errors[hidden].square().sum() / batch.action[..., :2][hidden].square().sum())


# -- arms -------------------------------------------------------------------------------------------------------------


UPDATES, OPTIMIZER = 4000, OptimizerConfig(lr=2e-3)


def masked(*ratios: float) -> Method:
    """The policy, data and updates are the same for all ratios."""
    entries, joint = (STATE, ACTION), ConcatColumns((ACTION, STATE), offset=0)
    window = Window(LENGTH, LENGTH, obs_offset=LENGTH - 1, obs_pad_mask=True)
    policy = PolicyConfig(Regression(), MLP(256, 2), TokenEncoder(16), window=window, inputs=entries,
                          target=joint.into, augmentations=(RandomMasking(entries, ratios),))
    return Method(policy, learner=BehaviorCloning(UPDATES, 128, OPTIMIZER), transforms=(joint,))


def cloning() -> Method:
    """Goal-conditioned cloning that reads the number of steps that are left, with as many updates."""
    policy = PolicyConfig(Regression(), MLP(256, 2), ConcatEncoder(), window=Window(), inputs=(STATE, GOAL, LEFT))
    return Method(policy, learner=BehaviorCloning(UPDATES, 128, OPTIMIZER), transforms=(CutAtGoals(),))


def goal_reacher_arm(name: str, method: Method) -> Arm:
    return Arm(name, (GoalReacher(method),))


def with_early_goals(experiment: Experiment) -> Experiment:
    return experiment.change_options(lambda option: replace(option, early=True))


PLAY = Experiment(
    StrollEpisodes(),
    "four_rooms",
    (
        goal_reacher_arm("mixed ratios", masked(0.15, 0.35, 0.55, 0.75, 0.9)),
        goal_reacher_arm("ratio 0.15", masked(0.15)),
        goal_reacher_arm("ratio 0.55", masked(0.55)),
        goal_reacher_arm("ratio 0.9", masked(0.9)),
        goal_reacher_arm("cloning", cloning()),
    ),
    reach_goals,
    tuned_by="tasks",
    seeds=(880, 881, 882, 883, 884),
    episodes=1000,
    measures=(("tasks", SCORE), ("one goal", RATE), ("three goals", RATE), ("explained", Measure("real"))),
    starts_seed=880,
    sanity=(("mixed ratios", "one goal", 0.5), ("ratio 0.15", "explained", 0.5), ("ratio 0.55", "explained", 0.5),
            ("ratio 0.9", "one goal", 0.5), ("cloning", "one goal", 0.5)),
)
OVER_SMALL, OVER_MIDDLE = (GreaterThan("tasks", "mixed ratios", f"ratio {ratio}") for ratio in ("0.15", "0.55"))
NOT_BELOW_LARGE = GreaterThan("tasks", "mixed ratios", "ratio 0.9", -0.02)

CLAIM = Claim(
    name="masked-trajectories",
    rows=("288",),
    parts=(
        ClaimPart("one and three goals", PLAY, AllOf((OVER_SMALL, OVER_MIDDLE, NOT_BELOW_LARGE))),
        ClaimPart("cloning", PLAY, GreaterThan("three goals", "mixed ratios", "cloning")),
    ),
    negative_control=NegativeControl(with_early_goals, "one and three goals", removes=(OVER_SMALL, OVER_MIDDLE)),
)
