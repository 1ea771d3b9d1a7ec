"""Records a takeover at the keyboard: python docs/takeover_session.py (1 minute)

The command of a person in a pseudo-terminal, and the keys that the person presses. Its screens, with a character in
place of each colored block, become docs/casts/takeover.cast, which `asciinema play` plays, and a page.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import real_arm_session as session

HERE = Path(__file__).parent
CAST, PAGE = HERE / "casts" / "takeover.cast", HERE / "takeover-session.md"
SIZE = {"COLUMNS": 160, "LINES": 18}
PREPARE = ("understudy record fork --out demos --episodes 6 2> /dev/null > /dev/null",
           "understudy train bc demos --out runs/fork --steps 300 2> /dev/null > /dev/null")
IMPROVE = ("understudy improve runs/fork --with hg-dagger --supervisor keyboard --out runs/mine --rounds 1 "
           "--episodes 2 --compare 50")
PRESSED = (  # (what the screen says, keys, what the person does)
    ("enter: begin the episode", "\n", "begins the first episode, and watches"),
    ("step 2: the policy acts", "t", "takes over"),
    ("step 3: you act", "a", "moves back"),
    ("step 5: you act", "t", "gives back"),
    ("step 7: the policy acts", "p", "holds"),
    (": hold", "u", "says that the takeover is not to be learned"),
    ("takeover 1 is not learned", "t", "takes over again, out of the hold"),
    (": you act", "a", "moves"),
    ("step 11: you act", "t", "gives back"),
    ("step 13: the policy acts", "n", "ends the episode as a failure"),
    ("enter: begin the episode", "\n", "begins the second episode"),
    ("step 2: the policy acts", "y", "ends it as a success"),
)
CLEAR = "\x1b[2J\x1b[H"
BLOCK = re.compile("\x1b\\[38;5;(\\d+)m\x1b\\[48;5;(\\d+)m▀")


def character(colors: re.Match) -> str:
    """A character for the two pixels of a block: nothing, gray, mostly red, or another color."""
    pixels = [divmod((int(color) - 16) // 6, 6) + ((int(color) - 16) % 6,) for color in colors.groups()]
    red, green, blue = min(pixels, key=sum)
    if red == green == blue or min(red, green, blue) >= 4:
        return " " if red >= 4 else "#"
    return "o" if red > max(green, blue) else "+"


def plain(text: str) -> str:
    """A screen without colors."""
    return re.sub("\x1b\\[0m", "", BLOCK.sub(character, text))


def frames(events: list[tuple[float, str]]) -> list[tuple[float, str]]:
    """When each screen was drawn, and what it shows, without colors."""
    ends, parts, position = list(accumulate(len(text) for _, text in events)), [], 0
    for text in "".join(text for _, text in events).split(CLEAR):
        parts.append((events[bisect_right(ends, position)][0], plain(text)))
        position += len(text) + len(CLEAR)
    return parts


def lines(text: str) -> str:
    """A screen as lines of text."""
    return "\n".join(line.rstrip() for line in re.sub("\x1b\\[\\d*[Km]|\r", "", text).splitlines()).strip("\n")


def page(drawn: list[str]) -> str:
    """The page, from the screens: the plan, the one at which each key was pressed, and what was printed in the end."""
    final, _, result = drawn[-1].partition("round 1 of 1")
    texts = [lines(text) for text in (*drawn[:-1], final)]
    moments, position = [], 1
    for words, keys, action in PRESSED:
        position = next(i for i in range(position, len(texts)) if words in texts[i])
        moments.append((texts[position], f"presses {key_name(keys)}: {action}"))
    plan, result = texts[0], lines("round 1 of 1" + result).removesuffix("$").rstrip()
    parts = [f"""# A takeover at the keyboard

<!-- made by docs/takeover_session.py: run it instead of editing this page -->

A person watches a policy in the toy `fork`, takes over, gives back, holds it, and says what is to be learned
([Improving](improving.md)). Each screen is the one at which the person pressed the key below it: `o` is the agent, `#`
the obstacle, and `+` the goals. `asciinema play` plays [the recording](casts/takeover.cast).

```text
{plan}
```"""]
    parts += [f"```text\n{screen}\n```\n\nThe person {action}." for screen, action in moments]
    parts.append(f"```text\n{result}\n```")
    return "\n\n".join(parts) + "\n"


def key_name(keys: str) -> str:
    return "enter" if keys == "\n" else f"`{keys}`"


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    for name, value in SIZE.items():
        setattr(session, name, value)
    terminal = session.Terminal(folder)
    try:
        for command in PREPARE:
            terminal.run(command, [])
        start = len(terminal.events)
        terminal.run(IMPROVE, [(words, 0.0, keys) for words, keys, _ in PRESSED])
        events = terminal.events[start:]
    finally:
        terminal.close()
        shutil.rmtree(folder, ignore_errors=True)
    drawn = frames(events)
    began = events[0][0]
    head = {"version": 2, "width": SIZE["COLUMNS"], "height": SIZE["LINES"], "title": "A takeover at the keyboard"}
    CAST.write_text("".join(json.dumps(line) + "\n" for line in (
        head, *([round(at - began, 2), "o", CLEAR * bool(i) + text] for i, (at, text) in enumerate(drawn)))),
        encoding="utf-8")
    PAGE.write_text(page([text for _, text in drawn]), encoding="utf-8")


if __name__ == "__main__":
    main()
