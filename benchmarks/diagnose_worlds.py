"""The two worlds of benchmarks/diagnose.py, and what goes wrong in them while a policy acts.

`understudy diagnose RUN --env diagnose_worlds:carry__sign_y --trust diagnose_worlds` acts in the world `carry` with the
fault `sign_y` of `FAULTS`. Names behind "carry" or "reach" that are joined by "__" are applied from left to right.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import nn

from understudy.core import Feature, normal, uniform
from understudy.data.video import resize
from understudy.envs.base import Env, EnvWrapper
from understudy.envs.raster import Canvas
from understudy.envs.toy import Toy, distance, named_vector
from understudy.execute.actor import CountingActor
from understudy.nets.vision import VisionEncoder, VisionNet

STATE, PLACES, ACTION = "observation.state", "observation.environment_state", "action"
TOP, SIDE = "observation.images.top", "observation.images.side"
CLOSED, PILLAR, GAIN = 0.3, 0.13, 0.1


class Bench(Toy):
    """A hand with a gripper in the plane. carry: it takes an object to a goal, and the actions are velocities. reach:
    it goes to a target near one of four places, which only two cameras show, and turns its wrist by the height of the
    target. The actions are positions to go to.

    Args:
        way: Whether a pillar stands between start and target, which the expert passes on either side.
        gust: Standard deviation of the pushes, as a fraction of the largest step.
        part: Fractions of the width and the height in which targets lie. In reach, less than 1 means only the near
            places, and more only the far ones.
        gripper: The largest action of the gripper.
        turn: Angle by which the target of reach moves around the center in a step. Every 12 steps it may turn back.
    """

    state_columns = (STATE, "simulator.state")

    def __init__(self, rows=1, limit=90, cameras=0, way=False, gust=0.0, part=(1.0, 1.0), gripper=1.0, turn=0.0):
        self.cameras, self.way, self.gust, self.part, self.gripper = cameras, way, gust, part, gripper
        self.turn = turn
        self.speed, self.closing = (0.015, 0.12) if cameras else (0.02, 0.25)
        places = named_vector("object.x", "object.y", "goal.x", "goal.y")
        parts = named_vector("x", "y", "wrist" if cameras else "gripper")
        self.features = {STATE: parts, ACTION: parts, "simulator.state": places}
        self.features |= ({name: Feature("uint8", (cameras, cameras, 3), "image") for name in (TOP, SIDE)}
                          if cameras else {PLACES: places})
        success = "the hand is at the target" if cameras or way else "the object lies at the goal"
        self.metadata = {"env": "reach" if cameras else "carry", "version": 1, "fps": 20, "limit": limit,
                         "optimum": 1.0, "success": success}
        super().__init__(rows, limit)
        self.low = np.array([0, 0, 0] if cameras else [-1, -1, -gripper], np.float32)
        self.high = np.array([1, 1, gripper], np.float32)
        self.metadata |= {"low": self.low, "high": self.high}

    def initial_state(self, key):
        u = uniform(key, torch.zeros_like(key), (6,)).numpy().astype(np.float32)
        hand = np.stack([0.3 + 0.4 * u[:, 0], 0.1 + 0.8 * u[:, 1]], 1)
        place = np.stack([0.1 + 0.35 * u[:, 2], 0.1 + 0.8 * u[:, 3]], 1)
        goal = np.stack([0.55 + 0.35 * self.part[0] * u[:, 4], 0.1 + 0.8 * self.part[1] * u[:, 5]], 1)
        if self.cameras:  # near one of four places
            chances = np.select([np.array(self.part) == 1, np.array(self.part) > 1], [0.5, 1.0])  # of the far places
            place = 0.2 + 0.6 * (u[:, 2:4] < chances) + 0.08 * (u[:, 4:6] - 0.5)
        if self.way:
            hand = np.stack([0.05 + 0.05 * u[:, 0], 0.45 + 0.1 * u[:, 1]], 1)
            place = goal = np.stack([0.9 + 0.05 * u[:, 2], 0.45 + 0.1 * u[:, 3]], 1)
        return {"hand": hand.astype(np.float32), "opening": np.ones((len(key), 1), np.float32),
                "object": place.astype(np.float32), "goal": goal.astype(np.float32)}

    def observe(self):
        s = self.state
        places = np.concatenate([s["object"], s["goal"]], 1)
        columns = {STATE: np.concatenate([s["hand"], s["opening"]], 1), "simulator.state": places}
        if not self.cameras:
            return columns | {PLACES: places}
        return columns | {TOP: self._picture(True, self.cameras), SIDE: self._picture(False, self.cameras)}

    def state_from_columns(self, steps):
        hand, places = steps[STATE], steps["simulator.state"]
        return {"hand": hand[:, :2], "opening": hand[:, 2:], "object": places[:, :2], "goal": places[:, 2:]}

    def advance(self, action):
        s, one = self.state, np.float32(1)
        action = action / np.array([1, 1, self.gripper], np.float32)
        move, grip = self.speed * action[:, :2], self.closing * action[:, 2:]
        if self.cameras:
            move = np.clip(GAIN * (action[:, :2] - s["hand"]), -self.speed, self.speed)
            grip = np.clip(0.5 * (action[:, 2:] - s["opening"]), -self.closing, self.closing)
        move = move + np.float32(self.gust * self.speed) * normal(self.key, self.clock, (2,), stream=3).numpy()
        is_near, was_closed = distance(s["hand"], s["object"]) < 0.06, s["opening"][:, 0] < CLOSED
        s["opening"] = np.clip(s["opening"] + grip, 0, one).astype(np.float32)
        s["hand"] = np.clip(s["hand"] + move, 0, one).astype(np.float32)
        closed = s["opening"][:, 0] < CLOSED
        failure = (distance(s["hand"], (0.5, 0.5)) < PILLAR) & self.way
        if self.cameras:
            radius, sign = s["object"] - 0.5, np.sign(normal(self.key, self.clock // 12, (1,), stream=4).numpy())
            across = sign * radius[:, ::-1] * (-1, 1)
            s["object"] = (0.5 + np.cos(self.turn) * radius + np.sin(self.turn) * across).astype(np.float32)
        if self.cameras or self.way:
            success = (distance(s["hand"], s["object"]) < 0.1) & ~failure
        else:
            s["object"] = np.where((is_near & closed)[:, None], s["hand"], s["object"])
            success = was_closed & ~closed & is_near & (distance(s["object"], s["goal"]) < 0.08)
        return success, success, failure

    def expert(self):
        return BenchExpert(bool(self.cameras), self.way, self.speed, self.gripper)

    def map(self):
        return {"x": (0.0, 1.0), "y": (0.0, 1.0), "path": (STATE, 0, 1), "shapes": []}

    def frame(self, row):
        return self._picture(True, 256)[row]

    def _picture(self, top, size):
        """(rows, size, size, 3) uint8. The side view is turned by a right angle, from farther away."""
        s = self.state

        def in_view(at):
            return at if top else 0.5 + 0.8 * (at[:, ::-1] - 0.5) * np.array([1, -1], np.float32)
        canvas, zoom = Canvas(self.rows, size, (0.0, 0.0), 1.0), 1.0 if top else 0.8
        flat = np.tile(np.array([1, 0], np.float32), (self.rows, 1))
        canvas.image[:] = (214, 222, 206) if top else (196, 190, 182)
        if self.way:
            canvas.circle(in_view(np.full((self.rows, 2), 0.5, np.float32)), PILLAR * zoom, (92, 96, 112))
        canvas.circle(in_view(s["object"]), 0.07 * zoom, (226, 110, 40))
        for sign in (-1, 1):
            finger = in_view(s["hand"]) + sign * (0.02 + 0.05 * s["opening"]) * np.array([1, 0], np.float32)
            canvas.box(finger.astype(np.float32), flat, (0.02, 0.05), (40, 60, 170))
        return canvas.image


@dataclass(frozen=True)
class BenchExpert(CountingActor):
    """Goes to the target; or to the object, closes, to the goal, and opens."""

    absolute: bool
    way: bool
    speed: float
    gripper: float
    noise: float = 0.15

    def act(self, obs, state):
        hand, opening = obs[STATE].split((2, 1), 1)
        thing, goal = obs["simulator.state"].split(2, 1)
        is_held = (opening < CLOSED) & ((hand - thing).norm(dim=1, keepdim=True) < 0.02)
        to = torch.where(is_held, goal, thing)
        if self.way:
            side = (state["key"].remainder(2) * 2 - 1).float()[:, None]
            over = torch.cat([torch.full_like(side, 0.5), 0.5 + 0.27 * side], 1)
            to = torch.where(hand[:, :1] < 0.47, over, thing)
        there = ((hand - to).norm(dim=1, keepdim=True) < 0.03) & ~(self.way & (hand[:, :1] < 0.47))
        closes = there != is_held  # at the object, or on the way with it
        step = (to - hand) / self.speed * (GAIN if self.absolute else 1)
        step = step / step.norm(dim=1, keepdim=True).clamp(min=1)
        step = step + self.noise * normal(state["key"], state["count"], (2,), stream=2) * ~there
        move = hand + self.speed / GAIN * step if self.absolute else step
        grip = thing[:, 1:] if self.absolute else 1.0 - 2.0 * closes
        return torch.cat([move, self.gripper * grip], 1).float(), {**state, "count": state["count"] + 1}


@dataclass(frozen=True)
class FlatPixels(VisionEncoder):
    """One layer over all pixels. It can say where things are, and is fast on a CPU.

    Args:
        features: Number of outputs.
    """

    features: int = 32

    def build(self, shape, width=None):
        return _FlatPixels(width or self.features, int(np.prod(shape)))


class _FlatPixels(VisionNet):
    tokens = 1

    def __init__(self, width, pixels):
        super().__init__()
        self.width, self.layer = width, nn.Linear(pixels, width)

    def forward(self, image):
        return self.layer(4 * image.flatten(1) - 2).unsqueeze(1)


# -- what goes wrong --------------------------------------------------------------------------------------------------


class Seen(EnvWrapper):
    """Observations are changed."""

    def __init__(self, env: Env, change: Callable[[dict], dict], features=None):
        super().__init__(env)
        self.change, self.features = change, features or env.features

    def reset(self, which, key):
        return self.change(dict(super().reset(which, key)))

    def step(self, action):
        result = super().step(action)
        return replace(result, obs=self.change(dict(result.obs)))


class Done(EnvWrapper):
    """Changed actions are executed. The change sees the observation before them, too."""

    def __init__(self, env: Env, change: Callable[[torch.Tensor, dict], torch.Tensor], **metadata):
        super().__init__(env)
        self.change, self.obs, self.metadata = change, {}, {**self.metadata, **metadata}

    def reset(self, which, key):
        self.obs = dict(super().reset(which, key))
        return self.obs

    def step(self, action):
        result = super().step(self.change(action.clone(), self.obs))
        self.obs = dict(result.obs)
        return result


class Late(EnvWrapper):
    """Some columns arrive late, or never change after the first observation of an episode."""

    def __init__(self, env: Env, steps: int, columns=None, frozen=False):
        super().__init__(env)
        self.columns, self.past, self.frozen = columns, deque(maxlen=steps + 1), frozen

    def _late(self, now):
        return {n: v if self.columns and n not in self.columns else self.past[0][n] for n, v in now.items()}

    def reset(self, which, key):
        now = dict(super().reset(which, key))
        if not self.past:
            self.past.extend([now] * self.past.maxlen)
        for i, past in enumerate(self.past):
            self.past[i] = {n: v.clone() for n, v in past.items()}
            for n in now:
                self.past[i][n][which] = now[n][which]
        return self._late(now)

    def step(self, action):
        result = super().step(action)
        if not self.frozen:
            self.past.append(dict(result.obs))
        return replace(result, obs=self._late(dict(result.obs)))


class LateActions(EnvWrapper):
    """Actions are executed late. Until the first one the hand rests."""

    def __init__(self, env: Env, steps: int):
        super().__init__(env)
        self.queue = torch.zeros(steps, env.rows, 3)

    def reset(self, which, key):
        obs = super().reset(which, key)
        self.queue[:, which] = obs[STATE][which] if TOP in obs else 0.0
        return obs

    def step(self, action):
        self.queue = torch.cat([self.queue, action[None].float()])
        due, self.queue = self.queue[0], self.queue[1:]
        return super().step(due)


class Slower(EnvWrapper):
    """Each action is executed for several steps."""

    def __init__(self, env: Env, steps: int, tells: bool):
        super().__init__(env)
        self.steps = steps
        self.metadata = {**self.metadata, "fps": env.metadata["fps"] / (steps if tells else 1)}

    def step(self, action):
        result = super().step(action)
        for _ in range(self.steps - 1):
            following, over = super().step(action), result.terminated
            info = {k: torch.where(over, result.info[k], v) for k, v in following.info.items()}
            result = replace(following, terminated=over | following.terminated, info=info)
        return result


def _part(column: str, i: int, change: Callable) -> Callable[[Env], Env]:
    """A component of what is observed, or done, is changed."""
    def changed(x):
        x = x.clone()
        x[:, i] = change(x[:, i])
        return x
    if column == ACTION:
        return lambda env: Done(env, lambda action, obs: changed(action))
    return lambda env: Seen(env, lambda obs: {**obs, column: changed(obs[column])})


def _order(column: str, order: list[int]) -> Callable[[Env], Env]:
    if column == ACTION:
        return lambda env: Done(env, lambda action, obs: action[:, order])
    return lambda env: Seen(env, lambda obs: {**obs, column: obs[column][:, order]})


def _images(change: Callable, *names: str) -> Callable[[Env], Env]:
    """Images, (B, H, W, 3) float from 0 to 255, are changed."""
    def changed(x):
        return change(x.float()).clamp(0, 255).round().to(torch.uint8)
    return lambda env: Seen(env, lambda obs: {**obs, **{n: changed(obs[n]) for n in names or (TOP, SIDE)}})


def _renamed(old: str, new: str) -> Callable[[Env], Env]:
    def names(columns):
        return {new if n == old else n: v for n, v in columns.items()}
    return lambda env: Seen(env, names, names(env.features))


def _larger(env: Env, factor: float = 2) -> Env:
    size = int(factor * env.features[TOP].shape[0])
    features = {**env.features, **{n: replace(env.features[n], shape=(size, size, 3)) for n in (TOP, SIDE)}}
    return Seen(env, lambda obs: {**obs, **{
        n: torch.from_numpy(resize(obs[n].numpy(), (size, size))) for n in (TOP, SIDE)}}, features)


def _zoomed(x: torch.Tensor, part: int = 5) -> torch.Tensor:
    size, cut = x.shape[1], x.shape[1] // part
    inner = x[:, cut:-cut, cut:-cut].to(torch.uint8).contiguous().numpy()
    return torch.from_numpy(resize(inner, (size, size))).float()


def _noisy(env: Env, std: float = 0.15) -> Env:
    generator = torch.Generator().manual_seed(0)
    return Seen(env, lambda obs: {**obs, STATE: obs[STATE] + std * torch.randn(obs[STATE].shape, generator=generator)})


def _limited(env: Env, part: int = 6) -> Env:
    low, high = (np.asarray(env.metadata[k], np.float32) for k in ("low", "high"))
    middle, half = (low + high) / 2, (high - low) / part
    bounds = torch.from_numpy(middle - half), torch.from_numpy(middle + half)
    return Done(env, lambda action, obs: action.clamp(*bounds), low=middle - half, high=middle + half)


def _elsewhere(env: Env, *corner: float) -> Env:
    """The hand starts in a corner."""
    initial_state = env.initial_state

    def in_corner(key):
        state = initial_state(key)
        return {**state, "hand": (np.array(corner) + 0.1 * state["hand"]).astype(np.float32)}
    env.initial_state = in_corner
    return env


FAULTS: dict[str, Callable[[Env], Env]] = {
    "sign_y": _part(ACTION, 1, lambda a: -a), "sign_x": _part(ACTION, 0, lambda a: -a),
    "sign_grip": _part(ACTION, 2, lambda a: -a), "sensor_sign_grip": _part(STATE, 2, lambda s: -s),
    "mirror_x": _part(ACTION, 0, lambda a: 1 - a), "mirror_y": _part(ACTION, 1, lambda a: 1 - a),
    "mirror_wrist": _part(ACTION, 2, lambda a: 1 - a),
    "sensor_sign_y": _part(STATE, 1, lambda s: -s), "sensor_sign_x": _part(STATE, 0, lambda s: -s),
    "scale_x": _part(ACTION, 0, lambda a: 0.4 * a), "scale_y": _part(ACTION, 1, lambda a: 2 * a),
    "faster_x": _part(ACTION, 0, lambda a: 1.8 * a),
    "swapped_actions": _order(ACTION, [1, 0, 2]), "swapped_grip": _order(ACTION, [0, 2, 1]),
    "rolled_actions": _order(ACTION, [2, 0, 1]), "rolled_back": _order(ACTION, [1, 2, 0]),
    "swapped_ends": _order(ACTION, [2, 1, 0]), "swapped_y_opening": _order(STATE, [0, 2, 1]),
    "exchanged_ends": _order(PLACES, [3, 1, 2, 0]),
    "swapped_states": _order(STATE, [1, 0, 2]), "swapped_opening": _order(STATE, [2, 1, 0]),
    "exchanged_places": _order(PLACES, [2, 3, 0, 1]), "exchanged_axes": _order(PLACES, [1, 0, 3, 2]),
    "millimeters": lambda env: Seen(env, lambda obs: {**obs, STATE: obs[STATE] * torch.tensor([1000.0, 1000, 1])}),
    "centimeters": lambda env: Seen(env, lambda obs: {**obs, STATE: obs[STATE] * torch.tensor([100.0, 100, 1])}),
    "decimeters": lambda env: Seen(env, lambda obs: {**obs, STATE: obs[STATE] * torch.tensor([10.0, 10, 1])}),
    "offset_x": _part(ACTION, 0, lambda a: a + 0.5), "down_y": _part(ACTION, 1, lambda a: a - 0.4),
    "offset_y": _part(ACTION, 1, lambda a: a + 0.12), "left_x": _part(ACTION, 0, lambda a: a - 0.15),
    "back_x": _part(ACTION, 0, lambda a: a - 0.35), "raised_wrist": _part(ACTION, 2, lambda a: a + 0.15),
    "rate_told": lambda env: Slower(env, 2, True), "rate_untold": lambda env: Slower(env, 2, False),
    "rate_third_told": lambda env: Slower(env, 3, True), "rate_third_untold": lambda env: Slower(env, 3, False),
    "rate_quarter_told": lambda env: Slower(env, 4, True), "rate_quarter_untold": lambda env: Slower(env, 4, False),
    "stuck_y": _part(STATE, 1, lambda s: torch.full_like(s, 0.4)),
    "stuck_x": _part(STATE, 0, lambda s: torch.full_like(s, 0.6)),
    "stuck_grip": _part(STATE, 2, lambda s: torch.full_like(s, 0.5)), "dead_grip": _part(ACTION, 2, lambda a: 0 * a),
    "dead_x": _part(ACTION, 0, lambda a: torch.zeros_like(a)), "dead_y": _part(ACTION, 1, lambda a: 0 * a),
    "limited": _limited, "very_limited": lambda env: _limited(env, 8), "less_limited": lambda env: _limited(env, 5),
    "elsewhere": lambda env: _elsewhere(env, 0.02, 0.02), "opposite": lambda env: _elsewhere(env, 0.88, 0.88),
    "aside": lambda env: _elsewhere(env, 0.88, 0.02),
    "noisy": _noisy, "noisy_less": lambda env: _noisy(env, 0.1), "noisy_least": lambda env: _noisy(env, 0.07),
    "renamed_camera": _renamed(SIDE, "observation.images.wrist"),
    "renamed_top": _renamed(TOP, "observation.images.head"),
    "renamed_side": _renamed(SIDE, "observation.images.side_camera"),
    "added": lambda env: Done(env, lambda action, obs: action + obs[STATE]),
    "subtracted": lambda env: Done(env, lambda action, obs: action - obs[STATE]),
    "subtracted_hand": lambda env: Done(env, lambda action, obs: action - obs[STATE] * torch.tensor([1.0, 1, 0])),
    "height": _part(STATE, 2, lambda s: s + 0.5), "left": _part(STATE, 0, lambda s: s - 0.3),
    "up": _part(STATE, 1, lambda s: s + 0.4),
    "swapped_cameras": lambda env: Seen(env, lambda obs: {**obs, TOP: obs[SIDE], SIDE: obs[TOP]}),
    "bgr": _images(lambda x: x.flip(-1)), "bgr_side": _images(lambda x: x.flip(-1), SIDE),
    "bgr_top": _images(lambda x: x.flip(-1), TOP), "dark": _images(lambda x: 0.3 * x),
    "dim": _images(lambda x: 0.45 * x), "dusk": _images(lambda x: 0.55 * x), "turned": _images(lambda x: x.flip(1, 2)),
    "flipped": _images(lambda x: x.flip(1)),
    "mirrored": _images(lambda x: x.flip(2)), "zoomed": _images(_zoomed),
    "zoomed_more": _images(lambda x: _zoomed(x, 4)), "zoomed_less": _images(lambda x: _zoomed(x, 8)),
    "black_top": _images(torch.zeros_like, TOP), "black_side": _images(torch.zeros_like, SIDE),
    "black_both": _images(torch.zeros_like),
    "larger": _larger, "smaller": lambda env: _larger(env, 0.5), "half_larger": lambda env: _larger(env, 1.5),
    "frozen_top": lambda env: Late(env, 0, (TOP,), frozen=True),
    "frozen_side": lambda env: Late(env, 0, (SIDE,), frozen=True),
    "frozen_both": lambda env: Late(env, 0, (TOP, SIDE), frozen=True),
    **{f"late_cameras_{k}": (lambda env, k=k: Late(env, k, (TOP, SIDE))) for k in (6, 7, 9)},
    **{f"late_{k}": (lambda env, k=k: LateActions(env, k)) for k in (3, 5, 6, 7, 8, 11, 13, 14)},
    **{f"late_sensors_{k}": (lambda env, k=k: Late(env, k)) for k in (2, 3, 4, 5, 8)}}
OPTIONS = {"way": {"way": True}, "gust": {"gust": 0.6}, "gale": {"gust": 0.7}, "storm": {"gust": 0.8},
           "half": {"part": (0.4, 1.0)}, "strip": {"part": (1.0, 0.4)}, "window": {"part": (0.6, 0.6)},
           "right": {"part": (2.0, 1.0)}, "small": {"gripper": 0.004}, "little": {"gripper": 0.003},
           "tiny": {"gripper": 0.002}, "turn": {"turn": 0.04}}


def __getattr__(name: str):
    world, *parts = name.split("__")
    if world not in ("carry", "reach") or not {*parts} <= {*FAULTS, *OPTIONS}:
        raise AttributeError(name)

    def factory(rows: int = 1) -> Env:
        options = {k: v for part in parts for k, v in OPTIONS.get(part, {}).items()}
        env = Bench(rows, cameras=24 if world == "reach" else 0, **options)
        for part in parts:
            env = FAULTS[part](env) if part in FAULTS else env
        return env
    return factory
