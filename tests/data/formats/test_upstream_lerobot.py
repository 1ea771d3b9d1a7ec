"""lerobot itself reads what we write: values, images, video, tasks, statistics. Needs
`pip install --no-deps -r benchmarks/peers/lerobot.txt`, which `make test` does."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from fixtures.lerobot_files import CAMERA, LEROBOT, closed
from folders import BENCHMARKS, TESTS

from understudy.data.episode import Dataset, Episode
from understudy.data.formats import lerobot, open_dataset


def _odd() -> Dataset:
    """What is rare: two- and three-dimensional features, text, strings, choices, 64 bits, words that change, a step."""
    rng, episodes = np.random.default_rng(3), []
    for e, n in enumerate((4, 1, 7)):
        episodes.append(Episode({
            "observation.state": rng.normal(size=(n + 1, 5)), "observation.grid": rng.normal(size=(n, 2, 3)),
            "observation.cube": rng.integers(0, 9, (n, 2, 1, 2), np.int64), "observation.one": rng.normal(size=(n, 1)),
            "observation.say": rng.integers(0, 256, (n, 12), np.uint8), "action": rng.integers(0, 4, (n, 2)),
            "observation.note": np.array([f"ü {e} {t}" for t in range(n)]), "next.success": rng.random(n) < 0.5,
            "next.reward": rng.normal(size=n).astype(np.float32), "observation.on": rng.random((n, 3)) < 0.5,
            "task": np.array(["reach", "grasp, then lift"])[rng.integers(0, 2, n)]}, {"seed": e}))
    return Dataset(episodes, {"fps": 12.5})


def _write(folder: Path) -> None:
    lerobot.write(closed(images=True), folder / "png", images="png")
    lerobot.write(closed(images=True), folder / "video")
    for numbers in ([0], [1, 2], [3]):
        lerobot.append(folder / "appended", closed(images=True, numbers=numbers))
    lerobot.write(_odd(), folder / "odd")
    lerobot.append(folder / "odd", _odd()[1:])
    for name in ("images", "many_files", "video_many_files", "grid"):
        shutil.copytree(LEROBOT / "v3.0" / name, folder / name)
        lerobot.append(folder / name, open_dataset(folder / name)[1:])
    for name in ("images", "video"):
        shutil.copytree(LEROBOT / "v3.0_converted" / name, folder / f"converted_{name}")
        lerobot.append(folder / f"converted_{name}", open_dataset(folder / f"converted_{name}")[1:])
    for name in ("v2.1/video", "v2.0/images"):  # by way of us
        lerobot.write(open_dataset(LEROBOT / name), folder / name.replace("/", "_"))


NAMES = ["png", "video", "appended", "odd", "images", "many_files", "video_many_files", "grid",
         "converted_images", "converted_video", "v2.1_video", "v2.0_images"]


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """By name: our data set, and what lerobot read in the same folder."""
    folder = tmp_path_factory.mktemp("upstream")
    _write(folder)
    work = [str(p) for name in NAMES for p in (folder / name, folder / f"{name}.npz")]
    offline = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf"), "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    process = subprocess.run([sys.executable, str(TESTS / "upstream_lerobot.py"), *work],
                             capture_output=True, text=True, env={**os.environ, **offline}, timeout=500)
    assert process.returncode == 0, f"pip install --no-deps -r benchmarks/peers/lerobot.txt?\n{process.stderr[-3000:]}"
    return {name: (open_dataset(folder / name), dict(np.load(folder / f"{name}.npz"))) for name in NAMES}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_lerobot_reads_what_we_wrote(name, read):
    data, upstream_arrays = read[name]
    assert upstream_arrays["episodes"] == len(data) and float(upstream_arrays["fps"]) == data.fps
    assert upstream_arrays["first"].tolist() == list(np.cumsum([0, *[len(e) for e in data]])[:-1])
    compared = set()
    for e, (begin, episode) in enumerate(zip(upstream_arrays["first"], data, strict=True)):
        at = slice(begin, begin + len(episode))
        assert (upstream_arrays["episode_index"][at] == e).all()
        np.testing.assert_array_equal(upstream_arrays["frame_index"][at], np.arange(len(episode)))
        for column in episode.steps:
            ours, values = episode.steps[column][: len(episode)], upstream_arrays[column][at]
            if ours.dtype == np.float64:  # which lerobot turns into float32
                ours = ours.astype(np.float32)
            np.testing.assert_array_equal(values.reshape(ours.shape), ours, err_msg=f"episode {e}, {column}")
            compared.add(column)
    assert compared >= {"observation.state", "action", "task"} and (name != "odd" or len(compared) == 11)
    actions = np.concatenate([e.steps["action"] for e in data]).astype(np.float64)
    np.testing.assert_allclose(upstream_arrays["stats:mean:action"], actions.mean(0), 1e-6, 1e-9)


@pytest.mark.slow
def test_images_and_arrays_are_known_without_lerobot(read):
    """By the description in the file that `datasets` reads."""
    kinds = json.loads(str(read["png"][1]["described"]))
    assert kinds[CAMERA] == "Image" and kinds["observation.state"] == "List" and kinds["next.reward"] == "Value"
    kinds = json.loads(str(read["odd"][1]["described"]))
    assert kinds["observation.grid"] == "Array2D" and kinds["observation.cube"] == "Array3D"


@pytest.mark.slow
def test_the_frames_of_the_video_are_those_that_were_filmed(read):
    for name in ("png", "video", "appended", "v2.1_video"):
        data, upstream_arrays = read[name]
        for n, begin in zip(range(4), upstream_arrays["first"], strict=True):
            filmed = closed(images=True)[n].steps[CAMERA][:-1]
            decoded = upstream_arrays[CAMERA][begin: begin + len(filmed)].astype(int)
            off = np.abs(decoded - filmed).mean(axis=(1, 2, 3)).max()
            assert off == 0 if name == "png" else off < 4  # v2.1_video was compressed twice


@pytest.mark.slow
def test_the_unet_computes_what_lerobots_does():
    """With the same weights, module by module, in every layout; to 1e-5, the outputs being of size 1."""
    program = ("import json, sys; sys.path.insert(0, sys.argv[1]); import train_step as t; t.stand_in();"
               "print(json.dumps([t.equal(w, layout=x) for w in ((16,), (16, 32), (64, 128, 256))"
               "                  for x in ('conv', 'channels_last', 'gemm', 'auto')]))")
    process = subprocess.run([sys.executable, "-c", program, str(BENCHMARKS)],
                             capture_output=True, text=True, timeout=300)
    assert process.returncode == 0, f"pip install --no-deps -r benchmarks/peers/lerobot.txt?\n{process.stderr[-3000:]}"
    gaps = json.loads(process.stdout.splitlines()[-1])
    assert len(gaps) == 12 and max(gaps) < 1e-5
