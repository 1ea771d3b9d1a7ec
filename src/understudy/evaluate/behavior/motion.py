"""How an episode moves: smoothness, and how long it takes."""

from __future__ import annotations

import math

import numpy as np

from ...data.episode import Episode
from .scaling import TrajectoryScaling

MAX_FREQUENCY = 10.0  # Hz: how people move has nothing above (Balasubramanian et al. 2012)


def speed(states: np.ndarray, fps: float) -> np.ndarray:
    """(T, S) -> (T - 1,): how far the state moves in a second."""
    return np.linalg.norm(np.diff(states, axis=0), axis=1) * fps


def spectral_arc_length(
    profile: np.ndarray, fps: float, max_frequency: float = MAX_FREQUENCY, min_amplitude: float = 0.05
) -> float:
    """SPARC of a speed profile (T,), samples `fps` a second: minus the length of its normalized spectrum up to `band`
    Hz (or half of `fps`, above which a record says nothing), cut where the amplitude last is `least` of the largest
    (Balasubramanian et al. 2015, On the analysis of movement smoothness). At most about -1.4, for one even stroke; more
    negative with every halt and tremble, whatever the size and pace of the movement. NaN for fewer than five samples,
    values that are not finite, or no movement."""
    profile = np.asarray(profile, float)
    if len(profile) < 5 or not np.isfinite(profile).all() or not np.abs(profile).max() > 0:
        return math.nan
    size = 2 ** (math.ceil(math.log2(len(profile))) + 4)  # padded with zeros: a fine spectrum
    at, height = np.fft.rfftfreq(size, 1 / fps), np.abs(np.fft.rfft(profile, size))
    height = (height / height.max())[at <= max_frequency]
    kept = np.flatnonzero(height >= min_amplitude)
    at, height = at[kept[0]:kept[-1] + 1], height[kept[0]:kept[-1] + 1]
    if len(at) < 2:
        return math.nan
    return -float(np.hypot(np.diff(at) / (at[-1] - at[0]), np.diff(height)).sum())


def log_dimensionless_jerk(profile: np.ndarray, fps: float) -> float:
    """LDLJ of a speed profile (T,): minus the logarithm of its squared second derivative, integrated and made free of
    units by the duration cubed over the largest speed squared (Hogan and Sternad 2009; Balasubramanian et al. 2015).
    -5.32 for the smoothest stroke there is, that of minimal jerk; less is jerkier. Noise of sensors weighs more in it
    than in SPARC. NaN as there."""
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
    """How many steps it took until the environment first told of success; NaN where it never did."""
    told = np.asarray(episode.steps["next.success"]) if "next.success" in episode.steps else np.zeros(0)
    return float(np.argmax(told > 0)) + 1 if (told > 0).any() else math.nan


def motion_features(episode: Episode, scaling: TrajectoryScaling, fps: float) -> np.ndarray:
    """(F,) of how an episode moves and acts, not of where: its pace, how steady that is, smoothness, and the size,
    spread and steadiness of actions."""
    states = scaling.states(episode)
    pace = speed(states, fps)
    pace = pace if len(pace) else np.zeros(1)
    out = [math.log(len(episode)), pace.mean(), pace.std(), pace.max(), spectral_arc_length(pace, fps),
           log_dimensionless_jerk(pace, fps)]
    if (actions := scaling.actions(episode)) is not None and len(actions):
        change = np.diff(actions, axis=0) if len(actions) > 1 else np.zeros_like(actions)
        out += [*actions.mean(0), *actions.std(0), *np.sqrt(np.mean(change**2, 0)), action_jerk(actions)]
    return np.nan_to_num(np.array(out), nan=0.0, posinf=0.0, neginf=0.0)
