"""The behavior metrics that `understudy eval` prints in addition to success."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ...core import UserError
from .common import Output, open_trained, plain_table, progress_bar, recorded_data_of
from .common import demonstrations_path as no_run
from .options import refuse_given
from .run_options import trained_on

if TYPE_CHECKING:
    from ...data.episode import Dataset
    from ...envs.base import Env
    from ...evaluate.behavior_metrics import BehaviorMetrics
    from ...evaluate.evaluation import Evaluation
    from ...execute.actor import Actor
    from .eval_options import EvalOptions

N_STARTS = 16  # that --repeats rolls out again and again
MAX_EXTRA_STEPS = 200_000  # steps of demonstrations that are looked at without being asked for


def check_options(o: EvalOptions) -> None:
    if o.repeats == 1:
        raise UserError("one rollout of each start cannot show how rollouts differ",
                        where="--repeats", hint="such as --repeats 8, or 0 for none")
    if o.sequential or o.interactive:
        refuse_given(o, ("demonstrations", "details", "repeats"),
                     "cannot be combined with --sequential or --interactive",
                     "leave one of them out: behavior is measured over a fixed number of episodes")


def demonstrations_of(o: EvalOptions) -> Dataset | None:
    """Returns the demonstrations to compare with. None if there are none.

    They are the data of --demonstrations, and by default the data that the run was trained on.
    """
    if o.demonstrations is not None:
        data = open_trained(no_run(o.demonstrations), o.run)
        if not len(data):
            raise UserError("there are no demonstrations in it: it has no episode", where=o.demonstrations,
                            hint="leave out --demonstrations, or name others")
        return data
    return unchanged_training_data(o.run)


def unchanged_training_data(run: Path) -> Dataset | None:
    """The data that a run was trained on. None if they have moved or changed, and for data with cameras and large ones,
    which take long to read."""
    from ...data.opening.column_selection import open_as_read

    training_data = recorded_data_of(run)
    if int(training_data.get("steps") or 0) > MAX_EXTRA_STEPS:
        return None
    try:
        if (path := trained_on(run)) is None or not path.exists():
            return None
        data = open_as_read(path, {}, training_data.get("reading") or {})[0]
        if any(f.kind == "image" for f in data.features().values()):
            return None
        return data if data.fingerprint() == training_data.get("fingerprint") else None
    except (UserError, OSError):  # nobody asked for it
        return None


def measure_run(
    run: Path, actor: Actor, env: Env, rollouts: Evaluation, demonstrations: Dataset | None, o: EvalOptions
) -> BehaviorMetrics:
    from ...evaluate.behavior.latency import measure_latency
    from ...evaluate.behavior.modes import rollout_repeated_starts
    from ...evaluate.behavior_metrics import measure_behavior
    from ...evaluate.failures import failure_figures

    again = None
    if o.repeats:
        assert o.episodes is not None
        starts = min(N_STARTS, o.episodes)
        with progress_bar(f"{run.name}, the same starts", starts * o.repeats) as progress:
            again = rollout_repeated_starts(
                actor, env, starts, o.repeats, o.seed, watch=lambda number, episode: progress())
    metrics = measure_behavior(rollouts.episodes, env, demonstrations, repeated=again, latency=measure_latency(
        _single_actor(actor), rollouts.episodes, env.metadata.get("fps")))
    if o.html is None:
        return metrics
    try:
        return replace(metrics, failure_figures=tuple(failure_figures(metrics.failures, rollouts.episodes, env)))
    except UserError as error:  # the rest of the report is worth having
        print(f"failures without pictures: {error}", file=sys.stderr)
        return metrics


def _single_actor(actor: Actor) -> Actor:
    """Returns the actor as one robot runs it, without rows that fill a batch up to a fixed size."""
    from ...execute.actor import ObservationWrapper, PolicyActor, TransformedActor
    from ...execute.planners import FixedBatch
    from ...execute.wrappers import WrappedActor

    if isinstance(actor, (ObservationWrapper, TransformedActor, WrappedActor)):
        return replace(actor, actor=_single_actor(actor.actor))
    return replace(actor, planner=actor.planner.planner) if isinstance(actor, PolicyActor) and isinstance(
        actor.planner, FixedBatch) else actor


def print_most_frequent_failure(metrics_by_policy: Mapping[str, BehaviorMetrics], out: Output) -> None:
    """Prints the largest group of failures of each policy, and what to record against it."""
    for name, metrics in metrics_by_policy.items():
        if failures := metrics.failure_lines():
            out.print(f"Most frequent failure{f' of {name}' if len(metrics_by_policy) > 1 else ''}: {failures[0]}")
    out.print("--details also prints behavior metrics, all groups of failures and the ways that the policy takes.")


def print_metrics(metrics_by_policy: Mapping[str, BehaviorMetrics], out: Output) -> None:
    """Prints a table of behavior metrics, and what else was measured in sentences."""
    policies, is_single = list(metrics_by_policy.values()), len(metrics_by_policy) == 1
    references = {m.key: m.demonstrations for p in policies for m in p.metrics if m.demonstrations is not None}
    rows = []
    episode_counts = [max((m.n_episodes for m in p.metrics), default=0) for p in policies]
    for key in dict.fromkeys(m.key for p in policies for m in p.metrics):
        metrics = [next((m for m in p.metrics if m.key == key), None) for p in policies]
        metric = next(m for m in metrics if m is not None)
        cells = [
            f"{_format_interval(m.value)}{'' if m.n_episodes == n else f' of {m.n_episodes}'}" if m is not None else "–"
            for m, n in zip(metrics, episode_counts, strict=True)
        ]
        rows.append((f"{metric.name}{f' ({metric.unit})' if metric.unit else ''}", *cells,
                     *([f"{references[key].estimate:.3g}" if key in references else ""] if references else [])))
    if rows:
        out.print("", plain_table(("behavior metrics", *(["mean of an episode"] if is_single else metrics_by_policy),
                                   *(["demonstrations"] if references else [])), rows))
    for name, policy_metrics in metrics_by_policy.items():
        lines = policy_metrics.summary_lines()
        out.print(*(lines if is_single else [f"{name}: {line}" for line in lines]))
    if policies[0].missing:
        out.print(*(f"Not measured: {part}." for part in policies[0].missing))


def _format_interval(i) -> str:
    return f"{i.estimate:.3g}" if i.low != i.low else f"{i.estimate:.3g} [{i.low:.3g}, {i.high:.3g}]"
