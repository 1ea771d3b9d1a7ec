"""Fixtures that several files of this folder use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fixtures.lerobot_policies import NAMES, unpacked
from fixtures.runs import run

from understudy.data.episode import Dataset, Episode
from understudy.learn.method import load_policy


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The run that nothing ever stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    run(out)
    return out


@pytest.fixture(scope="module")
def data() -> Dataset:
    rng = np.random.default_rng(0)

    def episode(n):
        states = rng.normal(size=(n, 3)).astype(np.float32)
        return Episode({"observation.state": states, "action": np.tanh(states[:, :2] + states[:, 1:]),
                        "intervention": (np.arange(n) % 3 == 0).astype(np.float32)})
    return Dataset([episode(n) for n in (17, 9, 23, 12)])


@pytest.fixture(scope="session")
def checkpoints(shared, tmp_path_factory):
    """Writable copies of the checkpoints by name, with the compressed weights unpacked."""
    source = shared / "fixtures" / "lerobot_policies"
    if not source.is_dir():
        pytest.skip("no fixtures of LeRobot policies")
    folders = {}
    for name in NAMES:
        folders[name] = folder = tmp_path_factory.mktemp(name) / "pretrained_model"
        folder.mkdir()
        unpacked(source / name, folder)
    return folders


@pytest.fixture(scope="session")
def arrays(shared):
    """Inputs and outputs of a fixture, as tensors."""
    def read(name):
        folder = shared / "fixtures" / "lerobot_policies" / name
        return tuple({k: torch.from_numpy(v) for k, v in np.load(folder / f"{part}.npz").items()}
                     for part in ("inputs", "outputs"))
    return read


@pytest.fixture(scope="session")
def policies(checkpoints):
    """Loaded policies by name. Tests must not change them."""
    loaded = {}

    def load(name):
        if name not in loaded:
            loaded[name] = load_policy(checkpoints[name])
        return loaded[name]
    return load
