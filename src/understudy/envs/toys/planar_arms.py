"""A toy with arms of 2 to 6 links in the plane, which reach, track or push: one task, many bodies."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import Feature, normal, uniform, unknown_name
from ...data.retargeting import joint_positions
from ...execute.actor import CountingActor
from ..raster import COLOR_OF_ROLE, Canvas, Drawable
from ..toy import Toy, distance, named_vector, push_apart

# Lengths of the links, m. All arms reach 1 m, except "short".
ARMS: dict[str, tuple[float, ...]] = {
    "two": (0.5, 0.5), "three": (0.4, 0.35, 0.25), "four": (0.3, 0.3, 0.2, 0.2), "five": (0.2,) * 5,
    "six": (0.2, 0.2, 0.2, 0.15, 0.15, 0.1), "human": (0.44, 0.36, 0.2), "short": (0.3, 0.25, 0.15)}
COLORS = {"two": (200, 140, 60), "three": COLOR_OF_ROLE["agent"], "four": (64, 145, 108), "five": (148, 96, 170),
          "six": (92, 96, 112), "human": (224, 172, 130), "short": (176, 84, 84)}
TASKS = ("reach", "track", "push")
SPEED = 0.15  # rad: how far a joint turns in one step at most
RADIUS = 0.05  # m: as near as this is on the target
TIP, BLOCK = 0.04, 0.07  # m, radii
STEPS_AT_TARGET = 15  # steps in a row that a moving target is followed
TURN = 0.06  # rad a step: how fast a moving target goes around
SUBSTEPS = 4


class PlanarArms(Toy, Drawable):
    """Toy in which an arm moves its tip to a target, follows a moving target, or pushes a block onto a target.

    The bodies differ in the number and lengths of their links, and have the same reach. A policy of one arm can
    therefore learn from episodes of another arm only through what both share: the tip, the target, and the pictures.
    The arm "human" has the proportions of a person's arm and looks like one. The arm "short" reaches 0.7 m, and its
    targets lie nearer. `MotionRetargeting` turns episodes of one arm into episodes of another one.

    observation.state (links + 2): angle of each joint relative to the link before it, rad, and position of the tip, m.
    observation.environment_state: position of the target, m; for "track" (5) also the center around which it moves, and
    for how many steps it has been followed; for "push" (4) also the position of the block. observation.images.top and
    observation.images.side: two views of the scene, with `camera_size` pixels a side.

    action (links): how the joints turn, clipped to [-1, 1], where 1 is 0.15 rad in a step of 0.1 s. A tip on the target
    ("reach"), 15 steps in a row within 0.1 m of it ("track") or a block on it ("push") end the episode with reward 1.

    Best possible success: 1.0. `PlanarArmsExpert(noise=0)` attains it by inverse kinematics, with every arm and task.

    Args:
        task: One of `TASKS`, or with the name of the arm behind it, such as "reach-human".
        arm: Name of a body in `ARMS`.
        camera_size: Width and height of the images. 0 for none.
    """

    state_columns = ("observation.state", "observation.environment_state")

    def __init__(self, rows: int = 1, limit: int = 120, task: str = "reach", arm: str = "three", camera_size: int = 0):
        task, _, named_arm = task.partition("-")
        arm = named_arm or arm
        for kind, name, valid_names in (("task", task, TASKS), ("arm", arm, ARMS)):
            if name not in valid_names:
                raise unknown_name(kind, name, valid_names, "planar_arms")
        self.task, self.arm, self.camera_size = task, arm, camera_size
        self.lengths = np.array(ARMS[arm], np.float32)
        links = len(self.lengths)
        more = {"reach": (), "track": ("center.x", "center.y", "followed"), "push": ("block.x", "block.y")}[task]
        self.features = {
            "observation.state": named_vector(*(f"joint.{i}" for i in range(links)), "tip.x", "tip.y"),
            "observation.environment_state": named_vector("target.x", "target.y", *more),
            "action": named_vector(*(f"joint.{i}" for i in range(links)))}
        if camera_size:
            self.features |= {f"observation.images.{view}": Feature("uint8", (camera_size, camera_size, 3), "image")
                              for view in ("top", "side")}
        goal = {"reach": f"the tip within {RADIUS} m of the target",
                "track": f"{STEPS_AT_TARGET} steps in a row within {2 * RADIUS} m of the target",
                "push": f"the block within {RADIUS} m of the target"}
        name = f"planar_arms:{task}-{arm}" if arm != "three" else "planar_arms" if task == "reach" else (
            f"planar_arms:{task}")
        self.metadata = {"env": name, "version": 1, "fps": 10,
                         "limit": limit, "optimum": 1.0, "success": goal[task]}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (8 + len(self.lengths),)).numpy().astype(np.float32)
        joints = 0.6 * (drawn[:, 8:] - 0.5) + np.pi / len(self.lengths) * np.sign(drawn[:, 7:8] - 0.5)
        joints[:, 0] = np.float32(2 * np.pi) * (drawn[:, 6] - 0.5)
        state = {"joints": joints.astype(np.float32)}
        reach = round(float(self.lengths.sum()), 3)
        if self.task == "track":
            center = _polar_to_xy(reach / 2, 2 * np.pi * drawn[:, 0])
            return {**state, "center": center, "target": center + _polar_to_xy(0.2, 2 * np.pi * drawn[:, 1]),
                    "followed": np.zeros(len(key), np.int64)}
        if self.task == "reach":
            return {**state, "target": _polar_to_xy(0.4 + (reach - 0.5) * drawn[:, 0], 2 * np.pi * drawn[:, 1])}
        # The block lies in front of the folded arm, and its target to the left or right of it, at any distance.
        heading = 2 * np.pi * drawn[:, 0]
        aside = heading + (0.5 + 0.5 * drawn[:, 2]) * np.sign(drawn[:, 3] - 0.5)
        joints[:, 0] = heading + np.float32(np.pi) + 0.6 * (drawn[:, 6] - 0.5)
        return {"joints": joints.astype(np.float32), "block": _polar_to_xy(reach / 2 + 0.15 * drawn[:, 1], heading),
                "target": _polar_to_xy(reach / 2 + 0.15 * drawn[:, 4], aside)}

    def tip(self) -> np.ndarray:
        """Returns the position of the arm's tip, (rows, 2), m."""
        return joint_positions(self.state["joints"], self.lengths)[:, -1]

    def observe(self):
        s = self.state
        task_keys = {"reach": (), "track": ("center", "followed"), "push": ("block",)}[self.task]
        flat = [s["target"], *(s[k].reshape(self.rows, -1).astype(np.float32) for k in task_keys)]
        columns = {"observation.state": np.concatenate([s["joints"], self.tip()], 1),
                   "observation.environment_state": np.concatenate(flat, 1)}
        if self.camera_size:
            columns |= {f"observation.images.{view}": self._picture(view, self.camera_size) for view in ("top", "side")}
        return columns

    def state_from_columns(self, steps):
        environment_state = steps["observation.environment_state"]
        state = {"joints": steps["observation.state"][:, :len(self.lengths)], "target": environment_state[:, :2]}
        if self.task == "track":
            return {**state, "center": environment_state[:, 2:4],
                    "followed": np.rint(environment_state[:, 4]).astype(np.int64)}
        return state if self.task == "reach" else {**state, "block": environment_state[:, 2:]}

    def advance(self, action):
        s = self.state
        for _ in range(SUBSTEPS):
            s["joints"] = s["joints"] + np.float32(SPEED / SUBSTEPS) * action
            if self.task == "push":
                s["block"] = s["block"] + push_apart(self.tip(), s["block"], TIP + BLOCK)
        if self.task == "push":
            success = distance(s["block"], s["target"]) < RADIUS
        elif self.task == "reach":
            success = distance(self.tip(), s["target"]) < RADIUS
        else:
            s["target"] = s["center"] + _rotate(s["target"] - s["center"], TURN)
            follows = distance(self.tip(), s["target"]) < 2 * RADIUS
            s["followed"] = np.where(follows, s["followed"] + 1, 0)
            success = s["followed"] >= STEPS_AT_TARGET
        return success, success, np.zeros_like(success)

    def expert(self):
        return PlanarArmsExpert(self.task, tuple(ARMS[self.arm]))

    def map(self):
        return {"x": (-1.1, 1.1), "y": (-1.1, 1.1),
                "path": ("observation.state", len(self.lengths), len(self.lengths) + 1), "shapes": [], "marks": [
                    {"kind": "circle", "column": ("observation.environment_state", 0, 1), "radius": RADIUS,
                     "role": "goal"}]}

    @property
    def square(self):
        return (-1.1, -1.1), 2.2

    def draw(self, surface, row):
        self._draw(surface, "top", slice(row, row + 1))

    def _picture(self, view: str, size: int) -> np.ndarray:
        """Draws a view of all rows, (rows, size, size, 3) uint8."""
        canvas = Canvas(self.rows, size, *self.square)
        self._draw(canvas, view, slice(None))
        return canvas.image

    def _draw(self, surface, view: str, rows: slice) -> None:
        """Draws a view. That from the side is turned by 2 rad, and from farther away."""
        s = {k: v[rows] for k, v in self.state.items()}
        scale = 1.0 if view == "top" else 0.8

        def in_view(at):
            return at if view == "top" else np.float32(scale) * _rotate(at, 2.0)
        joints = joint_positions(s["joints"], self.lengths)
        surface.circle(in_view(s["target"]), scale * 1.6 * RADIUS, COLOR_OF_ROLE["goal"])
        if self.task == "push":
            surface.circle(in_view(s["block"]), scale * BLOCK, COLOR_OF_ROLE["block"])
        wide = scale * (0.06 if self.arm == "human" else 0.035)
        for i, length in enumerate(self.lengths):
            a, b = in_view(joints[:, i]), in_view(joints[:, i + 1])
            long = np.maximum(np.sqrt(np.square(b - a).sum(1, keepdims=True)), 1e-6)
            half = scale * float(length) / 2, wide * (1 - 0.1 * i)
            surface.box((a + b) / 2, (b - a) / long, half, COLORS[self.arm])
            surface.circle(a, wide, (70, 74, 88))
        surface.circle(in_view(joints[:, -1]), scale * TIP, COLORS[self.arm])


