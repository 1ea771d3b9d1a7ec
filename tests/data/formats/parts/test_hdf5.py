"""HDF5: files are recognized and read where they lie, and what is damaged is refused by name."""

import json
import shutil
from multiprocessing import get_context

import h5py
import numpy as np
import pytest
from fixtures.hdf5_files import everything, refused

from understudy import Window
from understudy.core import UserError
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import format_of, open_dataset, write_dataset


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("pattern, kind", [
    ("robomimic/*.hdf5", "robomimic"), ("robosuite/*.hdf5", "robomimic"), ("act_aloha/raw/*.hdf5", "act"),
    ("act_aloha/*w", "act"), ("d4rl/*.hdf5", "d4rl"), ("minari/closed/*-v*", "minari"),
    ("imitation/*rewards", "imitation"), ("imitation/discrete", "imitation"),
    ("imitation/upstream_testdata/*.npz", "imitation")])
def test_each_is_recognised(pattern, kind, files):
    paths = list(files.glob(pattern))
    assert paths and {format_of(path) for path in paths} == {kind}


# -- reading where it lies ------------------------------------------------------------------------------------------


SOURCES = ["robomimic/low_dim_image.hdf5", "act_aloha/raw", "minari/closed/dict-v0", "minari/closed/dict-arrow-v0",
           "d4rl/with_next.hdf5", "imitation/with_rewards"]


@pytest.mark.parametrize("name", SOURCES)
def test_nothing_is_read_before_it_is_asked_for(name, files, cache, monkeypatch):
    """Numbers come from the cache, once; where they do not fit there, from the file, and they are the same."""
    data = open_dataset(files / name)
    assert not cache.exists()
    numbers = [n for n, f in data.features().items() if f.kind in ("vector", "discrete")]
    action = next(n for n in numbers if n.startswith("action"))
    column = next(n for n in numbers if n.startswith("observation."))
    there = [{n: e.steps[n].copy() for n in numbers} for e in data]
    assert len([p for p in cache.iterdir() if not p.name.startswith(".")]) == 1
    whole, first, rows = data.column(column)
    for e, at, n in zip(data, first, rows, strict=True):
        np.testing.assert_array_equal(e.steps[column], whole[at: at + n])
    batch = Window(1, 3).windows(data, [column], action).batch(8, 0, 0)
    assert len(batch.action) == 8
    monkeypatch.setenv("UNDERSTUDY_CACHE", str(cache / "small"))
    monkeypatch.setenv("UNDERSTUDY_CACHE_GB", "1e-9")
    again = open_dataset(files / name)
    for e, columns in zip(again, there, strict=True):
        for n in numbers:
            np.testing.assert_array_equal(e.steps[n], columns[n])
            assert e.steps[n].dtype == columns[n].dtype
    with pytest.raises(UserError, match="UNDERSTUDY_CACHE_GB"):
        again.column(column)


@pytest.mark.parametrize("name", ["robomimic/low_dim_image.hdf5", "act_aloha/compressed", "minari/closed/dict-v0",
                                  "minari/closed/dict-arrow-v0"])
def test_cameras_are_decoded_once_and_in_pieces(name, files, monkeypatch):
    from understudy.data import sources
    monkeypatch.setattr(sources, "_PIECE", 3 * 64 * 64 * 3)  # three frames at a time
    plain, framed = open_dataset(files / name), open_dataset(files / name, image_size=64)
    camera = next(n for n, f in plain.features().items() if f.kind == "image")
    for one, other in zip(plain, framed, strict=True):
        np.testing.assert_array_equal(one.steps[camera], other.steps[camera])


def test_a_file_that_changes_is_read_anew(tmp_path):
    def data(value):
        return Dataset([Episode({"observation.state": np.full((3, 1), value), "action": np.zeros((3, 1))})])
    for value in (1.0, 2.0):
        (tmp_path / "a.hdf5").unlink(missing_ok=True)
        write_dataset(data(value), tmp_path / "a.hdf5", "robomimic")
        assert open_dataset(tmp_path / "a.hdf5")[0].steps["observation.state"][0] == value


# -- what is damaged or odd -----------------------------------------------------------------------------------------


def test_broken_fixtures(files):
    """Every one of these formats in broken/MANIFEST.json: refused with file and key, or the fault is there to see."""
    broken, names = files / "broken", json.loads((files / "broken/MANIFEST.json").read_text())
    file_names = {n for n in names if n.startswith(("robomimic", "act", "minari", "d4rl", "imitation"))}
    refused(broken / "robomimic_truncated.hdf5", "robomimic_truncated.hdf5", "truncated")
    refused(broken / "robomimic_lengths.hdf5", "data/demo_0/obs/object: it has 4 rows instead of 5, as actions has")
    refused(broken / "act_short_qpos.hdf5", "observations/qpos: it has 4 rows instead of 5, as action has")
    refused(broken / "d4rl_no_end.hdf5", "d4rl_no_end.hdf5: there is no array timeouts")
    data, episodes = everything(broken / "robomimic_nan_action.hdf5")
    assert np.argwhere(np.isnan(episodes[3][0]["action"])).tolist() == [[2, 0]]
    data, _ = everything(broken / "robomimic_total.hdf5")
    assert data.metadata["warnings"] == ["data, attribute total: 99, but the demos have 22 steps"]
    assert file_names == {"robomimic_truncated.hdf5", "robomimic_lengths.hdf5", "act_short_qpos.hdf5",
                          "d4rl_no_end.hdf5",
                          "robomimic_nan_action.hdf5", "robomimic_total.hdf5"}


