"""Data collection in rounds: episodes are collected with the present policy, then the policy trains on them.

DAgger, off-policy reinforcement learning with a replay buffer, self-imitation and continual learning are this one loop
with other collectors, column changes and learners. Interaction happens in whole, numbered episodes, because episodes
can be stored and environments cannot. A training that was stopped therefore resumes exactly.
"""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np

from ..checkpoint import FromStage
from ..core import AtLeast, AtMost, Schema, Unsupported, UserError, part
from ..data.batch_sampler import BatchSampler, MixtureSampler
from ..data.column_changes import EpisodeTransform
from ..data.episode import Dataset, Episode
from ..data.formats import open_dataset, write_dataset
from ..data.mixture import EXPERT, ROUND
from ..data.replay_buffer import ReplayBuffer
from ..data.window import SamplingWeights
from ..envs.base import Env, HasExpert
from ..envs.episode_wrappers import DEMONSTRATED_START
from ..envs.wrappers import WrappedEnv
from ..evaluate.evaluation import recording_seed
from ..evaluate.failure_detection import with_doubt
from ..evaluate.recording import UniformRandomActor, expert_actor
from ..evaluate.rollout import rollout, rollout_steps, with_success_column
from ..execute.actor import Actor, NoisyActor, PolicyActor, RandomClassActor
from ..execute.planners import FixedBatch
from ..execute.wrappers import ActionWrapper, WrappedActor, wrapped_env_name
from ..files import whole_folder, write_json
from ..heads.base import TemperatureHead
from ..learn.data_collection import DataCollection, Training
from ..learn.fit import Learner
from ..learn.fit_method import ROWS
from ..learn.rewards.reward_models import ConstantReward
from ..learn.run import IS_SUCCESS
from ..learn.targets import REWARD
from ..policy import Policy, camera_sizes
from .action_limits import action_limits, warn_of_action_units
from .batch_composition import PowerLawRehearsal, flag_halves
from .gates import ADVISED, INTERVENTION, POLICY_ACTION, SUPERVISOR_ACTION, DoubtGate, Gate, GatedActor, PersonGate
from .journal import EpisodeJournal, WatchedEnv
from .retention import AllEpisodes, LastRounds, RetentionRule
from .round_checks import check_rewards, scaled_frames, warn_of_hidden_components
from .supervisors import PolicySupervisor
from .unlearned_steps import HANDOVER, UnflaggedParts, count_learned
from .updates import PerNewStep, PerRound, UpdateRule

EXECUTED_ACTION = "executed_action"  # column: the action that was sent, if `action` is a label
COSTS = ("acted", "labeled", "watched")  # metadata of an episode: steps of the supervisor, each counted once
UNFINISHED = "unfinished-"  # before the number of a round in RUN/collection, until all its episodes are collected
FIRST_EPISODE = 1_000_000  # number of the first collected episode; recorded demonstrations have the numbers below
EVALUATIONS = 10  # rounds after which a checkpoint is evaluated, unless the training says otherwise


# -- exploration ----------------------------------------------------------------------------------------------------


class Exploration(ABC):
    """A way for an actor to explore. Subclasses are frozen dataclasses."""

    @abstractmethod
    def build(self, actor: Actor, env: Env, training: Training) -> Actor:
        """Returns the exploring actor. The deployed one stays as it is.

        Args:
            actor: The actor that the method deploys, inside its wrapper.
            env: The environment that this actor acts in, a `WrappedEnv` if there is a wrapper.
        """

    def scaled(self, factor: float) -> Exploration:
        """Returns the exploration of a training with a multiple of the updates. By default it is the same."""
        return self


@part
class GaussianExploration(Exploration):
    """Adds independent Gaussian noise to each action.

    Noisy actions stay within the limits of the environment, so that the environment executes exactly the actions that
    are stored. Where recorded actions of the data are beyond these limits, noisy actions may be as large.

    Args:
        std: Standard deviation, in the units of the action.
    """

    std: Annotated[float, AtLeast(0)] = 0.1

    def build(self, actor, env, training):
        action = env.features["action"]
        if action.kind == "discrete":
            raise UserError(f"the actions of {env.metadata['env']} are classes, to which no noise can be added",
                            where="GaussianExploration",
                            hint="use TemperatureExploration(1.0), or leave exploration out")
        return NoisyActor(actor, action.size, self.std, action_limits(env, training.data))


