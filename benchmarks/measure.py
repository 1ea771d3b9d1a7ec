"""What all benchmarks share: a fair clock, ratios with intervals, peers in their own environments, results on disk.

A benchmark is a script of its own, `python benchmarks/NAME.py`. It times our side and a peer's in turns, in one process
and one thread, by the CPU's clock, and writes benchmarks/results/NAME.json; `python benchmarks/page.py` makes
docs/benchmarks.md of these.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
ENVIRONMENTS = HERE.parent / ".venv-peers"
REPEATS = 5


@dataclass(frozen=True)
class Figure:
    """The median of the repeats, and the least and greatest of them."""

    value: float
    low: float
    high: float
    unit: str

    @staticmethod
    def of(values: Sequence[float], unit: str) -> Figure:
        return Figure(statistics.median(values), min(values), max(values), unit)


@dataclass(frozen=True)
class Ratio:
    """How many times faster: the mean over repeats and its 95 % interval, both of logarithms (Student's t)."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Line:
    """One line of a row's table. goal: what the ratio must reach (or `ours` stay below, where `bound` is given).
    met: None where nothing could be compared; the note then says why."""

    what: str
    ours: Figure | None = None
    peer: Figure | None = None
    ratio: Ratio | None = None
    goal: float | None = None
    bound: float | None = None
    note: str = ""

    @property
    def met(self) -> bool | None:
        if self.bound is not None and self.ours is not None:
            return self.ours.value <= self.bound
        if self.goal is None or self.ratio is None:
            return None
        return self.ratio.high >= self.goal


def milliseconds(what: str, values: list[float], percentile: float, bound: float | None = None,
                 note: str = "") -> Line:
    """A line with a percentile of times in ms, and its least and greatest value over ten parts of the measurement."""
    import numpy as np  # after `one_thread`

    parts = [float(np.percentile(part, percentile)) for part in np.array_split(values, 10) if len(part)]
    return Line(what, Figure(float(np.percentile(values, percentile)), min(parts), max(parts), "ms"),
                bound=bound, note=note)


# -- the clock ----------------------------------------------------------------------------------------------------


def cpu(work: Callable[[], object]) -> float:
    """Seconds of processor time that `work` takes in this process and in those it waits for."""
    before = os.times()
    work()
    after = os.times()
    return sum(after[:4]) - sum(before[:4])


def gpu(work: Callable[[], object]) -> float:
    """Seconds until the GPU has done what `work` asks of it."""
    import torch

    torch.cuda.synchronize()
    before = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - before


def interleaved(sides: Mapping[str, Callable[[], object]], repeats: int = REPEATS, least: float = 0.3,
                warm: int = 1, clock: Callable[[Callable[[], object]], float] = cpu) -> dict[str, list[float]]:
    """Seconds by the clock of one call of each side, `repeats` times, the sides taking turns. A call is repeated within
    its turn until about `least` seconds have gone by, since the clock of the CPU ticks in hundredths."""
    def turn(work, calls) -> float:
        def several():
            for _ in range(calls):
                work()
        return clock(several)

    calls = {}
    for name, work in sides.items():
        for _ in range(warm):
            work()
        tried = 1
        while (took := turn(work, tried)) < 0.1:  # ten ticks: one would say little of a call that is shorter
            tried *= 4
        calls[name] = max(1, math.ceil(least * tried / took))
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repeats):
        for name, work in sides.items():
            seconds[name].append(turn(work, calls[name]) / calls[name])
    return seconds


def ratio(peer: Sequence[float], ours: Sequence[float]) -> Ratio:
    """Of seconds, pair by pair."""
    from scipy import stats

    logs = [math.log(p / o) for p, o in zip(peer, ours, strict=True)]
    middle = statistics.mean(logs)
    half = stats.t.ppf(0.975, len(logs) - 1) * statistics.stdev(logs) / math.sqrt(len(logs)) if len(logs) > 1 else 0.0
    return Ratio(math.exp(middle), math.exp(middle - half), math.exp(middle + half))


def compared(what: str, seconds: Mapping[str, Sequence[float]], ours: str, peer: str, *, amount: float, unit: str,
             goal: float | None = None, note: str = "") -> Line:
    """A line in amounts a second (`unit`, as "samples/s"), or for amount=0 in milliseconds a call."""
    def figure(values):
        return Figure.of([amount / v for v in values], unit) if amount else Figure.of([1000 * v for v in values], "ms")
    return Line(what, figure(seconds[ours]), figure(seconds[peer]), ratio(seconds[peer], seconds[ours]), goal,
                note=note)


def one_thread() -> None:
    """To be called before torch and numpy are imported: starts this script anew if the environment says otherwise."""
    variables = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    if any(os.environ.get(k) != v for k, v in variables.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})


