"""Groups of failed episodes with similar trajectories: how many, where, when, and what to do next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from ..core import keys
from ..data.episode import Dataset, Episode
from ..envs.base import Env, PlanarMap, Renderable
from . import plots
from .behavior.clearance import planar_points, success_margin
from .behavior.clusters import find_clusters
from .behavior.demo_distance import DemonstrationIndex
from .behavior.scaling import TrajectoryScaling, resample_rows
from .episode_video import film_strip, first_camera, shrink

TRAJECTORY_POINTS, MAX_COMPONENTS = 8, 12  # points of a trajectory, and principal components for clustering
MAX_GROUPS = 6
MAX_STRIPS, STRIP_FRAMES = 6, 4  # episodes of a group of which frames are shown, and frames of each
MAX_SUCCESSES = 50  # successes with trajectories that are drawn for comparison
SHAPE_WEIGHT = 0.25  # below this mean silhouette there are no groups (Kaufman and Rousseeuw 1990)


@dataclass(frozen=True)
class FailureGroup:
    """A group of similar failures.

    Attributes:
        episode_indices: Numbers of the episodes, the most typical one first.
        steps: When the episodes ended: (first, median, last).
        end_location: Where they end, in words.
        start_distance: Distance of their starts from demonstrated states, relative to the distance of the starts of
            successes. None if unknown.
        divergence_step: Median step at which they are farther from demonstrated states than successes ever are. None if
            most stay.
    """

    episode_indices: tuple[int, ...]
    steps: tuple[int, int, int]
    n_timeouts: int
    end_location: str
    start_distance: float | None
    divergence_step: int | None

    def __len__(self) -> int:
        return len(self.episode_indices)

    def to_json(self) -> dict:
        return {
            "episodes": list(self.episode_indices),
            "count": len(self),
            "steps": dict(zip(("first", "median", "last"), self.steps, strict=True)),
            "n_timeouts": self.n_timeouts,
            "end_location": self.end_location,
            "start_distance": self.start_distance,
            "divergence_step": self.divergence_step,
        }

    def describe(self) -> str:
        """Describes the group in one sentence, without its size."""
        first, median, last = self.steps
        when = (f"over at step {median}" if first == last else f"over at steps {first} to {last}, half by {median}")
        limit = ("" if not self.n_timeouts else ", at the time limit" if self.n_timeouts == len(self) else
                 f", {self.n_timeouts} of them at the time limit")
        return f"{self.end_location}; {when}{limit}"

    def remedy(self, seed: int) -> str:
        """Says what to record next to avoid these failures."""
        indices = ", ".join(map(str, self.episode_indices[:5])) + (", ..." if len(self) > 5 else "")
        which = f"{'episode' if len(self) == 1 else 'episodes'} {indices} of seed {seed}"
        begin, leave = ("It begins", "It leaves") if len(self) == 1 else ("They begin", "They leave")
        if self.start_distance is not None and self.start_distance > 1.5:
            return (
                f"{begin} {self.start_distance:.1f} times as far from demonstrated states as successes do: record "
                f"demonstrations from starts like those of {which}.")
        if self.divergence_step is not None:
            return (
                f"{leave} what was demonstrated at about step {self.divergence_step}. Record demonstrations that start "
                f"there and return to the demonstrated path (look at {which}).")
        return f"Record more demonstrations of what happens there, from starts like those of {which}."


def group_failures(episodes: Dataset, env: Env | None = None, demonstrations: DemonstrationIndex | None = None
                   ) -> tuple[FailureGroup, ...]:
    """Groups failed episodes by their trajectories.

    Trajectories (`TRAJECTORY_POINTS` states each, and their length) are clustered. Fewer than four failures form one
    group.

    Args:
        demonstrations: Index of the demonstrations, for how far failures are from them.

    Returns:
        The groups, largest first. Empty if nothing failed or success is not defined.
    """
    failures = [e for e in episodes if e.metadata.get("success") is False]
    if not failures:
        return ()
    won = [e for e in episodes if e.metadata.get("success") is True]
    view = TrajectoryScaling.from_data(episodes)
    longest = max(len(e) for e in failures)
    points = np.stack(
        [
            np.append(
                resample_rows(np.nan_to_num(view.states(e)), TRAJECTORY_POINTS).reshape(-1)
                / np.sqrt(TRAJECTORY_POINTS * max(view.n_components, 1)),
                len(e) / longest,
            )
            for e in failures
        ])
    centred = points - points.mean(0)
    axes = np.linalg.svd(centred, full_matrices=False)[2][:MAX_COMPONENTS].T
    clusters = find_clusters(centred @ axes, MAX_GROUPS, SHAPE_WEIGHT)
    success_distances = [] if demonstrations is None else [demonstrations.distances(e)[0] for e in won[:50]]
    groups = []
    for i in range(len(clusters)):
        members = np.flatnonzero(clusters.labels == i)
        typical = members[np.argsort(np.linalg.norm(points[members] - points[members].mean(0), axis=1), kind="stable")]
        groups.append(_make_group([failures[j] for j in typical], won, env, view, demonstrations, success_distances))
    return tuple(groups)


def _make_group(failures: list[Episode], won, env, view, demonstrated, success_distances) -> FailureGroup:
    lengths = [len(e) for e in failures]
    starts = leaves = None
    if success_distances and demonstrated is not None:
        distances = [demonstrated.distances(e)[0] for e in failures[:50]]
        usual, limit = np.nanmean([f[0] for f in success_distances]), max(np.nanmax(f) for f in success_distances)
        starts = float(np.nanmean([f[0] for f in distances]) / usual) if usual > 1e-9 else None
        leaving_steps = [int(np.argmax(f > limit)) for f in distances if (f > limit).any()]
        leaves = int(np.median(leaving_steps)) if 2 * len(leaving_steps) > len(distances) else None
    late = sum("next.truncated" in e.steps and bool(np.asarray(e.steps["next.truncated"])[-1]) for e in failures)
    return FailureGroup(
        tuple(int(e.metadata["number"]) for e in failures),
        (min(lengths), int(np.median(lengths)), max(lengths)),
        late,
        _describe_end(failures, won, env, view),
        starts,
        leaves)


def _describe_end(failures, won, env, view: TrajectoryScaling) -> str:
    """Describes where these episodes end: on the map, or by what differs from the ends of successes."""
    if isinstance(env, PlanarMap) and (plane := env.map())["path"][0] in failures[0].steps:
        ends = np.array([planar_points(e, plane["path"])[-1] for e in failures])
        x, y = np.median(ends, 0).round(2)
        spread = np.median(np.linalg.norm(ends - (x, y), axis=1)) / (plane["x"][1] - plane["x"][0])
        text = f"ends near x {x:z.2f}, y {y:z.2f}" if spread < 0.1 else "ends here and there"
        for s in plane["shapes"]:
            if s["kind"] == "circle" and s["role"] != "start":
                is_inside = np.linalg.norm(ends - s["at"], axis=1) < 1.1 * s["radius"]
                if is_inside.mean() > 0.5:
                    return f"{text}, at the {s['role']}"
        gaps = [g for e in failures if (g := success_margin(e, env)) is not None]
        return text + (f", {np.median(gaps):.2f} from the goal's edge at its closest" if gaps else "")
    if not view.n_components:
        return "ends somewhere: without numeric observations it is not known where"
    i, deviation = _distinct_component(failures, won, view)
    if abs(deviation) < 0.25:
        return f"ends where {'successes do' if won else 'episodes are on average'}"
    side = "above" if deviation > 0 else "below"
    reference = "that of successes" if won else "its mean"
    return f"ends with {view.names[i]} {abs(deviation):.1f} deviations {side} {reference}"


def _distinct_component(failures: Sequence[Episode], won: Sequence[Episode],
                        view: TrajectoryScaling) -> tuple[int, float]:
    """Finds the state component in which ends of failures and successes differ most, and by how many deviations."""
    ends = np.stack([np.nan_to_num(view.states(e)[-1]) for e in failures])
    usual = np.median([np.nan_to_num(view.states(e)[-1]) for e in won], 0) if won else np.zeros(ends.shape[1])
    deviations = np.median(ends, 0) - usual
    i = int(np.abs(deviations).argmax())
    return i, float(deviations[i])


# -- figures ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FailurePictures:
    """The pictures that a page shows of a group of failures.

    Args:
        trajectories: The group's trajectories, and trajectories of successes in gray. They are drawn over the map of a
            `PlanarMap`. Without a map, the component is drawn in which the ends of failures and successes differ most.
            None without numeric observations.
        strips: (episode number, frames) of the most typical episodes of the group, the most typical first. Empty if
            there is no camera and the environment cannot draw.
        success_strip: Episode number and frames of the success that starts nearest to the most typical failure.
    """

    trajectories: plots.Figure | None
    strips: tuple[tuple[int, plots.Figure], ...] = ()
    success_strip: tuple[int, plots.Figure] | None = None


def failure_figures(groups: Sequence[FailureGroup], episodes: Dataset, env: Env | None) -> list[FailurePictures]:
    """Draws the episodes of each group of failures, next to successes.

    Frames are taken from the first camera. Without a camera, the environment draws them: the recorded actions are
    executed again from the same start.

    Args:
        env: The environment. What it can draw decides what is shown.
    """
    if not groups:
        return []
    at = {int(e.metadata["number"]): e for e in episodes}
    won = [e for e in episodes if e.metadata.get("success") is True]
    view = TrajectoryScaling.from_data(episodes)
    ways = _trajectory_figures(groups, at, won, env, view)
    nearest = [_nearest_start(at[g.episode_indices[0]], won, view) for g in groups]
    chosen = [[*(at[n] for n in g.episode_indices[:MAX_STRIPS]),
               *([similar_success] if similar_success is not None else [])]
              for g, similar_success in zip(groups, nearest, strict=True)]
    strips = iter(_strips([e for shown_episodes in chosen for e in shown_episodes], env))
    out = []
    for figure, shown_episodes, similar_success in zip(ways, chosen, nearest, strict=True):
        drawn = [(int(e.metadata["number"]), strip) for e in shown_episodes if (strip := next(strips)) is not None]
        success = drawn.pop() if similar_success is not None and drawn else None
        out.append(FailurePictures(figure, tuple(drawn), success))
    return out


def _trajectory_figures(groups, at, won, env, view) -> list[plots.Figure | None]:
    """Draws the trajectories of each group of failures over the trajectories of successes."""
    drawn_successes = won[:MAX_SUCCESSES]
    if isinstance(env, PlanarMap):
        plane = plots.visible_area(env.map(), [*(at[n] for g in groups for n in g.episode_indices), *drawn_successes])
        return [plots.trajectories([at[n] for n in g.episode_indices], plane, context=drawn_successes) for g in groups]
    if not view.n_components:
        return [None] * len(groups)
    out = []
    for g in groups:
        failures = [at[n] for n in g.episode_indices]
        i, _ = _distinct_component(failures, won, view)

        def component_values(of, i=i):
            return [view.states(e)[:, i] * view.scale[i] + view.center[i] for e in of]
        failure_curves, success_curves = component_values(failures), component_values(drawn_successes)
        both = np.concatenate([*failure_curves, *success_curves])
        ends = (max(map(len, (*failure_curves, *success_curves))) - 1, float(np.nanmin(both)), float(np.nanmax(both)))
        out.append(plots.component_curves(failure_curves, view.names[i], *ends, context=success_curves))
    return out


def _nearest_start(episode: Episode, won: Sequence[Episode], view: TrajectoryScaling) -> Episode | None:
    """Returns the success with the nearest first state."""
    start = np.nan_to_num(view.states(episode)[0])
    return min(won, key=lambda e: float(np.linalg.norm(np.nan_to_num(view.states(e)[0]) - start)), default=None)


def _strips(episodes: Sequence[Episode], env: Env | None) -> list[plots.Figure | None]:
    """Returns frames of each episode as a film strip. None for an episode without pictures."""
    if all(first_camera(e) is not None for e in episodes):
        return [film_strip(e, STRIP_FRAMES) for e in episodes]
    if isinstance(env, Renderable):
        return [plots.film_strip([f for _, f in frames], [f"step {t}" for t, _ in frames], "What happened")
                if frames else None for frames in _rerender(episodes, env, STRIP_FRAMES)]
    return [None] * len(episodes)


def _rerender(episodes: Sequence[Episode], env: Renderable, most: int) -> list[list[tuple[int, np.ndarray]]]:
    """Renders recorded episodes again by repeating their actions in the environment. Returns (step, frame) of each."""
    out: list[list[tuple[int, np.ndarray]]] = []
    for i in range(0, len(episodes), env.rows):
        group = episodes[i:i + env.rows]
        key = keys(int(group[0].metadata["seed"]), [int(e.metadata["number"]) for e in group]
                   + [int(group[0].metadata["number"])] * (env.rows - len(group)))
        env.reset(torch.arange(env.rows), key)
        actions = [np.asarray(e.steps["action"]) for e in group]
        frame_steps = [set(np.linspace(0, len(a), min(most, len(a) + 1)).round().astype(int).tolist()) for a in actions]
        frames: list[list[tuple[int, np.ndarray]]] = [[] for _ in group]
        for t in range(max(map(len, actions)) + 1):
            for row, steps in enumerate(frame_steps):
                if t in steps:
                    frames[row].append((t, shrink(env.frame(row)[None])[0]))
            now = [a[min(t, len(a) - 1)] for a in actions]
            env.step(torch.from_numpy(np.stack(now + [now[0]] * (env.rows - len(group)))))
        out += frames
    return out