@part
class TemperatureExploration(Exploration):
    """Acts with another temperature of the policy's head than the deployed one.

    Args:
        temperature: 1 samples from the learned distribution.
    """

    temperature: Annotated[float, AtLeast(0)] = 1.0

    def build(self, actor, env, training):
        policy = training.learner.trained_policy
        if not isinstance(head := policy.config.head, TemperatureHead):
            raise Unsupported(f"{type(head).__name__} has no temperature", where="TemperatureExploration",
                              hint="use a head that has one, such as SquashedGaussian or Categorical, or "
                                   "GaussianExploration")
        exploring = training.actor(policy.with_head(replace(head, temperature=self.temperature)))
        return exploring.actor if isinstance(exploring, WrappedActor) else exploring


@part
class EpsilonGreedy(Exploration):
    """Exploration that replaces the policy's class by a random one in a fraction of the steps.

    The fraction falls linearly from 1 with the updates that have been made. It is the same within a round.

    Args:
        last: The fraction that remains.
        n_updates: Number of updates after which it remains.

    References:
        Mnih et al. (2015), Human-Level Control through Deep Reinforcement Learning, Nature 518.
    """

    last: Annotated[float, AtLeast(0), AtMost(1)] = 0.05
    n_updates: Annotated[int, AtLeast(1)] = 4000

    def build(self, actor, env, training):
        classes = env.features["action"].num_classes
        if classes is None:
            raise UserError(f"the actions of {env.metadata['env']} are numbers, and no classes", where="EpsilonGreedy",
                            hint="use GaussianExploration")
        return RandomClassActor(actor, classes, 1 + (self.last - 1) * min(training.n_updates / self.n_updates, 1.0))

    def scaled(self, factor):
        return replace(self, n_updates=max(round(self.n_updates * factor), 1))


# -- collectors -----------------------------------------------------------------------------------------------------


class EpisodeCollector(ABC):
    """A source of new episodes. Subclasses are frozen dataclasses."""

    @abstractmethod
    def collect(self, actor: Actor, number: int, training: Training) -> Dataset:
        """Collects and returns the episodes of one collection round.

        They depend on the arguments alone, unless a person takes part.

        Args:
            actor: The actor that learns, with its present weights.
            number: Number of the round, from 0.

        Returns:
            At least one episode, with the columns of the training data.
        """

    @property
    def uses_person(self) -> bool:
        """Whether a person takes part, so that a round cannot be collected again."""
        return False

    @property
    def shows_policy(self) -> bool:
        """Whether collected episodes show how the policy acts. Their success is then a score of the policy."""
        return False

    def check(self, env: Env | None, person: Actor | None) -> None:
        """Raises UserError if something that collecting needs is missing. By default nothing is checked.

        Args:
            env: The environment to collect in, if there is one.
            person: The actor through which a person takes part, if there is one.
        """

    def scaled(self, factor: float) -> EpisodeCollector:
        """Returns this collector for a training with `factor` times as many updates. By default nothing changes."""
        return self

    def initial_data(self, data: Dataset, n_rounds: int) -> Dataset:
        """Returns the episodes that are in the replay buffer before the first round. By default these are all training
        episodes."""
        return data


