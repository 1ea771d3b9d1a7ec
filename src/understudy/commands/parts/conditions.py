"""Parses --condition: a desired return, a number of steps, a goal, a task in words, a demonstration."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import ConfigError, DataError, Schema, UserError, is_read_by_default
from .common import has_no_run, open_shown, recorded_env

if TYPE_CHECKING:
    from torch import Tensor

    from ...data.codec import CodecModule
    from ...data.episode import Dataset
    from ...data.shown_demonstration import ShowDemonstration
    from ...envs.base import Env
    from ...learn.method import Method

EXAMPLE = "such as --condition return_to_go=100 goal=0.2,0.5"
OTHER_UNIT_SCALES = 10.0  # scales of the training data: another unit (mm, cm) is farther, and rare values are not
SHOW = "--condition demonstration=DATA, or demonstration=DATA:3 for its episode 3"


def parse_conditions(texts: Sequence[str], features: Schema) -> dict[str, Tensor]:
    """Parses the arguments of --condition that are numbers.

    Args:
        texts: One text per column: its name with or without "observation.", "=", and its numbers with commas.

    Returns:
        The values by column, (n,) float32.
    """
    import torch

    conditions: dict[str, Tensor] = {}
    for text in texts:
        if demonstration_source(text) is not None:
            continue  # see `shown_demonstrations`
        name, _, values_text = text.partition("=")
        try:
            numbers = [float(part) for part in values_text.split(",")]
        except ValueError:
            numbers = []
        if not name or not numbers or not all(map(math.isfinite, numbers)):
            raise ConfigError(f"{text!r} is not of the form NAME=NUMBER or NAME=NUMBER,NUMBER,...", where="--condition",
                              hint=EXAMPLE)
        name = name if name.startswith("observation.") else f"observation.{name}"
        if name in conditions:
            raise ConfigError(f"{name!r} is given twice", where="--condition", hint="give each column once")
        if name in features:
            raise ConfigError(f"the environment shows {name!r} itself", where="--condition", hint="leave it out")
        conditions[name] = torch.tensor(numbers)
    return conditions


def tell_distant_conditions(run: Path, conditions: Mapping[str, Tensor], trust: tuple[str, ...] = ()) -> None:
    """Warns if a condition is far from the training data, as in another unit.

    Nothing is said of an exported file and of a served policy: their statistics are not known.
    """
    from ...learn.method import TrainedRun, find_parts
    from ...policy import Policy

    if not conditions or has_no_run(run):
        return
    trained = TrainedRun.load(run, trust)
    value_columns = goal_columns(trained.method)
    codecs = [policy.codec for policy in find_parts((trained.modules, trained.method.inference), Policy)]
    for name, value in conditions.items():
        distant = next(filter(None, (_distant_components(codec, column, value) for codec in codecs
                                     for column in (name, value_columns.get(name, name)))), None)
        if distant:
            print(f"warning: the condition {name.removeprefix('observation.')!r} is far from what {run} was trained "
                  f"with: {'; '.join(distant)}. Use the units of its data", file=sys.stderr)


def _distant_components(codec: CodecModule, name: str, value: Tensor) -> list[str]:
    """Returns what to say of each component of a condition that is far from the data."""
    import torch

    statistics = codec.obs_statistics(name)
    if statistics is None or statistics[0].shape[-1:] != value.shape:
        return []
    center, scale = (s.cpu().reshape(-1, len(value)) for s in statistics)  # a row for each group
    limit = torch.where(scale > 0, OTHER_UNIT_SCALES * scale, 1e-3 * center.abs().clamp(min=1))
    is_distant = ((value - center).abs() > limit).all(0)
    return [f"component {i} is {value[i]:g}, and was " + (f"about {center[0, i]:.3g} ± {scale[0, i]:.3g}"
            if scale[0, i] > 0 else f"always {center[0, i]:.3g}") for i in is_distant.nonzero().flatten().tolist()]


def demonstration_source(text: str) -> str | None:
    """Returns the path and episode of --condition demonstration=DATA[:EPISODE]. None for other arguments."""
    name, _, source = text.partition("=")
    return source if name.removeprefix("observation.") == "demonstration" else None


def shown_demonstrations(run: Path, texts: Sequence[str], trust: tuple[str, ...] = ()
                         ) -> tuple[Dataset, ShowDemonstration] | None:
    """Opens the demonstrations of --condition demonstration=DATA[:EPISODE].

    Returns:
        The demonstrations, and how they become columns. None if the policy of the run does not read one.
    """
    from ...learn.method import Method

    show = None if has_no_run(run) else demonstration_part(Method.load(run, trust))
    if show is None:
        return None
    sources = [source for text in texts if (source := demonstration_source(text)) is not None]
    if len(sources) != 1 or not sources[0]:
        raise ConfigError(f"{run} does what a demonstration shows, and {'several' if len(sources) > 1 else 'none'} "
                          f"{'are' if len(sources) > 1 else 'is'} given", where="--condition", hint=f"give one: {SHOW}")
    if columns := [text for text in texts if text.partition("=")[0].startswith((*show.into, "demonstration."))]:
        raise ConfigError(f"{columns[0]!r} names a frame of the demonstration", where="--condition",
                          hint="leave it out: demonstration=DATA gives all frames")
    path, colon, number = sources[0].rpartition(":")
    one = bool(colon) and not Path(sources[0]).exists()  # names may have a colon
    if one and not number.isdecimal():
        raise ConfigError(f"{number!r} is not the number of an episode",
                          where=f"--condition demonstration={sources[0]}", hint=f"a whole number from 0: {SHOW}")
    data = open_shown(Path(path if one else sources[0]), run)
    if one and int(number) >= len(data):
        raise UserError(f"there is no episode {number}; the last one is {len(data) - 1}",
                        where=f"--condition demonstration={sources[0]}", hint="episodes are counted from 0")
    data = data.select([int(number)]) if one else data
    _check_demonstrations(run, show, data)
    return data, show


def _check_demonstrations(run: Path, show: ShowDemonstration, data: Dataset) -> None:
    """Raises DataError if demonstrations do not have the columns that a policy reads of them."""
    from ...checkpoint import find_checkpoint, load_features

    features, trained = data.features(), load_features(find_checkpoint(run), "train it again")
    for name in show.columns:
        expected_shape = trained[name].shape if name in trained else None
        if name not in features or expected_shape not in (None, features[name].shape):
            actual = f"of shape {features[name].shape}" if name in features else "missing"
            expected = f" of shape {expected_shape}" if expected_shape else ""
            raise DataError(f"the policy reads {name!r}{expected} of a demonstration, and here it is {actual}",
                            where=data.metadata.get("path", "the demonstrations"),
                            hint="show episodes of the robot or environment that it was trained for")
    show.feature(features)


def demonstration_part(method: Method) -> ShowDemonstration | None:
    """Returns the part of a method that shows demonstrations to its policy as a prompt while acting, or None."""
    from ...data.shown_demonstration import ShowDemonstration

    return next((part for part in method.transforms if isinstance(part, ShowDemonstration)), None)


def open_conditions(method: Method, features: Schema) -> list[str]:
    """Returns the columns of which the user must give the first value while a method acts."""
    from ...learn.method import online_changes

    return [name for part in online_changes(method) if (name := part.open_condition) and name not in features]


def return_discount(run: Path, trust: tuple[str, ...] = ()) -> float:
    """Returns the discount of the return that the policy of a run is told. 1 if there is none."""
    from ...data.column_changes import ReturnToGo
    from ...learn.method import Method, online_changes

    changes = () if has_no_run(run) else online_changes(Method.load(run, trust))
    return next((change.discount for change in changes if isinstance(change, ReturnToGo)), 1.0)


def goal_columns(method: Method) -> dict[str, str]:
    """Returns the goal columns that a policy reads, and for each goal column, the column that its values come from.

    A goal that the policy can act without is left out, and so is one that another policy of the method predicts.
    """
    from ...data.column_changes import OptionalColumn
    from ...execute.planners import Hierarchical, MaskedGoalPlanner

    not_told = {part.column for part in method.transforms if isinstance(part, OptionalColumn)}
    not_told |= {part.as_key for part in method.inference if isinstance(part, Hierarchical)}
    columns = {goal.into: goal.column for goal in method.policy.window.goals if goal.into not in not_told}
    return columns | {part.goal: part.column for part in method.inference if isinstance(part, MaskedGoalPlanner)}


def must_be_told(run: Path) -> bool:
    """Returns whether the policy of a run reads a condition, goal or task that some environments do not show.

    Args:
        run: The run. Its method is loaded if it needs no code of other packages.
    """
    from ...learn.method import Method
    from .method import task_relabel

    try:
        method = Method.load(run)
    except UserError:
        return False
    return bool(open_conditions(method, {}) or goal_columns(method) or task_relabel(method) is not None
                or demonstration_part(method) is not None)


def example_evaluation(data: Dataset, method: Method, name: str | None = None, env: Env | None = None
                       ) -> tuple[str, list[str]] | None:
    """Returns an environment to evaluate in, and its options with examples from the data, for a suggestion.

    Args:
        name: The environment that the user named. None for the one in which the data were recorded. If nothing is
            judged there, it is the same world with goals, for a policy that reads goals.
        env: The environment that the user named, if it was made.

    Returns:
        Name and options (see `example_options`). None if no such evaluation is known, or nothing acts.
    """
    from ...envs.registry import IMAGES, WITH_GOALS, base_name, make

    if is_judge(method):
        return None
    features = data.features() if env is None else env.features
    if name is None and (name := recorded_env(data)) is not None:
        if not shows_observations(name, features):
            return None
        if not is_judged(data):
            goal_env_name = WITH_GOALS.get(base_name(name))
            if goal_env_name is None or not goal_columns(method):
                return None
            name = goal_env_name + (name[len(base_name(name)):] if IMAGES in name else "")
            (goal_env := make(name)).close()
            features = goal_env.features
    options = None if name is None else example_options(data, method, features)
    return None if name is None or options is None else (name, options)


def shows_observations(name: str, features: Schema) -> bool:
    """Returns whether an environment shows the observations of data under their names. True if it cannot be made."""
    from ...envs import make

    try:
        with closing(make(name)) as env:
            return all(n in env.features for n, f in features.items() if is_read_by_default(n, f) and n[-1] != "?")
    except UserError:
        return True


def is_judge(method: Method) -> bool:
    """Returns whether a method trains a classifier of success or a rater, which do not act."""
    from ...improve.rating import SCORE
    from ...improve.step_rating import IS_GOOD
    from ...improve.success import SUCCEEDS

    return method.policy.target in (SCORE, IS_GOOD, SUCCEEDS)


def is_judged(data: Dataset) -> bool:
    """Returns whether the environment of recorded episodes reports success, or rewards that are not always 0.

    Data without success and rewards say nothing about their environment, which may judge all the same. At most 100
    episodes are looked at.
    """
    import numpy as np

    for episode in data[:100]:
        reward = episode.steps.get("next.reward")
        tells_success = "success" in episode.metadata or "next.success" in episode.steps
        if tells_success or reward is None or np.any(reward[: len(episode)]):
            return True
    return False


def example_options(data: Dataset, method: Method, features: Schema) -> list[str] | None:
    """Returns the options --task and --condition with examples from the data.

    Conditions and goals are taken from the successful episode with the largest return.

    Args:
        features: The columns that the environment shows.

    Returns:
        The options. None if the policy must be told something and the data have no example of it that can be written
        on a command line, such as an image as the goal, or if each episode of the environment has its own task.
    """
    from ...data.tasks import SHOWN_TASK, task_texts
    from .method import task_relabel

    options: list[str] = []
    if (words := task_relabel(method)) is not None and words.into not in features:
        if SHOWN_TASK in features:
            return None  # one sentence would be wrong: each episode has its own
        task = next((str(text) for episode in data for text in task_texts(episode) if text), None)
        if task is None:
            return None
        options = ["--task", task]
    conditions: list[str] = []
    if demonstration_part(method) is not None:
        if (path := data.metadata.get("mix", [data.metadata])[0].get("path")) is None:
            return None
        conditions = [f"demonstration={path}"]
    names = open_conditions(method, features)
    goals = {into: column for into, column in goal_columns(method).items() if into not in features}
    if not names and not goals:
        return [*options, *(("--condition", *conditions) if conditions else ())]
    columns = data.features()
    if any(column not in columns or columns[column].kind != "vector" or len(columns[column].shape) != 1
           for column in goals.values()):
        return None
    best = _best_episode(data, method, names)
    if best is None:
        return None
    number, values = best
    examples = {**{name: [value] for name, value in zip(names, values, strict=True)},
                **{into: data[number].steps[column][-1].tolist() for into, column in goals.items()}}
    conditions += [f"{name.removeprefix('observation.')}={','.join(f'{v:g}' for v in row)}"
                   for name, row in examples.items()]
    return [*options, "--condition", *conditions]


def _best_episode(data: Dataset, method: Method, names: Sequence[str]) -> tuple[int, list[float]] | None:
    """Returns the number of the episode with the largest first values of these conditions, and the values."""
    from ...learn.method import apply_transforms, online_changes

    changed = apply_transforms(data, [part for part in online_changes(method) if part.open_condition])
    candidates = [([float(episode.steps[name].ravel()[0]) for name in names], bool(episode.metadata.get("success")), -i)
                  for i, episode in enumerate(changed) if len(episode)]
    if not candidates:
        return None
    values, _, negative_number = max(candidates)
    return -negative_number, values
