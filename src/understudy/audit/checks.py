"""Checks of a data set. Each check is a function that yields findings.

All of them stream over the episodes and keep a few numbers of each, so memory does not grow with the data.
`INTEGRITY_CHECKS` can find errors. `QUALITY_CHECKS` yield warnings and notes. `FRAME_CHECKS` decode every camera frame.
`action_motion` has the checks of how actions fit the motion. `label_checks` has the checks of flags and labels.
`file_checks` and `lerobot_checks` have the checks of files, which also work if a data set cannot be opened.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..core import UserError, column_naming_hint, is_read_by_default, role, short_name
from ..data import video
from ..data.episode import Dataset, EpisodeList, interrupted_episodes
from ..data.formats.describe import component_ranges, episode_tasks
from ..data.formats.parts.column_names import format_list
from ..data.formats.parts.reader_warnings import MisreadingWarning
from ..data.image_layout import image_layout_problem
from ..data.resampling import LONG_STEP
from ..data.running_statistics import is_constant, unlearned_components
from ..data.sources import camera_names
from ..hints import pluralize
from . import action_motion, continuity, label_checks, lerobot_checks, repeated_frames
from .base import (
    Finding,
    Location,
    component_names,
    correction_command,
    finding_from_error,
    finding_of_episodes,
    is_numeric,
)

Check = Callable[[Dataset], Iterator[Finding]]
_LEAVE_OUT = "leave the episode out, or take the data from a copy"
_AT_ONCE = 1 << 22  # numbers that are checked together
_FEW_VALUES = 20  # an action with at most so many values may be classes or quantities


# -- whole: contradictions in the data ---------------------------------------------------------------------------------


def check_rows(data: Dataset) -> Iterator[Finding]:
    """Finds columns with too few or too many rows, and episodes with other columns than the first.

    Every column needs T rows, or T + 1 with the last observation.
    """
    steps = data.lengths
    for e in np.flatnonzero(steps < 1)[:1]:
        yield Finding("rows-disagree", "error", f"{pluralize((steps < 1).sum(), 'episode')} without a step",
                      _LEAVE_OUT, Location(episode=int(e)))
    names, lazy = list(data[0].steps), not isinstance(data.source, EpisodeList)
    for name in names if lazy else [n for n, f in data[0].features().items() if f.kind != "image"]:
        try:
            n_rows = data.rows(name)
        except KeyError:
            continue  # reported below
        for e in np.flatnonzero((n_rows != steps) & (n_rows != steps + 1))[:1]:
            yield Finding("rows-disagree", "error",
                          f"{name} has {n_rows[e]} rows, but the episode has {steps[e]} (one more is allowed)",
                          _LEAVE_OUT, Location(episode=int(e), feature=name))
    if not lazy:
        yield from _check_same_columns(data, names)
        with_actions = [n for n in names if role(n) == "action"]
        for e, episode in enumerate(data):
            if with_actions and len(episode) < max(len(episode.steps[n]) for n in with_actions if n in episode.steps):
                yield Finding("rows-disagree", "error",
                              f"only {len(episode)} rows have all columns, fewer than {with_actions[0]} has",
                              _LEAVE_OUT, Location(episode=e, feature=with_actions[0]))
                return


def _check_same_columns(data, names):
    first = {n: (f.dtype, f.shape) for n, f in data[0].features().items() if f.kind not in ("image", "string")}
    for e, episode in enumerate(data):
        if differing_columns := set(names) ^ set(episode.steps):
            yield Finding("names-disagree", "error", f"the columns differ from those of episode 0: "
                          f"{', '.join(sorted(differing_columns))}", "give every episode the same columns",
                          Location(episode=e))
            return
        for name, (dtype, shape) in first.items():
            column = episode.steps[name]
            if (column.dtype.name, column.shape[1:]) != (dtype, shape):
                yield Finding("shape-disagrees", "error", f"{name} is {dtype} {shape} in episode 0, but here "
                              f"{column.dtype.name} {column.shape[1:]}", "store the same type and shape in every "
                              "episode", Location(episode=e, feature=name))
                return


def check_finite(data: Dataset) -> Iterator[Finding]:
    """Finds NaN and infinite values."""
    for name in _numeric_columns(data):
        if _is_column_finite(data, name):
            continue
        bad, first, episodes = 0, None, []
        for e, episode in enumerate(data):
            values = episode.steps[name]
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                positions = np.argwhere(~np.isfinite(values))
                bad, first = bad + len(positions), first or (e, positions[0])
                episodes.append(e)
        if first is not None:
            e, at = first
            part = name + "".join(f"[{i}]" for i in at[1:])
            yield Finding(
                "not-finite",
                "warning" if role(name) == "other" else "error",
                f"{name}: {pluralize(bad, 'value')} not finite, the first is {part} of episode {e}, step {at[0]}",
                "correct the value, or leave the episode out",
                Location(None, e, int(at[0]), name),
                tuple(episodes),
            )


def _is_column_finite(data, name) -> bool:
    """Returns whether all of a column is known to be finite, without reading each of up to 10^5 episodes."""
    stored = data.column(name)
    if stored is None:
        return False
    array = stored[0]
    step = max(1, _AT_ONCE // max(1, int(np.prod(array.shape[1:]))))
    return array.dtype.kind != "f" or all(np.isfinite(array[r: r + step]).all() for r in range(0, len(array), step))


def _unended_episodes(data, flags) -> list[int] | None:
    """Returns the episodes without an end flag at their last step. None if each episode must be checked by itself."""
    stored = [data.column(n) for n in flags]
    if not all(flag_column is not None and flag_column[0].ndim == 1 for flag_column in stored):
        return None
    ended, lengths = np.zeros(len(data), bool), data.lengths
    for array, first, _ in stored:
        order = np.argsort(first, kind="stable")
        set_at = np.flatnonzero(array)
        at = np.searchsorted(first[order], set_at, side="right") - 1
        last = (first + lengths - 1)[order]
        if ((at >= 0) & (set_at < last[at])).any():
            return None
        ended |= np.asarray(array[first + lengths - 1], bool)
    return np.flatnonzero(~ended).tolist()


def check_episode_ends(data: Dataset) -> Iterator[Finding]:
    """Finds episodes that do not end exactly once, at their last step."""
    flags = [n for n in ("next.terminated", "next.truncated") if n in data[0].steps]
    cut = correction_command(data, ("--cut", "resets"))
    unended = _unended_episodes(data, flags)
    missing = unended or []
    for e, episode in enumerate(data) if unended is None else ():
        last = False
        for name in flags:
            values = np.asarray(episode.steps[name], bool).reshape(-1)[:len(episode)]
            if values[:-1].any():
                step = int(np.argmax(values))
                yield Finding("end-inside", "error", f"{name} is True at step {step}, but the last step is "
                              f"{len(values) - 1}", f"split the episode there ({cut}), or correct the flag",
                              Location(None, e, step, name))
                return
            last |= bool(values[-1:].any())
        if not last:
            missing.append(e)
    if len(flags) == 2 and missing:
        yield finding_of_episodes(
            "end-missing", "warning" if len(missing) < len(data) else "note", missing,
            f"{'ends' if len(missing) == 1 else 'end'} neither terminated nor truncated",
            "store how it ended: offline RL needs it to bootstrap from the last observation")


def _time_steps(data: Dataset, is_defined: bool
                ) -> tuple[list[tuple[int, np.ndarray]], list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns the times between steps by episode, and the steps where time is most uneven and where it goes back."""
    fps, steps, uneven, back = data.fps, [], [], []
    for e, episode in enumerate(data):
        time = np.asarray(episode.steps["timestamp"], np.float64).reshape(-1)[:len(episode)]
        if not np.isfinite(time).all() or not len(time):
            continue
        step = np.diff(time)
        steps.append((e, step))
        back += [(e, int(t) + 1) for t in np.flatnonzero(step < 0)[:1]]
        if fps is not None:
            regular = np.arange(len(time)) / fps + (0 if is_defined else time[0])
            off = np.abs(time - regular) > video.TIMESTAMP_TOLERANCE + 2 * np.spacing(np.abs(time).astype(np.float32))
            if off.any():
                uneven.append((e, int(np.argmax(off))))
    return steps, uneven, back


