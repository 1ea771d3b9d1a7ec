"""Recordings that are killed at random moments, and what is left: python benchmarks/kill.py [TRIALS]

Each trial forks a process that records, sends it SIGKILL after a random time, repairs what is left and reads it. Half
of them lose their power instead: of the files stays what had been synced (tests/power.py), and nothing else. Ways to
record:

steps   a Recorder at 100 steps a second, numbers only, short episodes
frames  the same with a camera; the LeRobot files are written meanwhile, by the process beside it (of a power cut:
        by the same process, whose syncs can be watched)
toy     `understudy record fork`, with four environments side by side

An episode is lost if `saved N` was said of it and it cannot be read, value by value. Of the running episode it is how
many seconds are lost. TRIALS is 1,000 if not given.

Trainings, offline, with collection rounds and with a stage: python benchmarks/kill.py --training [KILLS]. Each is
killed at random moments, 20 if not given, and resumed. All files must then be those of a run that nothing stopped.
"""

from __future__ import annotations

import measure

if __name__ == "__main__":
    measure.one_thread()

import json  # noqa: E402
import os  # noqa: E402
import random  # noqa: E402
import shutil  # noqa: E402
import signal  # noqa: E402
import struct  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import numpy as np  # noqa: E402

sys.path.insert(0, str(measure.HERE.parent / "tests"))
import power  # noqa: E402

from understudy import make  # noqa: E402
from understudy.core import Feature  # noqa: E402
from understudy.data.episode import Dataset  # noqa: E402
from understudy.data.formats import open_dataset
from understudy.data.recording import recorder as recording  # noqa: E402
from understudy.data.recording.recorder import Recorder, repair  # noqa: E402
from understudy.evaluate.recording import record_episodes  # noqa: E402

PAGE = measure.HERE.parent / "docs" / "recording.md"
BEGIN, END = "<!-- made by benchmarks/kill.py -->", "<!-- until here -->"
WAYS = ("steps", "frames", "toy")
RATE = 100  # steps a second
STATE, FRONT = "observation.state", "observation.images.front"
_AT = struct.Struct("<qqd")


@dataclass(frozen=True)
class Trial:
    way: str
    cut: bool  # of the power, not of the process alone
    saved: int  # episodes of which it was said
    n_found: int  # that are there afterwards
    finished_lost: int
    running_lost: float  # s


def length(number: int) -> int:
    return 5 + number * 7919 % 40


def row(number: int, step: int) -> np.ndarray:
    return np.float32([number, step, number * step])


# -- what is killed -------------------------------------------------------------------------------------------------


