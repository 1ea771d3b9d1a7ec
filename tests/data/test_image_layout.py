"""Images in another layout than uint8 (height, width, channels) are refused with the line that converts them."""

import numpy as np
import pytest

from understudy.audit import find_problems, training_warnings
from understudy.cli import main
from understudy.core import DataError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.data.image_layout import image_layout_problem
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning
from understudy.learn.fit_method import fit_method
from understudy.learn.method import Method
from understudy.policy import Policy, PolicyConfig

CAMERA = "observation.images.front"


def recording(shape, dtype, name=CAMERA, high=None):
    """A data set with one column of random values and the real images, which have the layout that encoders read."""
    rng = np.random.default_rng(0)
    episodes = []
    for _ in range(3):
        values = rng.uniform(0, high or (256 if np.dtype(dtype).kind in "iu" else 1), (12, *shape))
        episodes.append(Episode({name: values.astype(dtype), "observation.state": rng.normal(size=(12, 3)).astype("f4"),
                                 "action": rng.normal(size=(12, 2)).astype("f4")}))
    return Dataset(episodes)


def policy_of(data):
    return Policy(PolicyConfig(Regression()), data.features())


WRONG = {
    "uint8 with channels first": ((3, 16, 24), "uint8", "column.transpose(0, 2, 3, 1)"),
    "one channel first": ((1, 16, 24), "uint8", "column.transpose(0, 2, 3, 1)"),
    "floats": ((16, 24, 3), "float32", "(column * 255).round().astype('uint8')"),
    "floats of LeRobot": ((3, 16, 24), "float32", "(column.transpose(0, 2, 3, 1) * 255).round().astype('uint8')"),
    "integers": ((16, 24, 3), "int64", "column.astype('uint8')"),
    "integers with channels first": ((3, 16, 24), "int64", "column.transpose(0, 2, 3, 1).astype('uint8')"),
    "no channels": ((16, 24), "uint8", "column[..., None]"),
}


@pytest.mark.parametrize("shape, dtype, code", WRONG.values(), ids=WRONG)
def test_images_in_another_layout_are_refused_and_the_given_line_converts_them(shape, dtype, code):
    data = recording(shape, dtype)
    with pytest.raises(DataError) as error:
        policy_of(data)
    assert CAMERA in str(error.value) and str(shape) in str(error.value) and code in str(error.value)
    findings = [f for f in find_problems(data) if f.code == "image-layout"]
    assert len(findings) == 1 and findings[0].severity == "warning" and CAMERA in findings[0].message

    def converted(episode):
        column = eval(code, {"column": episode.steps[CAMERA]})
        return episode.replace({CAMERA: column})
    right = Dataset([converted(e) for e in data])
    channels = 1 if len(shape) == 2 else min(shape)
    assert right.features()[CAMERA].kind == "image" and right.features()[CAMERA].shape == (16, 24, channels)
    policy_of(right)
    assert not [f for f in find_problems(right) if f.code == "image-layout"]


def test_training_refuses_images_with_channels_first():
    method = Method(PolicyConfig(Regression()), learner=BehaviorCloning(steps=1, batch_size=2))
    with pytest.raises(DataError, match="channels come first"):
        fit_method(method, recording((3, 16, 24), "uint8"), 0)


@pytest.mark.parametrize("to", ["out", "out.hdf5", "out.npz"])
def test_convert_refuses_what_training_refuses(to, tmp_path, capsys):
    write_dataset(recording((3, 16, 24), "uint8"), tmp_path / "first.zarr")
    convert = ["convert", str(tmp_path / "first.zarr"), str(tmp_path / to)]
    assert main(convert) == 2 and not (tmp_path / to).exists()
    error = capsys.readouterr().err
    assert "the channels come first" in error and "column.transpose(0, 2, 3, 1)" in error
    assert main([*convert, "--ignore", "image-layout"]) == 0 and capsys.readouterr().err == ""
    assert open_dataset(tmp_path / to).features()[CAMERA].shape == (3, 16, 24)


@pytest.mark.parametrize("shape, dtype, name", [
    ((16, 24, 3), "uint8", CAMERA), ((16, 24, 1), "uint8", CAMERA), ((16, 24, 4), "uint8", CAMERA),
    ((3, 3, 3), "uint8", CAMERA), ((3, 16, 3), "uint8", CAMERA), ((3, 5, 26), "uint8", "observation.grid"),
    ((64,), "uint8", "observation.instruction"), ((16, 24), "float32", "observation.images.depth"),
    ((16, 24, 1), "float32", "observation.images.wrist_depth"), ((3, 3), "float32", "observation.rotation"),
    ((16, 16, 3), "float32", "observation.marker_positions"), ((1, 32), "float32", "observation.state_history"),
    ((512,), "float32", "observation.images.features")])
def test_images_vectors_texts_and_depth_maps_are_read_as_before(shape, dtype, name):
    data = recording(shape, dtype, name, high=256 if dtype == "uint8" else 4.0)
    policy_of(data)
    assert not [f for f in find_problems(data) if f.code == "image-layout"]


def test_grids_of_classes_are_no_images():
    data = recording((9, 9, 3), "int64", "observation.grid", high=11)
    policy_of(data)
    assert not [f for f in find_problems(data) if f.code == "image-layout"]
    feature = recording((9, 9, 3), "int64", "observation.grid").features()["observation.grid"]
    assert "astype('uint8')" in image_layout_problem("observation.grid", feature)[1]


def test_an_audit_warns_of_floats_from_0_to_1_whatever_the_column_is_called():
    findings = [f for f in find_problems(recording((3, 16, 24), "float32", "observation.top"))
                if f.code == "image-layout"]
    assert len(findings) == 1 and findings[0].message.startswith("observation.top is float32 (3, 16, 24)")


def test_a_column_of_another_kind_needs_another_name():
    with pytest.raises(DataError, match="give it a name that does not begin with observation.image"):
        policy_of(recording((16, 24, 3), "float32"))


def test_an_audit_names_a_camera_without_pixels_and_a_policy_refuses_it():
    data = recording((0, 0, 3), "uint8")
    findings = [f for f in find_problems(data, frames=True) if f.code == "image-layout"]
    assert len(findings) == 1 and findings[0].message.endswith("the images have no pixels")
    with pytest.raises(DataError, match="the images have no pixels"):
        policy_of(data)


def test_images_that_no_policy_reads_are_told():
    data = recording((16, 24, 3), "uint8", "wrist")
    assert [f.where.feature for f in find_problems(data) if f.code == "image-unread"] == ["wrist"]
    assert any("--columns images.wrist=wrist" in text for text in training_warnings(data))
    assert not [f for f in find_problems(recording((16, 24, 3), "uint8")) if f.code == "image-unread"]