def _late_steps(steps: list[tuple[int, np.ndarray]], typical: float, within: np.ndarray) -> Iterator[Finding]:
    """Finds steps that came late, and times that jitter around the typical one."""
    late = []
    for e, step in steps:
        late += [(e, int(t) + 1, float(step[t])) for t in np.flatnonzero(step > 1.75 * typical)]
    if late:
        e, t, gap = max(late, key=lambda step: step[2])
        yield Finding(
            "timestamp-gap",
            "warning",
            f"{pluralize(len(late), 'step')} came late; the longest gap is {gap:.3g} "
            f"s, where {typical:.3g} s is usual, at episode {e}, step {t}",
            "frames were dropped or late: leave the stretch out, or resample",
            Location(None, e, t, "timestamp"),
            tuple(dict.fromkeys(episode for episode, _, _ in late)),
        )
    if (spread := float(np.std(within)) / typical) > 0.1:
        yield Finding("timestamps-uneven", "warning", f"timestamps jitter by {spread:.0%} of a step",
                      "resample to a fixed rate, if your method expects one", Location(feature="timestamp"))


def check_timestamps(data: Dataset) -> Iterator[Finding]:
    """Finds timestamps that do not increase as `fps` says.

    In a LeRobot data set, times are frame_index / fps by definition, and other times would look up other frames. This
    is an error. Elsewhere, and in understudy's own recordings, times are measured.
    """
    if "timestamp" not in data[0].steps:
        return
    fps, defined = data.fps, lerobot_checks.is_foreign(data)
    steps, uneven, back = _time_steps(data, defined)
    if back:
        e, t = back[0]
        yield Finding("timestamps-backwards", "error",
                      f"timestamps of {pluralize(len(back), 'episode')} go back, the first at episode {e}, step {t}",
                      "sort the rows, or split the episode there", Location(None, e, t, "timestamp"),
                      tuple(e for e, _ in back))
    between = np.concatenate([step for _, step in steps]) if steps else np.empty(0)
    typical = float(np.median(between)) if len(between) else 0.0
    if typical <= 0:
        if len(between):
            yield Finding("timestamps-backwards", "warning", "most timestamps are equal",
                          "store the time of each step from the start of its episode (float32 does not hold the steps "
                          "of Unix time), or leave the column out", Location(feature="timestamp"))
        return
    if len(rates := _frame_rates(steps)) > 1 and not defined:
        described = " and ".join(f"{1 / step:.3g} Hz in {pluralize(count, 'episode')}" for step, count in rates)
        yield Finding("rates-differ", "warning", f"the frame rate differs: {described}",
                      "resample all episodes to one rate: understudy view make DATA --out VIEW --fps HZ",
                      Location(feature="timestamp"))
        return
    if typical >= LONG_STEP:
        yield Finding("timestamps-unit", "warning", f"timestamps are {typical:.4g} apart, and are read as seconds",
                      "if they are milliseconds or nanoseconds, divide them first", Location(feature="timestamp"))
    within = between[between <= 1.75 * typical]
    # relative to the usual step, if times jitter
    doubt = 0.01 + 5 * float(np.std(within)) / typical / np.sqrt(len(within))
    if fps is not None and uneven and abs(typical * fps - 1) > doubt:
        yield Finding("fps-disagrees", "error", f"timestamps are {typical:.4g} s apart ({1 / typical:.4g} a second), "
                      f"fps says {fps:g}", "correct fps, or the timestamps", Location(feature="timestamp"))
        return
    if uneven and defined:
        e, t = uneven[0]
        yield Finding(
            "timestamps-uneven",
            "error",
            f"timestamps of {pluralize(len(uneven), 'episode')} are uneven, the first at episode {e}, step {t}",
            "in LeRobot they are frame_index / fps: write them so, or fill in the frames that are missing",
            Location(None, e, t, "timestamp"),
            tuple(e for e, _ in uneven),
        )
        return
    yield from _late_steps(steps, typical, within)


