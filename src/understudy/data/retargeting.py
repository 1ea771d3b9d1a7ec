"""Retargeting: episodes of one arm in the plane become episodes of another arm, by inverse kinematics of the tip."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Literal

import numpy as np

from ..core import Above, DataError, Feature
from .episode import Dataset, Episode
from .operations import Operation, check_column

STATE = "observation.state"
TOLERANCE = 2e-3  # m: largest deviation of a tip from where it shall be
_ITERATIONS = 200


@dataclass(frozen=True)
class MotionRetargeting(Operation):
    """Turn episodes of one arm in the plane into episodes of another arm, whose tip moves as the recorded tip did.

    observation.state must have the angle of each joint relative to the link before it, rad, and then the position of
    the tip, m, as in the environment `planar_arms`. The lengths of the recorded arm follow from both. The actions
    become the turns of the other arm's joints. All other columns stay as they were: pictures show the recorded arm,
    and rewards are those that it got.

    Joints are found by damped least squares from the posture of the recorded arm, so that an elbow bends to the same
    side. For an arm of the same lengths they stay as they are.

    Args:
        to: Lengths of the links of the other arm, m, from its base.
        by: "tips" moves the tip as it was recorded. "joints" copies the angles of the joints, wherever the tip then
            is. The arms need equally many links for it.
        reach: What happens with points that the other arm cannot reach. "drop" leaves out episodes with such a point.
            "clip" takes the nearest point in reach, and counts them in the metadata `out_of_reach`.
        turn: How far an action of 1 turns a joint, rad.

    References:
        Wang et al. (2024), DexCap: Scalable and Portable Mocap Data Collection System for Dexterous Manipulation,
        arXiv:2403.07788, retargets fingertips. Duan et al. (2023), AR2-D2: Training a Robot Without a Robot,
        arXiv:2306.13818, records what a robot can reach. `turn` and "clip" are ours.

    Example:
        >>> robot = MotionRetargeting((0.5, 0.5), turn=0.15).apply(human)
    """

    to: tuple[float, ...]
    by: Literal["tips", "joints"] = "tips"
    reach: Literal["drop", "clip"] = "drop"
    turn: Annotated[float, Above(0)] = 1.0

    def __post_init__(self):
        super().__post_init__()
        if not self.to or min(self.to) <= 0 or self.turn <= 0:
            raise DataError("the lengths of the links and the turn of a joint must be above 0",
                            where="motionretargeting, to", hint="such as 0.4,0.35,0.25, in m, from the base")

    def apply(self, data: Dataset) -> Dataset:
        lengths = link_lengths(data)
        if self.by == "joints" and len(lengths) != len(self.to):
            raise DataError(f"the recorded arm has {len(lengths)} joints, and the other arm {len(self.to)}",
                            where="motionretargeting, by", hint='use "tips", which needs no equal number')
        drops = self.by == "tips" and self.reach == "drop"
        numbers = np.flatnonzero(self.out_of_reach(data) == 0).tolist() if drops else range(len(data))
        return Dataset([self._retarget(data[e], e, lengths) for e in numbers], data.metadata)

    def out_of_reach(self, data: Dataset) -> np.ndarray:
        """Counts the recorded positions of the tip that the other arm cannot reach, in each episode, (E,) int64."""
        return np.array([(~reachable(self.to, _joints_and_tips(e)[1])).sum() for e in data], np.int64)

    def _retarget(self, episode: Episode, number: int, lengths: np.ndarray) -> Episode:
        joints, tips = _joints_and_tips(episode)
        to = np.array(self.to)
        if self.by == "tips":
            points = nearest_reachable(self.to, tips)
            joints = inverse_kinematics(_with_posture(joints, lengths, to), points, to)
            gap = np.linalg.norm(joint_positions(joints, to)[:, -1] - points, axis=1)
            if gap.max() > TOLERANCE:
                point = points[gap.argmax()].round(3).tolist()
                raise DataError(f"no joints were found with which the tip is at {point} m; it comes to "
                                f"{gap.max():.3g} m from there",
                                where=f"motionretargeting, episode {number}, step {gap.argmax()}",
                                hint="leave the episode out: --delete")
            episode = replace(episode, metadata={**episode.metadata, "out_of_reach": int((~reachable(to, tips)).sum())})
        turns = np.diff(joints, axis=0)[: len(episode)] / self.turn
        turns = np.concatenate([turns, np.repeat(turns[-1:], len(episode) - len(turns), 0)]) if len(turns) else (
            np.zeros((len(episode), len(to))))
        state = np.concatenate([joints, joint_positions(joints, to)[:, -1]], 1)
        names = episode.features()[STATE].names
        joint_names = tuple(f"joint.{i}" for i in range(len(to)))
        for name, values, component_names in ((STATE, state, (*joint_names, *names[-2:]) if names else None),
                                              ("action", turns, joint_names if names else None)):
            feature = Feature("float32", values.shape[1:], names=component_names)
            episode = episode.replace({name: values.astype(np.float32)})
            episode = replace(episode, schema={**episode.schema, name: feature})
        return episode


def link_lengths(data: Dataset) -> np.ndarray:
    """Computes the lengths of an arm's links from its recorded joints and tips, by least squares.

    Returns:
        Lengths from the base, (links,), m.

    Raises:
        DataError: No lengths explain all recorded tips.
    """
    check_column(STATE, data.source, "motionretargeting")
    recorded = [_joints_and_tips(episode) for episode in data]
    joints, tips = (np.concatenate(parts) for parts in zip(*recorded, strict=True))
    angles = np.cumsum(joints, 1)
    design = np.concatenate([np.cos(angles), np.sin(angles)])
    lengths = np.linalg.lstsq(design, tips.T.ravel(), rcond=None)[0]
    gaps = [np.linalg.norm(joint_positions(q, lengths)[:, -1] - tip, axis=1) for q, tip in recorded]
    largest = [gap.max() for gap in gaps]
    if max(largest) > TOLERANCE:
        e = int(np.argmax(largest))
        raise DataError(
            f"the recorded tip is {max(largest):.3g} m from where the joints put it, with links of "
            f"{', '.join(f'{length:.3f}' for length in lengths)} m, which fit all episodes best",
            where=f"motionretargeting, episode {e}, step {gaps[e].argmax()}, {STATE}",
            hint="the column must have the joints relative to the link before them, rad, and then x and y of the tip, "
                 "m, of one and the same arm")
    return np.abs(lengths)


def _joints_and_tips(episode: Episode) -> tuple[np.ndarray, np.ndarray]:
    state = np.asarray(episode.steps[STATE], np.float64)
    if state.ndim != 2 or state.shape[1] < 3:
        raise DataError(f"the column has the shape {state.shape}, without joints and a tip", where=STATE,
                        hint="it must have the angle of each joint, and then x and y of the tip")
    return state[:, :-2], state[:, -2:]


def _with_posture(joints: np.ndarray, lengths: np.ndarray, to: np.ndarray) -> np.ndarray:
    """Returns joints of an arm whose links point where the recorded arm does at the same fraction of its length."""
    middles = (np.cumsum(to) - to / 2) / to.sum()
    links = np.searchsorted(np.cumsum(lengths) / lengths.sum(), middles)
    return np.diff(np.cumsum(joints, 1)[:, links], axis=1, prepend=0.0)


# -- arms in the plane -------------------------------------------------------------------------------------------------


def joint_positions(joints: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Returns the positions of the base, the joints and the tip.

    Args:
        joints: Angles of the links relative to the ones before them, (n, links), rad.
        lengths: Lengths of the links, (links,), m.

    Returns:
        (n, links + 1, 2), m, with the dtype of the joints.
    """
    dtype = joints.dtype.type
    xy, angle, positions = np.zeros((len(joints), 2), dtype), np.zeros(len(joints), dtype), []
    positions.append(xy)
    for i, length in enumerate(lengths):
        angle = angle + joints[:, i]
        xy = xy + dtype(length) * np.stack([np.cos(angle), np.sin(angle)], 1).astype(dtype)
        positions.append(xy)
    return np.stack(positions, 1)


