"""Trajectories of imitation."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from fixtures import closed_form
from fixtures.hdf5_files import agrees, everything, outcomes, refused, state


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", ["with_rewards", "without_rewards", "discrete"])
def test_imitation(name, files, expected):
    data, episodes = everything(files / "imitation" / name)
    assert data.metadata["format"] == "imitation" and len(data) == 4
    for e, ((columns, _), trajectory) in enumerate(zip(episodes, expected(f"imitation_{name}"), strict=True)):
        n, (reward, terminated, truncated) = closed_form.LENGTHS[e], outcomes(e)
        np.testing.assert_array_equal(columns["observation.state"], state(e, n + 1))
        np.testing.assert_array_equal(columns["next.terminated"], terminated)
        np.testing.assert_array_equal(columns["next.truncated"], truncated)
        action = (e + np.arange(n)) % 3 if name == "discrete" else [closed_form.action(e, t) for t in range(n)]
        np.testing.assert_array_equal(columns["action"], action)
        assert columns["observation.state"].dtype == np.float32  # upstream makes it float64
        assert json.loads(columns["infos"][n - 1]) == {"t": n - 1, "task": closed_form.task(e)}
        agrees(columns["observation.state"], trajectory["obs"], "obs")
        agrees(columns["action"], trajectory["acts"], "acts")
        assert trajectory["terminal"] == terminated[-1] and ("next.reward" in columns) == (name != "without_rewards")
        if "rews" in trajectory:
            np.testing.assert_array_equal(columns["next.reward"], reward)
            agrees(columns["next.reward"], trajectory["rews"], "rews")


@pytest.mark.parametrize("name, episodes, steps", [("cartpole_0_final", 57, 26964), ("pendulum_0_final", 56, 11200)])
def test_imitation_of_old(name, episodes, steps, files):
    path = files / f"imitation/upstream_testdata/{name}.npz"
    data, read = everything(path)
    assert (len(data), data.steps) == (episodes, steps)
    assert data.metadata["warnings"] == ["infos: a pickle, which could run any code, is left out"]
    with np.load(path) as arrays:  # split as the library does it
        for key, name in (("acts", "action"), ("rews", "next.reward")):
            for part, (columns, _) in zip(np.split(arrays[key], arrays["indices"]), read, strict=True):
                np.testing.assert_array_equal(part, columns[name])
        cut = arrays["indices"] + np.arange(len(arrays["indices"])) + 1
        for part, (columns, _) in zip(np.split(arrays["obs"], cut), read, strict=True):
            np.testing.assert_array_equal(part, columns["observation.state"])
        assert [c["next.terminated"][-1] for c, _ in read] == arrays["terminal"].tolist()


def test_imitation_that_does_not_fit(files, tmp_path):
    shutil.copytree(files / "imitation/with_rewards", tmp_path / "d")
    file = tmp_path / "d/data-00000-of-00001.arrow"
    with pa.ipc.open_stream(file.read_bytes()) as stream:
        table = stream.read_all()

    def write(table):
        with pa.OSFile(str(file), "wb") as out, pa.ipc.new_stream(out, table.schema) as stream:
            stream.write_table(table)
    obs = table.column("obs").to_pylist()
    obs[2] = obs[2][:-1]
    write(table.set_column(table.column_names.index("obs"), "obs", pa.array(obs, table.schema.field("obs").type)))
    refused(tmp_path / "d", "it has 4 rows instead of 5, for 4 actions", "obs, trajectory 2")
    obs[2] = obs[2] + [[1.0]]
    write(table.set_column(table.column_names.index("obs"), "obs", pa.array(obs, table.schema.field("obs").type)))
    refused(tmp_path / "d", "the rows have from 1 to 3 values", "obs, trajectory 2")
    write(table.drop_columns(["terminal"]))
    refused(tmp_path / "d", "there is no column terminal; there are obs, acts, infos, rews")
    (tmp_path / "d/state.json").write_text(json.dumps({"_data_files": [{"filename": "../../secret.arrow"}]}))
    refused(tmp_path / "d", "these are not different names of files in this folder", "state.json, _data_files")