def _frame_rates(steps: list[tuple[int, np.ndarray]]) -> list[tuple[float, int]]:
    """Groups episodes by their usual time between steps (s), equal within a fifth. Returns (time, count) of groups."""
    groups: list[tuple[float, int]] = []
    quartiles = [np.percentile(between, (25, 50, 75)) for _, between in steps if len(between)]
    for step in sorted((float(q[1]) for q in quartiles if q[2] - q[0] < 0.1 * q[1]), reverse=True):
        if groups and groups[-1][0] <= 1.2 * step:
            groups[-1] = groups[-1][0], groups[-1][1] + 1
        else:
            groups.append((step, 1))
    return groups


# -- quality: things that deserve a second look ------------------------------------------------------------------------


def reader_warnings(data: Dataset) -> Iterator[Finding]:
    """Warnings of the reader about how it read the data. Other checks find what is wrong in the files."""
    for text in data.metadata.get("warnings", ()):
        level = "warning" if isinstance(text, MisreadingWarning) else "note"
        yield Finding("reader", level, text, "see the page on formats")


def check_metadata(data: Dataset) -> Iterator[Finding]:
    """Finds information that is missing from the data."""
    lengths, features = data.lengths, data[0].features()
    short = np.flatnonzero(lengths == 1)
    if len(short):
        yield finding_of_episodes("single-step", "note", short, "of a single step",
                                  "leave it out, unless one step is a complete task")
    observations = [n for n in features if role(n) == "observation" and features[n].kind != "image"]
    if any(role(n) == "observation" for n in features) and not any(
            len(data[0].steps[n]) > len(data[0]) for n in observations):
        kept = "; critics learn from it where next.terminated is True" if "next.terminated" in features else ""
        yield Finding("no-last-observation", "note", "no observation after the last action: methods that need the next "
                      f"observation skip the last step of each episode{kept}", "record it if you use such a method")
    if not any(is_read_by_default(n, f) for n, f in features.items()):
        yield Finding(
            "no-observations",
            "warning",
            f"no column is an observation, so that no policy can read these data; there are {format_list(features)}",
            column_naming_hint(features, data.metadata.get("path", "DATA")),
        )
    if not any(role(n) == "action" for n in features):
        yield Finding("no-actions", "warning", f"no column is an action; there are {format_list(features)}",
                      "rename the one that is: understudy view make DATA --out VIEW --rename OLD=action")
    actions = [n for n in features if role(n) == "action"]
    if actions and "action" not in actions:
        yield Finding("actions-split", "warning", f"policies learn one column action, and here it is in "
                      f"{format_list(actions)}", f"put them side by side: --columns action={','.join(actions)}")
    if data.fps is None:
        yield Finding("no-fps", "note", "the frame rate is not known", "store it if your method depends on "
                      "time. In a table, name the column of seconds: --columns timestamp=COLUMN")
    for name, f in features.items():
        if role(name) == "action" and f.kind == "string":
            yield Finding("dtype", "warning", f"{name}: text cannot be learned as an action",
                          "store numbers", Location(feature=name))
        if f.names and len(set(f.names)) < len(f.names):
            repeated = format_list(sorted({n for n in f.names if f.names.count(n) > 1}))
            yield Finding("names-repeat", "warning", f"{name}: components with the same name: {repeated}",
                          "give them different names", Location(feature=name))


