"""HDF5 files that are written: what comes back, and what their own libraries read."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from fixtures.contract_data import demonstrations
from fixtures.hdf5_files import agrees
from folders import REPOSITORY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.core import UserError
from understudy.data.cache import disk_errors
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import conversion_losses, open_dataset, robomimic, write_dataset
from understudy.data.formats.parts import sidecar
from understudy.testing import check_format

HDF5 = ("robomimic", "act", "minari", "d4rl")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("kind", HDF5)
def test_a_disk_that_is_too_small_is_told_before_hdf5_ends_the_process(kind, tmp_path, monkeypatch):
    data, out = demonstrations(), tmp_path / "new" / "out"
    write_dataset(data, tmp_path / "out", kind)
    files = [p for p in (tmp_path / "out", *(tmp_path / "out").rglob("*")) if p.is_file()]
    size = sum(p.stat().st_size for p in files)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=size - 1))
    with pytest.raises(UserError, match=r"it may need .* MB, and the disk has .* MB free"):
        write_dataset(data, out, kind)
    assert not out.parent.exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=4 * size))
    write_dataset(data, out, kind)


def test_of_two_writers_the_first_keeps_its_file_and_its_side_file(tmp_path):
    path, data = tmp_path / "a.hdf5", demonstrations()
    holds = robomimic.capability(data)
    with pytest.raises(UserError, match="already a file or folder"):  # noqa: SIM117
        with sidecar.new_file_with_sidecar(path, data, holds) as part:
            part.write_text("late")
            write_dataset(data, path, "robomimic")
    assert open_dataset(path).fingerprint() == data.fingerprint()


def test_an_error_of_hdf5_about_a_full_disk_is_told_as_one(tmp_path):
    with pytest.raises(UserError, match="the disk is full"), disk_errors(tmp_path):
        raise ValueError("Unable to create group (file write failed: errno = 28, error message = 'No space left')")
    with pytest.raises(ValueError, match="other"), disk_errors(tmp_path):
        raise ValueError("other")


# -- writing --------------------------------------------------------------------------------------------------------


NAMES = st.sampled_from([f"observation.{k}" for k in ("state", "qpos", "a.b", "images.x", "infos", "é")]
                        + ["count", "obs", "next.done", "next.terminated", "next.truncated", "next.reward", "states",
                           "infos.x", "timestamp", "observations", "id", "."])
KINDS = st.sampled_from([("float32", (2,)), ("float64", ()), ("int64", ()), ("uint8", (5,)), ("bool", ()),
                         ("uint8", (8, 9, 3)), ("int16", (2, 2)), ("float32", (1,)), ("U", ())])
TEXTS = st.sampled_from(["", "a", "öffne", "a b", "x\0y", "ﬀ"])
FACTS = st.dictionaries(st.sampled_from(["seed", "demo", "masks", "ep_meta", "fps", "sim", "total_steps", "a/b", "x"]),
                        st.one_of(st.integers(-2**70, 2**70), st.booleans(), st.floats(allow_nan=False), TEXTS,
                                  st.none(), st.just(["train"]), st.just({"lang": "x"}), st.just("demo_7")), max_size=3)


@st.composite
def any_data(draw):
    rng = np.random.default_rng(draw(st.integers(0, 9)))
    columns = {"observation.state": ("float32", (3,)),
               "action": draw(st.sampled_from([("float32", (2,)), ("int64", ())])),
               **draw(st.dictionaries(NAMES, KINDS, max_size=4))}
    if columns["observation.state"][0] in ("U", "bool"):  # which no observation may be alone: see the test below
        columns["observation.x"] = ("float32", (3,))
    if draw(st.booleans()):
        columns["task"] = ("U", ())
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    more = {n: draw(st.booleans()) for n in columns}
    episodes = []
    for n in lengths:
        steps = {}
        for name, (dtype, shape) in columns.items():
            rows = n + (more[name] and name != "action" and draw(st.booleans()))
            if dtype == "U":
                values = np.empty(rows, object)
                values[:] = [draw(TEXTS)] * rows if draw(st.booleans()) else [draw(TEXTS) for _ in range(rows)]
            elif dtype == "bool":
                values = rng.random((rows, *shape)) < 0.3
            else:
                values = (rng.normal(size=(rows, *shape)) * 50 + 50).astype(dtype)
            steps[name] = values
        episodes.append(Episode(steps, draw(FACTS), n))
    facts = {"fps": draw(st.sampled_from([None, 10.0, 29.97])), "robot_type": draw(st.sampled_from([None, "arm"]))}
    return Dataset(episodes, facts)


@pytest.mark.slow
@pytest.mark.parametrize("to", HDF5)
@given(data=any_data())
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
def test_anything_comes_back(to, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("any")
    check_format(to, data, folder)
    shutil.rmtree(folder)


@pytest.mark.parametrize("to", HDF5)
def test_what_was_not_recorded_is_not_read(to, tmp_path):
    """Formats demand more than the data have: rewards, ends, velocities. That is filled for others, not for us."""
    data = Dataset([Episode({"observation.state": np.ones((n, 2)), "action": np.ones((n, 1))}) for n in (3, 2)])
    write_dataset(data, tmp_path / "d", to)
    assert not conversion_losses(data, to) and open_dataset(tmp_path / "d").fingerprint() == data.fingerprint()


@pytest.mark.parametrize("to", HDF5)
def test_no_action_and_nothing_seen_cannot_be_written(to, tmp_path):
    only = Dataset([Episode({"count": np.zeros(3), "task": np.array(["a"] * 3)})])
    with pytest.raises(UserError, match="needs .*action.*; there are count, task"):
        write_dataset(only, tmp_path / "d", to)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("to", ["robomimic", "d4rl"])
def test_a_side_file_of_an_earlier_file_is_neither_taken_for_its_own_nor_removed(to, tmp_path):
    data = demonstrations(cameras=False)
    write_dataset(data, tmp_path / "a.hdf5", to)
    kept = sidecar.sidecar_path(tmp_path / "a.hdf5").read_bytes()
    (tmp_path / "a.hdf5").unlink()
    plain = Dataset([Episode({"observation.state": np.ones((3, 2)), "action": np.ones((3, 1))})])
    with pytest.raises(UserError, match="belongs to another data set of the same name"):
        write_dataset(plain, tmp_path / "a.hdf5", to)
    assert sidecar.sidecar_path(tmp_path / "a.hdf5").read_bytes() == kept and not (tmp_path / "a.hdf5").exists()
    write_dataset(plain, tmp_path / "b.hdf5", to)
    with pytest.raises(UserError, match="there is already a file or folder"):
        write_dataset(data, tmp_path / "b.hdf5", to)
    assert open_dataset(tmp_path / "b.hdf5").fingerprint() == plain.fingerprint()


@pytest.mark.parametrize("to", HDF5)
def test_a_writer_that_fails_leaves_nothing(to, tmp_path):
    data = demonstrations(cameras=False)
    bad = data.map(lambda e: e.replace({"action": 1 / 0}) if e.metadata["seed"] == 3 else e)
    with pytest.raises(ZeroDivisionError):
        write_dataset(bad, tmp_path / "d", to)
    assert [p.name for p in tmp_path.iterdir() if p.name != "cache"] == []


# -- their own readers ----------------------------------------------------------------------------------------------


def upstream(name, path, shared):
    python = REPOSITORY / f".venv-peers/{name}/bin/python"
    if not python.exists():
        pytest.skip("no .venv-peers")
    process = subprocess.run([python, shared / "tools/check_with_upstream.py", name, path], capture_output=True,
                             text=True,
                             env={"OMP_NUM_THREADS": "1", "HOME": str(path.parent), "PATH": "/usr/bin:/bin"})
    assert process.returncode == 0, process.stderr[-2000:]
    return json.loads(process.stdout)


@pytest.mark.slow
def test_robomimic_itself_reads_what_is_written(shared, tmp_path):
    data = demonstrations()
    write_dataset(data, tmp_path / "a.hdf5", "robomimic")
    episodes = upstream("robomimic", tmp_path / "a.hdf5", shared)["episodes"]
    for e, (one, read) in enumerate(zip(data, episodes, strict=True)):
        n, c = len(one), one.steps
        agrees(c["action"], read["actions"], "actions")
        agrees(c["next.reward"], read["rewards"], "rewards")
        agrees(c["next.terminated"] | c["next.truncated"], read["dones"], "dones")
        agrees(c["observation.state"][:n], read["obs/state"], f"obs/state of {e}")
        agrees(c["observation.state"][1:], read["next_obs/state"], f"next_obs/state of {e}")
        agrees(c["observation.images.front"], read["obs/front"], "front")


@pytest.mark.slow
def test_minari_itself_reads_what_is_written(shared, tmp_path):
    data = demonstrations()
    write_dataset(data, tmp_path / "written-v3", "minari")
    read = upstream("minari", tmp_path / "written-v3", shared)
    assert read["extra"] == {"total_steps": 22, "id": "written-v3"}
    for one, upstream_episode in zip(data, read["episodes"], strict=True):
        c = one.steps
        agrees(c["observation.state"], upstream_episode["observations/state"], "state")
        agrees(c["action"], upstream_episode["actions"], "actions")
        agrees(c["next.reward"], upstream_episode["rewards"], "rewards")
        agrees(c["next.terminated"], upstream_episode["terminations"], "terminations")
        agrees(c["next.truncated"], upstream_episode["truncations"], "truncations")
        images = np.concatenate([c["observation.images.front"], c["observation.images.front"][-1:]])
        agrees(images, upstream_episode["observations/front"], "front")
