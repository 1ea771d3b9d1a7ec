"""Data whose columns no policy reads: every command says so, and how to map them."""

from __future__ import annotations

import numpy as np
import pytest

from understudy import UserError, cli, methods
from understudy.audit import find_problems
from understudy.core import Feature, suggested_name
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, open_dataset
from understudy.policy import Policy


@pytest.fixture
def demos(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "demos"
    lerobot.write(Dataset([Episode({"state": rng.normal(size=(20, 3)).astype(np.float32),
                                    "action": rng.normal(size=(20, 2)).astype(np.float32)}) for _ in range(6)],
                          {"fps": 10}), path)
    return path


def test_names_are_suggested_by_what_a_column_holds():
    vector, image = Feature("float32", (3,)), Feature("uint8", (8, 8, 3), "image")
    assert [suggested_name(n, f) for n, f in (
        ("state", vector), ("qpos", vector), ("wrist", image), ("force", vector), ("object", vector),
        ("reward", Feature("float32", ())), ("actions", vector), ("intervention", Feature("bool", ())),
        ("observation.state", vector), ("next.reward", Feature("float32", ())))] == [
            "observation.state", "observation.state", "observation.images.wrist", "observation.force",
            "observation.environment_state", "next.reward", "action", None, None, None]


def test_a_policy_without_anything_to_read_is_refused():
    features = {"state": Feature("float32", (3,)), "action": Feature("float32", (2,))}
    with pytest.raises(UserError, match="no policy can read") as error:
        Policy(methods.find_method("bc", features).policy, features)
    assert "state -> observation.state" in error.value.hint


def test_every_command_says_what_is_missing(demos, tmp_path, capsys):
    data = open_dataset(demos)
    assert [f.severity for f in find_problems(data) if f.code == "no-observations"] == ["warning"]
    assert cli.main(["inspect", str(demos)]) == 0
    message = " ".join(capsys.readouterr().out.split())
    assert "cannot be trained on as it is" in message and "understudy train" not in message
    assert f"understudy view make {demos} --out VIEW --rename state=observation.state" in message
    assert cli.main(["train", "bc", str(demos), "--out", str(tmp_path / "run"), "--steps", "2"]) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "no policy can read" in error and "--rename state=observation.state" in error and "Traceback" not in error


def test_the_advice_leads_to_a_policy(demos, tmp_path, capsys):
    view = str(tmp_path / "view.json")
    assert cli.main(["view", "make", str(demos), "--out", view, "--rename", "state=observation.state"]) == 0
    assert cli.main(["train", "bc", view, "--out", str(tmp_path / "run"), "--steps", "2"]) == 0


def test_data_sets_and_episodes_say_what_they_are(demos):
    data = open_dataset(demos)
    assert repr(data) == f"Dataset(6 episodes, 120 steps, 10 steps a second, columns: {', '.join(data[0].steps)}; " \
                         f"{demos})"
    assert repr(Dataset([])) == "Dataset(0 episodes)"
    assert repr(Episode({"action": np.zeros((4, 2), np.float32)}, {"seed": 3})) == \
        "Episode(4 steps, columns: action float32 (2,); meta: seed=3)"
