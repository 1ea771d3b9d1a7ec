"""Checks whether data suit a method, in one place, before anything is built from them.

`preflight` asks all of it, and `train`, `choose`, `improve` and `inspect` print its findings in the same words.
Contradictions within the files of a data set are found earlier, by `understudy.audit`.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..core import (
    DataError,
    DataWarning,
    Schema,
    Unsupported,
    UserError,
    missing_action,
    role,
    short_name,
    unknown_name,
)
from ..data.column_changes import ReturnToGo
from ..data.episode import Dataset, episode_fingerprints
from ..data.formats import check_finite
from ..data.formats.describe import component_ranges
from ..data.image_layout import check_image_layout
from ..data.mixture import EXPERT, expert_episodes
from ..data.opening.column_selection import missing_column_hint
from ..data.opening.stream import ShardStream
from ..data.packed_columns import check_columns, check_steps
from ..data.running_statistics import unlearned_components
from ..data.segments import CutSegments
from ..data.shown_demonstration import ShowDemonstration, task_of
from ..data.tasks import task_texts
from ..data.text_columns import TaskText
from ..data.window import Window
from ..hints import command_line, pluralize
from ..policy import Policy, PolicyConfig, policy_inputs
from .critics.goal_conditioned import GoalConditioned, check_goals
from .fit import no_demonstrations
from .method import Method, find_references
from .objectives.representation import RepresentationLearning
from .rewards.preference_reward import PREFERENCE, SEGMENT, check_comparisons
from .rewards.reward_models import ConstantReward, RewardedConfig, RewardModelConfig
from .rewards.similarity import SIMILARITY, check_queries
from .targets import REWARD, TERMINATED, check_rewards, return_findings, time_limit_findings
from .training_episodes import EpisodeSplit, TrainingEpisodes, split_episodes, training_episodes

VAL_FRACTION = 0.1  # of the episodes, which `train` holds out by default
MANY_CLASSES = 100  # more choices than keyboards and gamepads have; actions with more are probably quantities


@dataclass(frozen=True)
class Preflight:
    """What the checks found out about data and a method before a training.

    Attributes:
        recorded: The episodes before the method's transforms.
        findings: What the user should know, in the order in which it was asked. An error is the last one, because what
            is asked later presumes the earlier answers.
        split: The episodes that are not trained on.
        fingerprints: `episode_fingerprints` of the recorded episodes.
        episodes: The episodes after the method's transforms. None if these are not known before its stages are trained.
    """

    recorded: Dataset
    findings: tuple[DataWarning | UserError, ...]
    split: EpisodeSplit = EpisodeSplit()
    fingerprints: Mapping[str, Any] = field(default_factory=dict)
    episodes: TrainingEpisodes | None = None

    @property
    def warnings(self) -> list[str]:
        """The texts of all warnings."""
        return [str(finding) for finding in self.findings if isinstance(finding, DataWarning)]

    @property
    def error(self) -> UserError | None:
        """The error with which a training would end. None if it would not."""
        return next((finding for finding in self.findings if isinstance(finding, UserError)), None)


def preflight(method: Method, data: Dataset, *, val_fraction: float | Sequence[int] = VAL_FRACTION,
              include_interrupted: bool = False, stream: ShardStream | None = None, decoded: bool = True) -> Preflight:
    """Checks everything that can be wrong with data for a method, without building anything or reading images.

    Args:
        data: Recorded episodes, before the method's transforms.
        val_fraction: As in `train.RunConfig`, like the next two.
        stream: The stream of which `data` are the first episodes.
        decoded: Whether camera frames have the sizes with which they are trained on. Otherwise transforms, which may
            read frames, are not asked about.

    Example:
        >>> preflight(find_method("bc"), open_dataset("demos")).warnings
        ['There is one episode to learn from: ...']
    """
    findings: list[DataWarning | UserError] = []
    split, fingerprints, episodes = EpisodeSplit(), {}, None
    try:  # an error ends the questions, and keeps the findings before it
        check_steps(data)
        if stream is None:  # later episodes of a stream may have words
            _check_task_texts(method, data)
        split = split_episodes(data, val_fraction, include_interrupted)
        findings.extend(_left_out_findings(split, len(data)))
        findings.extend(demonstration_findings(method, data, split.excluded, stream))
        if _transforms_are_known(method) and (decoded or not method.transforms):
            episodes = training_episodes(data, method, split)
            findings.extend(episode_findings(method, episodes, decoded))
            findings.extend(reward_findings(method, episodes.learned))
        fingerprints = episode_fingerprints(data)
        if split.held_out or method.collection is None or method.learner.compares:  # else often random
            findings.extend(_copy_findings(fingerprints["digests"], split))
        if stream is None:
            findings.extend(_length_findings(split.learned(data)))
    except UserError as error:
        findings.append(error)
    return Preflight(data, tuple(findings), split, fingerprints, episodes)


def tell(findings: Iterable[DataWarning | UserError], stacklevel: int = 2, *, errors_alone: bool = False) -> None:
    """Shows findings as warnings, and raises the first error.

    Args:
        stacklevel: As in `warnings.warn`, seen from the caller: 2 for what called it.
        errors_alone: Whether nothing is warned of, because another process does.
    """
    for finding in findings:
        if isinstance(finding, UserError):
            raise finding
        if not errors_alone:
            warnings.warn(finding, stacklevel=stacklevel + 1)


def _transforms_are_known(method: Method) -> bool:
    """Returns whether the transformed episodes are known before any stage is trained."""
    return method.wrapper is None and not any(find_references(method.transforms))


# -- recorded episodes ------------------------------------------------------------------------------------------------


def _left_out_findings(split: EpisodeSplit, n_episodes: int) -> Iterator[DataWarning]:
    if not (left_out := split.left_out):
        return
    numbers = ", ".join(map(str, left_out[:8])) + ", ..." * (len(left_out) > 8)
    what = ("was interrupted while it was recorded and is" if len(left_out) == 1 else
            "were interrupted while they were recorded and are")
    yield DataWarning(f"{len(left_out)} of {n_episodes} episodes {what} left out of training: {numbers}. "
                      f"{command_line('train', '--include-interrupted')} (include_interrupted=True in Python) trains "
                      f"on {'it' if len(left_out) == 1 else 'them'}.")


def _check_task_texts(method: Method, data: Dataset) -> None:
    """Raises DataError if a method follows words, and no episode has any."""
    reads_words = any(isinstance(part, TaskText) for part in method.transforms)
    has_other_labels = any(isinstance(part, CutSegments) for part in method.transforms)
    if not reads_words or has_other_labels or isinstance(method.learner, RepresentationLearning):
        return
    if not any(str(text) for episode in data for text in task_texts(episode)):
        path = data.metadata.get("path")
        raise DataError(
            "no episode has a task in words (the column or the metadata 'task'), and the method learns to follow words",
            where=path or "data set",
            hint="give all episodes the same words: "
                 + command_line("view", "make", path or "DATA", "--out", "told.json", "--label", "task=WORDS")
                 + "; or each its own, in a column 'task' (--columns task=NAME for one with another name); "
                 "or choose a method without words, such as gcbc")


def demonstration_findings(method: Method, data: Dataset, excluded: Collection[int] = (),
                           stream: ShardStream | None = None) -> Iterator[DataWarning]:
    """Checks whether the data have the demonstrations that a method needs.

    If it shows one, there must be another of its task for each episode. If it compares with them, others must be there.
    `ShowDemonstration` leaves episodes out that have none, and refuses episodes without a task.

    Args:
        excluded: Numbers of the episodes that are held out, or not trained on for another reason.
        stream: The stream of which `data` are the first episodes.
    """
    yield from _expert_findings(method, data, excluded)
    if not any(isinstance(part, ShowDemonstration) and not part.own for part in method.transforms):
        return
    if stream is not None:
        raise Unsupported("demonstrations of the same task are looked for among all episodes, and a stream has only "
                          "some in memory", where="ShowDemonstration", hint="train without a stream (--buffer-size)")
    yield from _shown_task_findings(data, excluded)


def _expert_findings(method: Method, data: Dataset, excluded: Collection[int]) -> Iterator[DataWarning]:
    """Checks the demonstrations and other episodes that a method imitates or compares."""
    path, learner = data.metadata.get("path") or "data set", method.learner
    reward = learner.reward if isinstance(learner, RewardedConfig) else None
    demonstrations, n_kept = expert_episodes(data), sum(i not in excluded for i in range(len(data)))
    expert = [data[i].metadata for i in demonstrations if i not in excluded]
    imitates = learner.compares or isinstance(reward, RewardModelConfig)
    if imitates and EXPERT in data[0].steps and (others := sum(
            not np.all(data[i].steps.get(EXPERT, True)) for i in demonstrations)):
        raise DataError(f"{pluralize(others, 'episode')} would count as demonstrations, although the column {EXPERT} "
                        "is False there: the label of an episode is metadata", where=path,
                        hint="save one value per episode; or train on the demonstrations, understudy view make DATA "
                             "--filter expert=true --out VIEW, with the others as --prior if the method reads them")
    if imitates and (failures := sum(not metadata.get("success", True) for metadata in expert)):
        yield DataWarning(f"{path}: {failures} of {len(expert)} demonstrations did not succeed, and are imitated like "
                          "the others. To leave them out: understudy view make DATA --filter success=true --out VIEW")
    if n_kept and not expert and imitates:
        raise no_demonstrations(data)
    if isinstance(reward, ConstantReward) and len(expert) < n_kept:
        raise DataError(f"only {len(expert)} of {n_kept} episodes are demonstrations, but a constant reward is that "
                        "of all of them", where=path,
                        hint="leave the others out (understudy view make DATA --delete), or choose dac")
    if learner.compares and learner.needs_others and method.collection is None and len(demonstrations) == len(data):
        raise DataError(f"all {len(data)} episodes are demonstrations, and a learner that tells them from others needs "
                        "both", where=path,
                        hint="give others as --prior. Those among these episodes are left out by understudy view make "
                             "DATA --delete NUMBERS --out DEMONSTRATIONS, and are kept by the same with --select")


def _shown_task_findings(data: Dataset, excluded: Collection[int]) -> Iterator[DataWarning]:
    """Checks whether there is another demonstration of the task of each episode."""
    path = data.metadata.get("path") or "data set"
    tasks = [task_of(episode) for episode in data.iterate_once()]
    if not tasks or "" in tasks:
        return
    if len(set(tasks)) == len(tasks):
        raise DataError(f"the {len(tasks)} episodes show {len(tasks)} tasks, and no two of them the same", where=path,
                        hint="record several episodes of each task, or name equal tasks with equal words")
    trained = [task for i, task in enumerate(tasks) if i not in excluded]
    alone = sum(n for n in Counter(trained).values() if n == 1)
    if alone == len(trained):
        raise DataError(f"the {alone} episodes that are trained on show {alone} tasks, and no two of them the same",
                        where=path, hint="hold out fewer episodes (--val-fraction), or record more of each task")
    if alone:
        yield DataWarning(f"{path}: {alone} of {len(trained)} episodes are the only ones of their task. They are left "
                          "out, because there is no other to show."
                          + (" Held-out episodes do not count." if excluded else ""))


def _copy_findings(digests: Sequence[str], split: EpisodeSplit) -> Iterator[DataWarning]:
    """Warns of episodes that equal an earlier one, especially between training and held-out episodes."""
    excluded = split.excluded
    learned = [digest for i, digest in enumerate(digests) if i not in excluded]
    used, distinct = [*learned, *(digests[i] for i in split.held_out)], set(learned)
    leaked = sum(digests[i] in distinct for i in split.held_out)
    if copies := len(used) - len(set(used)):
        effect = (f"held-out episodes with a copy in training: {leaked} of {len(split.held_out)}; the validation error "
                  "is too low, and may choose another best checkpoint" if leaked else "each counts twice in training")
        yield DataWarning(f"copies of earlier episodes: {copies} of {len(used)}; {effect}. "
                          "understudy inspect lists the copies, and understudy view make --delete leaves them out.")


def _length_findings(learned: Dataset) -> Iterator[DataWarning]:
    """Warns if there is only one episode to learn from, or if no episode has more than one step."""
    if len(learned) == 1:
        yield DataWarning("There is one episode to learn from: a policy sees one start, and no error on other episodes "
                          "can be measured. Record more episodes, or check how the data are divided into episodes.")
    elif len(learned) and max(learned.lengths) == 1:
        yield DataWarning("No episode has more than one step, so that nothing is learned of what follows an action. "
                          "Check how the data are divided into episodes.")


# -- episodes after the transforms ------------------------------------------------------------------------------------


def episode_findings(method: Method, episodes: TrainingEpisodes, decoded: bool = True) -> Iterator[DataWarning]:
    """Checks whether episodes have what a method reads: columns, classes, finite numbers, windows and labels.

    Args:
        episodes: The episodes after the method's transforms. The error gives the number of the first episode that does
            not fit, counted over all episodes.
        decoded: See `preflight`.

    Raises:
        UserError: A column that the policy or the learner reads is missing, a column contains text instead of
            numbers, or the data have no observations.
    """
    data, config = episodes.complete, method.policy
    features, path = data.features(), data.metadata.get("path")
    inputs = policy_inputs(config, features, path or "data set", path or "DATA")
    sources = {goal.into: goal.column for goal in config.window.goals}
    read = {sources.get(name, name): name for name in (*inputs, config.target) if name}
    _check_presence(method, data, features, inputs, read)
    check_columns(data, [name for name in (*read, *method.learner.extra) if decoded or features[name].kind != "image"])
    for name in (sources.get(name, name) for name in (*config.inputs, config.target) if name):
        if features[name].kind == "string":
            raise UserError(f"column {name!r} contains text, not numbers", where=path or "data set",
                            hint="store numbers there; instructions belong in the column 'task'")
    _check_classes(data, [name for name in read if features[name].kind == "discrete"])
    if config.target:
        _check_target_steps(data, config.window, config.target)
    yield from value_findings(config, inputs, {name: features[name] for name in read}, data)
    yield from padding_findings(config.window, data)
    yield from label_findings(method, episodes.learned, features)


def _check_presence(method: Method, data: Dataset, features: Schema, inputs: Sequence[str], read: Collection[str]
                    ) -> None:
    """Checks that the columns that a method reads exist, and that images are images."""
    path, learner = data.metadata.get("path") or "data set", method.learner
    if missing := [name for name in learner.extra if name not in features]:
        raise DataError(
            f"{type(learner).__name__} learns from {' and '.join(learner.extra)}, but there is no column "
            f"{missing[0]}; the columns are {', '.join(features)}",
            where=path,
            hint=missing_column_hint(missing[0], data))
    if isinstance(learner, RewardedConfig) and isinstance(learner.reward, RewardModelConfig):
        learner.reward.check(inputs, features)
    for name in read:
        if name not in features:
            raise missing_action(features, path) if name == "action" else unknown_name(
                "column", name, sorted(features), path)
    check_image_layout(features, [name for name in inputs if name in features], path)


def _check_classes(data: Dataset, names: list[str]) -> None:
    for name in names:
        lowest = min((int(np.min(e.steps[name], initial=0)) for e in data), default=0)
        if lowest < 0:
            raise DataError(
                f"{name} has integers from {lowest} on, and integers are read as classes, numbered from 0",
                where=data.metadata.get("path") or "data set",
                hint=f"if they are quantities: --columns {short_name(name)}=COLUMN:quantities, or save them as "
                     "float32; otherwise number the classes from 0")


def _check_target_steps(data: Dataset, window: Window, target: str) -> None:
    """Checks that at least one window has a target step inside its episode."""
    if window.action_offset <= 0 < window.action_offset + window.horizon:
        return

    def reached(episode):  # whether any step of its windows' targets lies in it
        rows = min(len(episode.steps[target]), len(episode) + 1)
        return window.action_offset < rows and window.action_offset + window.horizon > 1 - len(episode)
    if not any(map(reached, data)):
        raise UserError(f"no episode is long enough for the targets of action_offset={window.action_offset} and "
                        f"horizon={window.horizon}", where="policy.window.action_offset",
                        hint="look less far, or take longer episodes")


def check_training_data(policy: Policy, data: Dataset) -> None:
    """Checks that all episodes have the columns that a policy reads or predicts, of one shape and finite.

    Images are not read. Actions must be numbers. The error names the first episode that is not so.
    """
    sources = {goal.into: goal.column for goal in policy.window.goals}
    features = {sources.get(name, name): f for name, f in policy.features.items() if name}
    tell(value_findings(policy.config, policy.inputs, features, data), stacklevel=3)


def value_findings(config: PolicyConfig, inputs: Collection[str], features: Schema, data: Dataset
                   ) -> Iterator[DataWarning]:
    """Checks the target of a policy, and whether its columns `features` are finite and survive rounding to float32."""
    yield from _target_findings(config, inputs, features)
    check_columns(data, features)
    check_finite(data, [name for name, f in features.items() if f.kind != "image"])
    for name in (name for name, f in features.items() if f.dtype == "float64"):
        yield from _rounding_findings(name, data)


def _target_findings(config: PolicyConfig, inputs: Collection[str], features: Schema) -> Iterator[DataWarning]:
    """Checks the target: it must be numbers, and no input. Warns of whole numbers with very many values as choices."""
    name, window = config.target, config.window
    if not name:
        return
    target = features[name]
    if role(name) == "action" and name in inputs and window.obs_offset >= window.action_offset:
        raise UserError(f"the policy reads {name!r} at the step at which it predicts it, and so learns to copy it",
                        where="PolicyConfig.inputs", hint="leave it out, or read the action of the step before: "
                        "LastAction() among the transforms")
    if role(name) == "action" and target.kind not in ("vector", "discrete"):
        read = "are read as text" if target.kind == "text" else f"have the kind {target.kind!r}"
        raise UserError(f"Column {name!r} has values of type {target.dtype}, which {read}. A policy predicts numbers.",
                        where="train", hint="Store actions as float32, or numbers of choices as int64"
                             + (f", or add --columns {name}=COLUMN:classes." if target.kind == "text" else "."))
    most = max(target.num_classes or (0,)) if target.kind == "discrete" else 0
    if most > MANY_CLASSES:
        yield DataWarning(f"Column {name!r} has whole numbers (type {target.dtype}), which are read as numbers of "
                          f"choices: {most:,} choices that have no order. If they are quantities, such as pixels, "
                          f"store them as float32, or add --columns {name}=COLUMN:quantities.")


def _rounding_findings(name: str, data: Dataset) -> Iterator[DataWarning]:
    """Warns if float32, in which networks compute, rounds float64 numbers by a hundredth of their range."""
    rows = [column.reshape(len(column), -1) for e in data if len(column := np.asarray(e.steps[name]))]
    if not rows:
        return
    low, high = (function([function(x, 0) for x in rows], 0) for function in (np.min, np.max))
    rounding = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32))
    if (is_lost := (high > low) & (rounding > 0.01 * (high - low))).any():
        i = is_lost.argmax()
        yield DataWarning(f"Column {name!r} has numbers from {low[i]:.10g} to {high[i]:.10g}. Networks compute in "
                          f"float32, which rounds them to multiples of {rounding[i]:g}. Subtract a constant, so that "
                          "they are near 0.")


def padding_findings(window: Window, data: Dataset) -> Iterator[DataWarning]:
    """Warns if a window is so much longer than the episodes that over two thirds of it are always padding.

    It looks at the episodes that the policy is trained on, after the method's transforms.
    """
    # Episodes of the toy fork have 15 steps, and windows of 32 rows are the defaults of some methods. Training on half
    # of padding costs little. Most often the first episode is long enough, and no other is read.
    rows = max(window.n_obs_steps, window.horizon)
    if not len(data) or any(3 * len(episode) >= rows for episode in data):
        return
    longest = max(data.lengths)
    too_long = {name: n for name in ("horizon", "n_obs_steps") if (n := getattr(window, name)) > 3 * longest}
    settings = " and ".join(f"{name}={n}" for name, n in too_long.items())
    options = " or ".join(f"--{name.replace('_', '-')}" for name in too_long)
    yield DataWarning(f"The window is longer than the longest episode: {settings}, but no episode has more than "
                      f"{longest} steps. More than two thirds of every window are padding. Choose a smaller {options}, "
                      "or what the method calls it (in Python, another Window).")


def label_findings(method: Method, learned: Dataset, features: Schema) -> Iterator[DataWarning]:
    """Checks whether the labels of a learner can be learned from: goals, comparisons, rewards and ends."""
    learner = method.learner
    if isinstance(learner, GoalConditioned):
        check_goals(learned)
    if {SEGMENT, PREFERENCE} <= set(learner.extra):
        check_comparisons(learned)
    if SIMILARITY in learner.extra:
        check_queries(learned)
    for name in (REWARD, TERMINATED):
        if name in learner.extra and name in features and features[name].size != 1:
            raise DataError(f"there are {features[name].size} numbers per step, but a learner reads one",
                            where=f"{learned.metadata.get('path', 'data set')}, column {name!r}",
                            hint="store one number per step, such as the sum of all rewards")
    if TERMINATED in learner.extra and TERMINATED in features:
        yield from time_limit_findings(learned)


def reward_findings(method: Method, learned: Dataset) -> Iterator[DataWarning]:
    """Checks whether rewards tell actions from each other. In data collection, equal ones may still differ later."""
    if {REWARD, TERMINATED} <= set(method.learner.extra):
        if method.collection is None:
            check_rewards(learned)
        else:
            check_finite(learned, (REWARD, TERMINATED))
    for change in method.transforms:
        if isinstance(change, ReturnToGo) and method.collection is None:
            yield from return_findings(learned, change.column, change.target)


# -- policies that are trained ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConstantComponent:
    """A component that changes in the data, although the codec of a policy treats it as constant.

    Attributes:
        column: Name of the column.
        index: Number of the component in the flattened column.
        name: Name of the component, or its number.
        low: Smallest value in the data.
        high: Largest value in the data.
    """

    column: str
    index: int
    name: str
    low: float
    high: float


def constant_components(policy: Policy, data: Dataset) -> tuple[ConstantComponent, ...]:
    """Returns components that change in the data, but that a policy treats as constant.

    The statistics of the policy decide: a policy of an earlier version may treat more components as constant than a
    policy that is trained now. Left out are components that only change by the rounding of float32, targets of policies
    that predict displacements, and components that change for a part of the groups of `Normalizer.group_by`.

    Args:
        policy: A policy with statistics.
        data: Episodes as the policy is trained on them, after the transforms of its method (`method.training_data`).
    """
    goals = {goal.into: goal.column for goal in policy.window.goals}
    statistics = {goals.get(name, name): policy.codec.obs_statistics(name) for name in policy.inputs}
    if policy.config.target:
        statistics[policy.config.target] = policy.codec.target_statistics() or statistics.get(policy.config.target)
    hidden = []
    for column, values in statistics.items():
        if values is None:
            continue
        low, high = component_ranges(data, column)
        is_constant = (values[1].cpu().reshape(-1, low.size) == 0).all(0).numpy()  # a row for each group
        names = data.features()[column].names or range(low.size)
        hidden += [ConstantComponent(column, int(i), str(names[i]), float(low[i]), float(high[i]))
                   for i in unlearned_components(low, high, is_constant)]
    return tuple(hidden)