def task_options(doc: str | None, tasks: Iterable[str], arguments: Sequence[str] | None = None, *,
                 flags: Sequence[str] = (), numbers: Sequence[str] = ()) -> argparse.Namespace:
    """The options of a benchmark that keeps its cells: TASK ... --budget 30m --tiny --page.

    Args:
        doc: The docstring of the script, shown by --help.
        tasks: The names to choose from.
        arguments: The command line. None for that of the process.
        flags: Further options without a value. The docstring explains them, and also `numbers`.
        numbers: Further options with a whole number.

    Returns:
        `tasks`, empty if none is named; `tiny`; `page`; `until`, the `time.monotonic` after which no cell begins; and
        the further options, None or False if they are not given.
    """
    from understudy.commands.parts.common import parse_duration
    from understudy.core import UserError

    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = list(tasks)
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(names)}")
    parser.add_argument("--budget", metavar="TIME", help="such as 30m: no cell begins later")
    for name in ("tiny", "page", *flags):
        parser.add_argument(f"--{name}", action="store_true")
    for name in numbers:
        parser.add_argument(f"--{name}", type=int, metavar="N")
    options = parser.parse_args(arguments)
    for name in options.tasks:
        if name not in names:
            parser.error(f"there is no task {name!r}; there are {', '.join(names)}")
    try:
        options.until = time.monotonic() + (parse_duration(options.budget) if options.budget else math.inf)
    except UserError as error:
        parser.error(str(error))
    return options


# -- peers --------------------------------------------------------------------------------------------------------


class NotInstalled(Exception):
    """The peer could not be installed here."""


def enter(peer: str) -> None:
    """Continues in an environment that has benchmarks/peers/PEER.txt and all that this one has, by starting this
    script again in it. Raises NotInstalled.
    """
    if Path(sys.prefix) != (ENVIRONMENTS / peer).resolve():
        python = installed(peer)
        os.execve(python, [str(python), *sys.argv], dict(os.environ))


def installed(peer: str) -> Path:
    """The Python of the environment of a peer, which is made first, if need be. The peer's own pins are left aside
    (--no-deps), so that it runs with the same PyTorch and NumPy as we do. Raises NotInstalled.
    """
    folder = ENVIRONMENTS / peer
    requirements = HERE / "peers" / f"{peer}.txt"
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != requirements.read_text():
        print(f"installing {peer} into {folder.name}", file=sys.stderr, flush=True)
        try:
            subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
            site = next((folder / "lib").glob("python*/site-packages"), folder / "Lib" / "site-packages")
            # What the peer's environment lacks is found in ours.
            ours = [p for p in sys.path if p.endswith("site-packages")]
            (site / "ours.pth").write_text("\n".join([*ours, str((HERE.parent / "src").resolve())]) + "\n")
            subprocess.run([folder / "bin" / "python", "-m", "pip", "install", "-q", "--disable-pip-version-check",
                            "--no-deps", "-r", requirements], check=True)
        except subprocess.CalledProcessError as error:  # pip has said why; its paths do not belong on a page
            raise NotInstalled(f"installing it ended with {error.returncode}") from None
        except OSError as error:
            raise NotInstalled(f"installing it: {error.strerror}") from None
        stamp.write_text(requirements.read_text())
    return folder.resolve() / "bin" / "python"


def beside(parts: Mapping[str, Callable[[], Sequence[Line]]], packages: Sequence[str]
           ) -> tuple[list[Line], dict[str, str]]:
    """The lines of several peers, and the versions of `packages`: each part runs in this script started anew, in the
    environment of the peer that it is named by ("" for none). A peer that cannot be installed gives a line saying so.
    Peers that the command line names run alone.
    """
    if len(sys.argv) == 4 and sys.argv[1] == "--beside":
        name, out = sys.argv[2:]
        try:
            if name:
                enter(name)
            lines = list(parts[name]())
        except NotInstalled as error:
            lines = [Line(name, note=f"peer not installed ({error})")]
        document = {"lines": [asdict(line) for line in lines], "versions": versions(*packages)}
        Path(out).write_text(json.dumps(document), encoding="utf-8")
        sys.exit()
    lines, installed = [], dict.fromkeys(packages, "not installed")
    with tempfile.TemporaryDirectory() as folder:
        for number, name in enumerate([name for name in parts if name in sys.argv[1:]] or parts):
            out = Path(folder) / f"{number}.json"
            subprocess.run([sys.executable, sys.argv[0], "--beside", name, str(out)], check=True)
            document = json.loads(out.read_text(encoding="utf-8"))
            lines += [restored(line) for line in document["lines"]]
            installed |= {k: v for k, v in document["versions"].items() if v != "not installed"}
    return lines, installed


def restored(line: dict) -> Line:
    """From `asdict`, or from a file of results."""
    kinds = {"ours": Figure, "peer": Figure, "ratio": Ratio}
    return Line(**{k: kinds[k](**v) if k in kinds and v is not None else v for k, v in line.items() if k != "met"})


# -- results ------------------------------------------------------------------------------------------------------


