"""What the commands share: parsing, and where words, progress and JSON go."""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import fields
from itertools import count, dropwhile, takewhile
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import tyro
from rich.console import Console
from tyro.conf import Positional, UseAppendAction, arg

if TYPE_CHECKING:
    from ..data.episode import Dataset
    from ..envs.base import Env as Environment

T = TypeVar("T")

Env = Annotated[str, Positional, arg(metavar="ENV")]
Trust = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="PACKAGE")]
Device = Literal["auto", "cpu", "cuda", "mps"]
Count = Annotated[int, arg(metavar="N")]
Processes = Annotated[int | Literal["ray"], arg(metavar="N|ray")]
Mapped = Annotated[Path | None, arg(metavar="FILE")]
Despite = Annotated[UseAppendAction[tuple[str, ...]], arg(metavar="CODE")]
Steps = Annotated[int | None, arg(metavar="N")]


def parse(options: type[T], command: str, args: Sequence[str]) -> T:
    """Ends the process with status 2 and an explanation if these are not its options."""
    if "" in args[:1]:  # a shell variable that was not set: as a path it would be the folder one is in
        from ..core import UserError

        raise UserError("expected a name or a path, found an empty one", where=f"understudy {command}",
                        do="check the variable that it came from")
    found = read(options, args, f"understudy {command}")
    if getattr(found, "trust", ()) and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # one's own file beside one, which an installed script does not see; last
    for what, where, do in _mistakes(found, args):
        from ..core import UserError

        raise UserError(what, where=where, do=do)
    return found


# What no command takes fewer than one of, and how many are usual.
COUNTS = {"episodes": 100, "rows": 16, "workers": 2, "rollouts": 20, "steps": 1000, "every": 100, "buffer": 100_000,
          "max_episode_steps": 1000}


