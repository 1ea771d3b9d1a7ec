"""Parts of claims about policies that act with few evaluations of their network: the fork, where a mean is a mistake.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from evidence.measures import train_policy
from understudy.checkpoint import FromStage
from understudy.data.episode import Dataset, Episode
from understudy.data.window import Window
from understudy.envs import make
from understudy.evaluate.behavior.modes import (
    ModeFunction,
    fork_mode,
    mode_counts,
    mode_entropy,
    rollout_repeated_starts,
)
from understudy.execute.actor import PolicyActor
from understudy.execute.base import Executor
from understudy.execute.chunking import RecedingHorizon
from understudy.execute.planners import FixedBatch
from understudy.heads.base import Head
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit import LearnerConfig
from understudy.learn.method import InitializeFrom, Method, Stage
from understudy.learn.optimizer import OptimizerConfig
from understudy.nets.encoders import ConcatEncoder
from understudy.nets.mlp import MLP
from understudy.policy import Policy, PolicyConfig

ROWS = 100  # environments side by side; results do not depend on it
N_REPEATS = 10  # rollouts of each start
N_SIDES = 2  # of the pillar
TEACHER = "teacher"


def passes_left(episode: Episode) -> bool:
    return bool(episode.steps["observation.state"][:, 1].mean() > 0)


@dataclass(frozen=True)
class SampledMethod:
    """A method whose trained weights act with a given head.

    Arms that differ only in this head, or in what is trained after the same stages, share the training of each seed.

    Args:
        head: The head that acts, such as that of the method with another number of sampling steps.
    """

    method: Method
    head: Head


def chunk_method(head: Head, steps: int, horizon: int) -> Method:
    """A method on the fork that executes 4 steps of each plan, with an MLP of 128 x 1 blocks.

    Args:
        head: The head.
        steps: Number of updates of behavior cloning, on batches of 128.
        horizon: Number of steps that are planned.
    """
    window = Window(n_obs_steps=1, horizon=horizon)
    policy = PolicyConfig(head, trunk=MLP(128, 1), encoder=ConcatEncoder(), window=window)
    learner = BehaviorCloning(steps=steps, batch_size=128, optimizer=OptimizerConfig(lr=3e-3))
    return Method(policy, RecedingHorizon(4), learner)


def after_teacher(teacher: Method, head: Head, learner: LearnerConfig) -> Method:
    """A method that starts from the weights of a teacher, which is its stage `TEACHER`.

    Args:
        teacher: How the teacher is trained.
        head: The head of the student. Its network has the shapes of the teacher's.
        learner: How the student is trained.
    """
    return replace(teacher, policy=replace(teacher.policy, head=head), learner=learner,
                   stages=(Stage(TEACHER, teacher),), initialize_from=(InitializeFrom(FromStage(TEACHER)),))


def train_sampled(experiment, option: SampledMethod, data: Dataset, seed: int) -> Policy:
    """The trained policy of a method, with the head that acts."""
    return train_policy(experiment, option.method, data, seed).with_head(option.head)


def success_and_sides(
    experiment, option: SampledMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """Trains a method and rolls each start out `N_REPEATS` times.

    Returns:
        What `measure_sides` returns.
    """
    policy = train_sampled(experiment, option, data, seed)
    return measure_sides(rollout_starts(policy, option.method.executor, experiment.env, episodes, starts))


def rollout_starts(policy: Policy, executor: Executor, env: str, episodes: int, starts: int) -> Dataset:
    """Rolls each start out `N_REPEATS` times.

    Args:
        executor: Its executor.
        episodes: Number of rollouts.
    """
    count = max(1, episodes // N_REPEATS)
    actor = PolicyActor(FixedBatch(policy, ROWS), executor)
    return rollout_repeated_starts(actor, make(env, rows=ROWS), count, N_REPEATS, seed=starts)


def measure_sides(rollouts: Dataset) -> dict[str, list[float]]:
    """`measure_modes` of rollouts on the fork. The mode is the side on which the pillar is passed."""
    return measure_modes(rollouts, fork_mode, N_SIDES)


def measure_modes(rollouts: Dataset, mode_of: ModeFunction, n_modes: int) -> dict[str, list[float]]:
    """Measures rollouts.

    Args:
        rollouts: Rollouts of `rollout_repeated_starts`.
        mode_of: Mode of an episode.
        n_modes: Number of modes.

    Returns:
        "success" of each rollout. "entropy" of each start: of the modes of its successful rollouts, in units of its
        largest value. A start without success counts as 0.
    """
    by_start: dict[int, list[Episode]] = {}
    for e in rollouts:
        by_start.setdefault(e.metadata["start"], []).append(e)
    entropy = []
    for some in by_start.values():
        counts = mode_counts(Dataset(some), mode_of)
        entropy.append(mode_entropy(list(counts.values()), n_modes) if counts else 0.0)
    return {"success": [float(e.metadata["success"]) for e in rollouts], "entropy": entropy}