def machine() -> dict[str, str]:
    model, flags = platform.processor(), ""
    if Path("/proc/cpuinfo").exists():
        text = Path("/proc/cpuinfo").read_text()
        model = m[1].strip() if (m := re.search(r"model name\s*:(.*)", text)) else model
        flags = m[1] if (m := re.search(r"^flags\s*:(.*)", text, re.M)) else ""
    fast = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in flags.split()]
    return {"cpu": model, "cores": str(os.cpu_count()), "has": " ".join(fast), "system": platform.system()}


def versions(*names: str) -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def with_stored(name: str, lines: Sequence[Line], versions: dict[str, str]) -> tuple[list[Line], dict[str, str]]:
    """The lines and versions of benchmarks/results/NAME.json, with new ones in the place of those of the same name."""
    path = RESULTS / f"{name}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"lines": [], "versions": {}}
    installed = {k: v for k, v in versions.items() if v != "not installed"}
    return [*({line["what"]: restored(line) for line in stored["lines"]} | {line.what: line for line in lines}).values()
            ], {**versions, **stored["versions"], **installed}


def save(name: str, lines: Sequence[Line], *, packages: Sequence[str] = ("torch", "numpy"), more: dict | None = None
         ) -> None:
    """benchmarks/results/NAME.json, and a table on standard output."""
    from understudy.files import write_json

    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    RESULTS.mkdir(exist_ok=True)
    write_json(RESULTS / f"{name}.json", {
        "name": name, "command": f"python benchmarks/{name}.py", "date": time.strftime("%Y-%m-%d"),
        "commit": commit.stdout.strip(), "machine": machine(), "versions": versions(*packages),
        "lines": [{**asdict(line), "met": line.met} for line in lines], **(more or {})})
    for line in lines:
        print(row(line))


def save_parts(name: str, parts: Mapping[str, Callable[[], Sequence[Line]]], only: str | None, packages: Sequence[str]
               ) -> None:
    """Measures all parts, or one of them, and saves it beside the stored figures of the others."""
    measured = {}
    for part in [only] if only else parts:
        load = os.getloadavg()[0]
        measured[part] = [asdict(line) for line in parts[part]()]
        measured[part][0]["note"] += (f"; load of the machine before: {load:.1f}, {os.cpu_count()} cores "
                                      f"({machine()['has']}), {time.strftime('%Y-%m-%d')}")
    path, done = RESULTS / f"{name}.json", {}
    if only and path.exists():  # the others may be measured meanwhile
        done = json.loads(path.read_text(encoding="utf-8")).get("parts", {})
    done |= measured
    save(name, [restored(line) for part in parts for line in done.get(part, ())], packages=packages,
         more={"parts": done})


def insert(name: str, text: str, page: str) -> None:
    """Into docs/PAGE, in place of what stands between `<!-- NAME: ... -->` and `<!-- end of NAME -->`."""
    path = HERE.parent / "docs" / page
    before, begin, tail = path.read_text(encoding="utf-8").partition(f"<!-- {name}: made by benchmarks/{name}.py -->\n")
    _, end, after = tail.partition(f"<!-- end of {name} -->")
    if not begin or not end:
        raise SystemExit(f"{path} has no place for {name}")
    path.write_text(f"{before}{begin}\n{text}\n\n{end}{after}", encoding="utf-8")


def publish(name: str, text: str, page: str, tiny: bool) -> None:
    """Prints the tables of a benchmark, and inserts them into docs/PAGE unless they are of the smallest size."""
    if not text:
        return
    if tiny:
        print("**These numbers are from the smallest size of the benchmark, which only shows that it runs.**\n")
    print(text)
    if not tiny:
        insert(name, text, page)


def folded(table: list[str], what: str) -> list[str]:
    """A table that is long, behind a line that opens it and says how many of `what` it has."""
    if len(table) <= 12:
        return table
    return ["<details markdown>", f"<summary>The table of {len(table) - 2} {what}</summary>", "", *table, "",
            "</details>"]


def percent(low: float, middle: float, high: float, sign: str = "") -> str:
    """A share with its interval in whole percent, for tables: "90 [87, 93]".

    Args:
        low: Lower end of the interval, as a share.
        middle: The estimate.
        high: Upper end.
        sign: "+" shows the sign of positive numbers as well.
    """
    a, b, c = (f"{round(100 * v):{sign}d}".replace("-", "−") for v in (low, middle, high))
    return f"{b} [{a}, {c}]"


def text(figure: Figure | None) -> str:
    return "" if figure is None else f"{_short(figure.value)} {figure.unit}"


def row(line: Line) -> str:
    times = "" if line.ratio is None else f"{line.ratio.estimate:.3g}× [{line.ratio.low:.3g}, {line.ratio.high:.3g}]"
    goal = "" if line.goal is None else f"wanted {line.goal:g}×"
    verdict = {True: "met", False: "not met", None: ""}[line.met]
    return " | ".join(x for x in (line.what, text(line.ours), text(line.peer), times, goal, verdict, line.note) if x)


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
