"""Compares what the cameras show where a policy acts with the recorded images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import permutations

import numpy as np
import scipy.stats
from scipy.spatial.distance import cdist

from ..audit.base import Location
from ..data.formats.parts.column_names import format_list
from .base import RunFinding

NEARER, SURE = 0.8, 5.0  # a change has to bring images to this fraction of their distance; standard errors
EXCHANGED = 0.5  # the same fraction for the distance of colors, if exchanging red and blue is the change
SHADES = 64  # quantiles of the difference of red and blue that stand for the colors of an image
APART = 0.15  # difference to the nearest recorded image, as a fraction of the brightness
MOST_CAMERAS = 4  # most cameras of which all orders are tried
READ = 0.5  # largest unexplained fraction of a component of the state that is read from images
RIDGE = 1e-3  # ridge penalty, as a fraction of the variance of the images
DISAGREES = 3.0  # error of states read from new images, as a multiple of the error with recorded images
FEWEST_IMAGES = 100  # recorded images from which a component is read
CLEAR = 0.6  # factor by which another delay has to reduce the error
DELAYS = range(21)  # steps that a camera may be late
NEW_PIXELS, CHANCE = 0.1, 1e-3  # difference of a pixel from all recorded ones; p-value of images with many of them
FEW, OUTSIDE = 0.1, 0.25  # fraction of the recorded images that have as many of them, and of the first images
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
        """Returns the distances of observed times to recorded images if camera order[i] is really names[i], (M,)."""
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
    """Returns how many times nearer the colors are to recorded ones with red and blue exchanged. None if unclear.

    The colors of an image are how red or blue its pixels are, wherever they are: a colored object moves.
    """
    shades = [np.quantile(images[..., 0] - images[..., 2], np.linspace(0, 1, SHADES), axis=(1, 2)).T
              for images in (recorded, observed)]
    plain, exchanged = _distance(*shades), _distance(shades[0], -shades[1][:, ::-1])
    return float(plain.mean() / max(exchanged.mean(), 1e-9)) if _is_nearer(exchanged, plain, EXCHANGED) else None


def _distance(recorded: np.ndarray, observed: np.ndarray) -> np.ndarray:
    """Returns the mean difference of images to the nearest recorded image, (M,)."""
    flat = [rows.reshape(len(rows), -1) for rows in (observed, recorded)]
    return cdist(*flat, "cityblock").min(1) / flat[0].shape[1]


def _is_nearer(changed: np.ndarray, plain: np.ndarray, fraction: float) -> bool:
    """Returns whether distances to recorded images are clearly smaller after a change, such as exchanged cameras."""
    gain = plain - changed
    return bool(changed.mean() < fraction * plain.mean() and gain.mean() > SURE * gain.std() / np.sqrt(len(gain)))


def check_views(name: str, recorded: Sequence[tuple[np.ndarray, np.ndarray]],
                observed: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Iterator[RunFinding]:
    """Finds a camera that is late, turned, moved or zoomed: its new images do not show the state as recorded images do.

    The state is read from images by linear regression. The error is taken at its lower quartile over frames, because
    new things in the scene disturb the reading of some frames.

    Args:
        recorded: Small images (T, h, w, 3) and states (T, D) of each episode.
        observed: Images, the rows to which they belong, (T,), and the states of all rows, (N, D).
    """
    halves = [[np.concatenate(part) for part in zip(*recorded[k::2], strict=True)] for k in (0, 1) if recorded[k::2]]
    if len(halves) < 2 or sum(len(states) for _, states in halves) < FEWEST_IMAGES or not observed:
        return
    scale = np.maximum(np.concatenate([states for _, states in halves]).std(0), 1e-9)
    held_out = [(_reader(*halves[1 - k])(images) - states) / scale for k, (images, states) in enumerate(halves)]
    kept = np.flatnonzero(np.mean([np.square(missed).mean(0) for missed in held_out], axis=0) < READ)
    if not len(kept):
        return
    everything = [np.concatenate(part) for part in zip(*halves, strict=True)]
    usual = float(np.quantile(np.concatenate([np.linalg.norm(missed[:, kept], axis=1) for missed in held_out]), 0.25))
    low, high = everything[1][:, kept].min(0), everything[1][:, kept].max(0)
    reads, read = [], _reader(*everything)
    for images, rows, states in observed:  # where states are as in the data
        usual_rows = ((states[rows][:, kept] >= low) & (states[rows][:, kept] <= high)).all(1)
        reads.append((read(images[usual_rows]), rows[usual_rows], states))
    errors = {k: np.concatenate([np.linalg.norm(((place - states[np.maximum(rows - k, 0)]) / scale)[rows >= k][:, kept],
                                                axis=1) for place, rows, states in reads]) for k in DELAYS}
    if len(errors[0]) < FEWEST_IMAGES:
        return
    errors = {k: each for k, each in errors.items() if len(each) > len(errors[0]) / 2}
    best = min(errors, key=lambda k: np.median(errors[k]))
    own, location = float(np.quantile(errors[0], 0.25)), Location(feature=name)
    if best > 1 and np.median(errors[best]) < CLEAR * np.median(errors[0]):
        yield RunFinding(
            "latency", "fault", f"{name} shows the state of {best} steps before, and in the data that of the same "
            "step: its images arrive late", best, (0, 0), "remove the delay of the camera, or read it more often",
            ("inspect", "DATA", "--html", "data.html"), location)
    elif own > DISAGREES * usual:
        yield RunFinding(
            "camera-differs", "warning", f"{name} shows another state than recorded images that look like it, "
            f"{own / usual:.3g} times as far off as recorded ones are: the camera is turned, mirrored, zoomed or at "
            "another place", own / usual, (0, DISAGREES), "compare the images, and put the camera where it was",
            ("inspect", "DATA", "--html", "data.html"), location)


def _reader(images: np.ndarray, states: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Fits a linear model that reads states (N, D) from images."""
    center, pixels = states.mean(0), images.reshape(len(images), -1).astype(np.float64)
    middle = pixels.mean(0)
    pixels -= middle
    square = pixels.T @ pixels
    square[np.diag_indices_from(square)] += RIDGE * np.trace(square) / len(square) + 1e-9
    weights = np.linalg.solve(square, pixels.T @ (states - center))
    return lambda new: center + (new.reshape(len(new), len(middle)) - middle) @ weights


