"""The command understudy train."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Callable, Container, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from .. import __version__
from ..config import dump
from ..core import ConfigError, UserError
from ..files import read_json, whole_folder, write_json
from ..hints import did_you_mean, format_duration
from ..user_code import search_current_folder, trusted_packages
from .parts.common import (
    RANDOM_FILE,
    Output,
    check_and_decode,
    command_line,
    decode_once,
    decoded_features,
    env_trust_options,
    open_trained,
    parse,
    read_provenance,
    recorded_env,
    recorded_word,
    robot_arguments,
    trust_options,
    unused_path,
    warn_of_other_units,
)
from .parts.conditions import demonstration_part, example_evaluation, goal_columns, open_conditions
from .parts.help_page import print_help
from .parts.options import (
    explain_missing,
    options_of,
    options_to_json,
    present_names,
    refuse_given,
    split_arguments,
    split_pair,
)
from .parts.policies import OTHER_COLUMNS, run_folder, tell_checkpoint, tell_scaled_images
from .parts.run_options import run_options, train_options_of
from .parts.train_options import TrainOptions

if TYPE_CHECKING:

    from ..core import Schema
    from ..data.episode import Dataset
    from ..data.mixture import MixtureWeights
    from ..data.opening.stream import ShardStream
    from ..data.text_columns import TaskText
    from ..envs.base import Env
    from ..execute.actor import Actor
    from ..learn.callbacks import TensorBoard, Wandb
    from ..learn.method import Method, Stage
    from ..learn.run import Run
    from ..learn.train import Score
    from ..learn.training_curves import TrainingCurves


COLLECTION_ROWS = 8  # environments that run side by side while episodes are collected; results do not depend on it
TOLD_SECONDS = 10  # less time is not worth a word
FIRST_LINE_STEP = 200  # episodes of a stream that are looked at before it is trained on


FLAGS = tuple(option.flag for option in options_of(TrainOptions))


def main(args: list[str]) -> None:
    _refuse_old_names(args)
    own, options, changes = split_arguments(args, TrainOptions)
    command = "understudy train " + shlex.join(args)
    if "-h" in own or "--help" in own:
        _print_help([a for a in own if a not in ("-h", "--help")], options)
    if any(did_you_mean(word.partition("=")[0], FLAGS) for word in options if word.startswith("--")):
        _check_options(own, options)
    try:
        o = parse(TrainOptions, "train", own)
    except ConfigError as error:
        explain_missing(options, error)
        _check_options(own, options)
        raise
    # before PyTorch is imported and the data are opened, which take seconds and more
    beginning = f"training {o.method} in {o.env}" if o.data is None else f"reading {o.data} to train {o.method}"
    if o.data is not None or o.env is not None:
        print(f"{beginning}; the run is {o.out}" + ("; the first update is compiled, which takes half a minute or more"
              if o.compile else ""), file=sys.stderr, flush=True)
    with Output(o.json) as out:
        _train(o, options, changes, command, out)


@dataclass(frozen=True)
class _Training:
    """The method, the data and the options of one call of understudy train.

    Args:
        sources: The episodes of DATA, and the episodes of --prior if there are any.
        data: Their mixture.
        val_fraction: Fraction of the episodes that is held out. For a mixture, the numbers of the held-out episodes of
            the task.
    """

    method: Method
    sources: tuple[Dataset, ...]
    data: Dataset
    stream: ShardStream | None
    weights: MixtureWeights | None
    val_fraction: float | Sequence[int]
    words: TaskText | None
    stages: dict[str, Path]
    method_options: dict[str, Any]


def _train(o: TrainOptions, options: list[str], changes: list[str], command: str, out: Output) -> None:
    from ..checkpoint import find_checkpoint
    from ..data.video import parse_image_size
    from ..learn.callbacks import Wandb
    from ..learn.devices import choose_device
    from ..learn.train import train
    from .parts.method import build_method

    build_method(o.method, options, [], None, o.trust, flags=FLAGS)  # refuses a misspelled option before data are read
    if o.image_size is not None:
        parse_image_size(o.image_size)
    if o.eval is None:
        refuse_given(o, ("rollouts",), "is a number of episodes in the environment of --eval", "add --eval ENV")
    device, loggers = choose_device(o.device), _loggers(o)
    for run in filter(None, (o.reward, o.progress)):
        find_checkpoint(run)  # before episodes are recorded
    if o.data is None:
        _record_random(o)
    else:
        refuse_given(o, ("random_steps",), "has no effect where DATA are named: they are learned from instead")
    training = _read_training(o, options, changes)
    method = training.method
    _check_same_scores(o, method)
    for logger in loggers:
        if isinstance(logger, Wandb):
            logger.add_config(_logged_config(o, method))
    _check_stage_data(o, training, command)
    data = (training := _with_frames(training, o)).data
    collection_env = _collection_env(method, data, o, training.stages)
    env = None if o.eval is None else _evaluation_env(o, training, o.eval)
    score = None if env is None else _make_score(env, o.rollouts, o.seed)
    printer = _announce(o, training, has_score=score is not None)
    try:
        train(
            method,
            data,
            o.out,
            seed=o.seed,
            device=device,
            score=score,
            save_freq=o.save_freq,
            stages=training.stages,
            stage_callbacks=lambda stage, run: (_stage_printer(stage, run),),
            sampling_weights=training.weights,
            val_fraction=training.val_fraction,
            callbacks=(printer, *loggers),
            stream=training.stream,
            command=command,
            options=run_options("train", o, training.method_options),
            include_interrupted=o.include_interrupted,
            env=collection_env,
            compile=o.compile)
    finally:
        for used in (env, collection_env, *loggers):
            if used is not None:
                used.close()
    _print_result(o, training, env, str(device), out)


def _check_same_scores(o: TrainOptions, method: Method) -> None:
    """Refuses to score further checkpoints of a run in other rollouts, because such scores cannot be compared.

    A run without --eval can get it later, as long as it is trained, and then its earlier checkpoints have no score. The
    checkpoints of a run that collects episodes have scores from its start.
    """
    from ..learn.run import Run

    last = max(Run(o.out).saved_steps(), default=0)
    checkpoint = Run(o.out).checkpoint_path(last)
    begun = train_options_of(checkpoint) if last else None
    if begun is None or (begun.eval, begun.rollouts) == (o.eval, o.rollouts):
        return
    if begun.eval is not None:
        problem = f"its checkpoints were scored in {begun.rollouts} episodes of {begun.eval}"
    elif method.collection is not None:
        problem = "its checkpoints were scored by the episodes that it collects"
    elif last >= method.learner.steps:
        raise UserError(f"all {last} updates are done, so no checkpoint is left to score", where="--eval",
                        hint=command_line("eval", o.out, o.eval))
    else:
        return
    raise UserError(problem, where=o.out, hint="choose another --out, or give the command it was begun with: "
                    f"{read_provenance(checkpoint)['command']}")


def _data_path(o: TrainOptions) -> Path:
    """Returns the path of the episodes with which the training begins."""
    return o.out / "random" / "episodes.npz" if o.data is None else o.data


def _record_random(o: TrainOptions) -> None:
    """Stores episodes of random actions in the run, unless they are there."""
    from ..data.formats import write_dataset
    from ..envs import make
    from ..improve.collection import random_episodes

    if o.env is None:
        raise UserError("there are no demonstrations", where="DATA",
                        hint="name a file or folder of them, before the options of the method: "
                             f"{command_line('train', o.method, 'DATA', '--out', o.out)}; or, for a method that "
                             "collects episodes, an environment: --env ENV")
    folder = _data_path(o).parent
    settings = {"--env": o.env, "--random-steps": o.random_steps, "--seed": o.seed}
    if folder.is_dir():
        stored = read_json(folder / RANDOM_FILE) if (folder / RANDOM_FILE).is_file() else settings
        for name in (name for name in settings if stored[name] != settings[name]):
            raise UserError(f"the random episodes of this run are of {name} {stored[name]}, not {settings[name]}",
                            where=folder, hint="choose another --out, give the options that the run was begun with, "
                                               "or remove this folder if nothing has been trained yet")
    else:
        with closing(make(o.env, COLLECTION_ROWS, o.trust)) as env:
            episodes = random_episodes(env, o.random_steps, o.seed)
        with whole_folder(folder) as part:
            write_dataset(episodes, part / "episodes.npz", "npz")
            write_json(part / RANDOM_FILE, settings)


def _read_training(o: TrainOptions, options: list[str], changes: list[str]) -> _Training:
    from ..learn.training_episodes import validation_episodes
    from .parts.learned_rewards import warn_of_other_data, with_changed_rewards, with_progress
    from .parts.method import build_method, given_options_of_method

    def check_options(features: Schema) -> None:
        build_method(o.method, options, changes, features, o.trust, None, o.executor, o.steps)

    stream = None if o.buffer_size is None else _open_stream(o)
    data = _open(_data_path(o), o, check_options) if stream is None else stream.first_episodes(FIRST_LINE_STEP)
    if o.image_size is not None and all(f.kind != "image" for f in data.features().values()):
        print("--image-size: the data have no camera frames", file=sys.stderr)
    sources = (data,) if o.prior is None else (data, _open_prior(data, o, o.prior))
    data, weights = _mix(sources)
    val_fraction = o.val_fraction if weights is None else validation_episodes(len(sources[0]), o.val_fraction)
    if o.data is None:
        val_fraction = 0.0
    words = _task_relabel(data) if o.language else None
    features = data.features() if stream is not None else decoded_features(data.features(), o.image_size)
    if "action" not in features:  # perhaps the prior episodes have it
        features |= {name: f for name, f in data[-1].features().items() if name == "action"}
    method = build_method(o.method, options, changes, features, o.trust, words, o.executor, o.steps)
    method_options = given_options_of_method(method, o.method, [*options, *changes], o.trust)
    if o.data is None and method.learner.compares:
        raise UserError(f"{o.method} learns from demonstrations, and there are none", where="DATA",
                        hint=f"name them: {command_line('train', o.method, 'DATA', '--env', o.env, '--out', o.out)}")
    method = with_progress(with_changed_rewards(method, data, o), _data_path(o), o)
    method, stages = _with_runs(method, o)
    stages |= {name: run for name, run in (("learned-reward", o.reward), ("learned-progress", o.progress)) if run}
    for name, run in stages.items():
        warn_of_other_data(data, run, f"the run of stage {name}")
    return _Training(method, sources, data, stream, weights, val_fraction, words, stages, method_options)


def _with_frames(training: _Training, o: TrainOptions) -> _Training:
    """Decodes the camera frames of a training's data. Problems of other columns are reported before that."""
    from ..learn.preflight import preflight, tell

    if training.stream is not None or all(f.kind != "image" for f in training.data.features().values()):
        return training
    tell(preflight(training.method, training.data, val_fraction=training.val_fraction,
                   include_interrupted=o.include_interrupted, decoded=False).findings)
    data, _ = _mix([decode_once(source, o.image_size, " (--image-size)") for source in training.sources])
    return replace(training, data=data)


