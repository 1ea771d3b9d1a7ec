"""Draws pictures from stored results, for results.md, which-method.md and person-to-robot.md: python docs/pictures.py

All are 440 units wide, so that their text has the size of the page's text on a phone as well. Their colors follow the
page, and nothing is shown by color alone.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT), str(ROOT / "src")]

from evidence.published.figures import cells  # noqa: E402
from evidence.tables import find_table  # noqa: E402
from understudy.evaluate.plots import COLORS, FONT  # noqa: E402

RESULTS, IMAGES, WIDTH = ROOT / "benchmarks" / "results", ROOT / "docs" / "images", 440
PAPER = {"light": "#ffffff", "dark": "#1e2129"}  # those of the pages

# Group -> the file of results, its line, and what the picture calls it.
SPEED = {
    "LeRobot": (
        ("windows", "batches of 64; lerobot's loader", "load batches of 64"),
        ("train_step", "U-Net (64, 128, 256), 4.47 M weights, batches of 256: as it comes (bf16)",
         "training step, U-Net of 4.5 M weights"),
        ("train_step", "U-Net (256, 512, 1024), 63.2 M weights, batches of 128: as it comes (bf16)",
         "training step, U-Net of 63 M weights"),
        ("train_step", "ACT on state, chunks of 100, batches of 8: as it comes (bf16)", "training step, ACT"),
        ("latency", "U-Net (64, 128, 256), 4.47 M weights, DDIM-10: the policy as it is", "one chunk, DDIM-10"),
        ("latency", "U-Net (64, 128, 256), 4.47 M weights, DDIM-10: ONNX file, fp32",
         "one chunk, DDIM-10, from an ONNX file"),
        ("writing", "av1; lerobot's writer", "write episodes with a camera, AV1"),
        ("video", "480×640, AV1; torchcodec as lerobot calls it", "read windows of video, 480×640")),
    "d3rlpy": (
        ("offline_rl", "IQL, updates, against d3rlpy", "updates of IQL"),
        ("compiled_updates", "IQL, compiled updates, against d3rlpy", "compiled updates of IQL"),
        ("offline_rl", "TD3+BC, updates, against d3rlpy", "updates of TD3+BC"),
        ("offline_rl", "BC, updates, against d3rlpy", "updates of BC")),
    "other libraries": (
        ("windows", "batches of 64; robomimic, all cached", "load batches of 64, robomimic"),
        ("offline_rl", "IQL, updates, against CORL", "updates of IQL, CORL"),
        ("offline_rl", "BC, batches of 256, updates, against imitation", "updates of BC, imitation"),
        ("offline_rl", "hiql, updates, against OGBench's JAX agent", "updates of HIQL, OGBench in JAX"),
        ("compiled_updates", "hiql, compiled updates, against OGBench's JAX agent",
         "compiled updates of HIQL, OGBench in JAX"),
        ("video", "480×640, AV1; torchcodec", "read windows of video, torchcodec")),
}
REAL = {"door": "Adroit door, 25 demonstrations by people", "door-open": "Meta-World door-open, scripted",
        "drawer-open": "Meta-World drawer-open, scripted", "pick-place": "Meta-World pick-place, scripted",
        "hopper": "Hopper, 2 episodes of a trained agent", "walker2d": "Walker2d, 2 episodes of a trained agent"}
PUBLISHED = {"td3-pendulum": "Pendulum, TD3", "ddpg-pendulum": "Pendulum, DDPG", "hopper-dagger": "Hopper, DAgger",
             "walker2d-dagger": "Walker2d, DAgger", "halfcheetah-dagger": "HalfCheetah, DAgger",
             "halfcheetah-bc": "HalfCheetah, cloning", "ant-dagger": "Ant, DAgger", "ant-bc": "Ant, cloning",
             "humanoid-bc": "Humanoid, cloning"}
# Arm of the table person-to-robot -> what the picture calls it.
PERSON = {"robot": "200 demonstrations of the robot", "tips, 200 kept": "tips, 200 recordings in reach",
          "lengths 10 % off": "tips, 200, lengths 10 % too short",
          "lengths 25 % off": "tips, 200, lengths 25 % too short",
          "tips, dropped, and 10 of the robot": "tips, in reach of 200, and 10 of the robot",
          "tips, dropped": "tips, in reach of 200", "tips, clipped": "tips, 200, clipped to the reach",
          "joints": "joints copied, 200", "10 of the robot": "10 demonstrations of the robot"}
STATUSES = ("reproduced", "above", "below", "approached", "no published figure", "not run")

# Question, and what to try first if the answer is yes.
DECISIONS = (
    (("Are actions missing", "in the recordings?"), ("vpt, or bco", "with a simulator for practice")),
    (("Is the goal named only", "while the policy acts?"), ("gcbc", "to join pieces: gcivl, hiql")),
    (("Are too few episodes left", "without the failures?"), ("iql", "it needs rewards")),
    (("Do cameras show", "what the policy needs?"), ("act", "several ways: diffusion-policy")),
    (("Is there one episode,", "or fewer than 40?"), ("knn, search-bc", "one: retrieve-align-replay")),
    (("Do they do the same", "in several ways?"), ("flow-policy", "in one evaluation: bc-gmm")),
    (("Do only earlier steps", "tell what to do now?"), ("bc-rnn-gmm", "it remembers what it saw")),
)


@dataclass(frozen=True)
class Row:
    """One line of a chart: a point with its interval, or a bar from the left."""

    name: str
    said: str
    low: float
    middle: float
    high: float
    hollow: bool = False


@dataclass(frozen=True)
class Axis:
    """The scale of a chart, and the line that values are compared with."""

    low: float
    high: float
    ticks: Mapping[float, str]
    line: float | None = None
    log: bool = False
    beside: float = 0.0  # room on the left for names and on the right for figures, which else stand above

    def place(self, value: float) -> float:
        a, b, v = ((math.log(x) for x in (self.low, self.high, value)) if self.log
                   else (self.low, self.high, value))
        left, right = 6 + self.beside, WIDTH - 6 - self.beside
        return left + (right - left) * min(max((v - a) / (b - a), 0.0), 1.0)


def tag(kind: str, text: str = "", **options: Any) -> str:
    given = "".join(f' {k.rstrip("_").replace("_", "-")}="{v:.4g}"' if isinstance(v, float)
                    else f' {k.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for k, v in options.items())
    return f"<{kind}{given}>{text}</{kind}>" if text else f"<{kind}{given}/>"


def words(x: float, y: float, text: str, kind: str = "", anchor: str = "start") -> str:
    return tag("text", escape(text), x=float(x), y=float(y), class_=kind, text_anchor=anchor)


def line(x0: float, y0: float, x1: float, y1: float, kind: str) -> str:
    return tag("path", d=f"M{x0:.1f} {y0:.1f}L{x1:.1f} {y1:.1f}", class_=kind)


def svg(parts: Iterable[str], height: float, about: str) -> str:
    def colors(theme):
        return "".join(f"--{k}:{v};" for k, v in {**COLORS[theme], "paper": PAPER[theme]}.items())
    style = (f":root{{{colors('light')}}}@media (prefers-color-scheme:dark){{:root{{{colors('dark')}}}}}"
             f"svg{{font-family:{FONT};font-size:13px;font-variant-numeric:tabular-nums}}"
             "text{fill:var(--ink);paint-order:stroke;stroke:var(--paper);stroke-width:6px;stroke-linejoin:round}"
             ".box+text,.box+text+text{stroke:none}"
             ".soft{fill:var(--soft);font-size:12px}.strong{font-weight:600}path{fill:none;stroke:var(--ink)}"
             ".mono{font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;font-weight:600}"
             ".grid{stroke:var(--line)}.base{stroke:var(--soft);stroke-width:1.5}"
             ".mark{stroke-width:2}.stem{stroke:var(--s0);stroke-width:4;stroke-opacity:.4}.dot{fill:var(--s0);stroke:var(--s0);stroke-width:2}"
             ".ring{fill:var(--paper);stroke:var(--bad);stroke-width:2}.bar{fill:var(--s0)}"
             ".rest{fill:var(--line)}.box{fill:var(--panel);stroke:var(--edge)}.answer{fill:none;stroke:var(--s2)}")
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" '
            f'height="{height:.0f}" role="img" aria-label="{escape(about)}"><style>{style}</style>'
            + tag("rect", width=WIDTH, height=float(height), fill="var(--paper)") + "".join(parts) + "</svg>\n")


# -- charts of rows -----------------------------------------------------------------------------------------------


def dot(row: Row, axis: Axis, y: float) -> str:
    stem = line(axis.place(axis.line), y, axis.place(row.middle), y, "stem") if axis.log and axis.line else ""
    return (stem + line(axis.place(row.low), y, axis.place(row.high), y, "mark")
            + tag("circle", cx=axis.place(row.middle), cy=y, r=4.5, class_="ring" if row.hollow else "dot"))


def bar(row: Row, axis: Axis, y: float) -> str:
    a, b = axis.place(axis.low), axis.place(row.middle)
    parts = [tag("rect", x=a, y=y - 5, width=axis.place(axis.high) - a, height=10, rx=2, class_="rest"),
             tag("rect", x=a, y=y - 5, width=max(b - a, 0.5), height=10, rx=2, class_="bar")]
    if row.low < row.high:
        low, high = axis.place(row.low), axis.place(row.high)
        parts += [line(low, y, high, y, "mark"), *(line(x, y - 4, x, y + 4, "mark") for x in (low, high))]
    return "".join(parts)


def chart(groups: Mapping[str, Sequence[Row]], axis: Axis, draw: Callable[[Row, Axis, float], str], about: str,
          top: Sequence[str] = (), start: float = 0.0) -> str:
    """Groups of rows below each other, each with its name and figure above its point or bar, on one axis."""
    parts, spoken, y = [], [], start
    for group, rows in groups.items():
        if group:
            parts.append(words(6, y + 20, group, "strong"))
            y += 28
        for row in rows:
            middle = y + (10 if axis.beside else 27)
            parts += [words(6, y + 14, row.name), words(WIDTH - 6, y + 14, row.said, "soft", "end")]
            if axis.line is not None:  # beside each point, so that no text stands on it
                parts.append(line(axis.place(axis.line), middle - 8, axis.place(axis.line), middle + 8, "base"))
            parts.append(draw(row, axis, middle))
            spoken.append(f"{row.name}{f' ({group})' if group else ''}: {row.said}")
            y += 22 if axis.beside else 40
        y += 6
    grid = []
    for value, label in axis.ticks.items():
        x = axis.place(value)
        anchor = "start" if x < 20 else "end" if x > WIDTH - 20 else "middle"
        grid += [line(x, start, x, y, "grid"), words(x, y + 16, label, "soft", anchor)]
    return svg([*top, *grid, *parts], y + 24, f"{about} {'; '.join(spoken)}.")


def stored(name: str) -> dict[str, Any]:
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def speed() -> str:
    """Times as fast as other libraries, with the 95 % interval over turns."""
    groups = {}
    for peer, lines in SPEED.items():
        groups[f"against {peer}"] = rows = []
        for name, what, shown in lines:
            ratio = next(x["ratio"] for x in stored(name)["lines"] if x["what"] == what)
            low, middle, high = ratio["low"], ratio["estimate"], ratio["high"]
            rows.append(Row(shown, f"{number(middle)}× [{number(low)}, {number(high)}]", low, middle, high, middle < 1))
    axis = Axis(0.5, 4000, {1: "1×", 10: "10×", 100: "100×", 1000: "1,000×"}, 1, log=True)
    return chart(groups, axis, dot, "Times as fast as the other library.")


def published() -> str:
    """How many cells have which status, and those that can be judged as a difference from the published figure."""
    table = cells()
    counts = {s: sum(row["status"].startswith(s) for row in table) for s in STATUSES}
    shades = ("var(--s2)", "var(--s0)", "var(--bad)", "var(--edge)", "var(--line)", "var(--paper)")
    parts, x, unit = [words(6, 18, f"{len(table)} cells by status", "strong")], 6.0, (WIDTH - 12) / len(table)
    for place, (name, count) in enumerate(counts.items()):
        parts += [tag("rect", x=x, y=28, width=count * unit, height=22, fill=shades[place], stroke="var(--soft)"),
                  tag("rect", x=6 + 220 * (place % 2), y=60 + 20 * (place // 2), width=12, height=12,
                      fill=shades[place], stroke="var(--soft)"),
                  words(24 + 220 * (place % 2), 71 + 20 * (place // 2), f"{name}: {count}", "soft")]
        x += count * unit
    rows, decided = [], [row for row in table if row["status"] in STATUSES[:3]]
    for row in decided:
        low, middle, high = (100 * (row["here"][k] - row["published"]) / abs(row["published"])
                             for k in ("low", "mean", "high"))
        rows.append(Row(PUBLISHED[row["cell"]], f"{signed(middle)} % [{signed(low)}, {signed(high)}], {row['status']}",
                        low, middle, high, row["status"] == "below"))
    axis = Axis(-65, 25, {-60: "−60 %", -40: "−40 %", -20: "−20 %", 0: "published", 20: "+20 %"}, 0)
    said = ", ".join(f"{count} {name}" for name, count in counts.items())
    return chart({"minus the published figure, of those judged": rows}, axis, dot,
                 f"Of {len(table)} published figures: {said}.", parts, 124)


def real_input() -> str:
    """Success, or return as a share of the demonstrations'."""
    groups = {}
    for task, title in REAL.items():
        found = [json.loads(p.read_text(encoding="utf-8")) for p in sorted((RESULTS / "real-input").glob("*.json"))]
        shown = stored(f"real-input/{task}-shown")["return"]
        rows = []
        for cell in (c for c in found if c.get("cell", "").split("/")[0] == task):
            share = cell["success"] or {k: max(cell["return"][old] / shown, 0) for k, old in
                                        {"estimate": "mean", "low": "low", "high": "high"}.items()}
            low, middle, high = (100 * share[k] for k in ("low", "estimate", "high"))
            rows.append(Row(cell["cell"].split("/")[1], f"{middle:.0f} % [{low:.0f}, {high:.0f}]", low, middle, high))
        measure = "return" if task in ("hopper", "walker2d") else "success"
        groups[f"{title}: {measure}"] = sorted(rows, key=lambda row: (row.name == "untrained", -row.middle))
    axis = Axis(0, 100, {v: f"{v} %" for v in (0, 25, 50, 75, 100)}, beside=110.0)
    return chart(groups, axis, bar, "Success on real input.")


