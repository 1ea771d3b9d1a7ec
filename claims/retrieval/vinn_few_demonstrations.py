"""Row 079: with few demonstrations, is it better to learn what pictures look like and to look actions up?

Earlier designs retrieved by joint positions, without pictures. Here are the frames of a small real car that a person
steered, and the encoder learns from them without the actions.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from claims.worlds.curation import cached_load
from understudy.claims.base import (
    Arm,
    Claim,
    ClaimPart,
    DemonstrationSource,
    Experiment,
    GreaterThan,
    Measure,
    MissingRequirement,
    NegativeControl,
    Rule,
    RuleResult,
)
from understudy.claims.memo import Memo
from understudy.core import Context, HeadSpec
from understudy.data.episode import Dataset, Episode
from understudy.data.video import decode_image
from understudy.heads.memory.neighbors import Neighbors

HEIGHT, WIDTH = 16, 32  # pixels: the lower two thirds of a picture, averaged over squares of 5
SEGMENTS, SEGMENT_LENGTH, GAP = 20, 50, 15  # frames; the last of each segment are left out, since neighbors look alike
N_TRAINING = 14  # segments
FEATURES, BATCH = 128, 64
Images = Tensor  # (B, 1, HEIGHT, WIDTH), gray, with mean 0 and standard deviation 1 in each picture


def read_frames(path: str) -> tuple[np.ndarray, np.ndarray]:
    """Gray pictures (T, HEIGHT, WIDTH) and steering angles (T,) of a recording below UNDERSTUDY_DATA."""
    file = Path(os.environ.get("UNDERSTUDY_DATA", ""), path)
    if not file.exists():
        raise MissingRequirement("The recorded demonstrations are not on this machine.", where=file,
                                 hint="set UNDERSTUDY_DATA to the folder that holds them")
    table = pq.read_table(file, columns=["jpeg", "angle"])
    frames = [decode_image(v.as_py(), 3, f"{file}, row {i}") for i, v in enumerate(table["jpeg"])]
    squares = np.stack(frames).mean(3).reshape(len(frames), -1, 5, WIDTH, 5).mean((2, 4))[:, -HEIGHT:]
    gray = (squares - squares.mean((1, 2), keepdims=True)) / squares.std((1, 2), keepdims=True)
    return gray, np.array(table["angle"])


_frames = Memo()  # by path


@dataclass(frozen=True)
class SteeringSegments(DemonstrationSource):
    """The recording in segments. A seed draws which of them are learned from; the others test.

    Args:
        path: Of the file of frames, below UNDERSTUDY_DATA.
    """

    path: str = "donkeycar/tub.parquet"

    @cached_load
    def load(self, seed):
        gray, angle = _frames.get(self.path, lambda: read_frames(self.path))
        learned = np.random.default_rng(seed).permutation(SEGMENTS) < N_TRAINING
        parts = [slice(i * SEGMENT_LENGTH, (i + 1) * SEGMENT_LENGTH - GAP) for i in range(SEGMENTS)]
        return Dataset([Episode({"observation.images.front": gray[p].astype(np.float32),
                                 "action": angle[p, None].astype(np.float32)}, {"learned": bool(is_learned)})
                        for p, is_learned in zip(parts, learned, strict=True)])


@dataclass(frozen=True)
class VisualMethod:
    """How an arm steers by a picture. All have the same encoder, augmentations and number of updates.

    Args:
        kind: "retrieval" is VINN: an encoder trained by BYOL without actions, then neighbors. "cloning" trains encoder
            and regression together. "untrained" retrieves by the features of an encoder with random
            weights.
        crop: Least area of the augmentation's crops.
        n_neighbors: Of retrieval.
        lr: Learning rate of regression.
        n_updates: Of the encoder, and of a regression.
    """

    kind: Literal["retrieval", "cloning", "untrained"]
    crop: float = 0.6
    n_neighbors: int = 5
    lr: float = 1e-3
    n_updates: int = 300
    probe_sizes = {"n_updates": 1}  # batch normalization magnifies rounding errors


def small_encoder() -> nn.Module:
    """Three convolutions and a linear layer: pictures (B, 1, HEIGHT, WIDTH) to features (B, FEATURES)."""
    return nn.Sequential(nn.Conv2d(1, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
                         nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(32 * 2 * 4, FEATURES))


def perceptron(size: int, out: int) -> nn.Module:
    """The projector and the predictor of BYOL, and the regression."""
    return nn.Sequential(nn.Linear(size, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, out))


def augment(images: Images, crop: float, rng: torch.Generator) -> Images:
    """A crop of `crop` to 1 of the picture's area, resized, and another brightness and contrast, for each picture."""
    n = len(images)
    side = (crop + (1 - crop) * torch.rand(n, generator=rng)).sqrt()
    shift = (2 * torch.rand(n, 2, generator=rng) - 1) * (1 - side)[:, None]
    affine = torch.zeros(n, 2, 3)
    affine[:, 0, 0] = affine[:, 1, 1] = side
    affine[:, :, 2] = shift
    cut = F.grid_sample(images, F.affine_grid(affine, list(images.shape), align_corners=False), align_corners=False)
    gain, offset = (0.4 * (2 * torch.rand(n, 1, 1, 1, generator=rng) - 1) for _ in range(2))
    return (1 + gain) * cut + offset


