"""Measures how an episode moves: smoothness, and how long it takes."""

from __future__ import annotations

import math

import numpy as np

from ...data.episode import Episode
from .scaling import TrajectoryScaling

MAX_FREQUENCY = 10.0  # Hz: how people move has nothing above (Balasubramanian et al. 2012)


def speed(states: np.ndarray, fps: float) -> np.ndarray:
    """Computes the distance that the state moves per second.

    Args:
        states: States, (T, S).

    Returns:
        (T - 1,).
    """
    return np.linalg.norm(np.diff(states, axis=0), axis=1) * fps


def spectral_arc_length(
    profile: np.ndarray, fps: float, max_frequency: float = MAX_FREQUENCY, min_amplitude: float = 0.05
) -> float:
    """Computes the smoothness measure SPARC: minus the length of the normalized spectrum of a speed profile.

    It is at most about -1.4, for one even stroke. Every halt and tremble makes it more negative, whatever the size and
    pace of the movement.

    Args:
        profile: Speeds, (T,).
        fps: Speeds per second.
        max_frequency: Upper end of the spectrum, Hz. Above half of `fps` there is none.
        min_amplitude: The spectrum is cut where its amplitude was last this fraction of the largest.

    Returns:
        The measure. NaN for fewer than five speeds, values that are not finite, or no movement.

    References:
        Balasubramanian et al. (2015), On the Analysis of Movement Smoothness.
    """
    profile = np.asarray(profile, float)
    if len(profile) < 5 or not np.isfinite(profile).all() or not np.abs(profile).max() > 0:
        return math.nan
    size = 2 ** (math.ceil(math.log2(len(profile))) + 4)  # padded with zeros: a fine spectrum
    frequency, height = np.fft.rfftfreq(size, 1 / fps), np.abs(np.fft.rfft(profile, size))
    height = (height / height.max())[frequency <= max_frequency]
    kept = np.flatnonzero(height >= min_amplitude)
    frequency, height = frequency[kept[0]:kept[-1] + 1], height[kept[0]:kept[-1] + 1]
    if len(frequency) < 2:
        return math.nan
    return -float(np.hypot(np.diff(frequency) / (frequency[-1] - frequency[0]), np.diff(height)).sum())


def log_dimensionless_jerk(profile: np.ndarray, fps: float) -> float:
    """LDLJ, a measure of smoothness: minus the logarithm of the integrated squared second derivative of a speed
    profile.

    The duration cubed over the largest speed squared makes it free of units. It is -5.32 for the smoothest possible
    stroke, which is the stroke of minimal jerk. Lower values are jerkier. Noise of sensors counts more than in SPARC.

    Args:
        profile: Speeds, (T,).
        fps: Speeds per second.

    Returns:
        The measure. NaN for fewer than five speeds, values that are not finite, or no movement.

    References:
        Hogan and Sternad (2009), Sensitivity of Smoothness Measures to Movement Duration, Amplitude, and Arrests;
        Balasubramanian et al. (2015), On the Analysis of Movement Smoothness.
    """
    profile = np.asarray(profile, float)
    if len(profile) < 5 or not np.isfinite(profile).all() or not np.abs(profile).max() > 0:
        return math.nan
    jerk = np.diff(profile, 2) * fps**2
    value = (len(profile) / fps) ** 3 / np.abs(profile).max() ** 2 * float((jerk**2).sum()) / fps
    return -math.log(value) if value > 0 else math.nan


def action_jerk(actions: np.ndarray) -> float:
    """The root mean square of the third differences of actions (T, A): jerk, where actions are positions (Flash and
    Hogan 1985). NaN for fewer than four steps."""
    return float(np.sqrt(np.mean(np.square(np.diff(actions, n=3, axis=0))))) if len(actions) > 3 else math.nan


def success_step(episode: Episode) -> float:
    """Returns the number of steps until the environment first reports success. NaN if it never does."""
    success_flags = np.asarray(episode.steps["next.success"]) if "next.success" in episode.steps else np.zeros(0)
    return float(np.argmax(success_flags > 0)) + 1 if (success_flags > 0).any() else math.nan


def motion_features(episode: Episode, scaling: TrajectoryScaling, fps: float) -> np.ndarray:
    """Returns features of how an episode moves and acts, which do not depend on where it is.

    They are its pace, how steady that is, its smoothness, and the size, spread and steadiness of actions.

    Returns:
        (F,).
    """
    states = scaling.states(episode)
    pace = speed(states, fps)
    pace = pace if len(pace) else np.zeros(1)
    out = [math.log(len(episode)), pace.mean(), pace.std(), pace.max(), spectral_arc_length(pace, fps),
           log_dimensionless_jerk(pace, fps)]
    if (actions := scaling.actions(episode)) is not None and len(actions):
        change = np.diff(actions, axis=0) if len(actions) > 1 else np.zeros_like(actions)
        out += [*actions.mean(0), *actions.std(0), *np.sqrt(np.mean(change**2, 0)), action_jerk(actions)]
    return np.nan_to_num(np.array(out), nan=0.0, posinf=0.0, neginf=0.0)
