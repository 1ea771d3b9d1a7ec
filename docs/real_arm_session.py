"""Records the whole way of docs/real-arm.md with emulated arms: python docs/real_arm_session.py (4 minutes)

A shell in a pseudo-terminal gets the commands of STEPS, and the keys that a person would press. Its output becomes
docs/casts/real-arm.cast, which `asciinema play` plays (asciicast v2). docs/real-arm-session.md shows some of the steps.
"""

from __future__ import annotations

import codecs
import fcntl
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
CAST, PAGE = HERE / "casts" / "real-arm.cast", HERE / "real-arm-session.md"
COLUMNS, LINES = 110, 30
FOLLOWER = "--robot so101_follower --robot.port $FOLLOWER --robot.id mine"
LEADER = "--teleop so101_leader --teleop.port $LEADER --teleop.id mine"


@dataclass(frozen=True)
class Step:
    """Commands of one section.

    Args:
        title: Title of the section.
        commands: The commands.
        answers: What a person answers, one after the other: (text that asks, seconds to wait, keys).
        on_page: Whether the page shows it. The recording has all steps.
    """

    title: str
    commands: tuple[str, ...]
    answers: tuple[tuple[str, float, str], ...] = ()
    on_page: bool = True


CALIBRATING = (("middle of its range, and press enter", 1, "\n"), ("Then press enter", 16, "\n"))
STEPS = (
    Step("Two emulated arms", (
        "understudy robot emulate --robot so101_follower --wave > follower.txt 2> /dev/null &",
        "understudy robot emulate --teleop so101_leader --wave > leader.txt 2> /dev/null &",
        "until grep -q port follower.txt && grep -q port leader.txt; do sleep 1; done",
        "FOLLOWER=$(cut -c 7- follower.txt) LEADER=$(cut -c 7- leader.txt)")),
    Step("Calibrate", (f"understudy robot calibrate {FOLLOWER}",), CALIBRATING),
    Step("Calibrate the leader", (f"understudy robot calibrate {LEADER}",), CALIBRATING, on_page=False),
    Step("Teleoperate", (f"understudy robot teleoperate {FOLLOWER} {LEADER} --fps 30 --teleop-time-s 4",)),
    Step("Record", (f"understudy record {FOLLOWER} {LEADER} --fps 20 --episodes 5 --episode-time-s 4 "
                    "--warmup-time-s 1 --reset-time-s 1 --task 'follow the hand' --out demos",)),
    Step("Train", ("understudy train bc demos --out runs/arm --steps 300",), on_page=False),
    Step("Act", (f"understudy act runs/arm {FOLLOWER} --episode-time-s 5",), (("press enter (q", 1, "\n"),)),
    Step("Serve, and act with the served policy", (
        "understudy serve runs/arm --port 8123 > address.txt 2> server.log &",
        "until grep -q served address.txt; do sleep 1; done; head -1 address.txt",
        f"understudy act ws://127.0.0.1:8123 {FOLLOWER} --episode-time-s 10"), (("press enter (q", 1, "\n"),)),
    Step("Stop the server", ("kill $!; wait $!; cut -c 1-110 server.log",), on_page=False),
)


class Terminal:
    """A shell in a pseudo-terminal, and all it has written: (seconds, text) each."""

    def __init__(self, folder: Path):
        program = folder / "bin" / "understudy"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m understudy "$@"\n')
        program.chmod(0o755)
        env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PS1": "$ ", "TERM": "xterm",
               "PYTHONPATH": str(HERE.parent / "src"), "UNDERSTUDY_CALIBRATION": "calibration", "NO_COLOR": "1",
               "PROMPT_COMMAND": f"echo $? >> {folder / 'statuses'}", "OMP_NUM_THREADS": "1", "HISTFILE": ""}
        for name in ("COLUMNS", "LINES"):
            env.pop(name, None)
        env["INPUTRC"] = str(folder / "inputrc")
        (folder / "inputrc").write_text("set enable-bracketed-paste off\n")
        (folder / "work").mkdir()
        self.statuses, self.events, self.began = folder / "statuses", [], time.monotonic()
        self.decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")  # a read may end within a character
        self.screen, other = pty.openpty()
        subprocess.run(["stty", "rows", str(LINES), "cols", str(COLUMNS)], stdin=other, check=True)
        self.shell = subprocess.Popen(["bash", "--norc", "--noprofile", "-i"], stdin=other, stdout=other, stderr=other,
                                      cwd=folder / "work", env=env, start_new_session=True,
                                      preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0))
        os.close(other)
        self.wait(lambda: self.text().endswith("$ "))

    def ended(self) -> list[int]:
        """The exit statuses of the commands so far. The first is that of the start."""
        return [int(s) for s in self.statuses.read_text().split()] if self.statuses.exists() else []

    def text(self, since: int = 0) -> str:
        return "".join(text for _, text in self.events[since:])

    def wait(self, done, seconds: float = 180) -> None:
        """Reads what is written until `done`."""
        until = time.monotonic() + seconds
        while not done():
            if time.monotonic() > until:
                raise SystemExit(f"waited too long:\n{self.text()[-2000:]}")
            if select.select([self.screen], [], [], 0.1)[0]:
                text = self.decoder.decode(os.read(self.screen, 65536))
                self.events.append((time.monotonic() - self.began, text))

    def run(self, command: str, answers: list[tuple[str, float, str]]) -> str:
        """Runs a command, and returns what it wrote."""
        first, n = len(self.events), len(self.ended())

        def has_ended() -> bool:
            return len(self.ended()) > n

        def asks(since: int) -> bool:
            return has_ended() or bool(answers) and answers[0][0] in self.text(since)

        def is_later(than: float) -> bool:
            return time.monotonic() > than
        os.write(self.screen, f"{command}\n".encode())
        since = first
        while not has_ended():
            self.wait(partial(asks, since))
            if not has_ended():
                _, pause, keys = answers.pop(0)
                self.wait(partial(is_later, time.monotonic() + pause))
                since = len(self.events)
                os.write(self.screen, keys.encode())
        self.wait(lambda: self.text(first).endswith("$ "))
        if status := self.ended()[-1]:
            raise SystemExit(f"{command} ended with status {status}:\n{self.text(first)}")
        return self.text(first)

    def close(self) -> None:
        os.write(self.screen, b"\x03\nkill $(jobs -p); exit\n")
        try:
            self.shell.wait(10)
        except subprocess.TimeoutExpired:
            self.shell.kill()
        os.close(self.screen)