def kills() -> str:
    """Saved episodes of recordings that were killed, and how many of them were lost."""
    result = stored("kill")
    rows = []
    for text in result["table"][2:]:
        what, end, trials, saved, lost, _ = (cell.strip() for cell in text.strip("|").split("|"))
        rows.append(Row(f"{what.replace('`', '')}, {end}", f"{trials} trials: {saved} saved, {lost} lost",
                        0, int(saved), 0))
    trained = stored("kill_training")
    killed = [Row(f"{name}, killed {trained['kills']} times", f"{trained['differences']} differences", 0,
                  trained["kills"], 0) for name in trained["seconds"]]
    axis = Axis(0, 175, {0: "0", 50: "50", 100: "100", 150: "150"})
    return chart({"finished episodes of recordings that were killed": rows,
                  "trainings that were killed and resumed": killed}, axis, bar,
                 f"{result['lost']} of {result['saved']} finished episodes lost in {result['trials']} trials.")


def statistics() -> str:
    """How often 95 % intervals contain the truth: the mean over cases, and the worst case."""
    rows = []
    for entry in stored("coverage")["lines"]:
        if entry["name"] == "McNemar, exact":  # from here on there are tests
            break
        mean, worst = 100 * entry["mean"], 100 * entry["worst"]
        rows.append(Row(entry["name"], f"{mean:.1f} %, worst {worst:.1f} %", worst, mean, mean,
                        entry["promise"] == "at least 95 %" and worst < 95))
    return chart({"": rows}, Axis(80, 100, {80: "80 %", 85: "85 %", 90: "90 %", 95: "95 %", 100: "100 %"}, 95), dot,
                 "How often 95 % intervals contain the truth, on average and in the worst case.")


