"""Trains a method on episodes into a run's folder: stages, checkpoints, validation, rollouts, exact resuming."""

from __future__ import annotations

import contextlib
import os
import platform
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, cast

import numpy as np
import torch

from .. import __version__, config
from ..checkpoint import CheckpointModule
from ..core import (
    AtLeast,
    DataWarning,
    Schema,
    Unsupported,
    UserError,
    as_seed,
    part,
    role,
    unknown_name,
)
from ..data.batch_sampler import BatchSampler
from ..data.cache import json_digest
from ..data.device_windows import to_device
from ..data.episode import Dataset
from ..data.formats import open_dataset, write_dataset
from ..data.formats.remote import url_of
from ..data.opening.stream import ShardStream
from ..data.tasks import SHOWN_TASK, task_texts
from ..data.text_columns import TaskText
from ..data.window import SamplingWeights, Windows
from ..execute.actor import LAST_REWARD, Actor
from ..files import replace_nonfinite, whole_folder
from ..heads.base import MemoryHead
from ..hub import folder_name
from ..interrupts import INTERRUPTS, leave_closed_terminal
from ..policy import Policy, find_checkpoint, policy_inputs
from . import devices
from .algorithm import Algorithm
from .background_updates import update_meanwhile
from .callbacks import LossCurve, ProgressBar
from .captured import capture
from .devices import Processes
from .fit import Callback, Learner, fit
from .fit_method import (
    ROWS,
    MethodTraining,
    acting_policy,
    check_arguments,
    check_collection,
    fit_policy,
    part_of,
)
from .method import (
    Method,
    Stage,
    build_actor,
    build_planner,
    find_references,
    load_references,
    resolve_references,
    stage_folder,
    with_steps,
)
from .model_card import evaluations, write_model_card
from .preflight import VAL_FRACTION, Preflight, episode_findings, preflight, reward_findings, tell
from .run import IS_SUCCESS, Run, comparable_scores, describe_differences, warn_of_other_arithmetic
from .same_run import MAX_DIFFERENCES, check_same_run, present_document
from .stages import (
    build_learner,
    check_stage_columns,
    check_stages,
    copy_run,
    is_finished,
    learned_digests,
    packages_of,
    stage_provenances,
    stages_before,
)
from .training_episodes import (
    EpisodeSplit,
    TrainingEpisodes,
    ValidationEpisodes,
    training_episodes,
    validation_data,
)
from .validation import Validation, target_scale, warn_of_learning_rate

Score = Callable[[Actor], float | Mapping[str, Any]]  # higher is better; or metrics, of which "score" is that number
CURVE_POINTS = 500  # of a training curve
MAX_UNSAVED_SECONDS = 10 * 60  # seconds of work that a power cut may cost


