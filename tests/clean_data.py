"""Clean demonstrations of many kinds, on which the audit must stay silent.

Every builder returns a data set in which nothing is wrong: (seed) -> Dataset. The arms are simulated with a first-order
servo and sensor noise. The cameras draw without sensor noise, which is the hard case for a check of frozen pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from understudy import make, rollout
from understudy.data.episode import Dataset, Episode

STATE, ACTION, CAMERA = "observation.state", "action", "observation.images.front"
FPS = 20


def toy(name: str) -> Callable[[int], Dataset]:
    """Demonstrations by the expert of a bundled toy."""
    def build(seed: int) -> Dataset:
        env = make(name, 12)
        try:
            return Dataset(list(rollout(env.expert(), env, 24, seed=seed)), {"fps": env.metadata["fps"]})
        finally:
            env.close()
    return build


def _reach(rng, joints: int, steps: int) -> np.ndarray:
    """(steps + 1, joints): a smooth path through three random goals, with a rest at each of them."""
    goals = rng.uniform(-1.2, 1.2, (4, joints))
    time = np.linspace(0, 3, steps + 1)
    part = np.minimum(time.astype(int), 2)
    s = np.clip((time - part) / 0.85, 0, 1)[:, None]
    return goals[part] + (goals[part + 1] - goals[part]) * (10 * s**3 - 15 * s**4 + 6 * s**5)


def velocity_arm(seed: int) -> Dataset:
    """Joint velocities are commanded, in units of a largest speed. The state holds positions and velocities, so that an
    action nearly equals the velocity of the next state, or is in proportion to it."""
    rng, dt = np.random.default_rng(seed), 1 / FPS
    joints, gain = int(rng.integers(2, 7)), rng.uniform(0.3, 1.0)
    noise, unit = (0.0, 1e-3)[seed % 2], rng.uniform(0.5, 2.0)  # rad/s that an action of 1 stands for

    def episode():
        path = _reach(rng, joints, int(rng.integers(60, 140)))
        q, v, states, actions = path[0].copy(), np.zeros(joints), [], []
        for t in range(len(path) - 1):
            states.append(np.concatenate([q, v]))
            command = (path[t + 1] - path[t]) / dt + 2.0 * (path[t] - q)
            actions.append(command / unit)
            v = v + gain * (command - v)
            q = q + dt * v
        states.append(np.concatenate([q, v]))
        sensed = np.array(states) + noise * rng.normal(size=(len(states), 2 * joints))
        return Episode({STATE: sensed.astype(np.float32), ACTION: np.array(actions, np.float32)})
    return Dataset([episode() for _ in range(20)], {"fps": FPS})


def slow_velocity_arm(seed: int) -> Dataset:
    """As `velocity_arm`, with episodes of one constant speed among the others and the tool's position in the state."""
    rng, dt = np.random.default_rng(seed), 1 / FPS
    unit = rng.uniform(0.5, 2.0)

    def episode(n):
        steps = int(rng.integers(40, 90))
        speed = rng.uniform(-0.4, 0.4, 3)
        wave = 0 if n % 3 == 0 else np.sin(np.linspace(0, rng.uniform(2, 9), steps))[:, None]
        command = speed * (1 + wave) + 0.02 * rng.normal(size=(steps, 3))
        q, v, states = rng.uniform(-1, 1, 3), np.zeros(3), []
        for a in command:
            states.append(np.concatenate([q, v, [np.cos(q).sum(), np.sin(q).sum()]]))
            v = v + 0.9 * (a - v)
            q = q + dt * v
        states.append(np.concatenate([q, v, [np.cos(q).sum(), np.sin(q).sum()]]))
        return Episode({STATE: np.array(states, np.float32), ACTION: (command / unit).astype(np.float32)})
    return Dataset([episode(n) for n in range(20)], {"fps": FPS})


