"""A toy in which a disc pushes a square block over a table to a goal."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ...core import Feature, UserError, normal, uniform
from ...execute.actor import CountingActor
from ..raster import COLOR_OF_ROLE, Canvas, Drawable
from ..toy import Toy, distance, length, named_vector, unit

SIDE = 1.0  # m, of the table
DISC, HALF = 0.035, 0.08  # m: radius of the disc; half the side of the block
REACH = 1.4143 * HALF + DISC  # m: farther apart they cannot touch
MARGIN = 0.12  # m: how near an edge of the table the block's centre comes
RADIUS = 0.03  # m: of the goal
SPEED = 0.25  # m/s
PERIOD, SUBSTEPS = 0.02, 5  # s; a substep moves the disc by at most 7 mm, much less than it is wide
FRICTION = 0.3  # between disc and block
LEVER = 0.765 * HALF  # m: largest moment over largest force of friction under a square
BACK = np.array([[1], [-1]], np.float32)  # a heading (2, rows) times this turns the other way
STATE = ("agent.x", "agent.y", "block.x", "block.y", "block.cos", "block.sin", "goal.x", "goal.y")


class Push(Toy, Drawable):
    """Toy in which a disc pushes a square block over a table to a goal.

    Contact is quasi-static: the block moves only while it is pushed, along the normal of an ellipsoidal limit surface
    (Lynch and Mason 1996), with Coulomb friction at the contact. The edges of the table stop block and disc.

    observation.state (8): positions of disc, block and goal (m), cosine and sine of the block's angle. action (2):
    velocity of the disc, m/s, clipped to [-0.25, 0.25]. A step is 0.1 s. Bringing the block's center to the goal ends
    the episode with reward 1.

    Best possible success: 1.0. `PushExpert(noise=0)` attains it.

    Args:
        images: Observe the disc's position alone and observation.images.top (size, size, 3). simulator.state then has
            all eight numbers.
        size: Width and height of the image, in pixels.
        goal: The goal of all episodes, m. None draws one for each episode.
    """

    low, high = -SPEED, SPEED

    def __init__(self, rows: int = 1, limit: int = 100, images: bool = False, size: int = 64,
                 goal: tuple[float, float] | None = None):
        if size < 8:
            raise UserError(f"the images need at least 8 pixels, but size={size}", where="push-images",
                            hint="such as size=64")
        self.images, self.size, self.goal = images, size, goal
        self.state_columns = ("simulator.state",) if images else ("observation.state",)
        whole, action = named_vector(*STATE), named_vector("x", "y", unit="m/s")
        image_features = {"observation.images.top": Feature("uint8", (size, size, 3), "image"),
                          "observation.state": named_vector(*STATE[:2], unit="m"), "simulator.state": whole}
        self.features = {**(image_features if images else {"observation.state": whole}), "action": action}
        self.metadata = {"env": "push-images" if images else "push", "version": 1, "fps": 10, "limit": limit,
                         "optimum": 1.0, "success": f"the block's centre within {RADIUS} m of the goal"}
        super().__init__(rows, limit)

    def initial_state(self, key):
        drawn = uniform(key, torch.zeros_like(key), (16, 6)).numpy().astype(np.float32)  # 16 tries, the first that fits
        disc, block, goal = (low + (SIDE - 2 * low) * drawn[..., i:i + 2]
                             for i, low in ((0, DISC), (2, 0.2), (4, 0.2)))
        if self.goal is not None:
            goal = np.full_like(goal, self.goal)
        fits = (distance(block, goal) > 0.2) & (distance(disc, block) > 1.5 * HALF + DISC)
        rows, first = np.arange(len(key)), fits.argmax(1)
        heading = normal(key, torch.zeros_like(key), (2,), stream=1).numpy()
        return {"disc": disc[rows, first], "block": block[rows, first], "goal": goal[rows, first],
                "heading": heading / distance(heading, 0)[:, None]}

    def _full_state(self):
        return np.concatenate([self.state[k] for k in ("disc", "block", "heading", "goal")], 1)

    def observe(self):
        if not self.images:
            return {"observation.state": self._full_state()}
        return {"observation.images.top": self._render(self.size), "observation.state": self.state["disc"],
                "simulator.state": self._full_state()}

    def state_from_columns(self, steps):
        return dict(
            zip(("disc", "block", "heading", "goal"), np.split(steps[self.state_columns[0]], 4, 1), strict=True)
        )

    def advance(self, action):
        s = self.state
        for _ in range(SUBSTEPS):
            went = np.minimum(np.maximum(s["disc"] + PERIOD * action, DISC), SIDE - DISC)
            step, s["disc"] = went - s["disc"], went
            (touching_rows,) = (distance(s["disc"], s["block"]) < REACH).nonzero()
            if not len(touching_rows):
                continue
            state = (s["disc"], s["block"], s["heading"])
            moved = _push_block(*(np.ascontiguousarray(v[touching_rows].T) for v in (*state, step)))
            for all_rows, v in zip(state, moved, strict=True):
                all_rows[touching_rows] = v.T
        success = distance(s["block"], s["goal"]) < RADIUS
        return success, success, np.zeros_like(success)

    def expert(self):
        return PushExpert(self.state_columns[0])

    def map(self):
        whole = self.state_columns[0]
        return {"x": (0.0, SIDE), "y": (0.0, SIDE), "path": (whole, 2, 3), "shapes": [],
                "control": {"column": "observation.state", "components": (0, 1), "step": 0.1},
                "marks": [{"kind": "circle", "column": (whole, 6, 7), "radius": RADIUS, "role": "goal"}]}

    @property
    def square(self):
        return (0.0, 0.0), SIDE

    def draw(self, surface, row):
        self._draw(surface, slice(row, row + 1))

    def _draw(self, surface, rows):
        s = {k: v[rows] for k, v in self.state.items()}
        surface.circle(s["goal"], 2 * RADIUS, COLOR_OF_ROLE["goal"])
        surface.box(s["block"], s["heading"], (HALF, HALF), COLOR_OF_ROLE["block"])
        surface.circle(s["block"], RADIUS / 2, COLOR_OF_ROLE["goal"])
        surface.circle(s["disc"], DISC, COLOR_OF_ROLE["agent"])

    def _render(self, size):
        """Draws images of all rows, (rows, size, size, 3) uint8, in groups that fit a processor's cache."""
        pictures = []
        for i in range(0, self.rows, 64):
            canvas = Canvas(min(64, self.rows - i), size, *self.square)
            self._draw(canvas, slice(i, i + 64))
            pictures.append(canvas.image)
        return np.concatenate(pictures)