def _open(path: Path, o: TrainOptions, check: Callable[[Schema], None] | None = None) -> Dataset:
    """Opens episodes to learn from. Camera frames are not decoded yet: see `_with_frames`.

    Args:
        check: Called with the columns before the data are audited.
    """
    from ..data.opening.column_selection import parse_columns

    data = open_trained(path, o.from_run or o.out, columns=parse_columns(o.columns), mapping=o.map,
                        max_episode_steps=o.max_episode_steps)
    if check is not None and "action" in data.features():  # otherwise the prior episodes may have it
        check(data.features())
    return check_and_decode(data, path, ignore=o.ignore, decode=False, method=o.method)


def _check_stage_data(o: TrainOptions, training: _Training, command: str) -> None:
    """Raises UserError if the data lack the part that a stage is trained on."""
    from ..learn.fit_method import part_of

    for stage in training.method.stages:
        if stage.name not in training.stages:
            if stage.dataset in ("task", "prior") and o.prior is None and all(
                    episode.metadata.get("dataset") != stage.dataset for episode in training.data):
                raise UserError(f"{o.method} learns from two sets of episodes: {_data_path(o)}, which show the task, "
                                "and prior episodes, such as those of other tasks", where="--prior",
                                hint=f"name a file or folder of prior episodes: {command} --prior DATA")
            part_of(training.data, stage.dataset)  # before an error about what follows from its absence


