"""Write the pages that are made from the program: methods.md, methods/ and command-line.md. `make docs` runs it."""

from __future__ import annotations

import functools
import inspect
import re
from pathlib import Path

import family_openings

HERE = Path(__file__).parent
MADE = "<!-- made by docs/generate.py: change the source, not this page -->"

METHODS = """# Methods

{made}

A named method is a policy, an executor that runs it, and a learner that trains it. This page lists all of them, by
family. [Which method](which-method.md) leads from your data to one of them, and `understudy choose DATA`
[tries several](choosing.md).

`understudy methods offline-rl` lists the methods of a family with what they cost on one processor core,
`understudy methods NAME` describes a method, and `understudy train NAME --help` lists every field with its default.
Some methods have other names [in other libraries](other-libraries.md).

Every method can be run with another [executor](execution.md#the-schemes). To add a method, write
[a function that returns a `Method`](own-method.md).

## All methods

{families}
"""

NUMBERS, CLASSES_TOO = "actions that are numbers", "actions that are numbers or classes"
ENDED = "which steps ended an episode (next.terminated)"
SHORT_NEEDS = {
    ENDED: "`next.terminated`",
    f"rewards, and {ENDED}": "rewards and `next.terminated`",
    "actions that are numbers or classes in some episodes; the others may lack them, or hold NaN":
        "numbers or classes as actions of some episodes",
    "practice with actions, of any quality, besides the demonstrations (--prior)": "practice with actions (`--prior`)"}

FAMILY = """# {title}

{made}

{opening}

## Methods

`understudy methods {name}` prints what each method costs, and `understudy methods NAME` the options of a method and
how it differs from its paper.

{needs}

{methods}
"""

COMMAND_LINE = """# Command line

{made}

Every command ends with one of these exit statuses:

| status | meaning |
|---|---|
| 0 | the command finished, whatever its verdict |
| 1 | an error in understudy itself |
| 2 | an error that you can fix; a message on standard error explains it, and `--debug` shows where it came from |
| 3 | an audit found errors, evidence does not hold, or more steps of `act` than allowed were clipped, stale or late |
| 130 | interrupted; the same command continues |

With `--json`, a command prints one JSON document on standard output and nothing else there.
[Output for programs](json.md) lists its keys.

| command | what it does |
|---|---|
{overview}

`understudy completion bash`, `zsh` or `fish` prints a script with which your shell completes commands and options.

{commands}
"""


def methods() -> str:
    families = "\n\n".join(_family_entry(family, described) for family, described in by_family().items())
    return METHODS.format(made=MADE, families=families)


def family_pages() -> dict[str, str]:
    """Text by file name below docs/."""
    return {_family_file(family): _family_page(family, described) for family, described in by_family().items()}


@functools.cache
def by_family() -> dict[str, list[dict]]:
    """What `understudy methods --json` says of the methods of understudy itself, by family."""
    from understudy.methods import describe_methods, method_files

    families: dict[str, list[dict]] = {}
    for description in describe_methods():
        if description["name"] in method_files():
            families.setdefault(description["family"], []).append(description)
    return families


def _family_file(family: str) -> str:
    return f"methods/{family.replace('_', '-')}.md"


def _family_title(family: str) -> tuple[str, str]:
    """The title of a family and what its methods do, such as "look up similar situations"."""
    from understudy.methods import method_families

    title, _, summary = method_families()[family].removesuffix(".").partition(": they ")
    return title, summary


def _family_entry(family: str, described: list[dict]) -> str:
    """Links to a family and its methods. The anchors are those that the methods had on this page before."""
    title, summary = _family_title(family)
    links = ", ".join(f"{_method_link(d['name'])}{{#{d['name']}}}" for d in described)
    return f"**[{title}]({_family_file(family)})**: they {summary}.\n\n{links}\n{{.names}}"


def _method_link(name: str) -> str:
    (family,) = (family for family, described in by_family().items() if any(d["name"] == name for d in described))
    return f"[`{name}`]({_family_file(family)}#{name})"


def _family_page(family: str, described: list[dict]) -> str:
    from understudy.methods import find_method

    shared = _shared_needs(described)
    methods = "\n\n".join(_method(d, find_method(d["name"]), {NUMBERS, CLASSES_TOO, *shared}) for d in described)
    return FAMILY.format(made=MADE, title=_family_title(family)[0], name=family.replace("_", "-"),
                         opening=family_openings.OPENINGS[family], needs=_needs(described, shared), methods=methods)


def _shared_needs(described: list[dict]) -> dict[str, list[str]]:
    """What most methods of a family need besides actions, and the names of those that do not."""
    without = {need: [d["name"] for d in described if need not in d["needs"]]
               for need in dict.fromkeys(need for d in described for need in d["needs"])}
    return {need: names for need, names in without.items()
            if len(described) > 5 and 3 * len(names) <= len(described) and need not in (NUMBERS, CLASSES_TOO)}


def _needs(described: list[dict], shared: dict[str, list[str]]) -> str:
    """What the methods of a family need, as far as their sections do not say it."""
    with_classes = [d["name"] for d in described if CLASSES_TOO in d["needs"]]
    lines = ["Methods need actions that are numbers, unless their section says otherwise."]
    if with_classes:
        lines[0] += f" Actions may be classes, too, for {_names(with_classes)}."
    if any("next.terminated" in need for d in described for need in d["needs"]):
        lines[0] += " `next.terminated` is a column that tells which steps ended an episode."
    lines += [f"*Needs of all methods{f' but {_names(names)}' if names else ''}:* {SHORT_NEEDS.get(need, need)}"
              for need, names in shared.items()]
    return "<br>\n".join(lines)