def changed(files, tmp_path, name, change):
    path = tmp_path / "changed.hdf5"
    path.unlink(missing_ok=True)
    shutil.copyfile(files / name, path)
    with h5py.File(path, "a") as file:
        change(file)
    return path


def _replace(key, values, **options):
    def change(file):
        del file[key]
        file.create_dataset(key, data=values, **options)
    return change


def _attribute(key, name, value):
    def change(file):
        file[key].attrs[name] = value
    return change


def _without(key):
    def change(file):
        del file[key]
    return change


def _link(key, link):
    def change(file):
        file[key] = link
    return change


def _ragged(key, rows, dtype):
    def change(file):
        del file[key]
        array = file.create_dataset(key, (len(rows),), h5py.vlen_dtype(dtype))
        for i, row in enumerate(rows):
            array[i] = np.array(row, dtype)
    return change


def _virtual(file):
    layout = h5py.VirtualLayout((5, 2), float)
    layout[:] = h5py.VirtualSource("/etc/passwd", "x", (5, 2))
    del file["data/demo_0/actions"]
    file.create_virtual_dataset("data/demo_0/actions", layout)


ODD = {
    "compound": (_replace("data/demo_0/obs/object", np.zeros(5, [("a", "f4")])), "data/demo_0/obs/object",
                 "compound or opaque"),
    "references": (_replace("data/demo_0/states", [None] * 5, dtype=h5py.ref_dtype), "data/demo_0/states",
                   "references"),
    "opaque": (_replace("data/demo_0/rewards", np.zeros(5, "V8")), "data/demo_0/rewards", "compound or opaque"),
    "ragged": (_ragged("data/demo_1/rewards", [[1, 2, 3]], float), "data/demo_1/rewards", "objects of varying length"),
    "complex": (_replace("data/demo_1/actions", np.zeros((1, 2), complex)), "data/demo_1/actions", "complex128"),
    "scalar": (_replace("data/demo_1/actions", 3.0), "data/demo_1", "there is no array actions"),
    "width": (_replace("data/demo_1/actions", np.zeros((1, 3))), "demo_1/actions",
              "it is float64 (3,), but float64 (2,) in the first episode"),
    "nothing": (_replace("data/demo_1/obs/object", np.zeros((1, 0))), "demo_1/obs/object", "has no components"),
    "next": (_replace("data/demo_0/next_obs/object", np.zeros((5, 2))), "demo_0/next_obs/object", "it is float64 (2,)"),
    "no actions": (_without("data/demo_2/actions"), "data/demo_2", "there is no array actions"),
    "no observation": (_without("data/demo_2/obs/object"), "data/demo_2", "obs/object is missing, but other"),
    "num_samples": (_attribute("data/demo_2", "num_samples", 7), "data/demo_2", "num_samples is 7, but actions has"),
    "array for a number": (_attribute("data/demo_2", "num_samples", [4, 4]), "data/demo_2", "num_samples is"),
    "odd attribute": (_attribute("data/demo_2", "color", np.zeros(1, "V3")), "demo_2, attribute color",
                      "neither a number nor text"),
    "env_args": (_attribute("data", "env_args", 3), "data, attribute env_args", "this is not JSON text"),
    "flags": (_replace("data/demo_0/dones", [0, 0, 2, 0, 1]), "demo_0/dones, row 2", "a flag must be 0 or 1, not 2"),
    "mask": (_replace("mask/valid", [1, 2]), "mask/valid", "it must be names of demos"),
    "another file": (_link("data/demo_0/obs/more", h5py.ExternalLink("/etc/passwd", "x")), "demo_0/obs/more",
                     "a link to another file"),
    "round": (_link("data/demo_0/obs/more", h5py.SoftLink("/data/demo_0")), "data/demo_0", "nested without end"),
    "dangling": (_link("data/demo_0/obs/more", h5py.SoftLink("/nowhere")), "demo_0/obs/more", "damage"),
    "virtual": (_virtual, "demo_0/actions", "stored in another file"),
    "text": (_replace("data/demo_0/obs/object", np.array([b"\xff\xfe"] * 5, object), dtype=h5py.string_dtype()),
             "data/demo_0/obs/object"),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_hdf5_is_refused_by_file_and_key(name, files, tmp_path):
    change, *parts = ODD[name]
    refused(changed(files, tmp_path, "robomimic/low_dim_image.hdf5", change), "changed.hdf5", *parts)


def test_what_was_never_written_is_said(files, tmp_path):
    def change(file):
        del file["data/demo_0/states"]
        file["data/demo_0"].create_dataset("states", (5, 3), float, chunks=(2, 3))[:2] = 1
    path = changed(files, tmp_path, "robomimic/low_dim_image.hdf5", change)
    assert open_dataset(path).metadata["warnings"] == ["demo_0: parts of states were never written, and read as zeros"]


def test_next_observations_that_do_not_follow_are_said(files, tmp_path):
    def change(file):
        file["data/demo_0/next_obs/object"][3] += 1
    path = changed(files, tmp_path, "robomimic/low_dim_image.hdf5", change)
    assert "demo_0/next_obs/object is not the next row" in open_dataset(path).metadata["warnings"][0]

    def shifted(file):
        file["next_observations"][0] += 1
    path = changed(files, tmp_path, "d4rl/with_next.hdf5", shifted)
    assert "not the next rows of observations" in open_dataset(path).metadata["warnings"][0]


@pytest.mark.parametrize("name, change, parts", [
    ("act_aloha/raw/episode_0.hdf5", _without("action"), ["HDF5 file of an unknown kind, which holds observations",
      "-> say what its columns are: understudy convert"]),
    ("act_aloha/compressed/episode_0.hdf5", _replace("observations/images/cam_high", np.ones((5, 40), np.uint8)),
     ["observations/images/cam_high, row 0", "the value is not a PNG or JPEG image"]),
    ("d4rl/with_next.hdf5", _without("terminals"), ["there is no array terminals"]),
    ("d4rl/with_next.hdf5", _replace("terminals", np.full(22, 0.5)), ["terminals", "0 or 1, but it is (22,) with 0.5"]),
    ("d4rl/with_next.hdf5", _replace("infos/qpos", np.zeros(21)), ["infos/qpos: it has 21 rows instead of 22"]),
    ("d4rl/with_next.hdf5", _replace("next_observations", np.zeros((22, 2))),
     ["next_observations: the shape is"]),
    ("minari/closed/box-v0/data/main_data.hdf5", _replace("episode_2/observations", np.zeros((4, 3), np.float32)),
     ["episode_2, observations: it has 4 rows instead of 5, for 4 steps"]),
    ("minari/closed/box-v0/data/main_data.hdf5", _without("episode_2/actions"),
     ["episode_2, actions: actions is missing, but other episodes have it"]),
    ("minari/closed/box-v0/data/main_data.hdf5", _attribute("episode_2", "total_steps", 9),
     ["episode_2: total_steps is"]),
    ("minari/closed/image-v0/data/main_data.hdf5",
     _ragged("episode_1/observations", [[1] * 9, [2] * 8], np.uint8),
     ["episode_1/observations, row 0", "PNG or JPEG"])])
def test_others_that_are_odd(name, change, parts, files, tmp_path):
    refused(changed(files, tmp_path, name, change), "changed.hdf5", *parts)


@pytest.mark.parametrize("name", ["robomimic/low_dim_image.hdf5", "d4rl/with_next.hdf5",
                                  "act_aloha/compressed/episode_1.hdf5"])
def test_a_file_cut_anywhere_is_refused(name, files, tmp_path):
    whole = (files / name).read_bytes()
    for part in range(1, 12):
        (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) * part // 12])
        refused(tmp_path / "cut.hdf5", "cut.hdf5", "copy")


# -- their own readers ----------------------------------------------------------------------------------------------


def test_a_heap_with_zeros_in_it_is_refused_and_does_not_hang(tmp_path):
    """At an object of no size the HDF5 library looks for the next one for ever; in a process that can be ended."""
    path = tmp_path / "texts.hdf5"
    with h5py.File(path, "w") as file:
        for i in range(2):
            group = file.create_group(f"episode_{i}")
            group["rewards"], group["actions"] = np.zeros(3), np.ones((3, 2))
            group["observations/mission"] = ["go left", "stay", "go right", "stop"]
    assert minari_texts(path) == ["go left", "stay", "go right", "stop"]
    data = bytearray(path.read_bytes())
    heap = data.index(b"GCOL")
    for change in (bytes(16), (2).to_bytes(8, "little") + (2**64 - 16).to_bytes(8, "little")):
        path.write_bytes(data[:heap + 16] + change + data[heap + 32:])  # the first text's number and size
        child = get_context("fork").Process(target=_refused_heap, args=(path, heap))
        child.start()
        child.join(30)
        child.kill()
        assert child.exitcode == 0


def minari_texts(path):
    return [str(t) for t in open_dataset(path)[1].steps["observation.mission"]]


def _refused_heap(path, heap):
    with pytest.raises(UserError, match=f"texts.hdf5.*of .* bytes in the heap at byte {heap}"):
        minari_texts(path)
