"""Code that commands share: parsing of options, text output, progress and JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    TypeVar,
)

from rich.console import Console
from tyro.conf import Positional, arg

from ...config import packages_in
from ...core import ConfigError, DataWarning, Feature, Schema, UserError, missing_action
from ...files import read_json, replace_nonfinite
from ...hints import LONG_SECONDS, command_line, escape_control, format_duration, is_standard_library
from ...methods import describe_method, method_names
from ...methods.needs import SOME_ACTIONS, SOME_NUMBERS
from ...serve.address import served_address
from ...user_code import search_current_folder
from .groups import LeRobotOption
from .help_page import print_help
from .hub_names import download_named
from .options import Option, flag_words, options_of, parse_options
from .robot_options import name_lerobot_fields
from .served import served_client, set_lerobot_options

if TYPE_CHECKING:
    from rich.table import Table

    from ...data.episode import Dataset
    from ...envs.base import Env as Environment

T = TypeVar("T")

EnvName = Annotated[str, Positional, arg(metavar="ENV")]
RANDOM_FILE = "random.json"  # next to random episodes of `train`: the options that they were recorded with
_UNIT_SECONDS = {"s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400}


def parse(options: type[T], command: str, args: Sequence[str]) -> T:
    """Parses the arguments of a command. With -h or --help it prints the help page and ends the process."""
    if "" in args[:1]:  # a shell variable that was not set: as a path it would be the folder one is in
        raise UserError("a name or a path is empty", where=f"understudy {command}",
                        hint="check the variable that it came from")
    if "-h" in args or "--help" in args:
        print_help(options, f"understudy {command}")
    parsed = read_options(options, command, args)
    if isinstance(parsed, LeRobotOption):
        set_lerobot_options(parsed.lerobot_python, parsed.device)
    search_current_folder(getattr(parsed, "trust", ()))
    _refuse_exchanged(options, parsed, command, args)
    parsed = download_named(parsed, command)
    _check_files(parsed)
    return parsed


def _refuse_exchanged(options: type, parsed: Any, command: str, args: Sequence[str]) -> None:
    """Raises ConfigError if arguments seem to be exchanged, such as data before the method."""
    names = [option.name for option in options_of(options) if option.is_positional][:2]
    if len(names) < 2 or not isinstance(second := getattr(parsed, names[1]), (str, Path)):
        return
    first = str(getattr(parsed, names[0]))
    is_run = [(Path(word) / "run.json").is_file() for word in (first, second)]
    if (names[0] == "run" and is_run == [False, True]) or (
            names == ["data", "env"] and not Path(first).exists() and Path(second).exists()) or (
            names[0] == "method" and first not in method_names() and Path(first).exists() and not is_run[0]
            and str(second) in method_names()):
        exchanged = {first: str(second), str(second): first}
        raise ConfigError(f"{first} and {second} are exchanged", where=f"understudy {command}",
                          hint=command_line(command, *(exchanged.get(word, word) for word in args)))


def read_options(options: type[T], command: str, args: Sequence[str]) -> T:
    """Reads the options of a command, which may be a past one: its files need not exist any more."""
    args = name_lerobot_fields([o.flag for o in options_of(options)], args)
    if any(option.name == "executor" for option in options_of(options)):
        args = _join_executor_options(args)
    return parse_options(options, args, f"understudy {command}")


def _join_executor_options(args: Sequence[str]) -> list[str]:
    """Joins options of the executor (--executor.delay 3) to the value of --executor."""
    own, of_executor = [], []
    into = own
    for word in args:
        if word.startswith("--"):
            into = of_executor if word.startswith("--executor.") else own
        into.append(word)
    if not of_executor:
        return own
    for i, word in enumerate(own):
        if word == "--executor" and i + 1 < len(own):
            return [*own[:i + 1], f"{own[i + 1]} {shlex.join(of_executor)}", *own[i + 2:]]
        if word.startswith("--executor="):
            return [*own[:i], f"{word} {shlex.join(of_executor)}", *own[i + 1:]]
    raise UserError("is an option of an executor, and none is named", where=of_executor[0],
                    hint=f"such as --executor real-time-chunking {of_executor[0]} ...")


def given_options(o: Any, *names: str) -> list[object]:
    """Returns the options of these names that have a value, to repeat them in another command."""
    declared = {option.name: option for option in options_of(type(o))}
    return [word for name in names if (value := getattr(o, name)) for word in option_words(declared[name], value)]


def option_words(option: Option, value: Any) -> list[object]:
    """Returns the words that give an option a value: ["--seed", 3]."""
    values = value if isinstance(value, tuple) else () if value is True else (value,)
    if option.name == "executor":
        values = shlex.split(value)  # which has its own options: see `_join_executor_options`
    return [word for part in (((v,) for v in values) if option.is_repeatable else (values,))
            for word in flag_words(option.flag, part)]


def acting_options(o: Any) -> list[object]:
    """Returns the options with which policies act alike in a follow-up command: seed, task, condition, ..."""
    name = (o.executor or "").partition(" ")[0]
    package = name.split(".")[0].partition(":")[0]
    trust = ["--trust", package] if ":" in name and package != "understudy" else []
    return [*given_options(o, "seed", "task", "condition", "executor", "lerobot_python"), *trust]


def _check_files(options: Any) -> None:
    """Raises an error for files of --html and --map that cannot be written or read, before hours of work."""
    html, mapped = getattr(options, "html", None), getattr(options, "map", None)
    if html is not None and (html.is_dir() or not html.parent.is_dir()):
        problem = "it is a folder" if html.is_dir() else f"there is no folder {html.parent}"
        raise UserError(f"the report cannot be written there: {problem}", where=f"--html {html}",
                        hint="such as --html report.html")
    if mapped is not None and not mapped.is_file():
        raise UserError("is a folder, not a file" if mapped.is_dir() else "there is no such file",
                        where=f"--map {mapped}", hint="understudy inspect BAG --json proposes a map: correct it, and "
                        "name its file")


def parse_duration(text: str) -> float:
    """Parses the value of --budget, such as "90s", "30m" or "1h30m". Every number has a unit: s, m or min, h or d.

    Returns:
        Seconds.
    """
    if re.fullmatch(r"\d+(\.\d+)?", text):
        raise UserError(f"{text} has no unit", where="--budget", hint=f"write {text}s for seconds, {text}m for "
                        f"minutes, {text}h for hours or {text}d for days")
    parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd])", text)
    seconds = sum(float(number) * _UNIT_SECONDS[unit] for number, unit in parts)
    if not seconds or "".join(a + b for a, b in parts) != text:
        raise UserError(f"{text!r} is not a time such as 90s, 30m or 2h", where="--budget",
                        hint="such as --budget 2h")
    return seconds


def required_packages(run: Path) -> tuple[str, ...]:
    """Returns the packages besides understudy that a checkpoint takes code from. Loading it needs --trust for each."""
    from ...checkpoint import find_checkpoint, is_lerobot_checkpoint

    folder = find_checkpoint(run)
    if is_lerobot_checkpoint(folder):
        return ()
    files = [folder / "method.json", *folder.glob("modules/*/module.json")]
    packages = packages_in([read_json(file) for file in files])
    return tuple(package for package in packages if package != "understudy")


def trust_options(trusted: Sequence[str], env: str | None, *runs: Path) -> list[str]:
    """Returns the --trust options that a follow-up command needs.

    A Gymnasium id may be registered by any trusted package.
    """
    from ...envs.registry import base_name, names

    first, colon, _ = base_name(env or "").partition(":")
    makes = () if env is None or first in names() else (first.split(".")[0],) if colon else trusted
    loads = [package for run in runs for package in (trusted if has_no_run(run) else required_packages(run))]
    return [part for package in dict.fromkeys((*(p for p in makes if p in trusted), *loads))
            if not is_standard_library(package) for part in ("--trust", package)]


def recorded_env(data: Dataset) -> str | None:
    """Returns the environment name in which data were recorded, if it is known and `make` can make it."""
    name = data[0].metadata.get("env") if len(data) else None
    return name if isinstance(name, str) and name and "+" not in name and not (
        ":" in name and is_standard_library(name)) else None


def env_trust_options(env: str | None) -> list[str]:
    """Returns the --trust options that an environment of the user needs, for a suggested command."""
    module, colon, _ = (env or "").partition(":")
    package = module.split(".")[0]
    return trust_options((package,), env) if colon and package.isidentifier() else []


def read_provenance(run: Path) -> dict[str, Any]:
    """Reads the provenance.json of a run. Empty if there is none, as for an exported file."""
    from ...checkpoint import find_checkpoint

    if has_no_run(run):
        return {}
    file = find_checkpoint(run) / "provenance.json"
    return read_json(file) if file.exists() else {}


def earlier_provenances(run: Path) -> list[dict[str, Any]]:
    """Returns the provenances of the stages of a run, and of the run that it was fine-tuned from.

    Empty if there are none.
    """
    from ...checkpoint import find_checkpoint
    from ...learn.stages import stage_provenances

    checkpoint = None if has_no_run(run) else find_checkpoint(run)
    inside = checkpoint is not None and checkpoint.parent.name == "checkpoints"
    return list(stage_provenances(checkpoint.parents[1]).values()) if inside else []


def recorded_env_of(run: Path) -> str | None:
    """Returns the environment name in which the data of a run were recorded, if there is exactly one."""
    simulators = recorded_data_of(run).get("simulators")
    name = next(iter(simulators)) if simulators and len(simulators) == 1 else None
    return None if ":" in (name or "") and is_standard_library(str(name)) else name


def robot_arguments(recorded: Mapping[str, Any], features: Schema) -> list[str]:
    """The options that name the kind of robot that data were recorded with, such as ["--robot", "so101_follower",
    "--robot.port", "PORT"]. Empty for data without a robot.

    Args:
        recorded: What is recorded of the data: robot_type, fps, and camera_sizes if their frames were scaled since.
        features: The columns of the data, including cameras.
    """
    from ...policy import camera_sizes
    from ...robots.registry import ROBOTS

    robot, fps = recorded.get("robot_type"), recorded.get("fps")
    if not robot or robot == "unknown":
        return []
    ports = {"bi": ("--robot.left-arm-port", "PORT", "--robot.right-arm-port", "PORT"), "simulated": ()}
    options = (robot, *ports.get(robot.partition("_")[0], ("--robot.port", "PORT"))) if robot in ROBOTS else ("TYPE",)
    prefix, rate = "observation.images.", f", fps: {fps:g}" if fps else ""
    sizes = {**camera_sizes(features), **(recorded.get("camera_sizes") or {})}
    cameras = [f"{name.removeprefix(prefix)}: {{type: opencv, index_or_path: INDEX, width: {width}, height: {height}"
               f"{rate}}}" for name, (height, width) in sizes.items() if name.startswith(prefix) and name in features]
    return ["--robot", *options, *(("--robot.cameras", f"{{{', '.join(cameras)}}}") if cameras else ())]


def warn_of_other_units(first: Dataset, name: str, other: Dataset, place: str) -> None:
    """Warns if columns have other units, names or conventions in a data set than in the first data set."""
    from ...audit.compatibility import find_disagreements

    codes = ("scale-differs", "unit-differs", "names-differ", "action-convention-differs")
    for finding in find_disagreements({name: first, place: other}):
        if finding.code in codes:
            warnings.warn(f"{place}: {finding.code}: {finding.message}. {finding.remedy}", DataWarning, stacklevel=2)


def recorded_data_of(run: Path) -> dict[str, Any]:
    """Returns the data metadata of a run, with the robot type under the key of data sets."""
    metadata = read_provenance(run).get("data", {})
    return {**metadata, "robot_type": metadata.get("robot")}


def draw_screen(text: str) -> None:
    """Draws a text in place of all that a terminal shows, on standard error, without flicker."""
    print("\x1b[H" + text.replace("\n", "\x1b[K\n"), end="\x1b[K\n\x1b[J", flush=True, file=sys.stderr)


def unused_path(name: str) -> str:
    """Returns `name` if nothing is there, or else the first free one of name-2, name-3, ...

    A suffix stays at the end.
    """
    path = Path(name)
    numbered = (path.with_name(f"{path.stem}-{i}{path.suffix}") for i in count(2))
    return name if not path.exists() else str(next(p for p in numbered if not p.exists()))


class _Console(Console):
    """A console that prints the control characters of a text as text."""

    def render_str(self, text: str, **options: Any) -> Any:
        return super().render_str(escape_control(text), **options)


class Output:
    """Prints text for people on standard output, or, with --json, one document there and nothing else."""

    def __init__(self, json: bool = False):
        self.json, self.stdout = json, sys.stdout
        self.wrap = sys.stdout.isatty()  # elsewhere lines stay whole
        wide = None if self.wrap or "COLUMNS" in os.environ else 120
        self.console = _Console(quiet=json, markup=False, highlight=False, emoji=False, width=wide)

    def __enter__(self) -> Output:
        if self.json:
            sys.stdout = sys.stderr  # libraries greet there
        return self

    def __exit__(self, *error) -> None:
        sys.stdout = self.stdout

    def print(self, *things) -> None:
        """Prints text or tables, each on its own line. With --json nothing is printed."""
        for thing in things or ("",):
            self.console.print(thing, soft_wrap=not self.wrap)

    def suggest(self, *commands: str) -> None:
        """Prints useful next commands, if there are any, as lines that can be pasted."""
        if commands:
            self.console.print("\nnext:", *(f"  {c}" for c in commands), sep="\n", soft_wrap=True)

    def print_json(self, document) -> None:
        """Prints a JSON document if --json was given. NaN and infinite numbers become null."""
        if self.json:
            self.stdout.write(
                json.dumps(replace_nonfinite(document), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plain_table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> Table:
    """Builds a table without lines."""
    from rich.table import Table

    table = Table(*header, box=None, pad_edge=False)
    for row in rows:
        table.add_row(*map(str, row))
    return table


@contextmanager
def progress_bar(title: str, total: int, done: int = 0) -> Iterator[Callable[..., None]]:
    """Shows a progress bar on standard error. On other outputs than a terminal it prints one line if the work will take
    long.

    Yields:
        A function that moves the bar: progress(n) to n items, progress() by one item.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    display = Progress(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                       console=console, transient=True, refresh_per_second=4, disable=not console.is_terminal)
    task = display.add_task(title, total=total, completed=done)
    began, now, is_reported = time.perf_counter(), done, False

    def progress(to: int | None = None) -> None:
        nonlocal now, is_reported
        now = now + 1 if to is None else max(to, now)
        display.update(task, completed=now)
        n_completed, spent = now - done, time.perf_counter() - began
        # rows that run side by side end together: 16 are a fair sample
        if not is_reported and (n_completed >= 16 or spent > 60):
            is_reported = True
            if (remaining_seconds := spent / n_completed * (total - now)) > LONG_SECONDS:
                print(f"{title}: at most about {format_duration(remaining_seconds)} more", file=sys.stderr)
    with display:
        yield progress