def _evaluation_env(o: TrainOptions, training: _Training, name: str) -> Env:
    from ..envs import make
    from .parts.method import task_relabel

    def refuse(missing: list[str], numbers: str, hint: str = "") -> NoReturn:
        short = [column.removeprefix("observation.") for column in missing]
        raise UserError(f"the policy must be told {' and '.join(map(repr, short))} while it acts, and neither the "
                        f"method nor {name} does", where="--eval", hint=f"{hint}train without --eval, then: "
                        + command_line("eval", "RUN", "ENV", "--condition", *(column + numbers for column in short)))
    method, env = training.method, make(name, min(o.rollouts, 16), o.trust)
    words = task_relabel(method)
    if training.words is not None and words is not None and words.into not in env.features:
        raise UserError(f"the environment {name} does not say its task in words", where="--eval",
                        hint="train without --eval, then: understudy eval RUN ENV --task WORDS")
    if missing := open_conditions(method, env.features):
        examples = {"observation.return_to_go": "--target-return 100",
                    "observation.time_left": "--target-length 50"}
        options = " ".join(examples[column] for column in missing if column in examples)
        refuse(missing, "=NUMBER", f"tell the method ({options}, for example), or " if options else "")
    if missing := [column for column in goal_columns(method) if column not in env.features]:
        refuse(missing, "=NUMBERS")
    if demonstration_part(method) is not None:
        refuse(["demonstration"], "=DATA")
    _check_policy_fits(method, training.data, env)
    return env