def check_short_episodes(data: Dataset) -> Iterator[Finding]:
    """Finds episodes that are much shorter than most episodes and did not reach a goal."""
    lengths = data.lengths
    few = np.flatnonzero(lengths < 0.25 * np.median(lengths)) if len(lengths) >= 8 else []
    early = []
    for e in few:
        episode = data[int(e)]
        won = bool(episode.metadata.get("success")) or any(
            bool(np.asarray(episode.steps[n])[:len(episode)].any()) for n in ("next.success", "next.terminated")
            if n in episode.steps)
        early += [] if won else [int(e)]
    if early:
        yield finding_of_episodes("early-end", "warning", early, f"shorter than a quarter of the usual "
                                  f"{np.median(lengths):g} steps, without having reached an end",
                                  "leave it out if the recording stopped too early")


def interrupted(data: Dataset) -> Iterator[Finding]:
    """Finds episodes with an interrupted recording."""
    if episodes := interrupted_episodes(data):
        descriptions = [f"{e} ({pluralize(len(data[e]), 'step')})" for e in episodes]
        yield Finding("interrupted", "warning", f"{pluralize(len(episodes), 'episode')} whose recording was "
                      f"interrupted before the end: {format_list(descriptions)}",
                      "training leaves them out; understudy train --include-interrupted trains on them",
                      Location(episode=episodes[0]), tuple(episodes))