def _mistakes(options: Any, args: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """(what, where, what to do) of what is wrong with options whichever command has them: said before hours of work,
    not after."""
    for f in fields(options):
        option = "--" + f.name.replace("_", "-")
        if getattr(options, f.name) == () and option in args:
            yield "expected a value or several, found none", option, f"name them, or leave {option} out"
    for name, usual in COUNTS.items():
        option = "--" + name.replace("_", "-")
        if type(count := getattr(options, name, None)) is int and count < 1:
            yield f"expected at least one, found {count}", option, f"such as {option} {usual}"
    if (seed := getattr(options, "seed", 0)) < 0:
        yield (f"expected a seed of 0 or more, found {seed}", "--seed",
               "negative seeds are understudy's own, so that nothing shares a start with what judges it")
    if seed >= 2**63:
        yield f"expected a seed below 2^63, found {seed}", "--seed", "such as --seed 1"
    html, mapped = getattr(options, "html", None), getattr(options, "map", None)
    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        found = "a folder" if html.is_dir() else f"no folder {html.parent}"
        yield f"expected the name of a file to write, found {found}", f"--html {html}", "such as --html report.html"
    if mapped is not None and not mapped.is_file():
        yield (f"expected a file, found {'a folder' if mapped.is_dir() else 'none'}", f"--map {mapped}",
               "understudy inspect BAG --json proposes a map: correct it, and name its file")


def cli(options: type[T], args: Sequence[str], prog: str, **more) -> Any:
    """tyro.cli, whose help says "--than FLOAT (default: none)" for its "--than {None}|FLOAT (default: None)"."""
    said = _Like(sys.stdout)
    try:
        with redirect_stdout(said):
            return tyro.cli(options, prog=prog, args=list(args), config=(tyro.conf.FlagCreatePairsOff,), **more)
    finally:
        text = re.sub(r"\{None\}\|(\S+)", lambda m: m[1] + " " * len("{None}|"), said.getvalue())  # columns stay
        sys.stdout.write(re.sub(r"(\(default:(?:[\s│|]|\x1b\[[\d;]*m)*)None\)", r"\1none)", text))


class _Like(io.StringIO):
    """Keeps what is written to it, and can show as much as `out`: colours, frames."""

    def __init__(self, out):
        super().__init__()
        self.out = out

    @property
    def encoding(self):
        return self.out.encoding

    def isatty(self) -> bool:
        return self.out.isatty()


def read(options: type[T], args: Sequence[str], prog: str, default: T | None = None) -> T:
    """As tyro.cli, but whatever is wrong is a UserError, in one message with the nearest right option."""
    more = {} if default is None else {"default": default}
    try:
        with redirect_stderr(io.StringIO()) as said:
            found, unknown = cli(options, args, prog, return_unknown_args=True, **more)
    except SystemExit as end:
        if not end.code:  # after --help
            raise
        what, where, near = _wrong(said.getvalue(), default or options, args, prog)
    else:
        if not unknown:
            return found
        where, name = prog, unknown[0].partition("=")[0]
        if name.startswith("-"):
            what, near = f"there is no option {name}", difflib.get_close_matches(
                name.replace("_", "-"), _options(default or options), 1)
        else:
            what, near = f"expected nothing more, found {name!r}", []
    from ..core import UserError

    raise UserError(what, where=where, do=(f"did you mean {near[0]}? " if near else "")
                    + f"{prog} --help says what can be set") from None


def _wrong(box: str, owner: Any, args: Sequence[str], prog: str) -> tuple[str, str, list[str]]:
    """(what, where, the nearest right values) of what tyro has put into a box."""
    inside = [line[2:].rstrip(" │") for line in box.splitlines()[1:]]  # under its title; some terminals get no frame
    words = list(takewhile(_no_rule, dropwhile(lambda line: not _no_rule(line), inside)))
    text = " ".join(" ".join(words).split())
    if wrong := re.search(r"Error parsing (--[\w.-]+)", text):
        if expected := _expected(owner, wrong[1][2:].replace("-", "_")):
            return f"expected {expected}, found {_given(args, wrong[1][2:])!r}", wrong[1], []
    elif wrong := re.search(r"invalid choice '(.*?)' for argument '(.*?)'\. Expected one of \((.*)\)", text):
        choices = re.findall(r"'(.*?)'", wrong[3])
        near = difflib.get_close_matches(wrong[1], choices, 1)
        return (f"expected {', '.join(choices[:-1])} or {choices[-1]}, found {wrong[1]!r}",
                wrong[2] if wrong[2].startswith("--") else prog, near)
    elif wrong := re.search(r"Missing value for argument '(--.*?)'\. Expected (\d+)", text):
        return (f"expected {'a value' if wrong[2] == '1' else f'{wrong[2]} values'}, found "
                f"{_given(args, wrong[1][2:]) or 'none'}", wrong[1], [])
    elif text.startswith("Missing from"):
        missing = [line.strip() for line in words if re.match(r" {4}\S", line)]
        return f"expected {', '.join(missing)}, found none", prog, []
    return text or "these arguments make no sense", prog, []


def _no_rule(line: str) -> bool:
    return bool(line.strip("─-"))


def _options(owner: Any) -> list[str]:
    """What can be set of a dataclass (or in one that is made), as it is written."""
    if isinstance(owner, type):
        hints = get_type_hints(owner, include_extras=True)
        names = [f.name for f in fields(owner) if Positional not in get_args(hints[f.name])]
    else:
        from .method import settings

        names = [path for path, _ in settings(owner)]
    return ["--" + name.replace("_", "-") for name in names]


def _expected(owner: Any, path: str) -> str:
    """What the field at `path` of a dataclass (or of one that is made) holds, in words; "" where there are none."""
    words = {int: "an integer", float: "a number", tuple[int, int]: "two integers", type(None): ""}
    first, _, rest = path.partition(".")
    if rest:
        owner = owner[int(first)] if isinstance(owner, tuple) else getattr(owner, first, None)
        return _expected(owner, rest)
    kind = get_type_hints(owner if isinstance(owner, type) else type(owner)).get(first)
    kinds = get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)
    said = [" or ".join(map(str, get_args(k))) if get_origin(k) is Literal else words.get(k) for k in kinds]
    return "" if None in said else " or ".join(w for w in said if w)


def _given(args: Sequence[str], name: str) -> str:
    """What follows the last --name."""
    flat = [part for a in args for part in (a.split("=", 1) if a.startswith("--") else [a])]
    names = [a.replace("_", "-") if a.startswith("--") else "" for a in flat]
    at = len(flat) - names[::-1].index("--" + name.replace("_", "-"))
    return " ".join(takewhile(lambda a: not a.startswith("--"), flat[at:]))