def _announce(o: TrainOptions, training: _Training, has_score: bool) -> ProgressPrinter:
    """Prints what will be trained. Returns what prints the progress."""
    from ..data.episode import interrupted_episodes
    from ..learn.method import has_latent_actions
    from ..learn.run import Run
    from ..learn.training_episodes import validation_episodes

    method, data = training.method, training.data
    n_episodes = len(data) - (0 if o.include_interrupted else len(interrupted_episodes(data)))
    is_validated = bool(n_episodes and validation_episodes(n_episodes, training.val_fraction))
    if n_episodes and not is_validated:
        is_asked = training.val_fraction != 0 and o.val_fraction != 0
        print(f"no episode is held out{': that takes 5 or more' if is_asked else ''}"
              ", so the error on other episodes is not measured", file=sys.stderr)
    if plan := training_plan(method, training.stages):
        print(f"plan: {plan}", file=sys.stderr)
    return ProgressPrinter(Run(o.out), method.learner.steps if method.collection is None else None, o.save_freq,
                           is_validated and method.learner.validates or has_score,
                           of_latents=has_latent_actions(method), rounds=getattr(method.collection, "n_rounds", 0))


def _print_result(o: TrainOptions, training: _Training, env: Env | None, device: str, out: Output) -> None:
    """Prints where the run is, its measurements, and what to do next."""
    from ..data.missing_actions import has_action
    from ..data.mixture import DATASET_INDEX
    from ..learn.rewards.preference_reward import PreferenceLearning
    from ..learn.run import Run
    from ..learn.training_curves import TrainingCurves
    from .parts.learned_rewards import held_out_agreement

    data = training.data
    places = Run(o.out).named_checkpoints()
    out.print(f"Written to {o.out}: " + ", ".join(f"{name} is {place}" for name, place in sorted(places.items()))
            + "; CARD.md says what it is, metrics.jsonl how it went.")
    robot = [] if o.eval or o.env or recorded_env(data) else robot_arguments(data.metadata, data.features())
    judged, conditions = example_evaluation(data, training.method, o.eval or o.env, env) or (None, [])
    learns_reward = isinstance(training.method.learner, PreferenceLearning)
    if learns_reward:
        out.print(held_out_agreement(o.out, data, o.trust))
    runs = [o.out, *([o.out / "best"] if o.eval and "best" in places else [])] if (
        judged is not None and (o.eval or not learns_reward)) else []
    curves = TrainingCurves.load(o.out)
    out.suggest(
        *([command_line("judge", "EPISODES", "--out", unused_path("new-answers"), "--seed", 1, "--reward", o.out),
           command_line("train", "sac", "--env", judged or "ENV", "--reward", o.out, "--out", unused_path("practiced"))]
          if learns_reward else ()),
        *(command_line("eval", run, judged, "--episodes", 100, *conditions,
                       *(trust_options(o.trust, judged, run) or env_trust_options(judged))) for run in runs),
        *([command_line("eval", o.out, recorded_word(_data_path(o)), *trust_options((), None, o.out))]
          if o.data is not None and training.stream is None and not learns_reward and any(
              not episode.metadata.get(DATASET_INDEX) and has_action(episode).all() for episode in data) else ()),
        *([command_line("act", o.out, *robot)] if robot else ()),
        *_compare_checkpoints(curves, o, judged, conditions, robot),
        command_line("plot", o.out))
    loss = curves.curves.get("loss")
    out.print_json({"run": str(o.out), "method": o.method, "seed": o.seed, "device": device,
                    "steps": curves.last, "seconds": curves.seconds, "loss": loss and loss.values[-1],
                    "last": curves.checkpoint_json(curves.last), "best": curves.checkpoint_json(curves.best),
                    "chosen_by": curves.chosen_by})


