"""Loads policies for commands: a run or an exported file. Also stores evaluation results."""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import ConfigError, Feature, Schema, Unsupported, UserError, role
from ...files import file_name, replace_nonfinite
from ...hints import did_you_mean, path_text
from ...hub import is_downloaded
from ...serve.address import served_address
from .common import command_line, has_no_run, recorded_data_of, recorded_env_of
from .conditions import (
    demonstration_part,
    demonstration_source,
    open_conditions,
    parse_conditions,
    shown_demonstrations,
    tell_distant_conditions,
)
from .options import split_pairs
from .served import served_client

if TYPE_CHECKING:
    from ...data.episode import Dataset
    from ...data.text_columns import TaskText
    from ...envs.base import Env
    from ...execute.actor import Actor
    from ...policy import Planner
    from .eval_options import EvalOptions
    from .groups import ActingOptions

OTHER_COLUMNS = ("the data were recorded here, and their columns have been renamed since, or the environment has "
                 "changed: train on data with the columns that it shows")
ACTING = ("executor", "condition", "task", "rename")  # options that a stored result names
ROWS = 16  # number of rows of every batch that networks see, so that no result depends on --rows


def load_actor(run: Path, env: Env, o: ActingOptions, rows: int | None = ROWS, *,
               tell: bool = False) -> tuple[Actor, str]:
    """Loads the actor of a run for an environment.

    Args:
        rows: Batch size that the networks always get. None for as many rows as there are.
        tell: Say on standard error which checkpoint is loaded, if images are scaled to the size that the policy reads,
            and if it was never trained on the words of --task.

    Returns:
        The actor, and a description of it that recordings store.
    """
    from ...envs.image_obs import check_images
    from ...execute.actor import ObservationWrapper, RenamedColumns, rename_columns
    from ...execute.demonstrated import DemonstratedActor
    from ...learn.method import Method
    from ...policy import check_features
    from .eval_options import rename_hint

    renamed = renamed_columns(env, o)
    features = rename_columns(env.features, renamed)
    words = task_columns(run, features, o)
    option_columns = {name: Feature("uint8", tuple(value.shape), "text") for name, value in words.items()}
    conditions = parse_conditions(o.condition, features)
    option_columns |= {name: Feature("float32", tuple(value.shape)) for name, value in conditions.items()}
    if demonstrated := shown_demonstrations(run, o.condition, o.trust):
        demonstrations, show = demonstrated
        option_columns |= dict.fromkeys(show.into, show.feature(demonstrations.features()))
    planner, actor, visible_columns = load_policy(run, o, rows, {**features, **option_columns})
    check_images({name: planner.features[name] for name in planner.inputs if name not in features}, env)
    columns = [*planner.inputs, *(name for name in planner.features if role(name) == "action")]
    check_features(planner, visible_columns, f"{served_address(run) or run} in {env.metadata['env']}", resized=True,
                   columns=columns, hint="; otherwise ".join(filter(None, (
                       rename_hint(planner, env, o), _fit_hint(run, planner.inputs, env)))))
    if tell:
        tell_checkpoint(run)
        tell_scaled_images(planner, env, recorded_data_of(run).get("camera_sizes"), served_address(run) or run)
        if words:
            tell_untrained_task(run, str(o.task), o.trust)
    open_names = [] if has_no_run(run) else open_conditions(Method.load(run, o.trust), {**features, **option_columns})
    goals = [g.into for g in planner.window.goals if g.into in planner.inputs
             and g.into not in {**features, **conditions} and f"{g.into}?" not in visible_columns]
    if open_names or goals:
        raise _missing_conditions(run, env, {name: "NUMBER" for name in open_names} | {
            name: ",".join(planner.features[name].names or ("NUMBER", "...")) for name in goals})
    conditions = {name: value for name, value in conditions.items() if name in planner.inputs}
    if tell:
        tell_distant_conditions(run, conditions, o.trust)
    actor = ObservationWrapper(actor, {**words, **conditions}) if words or conditions else actor
    actor = RenamedColumns(actor, renamed) if renamed else actor
    description = _describe_actor(run, o, bool(words), renamed)
    if demonstrated:
        return DemonstratedActor(actor, *demonstrated), f"{description}, shown {demonstrated[0].fingerprint()}"
    return actor, description


