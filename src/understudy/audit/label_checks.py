"""Checks of labels: flags of steps, labels of episodes, and whether both agree with the rewards."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..data.episode import Dataset, Episode, terminate_together
from ..data.formats.parts.column_names import FLAG_COLUMNS, format_list
from ..hints import command_line, pluralize
from .base import Finding, Location


def check_flags(data: Dataset) -> Iterator[Finding]:
    """Finds step flags, such as `next.terminated`, with values other than 0 and 1."""
    for name in (n for n, f in data.features().items() if n in FLAG_COLUMNS and f.dtype != "bool"):
        for e, episode in enumerate(data):
            values = np.asarray(episode.steps[name])
            unclear = np.argwhere((values != 0) & (values != 1) & (values == values))  # check_finite finds NaN
            if len(unclear):
                value = values[tuple(unclear[0])].item()
                yield Finding("label-unclear", "error", f"{name} is {value!r}, and not True or False",
                              "store flags, or give a column of other values another name",
                              Location(None, e, int(unclear[0][0]), name))
                break


def is_flag(value: object) -> bool:
    """Returns whether a value of the metadata is true or false, or the number 1 or 0."""
    return isinstance(value, (bool, int, float, np.bool_, np.number)) and value in (0, 1)


def check_labels(data: Dataset) -> Iterator[Finding]:
    """Finds labels "success" and "expert" of episodes that are neither true nor false, such as text."""
    for e, episode in enumerate(data):
        for name in ("success", "expert"):
            label = episode.metadata.get(name, False)
            if not is_flag(label):
                kind = "the text " if isinstance(label, str) else ""
                yield Finding("label-unclear", "error", f"the label {name} is {kind}{label!r}, and not True or False",
                              "store flags, and no label where it is unknown; or label such episodes again: "
                              + command_line("view", "make", "DATA", "--select", "NUMBERS", "--label", f"{name}=false",
                                             "--out", "VIEW"), Location(None, e))
                return


def _is_cut(episode: Episode) -> bool:
    """Returns whether an episode was cut: it ends neither terminated nor truncated, since later steps were left out."""
    ends = [episode.steps[n] for n in ("next.terminated", "next.truncated") if n in episode.steps]
    return len(ends) == 2 and not any(np.asarray(flags).reshape(-1)[:len(episode)][-1:].any() for flags in ends)


def check_success(data: Dataset) -> Iterator[Finding]:
    """Finds episodes whose metadata, column of success and rewards disagree about success."""
    labels, best = [], []
    for e, episode in enumerate(data):
        label = episode.metadata.get("success")
        label = bool(label) if is_flag(label) else None
        column = bool(np.any(episode.steps["next.success"])) if "next.success" in episode.steps else None
        if None not in (label, column) and label != column and not (label and _is_cut(episode)):
            yield Finding("success-disagrees", "error", f"the metadata success is {label}, the column next.success "
                          f"{'has a' if column else 'is never'} True", "correct the one or the other",
                          Location(None, e, None, "next.success"))
            return
        well = column if label is None else label
        if well is not None and "next.reward" in episode.steps:
            reward = np.asarray(episode.steps["next.reward"], np.float64)[:len(episode)]
            if reward.size and np.isfinite(reward).all():
                labels.append((e, well))
                best.append(reward.max())
    if not labels or (wins := sum(w for _, w in labels)) in (0, len(labels)):
        return
    # Sparse rewards: successful episodes reach the maximum, failed ones do not. Reported only if this holds for
    # almost all.
    best, well = np.array(best), np.array([w for _, w in labels])
    top = np.median(best[well])
    agree = well == (best >= top)
    if agree.mean() < 0.8 or agree[well].mean() <= 0.5 or agree[~well].mean() <= 0.5:
        return
    mislabeled = [e for (e, w), b in zip(labels, best, strict=True) if w != (b >= top)]
    if mislabeled:
        yield Finding(
            "success-reward",
            "warning",
            f"{pluralize(len(mislabeled), 'episode')} marked as success or failure "
            f"against {'its' if len(mislabeled) == 1 else 'their'} rewards: {format_list(mislabeled)}; {wins} of "
            f"{len(labels)} are marked as success, with a highest reward of {top:g}",
            "look at them and correct the label",
            Location(episode=mislabeled[0], feature="next.reward"),
            tuple(mislabeled),
        )


def check_terminated_at_limit(data: Dataset) -> Iterator[Finding]:
    """Finds data in which all episodes terminate after the same number of steps, as if a time limit were an end."""
    if len(data) and "next.terminated" in data[0].steps and terminate_together(data):
        yield Finding("terminated-at-limit", "warning",
                      f"all {len(data)} episodes terminate after {data.lengths[0]} steps, as with a time limit",
                      "if it is one, set next.truncated (timeouts in an .npz) in place of next.terminated (terminals): "
                      "otherwise critics learn that nothing follows", Location(feature="next.terminated"))
