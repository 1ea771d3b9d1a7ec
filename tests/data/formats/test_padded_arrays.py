"""Arrays of episodes padded to one length, in npz and HDF5."""

import re

import numpy as np
import pytest

from understudy import open_dataset
from understudy.core import UserError
from understudy.data.episode import Dataset
from understudy.data.video import encode_png

h5py = pytest.importorskip("h5py")
STATE, ACTION = "observation.state", "action"
LENGTHS = np.array([3, 12, 1, 7])
KINDS = pytest.mark.parametrize("kind", ["npz", "h5"])
TIME_FIRST = pytest.mark.parametrize("time_first", [False, True])
NAMED = {"state": "q", "action": "u"}


def row(episode: int, step: int) -> list[float]:
    return [100 * episode + step, episode, step]


def padded(last_row: int = 0) -> dict[str, np.ndarray]:
    """States, with a row after the last action or not, actions and rewards of episodes padded to 14 steps with NaN."""
    state, action = np.full((4, 14 + last_row, 3), np.nan), np.full((4, 14, 2), np.nan)
    reward, mask = np.full((4, 14), np.nan), np.zeros((4, 14), np.float32)
    for e, n in enumerate(LENGTHS):
        state[e, :n + last_row] = [row(e, t) for t in range(n + last_row)]
        action[e, :n] = [[e, -t] for t in range(n)]
        reward[e, :n], mask[e, :n] = np.arange(n) / 8, 1
    return {"q": state, "u": action, "r": reward, "valid": mask, "n": LENGTHS, "weight": np.array([1.5, 2, 0, 4])}


def save(path, kind, arrays, time_first=False):
    axes = {key: v.swapaxes(0, 1) if time_first and v.ndim > 1 else v for key, v in arrays.items()}
    if kind == "npz":
        np.savez(path / "a.npz", **axes)
    else:
        with h5py.File(path / "a.h5", "w") as file:
            for key, values in axes.items():
                file[key] = values
    return path / f"a.{kind}"


def check(data: Dataset, last_row: int = 0):
    assert data.lengths.tolist() == LENGTHS.tolist()
    for e, n in enumerate(LENGTHS):
        steps = data[e].steps
        np.testing.assert_array_equal(steps[STATE], [row(e, t) for t in range(n + last_row)])
        np.testing.assert_array_equal(steps[ACTION], [[e, -t] for t in range(n)])
        np.testing.assert_array_equal(np.ravel(steps["next.reward"]), np.arange(n) / 8)


@KINDS
@TIME_FIRST
@pytest.mark.parametrize("lengths", ["n", "valid"])
@pytest.mark.parametrize("last_row", [0, 1])
def test_padded_episodes_are_read_by_lengths_or_mask(tmp_path, kind, time_first, lengths, last_row):
    path = save(tmp_path, kind, padded(last_row), time_first)
    data = open_dataset(path, columns={**NAMED, "reward": "r", "episode_lengths": lengths})
    check(data, last_row)
    assert [e.metadata["weight"] for e in data] == [1.5, 2, 0, 4]
    assert not any(str(w).startswith(("n:", "weight:")) for w in data.metadata["warnings"])


@KINDS
@TIME_FIRST
def test_padded_episodes_are_refused_without_lengths(tmp_path, kind, time_first):
    arrays = padded()
    for without, name in (((), "(n|valid)"), (("n",), "valid"), (("n", "valid"), "ARRAY")):
        path = save(tmp_path, kind, {k: v for k, v in arrays.items() if k not in without}, time_first)
        if time_first and name == "ARRAY":  # four joints of two arms have this shape too
            continue
        with pytest.raises(UserError, match=f"nothing says where its episodes end(.|\n)*--columns "
                                            f"episode_lengths={name} "):
            open_dataset(path, columns=NAMED)


def test_padded_episodes_with_known_names_are_told_how_to_be_read(tmp_path):
    arrays = padded()
    path = save(tmp_path, "npz", {"observations": arrays["q"], "actions": arrays["u"], "reward": arrays["r"],
                                  "n": LENGTHS})
    with pytest.raises(UserError, match="--columns episode_lengths=n "):
        open_dataset(path)
    data = open_dataset(path, columns=["episode_lengths=n", "reward=reward"])
    check(data)


