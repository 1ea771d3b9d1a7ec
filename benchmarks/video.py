"""Windows of two frames out of video, at random places: python benchmarks/video.py

Our side is `video.VideoReader`, the library's way to frames that are not in its cache of decoded frames: the file stays
open, and the packets of one as small as these in memory; the lines "by seeking" are without, as for a larger file.
Beside it torchcodec, bare and as lerobot calls it (its decoder stays open in both), and lerobot's `decode_video_frames`
with its reader of PyAV, which opens the file for each window. Every side gives what lerobot's policies are fed, float32
(2, 3, H, W) between 0 and 1, equal to a rounding; we and bare torchcodec by the quickest way we know. The last lines
say what training pays that reads from the cache, where all frames lie decoded; nobody's decoder is in them.
"""

from __future__ import annotations

import measure

measure.one_thread()

import itertools  # noqa: E402
import os  # noqa: E402
import re  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
from dataclasses import replace  # noqa: E402
from pathlib import Path  # noqa: E402

import av  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from understudy.data import video  # noqa: E402
from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.data.formats import lerobot as files  # noqa: E402
from understudy.data.formats import open_dataset  # noqa: E402
from understudy.data.window import Window  # noqa: E402

FPS, ROWS = 10, 2
SIZES = {(96, 96): (400, 50), (480, 640): (200, 10)}  # frames in the file, windows a call
CODECS = {"AV1": "libsvtav1", "h264": "libx264"}
GOALS = {"torchcodec": (1.1, 1.1), "torchcodec as lerobot calls it": (1.1, 1.1), "PyAV as lerobot calls it": (4.0, 1.3)}

SHARED = ("what remains is the decoder and the conversion to RGB (swscale), the same libraries on both sides, "
          "and the step to float32")