@part
class RunConfig:
    """Options of `train` besides the method, the data and the folder.

    Args:
        steps: Number of updates. None: the number in the method (see `method.with_steps`).
        seed: Seed of the first weights, the order of the data, noise and dropout.
        device: Where to compute. "auto" takes a GPU if there is one.
        score: Scores the method's actor (its success over rollouts, for example). The best checkpoint has the best
            score. Without a score it has the best rollouts of the policy in the rounds of a collection, or else the
            smallest validation error. Of equal checkpoints the later one is best. The final evaluation must use other
            seeds than the score.
        save_freq: Updates between checkpoints. Each checkpoint is validated and scored. None: a tenth of all, or, if
            the method collects episodes, a tenth of its rounds.
        val_fraction: Fraction of the episodes held out for validation (at least one of 5 or more), or their numbers.
            The choice does not depend on `seed`, so that policies of different seeds are judged on the same episodes.
        callbacks: Called after every update, and after every validation with {"validation/energy": ...}.
        sampling_weights: Relative rate at which each step starts a window (see `data.mixture`). A frozen dataclass.
        stream: Where the windows come from, shard by shard. `data` are then the first episodes of the stream: they give
            columns, statistics and validation. Not for a method that keeps its data (knn), nor with `sampling_weights`.
        progress: A progress bar on standard error. None: where that is a terminal.
        resume: False refuses a folder that holds a run.
        command: The command that the model card gives for training this again.
        options: The options of that command as JSON data, with its name as "command".
        include_interrupted: Also train on episodes whose recording was interrupted. Otherwise they are left out, with a
            warning that names them. Of a stream, only interrupted episodes among the first episodes are known and left
            out.
        stages: Existing runs that take the place of stages, by the stage's name. They are copied into the run and not
            trained. `stages.use_run` gives the method of such a stage.
        stage_callbacks: Returns the callbacks of a stage that is trained, given the stage and its run. `callbacks` are
            not called during stages.
        env: The environment (`understudy.envs.Env`) in which the method collects episodes. Its number of rows does not
            change the result. Only for a method with `collection`.
        title: What the progress bar calls the training.
        compile: Compile whole updates (see `learn.captured`). Stages are trained without.
    """

    steps: Annotated[int | None, AtLeast(0)] = None
    seed: int | np.integer = 0
    device: str | torch.device = "auto"
    score: Score | None = None
    save_freq: Annotated[int | None, AtLeast(1)] = None
    val_fraction: float | Sequence[int] = VAL_FRACTION
    validation: Validation | None = None
    callbacks: Iterable[Callback] = ()
    sampling_weights: SamplingWeights | None = None
    stream: ShardStream | None = None
    progress: bool | None = None
    resume: bool = True
    command: str | None = None
    options: Mapping[str, Any] | None = None
    include_interrupted: bool = False
    stages: Mapping[str, Path | str] = field(default_factory=dict)
    stage_callbacks: Callable[[Stage, Run], Iterable[Callback]] | None = None
    env: Any = None
    person: Actor | None = None
    title: str = "training"
    compile: bool = False

    def __post_init__(self):
        object.__setattr__(self, "seed", as_seed(self.seed, bits=63))


def train(method: Method, data: Dataset, out: Path | str, **options: Any) -> Policy:
    """Trains a method, and the stages it needs, into the folder of a run.

    The same call continues a stopped run. The result is then bit-equal to a run that was never stopped, on the same
    class of machine with the same number of threads and processes.

    A call with more `steps` continues a run whose learning rate does not depend on their number
    (`lr_schedule="constant"`). It ends with the same weights as a run with that many steps from the start. Only the
    updates at which checkpoints are validated differ, unless `save_freq` is given. Stages that are not finished are
    trained first, each in `out`/stages/NAME, with the same seed and the same episodes held out. Under torchrun or
    accelerate all processes train one policy together.

    Args:
        **options: Fields of `RunConfig`, such as ``seed=1, device="cpu", score=score``.

    Returns:
        The policy after the last update.

    Raises:
        UserError: The run in `out` is of another method, data or seed, or the method does not fit the data.
        KeyboardInterrupt: After Ctrl-C, once the state is saved.

    Example:
        >>> policy = train(find_method("bc"), open_dataset("demos"), "runs/bc", seed=1)
    """
    check_arguments(method, data)
    names = [f.name for f in fields(RunConfig)]
    for name in options.keys() - set(names):
        raise unknown_name("option", name, names, "train")
    run_config, run = RunConfig(**options), Run(Path(out))
    device = devices.choose_device(run_config.device)
    _check_options(method, run, run_config)
    if run_config.steps is not None:
        method = with_steps(method, run_config.steps, run_config.stages)
    with (devices.deterministic(device), devices.process_group(device) as processes,
          run.locked() if processes.first else contextlib.nullcontext()):
        prepared = _prepare(method, data, run, run_config, device, processes)
        loop = _RunTraining(prepared)
        if prepared.last_saved_step is None:
            processes.broadcast(list(loop.learner.state()[0].values()))
            loop.save(0)
        else:
            loop.resume(prepared.last_saved_step)
        processes.wait()
        _update(loop, prepared)
        if processes.first:
            write_model_card(run, method, prepared.documents["provenance.json"])
        processes.wait()
        return acting_policy(loop.learner, loop.data)


