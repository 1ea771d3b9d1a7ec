"""Opens LeRobot data sets with lerobot itself and writes what it reads to one .npz each (run by a test, in a process
of its own):

    python upstream_lerobot.py FOLDER OUT.npz [FOLDER OUT.npz ...]

lerobot needs torchvision to be imported, of which reading data uses a tensor conversion and a video reader only. There
is none for CPUs at these versions, so these two are made here from PyAV and torch; whatever else lerobot takes from
torchvision is an empty class.
"""

from __future__ import annotations

import importlib.machinery
import json
import sys
import types
from pathlib import Path

import av
import numpy as np
import torch


class Missing(types.ModuleType):
    """A module whose names are all empty classes, apart from those set on it."""

    def __init__(self, name, **given):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, is_package=True)
        self.__path__ = []
        self.__version__ = "0"
        vars(self).update(given)
        sys.modules[name] = self
        parent, _, own = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], own, self)

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (torch.nn.Module,), {})


class ToTensor:
    def __call__(self, image):
        pixels = np.array(image)
        pixels = pixels[..., None] if pixels.ndim == 2 else pixels
        return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255


class VideoReader:
    def __init__(self, path, stream="video"):
        self.container = av.open(str(path))
        self.stream = self.container.streams.video[0]

    def seek(self, time, keyframes_only=False):
        self.container.seek(int(time / self.stream.time_base), stream=self.stream)

    def __iter__(self):
        for frame in self.container.decode(self.stream):
            pixels = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)
            yield {"data": pixels, "pts": float(frame.pts * frame.time_base)}


def stand_in() -> None:
    Missing("torchvision", set_video_backend=lambda name: None)
    Missing("torchvision.io", VideoReader=VideoReader)
    Missing("torchvision.transforms", ToTensor=ToTensor)
    for name in ("models", "models._utils", "ops", "ops.misc", "transforms.functional", "transforms.v2",
                 "transforms.v2.functional"):
        Missing(f"torchvision.{name}")


def read(folder: str) -> dict[str, np.ndarray]:
    """Every row of every key, as lerobot gives them; images as uint8 (T, H, W, C)."""
    from lerobot.datasets.lerobot_dataset import LeRobotDataset

    data, rows = LeRobotDataset("none/none", root=folder, video_backend="pyav"), {}
    for i in range(len(data)):
        for key, value in data[i].items():
            if key in data.meta.camera_keys:
                value = (value * 255).round().to(torch.uint8).permute(1, 2, 0)
            rows.setdefault(key, []).append(np.asarray(value))
    out = {key: np.stack(values) for key, values in rows.items()}
    out["stats:mean:action"] = np.asarray(data.meta.stats["action"]["mean"])
    out["fps"], out["episodes"] = np.array(data.fps), np.array(data.num_episodes)
    out["first"] = np.array([int(data.meta.episodes[e]["dataset_from_index"]) for e in range(data.num_episodes)])
    out["described"] = np.array(described(folder))
    return out


def described(folder: str) -> str:
    """What Hugging Face's reader takes the columns for, without being told."""
    import datasets

    files = [str(f) for f in sorted(Path(folder).glob("data/*/*.parquet"))]
    features = datasets.Dataset.from_parquet(files[-1:]).features
    return json.dumps({name: type(f).__name__ for name, f in features.items()})


if __name__ == "__main__":
    stand_in()
    for source, target in zip(sys.argv[1::2], sys.argv[2::2], strict=True):
        np.savez(target, **read(source))