@part
class RolloutCollector(EpisodeCollector):
    """Collector of episodes in which the policy acts in the environment.

    A method with a wrapper collects in `WrappedEnv`, where its policy acts and explores.

    Episode i of round k has the number 1,000,000 + k * n_episodes + i, with n_steps in place of n_episodes if `n_steps`
    is given. If the data have episodes that an earlier training collected with the same seed, the numbers continue
    after them. Seeds are seeds for recording, so no policy is evaluated on starts that it has seen.

    Args:
        n_episodes: Number of episodes in each round. None if `n_steps` is given.
        n_steps: Number of steps in each round, in place of n_episodes. The last episode is complete, so that there may
            be more.
        exploration: How the policy explores. None to act as it would be deployed.
        supervisor: Who advises at every step: "expert" (the environment's own), "person", a policy that a stage
            trained, or a `PolicySupervisor`, which acts with its own executor. Its actions are the column
            `supervisor_action`. None for nobody. A supervisor acts in the environment, outside of a wrapper.
        gate: At which steps the supervisor acts in place of the policy. None for never.
    """

    n_episodes: Annotated[int | None, AtLeast(1)] = None
    exploration: Exploration | None = None
    supervisor: str | FromStage | PolicySupervisor | None = None
    gate: Gate | None = None
    n_steps: Annotated[int | None, AtLeast(1)] = None

    def __post_init__(self):
        if (self.n_episodes is None) == (self.n_steps is None):
            raise UserError("a round has a number of episodes or of steps: give one of the two",
                            where="RolloutCollector",
                            hint="such as RolloutCollector(n_episodes=5) or RolloutCollector(n_steps=1000)")
        if isinstance(self.supervisor, str) and self.supervisor not in ("expert", "person"):
            raise UserError(f"{self.supervisor!r} is not a supervisor", where="RolloutCollector.supervisor",
                            hint='use "expert", "person" or FromStage(NAME)')
        if self.gate is not None and self.supervisor is None:
            raise UserError("a gate chooses between the policy and a supervisor, and there is no supervisor",
                            where="RolloutCollector.gate", hint='add supervisor="expert", or leave the gate out')

    @property
    def uses_person(self):
        return self.supervisor == "person"

    @property
    def shows_policy(self):
        return True

    def check(self, env, person):
        if env is None:
            raise UserError("the method collects episodes, and there is no environment to collect them in",
                            where="Method.collection", hint="name it: --env ENV (env=make(ENV, rows=16) in Python); "
                                                            "understudy methods METHOD says whether it also learns "
                                                            "from stored episodes alone")
        if not isinstance(env, Env):
            raise UserError(f"the environment is of the type {type(env).__name__}, but must be an Env", where="env",
                            hint="make(ID, rows=8) makes one of an environment of Gymnasium, and "
                                 'make("module:factory", rows=8, trust=("module",)) of your own')
        if self.supervisor == "expert" and not isinstance(env, HasExpert):
            raise UserError(f"the supervisor is the expert of the environment, and {env.metadata['env']} has none",
                            where="RolloutCollector.supervisor",
                            hint="choose a method without a supervisor (understudy methods), or write an environment "
                                 "that derives from understudy.envs.HasExpert (docs/environments.md)")
        if self.uses_person and person is None:
            raise UserError("the method collects episodes with a person, and there is nobody",
                            where="RolloutCollector.supervisor",
                            hint="give the actor through which the person acts: train(..., person=actor)")

    def scaled(self, factor):
        return self if self.exploration is None else replace(self, exploration=self.exploration.scaled(factor))

    def practice_env(self, training: Training) -> Env:
        """Returns the environment that episodes run in."""
        return training.env

    def collect(self, actor, number, training):
        practice_env = self.practice_env(training)
        wrapper, base_actor = (actor.wrapper, actor.actor) if isinstance(actor, WrappedActor) else (None, actor)
        wrapped_env = practice_env if wrapper is None else WrappedEnv(practice_env, wrapper)
        if number == 0:
            warn_of_action_units(wrapped_env, training.data)
        explorer = base_actor if self.exploration is None else self.exploration.build(base_actor, wrapped_env, training)
        if self.supervisor is None:
            return self._transformed(self._roll_out(explorer, wrapped_env, number, training), wrapped_env, training)
        supervised = self._supervised_actor(explorer, wrapper, practice_env, number, training)  # outside of the wrapper
        episodes = self._roll_out(supervised, practice_env, number, training)
        attention = self.gate is not None and self.gate.needs_attention
        episodes = episodes.map(partial(with_costs, attention, isinstance(practice_env, WatchedEnv)))
        if wrapper is None:
            return self._transformed(episodes, practice_env, training)
        cast = partial(_cast_actions, practice_env.features, practice_env.features["action"].shape)
        return _wrapped_episodes(scaled_frames(episodes, training.data).map(cast), training, wrapper)

    def _transformed(self, episodes: Dataset, env: Env, training: Training) -> Dataset:
        shape = training.data.features().get("action", env.features["action"]).shape
        cast = partial(_cast_actions, env.features, shape)
        return training.transform(scaled_frames(episodes, training.data).map(cast))

    def _supervised_actor(self, explorer: Actor, wrapper: ActionWrapper | None, env: Env, number: int,
                          training: Training) -> Actor:
        """Builds the actor of a round in which a supervisor may act in place of the policy."""
        if wrapper is not None and type(wrapper).transform_episode is ActionWrapper.transform_episode:
            raise Unsupported("a supervisor acts in the environment, and no actions behind "
                              f"{type(wrapper).__name__} are known that would have led to what it does",
                              where="RolloutCollector.supervisor",
                              hint="leave the supervisor out, or train without the wrapper")
        policy_actor = explorer if wrapper is None else WrappedActor(explorer, wrapper)
        if isinstance(self.gate, DoubtGate):
            policy_actor = with_doubt(policy_actor, self.gate.score, training.data)
        gate = None if self.gate is None else self.gate.build(training, number)
        if is_watched := isinstance(env, WatchedEnv):
            asks = gate is not None and not gate.asks_always
            policy_actor = env.watched(policy_actor, asks)
            gate = PersonGate(gate, number, env.ask) if gate is not None and asks else gate
        supervisor = self._supervising_actor(env, training.person)
        return GatedActor(policy_actor, supervisor, gate, number, replans=not is_watched)

    def _roll_out(self, actor: Actor, env: Env, number: int, training: Training) -> Dataset:
        """Rolls the actor out in the environment, and returns the episodes of a collection round."""
        latest = [len(training.stored[i]) for i in range(len(training.stored))[-env.rows:]]
        seed, run_episodes = recording_seed(training.seed), rollout
        run_steps: Callable[..., Dataset] = partial(rollout_steps, usual_length=float(np.mean(latest or [1.0])))
        if self.supervisor is not None:  # a killed process must not cost its time
            journal = EpisodeJournal(unfinished_round(training.folder, number))
            run_episodes, run_steps = journal.rollout, journal.rollout_steps
        first = _first_number(training.data, seed)
        if self.n_episodes is not None:
            episodes = run_episodes(actor, env, self.n_episodes, seed, first=first + number * self.n_episodes)
        else:
            assert self.n_steps is not None
            episodes = run_steps(actor, env, self.n_steps, seed, first=first + number * self.n_steps)
        if not self.uses_person and any("next.success" in e.steps for e in training.stored if ROUND in e.metadata):
            return episodes.map(with_success_column)  # this process may not have seen the environment report it yet
        return episodes

    def _supervising_actor(self, env: Env, person: Actor | None) -> Actor:
        if isinstance(self.supervisor, PolicySupervisor):
            return self.supervisor.actor(env.features)
        if isinstance(self.supervisor, Policy):  # in place of the reference to a stage
            return PolicyActor(FixedBatch(self.supervisor, ROWS), image_sizes=camera_sizes(self.supervisor.features))
        if self.uses_person:
            assert person is not None  # `check` has refused it
            return person
        return expert_actor(env)