def reachable(lengths, points: np.ndarray) -> np.ndarray:
    """Returns whether the tip of an arm can be at a point: neither too far nor in the hole around the base.

    Args:
        lengths: Lengths of the links, m.
        points: Points in the plane, (..., 2), m, with the base at 0.

    Returns:
        (...) bool.
    """
    nearest, farthest = _radii(lengths)
    radius = np.linalg.norm(points, axis=-1)
    return (radius >= nearest - 1e-6) & (radius <= farthest + 1e-6)


def nearest_reachable(lengths, points: np.ndarray) -> np.ndarray:
    """Returns the nearest points (..., 2), m, where the tip of an arm can be."""
    radius = np.linalg.norm(points, axis=-1, keepdims=True)
    inside = np.clip(radius, *_radii(lengths))
    return np.where(inside == radius, points, points * inside / np.maximum(radius, 1e-9))


def _radii(lengths) -> tuple[float, float]:
    """Returns the least and the greatest distance of the tip from the base, m."""
    total, longest = float(np.sum(lengths)), float(np.max(lengths))
    return max(2 * longest - total, 0.0), total


def inverse_kinematics(joints: np.ndarray, points: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Turns joints until the tip is at a point, by damped least squares from the given joints.

    The damping falls with the remaining distance, so that a stretched arm is not thrown about (Sugihara 2011).

    Args:
        joints: Where to begin, (n, links), rad. They are returned unchanged where the tip is at its point already.
        points: Where the tip shall be, (n, 2), m. The arm must be able to reach them.
        lengths: Lengths of the links, (links,), m.

    Returns:
        Joints, (n, links), rad.

    References:
        Sugihara (2011), Solvability-Unconcerned Inverse Kinematics by the Levenberg-Marquardt Method, T-RO 27(5).
    """
    for _ in range(_ITERATIONS):
        positions = joint_positions(joints, lengths)
        error = points - positions[:, -1]
        lever = positions[:, -1:] - positions[:, :-1]
        jacobian = np.stack([-lever[..., 1], lever[..., 0]], 1)  # (n, 2, links): the tip turns around every joint
        damping = np.square(error).sum(1)[:, None, None] + 1e-6
        normal = jacobian @ jacobian.transpose(0, 2, 1) + damping * np.eye(2)
        joints = joints + (jacobian.transpose(0, 2, 1) @ np.linalg.solve(normal, error[..., None]))[..., 0]
    return joints
