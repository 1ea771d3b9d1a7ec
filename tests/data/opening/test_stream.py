"""StepwisePlanner: what an epoch holds, that a batch is a function of its arguments, memory that stays, shards that
are odd."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fixtures import closed_form
from fixtures.lerobot_files import CAMERA, LEROBOT, closed
from hypothesis import given, settings
from hypothesis import strategies as st

from understudy import Policy, PolicyConfig, Window, fit
from understudy.cli import main
from understudy.core import DataWarning, UserError
from understudy.data.formats import lerobot, open_dataset, remote
from understudy.data.opening.stream import ShardStream, _expand_braces
from understudy.data.opening.views import write_view
from understudy.data.sources import batch_ranges
from understudy.data.window import Goal
from understudy.heads.likelihood.regression import Regression
from understudy.learn.behavior_cloning import BehaviorCloning

WINDOW = Window(n_obs_steps=2, horizon=3)


def over(data):
    return WINDOW.windows(data, ("observation.state",), "action", extra=("number",))


def episode(e, n):
    """Each step says which it is: state and action are its number, counted over all episodes."""
    rows = np.arange(n) + 1000 * e
    return {"observation.state": np.stack([np.append(rows, rows[-1] + 1)] * 2, 1).astype(np.float32),
            "action": rows[:, None].astype(np.float32), "number": np.full(n, e)}


def tar(path, episodes, kind="npz"):
    with tarfile.open(path, "w") as archive:
        def add(name, write):
            out = io.BytesIO()
            write(out)
            info = tarfile.TarInfo(name)
            info.size = out.tell()
            archive.addfile(info, io.BytesIO(out.getvalue()))
        for e, columns in episodes:
            if kind == "npz":
                add(f"set/ep{e:04d}.npz", lambda out, c=columns: np.savez(out, **c))
            else:
                for name, column in columns.items():
                    add(f"set/ep{e:04d}.{name}.npy", lambda out, c=column: np.save(out, c))
            add(f"set/ep{e:04d}.json", lambda out, e=e: out.write(json.dumps({"number": e}).encode()))
    return path


def parquet(path, episodes, rows=10**6):
    table = {"observation.state": [], "action": [], "number": [], "episode_index": [], "frame_index": []}
    for e, c in episodes:
        n = len(c["action"])
        table["observation.state"] += c["observation.state"][:n].tolist()
        table["action"] += c["action"].tolist()
        table["number"] += c["number"].tolist()
        table["episode_index"] += [e] * n
        table["frame_index"] += list(range(n))
    pq.write_table(pa.table(table), path, row_group_size=rows)
    return path


LENGTHS = [[7, 1, 12], [5], [3, 3, 3, 3, 3], [20, 2]]


def shards(folder, kind):
    number, out = 0, []
    for i, lengths in enumerate(LENGTHS):
        some = [(number + j, episode(number + j, n)) for j, n in enumerate(lengths)]
        number += len(lengths)
        if kind == "parquet":
            out.append(parquet(folder / f"s{i:03d}.parquet", some, rows=4))
        else:
            out.append(tar(folder / f"s{i:03d}.tar", some, kind))
    return out


@pytest.mark.parametrize("kind", ["npz", "npy", "parquet"])
def test_an_epoch_has_each_window_once_and_as_it_is(kind, tmp_path):
    shards(tmp_path, kind)
    stream = ShardStream(tmp_path, buffer_size=24)
    assert (len(stream), stream.steps) == (11, 62)
    whole = over(stream.first_episodes(100))  # all of them, in memory
    windows, indices = stream.windows(over), []
    assert len(windows) == len(whole) == 62
    steps = sum(windows._batches_per_buffer(0, 1, 0))
    assert steps == 62
    for step in range(steps):
        batch = windows.batch(1, step)
        want = whole.gather(batch.extra["index"][:, 0].numpy())
        for name in ("observation.state",):
            assert torch.equal(batch.obs[name], want.obs[name])
        assert torch.equal(batch.action, want.action) and torch.equal(batch.mask, want.mask)
        assert torch.equal(batch.extra["number"], want.extra["number"])
        indices.append(int(batch.extra["index"]))
    assert sorted(indices) == list(range(62)) and indices != sorted(indices)
    second = [int(windows.batch(1, step).extra["index"]) for step in range(62, 124)]
    assert sorted(second) == list(range(62)) and second != indices


def test_a_batch_is_a_function_of_its_arguments(tmp_path):
    """Whatever was drawn before, by whomever: so a stopped run goes on by its step alone."""
    shards(tmp_path, "npz")
    windows = ShardStream(tmp_path, buffer_size=24).windows(over)
    straight = [windows.batch(6, step, seed=3) for step in range(30)]
    fresh = ShardStream(tmp_path, buffer_size=24).windows(over)
    for step in (29, 0, 17, 16, 5):
        again = fresh.batch(6, step, seed=3)
        assert torch.equal(again.action, straight[step].action)
        assert torch.equal(again.extra["index"], straight[step].extra["index"])
        part = fresh.batch(6, step, seed=3, rows=slice(2, 4))  # the share of one process
        assert torch.equal(part.action, straight[step].action[2:4])
        assert torch.equal(part.extra["index"], straight[step].extra["index"][2:4])
    assert not torch.equal(fresh.batch(6, 0, seed=4).action, straight[0].action)
    goals = Window(goals=(Goal("observation.state"),))
    windows = ShardStream(tmp_path, buffer_size=24).windows(lambda d: goals.windows(d, ("observation.goal",), "action"))
    one, two = windows.batch(6, 3), windows.batch(6, 3, rows=slice(1, 3))
    assert torch.equal(one.obs["observation.goal"][1:3], two.obs["observation.goal"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 40), min_size=1, max_size=30), st.integers(1, 60), st.integers(1, 20),
       st.integers(0, 3))
def test_any_lengths_any_buffer_any_size(lengths, buffer, size, seed):
    """Steps lie in epochs without holes; a buffer is never exceeded but by a single piece."""
    from understudy.data.opening.stream import StreamWindows, _ShardChunk

    class Fake:
        chunks = [_ShardChunk(0, tuple(range(first, stop)), sum(lengths[first:stop]), 0)
                  for first, stop in batch_ranges(np.array(lengths), max(1, buffer // 4))]
    stream = Fake()
    stream.buffer_size = buffer
    windows = StreamWindows(stream, None)
    assert sorted(i for g in windows._buffers(1, seed) for i in g) == list(range(len(stream.chunks)))
    for group in windows._buffers(0, seed):
        assert len(group) == 1 or sum(stream.chunks[i].steps for i in group) <= buffer
    places = [windows._locate_step(size, step, seed) for step in range(200)]
    expected = [(e, g, b) for e in range(200) for g, n in enumerate(windows._batches_per_buffer(e, size, seed))
                for b in range(n)][:200]
    assert places == expected


def test_what_others_wrote(tmp_path):
    """The data files of LeRobot v3.0 as they are, images among them."""
    stream = ShardStream(LEROBOT / "v3.0/images/data", buffer_size=10)
    data = open_dataset(LEROBOT / "v3.0/images")
    assert len(stream) == 4
    for e, episode in enumerate(stream.first_episodes(10)):
        want = closed_form.episode(e)
        assert np.array_equal(episode.steps["observation.state"], want["state"])
        assert np.array_equal(episode.steps["observation.images.top"], want["image"])
        assert np.array_equal(episode.steps["next.reward"], data[e].steps["next.reward"])
    grid = ShardStream(LEROBOT / "v3.0/grid/data").first_episodes(3)
    assert grid[0].steps["observation.grid"].shape == (5, 2, 3)


def test_from_an_address(tmp_path):
    fsspec = pytest.importorskip("fsspec", reason="extra cloud not installed")
    fs = fsspec.filesystem("memory")
    for file in shards(tmp_path, "npz"):
        fs.pipe_file(f"/shards/{file.name}", file.read_bytes())
    here, there = (ShardStream(at, buffer_size=24).windows(over) for at in (tmp_path, "memory://shards"))
    for step in range(5):
        assert torch.equal(here.batch(4, step).action, there.batch(4, step).action)
    listed = ShardStream("memory://shards/s{000..002}.tar", buffer_size=24)
    assert len(listed) == 9 and not (remote.cache.folder() / "fetched").exists()


def test_names_with_numbers():
    assert _expand_braces("a-{008..011}-{0..1}.tar") == [f"a-{i:03d}-{j}.tar" for i in range(8, 12) for j in range(2)]
    assert _expand_braces("plain") == ["plain"]


def test_training_from_a_stream_is_resumable(tmp_path):
    """The same weights, whether a run was stopped on the way or not."""
    shards(tmp_path, "npz")

    def run(*stops):
        stream = ShardStream(tmp_path, buffer_size=24)
        some = stream.first_episodes(4)
        torch.manual_seed(0)
        policy = Policy(PolicyConfig(Regression(), window=Window(horizon=2)), some.features()).fit_statistics(some)
        learner = BehaviorCloning(steps=6).build(policy, 0, 6, some)
        start = 0
        for stop in stops:
            windows = ShardStream(tmp_path, buffer_size=24).windows(policy.windows)
            fit(learner, lambda step, w=windows: w.batch(4, step, seed=1), steps=stop, start=start)
            start = stop
        return [p.detach().clone() for p in policy.parameters()]
    for one, other in zip(run(6), run(2, 5, 6), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="RssAnon is Linux's")
def test_memory_stays(tmp_path):
    """The growth of anonymous memory, over an epoch of 8 and of 60 MB, with a buffer of about 2 MB."""
    program = """