def _polar_to_xy(radius, angle) -> np.ndarray:
    """Returns the points (n, 2) at these distances and angles from the base."""
    return (np.stack([np.cos(angle), np.sin(angle)], 1) * np.reshape(radius, (-1, 1))).astype(np.float32)


def _rotate(xy: np.ndarray, angle: float) -> np.ndarray:
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return np.stack([cos * xy[:, 0] - sin * xy[:, 1], sin * xy[:, 0] + cos * xy[:, 1]], 1)


@dataclass(frozen=True)
class PlanarArmsExpert(CountingActor):
    """Expert of `PlanarArms`: moves the tip by damped least squares (inverse kinematics in single steps).

    To push, the tip goes around the block to the side away from the target, along the field lines of a dipole at the
    block (see `PushExpert`).

    Args:
        lengths: Lengths of the links, m.
        noise: Standard deviation of its unsteadiness, as a fraction of the largest action.
        damping: Weight of the size of the joints' motion, m. Larger values keep away from a stretched arm's jerks.
    """

    task: str
    lengths: tuple[float, ...]
    noise: float = 0.1
    damping: float = 0.1

    def act(self, obs, state):
        links = len(self.lengths)
        joints = obs["observation.state"][:, :links].numpy()
        joint_xy = joint_positions(joints, np.array(self.lengths, np.float32))
        environment_state = obs["observation.environment_state"].numpy()
        tip, target = joint_xy[:, -1], environment_state[:, :2]
        center = environment_state[:, 2:4]  # of the block, or of the circle of the target
        if self.task == "track":
            target = center + _rotate(target - center, TURN)
        wish = self._push(tip, center, target) if self.task == "push" else target - tip
        # Jacobian: the tip turns around every joint. (rows, links) for x and for y.
        x, y = -(tip[:, None, 1] - joint_xy[:, :-1, 1]), tip[:, None, 0] - joint_xy[:, :-1, 0]
        a, b, c = (v.sum(1) for v in (x * x, x * y, y * y))
        a, c = a + self.damping**2, c + self.damping**2
        p, q = (c * wish[:, 0] - b * wish[:, 1]) / (a * c - b * b), (a * wish[:, 1] - b * wish[:, 0]) / (a * c - b * b)
        turn = (x * p[:, None] + y * q[:, None]) / SPEED
        turn = turn / np.maximum(np.abs(turn).max(1, keepdims=True), 1)
        action = torch.from_numpy(turn.astype(np.float32))
        action = action + self.noise * normal(state["key"], state["count"], (links,), stream=2)
        return action.float(), {**state, "count": state["count"] + 1}

    def _push(self, tip, block, target):
        """Returns where the expert moves the tip to push the block, (rows, 2), m."""
        gap = np.maximum(distance(tip - block, 0), 1e-6)[:, None]
        away = (tip - block) / gap
        ahead = (target - block) / np.maximum(distance(target - block, 0), 1e-6)[:, None]
        facing = (away * ahead).sum(1, keepdims=True)  # -1 where a push leads to the target
        field = 2 * facing * away - ahead
        repelled_field = field + 20 * np.maximum(1.15 * (BLOCK + TIP) - gap, 0) * away
        wish = np.where(facing > -0.95, repelled_field, field)
        return np.float32(0.06) * wish / np.maximum(distance(wish, 0), 1e-6)[:, None]