def _missing_conditions(run: Path, env: Env, forms: Mapping[str, str]) -> UserError:
    """Returns the error about columns that --condition must give, each with the form of its value."""
    arguments = " ".join(f"{name.removeprefix('observation.')}={form}" for name, form in forms.items())
    return UserError(f"{path_text(run)} reads {' and '.join(map(repr, forms))}, which {env.metadata['env']} does not "
                     "show", where="--condition", hint=f"give it: --condition {arguments}")


def _describe_actor(run: Path, o: ActingOptions, has_words: bool, renamed: Mapping[str, str]) -> str:
    """Describes a policy by its weights and by the options that change what it observes."""
    conditions = (text for text in o.condition if demonstration_source(text) is None)
    return ", ".join((f"policy {weights_digest(weights_path(run))}", *([o.executor] if o.executor is not None else ()),
                      *([f"told {o.task!r}"] if has_words else ()), *conditions,
                      *(f"{old} as {new}" for old, new in renamed.items())))


def renamed_columns(env: Env, o: ActingOptions) -> dict[str, str]:
    """Returns the names under which a policy knows columns of an environment, as given with --rename."""
    from .eval_options import EvalOptions

    if not isinstance(o, EvalOptions):
        return {}
    names = split_pairs("--rename", o.rename, "observation.joints=observation.state")
    for old, new in names.items():
        if old not in env.features or old == "action":
            raise ConfigError(f"{env.metadata['env']} has no observation {old!r}; it shows "
                              f"{', '.join(n for n in env.features if n != 'action')}", where="--rename",
                              hint=did_you_mean(old, env.features) or "name a column of the environment first")
        if (other := next((n for n in env.features if n != old and names.get(n, n) == new), None)) is not None:
            raise ConfigError(f"{old!r} and {other!r} would both be the column {new!r}", where="--rename",
                              hint="rename the other one too, such as to observation.unused")
    return names


def tell_checkpoint(run: Path) -> None:
    """Prints on standard error which checkpoint the name of a run stands for, and why."""
    from ...learn.training_curves import describe_checkpoint

    if not has_no_run(run) and (line := describe_checkpoint(run)) is not None:
        print(line, file=sys.stderr)


def tell_scaled_images(planner: Planner, env: Env, recorded: Mapping[str, Sequence[int]] | None, reader: object
                       ) -> None:
    """Warns if camera frames here differ in size from the camera frames of the training data.

    Args:
        recorded: Height and width of the cameras in the recording, if they were scaled.
        reader: What the message calls the policy.
    """
    from ...policy import camera_sizes

    env_sizes = camera_sizes(env.features)
    for name, (height, width) in camera_sizes({name: planner.features[name] for name in planner.inputs}).items():
        if name in env_sizes and env_sizes[name] not in ((height, width), tuple((recorded or {}).get(name, ()))):
            shown_height, shown_width = env_sizes[name]
            print(f"warning: {env.metadata['env']} shows {name} with {shown_height} x {shown_width} pixels, which "
                  f"are scaled to the {height} x {width} that {reader} was trained with", file=sys.stderr)


def tell_untrained_task(run: Path, text: str, trust: Sequence[str] = ()) -> None:
    """Warns if the task text was not in the training data."""
    trained_tasks = _trained_tasks(run, trust)
    if trained_tasks is not None and not trained_tasks.has(text):
        print(f"warning: {path_text(run)} was not trained on the task {_shortened(text)}. {trained_tasks.describe()}",
              file=sys.stderr)