def self_supervised_encoder(images: Images, method: VisualMethod, seed: int) -> nn.Module:
    """An encoder trained by BYOL: it predicts, from one augmented picture, what its slow copy makes of another.

    References:
        Grill et al. (2020), Bootstrap Your Own Latent, arXiv:2006.07733.
    """
    rng = torch.Generator().manual_seed(seed)
    online = nn.Sequential(small_encoder(), perceptron(FEATURES, 64))
    predictor, target = perceptron(64, 64), nn.Sequential(small_encoder(), perceptron(FEATURES, 64))
    target.load_state_dict(online.state_dict())
    optimizer = torch.optim.Adam([*online.parameters(), *predictor.parameters()], 1e-3)
    for _ in range(method.n_updates):
        chosen = images[torch.randint(len(images), (BATCH,), generator=rng)]
        views = torch.cat([augment(chosen, method.crop, rng), augment(chosen, method.crop, rng)])
        with torch.no_grad():
            target_features = F.normalize(target(views)).roll(BATCH, 0)
        loss = 2 - 2 * (F.normalize(predictor(online(views))) * target_features).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for slow, fast in zip(target.parameters(), online.parameters(), strict=True):
                slow.lerp_(fast, 0.01)
    return online[0].eval()


_encoders = Memo(4)  # the trials of a seed that differ in neighbors alone share one


def trained_encoder(images: Images, method: VisualMethod, seed: int) -> nn.Module:
    """The encoder of a retrieval: trained by BYOL, or with random weights."""
    if method.kind == "untrained":
        return small_encoder()
    key = method.crop, method.n_updates, seed
    return _encoders.get(key, lambda: self_supervised_encoder(images, method, seed))


