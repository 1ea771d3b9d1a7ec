"""Rolls out policies for commands."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import Unsupported, UserError
from ...serve.address import served_address
from .common import batch_rows, open_data, progress_bar, trained_rate, warn_simulator_mismatch
from .policies import load_actor, tell_untrained_episodes

if TYPE_CHECKING:
    from ...data.episode import Dataset
    from ...envs.base import Env
    from ...evaluate.evaluation import Evaluation
    from ...evaluate.failure_detection import DoubtScore
    from ...execute.actor import Actor
    from .groups import ActingOptions, RolloutOptions
    from .kept_episodes import KeptEpisodes


@dataclass(frozen=True)
class DoubtSource:
    """The doubt score that a policy records, and the data that it was trained on.

    Args:
        data: Its path. None for a policy that does not say it, with a score that reads no data.
        fingerprint: Fingerprint of the numbers that a failure detector was calibrated with. Empty if any data will do.
    """

    score: DoubtScore
    data: Path | None
    fingerprint: str = ""


def record_doubt(actor: Actor, run: Path, o: ActingOptions, doubt: DoubtSource) -> Actor:
    """Wraps the actor of a run so that it records its doubt."""
    from ...evaluate.failure_detection import with_doubt

    return with_doubt(actor, doubt.score, calibrated_data(run, o, doubt))


def calibrated_data(run: Path, o: ActingOptions, doubt: DoubtSource) -> Dataset:
    """Returns the demonstrations of a doubt score. Raises UserError if they are not those of the calibration."""
    data = doubt_data(run, o, doubt.data)
    if doubt.fingerprint and doubt.fingerprint != numbers_fingerprint(data):
        raise UserError("the demonstrations, from which novelty is measured, have changed since its failure detector "
                        "was calibrated", where=doubt.data, hint="put them back, or calibrate it again (understudy "
                        "calibrate)")
    return data


def numbers_fingerprint(data: Dataset) -> str:
    """Returns the fingerprint of episodes without their images."""
    return data.map(lambda e: e.replace({n: None for n, f in e.features().items() if f.kind == "image"})).fingerprint()


def doubt_data(run: Path, o: ActingOptions, path: Path | None) -> Dataset:
    """Returns the demonstrations against which doubt is measured, as the policy of a run learned them."""
    from ...data.episode import Dataset
    from ...execute.wrappers import ActionWrapper
    from ...learn.method import TrainedRun, training_data

    if path is None:
        return Dataset([])
    if served_address(run) is not None:
        return open_data(path, decode=False)
    trained = TrainedRun.load(run, o.trust, transforms=True)
    wrapper = trained.method.wrapper
    if wrapper is not None and type(wrapper).transform_episode is ActionWrapper.transform_episode:
        raise Unsupported("its doubt is measured against demonstrations, and these do not have its actions, from which "
                          f"{type(wrapper).__name__} makes those of the robot", where=run,
                          hint="calibrate the run that it was made of, or what a method such as residual or porl makes "
                               "of that (understudy improve)")
    sizes = trained.policy.image_sizes
    data = open_data(path, next(iter(sizes.values()), None), decode=bool(sizes), run=run)
    return training_data(data, trained.method)


def evaluate_run(
    run: Path, env, o: RolloutOptions, save_path: Path | None, name: str, kept: KeptEpisodes,
    doubt: DoubtSource | None = None
) -> Evaluation:
    """Evaluates a run in an environment on numbered starts.

    Args:
        save_path: Where to record the episodes, or None.
        name: Name of the environment. Workers make their own copies of it.
        kept: Keeps finished episodes that are not recorded, in case of an interruption.
        doubt: What the policy also records as its doubt at each step, or None.
    """
    from ...evaluate.env_checks import warn_of_early_ends, warn_unless_repeatable
    from ...evaluate.evaluation import evaluation_of
    from ...evaluate.recording import record_episodes
    from ...evaluate.workers import WorkerPool

    assert o.episodes is not None  # the command has filled it in
    plays, by = load_actor(run, env, o, tell=True)
    plays = plays if doubt is None else record_doubt(plays, run, o, doubt)
    warn_simulator_mismatch(env, run)
    warn_unless_repeatable(plays, env, o.seed)
    seat = partial(_worker_setup, run, o, name, batch_rows(env.rows, o.episodes, o.workers), doubt)
    began = time.perf_counter()
    with (progress_bar(f"{run.name} in {env.metadata['env']}", o.episodes) as progress,
          WorkerPool(seat, o.workers, local=(plays, env)) as crew):
        def watch(number, episode):
            progress()
        if save_path is None:
            data = kept.rollout(crew, env, o.episodes, o.seed, policy_key(by, o, doubt), watch)
        else:
            data = record_episodes(env, plays, o.episodes, save_path, o.seed, actor_name=by, watch=watch, workers=crew,
                                   fps=trained_rate(run))[:o.episodes]
        if o.task is None:
            tell_untrained_episodes(run, data, o.trust)
        warn_of_early_ends(data, env)
        return evaluation_of(data, time.perf_counter() - began)


def policy_key(by: str, o: ActingOptions, doubt: DoubtSource | None = None) -> dict[str, str | None]:
    """Returns a key of everything on which a policy's actions depend, for `KeptEpisodes`."""
    return {"by": by, "device": o.device, "doubt": None if doubt is None else repr(doubt)}


def _worker_setup(run: Path, o: ActingOptions, name: str, rows: int, doubt: DoubtSource | None) -> tuple[Actor, Env]:
    from ...envs import make

    env = make(name, rows, o.trust)
    actor = load_actor(run, env, o)[0]
    return actor if doubt is None else record_doubt(actor, run, o, doubt), env
