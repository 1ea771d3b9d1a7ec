"""What the benchmarks share: the clock, the ratio and its interval, when a goal is met, and peers beside us."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time

import pytest
from folders import BENCHMARKS
from scipy import stats

sys.path.insert(0, str(BENCHMARKS))

import measure  # noqa: E402
from measure import Figure, Line, Ratio  # noqa: E402


def test_a_ratio_is_the_geometric_mean_with_students_interval():
    """Of pairs 2, 4 and 8 times as fast: logarithms 1, 2, 3 of base 2, with mean 2 and standard deviation 1."""
    ratio = measure.ratio(peer=[2.0, 4.0, 80.0], ours=[1.0, 1.0, 10.0])
    half = stats.t.ppf(0.975, 2) / math.sqrt(3)
    assert ratio.estimate == pytest.approx(4)
    assert (ratio.low, ratio.high) == pytest.approx((2 ** (2 - half), 2 ** (2 + half)))
    assert measure.ratio([3.0], [2.0]) == Ratio(*[pytest.approx(1.5)] * 3)  # one pair has no interval
    with pytest.raises(ValueError):
        measure.ratio([1.0, 2.0], [1.0])


def test_pairs_cancel_what_slows_both_sides():
    """The machine may slow down by any factor between the turns; the ratio of a turn stays what it is."""
    ours = [1.0, 5.0, 2.0, 7.0]
    assert measure.ratio([3 * s for s in ours], ours) == Ratio(*[pytest.approx(3.0)] * 3)


@pytest.mark.parametrize("line, met", [
    (Line("", ratio=Ratio(2.0, 1.8, 2.2), goal=2.1), True),  # the interval includes it
    (Line("", ratio=Ratio(2.0, 1.8, 2.2), goal=2.2), True),
    (Line("", ratio=Ratio(2.0, 1.8, 2.2), goal=2.3), False),
    (Line("", ratio=Ratio(2.0, 1.8, 2.2), goal=1.0), True),
    (Line("", ratio=Ratio(2.0, 1.8, 2.2)), None),  # nothing was wanted
    (Line("", goal=2.0), None),  # nothing to compare with: no verdict
    (Line("", ours=Figure(1.0, 0.5, 3.0, "s"), bound=1.0), True),
    (Line("", ours=Figure(1.1, 0.5, 3.0, "s"), bound=1.0), False),
    (Line("", bound=1.0), None),
])
def test_when_a_goal_is_met(line, met):
    assert line.met is met


def test_figures_are_medians_between_extremes():
    assert Figure.of([3.0, 1.0, 10.0, 2.0], "s") == Figure(2.5, 1.0, 10.0, "s")


def test_a_comparison_in_amounts_a_second_and_in_milliseconds():
    seconds = {"a": [0.5, 1.0, 2.0], "b": [2.0, 4.0, 8.0]}
    line = measure.compared("x", seconds, "a", "b", amount=100, unit="rows/s", goal=5)
    assert (line.ours, line.peer) == (Figure(100, 50, 200, "rows/s"), Figure(25, 12.5, 50, "rows/s"))
    assert line.ratio == Ratio(*[pytest.approx(4.0)] * 3) and line.met is False  # the peer takes four times as long
    line = measure.compared("x", seconds, "a", "b", amount=0, unit="")
    assert (line.ours, line.peer) == (Figure(1000, 500, 2000, "ms"), Figure(4000, 2000, 8000, "ms"))
    assert line.met is None


def test_rows_as_they_are_printed():
    line = Line("windows", Figure(1_234_567.0, 1, 2, "rows/s"), Figure(0.1234, 0, 1, "s"), Ratio(3.456, 3.2, 1234.6),
                goal=2.7, note="said")
    assert measure.row(line) == ("windows | 1,234,567 rows/s | 0.123 s | 3.46× [3.2, 1.23e+03] | wanted 2.7× | met"
                                 " | said")
    assert measure.row(Line("lerobot", note="peer not installed (why)")) == "lerobot | peer not installed (why)"


def test_the_clock_counts_work_and_children_but_not_waiting():
    assert measure.cpu(lambda: time.sleep(0.3)) < 0.1
    busy = "import time; t = time.process_time()\nwhile time.process_time() < t + 0.3: pass"
    assert 0.25 < measure.cpu(lambda: subprocess.run([sys.executable, "-c", busy], check=True)) < 1.5


def test_sides_take_turns_and_short_calls_are_repeated():
    """By a clock that ticks 0.04 s a call of one side and 0.5 s of the other."""
    clock, turns = [0.0], []

    def side(name, took):
        def work():
            clock[0] += took
            if not turns or turns[-1][0] != name:
                turns.append([name, 0])
            turns[-1][1] += 1
        return work
    seconds = measure.interleaved({"a": side("a", 0.04), "b": side("b", 0.5)}, repeats=3, least=0.3, warm=1,
                                  clock=lambda work: -clock[0] + (work(), clock[0])[1])
    assert seconds == {"a": [pytest.approx(0.04)] * 3, "b": [pytest.approx(0.5)] * 3}  # seconds of one call
    # Warm, then 1 and 4 calls until ten ticks have gone by; then 8 calls of 0.04 s are 0.3 s at least.
    assert turns == [["a", 1 + 1 + 4], ["b", 1 + 1], *[["a", 8], ["b", 1]] * 3]


SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
import measure
from pathlib import Path

measure.HERE, measure.ENVIRONMENTS = Path({place!r}), Path({place!r}) / "environments"
measure.RESULTS = Path({place!r}) / "results"

def here():
    yield measure.compared("here", {{"a": [1.0, 2.0], "b": [2.0, 4.0]}}, "a", "b", amount=1, unit="1/s", goal=1.5)
    yield measure.Line("bare", measure.Figure(1.0, 1.0, 1.0, "s"), bound=2.0)

def there():
    raise AssertionError("without its environment nothing of the peer may run")

lines, versions = measure.beside({{"": here, "nobody": there}}, ("numpy", "surely-not-installed"))
measure.save("tried", lines, packages=(), more={{"versions": versions}})
"""