def check_constant(data: Dataset) -> Iterator[Finding]:
    """Finds components that never change."""
    if data.lengths.sum() < 2:
        return
    for name, f in data[0].features().items():
        if role(name) not in ("observation", "action") or f.kind not in ("vector", "discrete") or not f.size:
            continue
        low, high = component_ranges(data, name)
        still = np.flatnonzero(low == high)
        if len(still):
            labels = [component_names(f)[i] for i in still]
            change = "component of {} never changes" if len(still) == 1 else "components of {} never change"
            yield Finding("constant", "warning" if len(still) == f.size else "note",
                          f"{name}: {len(still)} {change.format(f.size)}: {format_list(labels)}",
                          "leave them out, or find out why they never change", Location(feature=name))
        if f.kind == "vector" and len(hidden := unlearned_components(low, high, is_constant(low, high))):
            ranges = [f"{component_names(f)[i]} by {high[i] - low[i]:.3g}" for i in hidden]
            yield Finding("constant", "warning", f"{name}: policies treat {pluralize(len(hidden), 'component')} of "
                          f"{f.size} as constant, and do not learn what changes so little: {format_list(ranges)}",
                          "unless this is noise, store it in a smaller unit, with values near 0",
                          Location(feature=name))


def check_duplicates(data: Dataset) -> Iterator[Finding]:
    """Finds episodes that occur twice, and components that are copies of another component."""
    names = [n for n in _numeric_columns(data) if role(n) in ("observation", "action")]
    yield from _find_duplicate_episodes(data, names)
    yield from _find_copied_components(data, names)


def _find_duplicate_episodes(data: Dataset, names: list[str]) -> Iterator[Finding]:
    digests = []
    for episode in data:
        digest = hashlib.blake2b(digest_size=16)
        for name in names:
            digest.update(np.ascontiguousarray(episode.steps[name]).tobytes())
        digests.append(digest.digest())
    # where no numbers are observed, the first pictures tell episodes with equal actions apart
    cameras = [] if any(role(n) == "observation" for n in names) else camera_names(data[0].features())
    first_episodes: dict[tuple[bytes, ...], int] = {}
    twice, counts = [], Counter(digests)
    for e in np.flatnonzero((data.lengths > 1) & [counts[d] > 1 for d in digests]).tolist():
        key = (digests[e], *(next(_frames(data, e, name))[1].tobytes() for name in cameras))
        if first_episodes.setdefault(key, e) != e:
            twice.append((first_episodes[key], e))
    if names and twice:
        yield Finding(
            "duplicate-episode",
            "warning",
            f"{pluralize(len(twice), 'episode')} equal to an earlier one: "
            f"{format_list(f'{b} = {a}' for a, b in twice)}",
            "leave it out: it counts twice in training, and may be in the held-out data too",
            Location(episode=twice[0][1]),
            tuple(e for _, e in twice),
        )


def _find_copied_components(data: Dataset, names: list[str]) -> Iterator[Finding]:
    copies: dict[bytes, list[str]] = {}
    for name in names:
        f = data[0].features()[name]
        if not is_numeric(f) or f.size > 512:
            continue
        digests = [hashlib.blake2b(digest_size=16) for _ in range(f.size)]
        for episode in data:
            flat = np.asarray(episode.steps[name][:len(episode)], np.float64).reshape(len(episode), -1)
            for digest, values in zip(digests, np.ascontiguousarray(flat.T), strict=True):
                digest.update(values.tobytes())
        low, high = component_ranges(data, name)
        for i, digest in enumerate(digests):
            if low[i] < high[i]:
                component = f"{name}[{component_names(f)[i]}]" if f.shape else name
                copies.setdefault(digest.digest(), []).append(component)
    groups = [same for same in copies.values() if len(same) > 1]
    for description, severity, chosen in (
            ("an observation that is the action, which gives the answer away", "warning",
             [g for g in groups if len({role(n) for n in g}) > 1]),
            ("components of a column", "warning", [g for g in groups if len({n.split("[")[0] for n in g}) == 1]),
            ("observations", "note", [g for g in groups if len({n.split("[")[0] for n in g}) > 1 == len(
                {role(n) for n in g})])):
        if chosen:
            yield Finding("duplicate-component", severity, f"{description}, equal at every step: "
                          f"{'; '.join(format_list(g, 4) for g in chosen[:4])}{'; ...' if len(chosen) > 4 else ''}",
                          "leave all but one out", Location(feature=chosen[0][0].split("[")[0]))


