"""Damaged files, by the thousand: python benchmarks/fuzz.py [--count 10000] [--seed 0] [--only FORMAT] [--fixtures DIR]

Each is a small data set of a known format with one thing broken at random: bits flipped, bytes cut, zeroed, exchanged,
inserted or repeated, a file left out, a value of a JSON file changed. All of it is read, in a process that may take
no more than LIMIT seconds and MEMORY bytes, and then it is one of these:

  right      the values are those of the file as it was
  refused    a UserError (exit status 2), whether it was opened or read
  found      it was read, with other values, and an error of `understudy audit` says that something is wrong
  warned     likewise, but a warning says so
  other      other numbers, names or facts, and nothing says so, in a format whose checksums are not known to cover
             them: mostly a valid file of something else, which only a person who looks at it can tell; or a whole
             episode's file is gone from a folder that nowhere says how many there are, or a flag is lost by which alone
             an episode ends
  wrong      the steps or their number are others, or a checksum that the format has is wrong, and nothing says so
  traceback  any other exception
  crash      the process ended
  hang       it took longer than LIMIT

The last four are defects of ours, and end this script with status 1. Results go to benchmarks/results/fuzz.json, from
which the table in docs/tables/formats.md is made.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import resource
import select
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections import Counter
from pathlib import Path

HERE = Path(__file__).parent
LIMIT, MEMORY = 60, 6 << 30
GOOD, BAD = ("right", "refused", "found", "warned", "other"), ("wrong", "traceback", "crash", "hang")
FLAGGED = ("d4rl",)  # where an episode ends is a value like any other
UNCOUNTED = ("act", "npz", "csv", "mcap", "ROS 1 bag", "ROS 2 bag")  # a file an episode: nothing says that one is gone
CHECKED = ("npz", "rlds", "zarr.zip")  # their containers have a checksum of every value, which is looked at
FIXTURES = {  # format -> data sets among the fixtures
    "LeRobot v3.0": ["lerobot/v3.0/images", "lerobot/v3.0/grid", "lerobot/v3.0/many_files",
                     "lerobot/v3.0/video_h264"],
    "LeRobot v2.1": ["lerobot/v2.1/images", "lerobot/v2.1/video", "lerobot/v2.0/images"],
    "robomimic": ["robomimic/low_dim_image.hdf5", "robosuite"],
    "zarr": ["diffusion_policy_zarr/raw.zarr", "diffusion_policy_zarr/blosc.zarr", "diffusion_policy_zarr/v3.zarr"],
    "zarr.zip": ["diffusion_policy_zarr/blosc.zarr.zip"],
    "act": ["act_aloha/raw", "act_aloha/compressed"],
    "rlds": ["rlds/tfrecord/closed_form/1.0.0"],
    "minari": ["minari/closed/*"],
    "d4rl": ["d4rl/with_timeouts.hdf5", "d4rl/with_next.hdf5"],
    "ogbench": ["ogbench/*.npz"],
    "imitation": ["imitation/*"],
    "npz": ["plain/npz"],
    "csv": ["plain/csv"],
    "mcap": ["mcap/*.mcap"],
    "ROS 1 bag": ["rosbag/ros1/*.bag", "rosbag/ros1_*"],
    "ROS 2 bag": ["rosbag/ros2_*/*"],
}


# -- what is broken -------------------------------------------------------------------------------------------------


def sources(fixtures: Path) -> dict[str, list[Path]]:
    """The data sets of each format that can be read as they are."""
    from understudy.core import UserError
    from understudy.data.formats import preview_dataset
    from understudy.data.formats.detection import detect_format

    out: dict[str, list[Path]] = {}
    for name, patterns in FIXTURES.items():
        for path in sorted(p for pattern in patterns for p in fixtures.glob(pattern) if p.name != "SOURCE.md"):
            try:
                detect_format(path)
                if len(preview_dataset(path)):
                    out.setdefault(name, []).append(path)
            except UserError:
                continue
    return out


def broken(source: Path, place: Path, rng: random.Random) -> str:
    """A copy with one thing wrong. Returns what was done to it."""
    if source.is_dir():
        shutil.copytree(source, place)
        files = sorted(p for p in place.rglob("*") if p.is_file() and p.stat().st_size)
    else:
        place = place.with_name(place.name + "".join(source.suffixes))
        shutil.copyfile(source, place)
        files = [place]
    file = rng.choice(files)
    name = file.relative_to(place).as_posix() if source.is_dir() else file.name
    if len(files) > 1 and rng.random() < 0.03:
        file.unlink()
        return f"{name} left out"
    if file.suffix in (".json", ".jsonl", ".zarray", ".zgroup") and rng.random() < 0.7:
        return f"{name}: {_edited(file, rng)}"
    data = bytearray(file.read_bytes())
    at = rng.randrange(len(data))
    what = rng.choice(["flip", "flip", "flips", "cut", "zero", "swap", "insert", "repeat"])
    some = min(len(data) - at, rng.choice([1, 4, 16, 64, 512]))
    if what == "flip":
        data[at] ^= 1 << rng.randrange(8)
    elif what == "flips":
        for _ in range(8):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif what == "cut":
        del data[at:]
    elif what == "zero":
        data[at: at + some] = bytes(some)
    elif what == "swap":
        other = rng.randrange(len(data) - some + 1)
        data[at: at + some], data[other: other + some] = data[other: other + some], data[at: at + some]
    elif what == "insert":
        data[at:at] = rng.randbytes(some)
    else:
        data[at:at] = data[at: at + some]
    file.write_bytes(data)
    return f"{name}: {what} at {at}, {some} bytes"


def _edited(file: Path, rng) -> str:
    """A value of a JSON document changed, a key taken away, or one given twice."""
    lines = file.read_text().split("\n") if file.suffix == ".jsonl" else [file.read_text()]
    n = rng.choice([i for i, text in enumerate(lines) if text.strip()])
    document = json.loads(lines[n])
    places: list[tuple] = []

    def walk(inside):
        for key in inside if isinstance(inside, dict) else range(len(inside)):
            places.append((inside, key))
            if isinstance(inside[key], (dict, list)):
                walk(inside[key])
    walk(document)
    if not places:
        return "nothing to edit"
    inside, key = rng.choice(places)
    value = inside[key]
    new = rng.choice([None, -1, 0, 10**6, 2**70, 1.5, "", "?", [], {}, True, "../../etc", "NaN",
                      *([value + 1, value * 2, -value] if isinstance(value, (int, float)) else []),
                      *([value[:-1], value + value[-1:]] if isinstance(value, (str, list)) and value else [])])
    if rng.random() < 0.2:
        del inside[key]
        new = "nothing"
    else:
        inside[key] = new
    lines[n] = json.dumps(document)
    file.write_text("\n".join(lines))
    return f"{key!r} {str(value)[:40]} -> {str(new)[:40]}"


# -- what it is read as ---------------------------------------------------------------------------------------------


def read(path: Path) -> tuple[dict, list[str], object]:
    """(everything that is in a data set, as digests; its warnings; the data)."""
    import numpy as np

    from understudy.data.formats import preview_dataset

    data = preview_dataset(path)
    values, features = {}, data.features() if len(data) else {}
    for name in features:
        digest = hashlib.sha256()
        for e in data:
            column = np.asarray(e.steps[name])
            digest.update(repr((column.shape, column.tolist())).encode() if column.dtype.kind in "UO" else
                          repr((column.shape, str(column.dtype))).encode() + column.tobytes())
        values[name] = digest.hexdigest()
    steps = [len(e) for e in data]
    facts = json.dumps([dict(e.metadata) for e in data], sort_keys=True, default=str)
    feature_tuples = {n: (f.dtype, f.shape, f.kind, f.names, f.unit, f.num_classes) for n, f in features.items()}
    return ({"steps": steps, "columns": repr(feature_tuples), "values": values, "facts": facts, "fps": data.fps},
            list(data.metadata["warnings"]), data)


def audited(data, path: Path) -> tuple[list[str], list[str]]:
    """(the errors that the audit finds, in words; the codes of its warnings)."""
    from understudy.audit import find_problems

    problems = find_problems(data, path)
    return [f.message for f in problems if f.severity == "error"], [f.code for f in problems if f.severity == "warning"]


def judged(path: Path, was: dict, warned: list[str], checked: bool) -> tuple[str, str]:
    """(what became of it, in words)."""
    from understudy.core import UserError

    try:
        now, warnings, data = read(path)
    except UserError as error:
        return "refused", str(error).split("\n")[0]
    except MemoryError:
        return "traceback", "MemoryError"
    except Exception as error:  # whatever is no UserError is a defect
        frames = traceback.extract_tb(error.__traceback__)[-6:]
        return "traceback", f"{type(error).__name__}: {str(error)[:200]} at " + " < ".join(
            f"{Path(f.filename).name}:{f.lineno}" for f in reversed(frames))
    differs = [k for k in was if now[k] != was[k]]
    if not differs:
        return "right", ""
    try:
        errors, alarms = audited(data, path)
    except Exception as error:
        return "traceback", f"audit: {type(error).__name__}: {str(error)[:200]}"
    if errors:
        return "found", errors[0]
    if new := [w for w in [*warnings, *alarms] if w not in warned]:
        return "warned", new[0]
    return ("wrong" if "steps" in differs or checked else "other"), ", ".join(differs)


def work(fixtures: Path, folder: Path) -> None:
    """Reads jobs (number, format, which, seed) from standard input, and answers each with a line."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.environ["UNDERSTUDY_CACHE"] = str(folder / "cache")
    first_errors: dict[str, tuple] = {}
    for line in sys.stdin:
        name, source, seed = json.loads(line)
        if source not in first_errors:
            was, warned, data = read(Path(source))
            first_errors[source] = was, [*warned, *audited(data, Path(source))[1]]
        place = folder / f"{seed}" / "data"
        place.parent.mkdir()
        did = broken(Path(source), place, random.Random(seed))
        path = next(place.parent.iterdir())
        became, why = judged(path, *first_errors[source], name in CHECKED)
        if became == "wrong" and (did.endswith("left out") and name in UNCOUNTED or name in FLAGGED):
            became = "other"
        if became not in BAD:
            shutil.rmtree(place.parent, ignore_errors=True)
        print(json.dumps([became, did, why]), flush=True)