def write(folder: Path, way: str, cut: bool) -> None:
    if cut:
        power.watch(folder / "d", folder / "synced")
    saved_file = os.open(folder / "saved", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    at = os.open(folder / "at", os.O_CREAT | os.O_RDWR)

    def saved(number: int) -> None:
        os.write(saved_file, f"{number}\n".encode())
    if way == "toy":
        env = make("fork", 4)
        record_episodes(env, env.expert(), 10_000, folder / "d", 1, actor_name="scripted", on_saved=saved)
    camera = {FRONT: Feature("uint8", (32, 32, 3), "image")} if way == "frames" else {}
    schema = {STATE: Feature("float32", (3,)), **camera, "action": Feature("float32", (1,))}
    recording.SEGMENT_BYTES = 100_000
    if cut:  # what another process syncs is not seen
        recording.EncoderProcess.encode = lambda self, segment, backlog: None
    r = Recorder(schema, folder / "d", fps=RATE, images="png", on_saved=saved)
    due = time.perf_counter()
    for number in range(10_000):
        for step in range(length(number)):
            frame = {FRONT: np.full((32, 32, 3), (number + step) % 256, np.uint8)} if camera else {}
            assert r.step({STATE: row(number, step), **frame}, row(number, step)[:1])
            os.pwrite(at, _AT.pack(number, step + 1, time.perf_counter()), 0)
            due += 1 / RATE
            time.sleep(max(0.0, due - time.perf_counter()))
        r.end(success=True, name=number)
        if cut and camera and number % 3 == 2:
            r.flush()


def serve() -> None:
    """Forks what is to be killed: from here, where nothing of Arrow has run, so that no threads are lost."""
    for line in sys.stdin:
        folder, way, cut, wait = json.loads(line)
        child = os.fork()
        if child == 0:
            try:
                write(Path(folder), way, cut)
            finally:
                os._exit(1)
        while not os.path.exists(f"{folder}/saved"):
            time.sleep(0.001)
        time.sleep(wait)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        print(json.dumps(status), flush=True)


# -- what is left ---------------------------------------------------------------------------------------------------


def trials(place: Path, times: int, way: str, seed: int = 0) -> Iterator[Trial]:
    rng = random.Random(seed)
    with subprocess.Popen([sys.executable, __file__, "--serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          text=True, env={**os.environ, "SVT_LOG": "1"}) as server:
        for number in range(times):
            folder, cut = place / str(number), bool(number % 2)
            folder.mkdir()
            wait = rng.uniform(0, 5 if way == "frames" else 1.2)
            server.stdin.write(json.dumps([str(folder), way, cut, wait]) + "\n")
            server.stdin.flush()
            status = json.loads(server.stdout.readline())
            assert status == signal.SIGKILL, f"trial {number} of {way} (seed {seed}) ended by itself: {status}"
            yield judged(folder, way, cut)
            shutil.rmtree(folder)
        server.stdin.close()


def judged(folder: Path, way: str, cut: bool) -> Trial:
    data = folder / "d"
    if cut:
        power.cut(data, folder / "synced", folder / "left")
        data = folder / "left"
    saved = [int(n) for n in (folder / "saved").read_text().split()]
    assert saved == list(range(len(saved)))
    if not data.exists():
        return Trial(way, cut, len(saved), 0, len(saved), 0.0)
    before = open_dataset(data)
    assert len(before) >= len(saved), "what was saved can be read before it is repaired, too"
    repair(data)
    after = open_dataset(data)
    problem = _toys(after, len(saved)) if way == "toy" else _steps(after, len(saved))
    lost_seconds = 0.0
    if way != "toy" and (text := (folder / "at").read_bytes()):
        number, step, _ = _AT.unpack(text)
        there = len(after[number]) if len(after) > number else 0
        lost_seconds = (step - there) / RATE
    return Trial(way, cut, len(saved), len(after), problem, lost_seconds)


def _steps(data: Dataset, saved: int) -> int:
    n_lost = 0
    for number in range(max(saved, len(data))):
        if number >= len(data):
            n_lost += 1
            continue
        e = data[number]
        rows = np.stack([row(number, t) for t in range(length(number))])[: len(e)]
        right = np.array_equal(e.steps[STATE], rows) and np.array_equal(e.steps["action"][:, 0], rows[:, 0])
        if FRONT in e.steps:
            right &= bool((e.steps[FRONT] == (number + np.arange(len(e)))[:, None, None, None] % 256).all())
        whole = len(e) == length(number) and e.metadata.get("name") == number
        assert right and (whole or number >= saved), f"episode {number} is not what was recorded"
    return n_lost


def _toys(data: Dataset, saved: int) -> int:
    global _whole
    if _whole is None or len(_whole) < len(data):
        from understudy import rollout

        _whole = rollout(make("fork", 64).expert(), make("fork", 64), max(len(data), 200), 1)
    for number, e in enumerate(data):
        assert np.array_equal(e.steps["action"], _whole[number].steps["action"]), f"episode {number} is another"
    return max(0, saved - len(data))


_whole = None


# -- a thousand -----------------------------------------------------------------------------------------------------


def table(trials: list[Trial]) -> Iterator[str]:
    yield "| recording | end | trials | episodes saved | of these lost | most lost of the running one |"
    yield "|---|---|---|---|---|---|"
    names = {"steps": "numbers, 100 Hz", "frames": "with a camera, 100 Hz", "toy": "`understudy record fork`"}
    for way in WAYS:
        for cut in (False, True):
            here = [t for t in trials if (t.way, t.cut) == (way, cut)]
            running = f"{max((t.running_lost for t in here), default=0):.2f} s" if way != "toy" else ""
            yield (f"| {names[way]} | {'power cut' if cut else 'SIGKILL'} | {len(here)} | "
                   f"{sum(t.saved for t in here):,} | {sum(t.finished_lost for t in here)} | {running} |")


def main(count: int) -> None:
    share = {"frames": count // 10, "toy": (count - count // 10) // 2}  # frames take their time
    share["steps"] = count - sum(share.values())
    work = {way: subprocess.Popen([sys.executable, __file__, "--way", way, str(share[way])], stdout=subprocess.PIPE,
                                  text=True) for way in WAYS}
    trials = [Trial(**json.loads(line)) for process in work.values() for line in process.stdout]
    assert all(process.wait() == 0 for process in work.values()), "a trial failed: see above"
    lines = list(table(trials))
    print("\n".join(lines))
    n_lost = sum(t.finished_lost for t in trials)
    print(f"\n{count} trials, {sum(t.saved for t in trials):,} episodes saved, {n_lost} lost")
    measure.RESULTS.mkdir(exist_ok=True)
    (measure.RESULTS / "kill.json").write_text(json.dumps({
        "name": "kill", "command": f"python benchmarks/kill.py {count}", "date": time.strftime("%Y-%m-%d"),
        "machine": measure.machine(), "trials": count, "saved": sum(t.saved for t in trials), "lost": n_lost,
        "most_lost_of_the_running": max(t.running_lost for t in trials), "table": lines}, indent=1) + "\n")
    before, _, page_end = PAGE.read_text().partition(BEGIN)
    PAGE.write_text("\n".join([before + BEGIN, "", *lines, "", END + page_end.partition(END)[2]]))
    sys.exit(bool(n_lost))


def one_way(way: str, count: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        os.environ["UNDERSTUDY_CACHE"] = f"{place}/cache"
        for number, trial in enumerate(trials(Path(place), count, way, seed=WAYS.index(way)), 1):
            print(json.dumps(asdict(trial)), flush=True)
            if number % 25 == 0:
                print(f"{way}: {number} of {count}", file=sys.stderr, flush=True)


def kill_trainings(n_kills: int) -> None:
    from fixtures.killed_training import METHODS, killed_training

    places, seconds = {}, {}
    for name in METHODS:
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            places[name] = killed_training(name, Path(folder), n_kills, seed=0)
        seconds[name] = round(time.perf_counter() - began)
        print(f"{name}: {n_kills} kills, all files are those of a run that nothing stopped", flush=True)
    (measure.RESULTS / "kill_training.json").write_text(json.dumps({
        "name": "kill_training", "command": f"python benchmarks/kill.py --training {n_kills}",
        "date": time.strftime("%Y-%m-%d"), "machine": measure.machine(), "kills": n_kills, "differences": 0,
        "seconds": seconds, "last_update_before_each_kill": places}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--training"]:
        kill_trainings(int(sys.argv[2]) if sys.argv[2:] else 20)
    elif sys.argv[1:2] == ["--serve"]:
        serve()
    elif sys.argv[1:2] == ["--way"]:
        one_way(sys.argv[2], int(sys.argv[3]))
    else:
        main(int(sys.argv[1]) if sys.argv[1:] else 1000)