def _update(loop: _RunTraining, prepared: _Preparation) -> None:
    """Makes all remaining updates, with the rounds of a data collection, and evaluates the last checkpoint."""
    run_config, processes, stream = prepared.config, prepared.processes, prepared.config.stream
    method, collection = prepared.resolved, prepared.resolved.collection
    total = method.learner.steps if collection is None else None
    with ProgressBar(total, loop.n_updates, bar=run_config.progress if processes.first else False,
                     title=run_config.title) as bar:
        loop.watches = (*run_config.callbacks, bar) if processes.first else ()
        if collection is not None:
            collection.run(loop)
        else:
            loop.restore()
            if stream is None:
                sampler = loop.learner.batch_sampler(loop.annotated(loop.data), run_config.sampling_weights)
            elif loop.learner.annotates:
                raise Unsupported(f"{type(method.learner).__name__} adds columns to all episodes before it trains, and "
                                  "a stream has only some in memory", where="stream",
                                  hint="train without a stream (--buffer-size)")
            else:
                # A learner that samples in another way than by windows has no stream.
                sampler = stream.exclude(prepared.split.excluded).windows(
                    lambda part: cast(Windows, loop.learner.batch_sampler(loop.transform(part))))
            loop.update(sampler, method.learner.steps)
        loop.evaluate()


def _check_options(method: Method, run: Run, run_config: RunConfig) -> None:
    """Raises UserError for options that do not fit the method, before anything is computed."""
    if run_config.compile and not isinstance(method.learner, Algorithm):
        raise Unsupported("updates cannot be compiled: this learner, such as that of PPO, is not an `Algorithm`",
                          where=type(method.learner).__name__, hint="train without --compile")
    weights, stream = run_config.sampling_weights, run_config.stream
    check_stages(method, stages_before(run.folder))
    check_collection(method, run_config.env, run_config.person, weights, stream, run_config.stages.keys())
    window = method.policy.window
    if method.learner.next_obs and window.action_offset + (method.learner.lookahead or window.horizon) < 0:
        raise UserError(
            f"the method learns from what follows a chunk, but with action_offset={window.action_offset} and "
            f"horizon={window.horizon} the chunk is over before it is chosen",
            where="Window",
            hint="let action_offset + horizon be 0 or more")
    if stream is not None and (weights is not None or isinstance(method.policy.head, MemoryHead)
                               or method.learner.compares):
        raise UserError("a stream cannot be used with "
                        + ("the weights of a mixture" if weights is not None
                           else "a method that compares with demonstrations" if method.learner.compares
                           else "a method that keeps all of its data"),
                        where="stream", hint="open the data as a whole")


@dataclass(frozen=True)
class _Preparation:
    """What `train` has prepared before the next update of a run."""

    run: Run
    config: RunConfig
    device: torch.device
    processes: Processes
    resolved: Method  # with the modules of its stages
    recorded_columns: Schema  # of the data before the method's transforms
    split: EpisodeSplit
    episodes: TrainingEpisodes
    validation: ValidationEpisodes
    documents: dict[str, Any]  # of each checkpoint, by file name
    modules: Mapping[Any, CheckpointModule]
    last_saved_step: int | None  # step of the checkpoint from which the run continues; None for a new run

    def build_learner(self, episodes: Dataset) -> Learner:
        """Builds the learner, with the statistics of these episodes if the policy has none."""
        method, seed = self.resolved, int(self.config.seed)
        with devices.seeded(seed, self.device):
            policy = Policy(method.policy, self.episodes.complete.features()).to(self.device)
            # A resumed learner may also read statistics when it is built, but not what takes longer to fit.
            is_new = self.last_saved_step is None or method.collection is not None
            fit_policy(policy, episodes, method.initialize_from, self.modules, fit_head=is_new)
            learner = build_learner(method, policy, seed, episodes, self.modules)
        if self.config.compile:
            capture(learner)
        return learner