def push_images(rows: int = 1, **options) -> Push:
    """Makes "push-images", which is `Push` with a camera."""
    return Push(rows, images=True, **options)


# The vectors of these are (2, rows), x and y apart, so that a step is few operations on long rows.


def contact(disc, block, heading):
    """Computes the contact between disc and block. Vectors have the shape (2, rows).

    Args:
        disc: Position of the disc, m.
        block: Position of the block's center, m.
        heading: Cosine and sine of the block's angle.

    Returns:
        Depth of the disc in the block, (rows,), which is 0 if they are apart. The normal into the block, and the point
        of contact relative to the block's center. Both are in the frame of the block.
    """
    at = _rotate(heading * BACK, disc - block)
    point = np.minimum(np.maximum(at, -HALF), HALF)
    off = point - at
    gap = _lengths(off)
    return np.maximum(DISC - gap, 0), off / np.maximum(gap, 1e-6), point


def _push_block(disc, block, heading, step):
    """Moves the block out of the disc's way; `step` (2, rows) is the disc's motion. All are (2, rows)."""
    depth, normal, point = contact(disc, block, heading)
    along = normal[::-1] * -BACK
    # Pushed with (push, grip) along the normal and across it, the contact moves by [[1 + aa, ab], [ab, 1 + bb]] times
    # that. It has to move by (depth, slip) if it sticks; if that takes more grip than there is, it slides.
    a, b = _cross(point, normal) / LEVER, _cross(point, along) / LEVER
    aa, ab, bb = a * a, a * b, b * b
    slip = _dot(_rotate(heading * BACK, step), along)
    push = ((1 + bb) * depth - ab * slip) / (1 + aa + bb)
    grip = ((1 + aa) * slip - ab * depth) / (1 + aa + bb)
    most = np.where(grip > 0, FRICTION, -FRICTION).astype(np.float32)
    slides = np.abs(grip) > FRICTION * push
    push = np.where(slides, depth / (1 + aa + most * a * b), push)
    grip = np.where(slides, most * push, grip)
    touching = depth > 0
    shift = np.where(touching, push * normal + grip * along, 0)
    angle = np.where(touching, push * a + grip * b, 0) / LEVER
    block = np.minimum(np.maximum(block + _rotate(heading, shift), MARGIN), SIDE - MARGIN)
    half = np.stack([np.ones_like(angle), angle / 2])  # a rotation by twice the angle of this vector
    turned = _rotate(heading, _rotate(half, half))
    heading = np.where(touching, turned / _lengths(turned), heading)
    # Where the table's edge holds the block, the disc is what gives way.
    depth, normal, point = contact(disc, block, heading)
    return disc - depth * _rotate(heading, normal), block, heading


def _rotate(heading, vector):
    """Rotates `vector` (2, rows) by the angle of `heading` (2, rows), as a product of complex numbers."""
    return heading[0] * vector - heading[1] * vector[::-1] * BACK


def _dot(a, b):
    both = a * b
    return both[0] + both[1]


def _cross(a, b):
    return a[0] * b[1] - a[1] * b[0]


def _lengths(a):
    return np.sqrt(_dot(a, a))


@dataclass(frozen=True)
class PushExpert(CountingActor):
    """Expert of `Push`: follows the field lines of a dipole at the block that points to the goal.

    They lead around the block to its far side, and from there through it. On the way around, it keeps a distance.

    Args:
        column: The column with the whole state.
        noise: Standard deviation of Gaussian noise on the action, m/s.

    References:
        Igarashi et al. (2010), A Dipole Field for Object Delivery by Pushing on a Flat Surface.
    """

    column: str = "observation.state"
    noise: float = 0.03

    def act(self, obs, state):
        disc, block, _, goal = obs[self.column].split(2, 1)
        away, ahead = unit(disc - block), unit(goal - block)
        disc_distance, goal_distance = (length(x - block) for x in (disc, goal))
        facing = (away * ahead).sum(1, keepdim=True)  # -1 where a push leads to the goal
        field = 2 * facing * away - ahead
        around = unit(field + 20 * (1.7 * HALF + DISC - disc_distance) * away)
        through = field * (goal_distance / 0.1).clamp(0.3, 1)
        action = SPEED * torch.where(facing > -0.9, around, through)
        action = action + self.noise * normal(state["key"], state["count"], (2,), stream=2)
        return action, {**state, "count": state["count"] + 1}