def shown(raw: str) -> str:
    """What a terminal shows in the end: lines that were written over, and colors, are gone."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|[\r\n]|[^\x1b\r\n]+", raw):
        if part == "\n":
            row, lines = row + 1, lines + [""] * (row + 2 > len(lines))
        elif part == "\r":
            column = 0
        elif part.startswith("\x1b"):
            number = int(re.sub(r"\D", "", part) or 1)
            if part[-1] == "A":
                row = max(row - number, 0)
            elif part[-1] == "K":
                lines[row] = "" if part == "\x1b[2K" else lines[row][:column]
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part):]
            column += len(part)
    return "\n".join(line.rstrip() for line in lines).strip("\n")


def thinned(events: list[tuple[float, str]], period: float = 1.0) -> list[tuple[float, str]]:
    """The events together by the second. Of lines that are written over again and again, the last of a second stays."""
    bins: dict[int, list[tuple[float, str]]] = {}
    for at, text in events:
        bins.setdefault(int(at / period), []).append((at, text))
    found = []
    for part in bins.values():
        text = "".join(t for _, t in part)
        text = re.sub(r"(?:\r[^\r\n]*\x1b\[K)+(?=\r[^\r\n]*\x1b\[K)", "", text)
        text = re.sub(r"(?:\r\x1b\[(\d+)A(?:[^\n]*\n)+?)+(?=\r\x1b\[\1A)", "", text)
        found.append((round(part[-1][0], 2), text))
    return found


def folded(line: str) -> str:
    """A line of the terminal in lines of at most 80 characters."""
    if not line.startswith("$ "):
        return "\n".join(textwrap.wrap(line, 80)) if len(line) > 80 else line
    lines = [""]
    for word in re.split(r" (?=--)", line):
        if lines[-1] and len(lines[-1]) + len(word) > 77:
            lines.append("    ")
        lines[-1] += word if lines[-1].isspace() or not lines[-1] else f" {word}"
    return " \\\n".join(lines)


def page(recorded: str) -> str:
    """The page, from all that the terminal shows in the end."""
    begins = [recorded.index(f"$ {step.commands[0]}\n") for step in STEPS]
    parts = ["""# A session with emulated arms

<!-- made by docs/real_arm_session.py: run it instead of editing this page -->

This page shows what some commands of [the way from a real arm to a served policy](real-arm.md) print. Read it before
you stand next to an arm, or compare it with what your terminal shows. Long lines are folded.

The arms are emulated ([Robots](robots.md#without-hardware)). The policy learned from five short episodes, so the page
does not show how good a policy can be. `asciinema play` plays [the whole recording](casts/real-arm.cast)."""]
    for step, begin, end in zip(STEPS, begins, [*begins[1:], len(recorded)], strict=True):
        if step.on_page:
            lines = [folded(line) for line in recorded[begin:end].rstrip().splitlines()]
            parts.append("\n".join([f"## {step.title}", "", "```text", *lines, "```"]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    terminal = Terminal(folder)
    try:
        for step in STEPS:
            answers = list(step.answers)
            for command in step.commands:
                print(shown("$ " + terminal.run(command, answers).removesuffix("$ ")), flush=True)
    finally:
        terminal.close()
        shutil.rmtree(folder, ignore_errors=True)
    head = {"version": 2, "width": COLUMNS, "height": LINES, "title": "From an emulated arm to a served policy"}
    CAST.parent.mkdir(exist_ok=True)
    CAST.write_text("".join(json.dumps(line) + "\n" for line in
                            (head, *([at, "o", text] for at, text in thinned(terminal.events)))), encoding="utf-8")
    PAGE.write_text(page(shown("".join(text for _, text in terminal.events))), encoding="utf-8")


if __name__ == "__main__":
    main()
