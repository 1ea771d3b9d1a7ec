"""From any format into any other: what was recorded comes back bit by bit, through two formats and their side files,
and without the side files what the formats said they hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import WRITERS, conversion_losses, open_dataset, write_dataset
from understudy.data.formats.parts import sidecar
from understudy.data.formats.registry import _format_module as module

FORMATS = tuple(WRITERS)
RING = tuple(zip(FORMATS, (*FORMATS[1:], FORMATS[0]), strict=True))

FLOATS = ("float16", "float32", "float64")
NUMBERS = ("bool", "int8", "int16", "int32", "int64", "uint16", "uint32", "uint64", *FLOATS)
ODD = {"f": [np.nan, np.inf, -np.inf, -0.0, 0.0], "i": [-1, 0], "u": [0, 1], "b": [False, True]}
TEXTS = st.sampled_from(["", "put it there", "öffne die Tür", "先に",
                         "a,b\n\"c\"", " spaced ", "line\u2028line\n", "0", "None", "🤖" * 3])
OTHERS = ("observation.force", "observation.arm.left.q", "observation.state_1", "action_noise", "next.done", "index",
          "count", "a.b.c", "weights", "timestamp", "observation.environment_state", "infos.qpos", "states",
          "next.success", "next.terminated", "next.truncated", "next.reward", "action.grip", "Ä", "is_last",
          "steps", "action_dict/rel")
CAMERAS = ("observation.images.front", "observation.images.wrist.left", "observation.pixels", "sketch")
META = st.dictionaries(
    st.sampled_from(["seed", "success", "operator", "env", "nested", "a.b", "masks", "länge", "split", "fps"]),
    st.recursive(st.none() | st.booleans() | st.integers(-2**60, 2**60) | TEXTS | st.sampled_from([0.1, 1e300, -2.5]),
                 lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXTS, inner, max_size=2), max_leaves=3),
    max_size=3)


def values(draw_text, rng, dtype, shape):
    """Numbers of all sizes, and every odd one that the type has."""
    if dtype == "string":
        count = int(np.prod(shape))
        return np.array([draw_text() for _ in range(count)], object).astype(str).reshape(shape) if count else \
            np.zeros(shape, "U1")
    kind = np.dtype(dtype)
    if kind.kind == "f":
        out = (rng.normal(size=shape) * 10.0 ** rng.integers(-3, 4, shape)).astype(kind)
    elif kind.kind == "b":
        out = rng.random(shape) < 0.5
    else:
        about = np.iinfo(kind)
        out = rng.integers(about.min, about.max, shape, dtype=kind, endpoint=True)
    is_unusual = rng.random(shape) < 0.2
    out[is_unusual] = rng.choice(np.array(ODD[kind.kind], kind), int(is_unusual.sum()))
    return out


@st.composite
def data_sets(draw) -> Dataset:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    lengths = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    columns = {"observation.state": (draw(st.sampled_from(FLOATS)), draw(st.sampled_from([(1,), (3,)]))),
               "action": (draw(st.sampled_from(("float32", "float64", "int64", "float16"))),
                          draw(st.sampled_from([(), (1,), (2,)])))}
    shapes = st.sampled_from([(), (1,), (2,), (2, 3)])
    for name in draw(st.lists(st.sampled_from(OTHERS), unique=True, max_size=6)):
        columns[name] = draw(st.sampled_from((*NUMBERS, "uint8", "string"))), draw(shapes)
    for name in ("next.reward", "next.terminated", "next.truncated", "next.success"):  # mostly what they are for
        if name in columns and draw(st.booleans()):
            columns[name] = ("float32" if name == "next.reward" else "bool"), ()
    for name in draw(st.lists(st.sampled_from(CAMERAS), unique=True, max_size=2)):
        columns[name] = "uint8", (4, 6, draw(st.sampled_from([3, 3, 3, 1])))
    if draw(st.booleans()):
        columns["task"] = "string", ()
    if draw(st.booleans()):
        columns = dict(draw(st.permutations(list(columns.items()))))
    last = {name: draw(st.sampled_from(["no", "all", "some"])) for name in columns}
    last["action"] = "no"
    schema = {}
    for name, (dtype, shape) in columns.items():
        f = Feature.from_array(np.zeros((0, *shape), "U1" if dtype == "string" else dtype))
        if f.kind == "vector" and len(shape) == 1 and draw(st.booleans()):
            f = Feature(f.dtype, shape, names=tuple(f"{name[:2]} {i}" for i in range(shape[0])),
                        unit=draw(st.sampled_from([None, "m", "°"])))
        if f.kind == "discrete":  # otherwise counted over the data, which these odd numbers do not allow
            f = Feature(f.dtype, shape, "vector")
        schema[name] = f
    episodes = []
    for e, rows in enumerate(lengths):
        more = {name: when == "all" or (when == "some" and e == 0) for name, when in last.items()}
        episodes.append(Episode(
            {name: values(lambda: draw(TEXTS), rng, dtype, (rows + more[name], *shape))
             for name, (dtype, shape) in columns.items()}, draw(META), rows, schema))
    facts = {"fps": draw(st.sampled_from([None, 10.0, 30.0, 29.97, 2.5])),
             "robot_type": draw(st.sampled_from([None, "arm", "Roböter"]))}
    return Dataset(episodes, {k: v for k, v in facts.items() if v is not None})


# -- what must hold -------------------------------------------------------------------------------------------------


def write(data: Dataset, path: Path, to: str) -> tuple[Dataset, set[str]]:
    """(what is read again, the subjects that were said to be lost)."""
    options = {"images": "png"} if to.startswith("lerobot") else {}
    lost_subjects = {loss.subject for loss in conversion_losses(data, to, **options) if not loss.in_sidecar}
    write_dataset(data, path, to, **options)
    return open_dataset(path), lost_subjects


def same(one: Dataset, other: Dataset, lost: set[str], what: str) -> None:
    """Equal, bit by bit: names in order, dtypes, shapes, units, values, facts."""
    assert len(one) == len(other), what
    features = one.features()
    assert list(other.features()) == list(features), what
    assert {k: f for k, f in other.features().items() if k not in lost} == {
        k: f for k, f in features.items() if k not in lost}, what
    for e, (was, now) in enumerate(zip(one, other, strict=True)):
        assert len(was) == len(now), what
        for name in features:
            if name not in lost:
                alike(was.steps[name], now.steps[name], f"{what}: {name} of episode {e}")
        assert json.dumps(dict(was.metadata), sort_keys=True) == json.dumps(dict(now.metadata), sort_keys=True), what
    assert (one.fps, one.metadata.get("robot_type")) == (other.fps, other.metadata.get("robot_type")), what


def alike(was, now, what: str) -> None:
    was, now = np.asarray(was), np.asarray(now)
    assert was.shape == now.shape, f"{what}: {was.shape}, {now.shape}"
    if was.dtype.kind in "UO":
        assert was.tolist() == now.tolist(), what
    else:
        assert was.dtype == now.dtype and was.tobytes() == now.tobytes(), f"{what}: {was!r} {now!r}"


def held(data: Dataset, alone: Dataset, to: str, what: str, places=None) -> dict[str, tuple[str, int]]:
    """That every column which format `to` holds exactly is in `alone`, read without its side file. Returns where:
    {column of data: (its name there, rows that are compared beyond the steps)}."""
    places = places or module(to).capability(data, **({"images": "png"} if to.startswith("lerobot") else {})).columns
    for name, place in places.items():
        if not place.is_exact:
            continue
        for e, (was, now) in enumerate(zip(data, alone, strict=True)):
            original, restored = np.asarray(was.steps[name]), np.asarray(now.steps[place.name])
            rows = len(original) if place.has_last_row else len(was)
            original = original[:rows].reshape(min(rows, len(original)), *place.shape)
            assert len(restored) >= len(original), f"{what}: {name} of episode {e} has {len(restored)} rows"
            alike(original if original.dtype.kind in "UO" else original.astype(place.dtype), restored[: len(original)],
                  f"{what}: {name} of episode {e}, without the side file")
    return {name: place.name for name, place in places.items() if place.is_exact}


def pair(data: Dataset, a: str, b: str, folder: Path) -> None:
    what = f"{a} to {b}"
    first, lost_subjects = write(data, folder / "a", a)
    same(data, first, lost_subjects, a)
    second, then = write(first, folder / "b", b)
    same(data, second, lost_subjects | then, what)
    sidecar.sidecar_path(folder / "a").unlink(missing_ok=True)
    alone = open_dataset(folder / "a")
    held(data, alone, a, a)
    write(alone, folder / "c", b)
    sidecar.sidecar_path(folder / "c").unlink(missing_ok=True)
    held(alone, open_dataset(folder / "c"), b, what)

def run(a: str, bs, folder: Path, examples: int) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(data_sets())
    def one(data):
        for b in bs:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            pair(data, a, b, folder)
    one()


@pytest.mark.parametrize(("a", "b"), RING, ids=[f"{a}-{b}" for a, b in RING])
def test_ring(a, b, tmp_path):
    run(a, [b], tmp_path / "pair", 3)


@pytest.mark.slow
@pytest.mark.parametrize("a", FORMATS)
def test_all_pairs(a, tmp_path):
    run(a, FORMATS, tmp_path / "pair", 3)
