"""A package of somebody else's registers a method, an environment and a format by entry points."""

from __future__ import annotations

import contextlib
import importlib
import io
from pathlib import Path

import numpy as np
import pytest

from understudy import open_dataset, plugins
from understudy.cli import main
from understudy.core import Feature, UserError
from understudy.data.formats import preview_dataset
from understudy.envs import make
from understudy.methods import describe_method, describe_methods, find_method, method_names
from understudy.methods.behavior_cloning.bc import bc
from understudy.plugins import find_plugins, load_plugin

CODE = '''"""A method, an environment and a format."""

from pathlib import Path

import numpy as np

from understudy.data.episode import Dataset, Episode
from understudy.data.formats import RegisteredFormat
from understudy.envs.toys.fork import Fork
from understudy.methods import method
from understudy.methods.behavior_cloning.bc import bc

Path(__file__).with_name("imported").touch()


def steady(horizon: int = 3):
    """Steady cloning."""
    return bc(horizon)


@method("Somebody 2026", when="if it shall be steady.")
def named_steady(horizon: int = 3):
    """The same with
    a reference.

    Args:
        horizon: Number of actions.
    """
    return bc(horizon)


def world(rows: int = 1):
    return Fork(rows)


def read(path):
    numbers = np.loadtxt(path, dtype=np.float32, ndmin=2)
    return Dataset([Episode({"observation.state": numbers[:, :2], "action": numbers[:, 2:]})],
                   {"path": str(path), "format": "tiny"})


FORMAT = RegisteredFormat(detect=lambda path: path.suffix == ".tiny", open=read)
'''
ENTRIES = """[understudy.methods]
steady = tiny_robot:steady
named-steady = tiny_robot:named_steady

[understudy.envs]
tiny-world = tiny_robot:world

[understudy.formats]
tiny = tiny_robot:FORMAT
"""


def install(folder: Path, name: str = "tiny_robot", entries: str = ENTRIES) -> None:
    (folder / f"{name}-1.0.dist-info").mkdir(parents=True)
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (folder / f"{name}-1.0.dist-info" / "entry_points.txt").write_text(entries)


@pytest.fixture
def site(tmp_path, monkeypatch) -> Path:
    """A folder in which the package is installed."""
    folder = tmp_path / "site"
    install(folder)
    (folder / "tiny_robot.py").write_text(CODE)
    monkeypatch.syspath_prepend(folder)
    importlib.invalidate_caches()
    return folder


def call(*args) -> tuple[int, str]:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        return main([str(a) for a in args]), out.getvalue()


def test_a_registered_method_is_found_by_its_name_and_imported_only_then(site):
    assert method_names()[-2:] == ["steady", "named-steady"]
    described = {d["name"]: d for d in describe_methods()}
    assert described["steady"]["family"] == "tiny_robot"
    assert "steady" in call("methods")[1] and not (site / "imported").exists()
    assert find_method("steady", horizon=5) == bc(5) and (site / "imported").exists()
    assert find_method("named-steady") == bc(3)
    assert describe_method("steady")["summary"] == "Steady cloning."
    described = describe_method("named-steady")
    assert described["summary"] == "The same with a reference." and described["paper"] == "Somebody 2026"
    assert described["needs"] == ["actions that are numbers"] and describe_method("absent") is None
    with pytest.raises(UserError, match="named-steady, column 'action': the actions are classes"):
        find_method("named-steady", {"action": Feature("int64", (1,), "discrete", num_classes=(4,))})
    status, text = call("methods", "named-steady")
    assert status == 0 and "Somebody 2026" in text and "--horizon" in text
    with pytest.raises(UserError, match="did you mean 'steady'"):
        find_method("stedy")


def test_a_registered_environment_and_format_are_used_like_ours(site, tmp_path):
    env = make("tiny-world", 3)
    assert env.rows == 3 and "observation.state" in env.features
    rng = np.random.default_rng(0)
    np.savetxt(tmp_path / "demo.tiny", rng.normal(size=(30, 4)))
    data = open_dataset(tmp_path / "demo.tiny")
    assert len(data) == 1 and data[0].steps["action"].shape == (30, 2)
    assert len(preview_dataset(tmp_path / "demo.tiny")) == 1
    out = tmp_path / "run"
    status, text = call("train", "steady", tmp_path / "demo.tiny", "--out", out, "--steps", 2, "--device", "cpu",
                        "--policy.trunk.width", 8, "--eval", "tiny-world", "--rollouts", 1)
    assert status == 0, text


def test_mistakes_of_a_package_are_told_with_its_name(site, monkeypatch, tmp_path):
    install(tmp_path / "twice", "other", "[understudy.methods]\nsteady = other:mine\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path / "twice")
        with pytest.raises(UserError, match="two packages register the name 'steady'"):
            find_plugins("methods")
    install(tmp_path / "lost", "other", "[understudy.methods]\nlost = other:lost\n")
    monkeypatch.syspath_prepend(tmp_path / "lost")
    with pytest.raises(UserError, match="the package other registers other:lost, which cannot be loaded"):
        load_plugin("methods", "lost")


def test_packages_are_listed_once_and_not_for_every_data_set(site, monkeypatch):
    find_plugins("formats")
    monkeypatch.setattr(plugins, "entry_points", lambda **group: pytest.fail("listed again"))
    assert "tiny" in find_plugins("formats")
