"""Records a takeover at the keyboard: python docs/takeover_session.py (1 minute)

The command of a person in a pseudo-terminal, and the keys that the person presses. Its screens, with a character in
place of each colored block, become docs/casts/takeover.cast, which `asciinema play` plays, a picture and a page.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import textwrap
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path

import real_arm_session as session

HERE = Path(__file__).parent
CAST, PAGE = HERE / "casts" / "takeover.cast", HERE / "takeover-session.md"
PICTURE = HERE / "images" / "takeover-session.svg"
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
ROWS = 12  # of a screen that show the scene
SHAPES = {"o": "agent", "#": "block", "+": "goal"}
STYLE = (
    ":root{color-scheme:light dark;--panel:#f5f7f9;--ink:#1a1f26;--soft:#58626e;--line:#aab4bf;--a:#0072b2;--b:#b06f00;"
    "--c:#00805d}@media (prefers-color-scheme:dark){:root{--panel:#161b21;--ink:#e9edf1;--soft:#9ba7b4;--line:#56626f;"
    "--a:#56b4e9;--b:#f0b23c;--c:#3fc79a}}text{font:14px Inter,system-ui,sans-serif;fill:var(--ink)}"
    "text.soft{font-size:13px;fill:var(--soft)}.box{fill:var(--panel);stroke-width:2}.policy{stroke:var(--a)}"
    ".you{stroke:var(--b)}.hold{stroke:var(--line)}.agent{fill:var(--b)}.block{fill:var(--line)}.goal{fill:var(--c)}")
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


def moments(drawn: list[str]) -> list[tuple[list[str], str, str, str]]:
    """Where each key was pressed: the rows of the scene, the line below it, the key, and what the person does."""
    texts, parts, position = [lines(text) for text in drawn], [], 1
    for words, keys, action in PRESSED:
        position = next(i for i in range(position, len(texts)) if words in texts[i])
        rows = re.sub("\x1b\\[\\d*[Km]|\r", "", drawn[position]).splitlines()
        line = next((row for row in rows if row.startswith("step ")), "between two episodes")
        parts.append((rows[:ROWS], line, "enter" if keys == "\n" else keys, action))
    return parts


def panel(number: int, rows: list[str], line: str, key: str, action: str) -> str:
    """One screen of the picture: the scene, who acts, and the key."""
    x, y = number % 3 * 260, number // 3 * 226
    cells = [f'<rect x="{x + 36 + 8 * m.start()}" y="{y + 34 + 11 * i}" width="{8 * len(m[0])}" height="11" '
             f'class="{SHAPES[m[0][0]]}"/>' for i, row in enumerate(rows) for m in re.finditer("o+|#+|[+]+", row)]
    who = "policy" if "policy acts" in line else "you" if "you act" in line else "hold"
    words = textwrap.wrap(f"{key}: {action}", 34)
    return "".join([
        f'<rect x="{x + 6}" y="{y + 6}" width="248" height="214" rx="6" class="box {who}"/>',
        f'<text x="{x + 16}" y="{y + 26}">{number + 1}. {line.partition(", ")[0]}</text>', *cells,
        *(f'<text x="{x + 16}" y="{y + 188 + 18 * i}" class="soft">{part}</text>' for i, part in enumerate(words))])


def picture(drawn: list[str]) -> str:
    """The screens at which keys were pressed, side by side, as SVG that follows the colors of the reader."""
    panels = "\n".join(panel(i, *moment) for i, moment in enumerate(moments(drawn)))
    return (f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 780 {226 * (len(PRESSED) // 3)}" role="img" '
            f'aria-label="The screens of the session, each with the key that was pressed"><style>{STYLE}</style>\n'
            f"{panels}\n</svg>\n")


def page(drawn: list[str]) -> str:
    """The page, from the screens: the command, the picture, the keys, and what was printed in the end."""
    steps = "\n".join(f"{i}. {f'`{key}`' if len(key) == 1 else key}: {action}"
                      for i, (_, _, key, action) in enumerate(moments(drawn), 1))
    result = lines("round 1 of 1" + drawn[-1].partition("round 1 of 1")[2]).partition("\n\nnext:")[0]
    round_lines = result.split("\n\n")[0]  # a table that is wider than the page and the comparison follow
    text = "\n".join(textwrap.fill(line, 80) for line in round_lines.splitlines())
    command = re.sub(r" (--supervisor|--rounds)", r" \\\n    \1", IMPROVE)
    return f"""# A takeover at the keyboard

<!-- made by docs/takeover_session.py: run it instead of editing this page -->

This page shows a session in which a person watches a policy in the toy `fork` and corrects it.
[Take over](take-over.md) explains the command and its keys.

<!-- not run: needs a person at a terminal -->
```console
$ {command}
```

Each screen is the one at which the person pressed the key below it. The orange square is the agent, the gray block the
obstacle, and the goals are green. `asciinema play` plays [the recording](casts/takeover.cast).

![The twelve screens of the session, in their order](images/takeover-session.svg)

{steps}

In the end the command trains the policy, compares it, and says what it did in each round:

```text
{text}
```
"""


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
    screens = [text for _, text in drawn]
    PICTURE.write_text(picture(screens), encoding="utf-8")
    PAGE.write_text(page(screens), encoding="utf-8")


if __name__ == "__main__":
    main()
