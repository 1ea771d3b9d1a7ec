"""Rolls out policies for commands."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .common import batch_rows, progress_bar, trained_rate, warn_simulator_mismatch
from .policies import DoubtSource, load_actor, record_doubt, tell_untrained_episodes

if TYPE_CHECKING:
    from ...envs.base import Env
    from ...evaluate.evaluation import Evaluation
    from ...execute.actor import Actor
    from .groups import ActingOptions, RolloutOptions
    from .kept_episodes import KeptEpisodes


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