def _first_number(data: Dataset, seed: int) -> int:
    """Returns the number of the first new episode, after all episodes of earlier trainings with this seed."""
    numbers = (e.metadata["number"] for e in data if e.metadata.get("seed") == seed and "number" in e.metadata)
    return max((n + 1 for n in numbers if n >= FIRST_EPISODE), default=FIRST_EPISODE)


def _wrapped_episodes(episodes: Dataset, training: Training, wrapper: ActionWrapper) -> Dataset:
    """Converts episodes of the environment to what a policy behind an action wrapper would have recorded."""
    def converted(episode: Episode) -> Episode:
        columns = {name: training.transform(Dataset([episode.replace({"action": episode.steps[name]})]))[0]
                   .steps["action"] for name in (POLICY_ACTION, SUPERVISOR_ACTION)}
        executed = training.transform(Dataset([episode]))[0]
        env = wrapped_env_name(str(episode.metadata.get("env", "")), wrapper)
        return replace(executed.replace(columns), metadata={**executed.metadata, "env": env})
    return Dataset([converted(episode) for episode in episodes], episodes.metadata)


def unfinished_round(folder: Path | None, number: int) -> Path | None:
    """Returns the folder that stores the episodes of a round until all of them are collected."""
    return None if folder is None else folder / f"{UNFINISHED}{number:06d}"


def round_folders(folder: Path, prefix: str = "") -> list[Path]:
    """Returns the folders of the collection rounds in RUN/collection, in order, without copies made by hand.

    Args:
        prefix: `UNFINISHED` for the rounds that are not complete.
    """
    return sorted(folder.glob(prefix + 6 * "[0-9]"))


def with_costs(needs_attention: bool, takes_over: bool, episode: Episode) -> Episode:
    """Adds to an episode's metadata how many steps the supervisor acted, labeled and watched.

    Args:
        takes_over: Whether it is a person, who acts or does not, and labels nothing.
    """
    acted = int(np.sum(episode.steps[INTERVENTION]))
    asked = int(np.sum(episode.steps[ADVISED])) if ADVISED in episode.steps else len(episode)
    others = (0, len(episode) - acted) if needs_attention else (0 if takes_over else asked - acted, 0)
    return replace(episode, metadata={**episode.metadata, **dict(zip(COSTS, (acted, *others), strict=True))})


def random_episodes(env: Env, n_steps: int, seed: int) -> Dataset:
    """Returns complete episodes of uniformly random actions, for a training that begins without demonstrations.

    Args:
        n_steps: Number of steps, at least.
    """
    return rollout_steps(UniformRandomActor(env), env, n_steps, recording_seed(seed))


def _cast_actions(features: Schema, shape: tuple[int, ...], episode: Episode) -> Episode:
    """Casts actions to the dtype of the environment. Policies act in floating point, also if actions are classes.

    Args:
        shape: Shape of the actions of the data. It may be () where the environment has (1,).
    """
    action, columns = features["action"], {}
    for name in ("action", POLICY_ACTION, SUPERVISOR_ACTION):
        if name in episode.steps:
            column = np.asarray(episode.steps[name]).astype(action.dtype)
            columns[name] = column.reshape(len(column), *(shape if {shape, action.shape} == {(), (1,)} else
                                                          action.shape))
    schema = {k: replace(f, shape=columns[k].shape[1:]) if k in columns else f for k, f in episode.schema.items()}
    return replace(episode.replace(columns), schema=schema)