def _compare_checkpoints(curves: TrainingCurves, o: TrainOptions, env: str | None, options: Sequence[object],
                         robot: Sequence[str]) -> list[str]:
    """The command that compares the last checkpoint with the best one if the held-out error has risen since its least
    value, as a list of one or none.

    Args:
        env: The environment in which the policy can be judged, if there is one.
        robot: The options that name the robot of the data, if a person has to judge.
    """
    if not curves.has_rising_error or curves.best in (None, curves.last):
        return []
    last, best = o.out / "last", o.out / "best"
    if env is not None:
        trust = trust_options(o.trust, env, o.out) or env_trust_options(env)
        return [command_line("compare", last, best, "--env", env, *options, *trust)]
    return [command_line("eval", last, "--against", best, "--interactive", *robot,
                         *trust_options((), None, o.out))] if robot else []


def _refuse_old_names(args: list[str]) -> None:
    """Raises ConfigError for options that earlier versions called --learner.NAME and --method.NAME."""
    present = present_names(args)
    if present != args:
        old, new = next((old, new) for old, new in zip(args, present, strict=True) if old != new)
        own, options, changes = split_arguments(present, TrainOptions)
        _check_options(own, [*options, *changes])  # the method may have no such option, but one of a similar name
        raise ConfigError(f"there is no option {old.partition('=')[0]}", where="understudy train",
                          hint=f"write {new.partition('=')[0]}")


def _check_options(own: list[str], options: list[str]) -> None:
    """Raises ConfigError for an option that neither the command nor the method has, such as --otu in place of --out."""
    if options and own and not own[0].startswith("-"):
        from .parts.method import build_method  # imports PyTorch, which takes seconds

        build_method(own[0], options, [], None, _trusted(own), flags=FLAGS)


def _open_prior(data: Dataset, o: TrainOptions, path: Path) -> Dataset:
    """Opens the episodes of --prior. Warns if they do not fit the episodes of DATA."""
    from ..evaluate.simulator_versions import other_environments
    from ..learn.train import recorded_simulators

    refuse_given(o, ("buffer_size",), "a stream cannot be mixed with the episodes of --prior")
    prior = _open(path, o)
    if problem := other_environments(recorded_simulators(prior), recorded_simulators(data)):
        print(f"warning: --prior {path} has data of {problem}", file=sys.stderr)
    else:
        warn_of_other_units(data, str(_data_path(o)), prior, f"--prior {path}")
    return prior


def _mix(sources: Sequence[Dataset]) -> tuple[Dataset, MixtureWeights | None]:
    """Mixes DATA, as the part "task", with the episodes of --prior, as the part "prior". Or returns DATA alone."""
    from ..data.mixture import mix

    return mix(task=(sources[0], 0.5), prior=(sources[1], 0.5)) if len(sources) > 1 else (sources[0], None)


def _loggers(o: TrainOptions) -> list[TensorBoard | Wandb]:
    """Builds the loggers that the user asked for. A missing package is an error before the training starts."""
    from ..learn.callbacks import TensorBoard, Wandb

    loggers: list[TensorBoard | Wandb] = []
    if o.tensorboard:
        loggers.append(TensorBoard(o.out / "tensorboard"))
    if o.wandb is not None:
        name = str(o.out.resolve())  # the same run continues in the same place
        loggers.append(Wandb(folder=o.out, project=o.wandb, name=o.out.name, resume="allow",
                             id=sha256(name.encode()).hexdigest()[:16]))
    return loggers


def _logged_config(o: TrainOptions, method: Method) -> dict:
    """Returns the whole configuration of a training, for Weights & Biases."""
    options = {k: v for k, v in options_to_json(o).items() if k not in ("method", "data", "seed", "json")}
    return {"method": o.method, "data": _data_path(o).name, "seed": o.seed, "understudy": __version__,
            "options": options, "configuration": dump(method)}


