"""Row 136: does a policy that learns from trials of rising proficiency do better from trial to trial?"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    RATE,
    SCORE,
    AboveBound,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    EquivalentTo,
    Experiment,
    GreaterThan,
    Measure,
    NegativeControl,
)
from understudy.claims.measures import train_policy
from understudy.core import Feature, keys, put, take, uniform
from understudy.data.episode import Dataset
from understudy.data.episode_concat import NEW_TRIAL, EpisodeConcat
from understudy.envs.episode_wrappers import FixedHorizonEnv, MultiTrialEnv
from understudy.envs.grid import MOVES
from understudy.envs.raster import COLOR_OF_ROLE, Canvas
from understudy.envs.toy import Toy, named_vector
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor, PolicyActor
from understudy.execute.planners import FixedBatch
from understudy.heads.likelihood.categorical import Categorical
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.cec import cec

ROWS = 100  # environments side by side; results do not depend on it
SEEN, GOAL = "observation.state", "simulator.state"
N_ARMS, REACH, LIMIT = 4, 2, 3  # arms of the cross; cells of each; steps of a trial, in which one arm can be visited
N_TRIALS = 5
KNOWS = {0: 0.0, 1: 0.5, 2: 1.0}  # proficiency -> fraction of the walkers who know where the goal is


class Cross(Toy):
    """A walker looks for the goal at the end of one of four arms, which is only seen there.

    observation.state (3): cell, counted from the middle, and 1 at the goal. simulator.state (1): the arm with the goal.
    action (1): 0 right, 1 up, 2 left, 3 down. A step off the cross does nothing. Reaching the goal ends the episode
    with reward 1. info["goal"]: the arm with the goal.

    Best possible success: 1.0, attained by `CrossWalker(1.0)`. Without knowing the goal it is 0.25.

    Args:
        limit: Number of steps of an episode.
    """

    low, high = 0.0, N_ARMS - 1.0
    state_columns = (SEEN, GOAL)

    def __init__(self, rows: int = 1, limit: int = LIMIT):
        self.features = {SEEN: named_vector("x", "y", "goal"), GOAL: Feature("int64", (1,)),
                         "action": Feature("int64", (1,), "discrete", num_classes=(N_ARMS,))}
        self.metadata = {"env": "cross", "version": 1, "fps": 5, "limit": limit, "optimum": 1.0,
                         "success": "the walker was at the end of the arm with the goal"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        goal = (N_ARMS * uniform(key, torch.zeros_like(key), (1,)).numpy()[:, 0]).astype(np.int64)
        return {"at": np.zeros((len(key), 2), np.int64), "goal": goal}

    def observe(self):
        position_and_flag = np.concatenate([self.state["at"], self._arrived()[:, None]], 1)
        return {SEEN: position_and_flag.astype(np.float32), GOAL: self.state["goal"][:, None]}

    def state_from_columns(self, steps):
        return {"at": np.rint(steps[SEEN][:, :2]).astype(np.int64), "goal": steps[GOAL][:, 0]}

    def advance(self, action):
        s = self.state
        onward = s["at"] + MOVES[np.rint(action[:, 0]).astype(np.int64)]
        inside = (onward == 0).any(1) & (np.abs(onward).max(1) <= REACH)
        s["at"] = np.where(inside[:, None], onward, s["at"])
        success = self._arrived()
        return success.astype(np.float32), success, np.zeros_like(success)

    def _arrived(self) -> np.ndarray:
        return (self.state["at"] == REACH * MOVES[self.state["goal"]]).all(1)

    def step(self, action):
        out = super().step(action)
        return replace(out, info={**out.info, "goal": torch.from_numpy(self.state["goal"].copy())})

    def expert(self):
        return CrossWalker(1.0)

    def map(self):
        return {"x": (-REACH - 0.5, REACH + 0.5), "y": (-REACH - 0.5, REACH + 0.5), "path": (SEEN, 0, 1), "shapes": []}

    def frame(self, row):
        canvas = Canvas(1, 250, (-REACH - 0.5, -REACH - 0.5), 2 * REACH + 1)
        for moved, role in ((REACH * MOVES[self.state["goal"][row]], "goal"), (self.state["at"][row], "agent")):
            canvas.circle(moved[None].astype(np.float32), 0.4 if role == "goal" else 0.3, COLOR_OF_ROLE[role])
        return canvas.image[0]


@dataclass(frozen=True)
class CrossWalker(Actor):
    """Walks to the end of an arm.

    Args:
        knows: Probability that it is the arm with the goal. Otherwise the arm is drawn at random.
    """

    knows: float

    def start(self, obs, key):
        drawn = uniform(key, torch.zeros_like(key), (2,), stream=6)
        return {"arm": torch.where(drawn[:, 0] < self.knows, obs[GOAL][:, 0], (N_ARMS * drawn[:, 1]).long())}

    def act(self, obs, state):
        return state["arm"][:, None], state


def make_trial(rows: int) -> FixedHorizonEnv:
    """One trial, which goes on until the walker has seen where it arrived."""
    return FixedHorizonEnv(Cross(rows))


@dataclass(frozen=True)
class WalkersOfAllLevels(DemonstrationSource):
    """Episodes of walkers of all three levels, with the metadata "proficiency" and "goal".

    Args:
        episodes: Number of episodes of each level.
    """

    episodes: int

    @cached_load
    def load(self, seed):
        env, demonstrations = make_trial(ROWS), []
        for level, knows in KNOWS.items():
            first = level * self.episodes
            rollouts = rollout(CrossWalker(knows), env, self.episodes, recording_seed(seed), first=first)
            demonstrations += [replace(e, metadata={**e.metadata, "proficiency": level}) for e in rollouts]
        return Dataset(demonstrations)


@dataclass(frozen=True)
class ForgetfulActor(Actor):
    """An actor that starts again, with an empty memory, at each new trial."""

    actor: Actor

    def start(self, obs, key):
        return {"key": key, "trial": torch.zeros_like(key), "inner": self.actor.start(obs, key)}

    def act(self, obs, state):
        is_new = obs[NEW_TRIAL][:, 0] > 0
        trial, inner = state["trial"] + is_new.long(), state["inner"]
        if len(which := is_new.nonzero().flatten()):
            numbers = zip(state["key"].tolist(), trial.tolist(), strict=True)
            fresh = self.actor.start(obs, torch.cat([keys(key, [number]) for key, number in numbers]))
            inner = put(inner, which, take(fresh, which))
        action, inner = self.actor.act(obs, inner)
        return action, {"key": state["key"], "trial": trial, "inner": inner}


@dataclass(frozen=True)
class MemoryMethod:
    """A method, and whether it forgets at the end of each trial when it acts.

    Args:
        forgets: The memory is cleared at each new trial.
    """

    method: Method
    forgets: bool = False


def trial_successes(experiment, option: MemoryMethod, data: Dataset, seed: int, episodes: int, starts: int
                    ) -> dict[str, list[float]]:
    """Trains a method and lets it act in several trials with the same goal.

    Returns:
        One value per episode. "first" and "last": 0 or 1, whether this trial succeeded. "gain": their difference.
        "success": fraction of the successful trials.
    """
    policy = train_policy(experiment, option.method, data, seed)
    actor: Actor = PolicyActor(FixedBatch(policy, ROWS), option.method.executor)
    env = MultiTrialEnv(make_trial(ROWS), N_TRIALS, redraw=False)
    rollouts = rollout(ForgetfulActor(actor) if option.forgets else actor, env, episodes, seed=starts)
    trials = np.array([successes(e) for e in rollouts])
    return {"first": trials[:, 0].tolist(), "last": trials[:, -1].tolist(),
            "gain": (trials[:, -1] - trials[:, 0]).tolist(), "success": trials.mean(1).tolist()}


def successes(episode) -> list[float]:
    """Whether each trial of an episode succeeded, 0 or 1."""
    starts = np.flatnonzero(np.asarray(episode.steps[NEW_TRIAL])[:len(episode), 0])
    return [float(part.sum() > 0) for part in np.split(np.asarray(episode.steps["next.reward"]).ravel(), starts[1:])]


def joined_episodes_arm(name: str, *transforms: EpisodeConcat, forgets: bool = False) -> Arm:
    """The same network, head, data and updates. Arms differ in how the episodes are joined."""
    base = cec("proficiency", N_OBS_STEPS, WIDTH, DEPTH, features=Cross().features)
    policy = replace(base.policy, head=Categorical(temperature=1.0), inputs=(SEEN,))
    learner = BehaviorCloning(UPDATES, 32, OptimizerConfig(lr=2e-3, warmup_steps=50))
    return Arm(name, (MemoryMethod(replace(base, policy=policy, learner=learner, transforms=transforms), forgets),))


def with_forgetting(experiment: Experiment) -> Experiment:
    """The memory of the policy that learned from the curriculum is cleared at each new trial when it acts."""
    return experiment.replace_arms(joined_episodes_arm("ordered", JOINED, forgets=True))


N_OBS_STEPS, WIDTH, DEPTH, UPDATES = N_TRIALS * LIMIT, 32, 2, 1000
JOINED = EpisodeConcat("proficiency", n_episodes=1000, per_group=(1, 2), into="", same="goal")
CROSS = Experiment(
    WalkersOfAllLevels(200),
    "cross",
    (
        joined_episodes_arm("ordered", JOINED),
        joined_episodes_arm("shuffled", replace(JOINED, order="shuffled")),
        joined_episodes_arm("reversed", replace(JOINED, order="falling")),
        joined_episodes_arm("best only", replace(JOINED, groups=(2,), per_group=(3, 6))),
        joined_episodes_arm("single", forgets=True),
        joined_episodes_arm("ordered, cleared", JOINED, forgets=True),
    ),
    trial_successes,
    seeds=(1360, 1361, 1362, 1363, 1364),
    episodes=500,
    measures=(("first", RATE), ("last", RATE), ("gain", Measure("real", "rate")), ("success", SCORE)),
    starts_seed=1360,
    sanity=(("ordered", "first", 0.15), ("shuffled", "last", 0.35)),
)
IMPROVES = AboveBound("gain", "ordered", 0.1)
ORDER_HELPS = GreaterThan("last", "ordered", "shuffled")

CLAIM = Claim(
    name="cross-episodic-curriculum",
    rows=("136",),
    parts=(
        ClaimPart("cross", CROSS, AllOf((IMPROVES, ORDER_HELPS))),
        ClaimPart("memory cleared", CROSS, EquivalentTo("success", "ordered, cleared", "single", 0.1)),
        ClaimPart("opposite order", CROSS, GreaterThan("last", "ordered", "reversed"), is_decisive=False),
        ClaimPart("best demonstrator alone", CROSS, GreaterThan("last", "ordered", "best only"), is_decisive=False),
    ),
    negative_control=NegativeControl(with_forgetting, "cross", removes=(IMPROVES, ORDER_HELPS)),
)