@dataclass(frozen=True)
class SupervisorLabels:
    """Relabels each step with the action that the supervisor advised, also where the policy acted (DAgger).

    What was sent stays in the column `executed_action`.

    References:
        Ross et al. (2011), A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning,
        arXiv:1011.0686.
    """

    into: str = "action"

    def __call__(self, episode: Episode) -> Episode:
        if SUPERVISOR_ACTION not in episode.steps:
            raise UserError(f"there is no column {SUPERVISOR_ACTION!r}; there are {', '.join(sorted(episode.steps))}",
                            where="SupervisorLabels", hint='collect with RolloutCollector(supervisor="expert")')
        labels = np.asarray(episode.steps[SUPERVISOR_ACTION])
        sent = np.asarray(episode.steps["action"])
        return replace(episode.replace({self.into: labels, SUPERVISOR_ACTION: None, EXECUTED_ACTION: sent}),
                       schema=episode.schema)


@dataclass(frozen=True)
class DemonstrationsAsInterventions:
    """Adds the column `intervention`, true at every step, to demonstrations, as collected episodes have it.

    A learner can then weigh or draw steps by it.
    """

    def __call__(self, episode: Episode) -> Episode:
        if INTERVENTION in episode.steps:
            return episode
        return episode.replace({INTERVENTION: np.ones(len(episode), bool)})


@dataclass(frozen=True)
class TaskSequenceCollector(EpisodeCollector):
    """Collector that gives the training data task by task, for continual learning without an environment.

    Tasks come in the order in which they first appear in the data. The episodes of the first task are in the replay
    buffer before the first round. Round k gives the episodes of task k + 1.

    Args:
        by: The metadata, or the column, that names the task of an episode. "dataset" has the parts of a mixture (see
            `data.mixture.mix`).
    """

    by: str = "task"

    def initial_data(self, data, n_rounds):
        tasks = self._tasks(data)
        if n_rounds >= len(tasks):
            raise UserError(f"{n_rounds} rounds need {n_rounds + 1} tasks, and the data have {len(tasks)}: "
                            f"{', '.join(tasks)}", where="CollectionRounds.n_rounds",
                            hint=f"use n_rounds={len(tasks) - 1}" if len(tasks) > 1 else "take data of several tasks")
        return data.select(next(iter(tasks.values())))

    def collect(self, actor, number, training):
        return training.data.select(list(self._tasks(training.data).values())[number + 1])

    def _tasks(self, data: Dataset) -> dict[str, list[int]]:
        """Returns the indices of the episodes of each task, in the order in which the tasks first appear."""
        tasks: dict[str, list[int]] = {}
        for number, episode in enumerate(data):
            task = episode.metadata.get(self.by)
            if task is None and self.by in episode.steps and len(episode):
                task = np.asarray(episode.steps[self.by])[0]
            if task is None:
                raise UserError(f"the episode has no {self.by!r} in its metadata or columns",
                                where=f"TaskSequenceCollector, episode {number}",
                                hint='name what tells the tasks apart, such as by="dataset"')
            tasks.setdefault(str(task), []).append(number)
        return tasks


# -- the loop -------------------------------------------------------------------------------------------------------