def scene(height: int, width: int, count: int):
    """A disc on its way over a gradient, with a little noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:height, :width]
    gradient = np.stack([200 * x / width, 200 * y / height, 200 * (x + y) / (height + width)], -1)
    for t in range(count):
        at = x - width * (0.5 + 0.3 * np.cos(t / 12)), y - height * (0.5 + 0.3 * np.sin(t / 9))
        frame = np.where((np.hypot(*at) < height / 10)[..., None], (220, 40, 40), gradient)
        yield (frame + rng.integers(0, 8, frame.shape)).astype(np.uint8)


def recorded(place: Path):
    """(file, shape, codec, the first frames of the windows, without end) of each size and codec."""
    for (height, width), (count, calls) in SIZES.items():
        for name, codec in CODECS.items():
            file = place / f"{height}-{name}.mp4"
            writer = video.VideoWriter(file, codec, (height, width, 3), FPS)
            writer.add(scene(height, width, count), np.arange(count) / FPS)
            writer.close()
            yield file, (height, width, 3), name, np.random.default_rng(1).integers(0, count - ROWS, (97, calls))


def ours(file: Path, shape, kept=video.MAX_CACHED_BYTES):
    reader = video.VideoReader(file, "benchmark", kept)

    def window(first: int) -> torch.Tensor:
        frames = np.empty((ROWS, *shape), np.float32)
        for rows, image in reader.frames([(first + i) / FPS for i in range(ROWS)], shape, "benchmark"):
            for row in rows:
                frames[row] = image
        return torch.from_numpy(frames).mul_(1 / 255).permute(0, 3, 1, 2)
    return window


def torchcodecs(file: Path, shape):
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(str(file), num_ffmpeg_threads=1, seek_mode="approximate")  # the faster of its two modes

    def window(first: int) -> torch.Tensor:
        return decoder.get_frames_at(list(range(first, first + ROWS))).data.float().mul_(1 / 255)
    return window


def lerobots(backend: str):
    def opened(file: Path, shape):
        sys.path.insert(0, str(measure.HERE.parent / "tests"))
        import upstream_lerobot

        upstream_lerobot.stand_in()
        from lerobot.datasets.video_utils import decode_video_frames

        def window(first: int) -> torch.Tensor:
            times = [(first + i) / FPS for i in range(ROWS)]
            return decode_video_frames(file, times, 1e-3, backend)
        return window
    return opened


def beside(peers: dict):
    def lines():
        with tempfile.TemporaryDirectory() as place:
            for file, shape, codec, firsts in recorded(Path(place)):
                sides = {"ours": ours(file, shape), "ours, by seeking": ours(file, shape, kept=0),
                         **{name: peer(file, shape) for name, peer in peers.items()}}
                for first, name in itertools.product(firsts[0], sides):  # their conversions to RGB may round apart
                    torch.testing.assert_close(sides[name](int(first)), sides["ours"](int(first)), atol=2.01 / 255,
                                               rtol=0)

                def work(side, calls):
                    def call():
                        for first in next(calls):
                            side(int(first))
                    return call
                seconds = measure.interleaved({n: work(s, itertools.cycle(firsts)) for n, s in sides.items()},
                                              least=0.5)
                for name in peers:
                    line = measure.compared(f"{shape[0]}×{shape[1]}, {codec}; {name}", seconds, "ours", name,
                                            amount=ROWS * firsts.shape[1], unit="frames/s",
                                            goal=GOALS[name][list(SIZES).index(shape[:2])])
                    yield replace(line, note="" if line.met else SHARED)
                    yield measure.compared(f"{shape[0]}×{shape[1]}, {codec}, by seeking; {name}", seconds,
                                           "ours, by seeking", name, amount=ROWS * firsts.shape[1], unit="frames/s")
    return lines


def cached():
    """As training reads them: uint8 batches gathered from the cache of decoded frames."""
    for (height, width), (count, _) in SIZES.items():
        with tempfile.TemporaryDirectory() as place:
            frames = np.stack(list(scene(height, width, count)))
            files.write(Dataset([Episode({"observation.images.front": frames, "action": np.zeros((count, 2))})],
                                {"fps": FPS}), Path(place) / "data")
            windows = Window(n_obs_steps=ROWS).windows(open_dataset(Path(place) / "data", image_size=(height, width)),
                                                       ("observation.images.front",), "action")
            number = itertools.count()
            seconds = measure.interleaved({"ours": lambda windows=windows, number=number: windows.batch(
                16, next(number))})["ours"]
            yield measure.Line(f"{height}×{width}, out of the cache of decoded frames, bytes",
                               measure.Figure.of([16 * ROWS / s for s in seconds], "frames/s"))


def ffmpeg(place: Path) -> None:
    """torchcodec looks for FFmpeg's libraries by their common names; PyAV's wheel has them by others."""
    inside = Path(av.__file__).parent.parent / "av.libs"
    place.mkdir(parents=True, exist_ok=True)
    for file in inside.glob("lib*.so.*"):
        if name := re.match(r"(lib[a-z]+)-[0-9a-f]+(\.so\.\d+)", file.name):
            link = place / (name[1] + name[2])
            link.unlink(missing_ok=True)
            link.symlink_to(file)
    os.environ["LD_LIBRARY_PATH"] = f"{place}:{inside}"


if __name__ == "__main__":
    if "torchcodec" in sys.argv:
        ffmpeg(measure.ENVIRONMENTS / "ffmpeg")
    os.environ["SVT_LOG"] = "1"
    with tempfile.TemporaryDirectory() as cache:
        os.environ["UNDERSTUDY_CACHE"] = cache
        lines, versions = measure.beside({
            "torchcodec": beside({"torchcodec": torchcodecs, "torchcodec as lerobot calls it": lerobots("torchcodec")}),
            "lerobot": beside({"PyAV as lerobot calls it": lerobots("pyav")}), "": cached},
            ("torch", "numpy", "av", "torchcodec", "lerobot"))
        measure.save("video", lines, more={"versions": versions})