def check_first_images(recorded: Mapping[str, np.ndarray], observed: Mapping[str, np.ndarray]) -> Iterator[RunFinding]:
    """Finds episodes that start with something where it never was in the data.

    Args:
        recorded: Images of each camera, (N, h, w, 3), from 0 to 1, the same number of each episode.
        observed: The first images where the policy acts, (M, h, w, 3).
    """
    for name in (n for n in recorded if n in observed):
        parts = np.array_split(recorded[name], 2)
        others = np.concatenate([_new_pixels(*parts), _new_pixels(*parts[::-1])])  # two halves of the recorded images
        own = _new_pixels(recorded[name], observed[name])
        count, most = int((own > np.quantile(others, 1 - FEW)).sum()), FEW * len(others)
        chance = scipy.stats.betabinom(len(own), 1 + most, len(others) - most).sf(count - 1)
        if count > OUTSIDE * len(own) and chance < CHANCE:
            yield RunFinding(
                "start-states", "fault", f"{name}: {count / len(own):.0%} of the episodes begin with an image that has "
                "something where it never was in the data: episodes start where none was recorded", count / len(own),
                (0, OUTSIDE), "start as in the data, or record episodes that start so",
                ("record", "ENV", "--out", "more", "--episodes", "20"), Location(feature=name))


def _new_pixels(recorded: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Returns the fraction of pixels of each image that are outside of their range in the recorded images, (M,)."""
    low, high = recorded.min(0) - NEW_PIXELS, recorded.max(0) + NEW_PIXELS
    return ((images < low) | (images > high)).any(-1).mean((1, 2))
