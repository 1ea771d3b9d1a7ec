"""What a data set says of itself."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fixtures import closed_form
from fixtures.lerobot_files import CAMERA, closed

from understudy.audit import find_problems
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import describe, lerobot, open_dataset


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))


def test_describe(tmp_path):
    lerobot.write(closed(images=True), tmp_path / "out")
    description = describe(open_dataset(tmp_path / "out"))
    assert json.loads(json.dumps(description)) == description
    assert (description["format"], description["version"], description["episodes"], description["steps"],
            description["fps"]) == (
        "lerobot", "v3.0", 4, 22, 10)
    assert description["features"]["observation.state"] == {"dtype": "float32", "shape": [3], "names": None}
    assert description["features"][CAMERA] == {"dtype": "uint8", "shape": [64, 64, 3], "names": None}
    assert description["tasks"] == closed_form.TASKS and description["warnings"] == []


def test_findings_of_data_in_memory():
    n = 6
    steps = {"observation.state": np.stack([np.arange(n), np.full(n, 3)], 1).astype(np.float32),
             "action": np.array([[1.0], [np.nan], [2], [np.inf], [3], [4]]), "timestamp": np.arange(n) / 25}
    findings = find_problems(Dataset([Episode(steps)], {"fps": 10, "warnings": ["said before"]}))
    assert [f.message for f in findings] == [
        "action: 2 values not finite, the first is action[0] of episode 0, step 1",
        "timestamps are 0.04 s apart (25 a second), fps says 10",
        "said before",
        "no observation after the last action: methods that need the next observation skip the last step of each "
        "episode",
        "observation.state: 1 component of 2 never changes: 1"]
    ended = {"observation.state": np.ones((n, 1)), "action": np.ones((n, 1)), "next.terminated": np.eye(n)[-1]}
    notes = [f.message for f in find_problems(Dataset([Episode(ended)])) if f.code == "no-last-observation"]
    assert notes[0].endswith("last step of each episode; critics learn from it where next.terminated is True")