def person_to_robot() -> str:
    """Success of a robot's policy by what it was trained on, with the range of the training seeds."""
    table, rows = find_table("person-to-robot"), []
    for arm, name in PERSON.items():
        figures = [100 * figure for figure in table.figures(arm)]
        low, middle, high = min(figures), sum(figures) / len(figures), max(figures)
        rows.append(Row(name, f"{middle:.0f} %, seeds {low:.0f} to {high:.0f} %", low, middle, high))
    return chart({"": rows}, Axis(0, 100, {v: f"{v} %" for v in (0, 25, 50, 75, 100)}), bar,
                 "Success of the robot by what its policy was trained on.")


# -- the decision -------------------------------------------------------------------------------------------------


def decision() -> str:
    """Questions one below the other. Yes leads to the right, no leads down."""
    height, gap, left, right = 52, 30, 186, 196
    parts, spoken, y = [], [], 2.0
    arrow = "M-7 -4L0 0L-7 4"
    for question, (methods, then) in DECISIONS:
        middle, answer = y + height / 2, WIDTH - right - 1
        parts += [tag("rect", x=1, y=y, width=left, height=height, rx=8, class_="box"),
                  words(13, y + 22, question[0]), words(13, y + 40, question[1]),
                  line(left + 1, middle, answer - 2, middle, "mark"),
                  tag("path", d=arrow, transform=f"translate({answer - 2} {middle})", class_="mark"),
                  words((left + answer) / 2, middle - 7, "yes", "soft", "middle"),
                  tag("rect", x=answer, y=y, width=right, height=height, rx=8, class_="answer", stroke_width=2),
                  words(answer + 12, y + 22, methods, "mono"), words(answer + 12, y + 40, then, "soft"),
                  line(left / 2, y + height, left / 2, y + height + gap - 2, "mark"),
                  tag("path", d=arrow, transform=f"translate({left / 2} {y + height + gap - 2}) rotate(90)",
                      class_="mark"),
                  words(left / 2 + 9, y + height + 19, "no", "soft")]
        spoken.append(f"{' '.join(question)} Yes: {methods}, {then}.")
        y += height + gap
    parts += [tag("rect", x=1, y=y, width=left, height=height, rx=8, class_="answer", stroke_width=2),
              words(13, y + 22, "bc", "mono"), words(13, y + 40, "the plainest baseline", "soft")]
    return svg(parts, y + height + 2, f"Questions in turn. {' '.join(spoken)} Otherwise: bc.")


PICTURES = {"results-speed": speed, "results-published": published, "results-real-input": real_input,
            "results-kills": kills, "results-statistics": statistics, "which-method": decision,
            "person-to-robot": person_to_robot}


if __name__ == "__main__":
    for name, draw in PICTURES.items():
        (IMAGES / f"{name}.svg").write_text(draw(), encoding="utf-8")