def check_dtypes(data: Dataset) -> Iterator[Finding]:
    """Finds numbers of a type that makes a reader misread them, and numbers that are implausibly large."""
    for name, f in data[0].features().items():
        if role(name) in ("observation", "action") and f.kind in ("discrete", "text") and f.size:
            low, high = component_ranges(data, name)
            remedy = f"if they are quantities: --columns {short_name(name)}={own_columns(data, name)}:quantities"
            if role(name) == "observation" and f.kind == "text":
                if not _is_text(data, name):
                    yield Finding("dtype", "warning", f"{name}: uint8 is read as the bytes of a text, and these are "
                                  "no text", remedy, Location(feature=name))
                continue
            if low.min() < 0 or high.max() > 255:
                yield Finding("dtype", "warning", f"{name}: integers from {low.min():g} to {high.max():g}, which are "
                              "read as classes", remedy, Location(feature=name))
        if role(name) == "action" and f.kind == "vector" and len(f.shape) > 1:
            yield Finding("dtype", "warning", f"{name} has {' x '.join(map(str, f.shape))} numbers in each step",
                          "lay arrays of (episodes, steps, components) end to end: array.reshape(-1, components)",
                          Location(feature=name))
        if f.kind == "vector" and f.dtype.startswith("float") and role(name) in ("observation", "action") and f.size:
            low, high = component_ranges(data, name)
            has_values = np.isfinite(low)  # finite ones
            if (size := np.abs([low[has_values], high[has_values]]).max(initial=0)) > 1e6:
                yield Finding("range", "warning", f"{name}: values as large as {size:.3g}",
                              "check for a placeholder for missing values, or another unit",
                              Location(feature=name))


def _is_text(data: Dataset, name: str) -> bool:
    """Returns whether the bytes at the first step of every episode are UTF-8 text, padded with 0."""
    try:
        return all(bytes(np.ravel(e.steps[name][0])).rstrip(b"\0").decode().replace("\n", " ").isprintable()
                   for e in data if len(e))
    except UnicodeDecodeError:
        return False


def own_columns(data: Dataset, name: str) -> str:
    """Returns the columns that a column was made of, as the user named them, or its own name."""
    parts = data.metadata.get("reading", {}).get("columns", {}).get(name, (name,))
    return ",".join(parts).removesuffix(":classes").removesuffix(":quantities")


def action_reading(data: Dataset) -> str | None:
    """Returns how an action of few whole numbers is read, and how to read it otherwise. None for other actions."""
    f = data.features().get("action")
    if f is None or f.kind not in ("vector", "discrete") or not f.size:
        return None
    values: set[float] = set()
    for episode in data:
        column = np.unique(episode.steps["action"])
        column = column[column == column]  # NaN stands for an unknown action
        values.update(column.tolist())
        if len(values) > _FEW_VALUES or not (column == np.round(column)).all():
            return None
    if not values:
        return None
    described, columns = format_list((f"{v:g}" for v in sorted(values)), _FEW_VALUES), own_columns(data, "action")
    if f.kind == "discrete":
        return (f"action has the whole numbers {described}, which are read as classes, without an order. If they are "
                f"quantities: --columns action={columns}:quantities")
    return (f"action has the whole numbers {described}, which are read as quantities: a policy may answer with numbers "
            f"between them. If they are classes: --columns action={columns}:classes")


def check_image_layouts(data: Dataset) -> Iterator[Finding]:
    """Finds observations that hold images in another layout than uint8 (height, width, channels)."""
    for name, f in data[0].features().items():
        if role(name) != "observation":
            continue
        is_image = False
        if len(f.shape) == 3 and f.dtype != "uint8" and len(data[0]) and f.size:
            values = np.asarray(data[0].steps[name])
            low, high = values.min(), values.max()
            if f.kind == "discrete":
                f = replace(f, num_classes=(int(high) + 1,))
            elif f.dtype.startswith("float"):  # pixels, whatever the column is called
                is_image = bool(0 <= low < high <= 1) and "depth" not in name.lower()
        if (problem := image_layout_problem(name, f, is_image)) is not None:
            yield Finding("image-layout", "warning", *problem, Location(feature=name))