import sys, re
import numpy as np
from understudy.data.opening.stream import ShardStream
from understudy.data.window import Window
def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
stream = ShardStream(sys.argv[1], buffer_size=2000)
windows = stream.windows(lambda d: Window().windows(d, ("observation.state",), "action"))
windows.batch(64, 0)
before = most = anonymous()
for step in range(0, stream.steps // 64, 15):
    windows.batch(64, step)
    most = max(most, anonymous())
print(most - before)
"""
    wide = {"observation.state": np.random.default_rng(0).random((400, 128)), "action": np.zeros((400, 1))}
    grown = []
    for shards_ in (2, 15):
        folder = tmp_path / str(shards_)
        folder.mkdir()
        for i in range(shards_):
            tar(folder / f"{i:03d}.tar", [(e, wide) for e in range(10)])
        process = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True,
                                 timeout=300)
        assert process.returncode == 0, process.stderr
        grown.append(float(process.stdout))
    assert max(grown) < 24, grown  # MB


def test_shards_that_are_odd(tmp_path):
    good = shards(tmp_path, "npz")[0]
    (tmp_path / "cut.tar").write_bytes(good.read_bytes()[:1500])
    parquet(tmp_path / "p.parquet", [(0, episode(0, 5)), (1, episode(1, 5))])
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-9])
    parquet(tmp_path / "apart.parquet", [(0, episode(0, 5)), (1, episode(1, 5)), (0, episode(0, 5))])
    pq.write_table(pa.table({"action": [1.0]}), tmp_path / "no.parquet")
    tar(tmp_path / "no.tar", [(0, {"observation.state": np.zeros(3)})])
    tar(tmp_path / "rows.tar", [(0, {"observation.state": np.zeros(9), "action": np.zeros(3)})])
    tar(tmp_path / "pickle.tar", [(0, {"action": np.array([{}], object)})], "npy")
    np.savez(tmp_path / "whole.npz", action=np.zeros(3))
    (tmp_path / "empty").mkdir()
    for name, match in (("cut.tar", "shard cannot be read|at least one"), ("cut.parquet", "shard cannot be read"),
                        ("apart.parquet", "rows of an episode do not follow each other"),
                        ("no.parquet", "no column episode_index, only action"),
                        ("no.tar", "no column 'action', only observation.state"),
                        ("whole.npz", "a shard is a .tar or a .parquet file(.|\n)*leave out the buffer size"),
                        ("empty", "no shards that end in .tar or .parquet"),
                        ("none.tar", "no shard and no folder"), ("rows.tar", "there are 9 rows, but action has 3"),
                        ("pickle.tar", "the shard cannot be read.*allow_pickle")):
        with pytest.raises(UserError, match=match):
            ShardStream(tmp_path / name).first_episodes(1)
    with pytest.raises(UserError, match="buffer needs at least one step"):
        ShardStream(good, buffer_size=0)


def test_a_view_is_no_shard(tmp_path, demos):
    lerobot.write(demos[:5], tmp_path / "demos")
    write_view(tmp_path / "few", tmp_path / "demos")
    with pytest.raises(UserError, match="few: a view is not a shard") as refusal:
        ShardStream(tmp_path / "few")
    assert f"understudy view materialize {tmp_path / 'few'}" in str(refusal.value)


def test_a_recorded_data_set_is_a_stream(tmp_path, demos):
    lerobot.write(demos[:5], tmp_path / "demos")
    assert ShardStream(tmp_path / "demos").shards[0].at == ShardStream(tmp_path / "demos/data").shards[0].at
    stream = ShardStream(tmp_path / "demos/data", buffer_size=50)
    for one, other in zip(stream.first_episodes(5), demos[:5], strict=True):
        assert np.array_equal(one.steps["action"], other.steps["action"])


def test_the_stream_of_a_lerobot_data_set_has_its_tasks_and_says_that_it_has_no_videos(tmp_path):
    lerobot.write(closed(images=True), tmp_path / "demos", images="png")
    stream = ShardStream(tmp_path / "demos" / "data")
    assert [e.steps["task"].tolist() for e in stream.first_episodes(4)] == [e.steps["task"].tolist() for e in closed()]
    lerobot.write(closed(images=True), tmp_path / "film", images="h264")
    with pytest.warns(DataWarning, match=f"a stream has no videos, so there is no {CAMERA}"):
        ShardStream(tmp_path / "film")


# -- training on one ------------------------------------------------------------------------------------------------


def test_what_is_held_out_is_never_drawn(tmp_path):
    stream = ShardStream(shards(tmp_path, "npz")[0].parent, buffer_size=60)
    held_out = {0, 3, len(stream) - 1}
    remaining = stream.exclude(held_out)
    lengths = np.concatenate([s.lengths for s in stream.shards])
    assert remaining.steps == stream.steps - sum(lengths[list(held_out)]) and stream.steps == lengths.sum()
    windows = remaining.windows(over)
    drawn = np.concatenate([windows.batch(1, step).extra["index"][:, 0].numpy() for step in range(remaining.steps)])
    begins = np.cumsum(lengths) - lengths
    kept = np.concatenate([np.arange(begins[e], begins[e] + n) for e, n in enumerate(lengths) if e not in held_out])
    assert sorted(drawn) == sorted(kept)


def test_a_run_on_a_stream_goes_on_as_if_nothing_had_happened(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for i in range(3):
        tar(tmp_path / f"demos-{i:03d}.tar", [(10 * i + e, {
            "observation.state": rng.random((12, 2)).astype(np.float32),
            "action": rng.random((12, 1)).astype(np.float32)}) for e in range(10)])

    def command(out, steps=12, *more):
        return [
            "train",
            "bc",
            str(tmp_path / "demos-{000..002}.tar"),
            "--out",
            str(tmp_path / out),
            "--buffer-size",
            "120",
            "--steps",
            str(steps),
            "--save-freq",
            "4",
            *more,
        ]
    assert main(command("whole")) == 0
    errors = capsys.readouterr().err
    assert "30 episodes, 360 steps in 3 shards" in errors and "error on held-out episodes" in errors
    provenance = json.loads((tmp_path / "whole/checkpoints/000012/provenance.json").read_text())
    assert provenance["data"]["episodes"] == 30 and len(provenance["held_out"]) == 3
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut/checkpoints/000012")  # as after a power cut
    weights = [tmp_path / run / "checkpoints/000012/weights.safetensors" for run in ("whole", "cut")]
    assert main(command("cut")) == 0
    assert weights[0].read_bytes() == weights[1].read_bytes()
    os.rename(tmp_path / "demos-002.tar", tmp_path / "other.tar")
    tar(tmp_path / "demos-002.tar", [(0, {"observation.state": np.zeros((3, 2)), "action": np.zeros((3, 1))})])
    assert main(command("cut")) == 2
    assert "started with other settings: data" in capsys.readouterr().err


@pytest.mark.parametrize("more, said", [
    (["--buffer-size", "0"], "--buffer-size: must be at least 1, but is 0\n  -> such as --buffer-size"),
    (["--buffer-size", "50", "--image-size", "32"], "--image-size: cannot be combined with --buffer-size")])
def test_options_that_do_not_go_with_a_stream(tmp_path, capsys, more, said):
    tar(tmp_path / "a.tar", [(0, {"observation.state": np.zeros((5, 2)), "action": np.zeros((5, 1))})])
    assert main(["train", "bc", str(tmp_path), "--out", str(tmp_path / "run"), *more]) == 2
    assert said in capsys.readouterr().err
    assert main(["train", "knn", str(tmp_path), "--out", str(tmp_path / "run"), "--buffer-size", "50"]) == 2
    assert "with a method that keeps all of its data" in capsys.readouterr().err