@pytest.mark.slow
def test_parts_are_brought_together_and_a_peer_that_cannot_be_had_says_so(tmp_path):
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "nobody.txt").write_text("surely-not-installed @ file:///nowhere/at/all\n")
    script = tmp_path / "tried.py"
    script.write_text(SCRIPT.format(folder=str(BENCHMARKS), place=str(tmp_path)))
    process = subprocess.run([sys.executable, script], capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    first, second, third = process.stdout.splitlines()
    assert first == "here | 0.75 1/s | 0.375 1/s | 2× [2, 2] | wanted 1.5× | met" and second == "bare | 1 s | met"
    assert third == "nobody | peer not installed (installing it ended with 1)"
    kept = json.loads((tmp_path / "results" / "tried.json").read_text())
    assert [line["met"] for line in kept["lines"]] == [True, True, None]
    assert kept["lines"][0]["ratio"] == {"estimate": 2.0, "low": 2.0, "high": 2.0}
    assert set(kept["versions"]) == {"python", "numpy", "surely-not-installed"}
    assert kept["versions"]["surely-not-installed"] == "not installed" != kept["versions"]["numpy"]


def test_every_peer_that_is_named_has_its_list():
    """And every list a name that some benchmark asks for."""
    scripts = "\n".join(f.read_text(encoding="utf-8") for f in BENCHMARKS.rglob("*.py"))
    for file in (BENCHMARKS / "peers").glob("*.txt"):
        is_entered = (f'"{file.stem}"' in scripts or f".venv-peers/{file.stem}/" in scripts
                      or file.stem in ("openpi", "lerobot-newest"))  # in tests/serve
        assert is_entered, f"no benchmark enters {file.stem}"
        for line in file.read_text().splitlines():
            assert line.startswith(("#", "-r ")) or line, file


def test_real_work_by_the_real_clock():
    """Three times as many rounds of the same loop take three times as long, though one call is shorter than a tick."""
    def rounds(n):
        return lambda: sum(range(n))
    seconds = measure.interleaved({"ours": rounds(20_000), "peer": rounds(60_000)}, repeats=3, least=0.2)
    assert measure.ratio(seconds["peer"], seconds["ours"]).estimate == pytest.approx(3, rel=0.4)