def check_unread_images(data: Dataset) -> Iterator[Finding]:
    """Finds camera frames in columns that no policy reads, because of their names."""
    for name, f in data[0].features().items():
        if f.kind == "image" and role(name) == "other" and not name.startswith(("simulator.", "infos.")):
            key = own_columns(data, name)
            yield Finding("image-unread", "warning", f"{name} has images, but no policy reads a column of this name",
                          f"name it with --columns images.{key.rpartition('.')[2]}={key}, if it is a camera",
                          Location(feature=name))


def check_saturation(data: Dataset) -> Iterator[Finding]:
    """Finds actions that are often at the same limit. They were probably clipped there."""
    for name, f in data[0].features().items():
        if role(name) != "action" or f.kind != "vector" or not f.size:
            continue
        low, high = (x.reshape(f.shape) for x in component_ranges(data, name))
        at, steps, inside = np.zeros(f.shape), 0, np.zeros(f.shape)
        for episode in data:
            values = episode.steps[name][:len(episode)]
            at, steps = at + (values == low).sum(0) + (values == high).sum(0), steps + len(values)
            inside += ((values != low) & (values != high) & (values != 0)).sum(0)
        cut = np.flatnonzero(((at > 0.1 * steps) & (at > 20) & (low < high) & (inside > 0.1 * steps)).reshape(-1))
        if len(cut):
            labels = [component_names(f)[i] for i in cut]
            most = float((at / max(steps, 1)).reshape(-1)[cut].max())
            yield Finding("saturated", "note" if most < 0.5 else "warning",
                          f"{name}: up to {most:.0%} of the steps lie at a limit of "
                          f"component{'s' * (len(cut) > 1)} {format_list(labels)}",
                          "the range was too small for what was demonstrated, or the values were clipped",
                          Location(feature=name))


def check_idle(data: Dataset) -> Iterator[Finding]:
    """Finds episodes in which nothing moves, or almost nothing for most of the time."""
    names = [n for n, f in data[0].features().items() if role(n) == "observation" and f.kind == "vector" and f.size]
    if not names:
        return
    still, slow = [], []
    for e, episode in enumerate(data):
        if len(episode) < 3:
            continue
        moving = np.zeros(len(episode) - 1, bool)
        for name in names:
            values = np.asarray(episode.steps[name][:len(episode)], np.float64).reshape(len(episode), -1)
            moving |= (values[1:] != values[:-1]).any(1)
        if not moving.any():
            still.append(e)
        elif moving.mean() < 0.5:
            slow.append(e)
    if still:
        yield finding_of_episodes("no-motion", "warning", still, "in which no observation changes", "leave it out")
    if slow:
        yield finding_of_episodes("idle", "note" if len(slow) > 0.5 * len(data) else "warning", slow,
                                  "in which nothing moves for most of the time",
                                  "crop the start and the end, or check for a sensor that stopped")


def check_calibrations(data: Dataset) -> Iterator[Finding]:
    """Finds episodes that were recorded after the robot was calibrated again."""
    calibrations = [e.metadata.get("calibration") for e in data]
    first = next(filter(None, calibrations), None)
    if changed := [e for e, calibration in enumerate(calibrations) if calibration and calibration != first]:
        yield finding_of_episodes("calibration-differs", "warning", changed, "recorded with another calibration of "
                                  "the robot than the first", "the same pose may have other numbers there: compare "
                                  "some, or leave these episodes out")


def check_tasks(data: Dataset) -> Iterator[Finding]:
    """Finds episodes without a task in data in which other episodes have one."""
    empty = [e for e, episode in enumerate(data) if not episode_tasks(episode)]
    if empty and len(empty) < len(data):
        yield finding_of_episodes("task-missing", "warning", empty, "without a task in words", "store the task", "task")


# -- frames ---------------------------------------------------------------------------------------------------------