def train_regression(net: nn.Module, images: Images, action: Tensor, method: VisualMethod, seed: int) -> nn.Module:
    """Minimize the squared error of `net` on augmented pictures."""
    rng = torch.Generator().manual_seed(seed + 1)
    optimizer = torch.optim.Adam(net.parameters(), method.lr)
    for _ in range(method.n_updates):
        at = torch.randint(len(images), (BATCH,), generator=rng)
        loss = F.mse_loss(net(augment(images[at], method.crop, rng)), action[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def retrieve(encoder: nn.Module, images: Images, action: Tensor, queries: Images, n_neighbors: int) -> Tensor:
    """Actions (B, 1) for the pictures `queries`: locally weighted averages of those of the nearest pictures.

    Features are divided by the mean distance of a picture to its nearest neighbor, so that the weights exp(-distance)
    mean the same for each encoder.
    """
    with torch.no_grad():
        keys, query = encoder(images), encoder(queries)
        apart = torch.cdist(keys, keys) + 1e9 * torch.eye(len(keys))
        unit = apart.min(1).values.mean()
        head = Neighbors(n_neighbors)
        net = head.build(None, 1, HeadSpec(tokens=1, width=FEATURES, horizon=1))

        def context(features):
            return Context((features / unit)[:, None], torch.ones(len(features), 1, dtype=torch.bool))
        head.fit(net, lambda: [(context(keys), action[:, None], torch.ones(len(keys), 1, dtype=torch.bool))])
        return head.sample(net, context(query), torch.zeros(len(query), 1, 0))[:, 0]


def steering_error(
    experiment, method: VisualMethod, data: Dataset, seed: int, episodes: int, starts: int
) -> dict[str, list[float]]:
    """error: mean squared error of the steering angle over the frames of the other segments, divided by that of a
    constant, the mean angle of the learned segments. score: 1 - error."""
    def part(is_learned):
        chosen = data.filter(lambda e: e.metadata["learned"] == is_learned)
        return [torch.from_numpy(np.concatenate([np.asarray(e.steps[k]) for e in chosen]))
                for k in ("observation.images.front", "action")]
    (images, action), (test_images, test_actions) = part(True), part(False)
    images, test_images = images[:, None], test_images[:, None]
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        if method.kind == "cloning":
            net = nn.Sequential(small_encoder(), perceptron(FEATURES, 1))
            net = train_regression(net, images, action, method, seed)
            with torch.no_grad():
                says = net(test_images)
        else:
            says = retrieve(trained_encoder(images, method, seed), images, action, test_images, method.n_neighbors)
    error = float(F.mse_loss(says, test_actions) / F.mse_loss(action.mean(0).expand_as(test_actions), test_actions))
    return {"error": [error], "score": [1 - error]}


def without_self_supervision(experiment: Experiment) -> Experiment:
    """The encoder of retrieval keeps its random weights."""
    return experiment.change_options(lambda o: replace(o, kind="untrained"), "retrieval")


@dataclass(frozen=True)
class JudgedIf(Rule):
    """A rule that decides only if another rule holds. Otherwise the verdict is "undecided".

    Args:
        condition: Must hold.
        rule: Then decides.
    """

    condition: Rule
    rule: Rule

    @property
    def arms(self):
        return tuple(dict.fromkeys((*self.rule.arms, *self.condition.arms)))

    def judge(self, *measured, **options):
        condition, ruling = self.condition.judge(*measured, **options), self.rule.judge(*measured, **options)
        verdict = ruling.verdict if condition.verdict == "holds" else "undecided"
        return RuleResult(verdict, condition.conditions + ruling.conditions)


HELPS = GreaterThan("error", "untrained", "retrieval")
BETTER = GreaterThan("error", "cloning", "retrieval")
CROPS, NEIGHBORS, LEARNING_RATES = (0.6, 0.9), (5, 10, 20, 40), (3e-3, 1e-3, 3e-4, 1e-4)  # of the tuning trials


def tuning_options(kind: Any) -> tuple[VisualMethod, ...]:
    """The tuning trials of an arm: two crops, with four numbers of neighbors or four learning rates."""
    if kind == "cloning":
        return tuple(VisualMethod(kind, crop, lr=lr) for crop in CROPS for lr in LEARNING_RATES)
    return tuple(VisualMethod(kind, crop, n_neighbors=k) for crop in CROPS for k in NEIGHBORS)


STEERING = Experiment(
    SteeringSegments(),
    "donkeycar",
    tuple(Arm(kind, tuning_options(kind)) for kind in ("retrieval", "cloning", "untrained")),
    steering_error,
    tuned_by="score",
    seeds=tuple(range(310, 330)),
    tuning_seeds=(930, 931, 932),
    measures=(("error", Measure("real", "relative error")), ("score", Measure("real"))),
    sanity=(("cloning", "score", 0.2), ("retrieval", "score", 0.2)),
)

CLAIM = Claim(
    name="vinn-few-demonstrations",
    rows=("079",),
    parts=(ClaimPart("steering", STEERING, JudgedIf(HELPS, BETTER)),),
    negative_control=NegativeControl(without_self_supervision, "steering", removes=(BETTER,)),
    needs=("recorded demonstrations (UNDERSTUDY_DATA)",),
    mechanism_only="Retrieval has 0.86 of the error of a constant, and 0.87 with an encoder of random weights, so this "
    "recording shows nothing about retrieval.",
)