def position_arm(seed: int) -> Dataset:
    """Joint targets are commanded; the arm follows within a few steps. Every other data set has velocities, too."""
    rng = np.random.default_rng(seed)
    joints, gain = int(rng.integers(2, 7)), rng.uniform(0.3, 0.9)

    def episode():
        path = _reach(rng, joints, int(rng.integers(60, 140)))
        q, states = path[0].copy(), [path[0].copy()]
        for target in path[1:]:
            q = q + gain * (target - q)
            states.append(q.copy())
        state = np.array(states) + 1e-4 * rng.normal(size=(len(states), joints))
        if seed % 2:
            state = np.concatenate([state, np.gradient(state, 1 / FPS, axis=0)], 1)
        return Episode({STATE: state.astype(np.float32), ACTION: path[1:].astype(np.float32)})
    return Dataset([episode() for _ in range(20)], {"fps": FPS})


def delta_arm(seed: int) -> Dataset:
    """Differences of the tool's position are commanded, scaled to about [-1, 1]."""
    rng = np.random.default_rng(seed)

    def episode():
        path = _reach(rng, 3, int(rng.integers(50, 120)))
        at, states, actions = path[0].copy(), [path[0].copy()], []
        for target in path[1:]:
            action = np.clip((target - at) / 0.1, -1, 1)
            at = at + 0.1 * action * rng.uniform(0.95, 1.05)
            states.append(at.copy())
            actions.append(action)
        return Episode({STATE: np.array(states, np.float32), ACTION: np.array(actions, np.float32)})
    return Dataset([episode() for _ in range(20)], {"fps": FPS})


def gripper_arm(seed: int) -> Dataset:
    """Differences of the position and a binary gripper (-1 open, 1 closed), which closes slowly around an object."""
    rng = np.random.default_rng(seed)

    def episode():
        goal, drop = rng.uniform(-0.5, 0.5, 3), rng.uniform(-0.5, 0.5, 3)
        at, width, thing, is_held, states, actions = rng.uniform(-0.5, 0.5, 3), 0.08, goal.copy(), False, [], []
        for t in range(90):
            states.append(np.concatenate([at, [width], thing]))
            closed = t >= 40
            target = goal if t < 50 else drop
            move = np.clip((target - at) * 0.25, -0.05, 0.05) + 0.001 * rng.normal(size=3)
            actions.append(np.concatenate([move, [1.0 if closed else -1.0]]))
            at = at + move
            width = np.clip(width + (-0.01 if closed else 0.01), 0.03, 0.08)
            is_held = is_held or closed and width <= 0.03
            thing = at.copy() if is_held else thing
        states.append(np.concatenate([at, [width], thing]))
        return Episode({STATE: np.array(states, np.float32), ACTION: np.array(actions, np.float32)})
    return Dataset([episode() for _ in range(20)], {"fps": FPS})


def grid(seed: int) -> Dataset:
    """One of five moves on a grid, to a goal that the state names."""
    rng = np.random.default_rng(seed)
    moves = np.array([[0, 0], [1, 0], [-1, 0], [0, 1], [0, -1]])

    def episode():
        at, goal, states, actions = rng.integers(0, 15, 2), rng.integers(0, 15, 2), [], []
        for _ in range(40):
            states.append([*at, *goal])
            gap = goal - at
            ways = [i for i, m in enumerate(moves) if i and gap @ m > 0]
            action = int(rng.choice(ways)) if ways else 0
            actions.append(action)
            at = at + moves[action]
            if action == 0:
                break
        states.append([*at, *goal])
        return Episode({STATE: np.array(states, np.float32), ACTION: np.array(actions, np.int64)},
                       {"success": bool((at == goal).all())})
    return Dataset([episode() for _ in range(30)], {"fps": FPS})


def _draw(at: np.ndarray, side: int, size: float, levels: int) -> np.ndarray:
    """(T, side, side, 3) uint8: a soft disc at (T, 2) in pixels, in `levels` steps of brightness."""
    y, x = np.mgrid[:side, :side]
    away = np.hypot(x - at[:, 0, None, None], y - at[:, 1, None, None])
    light = np.round(np.clip(size + 0.5 - away, 0, 1) * levels) / levels
    return np.repeat((40 + 180 * light).astype(np.uint8)[..., None], 3, -1)