def _with_runs(method: Method, o: TrainOptions) -> tuple[Method, dict[str, Path]]:
    """Returns the method with the stages that --from and --stage give, and the run of each stage."""
    from ..learn.method import InitializeFrom, find_references, is_trained_in_stage, online_changes
    from ..learn.stages import continue_from, use_run

    stages: dict[str, Path] = {}
    for text in o.stage:
        name, run = split_pair("--stage", text, "base=runs/base")
        tell_checkpoint(Path(run))
        method, stages[name] = use_run(method, name, run, o.trust), Path(run)
    if o.from_run is None:
        refuse_given(o, ("freeze", "load"), "needs --from RUN", "name the run whose weights are taken over")
        return method, stages
    if invalid_parts := [part for part in o.freeze if part.partition(".")[0] not in InitializeFrom.train]:
        raise UserError(f"{invalid_parts[0]!r} is not codec, encoder, net or a part inside these",
                        where="--freeze", hint="such as --freeze encoder, or --freeze net encoder.maps")
    if not_loaded := [part for part in o.freeze if not any(f"{part}.".startswith(f"{name}.") for name in o.load)]:
        raise UserError(f"{not_loaded[0]} is not loaded, so that its weights would stay random",
                        where="--freeze", hint=f"load it, too: --load {' '.join((*o.load, not_loaded[0]))}")
    if {"encoder", "net"} <= set(o.freeze):
        raise UserError("nothing is left to train", where="--freeze", hint="freeze fewer parts, such as encoder")
    if is_trained_in_stage(method):
        name = method.stages[-1].name
        raise UserError(f"{o.method} is trained in its stage {name!r}, which starts again", where="--from",
                        hint=f"leave it out, or keep what the stage trained: --stage {name}="
                             f"{run_folder(o.from_run) / 'stages' / name}")
    tell_checkpoint(o.from_run)
    _refuse_other_network(method, o)
    # what the policy reads, and what its actions mean, must stay as it was when the policy was trained
    shared = {reference.stage for reference in find_references((method.wrapper, online_changes(method)))}
    for name in (stage.name for stage in method.stages if stage.name in shared - stages.keys()):
        if (folder := run_folder(o.from_run) / "stages" / name).is_dir():
            method, stages[name] = use_run(method, name, folder, o.trust), folder
    train = tuple(part for part in InitializeFrom.train if part not in o.freeze)
    frozen = tuple(part for part in o.freeze if part not in InitializeFrom.train)
    return continue_from(method, o.from_run, o.load, train, frozen, o.trust), {**stages, "from": o.from_run}


def _refuse_other_network(method: Method, o: TrainOptions) -> None:
    """Refuses --from a run with a network for another head or trunk, before anything is trained."""
    from ..checkpoint import find_checkpoint, is_lerobot_checkpoint
    from ..learn.method import Method

    assert o.from_run is not None
    folder = find_checkpoint(o.from_run)
    if not any(part.partition(".")[0] == "net" for part in o.load) or is_lerobot_checkpoint(folder):
        return
    other = Method.load(o.from_run, o.trust).policy
    parts = [(kind, type(getattr(other, kind)).__name__, type(getattr(method.policy, kind)).__name__)
             for kind in ("head", "trunk")]
    if not (differing := [part for part in parts if part[1] != part[2]]):
        return
    earlier = train_options_of(o.from_run)
    same = "the same method" if earlier is None else earlier.method
    version = read_provenance(o.from_run).get("versions", {}).get("understudy")
    was = " and ".join(f"the {kind} {recorded_class}" for kind, recorded_class, _ in differing)
    now = " and ".join(f"the {kind} {current_class}" for kind, _, current_class in differing)
    raise ConfigError(
        f"was trained with another method{'' if earlier is None else f' ({same})'}: its network is for {was}, and "
        f"{o.method} has {now}"
        + (f". It was written by understudy {version}, and this is {__version__}" if version not in (None, __version__)
           else ""), where=f"--from {o.from_run}",
        hint=f"train {same}, or take over only what does not depend on the method: --load codec encoder")


def _collection_env(method: Method, data: Dataset, o: TrainOptions, existing_stages: Container[str] = ()) -> Env | None:
    """Makes the environment in which the method and its stages collect episodes, or returns None."""
    from ..envs import make
    from ..envs.registry import base_name

    def collects(m: Method, existing_stages: Container[str] = ()) -> bool:
        return m.collection is not None or any(
            collects(stage.method) for stage in m.stages if stage.name not in existing_stages)
    if not collects(method, existing_stages):
        if o.env is not None:
            raise UserError("the method collects no episodes", where="--env",
                            hint="leave it out, use --eval ENV to roll out in it during training, or train a method "
                                 "that practices, such as td3-bc or sac. In Python others practice with a collection "
                                 "(docs/collecting.md)")
        return None
    name = o.env or recorded_env(data)
    if name is None:
        return None
    env = make(name, COLLECTION_ROWS, o.trust)
    recorded = recorded_env(data)
    if recorded is not None and base_name(recorded) != base_name(env.metadata.get("env", name)):
        print(f"warning: the demonstrations are of {recorded}, and the method practices in {name}", file=sys.stderr)
    if method.collection is not None:
        _check_policy_fits(method, data, env)
    return env