def _prepare(method: Method, data: Dataset, run: Run, run_config: RunConfig, device: torch.device,
             processes: Processes) -> _Preparation:
    """Splits the episodes, trains the stages, and checks that an existing run has this method, data and seed."""
    processes.wait()
    last = max(run.saved_steps(), default=None)
    processes.wait()  # before the first one saves anything: all take the same way
    checked = preflight(method, data, val_fraction=run_config.val_fraction, stream=run_config.stream,
                        include_interrupted=run_config.include_interrupted)
    tell(checked.findings, stacklevel=3, errors_alone=not processes.first)
    provenance = make_provenance(checked, run_config, device, processes)
    provenance["data"]["path"] = _path_from(run.folder, checked.recorded.metadata.get("path"))
    if method.collection is not None:
        env = run_config.env
        provenance["collected_in"] = env.metadata["env"] if env is not None else None
    documents = _check_or_resume(method, run, run_config, provenance, last)
    _prepare_stages(method, checked, run, run_config, processes, is_new=last is None)
    provenance["stages"] = {stage.name: Run.fingerprint(find_checkpoint(stage_folder(run.folder, stage.name)))
                            for stage in method.stages}
    if processes.first:
        _warn_of_seen_episodes(provenance, stage_provenances(run.folder))
    if last is not None:
        check_same_run(run, last, documents)
        if method.collection is not None or last < method.learner.steps:
            warn_of_other_arithmetic(run.read_checkpoint_json(last, "provenance.json"), provenance)
    recorded_columns = checked.recorded.features()
    resolved, modules = _resolve(method, run, device, recorded_columns)
    if (episodes := checked.episodes) is None:  # the stages have trained what the transforms refer to
        episodes = training_episodes(checked.recorded, resolved, checked.split)
        findings = chain(episode_findings(resolved, episodes), reward_findings(resolved, episodes.learned))
        tell(findings, stacklevel=3, errors_alone=not processes.first)
    if run_config.stream is None and method.collection is None:  # otherwise there are more episodes than these
        provenance["data"]["tasks"] = trained_tasks(method, episodes.learned)
    if processes.first:
        warn_of_learning_rate(method)
    validation = validation_data(checked.recorded, resolved, checked.split, episodes.learned)
    return _Preparation(run, run_config, device, processes, resolved, recorded_columns, checked.split, episodes,
                        validation, documents, modules, last)


def _check_or_resume(method: Method, run: Run, run_config: RunConfig, provenance: dict[str, Any], last: int | None
                     ) -> dict[str, Any]:
    """Returns the documents of the checkpoints. Raises UserError if the run exists, or is resumed but not the same."""
    if not run_config.resume and (last is not None or (run.folder / "stages").exists()):
        raise UserError("the run already exists", where=run.folder, hint="choose another --out")
    documents = {"method.json": config.dump(method), "provenance.json": provenance}
    if last is not None:
        stored = run.read_checkpoint_json(last, "method.json")
        if stored["learner"].get("steps") != method.learner.steps:
            documents["method.json"]["stages"] = stored.get("stages", [])  # finished, with their own numbers of updates
        old_stages = run.read_checkpoint_json(last, "provenance.json").get("stages", {})
        check_same_run(run, last, {**documents, "provenance.json": {**provenance, "stages": old_stages}})
    return documents


def _resolve(method: Method, run: Run, device: torch.device, recorded: Schema
             ) -> tuple[Method, Mapping[Any, CheckpointModule]]:
    """Returns the method with the modules of its stages in place of references, and these modules."""
    references = {*find_references(method), *(part.source for part in method.initialize_from)}
    modules = load_references(references, run.folder, packages_of(method), device)
    check_stage_columns(method, modules, recorded)
    return resolve_references(method, modules), modules