def batch_rows(rows: int, episodes: int, workers: int | Literal["ray"]) -> int:
    """Returns how many environments each worker runs, so that its episodes are done in full rounds."""
    share = -(-episodes // (1 if workers == "ray" else workers))
    return -(-share // -(-share // rows))


def warn_unused_ignores(codes: Sequence[str]) -> None:
    """Warns about codes of --ignore that were not needed. They may be misspelled."""
    for code in codes:
        print(f"--ignore {code}: no such error was found", file=sys.stderr)


def warn_simulator_mismatch(env: Environment, run: Path) -> None:
    """Warns if a run's data were recorded in another environment, or in another version of this environment."""
    from ...evaluate.simulator_versions import environment_warning

    simulators = recorded_data_of(run).get("simulators") or {}
    if warning := environment_warning(simulators, env, f"{run} was trained on data of"):
        print(f"warning: {warning}", file=sys.stderr)


def has_no_run(run: Path) -> bool:
    """Returns whether this is a policy without a run folder: an exported file, or the address of a server."""
    return run.suffix == ".onnx" or served_address(run) is not None


def trained_rate(run: Path) -> float | None:
    """Returns the steps per second of the data that a run was trained on. None if unknown."""
    if run.suffix == ".onnx":
        from ...deploy.onnx import recorded_rate

        return recorded_rate(run)
    if (address := served_address(run)) is not None:
        return served_client(address).policy.get("schema", {}).get("fps")
    return recorded_data_of(run).get("fps")


def acting_rate(fps: float | None, *runs: Path) -> float:
    """Returns the steps per second on a robot: `fps`, or the rate of the policies' data, or 30 with a note."""
    if fps is not None:
        return fps
    rates = {rate for run in runs if (rate := trained_rate(run))}
    if len(rates) > 1:
        listed_rates = " and ".join(f"{rate:g}" for rate in sorted(rates))
        raise ConfigError(f"the policies were trained at different rates: {listed_rates} steps per second",
                          where="--fps", hint="choose one of them")
    if not rates:
        print(f"note: {runs[0]} does not say at which rate its data were recorded. It acts 30 times a second; --fps "
              "sets another rate", file=sys.stderr)
    return next(iter(rates), 30.0)


def trained_reading(run: Path) -> dict[str, Any]:
    """Returns the options of `open_columns` with which the data of a run were read."""
    from ...checkpoint import find_checkpoint

    try:
        if not has_no_run(run):
            find_checkpoint(run)
    except UserError:  # there is no checkpoint yet
        return {}
    return recorded_data_of(run).get("reading") or {}


def open_trained(path: Path, run: Path | None, **options) -> Dataset:
    """Opens demonstrations as the data of a run were read, unless the user gives other options.

    Args:
        run: The run. None for no run.
    """
    from ...data.opening.column_selection import describe_columns, open_as_read

    stored = {} if run is None else trained_reading(run)
    data, used = open_as_read(demonstrations_path(path), options, stored)
    if used and not options.get("columns") and "columns" in stored:
        print(f"{path}: read as the data of {run} were: --columns {describe_columns(stored['columns'])}",
              file=sys.stderr)
    return data


def is_recorded(target: str | None) -> bool:
    """Returns whether these are recorded episodes, and not an environment."""
    from ...data.formats.remote import url_of
    from ...envs import names

    return target is not None and bool(Path(target).exists() or url_of(target)) and target not in names()


def recorded_word(path: Path) -> str:
    """Returns a path so that it cannot be read as an environment: ./fork for the folder `fork`."""
    from ...envs import names

    return f"./{path}" if str(path) in names() else str(path)


def demonstrations_path(path: Path) -> Path:
    """Returns a path of demonstrations unchanged, and refuses a run or the name of a method."""
    if (path / "run.json").exists() or (path / "weights.safetensors").exists():
        raise UserError("this is a run, not demonstrations", where=path,
                        hint=f"{command_line('eval', path, 'ENV')} judges it")
    if not path.exists() and str(path) in method_names():
        raise UserError("this is the name of a method, not demonstrations", where=path,
                        hint="the order is understudy train METHOD DATA --out RUN")
    return path


def open_data(path: Path, image_size: int | tuple[int, int] | None = None, *, ignore: Sequence[str] | None = None,
              decode: bool = True, columns: Sequence[str] = (), run: Path | None = None, **options) -> Dataset:
    """Opens demonstrations to learn from, or to evaluate on.

    Args:
        image_size: Camera frames are decoded once to this size, after a message that says what that costs. By default
            the frames keep their own size if all of them have the same size, of at most 128 pixels a side. Otherwise
            the size is 96 x 96.
        ignore: Refuses data in which an audit finds an error, except for these codes. None for no audit.
        decode: Whether camera frames are decoded beforehand. Otherwise each is decoded when it is read.
        columns: Which columns to read, such as "state=q1,q2" (see `parse_columns`).
        run: A run. What is not given here is read as its data were.
        options: Options of the format, and for bags `mapping`: how topics become columns.
    """
    from ...data.opening.column_selection import parse_columns

    data = open_trained(path, run, columns=parse_columns(columns), **options)
    return check_and_decode(data, path, image_size, ignore=ignore, decode=decode)


def check_and_decode(data: Dataset, path: Path, image_size: int | tuple[int, int] | None = None, *,
                     ignore: Sequence[str] | None = None, decode: bool = True, method: str | None = None) -> Dataset:
    """Audits open data and decodes their camera frames, as `open_data` does.

    Args:
        method: The method that `understudy train` trains. It says whether actions are needed, which are not audited if
            some may be missing. The message then names the option --image-size.
    """
    from ...audit import check_usable, training_warnings
    from ...audit.checks import reader_warnings

    description = None if method is None else describe_method(method)
    needs_actions = description is None or {SOME_ACTIONS, SOME_NUMBERS.text}.isdisjoint(description["needs"])
    if needs_actions and "action" not in data.features():
        raise missing_action(data.features(), path)
    if ignore is not None:
        audited = data if needs_actions else data.map(lambda episode: episode.replace({"action": None}))
        warn_unused_ignores(check_usable(audited, data.metadata["path"], ignore, training=True))
        is_random = path.with_name(RANDOM_FILE).is_file()  # random actions of the environment
        for text in () if is_random else training_warnings(data, needs_actions):
            print(f"{path}: {text}", file=sys.stderr)
    else:
        for doubt in (f for f in reader_warnings(data) if f.severity == "warning"):
            print(f"{path}: warning: {doubt.message}", file=sys.stderr)
    return decode_once(data, image_size, " (--image-size)" if method is not None else "") if decode else data


def open_shown(path: Path, run: Path) -> Dataset:
    """Opens demonstrations that a policy is shown. It reads no actions of them."""
    return decode_once(open_trained(path, run))


def decoded_features(features: Schema, image_size: int | tuple[int, int] | None = None) -> dict[str, Feature]:
    """Returns the columns of data whose camera frames will be decoded: see `open_data`."""
    size = _frame_size(features, image_size)
    return {name: replace(f, shape=(*size, *f.shape[2:])) if f.kind == "image" else f for name, f in features.items()}


def _frame_size(features: Schema, image_size: int | tuple[int, int] | None) -> tuple[int, int]:
    """Returns height and width to which camera frames are decoded, in pixels."""
    if image_size is not None:
        return (image_size, image_size) if isinstance(image_size, int) else image_size
    sizes = {(f.shape[0], f.shape[1]) for f in features.values() if f.kind == "image"}
    return own if len(sizes) == 1 and max(own := next(iter(sizes))) <= 128 else (96, 96)


def decode_once(data: Dataset, image_size: int | tuple[int, int] | None = None, note: str = "") -> Dataset:
    """Decodes all camera frames of open data. Returns the data unchanged if they have none."""
    from ...data import cache
    from ...data.formats import decode_frames, frame_cost

    features = data.features()
    if all(f.kind != "image" for f in features.values()):
        return data
    high, wide = size = _frame_size(features, image_size)
    cost = frame_cost(data, size)
    if cost.seconds == 0:
        return decode_frames(data, size)
    print(f"{cost.frames} camera frames are decoded once, to {high} x {wide} pixels{note}: "
          f"{cost.bytes / 1e6:,.1f} MB in {cache.folder()}, about {format_duration(cost.seconds)}", file=sys.stderr)
    with progress_bar("decoding", cost.frames) as progress:
        return decode_frames(data, size, lambda done, total: progress(done))