@part
class CollectionRounds(DataCollection):
    """Collects episodes in rounds and trains after each.

    Each round collects episodes with the present policy, relabels them, lets the learner annotate them, stores them,
    and then makes updates on all episodes that stay in the replay buffer.

    Args:
        relabel: Changes of the collected episodes, after the method's transforms.
        mixture_weights: Fractions of each batch that come from the episodes that were there before the first round,
            and from collected ones: (0.5, 0.5) for symmetric sampling (RLPD). Empty to draw all steps equally often.
        reset_learner: Build the learner again in each round, with the statistics of all episodes that stay. Use it with
            ``updates=PerStoredStep(...)``, since a new learner has seen none of the stored steps.
        initial_updates: Updates on the given episodes before the first round.
        sampling_weights: Relative rate at which each step starts a window. None draws all steps equally often.
        half_where: Column of flags. Half of each batch begins at steps where it is true, and half at steps where it is
            false. Empty to draw all steps equally often.
        compare_rounds: Evaluate the checkpoint before the first round and after each. Otherwise after ten of them.
        collect_with: Which policy acts in a round: the one after the "last" updates, or the "best" checkpoint so far.
            With "best", nobody spends time on a policy that the last round made worse.
        updates_meanwhile: Another process makes the updates of a round while the next one is collected, with the policy
            from before these updates. A robot waits only if the updates take longer than the collection.
        leave_out: Columns of flags. Steps at which one is true are stored and not learned. They divide an episode, so
            that no return goes beyond them.
        rehearsal: How much of each batch comes from each earlier round, if every round is a separate task. None to draw
            all steps equally often.

    References:
        Ball et al. (2023), Efficient Online Reinforcement Learning with Offline Data, arXiv:2302.02948.

    Example:
        >>> rounds = CollectionRounds(10, RolloutCollector(5, supervisor="expert"), relabel=(SupervisorLabels(),))
        >>> policy = train(replace(method, collection=rounds), data, "runs/dagger", env=make("fork", rows=16))
    """

    n_rounds: Annotated[int, AtLeast(1)]
    collector: EpisodeCollector
    relabel: tuple[EpisodeTransform, ...] = ()
    retention: RetentionRule = field(default_factory=AllEpisodes)
    mixture_weights: tuple[float, ...] = ()
    updates: UpdateRule = field(default_factory=PerNewStep)
    reset_learner: bool = False
    initial_updates: Annotated[int, AtLeast(0)] = 0
    sampling_weights: SamplingWeights | None = None
    compare_rounds: bool = False
    half_where: str = ""
    collect_with: Literal["last", "best"] = "last"
    updates_meanwhile: bool = False
    leave_out: tuple[str, ...] = ()
    rehearsal: PowerLawRehearsal | None = None

    def __post_init__(self):
        if self.updates_meanwhile and self.reset_learner:
            raise UserError("a new learner in each round has no policy that could act while it is trained",
                            where="CollectionRounds.updates_meanwhile", hint="leave it out, or reset_learner")
        if len(self.mixture_weights) not in (0, 2):
            raise UserError(f"there must be two weights, and there are {len(self.mixture_weights)}",
                            where="CollectionRounds.mixture_weights",
                            hint="give one for the first episodes and one for collected ones, such as (0.5, 0.5)")
        if self.half_where and (self.mixture_weights or self.sampling_weights or self.leave_out):
            raise UserError("both say what a batch consists of", where="CollectionRounds.half_where",
                            hint="leave it out, or mixture_weights, sampling_weights and leave_out")
        if self.rehearsal and (self.mixture_weights or self.half_where):
            raise UserError("both say what a batch consists of", where="CollectionRounds.rehearsal",
                            hint="leave it out, or mixture_weights and half_where")
        if self.rehearsal and not isinstance(self.collector, TaskSequenceCollector):
            raise UserError(f"the rounds of {type(self.collector).__name__} are not tasks",
                            where="CollectionRounds.rehearsal", hint="leave it out, or use TaskSequenceCollector")

    @property
    def learns_first_data(self):
        only_new = isinstance(self.retention, LastRounds) and not self.retention.keep_initial
        return bool(self.initial_updates) or not only_new

    def check(self, env, person):
        self.collector.check(env, person)

    def describe(self):
        first = f"{self.initial_updates:,} updates, then " if self.initial_updates else ""
        best = ", by the best policy so far" if self.collect_with == "best" else ""
        meanwhile = ", in another process during the next round" if self.updates_meanwhile else ""
        is_fixed = isinstance(self.updates, PerRound) and (self.n_rounds > 1 or self.initial_updates)
        total = f", {self.initial_updates + self.n_rounds * self.updates.count:,} in all" if is_fixed else ""
        return f"{first}{self.n_rounds} rounds with {self.updates.describe()}{total}{meanwhile}{best}"

    def scaled(self, factor, updates):
        initial = max(round(self.initial_updates * factor), min(self.initial_updates, 1))
        each = PerRound(max(round((updates - initial) / self.n_rounds), 1))
        return replace(self, initial_updates=initial, updates=each, collector=self.collector.scaled(factor))

    def initial_data(self, data):
        return self.collector.initial_data(data, self.n_rounds)

    def run(self, training):
        if self.updates_meanwhile and training.processes.count > 1:
            raise Unsupported(f"{training.processes.count} processes train together, and none of them is free to act",
                              where="CollectionRounds.updates_meanwhile", hint="train with one, or leave it out")
        rounds, batch_size = StoredRounds(training.folder), training.learner.config.batch_size
        every = 1 if self.compare_rounds else max(self.n_rounds // EVALUATIONS, 1)
        if not self.reset_learner or training.n_updates <= self.initial_updates:
            training.restore()
        data = first = ReplayBuffer.of(training.annotated(self.initial_data(training.data).map(_forget_round)))
        if training.processes.first:
            rounds.drop_after(training.n_updates, self, data, batch_size)
        training.processes.wait()
        end = self.initial_updates
        if training.n_updates <= end:
            training.update(self._sampler(training.learner, data, first), end, evaluate=self.compare_rounds)

        def collect(number: int, stored: ReplayBuffer) -> None:
            training.stored = stored
            if training.processes.first and number not in rounds:
                rounds.store(number, self._collect(number, training))
        for number in range(self.n_rounds):
            collect(number, data)
            training.processes.wait()
            episodes = rounds[number]
            data = ReplayBuffer.of(self.retention.keep(data.extend(episodes)))
            if not len(data):
                raise UserError(f"no episode is left after round {number}", where="CollectionRounds.retention",
                                hint="keep more episodes")
            start, end = end, end + self.updates.number(episodes.steps, data.steps, batch_size)
            if training.n_updates > end:
                continue
            if training.n_updates == start:
                kept = [e for e in data if e.metadata.get(ROUND) == number]
                training.log(**_summary(number, episodes, kept), **self._policy_score(episodes))
            if self.reset_learner:
                training.build_learner(data)
                if training.n_updates > start:  # the training resumes within this round
                    training.restore()
            last, meanwhile = number == self.n_rounds - 1, None
            if self.updates_meanwhile and not last and number + 1 not in rounds:
                meanwhile = partial(collect, number + 1, data)
            training.update(self._sampler(training.learner, data, first), end,
                            evaluate=last or (number + 1) % every == 0, meanwhile=meanwhile)
            if not (last or self.reset_learner):  # not before the checkpoint, which the next round begins with again
                policy = training.learner.policy
                policy.codec.extend_statistics(policy.scan_for_statistics(episodes))

    def _collect(self, number: int, training: Training) -> Dataset:
        policy = training.best_policy() if self.collect_with == "best" else None
        episodes = self.collector.collect(training.actor(policy), number, training)
        for change in self.relabel:
            episodes = episodes.map(change)
        if REWARD in training.learner.config.extra:
            check_rewards(number, episodes, training.data)
        warn_of_hidden_components(training.learner.policy, episodes)
        episodes = training.learner.annotate(episodes, number)
        if not len(episodes):
            raise UserError(f"round {number} has no episodes", where="CollectionRounds.collector",
                            hint="collect at least one, and leave none out in the method's transforms")
        return episodes.map(partial(_mark_round, number))

    def _sampler(self, learner: Learner, data: ReplayBuffer, first: ReplayBuffer) -> BatchSampler:
        if learner.config.compares:  # it reads demonstrations, which no retention rule removes
            for name in ("mixture_weights", "half_where", "leave_out", "rehearsal"):
                if getattr(self, name):
                    raise UserError(f"{type(learner.config).__name__} has as many demonstrations beside each batch",
                                    where=f"CollectionRounds.{name}", hint="leave it out")
            return learner.batch_sampler(first.union(data), self.sampling_weights)
        if self.half_where:
            return flag_halves(learner, data, self.half_where)
        learned = Dataset(UnflaggedParts(data, self.leave_out), data.metadata) if self.leave_out else data
        if self.rehearsal:
            return self.rehearsal.sampler(learner, learned, self.sampling_weights)
        collected = [ROUND in episode.metadata for episode in learned]
        if not self.mixture_weights or all(collected) or not any(collected):
            if any(collected) and isinstance(getattr(learner.config, "reward", None), ConstantReward):
                raise UserError("a step of a demonstration has another reward than one of the policy, which only a "
                                "mixture tells apart", where="CollectionRounds.mixture_weights",
                                hint="give both fractions, such as (0.5, 0.5), and keep the first episodes")
            return learner.batch_sampler(learned, self.sampling_weights)
        parts = [learned.select(i for i, c in enumerate(collected) if c == is_new) for is_new in (False, True)]
        samplers = [learner.batch_sampler(part, self.sampling_weights) for part in parts]
        return MixtureSampler(samplers, self.mixture_weights)

    def _policy_score(self, episodes: Dataset) -> dict[str, float]:
        """Returns the success (without a supervisor) or mean return of a round. Empty if the round does not show it."""
        episodes = Dataset([e for e in episodes if not e.metadata.get(DEMONSTRATED_START)])
        if not self.collector.shows_policy or self.updates_meanwhile or not len(episodes):  # an earlier policy acted
            return {}
        aided = [bool(np.any(e.steps[INTERVENTION])) if INTERVENTION in e.steps else False for e in episodes]
        if all("success" in e.metadata for e in episodes):
            alone = [bool(e.metadata["success"]) and not a for e, a in zip(episodes, aided, strict=True)]
            return {"score": float(np.mean(alone)), IS_SUCCESS: 1.0}
        returns = _summary(0, episodes, episodes).get("round/return")
        return {} if returns is None or any(aided) else {"score": returns, IS_SUCCESS: 0.0}


def _mark_round(number: int, episode: Episode) -> Episode:
    return replace(episode, metadata={**episode.metadata, ROUND: number})


def _forget_round(episode: Episode) -> Episode:
    """Removes the round number of an earlier training from an episode, and marks it as no demonstration."""
    metadata = {k: v for k, v in episode.metadata.items() if k != ROUND}
    return replace(episode, metadata={**metadata, EXPERT: False}) if ROUND in episode.metadata else episode


def _summary(number: int, episodes: Dataset, kept: Iterable[Episode]) -> dict[str, float]:
    """Returns the metrics of a collection round that are logged.

    Args:
        kept: The episodes that are learned.
    """
    metrics = {"round": number, "round/episodes": len(episodes), "round/steps": episodes.steps}
    if all("next.reward" in e.steps for e in episodes):
        metrics["round/return"] = float(np.mean([np.sum(e.steps["next.reward"][:len(e)]) for e in episodes]))
    if all("success" in e.metadata for e in episodes):
        metrics["round/success"] = float(np.mean([bool(e.metadata["success"]) for e in episodes]))
    for name in COSTS:
        if all(name in e.metadata for e in episodes):
            metrics[f"round/{name}"] = sum(e.metadata[name] for e in episodes)
    if all(HANDOVER in e.steps for e in episodes):
        metrics["round/learned"] = count_learned(kept)
    return metrics


class StoredRounds:
    """The collection rounds stored in RUN/collection, or in memory without a folder."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.in_memory: dict[int, Dataset] = {}

    def path(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{number:06d}"

    def numbers(self) -> list[int]:
        """Returns the numbers of the stored collection rounds, in order."""
        return [int(p.name) for p in round_folders(self.folder)] if self.folder else sorted(self.in_memory)

    def __contains__(self, number: int) -> bool:
        return number in self.in_memory if self.folder is None else self.path(number).is_dir()

    def __getitem__(self, number: int) -> Dataset:
        if self.folder is None:
            return self.in_memory[number]
        return open_dataset(self.path(number) / "episodes.npz")

    def store(self, number: int, episodes: Dataset) -> None:
        if self.folder is None:
            self.in_memory[number] = Dataset(list(episodes), episodes.metadata)
            return
        with whole_folder(self.path(number)) as part:
            write_dataset(episodes, part / "episodes.npz", "npz")
            write_json(part / "round.json", {"round": number, "episodes": len(episodes), "steps": episodes.steps})
        self._remove_unfinished(number)

    def _remove_unfinished(self, number: int) -> None:
        if (folder := unfinished_round(self.folder, number)) is not None:
            shutil.rmtree(folder, ignore_errors=True)

    def drop_after(self, n_updates: int, config: CollectionRounds, first: Dataset, batch_size: int) -> None:
        """Removes the collection rounds after this many updates, so that they are collected again."""
        start = acted = config.initial_updates  # updates before the round's own; updates of its acting policy
        whole, stored = 0, Dataset(list(first))
        for number in self.numbers():
            if acted > n_updates or number != whole:
                self._refuse_person(config, number, self.path(number), acted, n_updates)
                part = self.path(number).with_name(f".{number:06d}.part")  # never half a round under its name
                shutil.rmtree(part, ignore_errors=True)  # of a program that was killed in the next line but one
                self.path(number).rename(part)
                shutil.rmtree(part)
            else:
                whole = number + 1
                stored = config.retention.keep(Dataset([*stored, *self[number]]))
                before = start
                start += config.updates.number(self[number].steps, stored.steps, batch_size)
                acted = before if config.updates_meanwhile else start
        for folder in round_folders(self.folder, UNFINISHED) if self.folder else ():
            number = int(folder.name[-6:])
            if number >= whole and acted > n_updates:
                self._refuse_person(config, number, folder, acted, n_updates)
            if number != whole or acted > n_updates:
                self._remove_unfinished(number)

    @staticmethod
    def _refuse_person(config: CollectionRounds, number: int, folder: Path, start: int, n_updates: int) -> None:
        """Raises UserError if episodes in which a person took part would have to be collected again."""
        if config.collector.uses_person:
            raise UserError(f"round {number} was collected with a person after {start} updates, and the last "
                            f"checkpoint has {n_updates}", where=folder,
                            hint="put the later checkpoints back, or move this folder away to collect the round again")
