"""Row 340: do ACT and Diffusion Policy work on demonstrations that are read from LeRobot's files?"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from claims.worlds.curation import cached_load
from understudy.audit.action_motion import check_action_lag
from understudy.claims.base import (
    SCORE,
    AboveBound,
    AllOf,
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    NegativeControl,
    expert_of,
)
from understudy.claims.measures import closed_loop
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.envs import make
from understudy.evaluate.evaluation import recording_seed
from understudy.evaluate.rollout import rollout
from understudy.execute.actor import Actor
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.method import Method
from understudy.learn.optimizer import OptimizerConfig
from understudy.methods.behavior_cloning.bc import bc
from understudy.methods.chunking.act import act
from understudy.methods.generative.diffusion_policy import diffusion_policy
from understudy.nets.mlp import MLP

ENV_OPTIONS = (("blocks", 1), ("instruction", "click"))
PAUSE = 4  # steps that a demonstrator waits before the hand closes
HORIZON = 8  # actions in a chunk
UPDATES = 2500


@dataclass(frozen=True)
class HesitantActor(Actor):
    """Keeps the hand open and still for some steps before it closes, as people do.

    Args:
        actor: Actor in "tabletop", with velocities as actions.
        pause: Number of steps.
    """

    actor: Actor
    pause: int

    def start(self, obs, key):
        return {"inner": self.actor.start(obs, key), "waited": torch.zeros_like(key)}

    def act(self, obs, state):
        action, inner = self.actor.act(obs, state["inner"])
        closes = (action[:, 2] > 0) & (obs["observation.state"][:, 2] < 0.5)
        waits = closes & (state["waited"] < self.pause)
        action = torch.where(waits[:, None], torch.tensor([0.0, 0.0, -1.0]), action)
        return action, {"inner": inner, "waited": torch.where(closes, state["waited"] + 1, 0)}


@dataclass(frozen=True)
class LeRobotDemonstrations(DemonstrationSource):
    """Successful episodes of an expert in "tabletop", written as a LeRobot data set and read again.

    The metadata of the data say "is_exact": whether all columns are equal, bit by bit, to those that were written, and
    what is read, written and read again has the same fingerprint.

    Args:
        pause: Number of steps that the expert waits before the hand closes.
        shift: Number of rows by which the actions are late after the import. 0 for a correct import.
    """

    episodes: int
    pause: int = PAUSE
    shift: int = 0

    @cached_load
    def load(self, seed):
        env = make("tabletop", 16, (), **dict(ENV_OPTIONS))
        rollouts = rollout(HesitantActor(expert_of(env), self.pause), env, self.episodes, recording_seed(seed))
        data, is_exact = read_written(rollouts.filter(lambda e: e.metadata["success"]))
        return Dataset([delay_actions(e, self.shift) for e in data], {**data.metadata, "is_exact": is_exact})


def read_written(data: Dataset) -> tuple[Dataset, bool]:
    """Writes data as a LeRobot data set (v3.0) and reads them.

    Returns:
        The data as read, in memory, and whether they are equal to what was written, also after another round.
    """
    with tempfile.TemporaryDirectory() as folder:
        once, twice = Path(folder, "once"), Path(folder, "twice")
        write_dataset(data, once, "lerobot")
        read = open_dataset(once)
        write_dataset(read, twice, "lerobot")
        is_exact = read.fingerprint() == open_dataset(twice).fingerprint() and len(read) == len(data)
        is_exact = is_exact and all(map(has_equal_steps, data, read))
        return Dataset([Episode({k: np.array(v) for k, v in e.steps.items()}, e.metadata) for e in read],
                       read.metadata), is_exact


def has_equal_steps(a: Episode, b: Episode) -> bool:
    """Whether two episodes have the same columns, bit by bit."""
    return set(a.steps) == set(b.steps) and all(
        x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
        for x, y in ((np.asarray(a.steps[k]), np.asarray(b.steps[k])) for k in a.steps))


def delay_actions(episode: Episode, rows: int) -> Episode:
    """The episode with each action some rows later. The first one is repeated, and the last ones are lost."""
    action = np.asarray(episode.steps["action"])
    late = np.concatenate([np.repeat(action[:1], rows, 0), action])[:len(action)]
    return episode.replace({"action": late})


def success_and_import(experiment, method: Method, data: Dataset, seed: int, episodes: int, starts: int
                       ) -> dict[str, list[float]]:
    """Trains and rolls out a method, and checks its data.

    Returns:
        "success", 0 or 1 per start. "exact", 0 or 1: whether the files gave back what was written. "aligned", 0 or 1:
        whether the audit finds no delay between the actions and the motion (`check_action_lag`).
    """
    success = closed_loop(experiment, method, data, seed, episodes, starts)["success"]
    is_late = any(f.severity == "warning" for f in check_action_lag(data))
    return {"success": success, "exact": [float(data.metadata["is_exact"])], "aligned": [float(not is_late)]}


def small_method_arm(name: str, method: Method) -> Arm:
    """A method with a small network, a larger learning rate and few updates, which are the same for all."""
    policy = replace(method.policy, trunk=MLP(64, 1), inputs=("observation.state", "observation.click"))
    learner = BehaviorCloning(UPDATES, 64, OptimizerConfig(lr=2e-3, warmup_steps=50))
    return Arm(name, (replace(method, policy=policy, learner=learner),))


def with_late_actions(experiment: Experiment) -> Experiment:
    """Every action is in the row after its own."""
    return replace(experiment, source=replace(experiment.source, shift=1))


TABLETOP = Experiment(
    LeRobotDemonstrations(60),
    "tabletop",
    (
        small_method_arm("act", act(HORIZON)),
        small_method_arm("diffusion policy", diffusion_policy(horizon=HORIZON, n_action_steps=HORIZON // 2)),
        small_method_arm("one step", bc()),
    ),
    success_and_import,
    seeds=(1340, 1341, 1342, 1343, 1344),
    env_options=ENV_OPTIONS,
    episodes=200,
    measures=(("exact", SCORE), ("aligned", SCORE)),
    starts_seed=1340,
)
WITHOUT_PAUSES = replace(TABLETOP, source=replace(TABLETOP.source, pause=0), arms=TABLETOP.arms[2:])
ACT_BETTER = GreaterThan("success", "act", "one step")
DIFFUSION_BETTER = GreaterThan("success", "diffusion policy", "one step")
ACT_WORKS = AboveBound("success", "act", 0.5)
DIFFUSION_WORKS = AboveBound("success", "diffusion policy", 0.5)
EXACT = AboveBound("exact", "act", 0.9)
ALIGNED = AboveBound("aligned", "act", 0.5)

CLAIM = Claim(
    name="lerobot-examples",
    rows=("340",),
    parts=(
        ClaimPart("tabletop", TABLETOP,
                  AllOf((ACT_BETTER, DIFFUSION_BETTER, ACT_WORKS, DIFFUSION_WORKS, EXACT, ALIGNED))),
        ClaimPart("without pauses", WITHOUT_PAUSES, AboveBound("success", "one step", 0.8)),
    ),
    negative_control=NegativeControl(
        with_late_actions, "tabletop", removes=(ACT_BETTER, DIFFUSION_BETTER, ACT_WORKS, DIFFUSION_WORKS, ALIGNED)
    ),
    mechanism_only="A small network replaces those of the tutorial's recipes, with which ACT reached 0.01 in a pilot.",
)
