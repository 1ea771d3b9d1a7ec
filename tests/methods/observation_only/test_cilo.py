"""CILO: path signatures in closed form, and which episodes they let in."""

import numpy as np
import pytest

from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.mixture import ROUND
from understudy.methods.observation_only.cilo import SignatureGate, signature

STATE = "observation.state"


def test_the_signature_of_a_line_and_of_a_circle():
    line = np.linspace(0, 1, 7)[:, None] * np.array([2.0, -1.0, 3.0])
    assert np.allclose(signature(line), [2, -1, 3, *np.outer([2, -1, 3], [2, -1, 3]).ravel() / 2])
    assert np.allclose(signature(line + 5), signature(line)) and np.allclose(signature(line[::3]), signature(line))
    angle = np.linspace(0, 2 * np.pi, 2000)
    circle = 3 * np.c_[np.cos(angle), np.sin(angle)]
    areas = signature(circle)[2:].reshape(2, 2)
    assert np.allclose(signature(circle)[:2], 0) and np.allclose(np.diag(areas), 0)
    assert (areas[0, 1] - areas[1, 0]) / 2 == pytest.approx(np.pi * 9, rel=1e-4)  # the area of the disc


def test_chens_identity_of_joined_paths():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(5, 3)).cumsum(0), rng.normal(size=(8, 3)).cumsum(0)
    joined = np.concatenate([first, second[1:] - second[0] + first[-1]])
    a, b, whole = (signature(path) for path in (first, second, joined))
    assert np.allclose(whole[:3], a[:3] + b[:3])
    assert np.allclose(whole[3:], a[3:] + b[3:] + np.outer(a[:3], b[:3]).ravel())


def turn(seed, direction, part=None, number=None):
    """A noisy turn to the left (1) or to the right (-1)."""
    angle = direction * np.linspace(0, np.pi, 30)
    state = np.c_[np.sin(angle), 1 - np.cos(angle)] + np.random.default_rng(seed).normal(size=(30, 2)) * 0.05
    facts = {"dataset": part, ROUND: number, "id": seed}
    steps = {STATE: state.astype(np.float32), "action": np.zeros((29, 1), np.float32)}
    return Episode(steps, {k: v for k, v in facts.items() if v is not None})


@pytest.mark.parametrize("fooling", [True, False])
def test_new_episodes_that_turn_as_demonstrations_do_stay(fooling):
    shown = [turn(i, 1, "task") for i in range(6)]
    practice = [turn(50 + i, -1, "prior") for i in range(4)]
    earlier = [turn(70 + i, -1, None, 0) for i in range(2)]
    new = [turn(100 + i, 1 if i < 3 else -1, None, 1) for i in range(8)]
    stayed = SignatureGate(fooling=fooling).keep(Dataset([*shown, *practice, *earlier, *new]))
    numbers = [e.metadata["id"] for e in stayed]
    assert numbers[:12] == [e.metadata["id"] for e in (*shown, *practice, *earlier)]
    assert numbers[12:] == ([100, 101, 102] if fooling else [103, 104, 105, 106, 107])


def test_observations_that_are_no_numbers_are_refused():
    steps = {"observation.images.top": np.zeros((4, 2, 2, 3), np.uint8), "action": np.zeros((4, 1), np.float32)}
    picture = Episode(steps, {"dataset": "task"})
    with pytest.raises(UserError, match="(?s)no observations that are numbers.*bco"):
        SignatureGate().keep(Dataset([picture, Episode(picture.steps, {ROUND: 0})]))
