"""Data whose components have another order than those that a run was trained on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fixtures.cli import TINY, refused

from understudy.cli import main
from understudy.core import Feature
from understudy.data.episode import Dataset
from understudy.data.formats import open_dataset, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Demonstrations, the same with the action as (y, x), and a policy and a reward that the first ones train."""
    path = tmp_path_factory.mktemp("swapped")
    assert main(["record", "particle", "--episodes", "6", "--out", str(path / "data")]) == 0
    data = open_dataset(path / "data")
    schema = {**data.features(), "action": replace(data.features()["action"], names=("y", "x"))}
    swapped = [replace(e.replace({"action": np.asarray(e.steps["action"])[:, ::-1]}), schema=schema) for e in data]
    write_dataset(Dataset(swapped, data.metadata), path / "swapped", "lerobot")
    assert main(["train", "bc", str(path / "data"), "--out", str(path / "bc"), *TINY]) == 0
    assert main(["train", "gail", str(path / "data"), "--env", "particle", "--out", str(path / "reward"), "--device",
                 "cpu", "--n-rounds", "1", "--n-steps", "20", "--n-epochs", "1"]) == 0
    return path


def test_what_components_cannot_both_mean():
    feature = Feature("float32", (2,), names=("x", "y"), unit="rad")
    alike = (feature, replace(feature, names=None), replace(feature, unit=None), replace(feature, names=("a", "b")))
    assert [feature.disagreement(f) for f in alike] == [None] * 4
    assert feature.disagreement(replace(feature, unit="deg")) == "the unit rad, and here it is deg"
    assert "x, y, and here they are y, x" in str(feature.disagreement(replace(feature, names=("y", "x"))))


@pytest.mark.parametrize("args", [["eval", "bc", "swapped"], ["train", "bc", "swapped", "--from", "bc"],
                                  ["train", "iql", "swapped", "--reward", "reward"]])
def test_another_order_of_components_is_refused(args, folder, capsys, monkeypatch):
    monkeypatch.chdir(folder)
    capsys.readouterr()
    options = [] if args[0] == "eval" else ["--out", "new", "--device", "cpu", "--steps", "2"]
    refused((main([*args, *options]), *capsys.readouterr()), "trained with the components x, y, and here they are y, x")
    assert not list(Path().glob("new/checkpoints"))