def tell_untrained_episodes(run: Path, data: Dataset, trust: Sequence[str] = (), *, recorded: bool = False) -> None:
    """Warns if episodes have task texts that were not in the training data.

    Args:
        recorded: Also say it if none of the episodes has a task. An environment without one may give a goal instead.
    """
    from ...data.tasks import task_texts

    trained_tasks = _trained_tasks(run, trust)
    if trained_tasks is None:
        return
    tasks = [[text for text in map(str, task_texts(episode)) if text] for episode in data]
    untrained = [new for texts in tasks if (new := [text for text in texts if not trained_tasks.has(text)])]
    if recorded and not any(tasks):
        print(f"warning: none of the {len(data)} episodes has a task in words (the column or the metadata 'task'), "
              f"which {path_text(run)} reads. {trained_tasks.describe()}", file=sys.stderr)
    if untrained:
        print(f"warning: {len(untrained)} of {len(data)} episodes have a task that {run} was not trained on, such as "
              f"{_shortened(untrained[0][0])}. {trained_tasks.describe()}", file=sys.stderr)


@dataclass(frozen=True)
class _TrainedTasks:
    """The task texts on which a policy was trained.

    Args:
        relabel: Cuts texts as the policy reads them. None if it reads them as they are.
    """

    texts: Sequence[str]
    relabel: TaskText | None

    def has(self, text: str) -> bool:
        """Returns whether the policy was trained on these words, as it reads them."""
        return self._read(text) in set(map(self._read, self.texts))

    def describe(self, some: int = 3) -> str:
        """Lists the tasks in a sentence, at most `some` of them."""
        named = ", ".join(map(_shortened, self.texts[:some]))
        if len(self.texts) > some:
            return f"It was trained on {len(self.texts)} tasks, such as {named}."
        return f"It was trained on {named}."

    def _read(self, text: str) -> bytes:
        return text.encode() if self.relabel is None else bytes(self.relabel.encode(text))


def _trained_tasks(run: Path, trust: Sequence[str]) -> _TrainedTasks | None:
    """Returns the task texts on which the policy of a run was trained. None if not known, or if it reads none."""
    from ...learn.method import Method
    from .method import task_relabel

    texts = recorded_data_of(run).get("tasks")
    return _TrainedTasks(texts, task_relabel(Method.load(run, tuple(trust)))) if texts else None


def _shortened(text: str) -> str:
    return repr(text if len(text) <= 80 else f"{text[:77]}...")


def _fit_hint(run: Path, inputs: Sequence[str], env: Env) -> str:
    """Returns advice for an environment that does not fit the policy, or a robot that lacks its cameras."""
    prefix = "observation.images."
    cameras = [n.removeprefix(prefix) for n in inputs if n.startswith(prefix) and n not in env.features]
    if cameras:
        from ...robots.env import RobotEnv

        if isinstance(env, RobotEnv):
            return ("name the cameras that the policy reads, as in the recording: --robot.cameras with "
                    + ", ".join(cameras))
    training_env = recorded_env_of(run)
    if training_env is None:
        return ""
    if training_env == env.metadata["env"]:
        return OTHER_COLUMNS
    return f"use the environment that its data were recorded in, {training_env}, or train a policy for this one"


def weights_path(run: Path) -> Path:
    """Returns the path of the weights: the folder of a checkpoint, or the exported file."""
    from ...checkpoint import find_checkpoint

    return run if has_no_run(run) else find_checkpoint(run)


def load_policy(run: Path, o: ActingOptions, rows: int | None,
                features: Schema | None = None) -> tuple[Planner, Actor, Schema]:
    """Loads a run or an exported file.

    Args:
        o: The options of the command: the device, the executor, and the trusted packages.
        rows: Batch size that the networks always get. None for as many rows as there are.

    Returns:
        The planner, the actor that executes its plans, and the columns that the planner reads from the environment.
    """
    from ...deploy import onnx
    from ...learn.devices import choose_device
    from ...learn.method import TrainedRun, policy_features

    features = features or {}
    if (address := served_address(run)) is not None:
        return _served_policy(address, o, features)
    if o.executor is not None and has_no_run(run):
        raise UserError("an exported file is executed as it was exported", where="--executor",
                        hint="evaluate the run that it was exported from")
    if not has_no_run(run):
        trained = TrainedRun.load(run, o.trust, choose_device(o.device))
        if o.executor is not None:
            from .method import with_executor

            trained = replace(trained, method=with_executor(trained.method, o.executor, o.trust))
            trained.method.executor.check_planner(trained.planner())
        policy_columns = policy_features(trained.method, features) if features else {}
        return trained.planner(), trained.actor(rows, features=features or None), policy_columns
    if o.device not in ("auto", "cpu"):
        raise UserError(f"ONNX files run on the CPU, not on {o.device}", where="--device",
                        hint="evaluate the run that it was exported from")
    trust = ("understudy", *o.trust)
    return onnx.load(run, trust=trust), onnx.load_onnx_actor(run, rows=rows, trust=trust), features