def test_padded_episodes_in_the_layout_of_act_are_refused_and_read_by_lengths(tmp_path):
    arrays = padded()
    path = save(tmp_path, "h5", {"observations/qpos": arrays["q"], "action": arrays["u"], "r": arrays["r"],
                                 "n": LENGTHS})
    with pytest.raises(UserError, match="nothing says where its episodes end(.|\n)*--columns episode_lengths=n "):
        open_dataset(path)
    check(open_dataset(path, columns={"state": "observations/qpos", "reward": "r", "episode_lengths": "n"}))


def test_numbers_of_padded_episodes_do_not_say_where_they_end(tmp_path):
    path = save(tmp_path, "npz", {**padded(), "episode": np.arange(4)})
    with pytest.raises(UserError, match="nothing says where its episodes end"):
        open_dataset(path, columns=NAMED)


@KINDS
@TIME_FIRST
def test_wrong_lengths_and_masks_are_refused(tmp_path, kind, time_first):
    arrays = padded()
    hole = arrays["valid"].copy()
    hole[1, 5] = 0
    empty = arrays["valid"].copy()
    empty[2] = 0
    wrong = {"long": np.array([3, 15, 1, 7]), "none": np.array([3, 12, 0, 7]), "hole": hole, "empty": empty,
             "few": np.array([3, 12, 1])}
    path = save(tmp_path, kind, {**arrays, **wrong}, time_first)
    for name, problem in (("long", r"long\[1\](.|\n)*episode 1 has 15 steps"),
                          ("none", r"none\[2\](.|\n)*episode 2 has 0 steps"), ("hole", "goes on in step"),
                          ("empty", r"empty\[2\](.|\n)*episode 2 has 0 steps"), ("few", "add up to 16 steps")):
        with pytest.raises(UserError) as error:
            open_dataset(path, columns={**NAMED, "episode_lengths": name})
        assert re.search(problem, f"{error.value}"), str(error.value)


@KINDS
def test_two_arms_are_one_episode_of_steps(tmp_path, kind):
    path = save(tmp_path, kind, {"q": np.zeros((30, 2, 7)), "u": np.ones((30, 2, 7))})
    data = open_dataset(path, columns=NAMED)
    assert data.lengths.tolist() == [30] and data.features()["action"].shape == (2, 7)


@KINDS
@pytest.mark.parametrize("lengths", [[12, 7, 3, 1], [14, 14, 14, 14]])
def test_a_mask_that_fits_both_orders_is_read_as_episodes_first_with_a_warning(tmp_path, kind, lengths):
    mask = np.arange(14) < np.array(lengths)[:, None]
    path = save(tmp_path, kind, {"q": np.zeros((4, 14, 3)), "u": np.zeros((4, 14, 2)), "valid": mask})
    data = open_dataset(path, columns={**NAMED, "episode_lengths": "valid"})
    assert data.lengths.tolist() == lengths
    assert any("valid: the arrays are read as (episodes, steps, ...)" in str(w) for w in data.metadata["warnings"])


@KINDS
def test_padded_camera_images_are_read(tmp_path, kind):
    frames = np.arange(4 * 14, dtype=np.uint8).reshape(4, 14, 1, 1, 1) + np.zeros((4, 14, 8, 8, 3), np.uint8)
    path = save(tmp_path, kind, {**padded(), "camera": frames})
    data = open_dataset(path, columns={**NAMED, "images.front": "camera", "episode_lengths": "n"})
    feature = data.features()["observation.images.front"]
    assert feature.kind == "image" and feature.shape == (8, 8, 3)
    np.testing.assert_array_equal(data[3].steps["observation.images.front"], frames[3, :7])


@KINDS
@TIME_FIRST
def test_padded_png_bytes_are_images(tmp_path, kind, time_first):
    images = [[encode_png(np.full((8, 8, 3), 20 * e + t, np.uint8)) for t in range(14)] for e in range(4)]
    width = max(len(image) for episode in images for image in episode)
    rows = np.array([[np.frombuffer(image.ljust(width, b"\0"), np.uint8) for image in each] for each in images])
    path = save(tmp_path, kind, {**padded(), "camera": rows}, time_first)
    data = open_dataset(path, columns={**NAMED, "images.front": "camera", "episode_lengths": "n"})
    for e, n in enumerate(LENGTHS):
        frames = np.asarray(data[e].steps["observation.images.front"])
        np.testing.assert_array_equal(frames, np.broadcast_to(20 * e + np.arange(n)[:, None, None, None], (n, 8, 8, 3)))