def default_save_freq(steps: int) -> int:
    """Returns the default number of updates between checkpoints."""
    return max(-(-steps // 10), 1)


class _RunTraining(MethodTraining):
    """A training in the folder of a run, with checkpoints from which it can continue."""

    save_freq: int | None  # updates between evaluated checkpoints; None: `update` is told when

    def __init__(self, prepared: _Preparation):
        run_config, method, run = prepared.config, prepared.resolved, prepared.run
        self.prepared, self.run, self.method, self.data = prepared, run, method, prepared.episodes.learned
        self.processes, self.seed, self.env, self.person = (prepared.processes, int(run_config.seed), run_config.env,
                                                            run_config.person)
        collection = method.collection
        self.learner = prepared.build_learner(
            self.data if collection is None else collection.initial_data(self.data))
        self.recorded = prepared.recorded_columns
        _check_acts(method, self.learner, self.recorded)
        self.save_freq = run_config.save_freq or (default_save_freq(method.learner.steps) if collection is None
                                                  else None)
        self.judge = _CheckpointEvaluation(prepared)
        self.folder, self.n_updates = run.folder / "collection", 0
        self.watches: tuple[Callback, ...] = ()
        self.resumed_at: int | None = None
        self.evaluated_at: int | None = None
        self.curve = LossCurve(max(method.learner.steps // CURVE_POINTS, 1), self._log)
        self.seconds, self.began = 0.0, time.perf_counter()

    def elapsed(self) -> float:
        return round(self.seconds + time.perf_counter() - self.began, 3)

    def _log(self, **line):
        self.run.log_metrics(**line, seconds=self.elapsed())

    def annotated(self, data: Dataset) -> Dataset:
        if not self.learner.annotates:
            return data
        folder = self.run.folder / "annotated"
        if self.processes.first and not folder.is_dir():
            episodes = self.learner.annotate(data, None)
            without_images = episodes.map(lambda e: e.replace(  # images are large, and unchanged
                {k: None for k, f in e.features().items() if f.kind == "image"}))
            with whole_folder(folder) as part:
                write_dataset(without_images, part / "episodes.npz", "npz")
        self.processes.wait()
        stored = open_dataset(folder / "episodes.npz")
        return Dataset([replace(episode.replace(dict(annotated.steps)), metadata=annotated.metadata)
                        for episode, annotated in zip(data, stored, strict=True)], data.metadata)

    def best_policy(self) -> Policy | None:
        best = self.run.named_checkpoints().get("best")
        return None if best is None else Policy.load(self.run.folder / best, packages_of(self.method),
                                                     self.prepared.device)

    def save(self, step: int) -> None:
        self.n_updates, self.last_save_time = step, time.perf_counter()
        if self.processes.first and step not in self.run.saved_steps():
            training_state = {"seconds": self.elapsed(), "curve": self.curve.state}
            self.run.save_checkpoint(step, self.learner, self.modules(), training_state, self.prepared.documents)

    def resume(self, step: int) -> None:
        """Continues from a checkpoint. The learner gets its state in `restore`."""
        self.n_updates = self.resumed_at = step
        self.last_save_time = time.perf_counter()

    def restore(self) -> None:
        if (step := self.resumed_at) is None:
            return
        training_state = self.run.resume(step, self.learner)
        self.seconds, self.curve.state = training_state["seconds"], training_state["curve"]
        if self.processes.first:
            self.run.name_checkpoints(last=step)
            self.run.truncate_metrics(step)

    def build_learner(self, data: Dataset) -> None:
        self.learner = self.prepared.build_learner(data)
        self.processes.broadcast(list(self.learner.state()[0].values()))

    def log(self, **metrics: float) -> None:
        if not self.processes.first:
            return
        if self.judge.score is not None:  # it judges every checkpoint on the same starts
            metrics = {name: value for name, value in metrics.items() if name not in ("score", IS_SUCCESS)}
        if not any(replace_nonfinite(metrics).items() <= line.items() for line in self.run.read_metrics()):
            self._log(step=self.n_updates, **metrics)
        if "score" in metrics:
            self.judge.choose(self.n_updates)
        for callback in self.watches:
            callback(self.n_updates, self.learner, metrics)

    def update(self, sampler: BatchSampler, until: int, *, evaluate: bool = True,
               meanwhile: Callable[[], None] | None = None) -> None:
        if meanwhile is not None:
            update_meanwhile(self.learner, sampler, range(self.n_updates, until), self.seed, meanwhile,
                             (self.curve, *self.watches))
            self.save(until)
        size, device = self.learner.config.batch_size, self.learner.policy.device
        share = self.processes.row_slice(size)
        if self.n_updates < until:
            sampler = to_device(sampler, device)
        batch = devices.prefetch(lambda n: sampler.batch(size, n, self.seed, share), device, until)
        every = self.save_freq
        while True:
            if (evaluate and self.n_updates == until if every is None else
                    self.n_updates > 0 and self.n_updates % every == 0):
                self.evaluate()
            if self.n_updates >= until:
                return
            stop = until if every is None else min((self.n_updates // every + 1) * every, until)
            self._advance(batch, stop)

    def evaluate(self) -> None:
        """Evaluates the current checkpoint, unless this has been done."""
        if self.processes.first and self.evaluated_at != self.n_updates:
            self.evaluated_at = self.n_updates
            self.judge(self)
        self.processes.wait()

    def _advance(self, batch, until: int) -> None:
        """Trains until update `until` or until an interrupt, and saves in both cases."""
        with DeferredInterrupts() as interrupts:
            def stop(step, learner, metrics):
                self.n_updates = step
                if self.processes.any(interrupts.seen):
                    raise _Interrupted
                if time.perf_counter() - self.last_save_time > MAX_UNSAVED_SECONDS:
                    self.save(step)
            own_callbacks = (self.curve,) if self.processes.first else ()
            try:
                fit(self.learner, batch, until, start=self.n_updates, callbacks=(*own_callbacks, *self.watches, stop))
                stopped = False
            except _Interrupted:
                stopped = True
            self.save(self.n_updates)
            stopped = self.processes.any(stopped or interrupts.seen)  # a signal may have come during the save
        self.processes.wait()
        if stopped:
            raise KeyboardInterrupt


class _Interrupted(Exception):
    pass


class _CheckpointEvaluation:
    """Evaluates each checkpoint (validation and score), and keeps only the last and the best one."""

    def __init__(self, prepared: _Preparation):
        self.run, self.method, self.recorded = prepared.run, prepared.resolved, prepared.recorded_columns
        self.validation, self.score = prepared.config.validation or Validation(), prepared.config.score
        target = prepared.resolved.policy.target
        is_validated = bool(target) and self.method.learner.validates
        self.held_out = prepared.validation.held_out if is_validated else Dataset([])
        self.scale = target_scale(prepared.validation.scale, target) if target else None

    def __call__(self, loop: _RunTraining) -> None:
        step = loop.n_updates
        logged = next((line for line in evaluations(self.run) if line["step"] == step), {})
        if not logged or (self.score and "score" not in logged):
            modules, metrics = loop.modules(), {}
            if len(self.held_out):
                policy = cast(Policy, modules["policy"])
                errors = self.validation.evaluate(policy, self.held_out, self.scale, self.method.executor)
                metrics = {f"validation/{k}": v for k, v in errors.items()}
            if self.score:
                score = self.score(build_actor(self.method, modules, ROWS, features=self.recorded))
                metrics |= score if isinstance(score, Mapping) else {"score": float(score)}
            if metrics:
                self.run.log_metrics(step=step, **metrics, seconds=loop.elapsed())
                for callback in loop.watches:
                    callback(step, loop.learner, metrics)
        self.choose(step)

    def choose(self, last: int) -> None:
        """Names the last and the best checkpoint, and removes the others."""
        lines = comparable_scores(self.run.read_metrics())
        scored = self.score is not None or any("score" in line for line in lines)
        best = best_step(lines, self.run.saved_steps(), "score" if scored else "validation/energy")
        self.run.name_checkpoints(last=last, **({} if best is None else {"best": best}))


def best_step(lines, steps: Iterable[int], by: str) -> int | None:
    """Returns the number of updates of the best checkpoint, among equals the latest. None if there is no metric `by`.

    Higher values of "score" are better. For every other metric, lower values are better.
    """
    value = {line["step"]: (line[by] if by == "score" else -line[by]) for line in lines
             if line.get(by) is not None and line["step"] in set(steps)}
    return max(value, key=lambda step: (value[step], step), default=None)


def _warn_of_seen_episodes(provenance: Mapping[str, Any], earlier: Mapping[str, Mapping[str, Any]]) -> None:
    """Warns of held-out episodes that an earlier run was trained on, whose weights are used here."""
    own, held_out = provenance["episodes"], provenance["held_out"]
    for name, other in earlier.items():
        learned = learned_digests(other) if other.get("episodes", {}).get("columns") == own["columns"] else set()
        if leaked := sum(own["digests"][i] in learned for i in held_out):
            warnings.warn(
                f"held-out episodes that the run in stages/{name} was trained on: {leaked} of {len(held_out)}; the "
                "validation error is too low, and may choose another best checkpoint. Evaluate on episodes that "
                "neither was trained on.", DataWarning, stacklevel=4)  # where `train` is called


def _prepare_stages(method: Method, checked: Preflight, run: Run, run_config: RunConfig, processes: Processes,
                    is_new: bool) -> None:
    """Copies the stages that are given, and trains the others of a new run, without the episodes that are held out."""
    for stage in method.stages:
        stage_run = Run(run.folder / "stages" / stage.name)
        if stage.name in run_config.stages:
            if processes.first:
                copy_run(run_config.stages[stage.name], stage_run.folder)
            processes.wait()
        elif is_new:
            part, callbacks = part_of(checked.recorded, stage.dataset), run_config.stage_callbacks
            _train_stage(stage, checked.recorded.select(part), stage_run, replace(
                run_config, steps=None, score=None, save_freq=None, command=None, options=None, resume=True, stages={},
                compile=False, title=f"stage {stage.name}",
                val_fraction=[i for i, n in enumerate(part) if n in checked.split.held_out],
                sampling_weights=run_config.sampling_weights if stage.dataset is None else None,
                callbacks=() if callbacks is None else callbacks(stage, stage_run)))


def _train_stage(stage: Stage, data: Dataset, run: Run, run_config: RunConfig) -> None:
    """Trains a stage, or continues it. Does nothing if it is finished."""
    if not is_finished(run, stage.method):
        train(stage.method, data, run.folder, **{f.name: getattr(run_config, f.name) for f in fields(run_config)})
        return
    last = max(run.saved_steps())
    old_method = run.read_checkpoint_json(last, "method.json")
    old_settings = {"method": present_document(old_method, packages_of(stage.method))}
    new_settings = {"method": config.dump(stage.method)}
    if (run.checkpoint_path(last) / "train").is_dir():  # the stage was trained here, and not copied
        trained = run.read_checkpoint_json(last, "provenance.json")
        old_settings |= {"seed": trained["seed"], "data": trained["data"]["fingerprint"]}
        new_settings |= {"seed": run_config.seed, "data": _fingerprint(data, run_config.stream)}
    if differences := list(describe_differences(old_settings, new_settings)):
        raise UserError("this stage was trained with other settings: " + "; ".join(differences[:MAX_DIFFERENCES]),
                        where=run.folder, hint="choose another --out, or give the command it was begun with")


def _check_acts(method: Method, learner: Learner, recorded: Schema) -> None:
    """Raises UserError before a training if the method's actor could not act afterwards."""
    if role(method.policy.target) != "action":  # a model of something else does not act
        return
    features = {**build_planner(method, learner.modules).features,
                **{k: f for k, f in recorded.items() if role(k) == "observation" and f.kind != "string"}}
    obs = {name: torch.zeros(1, *f.shape, dtype=f.torch_dtype) for name, f in features.items()}
    obs[LAST_REWARD] = torch.zeros(1)
    build_actor(method, learner.modules, features=recorded).start(obs, torch.zeros(1, dtype=torch.int64))


def _fingerprint(data: Dataset, stream: ShardStream | None) -> str:
    return data.fingerprint() if stream is None else json_digest(data.fingerprint(), stream.key)


def make_provenance(checked: Preflight, run_config: RunConfig, device: torch.device, processes: Processes
                    ) -> dict[str, Any]:
    """Describes the origin of a policy, for provenance.json. Only command and options name folders of this machine.

    The path of the data is added by the training, relative to the folder of the run.
    """
    data, stream = checked.recorded, run_config.stream
    source = data.metadata
    name = source.get("name") or folder_name(Path(str(source.get("path", "")))) or source.get("env")
    kind = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    all_data = data if stream is None else stream
    return {
        "data": {"name": name, "fingerprint": _fingerprint(data, stream),
                 "episodes": len(all_data), "steps": all_data.steps,
                 "format": source.get("format"), "fps": source.get("fps"), "robot": source.get("robot_type"),
                 "camera_sizes": source.get("camera_sizes"), "simulators": recorded_simulators(data),
                 "reading": {**source.get("reading", {}),
                             **({"mapping": source["mapping"]} if "mapping" in source else {})}},
        "episodes": checked.fingerprints,
        "held_out": list(checked.split.held_out), "left_out": list(checked.split.left_out), "seed": run_config.seed,
        "sampling_weights": config.dump(run_config.sampling_weights), "command": run_config.command,
        "options": run_config.options,
        "versions": {"understudy": __version__, "torch": torch.__version__, "numpy": np.__version__,
                     "python": platform.python_version()},
        "device": {"type": device.type, "name": kind, "threads": torch.get_num_threads(),
                   "processes": processes.count, "compiled": run_config.compile},
    }


def _path_from(folder: Path, path: str | None) -> str | None:
    """A path of data, relative to the folder of a run, which may be moved together with them. A URL as it is. None if
    nothing is there: the data may be of another machine."""
    if path is None or url_of(path) is not None:
        return path
    if not Path(path).exists():
        return None
    with contextlib.suppress(ValueError):  # on another drive
        return Path(os.path.relpath(path, folder)).as_posix()
    return str(Path(path).absolute())


def recorded_simulators(data: Dataset) -> dict[str, list[str]]:
    """Returns the simulators with which the episodes of each environment were recorded, from their metadata.

    Episodes of your own loop may name an environment without its simulator.
    At most 1000 episodes are read, evenly spaced ones.
    """
    simulators: dict[str, set[str]] = {}
    for i in np.linspace(0, len(data) - 1, min(len(data), 1000)).astype(int).tolist():
        metadata = data[i].metadata
        if isinstance(metadata.get("env"), str):
            versions = {metadata["simulator"]} if isinstance(metadata.get("simulator"), str) else set()
            simulators.setdefault(metadata["env"], set()).update(versions)
    return {env: sorted(names) for env, names in sorted(simulators.items())}


def trained_tasks(method: Method, data: Dataset) -> list[str] | None:
    """Returns the tasks in words on which a policy is trained, in alphabetical order.

    Args:
        data: The episodes that it is trained on, after its transforms.

    Returns:
        The tasks. None if the policy reads no words, or if there are more than 1000 tasks.
    """
    features = data.features()
    words = next((part.into for part in method.transforms if isinstance(part, TaskText)), SHOWN_TASK)
    if words not in policy_inputs(method.policy, features) or features[words].kind != "text":
        return None
    tasks: set[str] = set()
    for episode in data:
        tasks.update(str(text) for text in task_texts(episode) if text)
        if len(tasks) > 1000:
            return None
    return sorted(tasks)


class DeferredInterrupts:
    """Delays Ctrl-C and the signals of a scheduler and of a closed terminal until the current work is complete. A
    second signal is not delayed.

    Launchers forward what the terminal has already sent, so a signal that follows immediately is the same one.
    """

    ECHO_SECONDS = 2.0  # seconds

    def __init__(self):
        self.seen, self.since, self.before = False, 0.0, {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in INTERRUPTS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self.before[number] = signal.signal(number, self._on_signal)
        return self

    def _on_signal(self, number, frame):
        leave_closed_terminal(number)
        if not self.seen:
            self.seen, self.since = True, time.monotonic()
        elif time.monotonic() - self.since > self.ECHO_SECONDS:
            raise KeyboardInterrupt

    def __exit__(self, *error):
        for number, handler in self.before.items():
            signal.signal(number, handler)