def _served_policy(address: str, o: ActingOptions, features: Schema) -> tuple[Planner, Actor, Schema]:
    from ...heads.likelihood.regression import Regression
    from ...learn.method import Method
    from ...policy import PolicyConfig
    from ...serve.remote import RemoteActor, RemotePlanner, remote_actor
    from .method import with_executor

    planner = RemotePlanner(served_client(address), ("understudy", *o.trust))
    texts = {name: planner.features[name] for name in planner.client.policy.get("texts", ())}
    features = {**features, **{name: text for name, text in texts.items()  # the server pads shorter texts
                               if name in features and features[name].size < text.size}}
    if o.executor == "server":
        return planner, RemoteActor(planner.client), features
    if o.executor is None or planner.executor is None:
        return planner, remote_actor(planner), features
    changed = with_executor(
        Method(PolicyConfig(Regression(), window=planner.window), planner.executor), o.executor, o.trust)
    if changed.inference:
        raise Unsupported(f"{o.executor} changes how the policy plans, which the server does", where="--executor",
                          hint=f"serve it so: {command_line('serve', 'RUN', '--executor', o.executor)}")
    return planner, remote_actor(planner, changed.executor), features


def refuse_unused_conditions(runs: Sequence[Path], o: ActingOptions) -> None:
    """Raises an error for --task and --condition if no policy reads them."""
    from ...learn.method import Method
    from .method import task_relabel

    if o.task is not None and not any(
            served_client(a).policy.get("texts") if (a := served_address(r)) else
            not has_no_run(r) and task_relabel(Method.load(r, o.trust)) for r in runs):
        if any("observation.task" in load_policy(run, o, None)[0].inputs for run in runs):
            raise UserError("the policy reads the words that the environment shows, 'observation.task'",
                            where="--task", hint="leave it out")
        raise UserError("this policy was trained without words", where="--task",
                        hint="train it with --language, on data of several tasks")
    if o.condition:
        if served := [address for run in runs if (address := served_address(run))]:
            raise UserError(f"{served[0]} is served by another process, which takes no conditions from here",
                            where="--condition", hint="give constants and demonstrations to understudy serve, by its "
                                                      "option --condition")
        names = [text.partition("=")[0].removeprefix("observation.") for text in o.condition]
        for run in filter(has_no_run, runs):  # a file computes no conditions that change while it acts
            goals = {goal.into.removeprefix("observation.") for goal in load_policy(run, o, None)[0].window.goals}
            if not_goals := [name for name in names if name not in goals]:
                raise UserError(f"{run} is an exported file. It takes no condition but a goal, and it reads no goal "
                                f"{not_goals[0]!r}",
                                where="--condition", hint="evaluate the run that it was exported from")
        read = {name for run in runs for name in load_policy(run, o, None)[0].inputs}
        asked = any(demonstration_source(text) is not None for text in o.condition)
        if asked and not any(demonstration_part(Method.load(run, o.trust)) for run in runs):
            raise UserError("no policy does what a demonstration shows", where="--condition",
                            hint="leave it out, or train a method that reads one, such as one-shot")
        if unused := [name for name in parse_conditions(o.condition, {}) if name not in read]:
            raise UserError(f"no policy reads {unused[0]!r}; they read {', '.join(sorted(read))}", where="--condition",
                            hint="leave it out, or train a method that reads it, such as decision-transformer")