def _names(names: list[str]) -> str:
    *most, last = (f"`{name}`" for name in names)
    return f"{', '.join(most)} and {last}" if most else last


def _from_folder(text: str) -> str:
    """The same, with links to pages of the documents, as seen from docs/methods/."""
    return re.sub(r"docs/([\w-]+\.md)", r"[\1](../\1)", text)


def _method(f: dict, method, said: set[str]) -> str:
    """The section of a method, without the needs that are said above all sections."""
    needs = [SHORT_NEEDS.get(need, need) for need in f["needs"] if need not in said]
    details = {"Needs": "; ".join(needs), "Trains first": ", ".join(stage.name for stage in method.stages)}
    lines = [*(f"*{name}:* {text}" for name, text in details.items() if text), _paper(f["paper"])]
    return "\n".join([f"## {f['name']}", "", f["summary"], f"Choose it {_from_folder(f['when'])}", "",
                      "<br>\n".join(lines)])


def _paper(text: str) -> str:
    """The first paper of a method with a link, without what differs from it."""
    first = text.split("; ")[0]
    if found := re.match(r"(.+?), arXiv ([\d.]+\d)", first):
        name, number = found.groups()
        return f"[{name}{')' * (name.count('(') - name.count(')'))}](https://arxiv.org/abs/{number})"
    return ", ".join(first.split(", ")[:2])


def command_line() -> str:
    """A section for each command, with a table of its arguments and options."""
    from understudy.commands.parts.command_list import COMMANDS

    groups: dict[str, list[str]] = {}
    for name, command in COMMANDS.items():
        groups.setdefault(command.group, []).append(f"| [`{name}`](#{name}) | {command.summary} |")
    overview = "\n".join(row for group, rows in groups.items() for row in (f"| **{group}** | |", *rows))
    return COMMAND_LINE.format(made=MADE, overview=overview, commands="\n\n".join(map(_command_section, COMMANDS)))


def _command_section(name: str) -> str:
    from understudy.commands.parts.command_list import options_class
    from understudy.commands.parts.help_page import option_texts
    from understudy.commands.parts.options import options_of

    cls = options_class(name)
    options, texts = sorted(options_of(cls), key=lambda o: not o.is_positional), option_texts(cls)
    words = [o.flag if o.is_required else f"[{o.flag.strip('[]')}]" for o in options if o.is_positional]
    words += [f"{o.flag} {_value_name(o)}" for o in options if o.is_required and not o.is_positional]
    rows = [f"| {_code(o.flag if o.is_positional else f'{o.flag} {_value_name(o)}'.strip())} "
            f"| {_cell(texts[o.name])} | {_default(cls, o, texts[o.name])} |" for o in options]
    usage = f"```text\nunderstudy {' '.join([name, *words])}\n```"
    return "\n".join([f"## {name}", "", usage, "", inspect.getdoc(cls), "",
                      "| argument or option | meaning | default |", "|---|---|---|", *rows])


def _value_name(option) -> str:
    """What stands for the value of an option: its metavar, or its choices."""
    from typing import Literal, get_args, get_origin

    literals = [str(choice) for kind in (option.kind, *get_args(option.kind)) if get_origin(kind) is Literal
                for choice in get_args(kind)]
    return option.metavar or "|".join(literals) or ("" if option.kind is bool else option.name.upper())


def _default(cls, option, text: str) -> str:
    """The default of an option as a cell, empty if its text names it or there is none."""
    default = cls.__dataclass_fields__[option.name].default
    if option.is_required:
        return "required"
    if "by default" in text or default is None or default is False or not isinstance(default, (int, float, str, Path)):
        return ""
    return _code(str(default))


def _code(text: str) -> str:
    return f"<code>{_cell(text.replace('<', '&lt;'))}</code>"


def _cell(text: str) -> str:
    """A text as it may stand in a cell of a table."""
    return text.replace("|", "&#124;")


def picture(name: str, episode: int = 1) -> bytes:
    """PNG of an episode of the toy's expert: its first, middle and last frame, side by side."""
    import numpy as np
    import torch

    from understudy import make, rollout
    from understudy.data.video import encode_png

    env = make(name)
    steps = rollout(env.expert(), env, episode + 1)[episode].steps
    rows = len(steps["observation.state"]) - 1
    frames = []
    for row in (0, rows // 2, rows):
        env.restore(torch.tensor([0]), {k: torch.as_tensor(steps[k][row:row + 1]) for k in env.state_columns})
        frames.append(np.pad(env.frame(0), ((0, 0), (0, 8), (0, 0)), constant_values=255))
    return encode_png(np.concatenate(frames, 1)[:, :-8])


def pages() -> dict[str, str]:
    """Text of each page that is made from the program, by its file below docs/."""
    return {"methods.md": methods(), **family_pages(), "command-line.md": command_line()}


TOYS = ("fork", "particle", "push", "blocks", "maze", "memory", "arms", "drive", "words")
EPISODES = {"drive": 0}  # where somebody crosses

if __name__ == "__main__":
    (HERE / "methods").mkdir(exist_ok=True)
    for page in (HERE / "methods").glob("*.md"):
        page.unlink()
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")
    for toy in TOYS:
        (HERE / "images" / f"{toy}.png").write_bytes(picture(toy, EPISODES.get(toy, 1)))
