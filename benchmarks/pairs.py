"""What survives from one format into another: python benchmarks/pairs.py

A data set that has all that one may have is written in each format, opened, and written in each other one. With the
side files everything must be the same, bit by bit, in all pairs. Then the side files of both are removed, and what is
still there is counted. Results go to benchmarks/results/pairs.json and into docs/tables/formats.md.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import measure
import numpy as np

from understudy.core import Feature
from understudy.data.episode import Dataset, Episode
from understudy.data.formats import WRITERS, conversion_losses, open_dataset, write_dataset
from understudy.data.formats.parts import sidecar
from understudy.data.formats.registry import _format_module as module


def rich() -> Dataset:
    """Three episodes: two kinds of state and a camera, each with a row after the last action; names, a unit, words,
    both ways to end, a count beyond float32, times, the rate, the robot, facts."""
    rng = np.random.default_rng(0)
    schema = {
        "observation.state": Feature("float32", (3,), names=("x", "y", "z"), unit="m"),
        "observation.force": Feature("float64", (2, 2)),
        "observation.images.front": Feature("uint8", (8, 8, 3), "image"),
        "action": Feature("float32", (2,), names=("dx", "dy")), "next.reward": Feature("float32", ()),
        "next.terminated": Feature("bool", ()), "next.truncated": Feature("bool", ()),
        "next.success": Feature("bool", ()), "task": Feature("string", (), "string"), "count": Feature("int64", ()),
        "timestamp": Feature("float64", ())}

    def episode(e, n):
        end = np.arange(n) == n - 1
        return Episode({
            "observation.state": rng.normal(size=(n + 1, 3)).astype(np.float32),
            "observation.force": rng.normal(size=(n + 1, 2, 2)),
            "observation.images.front": rng.integers(0, 256, (n + 1, 8, 8, 3)).astype(np.uint8),
            "action": rng.normal(size=(n, 2)).astype(np.float32), "next.reward": rng.normal(size=n).astype(np.float32),
            "next.terminated": end & (e % 2 == 0), "next.truncated": end & (e % 2 == 1), "next.success": end & (e == 2),
            "task": np.array(["put it there", "öffne die Tür"][e % 2:][:1] * n), "count": np.arange(n) * 2**40,
            "timestamp": np.arange(n) / 10 + rng.uniform(0, 1e-3, n) * (np.arange(n) > 0)},
            {"operator": "Ada", "seed": e}, n, schema)
    return Dataset([episode(e, n) for e, n in enumerate((5, 1, 4))], {"fps": 10.0, "robot_type": "arm"})


def options(to: str) -> dict:
    return {"images": "png"} if to.startswith("lerobot") else {}


def write(data: Dataset, path: Path, to: str) -> Dataset:
    write_dataset(data, path, to, **options(to))
    return open_dataset(path)


def alone(path: Path) -> Dataset:
    sidecar.sidecar_path(path).unlink(missing_ok=True)
    return open_dataset(path)


def kept_parts(data: Dataset, now: Dataset, called: dict[str, str]) -> list[str]:
    """What of `data` is in `now`, where its columns are `called` something else."""
    features, after = data.features(), now.features()
    here = {n: c for n, c in called.items() if c in after and all(
        equal(was.steps[n], is_.steps[c][:len(was)]) for was, is_ in zip(data, now, strict=True))}
    last = [n for n, c in here.items() if all(
        len(was.steps[n]) == len(is_.steps[c]) > len(was) and equal(was.steps[n], is_.steps[c])
        for was, is_ in zip(data, now, strict=True))]
    return [*here, *(f"last {n}" for n in last),
            *(["names"] if all(after[here[n]].names == f.names for n, f in features.items() if f.names and n in here)
              else []),
            *(["unit"] if any(f.unit and n in here and after[here[n]].unit == f.unit for n, f in features.items())
              else []),
            *(["fps"] if now.fps == data.fps else []),
            *(["robot_type"] if now.metadata.get("robot_type") == data.metadata.get("robot_type") else []),
            *(f"metadata.{k}" for k in data[0].metadata if all(was.metadata[k] == is_.metadata.get(k)
                                                               for was, is_ in zip(data, now, strict=True)))]


def equal(was, now) -> bool:
    was, now = np.asarray(was)[: len(now)], np.asarray(now)
    if was.dtype.kind in "UO":
        return was.tolist() == now.tolist()
    return was.size == now.size and np.array_equal(was.reshape(-1), now.reshape(-1)) and len(was) == len(now)


def chained(data: Dataset, first: Dataset, a: str, b: str) -> dict[str, str]:
    """{column: its name after a and b}, for those of which both say that they have a place."""
    ours = {n: p.name for n, p in module(a).capability(data, **options(a)).columns.items()}
    then = module(b).capability(first, **options(b)).columns
    return {n: then[c].name for n, c in ours.items() if c in then}


def measured() -> dict:
    data, same, kept, lost_by_pair = rich(), [], {}, {}
    every = kept_parts(data, data, {n: n for n in data.features()})
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        os.environ["UNDERSTUDY_CACHE"] = str(place / "cache")
        for a in WRITERS:
            lost_by_pair[a] = [str(loss) for loss in conversion_losses(data, a, **options(a))]
            first = write(data, place / a, a)
            for b in WRITERS:
                if write(first, place / f"{a}-{b}", b).fingerprint() == data.fingerprint():
                    same.append([a, b])
            bare = alone(place / a)
            for b in WRITERS:
                write(bare, place / f"bare-{a}-{b}", b)
                kept[f"{a} {b}"] = kept_parts(data, alone(place / f"bare-{a}-{b}"), chained(data, bare, a, b))
    return {"all": every, "same": same, "kept": kept, "lost": lost_by_pair}


def tables(result: dict) -> str:
    names, n = list(result["lost"]), len(result["all"])
    lines = [f"{len(result['same'])} of {len(names) ** 2} ordered pairs give back every value, name and metadata key, "
             "bit by bit, with their side files. Without its side file, a data set of each format has these of the "
             f"{n} properties:", "", "| format | kept | only in the side file |", "|---|--:|---|"]
    for name in names:
        kept = result["kept"][f"{name} {name}"]
        missing = ", ".join(f"`{x}`" for x in result["all"] if x not in kept)
        lines.append(f"| {name} | {len(kept)} | {missing} |")
    return "\n".join(lines)


def main() -> int:
    result = measured()
    (measure.RESULTS / "pairs.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    measure.insert("pairs", tables(result), "tables/formats.md")
    print(tables(result))
    return 0 if len(result["same"]) == len(WRITERS) ** 2 else 1


if __name__ == "__main__":
    sys.exit(main())