def task_columns(run: Path, features: Schema, o: ActingOptions) -> dict:
    """Returns the task columns for a policy that reads them in an environment that does not show them.

    Returns:
        Values by column. Empty if the policy does not read the task, or if the environment shows it.
    """
    import torch

    from ...data.tasks import SHOWN_TASK
    from ...data.text_columns import TaskText
    from ...learn.method import Method
    from .method import task_relabel

    if (address := served_address(run)) is not None:
        served = served_client(address).policy
        say = next((TaskText(served["features"][name]["shape"][0], name) for name in served.get("texts", ())), None)
    else:
        say = None if has_no_run(run) else task_relabel(Method.load(run, o.trust))
    if say is not None and o.task is not None and say.into in features:
        raise UserError(f"the environment shows {say.into!r} itself, and success is judged by it", where="--task",
                        hint="leave it out")
    if say is not None and o.task is not None and SHOWN_TASK in features:
        print(f"warning: every episode is told --task, but success is judged by its own task, {SHOWN_TASK!r}",
              file=sys.stderr)
    if say is None or o.task is None and (say.into in features or say.optional and o.condition):
        return {}
    if o.task is None:
        raise UserError(f"{run} reads the task in words, but none is given", where="--task",
                        hint="tell it as it was told in training: --task 'WORDS'")
    return {say.into: torch.from_numpy(say.encode(o.task).copy())}


def weights_digest(place: Path) -> str:
    """Returns a digest of an exported file, or of a checkpoint's weights and method: 16 hexadecimal digits."""
    if (address := served_address(place)) is not None:
        return str(served_client(address).policy["checkpoint"])
    from ...learn.run import Run

    return hashlib.sha256(place.read_bytes()).hexdigest()[:16] if place.is_file() else Run.fingerprint(place)


def untrained_warning(run: Path, trust: Sequence[str] = ()) -> str | None:
    """Returns the warning about a checkpoint from before the first update. None for other checkpoints."""
    from ...checkpoint import is_lerobot_checkpoint
    from ...learn.method import Method
    from ...learn.run import Run

    folder = weights_path(run)
    if has_no_run(run) or is_lerobot_checkpoint(folder) or folder.name != "000000":
        return None
    method = Method.load(folder, tuple(trust))
    if not method.learner.steps or method.initialize_from:
        return None  # it is trained in another way, or was trained before
    whole = Run(run_folder(run))
    trained = {name for name, place in whole.named_checkpoints().items() if Path(place).name != folder.name}
    advice = (f"use {whole.folder}" if "last" in trained else f"use {whole.folder / 'best'}" if trained else
              "give the command that began the run again, which continues it")
    return f"{folder} is the checkpoint from before the first update, so the policy is not trained: {advice}"


def run_folder(run: Path) -> Path:
    """Returns the folder of the run, or of the checkpoint if it has no run."""
    from ...checkpoint import find_checkpoint

    folder = find_checkpoint(run)
    return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def append_result(o: EvalOptions, line: dict) -> None:
    """Appends a result to RUN/eval/ENV.jsonl.

    Nothing is written for exported files, checkpoints of LeRobot and runs in the cache of the hub.
    """
    if has_no_run(o.run) or is_downloaded(o.run):
        return
    from ...checkpoint import find_checkpoint, is_lerobot_checkpoint
    from ...learn.callbacks import log_evaluation

    assert o.target is not None
    folder = find_checkpoint(o.run)
    if is_lerobot_checkpoint(folder):
        return
    file = run_folder(o.run) / "eval" / f"{file_name(Path(o.target).name)}.jsonl"
    about = {"checkpoint": folder.name, "mark": weights_digest(folder),
             "date": datetime.now(UTC).isoformat(timespec="seconds"),
             **{name: value for name in ACTING if (value := getattr(o, name))}}
    try:
        file.parent.mkdir(exist_ok=True)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(replace_nonfinite({**about, **line}), allow_nan=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
        step = int(folder.name) if folder.name.isdigit() else None
        log_evaluation(run_folder(o.run), Path(o.target).name, step, line)
    except UserError as error:
        print(f"this evaluation is not logged to Weights & Biases: {error}", file=sys.stderr)
    except OSError as error:  # somebody else's run, say: what was found is worth telling all the same
        print(f"this evaluation could not be written down: {file}: {error.strerror}", file=sys.stderr)


def run_names(runs: Sequence[Path]) -> list[str]:
    """Returns names of runs: the names of their folders, or their full paths if these are equal."""
    return [run.name if len({r.name for r in runs}) == len(runs) else str(run) for run in runs]
