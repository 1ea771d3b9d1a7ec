"""Training with and without cached features of a frozen network: python benchmarks/cached_features.py

Prints CPU seconds for each update of 32 windows of one image of 96 x 96 pixels, CPU seconds to fill the cache with 120
images, and the largest difference of a plan after training. The second network, of the size of DINOv2-S with random
weights, needs the extra transformers.
"""

from __future__ import annotations

import measure

measure.one_thread()

import importlib.util  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402

from understudy.data.episode import Dataset, Episode  # noqa: E402
from understudy.heads.likelihood.regression import Regression  # noqa: E402
from understudy.learn.behavior_cloning import BehaviorCloning  # noqa: E402
from understudy.nets.encoders import TokenEncoder  # noqa: E402
from understudy.nets.mlp import MLP  # noqa: E402
from understudy.nets.pretrained.vision import TransformersVision  # noqa: E402
from understudy.nets.vision import ResNet  # noqa: E402
from understudy.policy import Policy, PolicyConfig  # noqa: E402

UPDATES, CAMERA = 5, "observation.images.front"


def demonstrations() -> Dataset:
    rng = np.random.default_rng(0)
    return Dataset([Episode({CAMERA: rng.integers(0, 256, (40, 96, 96, 3)).astype(np.uint8),
                             "observation.state": rng.normal(size=(40, 2)).astype(np.float32),
                             "action": rng.normal(size=(40, 2)).astype(np.float32)}) for _ in range(3)])


def dinov2_small(folder: Path) -> TransformersVision:
    from transformers import Dinov2Config, Dinov2Model

    Dinov2Model(Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518,
                             patch_size=14)).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
        "crop_size": {"height": 224, "width": 224}}))
    return TransformersVision(str(folder), image_size=(98, 98))


@torch.no_grad()
def plan(policy: Policy, data: Dataset) -> torch.Tensor:
    return policy.eval().plan(policy.windows(data).batch(8, 0).obs, torch.zeros(8, 1, 0))


def compare(name: str, vision, data: Dataset) -> None:
    seconds, fill, plans = {}, 0.0, []
    for cached in (False, True):
        torch.manual_seed(1)
        config = PolicyConfig(Regression(), MLP(256, 2), TokenEncoder(64, vision=vision, cache_features=cached))
        learner = BehaviorCloning(UPDATES).build(Policy(config, data.features()).fit_statistics(data), 0, UPDATES, data)
        start = time.process_time()
        windows = learner.batch_sampler(data)
        fill = time.process_time() - start
        learner.update(windows.batch(32, 0))  # the first update is slower
        start = time.process_time()
        for step in range(1, UPDATES):
            learner.update(windows.batch(32, step))
        seconds[cached] = (time.process_time() - start) / (UPDATES - 1)
        plans.append(plan(learner.trained_policy, data))
    print(f"{name}: {seconds[False]:.3f} s an update, {seconds[True]:.3f} s with cached features "
          f"({seconds[False] / seconds[True]:.0f} times faster), {fill:.1f} s to fill the cache, plans differ by "
          f"{(plans[0] - plans[1]).abs().max():.1g}", flush=True)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        os.environ["UNDERSTUDY_CACHE"] = str(Path(folder) / "cache")
        data = demonstrations()
        compare("ResNet-18", ResNet(pool="mean", frozen=True), data)
        if importlib.util.find_spec("transformers") is not None:
            (weights := Path(folder) / "dinov2").mkdir()
            compare("DINOv2-S, 98 x 98 pixels", dinov2_small(weights), data)