def _open_stream(o: TrainOptions):
    from ..data.opening.stream import ShardStream

    refuse_given(o, ("image_size", "map", "max_episode_steps"),
                 "cannot be combined with --buffer-size: shards are read as they are", "leave one of the two out")
    assert o.buffer_size is not None
    stream = ShardStream(_data_path(o), o.buffer_size)
    print(f"a stream of {len(stream):,} episodes, {stream.steps:,} steps in {len(stream.shards)} "
          f"shard{'s' * (len(stream.shards) != 1)}; statistics and validation are of the first "
          f"{min(FIRST_LINE_STEP, len(stream))}", file=sys.stderr)
    return stream


def training_plan(method: Method, existing_stages: Container[str] = ()) -> str:
    """Describes the stages of a method and its data collection, with their numbers of updates. Empty if it has none.

    Empty if it has none.

    Args:
        existing_stages: Names of the stages that are not trained, because there is a run for them.
    """
    if not method.stages and method.collection is None:
        return ""
    own = f"{method.learner.steps:,} updates" if method.collection is None else method.collection.describe()
    if not method.stages:
        return own
    plans = ["taken from its run" if s.name in existing_stages else _stage_plan(s.method) for s in method.stages]
    parts = [f"stage {stage.name}: {plan}" for stage, plan in zip(method.stages, plans, strict=True)]
    return "; then ".join([*parts, f"the method: {own}"])


def _stage_plan(method: Method) -> str:
    plan = training_plan(method) or f"{method.learner.steps:,} updates"
    return f"({plan})" if method.stages else plan