def slow_images(seed: int) -> Dataset:
    """A disc in a picture of 32 x 32 that moves by a fraction of a pixel a step, and sometimes rests. The state is
    measured far more finely than the picture, with noise in every other data set."""
    rng = np.random.default_rng(seed)
    levels, noise = (1, 2, 4, 8)[seed % 4], (0.0, 2e-4)[seed // 2 % 2]

    def episode():
        steps = int(rng.integers(60, 110))
        heading = rng.uniform(0, 2 * np.pi)
        speed = rng.uniform(0.05, 0.3) * np.abs(np.sin(np.linspace(0, rng.uniform(3, 9), steps)))
        pause = int(rng.integers(0, steps - 12))
        if rng.random() < 0.5:
            speed[pause:pause + 12] = 0
        move = speed[:, None] * np.array([np.cos(heading), np.sin(heading)])
        at = np.concatenate([[[0.0, 0.0]], np.cumsum(move, 0)]) + rng.uniform(12, 20, 2)
        state = at / 32 + noise * rng.normal(size=at.shape)
        return Episode({STATE: state.astype(np.float32), ACTION: (move / 32).astype(np.float32),
                        CAMERA: _draw(np.clip(at, 2, 29), 32, 3.0, levels)[:steps]})
    return Dataset([episode() for _ in range(16)], {"fps": FPS})


def fine_end(seed: int) -> Dataset:
    """A fast way and a slow approach: at the end of an episode the state still moves, by less than a pixel sees."""
    rng = np.random.default_rng(seed)

    def episode():
        at, goal, states, actions = rng.uniform(4, 28, 2), rng.uniform(8, 24, 2), [], []
        for _ in range(60):
            states.append(at)
            action = 0.12 * (goal - at)
            actions.append(action)
            at = at + action
        states.append(at)
        states = np.array(states)
        return Episode({STATE: (states / 32).astype(np.float32), ACTION: (np.array(actions) / 32).astype(np.float32),
                        CAMERA: _draw(states, 32, 3.0, 2)[:60]})
    return Dataset([episode() for _ in range(20)], {"fps": FPS})


def object_camera(seed: int) -> Dataset:
    """The camera sees an object that rests until the arm, which it does not see, has reached it."""
    rng = np.random.default_rng(seed)

    def episode():
        wait, steps = int(rng.integers(15, 35)), 70
        hand, thing, states, actions, positions = rng.uniform(-1, 1, 2), rng.uniform(8, 24, 2), [], [], []
        away = rng.uniform(-1, 1, 2)
        for t in range(steps):
            states.append(hand.copy())
            positions.append(thing.copy())
            move = 0.03 * away + 0.01 * rng.normal(size=2)
            actions.append(move)
            hand = hand + move
            thing = thing + (move * 8 if t >= wait else 0)
        states.append(hand)
        return Episode({STATE: np.array(states, np.float32), ACTION: np.array(actions, np.float32),
                        CAMERA: _draw(np.clip(np.array(positions), 2, 29), 32, 3.0, 8)})
    return Dataset([episode() for _ in range(20)], {"fps": FPS})


def pendulum(seed: int) -> Dataset:
    """Torques, which are neither positions nor velocities: a pendulum that is swung."""
    rng, dt = np.random.default_rng(seed), 1 / FPS

    def episode():
        angle, speed, states, actions = rng.uniform(-0.5, 0.5), 0.0, [], []
        tempo, phase = rng.uniform(2.5, 3.5), rng.uniform(0, 6)
        for t in range(100):
            states.append([np.cos(angle), np.sin(angle), speed])
            torque = 1.5 * np.sin(tempo * t * dt + phase) - 0.3 * speed
            actions.append([torque])
            speed = speed + dt * (-9.81 * np.sin(angle) + torque)
            angle = angle + dt * speed
        states.append([np.cos(angle), np.sin(angle), speed])
        return Episode({STATE: np.array(states, np.float32), ACTION: np.array(actions, np.float32)})
    return Dataset([episode() for _ in range(15)], {"fps": FPS})


KINDS: dict[str, tuple[Callable[[int], Dataset], int]] = {  # builder, number of seeds
    **{name: (toy(name), 3) for name in ("fork", "particle", "push", "maze", "drive", "blocks", "memory", "words",
                                         "arms")},
    **{f.__name__: (f, seeds) for f, seeds in (
        (velocity_arm, 8), (slow_velocity_arm, 4), (position_arm, 4), (delta_arm, 3), (gripper_arm, 3), (grid, 2),
        (slow_images, 4), (fine_end, 2), (object_camera, 2), (pendulum, 2))}}