def check_images(data: Dataset) -> Iterator[Finding]:
    """Finds frames that are black, damaged, frozen while the robot moves, early or late, or that have values of 0 to 1
    instead of 0 to 255."""
    features = data[0].features()
    for name in (n for n in camera_names(features) if features[n].size):  # `check_image_layouts` names empty ones
        sight, stillness = action_motion.CameraLag(data, name), action_motion.Stillness(data, name)
        black, damaged, brightest = [], [], 0
        for e in range(len(data)):
            before, dark = None, None
            equal, brightness = [], []
            try:
                for t, frame in _frames(data, e, name):
                    if sight.needs_episode(e):
                        brightness.append(action_motion.grid_brightness(frame))
                    high = int(frame.max())
                    brightest = max(brightest, high)
                    if high <= 8 and dark is None:
                        dark = t
                    digest = hashlib.blake2b(np.ascontiguousarray(frame).tobytes(), digest_size=8).digest()
                    equal.append(digest == before)
                    before = digest
            except UserError as error:
                damaged.append((e, error))
                continue
            if brightness:
                sight.add(e, brightness)
            black += [] if dark is None else [(e, dark)]
            stillness.add(e, equal)
        if damaged:
            e, error = damaged[0]
            finding = finding_from_error(error, Path(data.metadata.get("path", ".")), code="frame-damaged")
            more = f" (and in {pluralize(len(damaged) - 1, 'other episode')})" if len(damaged) > 1 else ""
            yield replace(finding, message=finding.message + more,
                          where=replace(finding.where, episode=e, feature=name),
                          episodes=tuple(episode for episode, _ in damaged))
        if 0 < brightest <= 1:
            yield Finding("image-range", "warning", f"{name}: no value above 1, so the frames are almost black",
                          "multiply by 255 before storing whole numbers", Location(feature=name))
        elif black:
            e, t = black[0]
            yield Finding("image-black", "warning",
                          f"{name}: black frames in {pluralize(len(black), 'episode')}, the first "
                          f"in episode {e}, step {t}", "the camera was off: leave the episode out",
                          Location(None, e, t, name), tuple(e for e, _ in black))
        yield from stillness.findings()
        yield from repeated_frames.find_repeated_frames(data, name, stillness.equal)
        yield from sight.findings()


def _frames(data, e, name) -> Iterator[tuple[int, np.ndarray]]:
    """Yields the frames of an episode in order as (row, frame), without loading the whole episode."""
    waiting, due = {}, 0
    for which, frame in data.frames(name, e):
        for row in np.atleast_1d(which):
            waiting[int(row)] = frame
        while due in waiting:
            yield due, waiting.pop(due)
            due += 1


# -- all of them ----------------------------------------------------------------------------------------------------


INTEGRITY_CHECKS: tuple[Check, ...] = (
    check_rows,
    check_finite,
    label_checks.check_flags,
    check_episode_ends,
    check_timestamps,
    label_checks.check_labels,
    label_checks.check_success,
    lerobot_checks.check_stats,
    lerobot_checks.check_frame_times,
)
QUALITY_CHECKS: tuple[Check, ...] = (
    reader_warnings,
    check_metadata,
    check_short_episodes,
    label_checks.check_terminated_at_limit,
    interrupted,
    check_constant,
    check_duplicates,
    check_dtypes,
    check_image_layouts,
    check_unread_images,
    check_saturation,
    check_idle,
    check_calibrations,
    check_tasks,
    lerobot_checks.check_quantiles,
    action_motion.check_jumps,
    continuity.check_resets,
    continuity.check_rotations,
    action_motion.check_unrelated_actions,
    action_motion.check_action_lag,
    action_motion.check_action_convention,
    action_motion.check_component_pairs,
    action_motion.check_units,
)
FRAME_CHECKS: tuple[Check, ...] = (check_images,)
# Their warnings are shown before training: what a policy learns from such data is not what was meant.
TRAINING_CHECKS: tuple[Check, ...] = (reader_warnings, check_timestamps, check_constant, check_dtypes,
                                     check_unread_images, check_calibrations, lerobot_checks.check_frame_times)


def _numeric_columns(data) -> list[str]:
    return [n for n, f in data[0].features().items() if f.kind in ("vector", "discrete") and role(n) != "index"
            or n == "timestamp"]