def split(args: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """A command's own arguments, the recipe's ("--recipe.trunk transformer") and those of the method that it makes
    ("--policy.head.steps 5"): an option with a dot in it, and what follows until the next option."""
    own, recipe, changes = [], [], []
    into = own
    for a in args:
        if a.startswith("--"):
            name = a[2:].partition("=")[0]
            into = own if "." not in name else recipe if name.startswith("recipe.") else changes
        into.append(a)
    return own, recipe, changes


def packages(run: Path) -> tuple[str, ...]:
    """All whose code a run's method.json names, besides ours: what loading it takes."""
    from ..files import read_json
    from ..policy import checkpoint

    return tuple(sorted(set(_packages(read_json(checkpoint(run) / "method.json"))) - {"understudy"}))


def _packages(document) -> Iterator[str]:
    if isinstance(document, dict):
        if isinstance(named := document.get("$"), str):
            yield named.partition(":")[0].split(".")[0]
        document = list(document.values())
    for value in document if isinstance(document, list) else ():
        yield from _packages(value)


def needed(given: Sequence[str], env: str | None, *runs: Path) -> list[str]:
    """Of the packages that were trusted, those it takes to make `env` and to load `runs`, as options. A Gymnasium id
    may be named by any of them."""
    from ..envs import names

    first, colon, _ = (env or "").partition(":")
    makes = () if env is None or first in names() else (first.split(".")[0],) if colon else given
    loads = [package for run in runs if run.suffix != ".onnx" for package in packages(run)]
    return [part for package in dict.fromkeys((*(p for p in makes if p in given), *loads))
            for part in ("--trust", package)]


def line(*parts: object) -> str:
    """A command as a shell reads it."""
    return shlex.join(["understudy", *map(str, parts)])


def env_of(data: Dataset) -> str | None:
    """The name of the environment that the data say they were recorded in, if `make` could know it."""
    name = data[0].meta.get("env") if len(data) else None
    return name if isinstance(name, str) and name and "+" not in name else None


def free(folder: str) -> str:
    """`folder`, or, where something is already, the first of folder-2, folder-3, ... where there is nothing."""
    return next(f for i in count(1) if not Path(f := folder if i == 1 else f"{folder}-{i}").exists())


def reseeded(run: Path) -> tuple[str, str] | None:
    """(command, folder): how to train `run` once more with another seed, where it says how it was trained, and that
    command means the same here."""
    from ..files import read_json
    from ..policy import checkpoint

    file = checkpoint(run) / "provenance.json"
    said = read_json(file) if file.exists() else {}
    command, args = str(said.get("command") or ""), []
    if not command.startswith("understudy train "):
        return None
    before, out = shlex.split(command)[1:], None
    while before:
        name, equals, value = before.pop(0).partition("=")
        if name in ("--out", "--seed"):
            value = value if equals else before.pop(0)
            out = value if name == "--out" else out
        else:
            args.append(name + equals + value)
    if out is None or not checkpoint(run).resolve().is_relative_to(Path(out).resolve()):
        return None
    seed = int(said["seed"]) + 1
    other = free(f"{out}-seed{seed}")
    return line(*args, "--out", other, "--seed", seed), other


class Out:
    """Words for people on standard output, or, with --json, one document there and nothing else."""

    def __init__(self, json: bool = False):
        self.json, self.stdout = json, sys.stdout
        self.wrap = sys.stdout.isatty()  # elsewhere lines stay whole
        wide = None if self.wrap or "COLUMNS" in os.environ else 120
        self.console = Console(quiet=json, markup=False, highlight=False, emoji=False, width=wide)

    def __enter__(self) -> Out:
        if self.json:
            sys.stdout = sys.stderr  # libraries greet there
        return self

    def __exit__(self, *error) -> None:
        sys.stdout = self.stdout

    def say(self, *things) -> None:
        for thing in things or ("",):
            self.console.print(thing, soft_wrap=not self.wrap)

    def next(self, *commands: str) -> None:
        """The sensible things to do now, if there are any: lines that can be pasted."""
        if commands:
            self.console.print("\nnext:", *(f"  {c}" for c in commands), sep="\n", soft_wrap=True)

    def answer(self, document) -> None:
        from ..files import finite

        if self.json:
            self.stdout.write(json.dumps(finite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def bar(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """progress(done), or progress() for one more, moves a bar forward on standard error; no bar where that is no
    terminal, but one line in any case if it will take long. `done`: before this began."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from ..learn.watch import LONG, duration

    console = Console(stderr=True)
    shown = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                     console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal)
    task, began, now, told = shown.add_task(title, total=total, completed=done), time.perf_counter(), done, False

    def progress(to: int | None = None) -> None:
        nonlocal now, told
        now = now + 1 if to is None else max(to, now)
        shown.update(task, completed=now)
        made, spent = now - done, time.perf_counter() - began
        if not told and (made >= 16 or spent > 60):  # rows that run side by side end together: 16 are a fair sample
            told = True
            if (left := spent / made * (total - now)) > LONG:
                print(f"{title}: at most about {duration(left)} more", file=sys.stderr)
    with shown:
        yield progress


def side_by_side(rows: int, episodes: int, workers: int | str) -> int:
    """How many of at most `rows` environments each worker has, so that its share is done in whole rounds."""
    share = -(-episodes // (1 if workers == "ray" else workers))
    return -(-share // -(-share // rows))


def unused(codes: Sequence[str]) -> None:
    """Codes of --despite that were not needed: they may be misspelt."""
    for code in codes:
        print(f"--despite {code}: no such error was found", file=sys.stderr)


def same_simulator(env: Environment, run: Path) -> None:
    """Warns where `env` is another version, or has other physics, than what the data of `run` were recorded in."""
    from ..evaluate.simulators import otherwise
    from ..files import read_json
    from ..policy import checkpoint

    if run.suffix == ".onnx" or not (file := checkpoint(run) / "provenance.json").exists():
        return
    if told := otherwise(read_json(file)["data"].get("simulators") or {}, env, f"{run} was trained on data of"):
        print(f"warning: {told}", file=sys.stderr)


def trained_rate(run: Path) -> float | None:
    """Steps a second of the data that `run` was trained on, where they say it."""
    from ..files import read_json
    from ..policy import checkpoint

    if run.suffix == ".onnx" or not (file := checkpoint(run) / "provenance.json").exists():
        return None
    return read_json(file).get("data", {}).get("fps")


def demonstrations(path: Path) -> Path:
    """`path`. Raises UserError if it is a run, or the name of a method."""
    from ..core import UserError
    from ..recipes import METHODS

    if (path / "run.json").exists() or (path / "weights.safetensors").exists():
        raise UserError("expected demonstrations, found a run", where=path,
                        do=f"understudy eval {path} ENV judges it")
    if not path.exists() and str(path) in METHODS:
        raise UserError("expected demonstrations, found the name of a method", where=path,
                        do="the order is understudy train RECIPE DATA --out RUN")
    return path


def opened(path: Path, size: int | tuple[int, int] | None = None, mapping: Path | None = None,
           despite: Sequence[str] | None = None, **options) -> Dataset:
    """The data set (bags under a mapping; options: others of its format); its camera frames, if it has any, decoded
    once to `size`, whose cost is told beforehand. Without a size they keep their own if that is one and at most 128
    pixels a side, and are 96 x 96 otherwise. despite: refuses data in which an audit finds an error of another code
    than these; None looks at none."""
    from ..audit import guard
    from ..core import UserError
    from ..data import cache
    from ..data.episode import Dataset
    from ..data.formats import frame_cost, with_frames
    from ..learn.watch import duration

    data = Dataset.open(demonstrations(path), mapping=mapping, **options)
    if "action" not in data.features():
        raise UserError(f"expected a column action to learn, found {', '.join(data.features())}", where=path,
                        do="understudy view make DATA --out VIEW --rename OLD=action calls a column so")
    if despite is not None:
        unused(guard(data, data.facts["path"], despite))
    sizes = {f.shape[:2] for f in data.features().values() if f.kind == "image"}
    if not sizes:
        return data
    if size is None:
        own = next(iter(sizes))
        size = own if len(sizes) == 1 and max(own) <= 128 else 96
    cost = frame_cost(data, size)
    if cost.seconds == 0:
        return with_frames(data, size)
    high, wide = (size, size) if isinstance(size, int) else size
    print(f"{cost.frames} camera frames are decoded once, to {high} x {wide} pixels (--image-size): "
          f"{cost.bytes / 1e6:,.1f} MB in {cache.folder()}, about {duration(cost.seconds)}", file=sys.stderr)
    with bar("decoding", cost.frames) as progress:
        return with_frames(data, size, lambda done, total: progress(done))
