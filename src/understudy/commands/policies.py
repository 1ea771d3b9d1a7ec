"""Policies as commands use them: loading a run or an exported file, rolling it out, noting the result."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from .common import batch_rows, progress_bar

if TYPE_CHECKING:
    from ..core import Schema
    from ..envs.base import Env
    from ..evaluate.evaluation import Evaluation
    from ..execute.actor import Actor
    from ..policy import Planner
    from .eval_options import EvalOptions, RolloutOptions

ROWS = 16  # of every batch that the networks see, so that no result depends on --rows


def evaluate_run(
    run: Path, env, o: RolloutOptions, save_path: Path | None, *, name: str = "", workers: int | Literal["ray"] = 1
) -> Evaluation:
    """`run` in `env`, on the numbered starts; recorded into `save`, if given. name: of the environment, where `workers`
    make their own."""
    from ..evaluate.evaluation import evaluation_of
    from ..evaluate.recording import record_episodes
    from ..evaluate.workers import WorkerPool
    from .common import trained_rate, warn_simulator_mismatch

    assert o.episodes is not None  # the command has filled it in
    plays, by = load_actor(run, env, o)
    warn_simulator_mismatch(env, run)
    seat = partial(_worker_setup, run, o, name, batch_rows(env.rows, o.episodes, workers))
    began = time.perf_counter()
    with (progress_bar(f"{run.name} in {env.metadata['env']}", o.episodes) as progress,
          WorkerPool(seat, workers, local=(plays, env)) as crew):
        def watch(number, episode):
            progress()
        if save_path is None:
            data = crew.rollout(o.episodes, o.seed, watch=watch)
        else:
            data = record_episodes(env, plays, o.episodes, save_path, o.seed, actor_name=by, watch=watch, workers=crew,
                          fps=trained_rate(run))[:o.episodes]
        return evaluation_of(data, time.perf_counter() - began)


def _worker_setup(run: Path, o: RolloutOptions, name: str, rows: int) -> tuple[Actor, Env]:
    """What each worker has."""
    from ..envs import make

    env = make(name, rows, o.trust)
    return load_actor(run, env, o)[0], env


def load_actor(run: Path, env: Env, o: RolloutOptions) -> tuple[Actor, str]:
    """The actor of a run in an environment, and who that is, in words.

    Raises:
        UserError: The environment does not show what the policy reads.
    """
    from ..core import Feature, role
    from ..execute.actor import ObservationWrapper
    from ..policy import check_features

    words = task_columns(run, env.features, o)
    given = {name: Feature("uint8", tuple(value.shape), "text") for name, value in words.items()}
    planner, actor, shown = load_policy(run, o, ROWS, {**env.features, **given})
    columns = [*planner.inputs, *(name for name in planner.features if role(name) == "action")]
    check_features(planner, shown, f"{run} in {env.metadata['env']}", resized=True, columns=columns)
    by = f"policy {weights_digest(weights_path(run))}"
    return (ObservationWrapper(actor, words), f"{by}, told {o.task!r}") if words else (actor, by)


def is_exported(run: Path) -> bool:
    return run.suffix == ".onnx"


def weights_path(run: Path) -> Path:
    """What holds the weights: a checkpoint's folder, or the file."""
    from ..policy import find_checkpoint

    return run if is_exported(run) else find_checkpoint(run)


def load_policy(run: Path, o: RolloutOptions, rows: int | None,
                features: Schema | None = None) -> tuple[Planner, Actor, Schema]:
    """Loads a run or an exported file.

    Args:
        run: A run, a checkpoint, or a file of understudy export.
        o: The device, and whose code may be loaded.
        rows: The networks always see batches of this many rows; None for as many as there are.
        features: The columns of the environment, where they are known.

    Returns:
        The planner, the actor that executes its plans, and the columns that the planner sees of the environment.

    Raises:
        UserError: There is no such policy, or it cannot run on the device.
    """
    from ..core import UserError
    from ..deploy import onnx
    from ..learn.devices import choose_device
    from ..learn.method import TrainedRun, policy_features

    features = features or {}
    if not is_exported(run):
        trained = TrainedRun.load(run, o.trust, choose_device(o.device))
        shown = policy_features(trained.method, features) if features else {}
        return trained.planner(), trained.actor(rows, features=features or None), shown
    if o.device not in ("auto", "cpu"):
        raise UserError(f"expected the CPU, where ONNX files are run, found {o.device}", where="--device",
                        hint="evaluate the run that it was exported from")
    trust = ("understudy", *o.trust)
    return onnx.load(run, trust=trust), onnx.load_onnx_actor(run, rows=rows, trust=trust), features


def refuse_unused_task(runs: Sequence[Path], o: RolloutOptions) -> None:
    """Raises UserError if words are given and none of these policies reads any."""
    from ..core import UserError
    from ..learn.method import Method
    from .method import task_relabel

    if o.task is not None and not any(task_relabel(Method.load(r, o.trust)) for r in runs if not is_exported(r)):
        raise UserError("this policy was trained without words", where="--task",
                        hint="train it with --language, on data of several tasks")


def task_columns(run: Path, features: Schema, o: RolloutOptions) -> dict:
    """The columns that the task's words become, for a policy that reads them where the environment shows none."""
    import torch

    from ..core import UserError
    from ..learn.method import Method
    from .method import task_relabel

    say = None if is_exported(run) else task_relabel(Method.load(run, o.trust))
    if say is None or o.task is None and say.into in features:
        return {}
    if o.task is None:
        raise UserError(f"expected the task in words, which {run} reads, found none", where="--task",
                        hint="tell it as it was told in training: --task 'WORDS'")
    return {say.into: torch.from_numpy(say.encode(o.task).copy())}


def weights_digest(place: Path) -> str:
    """16 hex digits of an exported file, or of a checkpoint's weights and method."""
    from ..learn.run import Run

    return hashlib.sha256(place.read_bytes()).hexdigest()[:16] if place.is_file() else Run.fingerprint(place)


def run_folder(run: Path) -> Path:
    """The run's folder, or the checkpoint's where it stands alone."""
    from ..policy import find_checkpoint

    folder = find_checkpoint(run)
    return folder.parents[1] if folder.parent.name == "checkpoints" else folder


def append_result(o: EvalOptions, line: dict) -> None:
    """A line in RUN/eval/ENV.jsonl; an exported file stands for no run."""
    if is_exported(o.run):
        return
    from ..files import replace_nonfinite
    from ..policy import find_checkpoint

    assert o.target is not None
    folder = find_checkpoint(o.run)
    name = "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(o.target).name)
    file = run_folder(o.run) / "eval" / f"{name}.jsonl"
    about = {"checkpoint": folder.name, "mark": weights_digest(folder),
             "date": datetime.now(UTC).isoformat(timespec="seconds")}
    try:
        file.parent.mkdir(exist_ok=True)
        with open(file, "a", encoding="utf-8") as lines:
            lines.write(json.dumps(replace_nonfinite({**about, **line}), allow_nan=False) + "\n")
            lines.flush()
            os.fsync(lines.fileno())
    except OSError as error:  # somebody else's run, say: what was found is worth telling all the same
        print(f"this evaluation could not be written down: {file}: {error.strerror}", file=sys.stderr)


def run_names(runs: Sequence[Path]) -> list[str]:
    """Their folders' names, in full where these are the same."""
    return [run.name if len({r.name for r in runs}) == len(runs) else str(run) for run in runs]