class ProgressPrinter:
    """A callback that prints one line per checkpoint, with its validation result if there is one, and the mean loss
    since the last line. While episodes are collected it prints one line per round.

    Args:
        steps: Number of updates. None if it is unknown.
        every: Updates between lines. None for a tenth of all.
        stage: Name of the stage that is trained. Only its loss is printed, because the validation of a stage may judge
            a part that is not trained alone.
        of_latents: Whether the held-out error is an error of latents, and not of actions.
        rounds: Number of rounds in which episodes are collected.
    """

    def __init__(self, run: Run, steps: int | None, every: int | None, has_validation: bool, stage: str | None = None,
                 of_latents: bool = False, rounds: int = 0):
        from ..learn.train import default_save_freq
        from ..learn.training_curves import held_out_name

        self.names = {"score": "score in rollouts", "validation/energy": held_out_name(of_latents)}
        self.run, self.steps, self.has_validation, self.rounds = run, steps, has_validation, rounds
        self.every = every or (None if steps is None else default_save_freq(steps))
        self.losses: list[float] = []
        self.stage = stage
        # The first update and the first round of this process, and when they were done.
        self.first_update: tuple[int, float] | None = None
        self.first_round: tuple[int, float] | None = None

    def __call__(self, step, learner, metrics) -> None:
        from ..learn.callbacks import is_update

        self.first_update = self.first_update or (step, time.monotonic())
        if "round" in metrics:
            self._print_round(step, metrics)
            return
        if is_update(metrics):
            if "loss" in metrics:
                self.losses.append(metrics["loss"])
            if self.has_validation or self.every is None or step != self.steps and step % self.every:
                return
        elif self.stage is not None:
            return
        measurements = [f"{name} {metrics[key]:.4g}" for key, name in self.names.items() if key in metrics]
        losses = self.losses or self._logged_losses(step)
        if losses:
            measurements.append(f"loss {sum(losses) / len(losses):.4g}")
        if measurements and self.steps is not None:
            measurements += _time_left(self.first_update, step, self.steps)
        if measurements and self.stage is None:
            print(f"update {step}: {', '.join(measurements)}", file=sys.stderr)
        elif measurements:
            print(f"stage {self.stage}: update {step} of {self.steps}, {', '.join(measurements)}", file=sys.stderr)
        self.losses.clear()

    def _print_round(self, step, metrics) -> None:
        names = {"round/success": "success", "round/return": "return", "score": "score without a supervisor"}
        measurements = [f"{name} {metrics[key]:.4g}" for key, name in names.items() if key in metrics]
        if self.losses:
            measurements.append(f"loss {sum(self.losses) / len(self.losses):.4g}")
        self.first_round = self.first_round or (metrics["round"], time.monotonic())
        measurements += _time_left(self.first_round, metrics["round"], self.rounds - 1)
        prefix = "" if self.stage is None else f"stage {self.stage}: "
        print(f"{prefix}update {step}: round {metrics['round']} has {metrics['round/episodes']} episodes, "
              f"{metrics['round/steps']} steps" + "".join(f", {part}" for part in measurements), file=sys.stderr)
        self.losses.clear()

    def _logged_losses(self, step: int) -> list[float]:
        """Returns the logged losses since the last line, for a run that was interrupted before a checkpoint."""
        if self.every is None:
            return []
        return [line["loss"] for line in self.run.read_metrics()
                if (step - 1) // self.every * self.every < line["step"] <= step and line.get("loss") is not None]


def _time_left(first: tuple[int, float], done: int, last: int) -> list[str]:
    """Estimates how long the updates or rounds after number `done` take, from the time since the first one.

    A list of one text, or of none if it is unknown or short.
    """
    number, began = first
    seconds = (time.monotonic() - began) / (done - number) * (last - done) if done > number else 0.0
    return [f"about {format_duration(seconds)} left"] if seconds >= TOLD_SECONDS else []


def _stage_printer(stage: Stage, run: Run) -> ProgressPrinter:
    steps = stage.method.learner.steps if stage.method.collection is None else None
    return ProgressPrinter(run, steps, None, has_validation=False, stage=stage.name)


def _print_help(own: list[str], options: list[str]) -> None:
    """Prints the help page of the command and, if a method is named, every field that can be set."""
    with contextlib.suppress(SystemExit):
        print_help(TrainOptions, "understudy train")
    if own and not own[0].startswith("-"):
        from .methods import settings_table
        from .parts.method import build_method

        trust = _trusted(own)
        print(f"\nWhat can be set in {own[0]}, and its defaults:\n")
        Output().print(settings_table(own[0], build_method(own[0], options, [], None, trust), trust))
    sys.exit(0)


def _trusted(own: list[str]) -> tuple[str, ...]:
    """Returns the packages of --trust, before the options are parsed."""
    search_current_folder(trust := trusted_packages(own))
    return trust


def _task_relabel(data: Dataset) -> TaskText:
    """Builds a transform that adds the task text, with room for the longest one."""
    from ..data.tasks import task_texts
    from ..data.text_columns import TaskText

    longest = max(len(str(text).encode()) for episode in data for text in task_texts(episode))
    if not longest:
        raise UserError("the data have no tasks in words", where=data.metadata.get("path", "data set"),
                        hint="keep them in the column or metadata 'task' of each episode, or leave out --language")
    return TaskText(max(TaskText().max_bytes, longest))


def _check_policy_fits(method: Method, data, env: Env) -> None:
    """Raises UserError before the training if the policy could not act in the environment."""
    from ..envs.image_obs import check_images
    from ..learn.method import find_references, policy_features, training_data
    from ..nets.vision import without_downloads
    from ..policy import Policy, check_features

    if method.inference or method.wrapper is not None or any(find_references(method.transforms)):
        return  # what the actor reads is known when the stages are trained
    data = training_data(data, method)
    with without_downloads():  # nothing is fetched for this
        policy = Policy(method.policy, data.features())
    check_images({name: policy.features[name] for name in policy.inputs}, env)
    recorded = recorded_env(data)
    show = demonstration_part(method)  # it is given while acting
    frames = {} if show is None else {name: policy.features[name] for name in show.into}
    check_features(
        policy, policy_features(method, {**env.features, **frames}), str(env.metadata["env"]), resized=True,
        hint=OTHER_COLUMNS if recorded == env.metadata["env"] else
        "name the environment of the demonstrations" + (f", which is {recorded}" if recorded else "")
        + ", or take demonstrations of this one")
    tell_scaled_images(policy, env, data.metadata.get("camera_sizes"), "the policy")


def _make_score(env: Env, episodes: int, seed: int) -> Score:
    """Builds the score of checkpoints: success if the environment defines it, otherwise mean return.

    Checkpoints share starts, which `eval` never uses.
    """
    from ..evaluate.evaluation import evaluate, validation_seed
    from ..learn.run import IS_SUCCESS

    def score(actor: Actor) -> dict[str, float]:
        evaluation = evaluate(actor, env, episodes, validation_seed(seed))
        return {"score": (evaluation.success or evaluation.returns).estimate,
                IS_SUCCESS: float(evaluation.success is not None)}
    return score
