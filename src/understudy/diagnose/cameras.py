"""What cameras show where a policy acts, against what was recorded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
from scipy.spatial.distance import cdist

from ..audit.base import Location
from ..data.formats.parts.column_names import format_list
from .base import RunFinding

NEARER, SURE = 0.8, 5.0  # distance to the recorded images, as a fraction of that as they are, and standard errors
EXCHANGED = 0.5  # the same of the colors if red and blue are exchanged
SHADES = 64  # quantiles of the difference of red and blue that stand for the colors of an image
APART = 0.15  # of the brightness, to the nearest recorded image
MOST_CAMERAS = 4  # whose orders are tried
CHANGES = 0.9  # fraction of the recorded episodes in which the image changes, if its camera may be judged


def check_still(recorded: Mapping[str, Sequence[bool]], observed: Mapping[str, Sequence[bool]]) -> Iterator[RunFinding]:
    """Finds cameras whose image never changes.

    Args:
        recorded: By camera, whether the image changes in each recorded episode.
        observed: The same where the policy acts. Empty for none.
    """
    for name, changes in recorded.items():
        own = observed.get(name, ())
        if len(changes) and not any(changes):
            yield RunFinding(
                "image-never-changes", "warning", f"{name}: no image differs from the first one of its episode in the "
                "data: the camera does not see what moves, or it hung during the recording", 0, (CHANGES, 1),
                "look at the recorded images, and leave the camera out or record again", ("audit", "DATA"),
                Location(feature=name))
        elif len(own) and not any(own) and np.mean(changes) >= CHANGES:
            yield RunFinding(
                "image-never-changes", "fault", f"{name}: the image never changes where the policy acts, and in "
                f"{np.mean(changes):.0%} of the recorded episodes it does: the camera hangs, or the same image is "
                "given again and again", 0, (CHANGES, 1), "look at the camera and at what reads it",
                ("inspect", "DATA", "--html", "data.html"), Location(feature=name))


def check_cameras(recorded: Mapping[str, np.ndarray], observed: Mapping[str, np.ndarray]) -> Iterator[RunFinding]:
    """Finds swapped cameras and swapped color channels, by the nearest recorded image of each observed one.

    Args:
        recorded: Images of each camera, (N, h, w, 3), from 0 to 1, at one size.
        observed: The same where the policy acts, (M, h, w, 3). Row i of all cameras is of one time.
    """
    names = [n for n in recorded if n in observed][:MOST_CAMERAS]

    def nearest(order):
        """Distance of each observed time to the recorded images, (M,), if camera order[i] is really names[i]."""
        return np.mean([_distance(recorded[a], observed[b]) for a, b in zip(names, order, strict=True)], axis=0)
    if not names:
        return
    plain, location = nearest(names), Location(feature=names[0])
    orders = {order: nearest(order) for order in permutations(names) if order != tuple(names)}
    best = min(orders, key=lambda order: orders[order].mean(), default=None)
    exchanged = {n: ratio for n in names if (ratio := _exchange(recorded[n], observed[n])) is not None}
    if best is not None and _is_nearer(orders[best], plain, NEARER):
        pairs = [f"{b} shows what {a} showed" for a, b in zip(names, best, strict=True) if a != b]
        yield RunFinding("cameras-swapped", "fault", "; ".join(pairs), float(plain.mean() / orders[best].mean()),
                         (0, 1 / NEARER), "swap the cameras, or their indices", ("robot", "find-cameras"), location)
    elif exchanged:
        yield RunFinding("color-order", "fault", f"{format_list(exchanged)}: the colors are nearer to the recorded "
                         "ones with red and blue exchanged (BGR)", max(exchanged.values()), (0, 1 / EXCHANGED),
                         "give the channels in the order red, green, blue", ("inspect", "DATA", "--html", "data.html"),
                         Location(feature=next(iter(exchanged))))
    elif plain.mean() > APART:
        yield RunFinding("camera-differs", "warning", f"the nearest recorded images differ by {plain.mean():.0%} of "
                         "the brightness: another light, exposure, place or scene", float(plain.mean()), (0, APART),
                         "compare the images", ("inspect", "DATA", "--html", "data.html"), location)


def _exchange(recorded: np.ndarray, observed: np.ndarray) -> float | None:
    """How many times nearer the colors are to recorded ones with red and blue exchanged. None if not clearly.

    The colors of an image are how red or blue its pixels are, wherever they are: a colored object moves.
    """
    shades = [np.quantile(images[..., 0] - images[..., 2], np.linspace(0, 1, SHADES), axis=(1, 2)).T
              for images in (recorded, observed)]
    plain, exchanged = _distance(*shades), _distance(shades[0], -shades[1][:, ::-1])
    return float(plain.mean() / max(exchanged.mean(), 1e-9)) if _is_nearer(exchanged, plain, EXCHANGED) else None


def _distance(recorded: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Mean difference to the nearest recorded row, (M,)."""
    flat = [rows.reshape(len(rows), -1) for rows in (observed, recorded)]
    return cdist(*flat, "cityblock").min(1) / flat[0].shape[1]


def _is_nearer(changed: np.ndarray, plain: np.ndarray, fraction: float) -> bool:
    """Whether the distances are clearly smaller if the cameras are changed: on average, and beyond their noise."""
    gain = plain - changed
    return bool(changed.mean() < fraction * plain.mean() and gain.mean() > SURE * gain.std() / np.sqrt(len(gain)))