# -- all of them ----------------------------------------------------------------------------------------------------


class Worker:
    def __init__(self, fixtures: Path, folder: Path):
        self.process = subprocess.Popen([sys.executable, __file__, "--work", folder, "--fixtures", fixtures],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def judge(self, job) -> tuple[str, str, str]:
        try:
            self.process.stdin.write(json.dumps(job).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return "crash", "", "before it began"
        ready, _, _ = select.select([self.process.stdout], [], [], LIMIT)
        line = self.process.stdout.readline() if ready else b""
        if line:
            return tuple(json.loads(line))
        self.process.kill()
        return ("crash", "", f"status {self.process.wait()}") if ready else ("hang", "", f"more than {LIMIT} s")

    def close(self):
        self.process.kill()
        self.process.wait()


def run(fixtures: Path, count: int, seed: int, only: str | None = None, say=print) -> dict:
    """{format: {what became of it: how many}}, and "defects": [format, source, seed, what, did, why]."""
    chosen_sources = {n: s for n, s in sources(fixtures).items() if only in (None, n)}
    tally, defects = {name: Counter() for name in chosen_sources}, []
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        worker, number = None, 0
        for i in range(count):
            name = list(chosen_sources)[i % len(chosen_sources)]
            source = chosen_sources[name][(i // len(chosen_sources)) % len(chosen_sources[name])]
            if worker is None or i % 500 == 499:
                if worker:
                    worker.close()
                number += 1
                (folder := place / str(number)).mkdir()
                shutil.rmtree(place / str(number - 1), ignore_errors=True)
                worker = Worker(fixtures, folder)
            became, did, why = worker.judge([name, str(source), seed * 1_000_000 + i])
            tally[name][became] += 1
            if became in BAD:
                defects.append([name, source.relative_to(fixtures).as_posix(), seed * 1_000_000 + i, became, did, why])
                say(f"{became}: {' | '.join(map(str, defects[-1]))}")
            if became in ("crash", "hang"):
                worker.close()
                worker = None
        if worker:
            worker.close()
    return {"formats": {n: dict(t) for n, t in tally.items()}, "defects": defects}


def table(result: dict) -> str:
    """Of each format how often what happened."""
    groups = {"right": GOOD[:1], "refused": GOOD[1:2], "found or warned": GOOD[2:4], "other": GOOD[4:]}
    lines = [f"| format | {' | '.join(groups)} |", "|---|" + "--:|" * len(groups)]
    total = sum(map(Counter, result["formats"].values()), Counter())
    for name, tally in {**result["formats"], "**all**": total}.items():
        counts = [sum(tally.get(k, 0) for k in keys) for keys in groups.values()]
        lines.append(f"| {name} | {' | '.join(f'{c:,}' for c in counts)} |")
    n_bad = sum(total[k] for k in BAD)
    return "\n".join([f"{n_bad or 'None'} of the {sum(total.values()):,} damaged files led to a traceback, a crash, an "
                      "endless loop, or wrong values in spite of a checksum:", "", *lines])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", metavar="FORMAT", choices=[*FIXTURES])
    parser.add_argument("--fixtures", type=Path, default=HERE.parents[1] / "shared" / "fixtures")
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    o = parser.parse_args()
    if o.work:
        work(o.fixtures, o.work)
        return 0
    result = run(o.fixtures, o.count, o.seed, o.only)
    print(table(result))
    if o.only is None:
        import measure

        (measure.RESULTS / "fuzz.json").write_text(json.dumps({"count": o.count, "seed": o.seed, **result}, indent=1))
        measure.insert("fuzz", table(result), "tables/formats.md")
    return 1 if result["defects"] else 0


if __name__ == "__main__":
    sys.exit(main())
