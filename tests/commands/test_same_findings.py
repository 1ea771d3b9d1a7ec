"""train, choose, inspect and improve say the same of the same data, before anything is built from them."""

from dataclasses import replace

import numpy as np
import pytest

from understudy import choose as choose_module
from understudy.commands import improve as improve_command
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import open_dataset, write_dataset
from understudy.envs import make
from understudy.evaluate.rollout import rollout
from understudy.learn import train as train_module

STOP = "this is where something would be built"


def stop(*_, **__):
    raise UserError(STOP)


@pytest.fixture(scope="module")
def fork():
    env = make("fork", rows=8)
    return rollout(env.expert(), env, episodes=8, seed=1)


@pytest.fixture
def run(call, fork, tmp_path):
    write_dataset(fork, tmp_path / "first.npz")
    assert call("train", "bc", tmp_path / "first.npz", "--out", tmp_path / "base", "--steps", 1)[0] == 0
    return tmp_path / "base"


def with_metadata(data, episodes, **metadata):
    return Dataset([replace(e, metadata={**e.metadata, **metadata}) if i in episodes else e
                    for i, e in enumerate(data)])


def shifted(episode):
    return episode.replace({"observation.state": np.asarray(episode.steps["observation.state"], float) + 1.7e9})


def first_step(episode):
    return Episode({name: column[:1] for name, column in episode.steps.items()}, episode.metadata)


WARNINGS = {
    "copies of earlier episodes: 1 of 9; ": lambda data: Dataset([*data, data[0]]),
    "There is one episode to learn from: ": lambda data: data[:1],
    "No episode has more than one step, ": lambda data: Dataset([first_step(e) for e in data]),
    "Networks compute in float32, which rounds them": lambda data: Dataset([shifted(e) for e in data]),
    "1 of 8 episodes was interrupted while": lambda data: with_metadata(data, [2], interrupted=True),
}
ERROR = "every episode was interrupted while it was recorded, so none is left to train on"


@pytest.fixture
def commands(call, run, tmp_path, monkeypatch):
    """What each command prints of a data set before it builds something."""
    monkeypatch.setattr(train_module, "Policy", stop)
    monkeypatch.setattr(choose_module, "fit_method", stop)
    monkeypatch.setattr(improve_command._Command, "_make", stop)

    def printed(data):
        file = tmp_path / "data.npz"
        write_dataset(data, file)
        return {name: " ".join(" ".join(call(*words)[1:]).split()) for name, words in {
            "train": ("train", "bc", file, "--out", tmp_path / "run", "--val-fraction", 0),
            "choose": ("choose", file, "--env", "fork", "--methods", "bc", "mip", "--out", tmp_path / "choice"),
            "inspect": ("inspect", file),
            "improve": ("improve", run, "--with", "filtered", "--data", file, "--env", "fork", "--out",
                        tmp_path / "better")}.items()}
    return printed


@pytest.mark.parametrize("text", WARNINGS)
def test_all_commands_say_each_finding_once_and_in_the_same_words(commands, fork, text):
    for name, printed in commands(WARNINGS[text](fork)).items():
        assert printed.count(f"{text}") == 1 and "warning: " in printed.partition(text)[0], (name, printed)
        assert STOP in printed or name == "inspect", (name, printed)


def test_all_commands_refuse_the_same_data_in_the_same_words(commands, fork):
    for name, printed in commands(with_metadata(fork, range(8), interrupted=True)).items():
        assert ERROR in printed and STOP not in printed, (name, printed)


def test_columns_are_refused_before_camera_frames_are_decoded(call, tmp_path, monkeypatch):
    def episode(i):
        rng = np.random.default_rng(i)
        return Episode({"observation.images.top": rng.integers(0, 255, (6, 160, 160, 3), np.uint8),
                        "observation.state": rng.normal(size=(6, 2)).astype(np.float32),
                        "action": rng.integers(-1, 2, (6, 1))})
    write_dataset(Dataset([episode(i) for i in range(6)], {"fps": 10}), tmp_path / "data")
    assert open_dataset(tmp_path / "data").features()["observation.images.top"].kind == "image"
    for name in ("decode_frames", "frame_cost"):
        monkeypatch.setattr(f"understudy.data.formats.{name}", lambda *_: pytest.fail("frames were decoded"))
    status, _, err = call("train", "bc", tmp_path / "data", "--out", tmp_path / "run")
    assert status == 2 and "action has integers from -1 on, and integers are read as classes" in err
    assert not (tmp_path / "run" / "checkpoints").exists()
