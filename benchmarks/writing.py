"""Writing episodes with one 96x96 camera, and what is left of them after SIGKILL: python benchmarks/writing.py

Our side is `lerobot.append`, one episode after another, each on the disk (fsync) before the next begins; the peer is
lerobot's own `add_frame`, `save_episode` and, at the end, `finalize`. Both get the same frames from memory and write
LeRobot v3.0 with a key frame every second frame at crf 30; for AV1 lerobot chooses SVT's preset 12, and ours stays at
its default 8, which is slower and nearer to what was seen (the notes say how near, and how large the files are).
Then a process of each side is killed when its last episode is written and before it closes, and another one counts the
episodes whose every frame and number can be read.
"""

from __future__ import annotations

import measure

measure.one_thread()

import os  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

from understudy.core import UserError  # noqa: E402
from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import lerobot as files  # noqa: E402
from understudy.data.formats import open_dataset  # noqa: E402

EPISODES, STEPS, SIDE, FPS = 5, 100, 96, 10
CAMERA = "observation.images.front"
GOALS = {"av1": 1.7, "h264": 2.7}
ENCODERS = {"av1": "libsvtav1", "h264": "h264"}  # lerobot's names
FEATURES = {CAMERA: {"dtype": "video", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channels"]},
            "observation.state": {"dtype": "float32", "shape": (7,), "names": None},
            "action": {"dtype": "float32", "shape": (7,), "names": None}}


def episode(number: int) -> Episode:
    """A disc on its way over a gradient, with a little noise."""
    rng = np.random.default_rng(number)
    y, x = np.mgrid[:SIDE, :SIDE]
    t = np.arange(STEPS)[:, None, None]
    disc = (x - SIDE / 2 - 30 * np.cos(t / 12 + number)) ** 2 + (y - SIDE / 2 - 30 * np.sin(t / 9 + number)) ** 2 < 100
    scene = np.where(disc[..., None], (220, 40, 40), np.stack([2 * x, 2 * y, x + y], -1))
    return Episode({CAMERA: (scene + rng.integers(0, 8, scene.shape)).astype(np.uint8),
                    "observation.state": rng.normal(size=(STEPS, 7)).astype(np.float32),
                    "action": rng.normal(size=(STEPS, 7)).astype(np.float32), "task": np.full(STEPS, "push")})


SHOWN = [episode(number) for number in range(EPISODES)]


def write_ours(folder: Path, codec: str) -> None:
    for episode in SHOWN:
        files.append(folder, Dataset([episode], {"fps": FPS}), images=codec)


def write_theirs(folder: Path, codec: str):
    """The data set, not finalized."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data = LeRobotDataset.create("none/none", FPS, FEATURES, root=folder, vcodec=ENCODERS[codec], video_backend="pyav")
    for episode in SHOWN:
        for t in range(STEPS):
            data.add_frame({**{name: episode.steps[name][t] for name in FEATURES}, "task": "push"})
        data.save_episode()
    return data


def stand_in() -> None:
    sys.path.insert(0, str(measure.HERE.parent / "tests"))
    import upstream_lerobot

    upstream_lerobot.stand_in()


def readable_by_us(folder: Path) -> int:
    try:
        data = open_dataset(folder)
        return sum(_same(lambda name, e=e, episode=episode: e.steps[name], episode)
                   for e, episode in zip(data, SHOWN, strict=False))
    except UserError:
        return 0


def readable_by_lerobot(folder: Path) -> int:
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    try:
        data = LeRobotDataset("none/none", root=folder, video_backend="pyav")
        count = 0
        for e in range(data.num_episodes):
            first = int(data.metadata.episodes[e]["dataset_from_index"])
            rows = [data[first + t] for t in range(STEPS)]
            count += _same(lambda name, rows=rows: np.stack([
                (r[name] * 255).permute(1, 2, 0) if name == CAMERA else r[name] for r in rows]), SHOWN[e])
        return count
    except Exception as error:  # what it cannot read it looks for on the hub, which raises as it may
        print(f"lerobot cannot open what was left: {type(error).__name__}", file=sys.stderr)
        return 0


def _same(column, episode: Episode) -> bool:
    numbers = all(np.array_equal(column(name), episode.steps[name]) for name in ("observation.state", "action"))
    return bool(numbers and np.abs(np.asarray(column(CAMERA)).astype(float) - episode.steps[CAMERA]).mean() < 10)


def killed(side: str) -> int:
    """How many of the episodes can be read after a process of that side was killed before it closed."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "data"
        writer = subprocess.Popen([sys.executable, __file__, "--write", side, folder], stdout=subprocess.PIPE,
                                  stderr=subprocess.DEVNULL)
        assert writer.stdout.readline() == b"written\n"
        writer.send_signal(signal.SIGKILL)
        assert writer.wait() == -signal.SIGKILL
        return (readable_by_us if side == "ours" else readable_by_lerobot)(folder)


def nearness(folder: Path) -> str:
    """Peak signal to noise of what is read back, and what a frame takes on disk."""
    stored = open_dataset(folder)
    error = np.mean([np.square(e.steps[CAMERA].astype(float) - s.steps[CAMERA]).mean()
                     for e, s in zip(stored, SHOWN, strict=True)])
    size = sum(f.stat().st_size for f in folder.rglob("*.mp4")) / (EPISODES * STEPS)
    return f"{10 * np.log10(255**2 / error):.1f} dB in {size:.0f} bytes a frame"


def compared():
    stand_in()
    with tempfile.TemporaryDirectory() as place:
        for codec, goal in GOALS.items():
            folder = Path(place) / codec

            def ours(folder=folder, codec=codec):
                shutil.rmtree(folder / "ours", ignore_errors=True)
                write_ours(folder / "ours", codec)

            def write_peer(folder=folder, codec=codec):
                shutil.rmtree(folder / "theirs", ignore_errors=True)
                folder.mkdir(exist_ok=True)
                write_theirs(folder / "theirs", codec).finalize()
            seconds = measure.interleaved({"ours": ours, "lerobot": write_peer})
            note = f"ours {nearness(folder / 'ours')}, lerobot's {nearness(folder / 'theirs')}"
            yield measure.compared(f"{codec}; lerobot's writer", seconds, "ours", "lerobot", amount=EPISODES * STEPS,
                                   unit="frames/s", goal=goal, note=note)
            assert readable_by_lerobot(folder / "theirs") == readable_by_lerobot(folder / "ours") == EPISODES
    survivors = {side: killed(side) for side in ("ours", "lerobot")}
    figures = {side: measure.Figure(n, n, n, f"of {EPISODES} episodes") for side, n in survivors.items()}
    yield measure.Line("readable after SIGKILL before closing", figures["ours"], figures["lerobot"],
                       goal=None, note="" if survivors["ours"] == EPISODES else "expected all of ours")


if __name__ == "__main__":
    os.environ |= {"SVT_LOG": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
                   "PYTHONWARNINGS": "ignore"}
    if sys.argv[1:2] == ["--write"]:
        side, folder = sys.argv[2], Path(sys.argv[3])
        if side == "ours":
            write_ours(folder, "av1")
        else:
            stand_in()
            kept = write_theirs(folder, "av1")
        print("written", flush=True)
        signal.pause()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["UNDERSTUDY_CACHE"] = cache
        lines, versions = measure.beside({"lerobot": compared}, ("torch", "numpy", "av", "lerobot"))
        measure.save("writing", lines, more={"versions": versions})
