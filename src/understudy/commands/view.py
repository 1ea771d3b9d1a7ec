"""The command understudy view."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import Positional, UseAppendAction, arg

from ..core import Above, UserError
from ..files import check_absent
from .convert import Format
from .convert import main as convert
from .parts.common import Output, command_line, demonstrations_path, given_options, parse, plain_table
from .parts.groups import IgnoredCodes, JsonOption, Seed, StepRate, command_options
from .parts.options import refuse_given, split_pair

if TYPE_CHECKING:
    from ..data.episode import Dataset
    from ..data.operations import Operation
    from ..data.retargeting import MotionRetargeting

TextOptions = UseAppendAction[tuple[str, ...]]


@command_options
class ViewOptions(JsonOption):
    """Make and read views: small JSON files that name data and operations on them. The data are not changed.

    make DATA --out VIEW: write a new view. Its operations are applied in the order of the options below. list [DIR]:
    list the views in a folder. show VIEW: show the parents and operations of a view. materialize VIEW --out DST: write
    the episodes of a view as a data set.
    """

    subcommand: Annotated[Literal["make", "list", "show", "materialize"], Positional,
                          arg(metavar="make|list|show|materialize")]
    """what to do"""
    path: Annotated[Path | None, Positional, arg(metavar="[DATA|DIR|VIEW]")] = None
    """the data (make), the folder (list; by default this one) or the view (show, materialize)"""
    out: Annotated[Path | None, arg(metavar="VIEW|DST")] = None
    """where to write; nothing may be there"""
    filter: Annotated[TextOptions, arg(metavar="CONDITION")] = ()
    """keep episodes by a field: success=true, operator=Ada,Grace, operator!=Ada, length>=50, length<=400; all
    conditions must hold"""
    delete: Annotated[tuple[int, ...], arg(metavar="N N ...")] = ()
    """leave out these episodes, by their numbers after the operations above"""
    select: Annotated[tuple[int, ...], arg(metavar="N N ...")] = ()
    """keep only these episodes, in this order"""
    sample: Annotated[int | None, arg(metavar="N")] = None
    """draw this many episodes at random"""
    seed: Seed = 0
    """seed of the draw"""
    sort: Annotated[str | None, arg(metavar="FIELD")] = None
    """sort episodes by a field, the smallest first"""
    descending: bool = False
    """sort with the largest first"""
    segments: Annotated[str | None, arg(metavar="FIELD")] = None
    """make an episode of each labeled segment: of the metadata field "segments", or of a column of text, such as
    "subtask", where a segment is as long as the text stays the same"""
    cut: Annotated[TextOptions, arg(metavar="ROWS")] = ()
    """cut episodes into pieces: every=57, at each 57th row; at=57,114, at these rows; 3=57,114, episode 3 alone at
    these rows; resets, where the audit finds that another rollout begins. Each row is the first of a new piece"""
    crop: Annotated[TextOptions, arg(metavar="[N=]A:B")] = ()
    """keep steps A to B of every episode, as in Python: 5: leaves out the first five, :-5 the last five; 3=5:-2, of
    episode 3 alone, by its number after the operations above; 1,4=5:, of episodes 1 and 4"""
    shift: Annotated[TextOptions, arg(metavar="COLUMN=STEPS")] = ()
    """move a column in time: action=-3 moves actions to earlier steps, which corrects actions that are stored 3 steps
    late; action=3 moves them to later steps. Steps without a value are left out"""
    scale: Annotated[TextOptions, arg(metavar="COLUMN=FACTOR")] = ()
    """multiply a column by a number or convert it: action=0.5, action=deg2rad (also rad2deg, mm2m, m2mm); in quotes,
    some components by name or number: 'action[gripper,2]=0.01'"""
    sign: Annotated[TextOptions, arg(metavar="COLUMN")] = ()
    """change the sign of a column, or, in quotes, of some components: 'action[wrist]'"""
    swap: Annotated[TextOptions, arg(metavar="COLUMN[A,B]")] = ()
    """exchange the values of two components, in quotes: 'action[x,y]'. Their names stay where they are"""
    reorder: Annotated[TextOptions, arg(metavar="COLUMN=A,B,...")] = ()
    """bring the components of a column into this order, all by name or number: action=2,0,1. Names move with the
    values"""
    retarget: Annotated[str | None, arg(metavar="LENGTHS")] = None
    """turn episodes of one arm in the plane into episodes of another arm, whose tip moves as the recorded one did: the
    lengths of its links from the base, m, such as 0.4,0.35,0.25"""
    by: Literal["tips", "joints"] = "tips"
    """with --retarget: move the tip as it was recorded, or copy the angles of the joints"""
    reach: Literal["drop", "clip"] = "drop"
    """with --retarget: leave out episodes with a point that the arm cannot reach, or take the nearest point"""
    turn: Annotated[float, Above(0), arg(metavar="RAD")] = 1.0
    """with --retarget: how far an action of 1 turns a joint of the arm"""
    fps: StepRate = None
    """resample to this number of steps per second"""
    rule: Literal["last", "nearest", "linear"] = "last"
    """values at the new rate: the last row until then, the nearest row, or linear interpolation"""
    rename: Annotated[TextOptions, arg(metavar="OLD=NEW")] = ()
    """rename a column"""
    drop: Annotated[TextOptions, arg(metavar="COLUMN")] = ()
    """leave out a column"""
    label: Annotated[TextOptions, arg(metavar="[N:]FIELD=VALUE")] = ()
    """set metadata of every episode: "task=put it there", success=false, operator=Ada; 3:success=false, of episode 3
    alone, by its number after the operations above; 1,4:success=false, of episodes 1 and 4"""
    to: Format | None = None
    """materialize: the format to write; by default that of the suffix of DST, and LeRobot if DST has none"""
    strict: bool = False
    """materialize: refuse if the format cannot hold everything without a sidecar file"""
    ignore: IgnoredCodes = ()
    """materialize: write although the audit finds an error with this code"""


OF_MATERIALIZE = {"to", "strict", "ignore"}


def main(args: list[str]) -> None:
    o = parse(ViewOptions, "view", args)
    if o.subcommand != "list" and o.path is None:
        raise _usage_error(f"{o.subcommand} needs a path", o)
    if (o.out is not None) != (o.subcommand in ("make", "materialize")):
        needs = "needs --out FILE" if o.out is None else "writes nothing, so it takes no --out"
        raise _usage_error(f"{o.subcommand} {needs}", o)
    own = {"make": vars(o).keys() - OF_MATERIALIZE, "materialize": OF_MATERIALIZE}.get(o.subcommand, set())
    refuse_given(o, vars(o).keys() - {"subcommand", "path", "out", "json"} - own, f"has no effect with {o.subcommand}",
                 "leave it out; understudy view --help says what each takes")
    for name, other in (("seed", "sample"), ("descending", "sort"), ("rule", "fps"), *(
            (name, "retarget") for name in ("by", "reach", "turn"))):
        if getattr(o, other) is None:
            refuse_given(o, (name,), f"has no effect without --{other}")
    with Output(o.json) as out:
        {"make": _make_view, "list": _list_views, "show": _show_view, "materialize": _materialize}[o.subcommand](o, out)


def _usage_error(problem: str, o: ViewOptions) -> UserError:
    return UserError(problem, where=f"understudy view {o.subcommand}",
                     hint="understudy view --help says what each takes")


def _make_view(o: ViewOptions, out: Output) -> None:
    from ..audit.compatibility import action_convention
    from ..data.formats import open_dataset
    from ..data.opening import views
    from ..data.operations import Operation

    assert o.path is not None and o.out is not None
    check_absent(o.out)
    data = open_dataset(demonstrations_path(o.path))
    operations = []
    for parsed_operation in _parse_operations(o):
        # Parse the value with the type of the field.
        operation = parsed_operation if isinstance(parsed_operation, Operation) else parsed_operation(data)
        operations.append(operation)
        try:
            before, data = data, operation.apply(data)
        except UserError as error:
            raise UserError(error.problem, where=f"{o.path}: {error.where}", hint=error.hint) from None
        for doubt in _doubts(operation, before, data):
            print(f"warning: {doubt}", file=sys.stderr)
    if o.fps is not None and action_convention(data) == "delta":
        out.print("warning: the actions look like differences per step, and another rate means another speed")
    view = views.write_view(o.out, o.path, *operations, created_with={"command": "view make"})
    out.print(f"{view.episodes} episodes, {view.steps} steps. Written to {o.out}")
    out.suggest(command_line("inspect", o.out), command_line("view", "show", o.out))
    out.print_json(views.lineage(o.out))


def _doubts(operation: Operation, before: Dataset, after: Dataset) -> list[str]:
    """Returns warnings about an operation that fits the data but may not do what was meant."""
    from ..audit.checks import check_timestamps
    from ..data.operations import Filter, Resample
    from ..data.retargeting import MotionRetargeting

    if isinstance(operation, MotionRetargeting) and operation.by == "tips":
        return _out_of_reach(operation, before)
    if isinstance(operation, Filter) and operation.negate and len(after) == len(before):
        unmatched = ", ".join(dict.fromkeys(map(str, operation.equals or ())))
        return [f"{operation.field} is {unmatched} in no episode, so none is left out"]
    if not isinstance(operation, Resample) or not len(before):
        return []
    return [f"{f.message} ({f.remedy})" for f in check_timestamps(before)
            if f.code in ("fps-disagrees", "timestamps-unit")] + (
        _unnamed_angles(before) if operation.rule == "linear" else [])


def _out_of_reach(operation: MotionRetargeting, before: Dataset) -> list[str]:
    """Returns a warning about points that the arm cannot reach: how many, in how many episodes, and the first."""
    counts = operation.out_of_reach(before)
    if not counts.any():
        return []
    worst, points = int(counts.argmax()), int(before.rows("observation.state").sum())
    effect = "are left out" if operation.reach == "drop" else "end at the nearest point in reach there"
    return [f"{counts.sum()} of {points} points are out of reach of the arm, which reaches "
            f"{sum(operation.to):.3g} m. {(counts > 0).sum()} of {len(before)} episodes {effect}; "
            f"most in episode {worst}: {counts[worst]} points"]


def _unnamed_angles(data: Dataset) -> list[str]:
    """Returns warnings about components that are interpolated as numbers although they jump like angles."""
    from ..core import role
    from ..data.resampling import unnamed_turns

    doubts = {}
    for name in (n for n, f in data.features().items() if role(n) in ("observation", "action") and f.kind == "vector"):
        for e, episode in enumerate(data):
            for i in unnamed_turns(name, episode.features()[name], episode.steps[name]):
                doubts.setdefault((name, i), f"component {i} of {name} jumps by almost a full turn in episode {e}, and "
                                  "is interpolated as a number (if it is an angle, give it a name such as yaw or the "
                                  "unit rad or deg where it is recorded, or use --rule nearest)")
    return list(doubts.values())


def _parse_operations(o: ViewOptions) -> list[Operation | Callable[[Dataset], Operation]]:
    from functools import partial

    from ..data import operations as op

    operations: list = [partial(_parse_condition, text) for text in o.filter]
    operations += [op.Delete(o.delete)] if o.delete else []
    operations += [op.Select(o.select)] if o.select else []
    operations += [op.Sample(o.sample, o.seed)] if o.sample is not None else []
    operations += [op.Sort(o.sort, o.descending)] if o.sort else []
    operations += [_cut_segments(o.segments)] if o.segments else []
    operations += [_parse_cuts(o.cut)] if o.cut else []
    operations += [op.Crop(*_parse_range(text)) for text in o.crop]
    operations += _parse_corrections(o)
    operations += [_parse_retargeting(o)] if o.retarget is not None else []
    operations += [op.Resample(o.fps, o.rule)] if o.fps is not None else []
    operations += [op.Rename(*split_pair("--rename", text, "OLD=NEW")) for text in o.rename]
    operations += [op.Drop(o.drop)] if o.drop else []
    return operations + [op.Label(*_parse_label(text)) for text in o.label]


def _cut_segments(field: str) -> Operation:
    from ..data.segments import SEGMENTS, ColumnSegments, CutSegments

    return CutSegments() if field == SEGMENTS else CutSegments(ColumnSegments(field))


def _cut_at_resets(data: Dataset) -> Operation:
    from ..audit.continuity import find_resets
    from ..data.segments import Cut

    resets = find_resets(data)
    if not resets:
        raise UserError("the audit finds no row at which another rollout begins", where="--cut resets",
                        hint="name the rows: --cut every=57, or --cut at=57,114")
    return Cut(tuple(row for rows in resets.values() for row in rows),
               tuple(e for e, rows in resets.items() for _ in rows))


def _parse_cuts(texts: tuple[str, ...]) -> Operation | Callable[[Dataset], Operation]:
    from ..data.segments import Cut

    if texts == ("resets",):
        return _cut_at_resets
    pairs: list[tuple[str, tuple[int, ...]]] = []
    for text in texts:
        key, rows = split_pair("--cut", text, "every=57")
        if not re.fullmatch(r"every=\d+|(at|\d+)=\d+(,\d+)*", text):
            raise UserError(f"{text!r} does not say where to cut", where="--cut",
                            hint="such as --cut every=57, --cut at=57,114 or, of episode 3 alone, --cut 3=57,114")
        pairs.append((key, tuple(map(int, rows.split(",")))))
    if len(pairs) == 1 and not pairs[0][0].isdecimal():
        key, numbers = pairs[0]
        return Cut(every=numbers[0]) if key == "every" else Cut(numbers)
    if repeated := [key for key, _ in pairs if not key.isdecimal()]:
        raise UserError(f"{repeated[0]}= is given with other cuts", where="--cut", hint="give it alone")
    return Cut(tuple(row for _, rows in pairs for row in rows), tuple(int(key) for key, rows in pairs for _ in rows))


def _parse_corrections(o: ViewOptions) -> list[Operation]:
    from ..data.corrections import Reorder, Scale, Shift, Swap

    operations: list[Operation] = []
    for text in o.shift:
        column, steps = split_pair("--shift", text, "action=-3")
        if not re.fullmatch(r"[+-]?\d+", steps):
            raise UserError(f"{steps!r} is not a whole number of steps", where="--shift", hint="such as action=-3")
        operations.append(Shift(column, int(steps)))
    for text in o.scale:
        name, factor = split_pair("--scale", text, "action=0.5")
        column, components = _split_components(name)
        operations.append(Scale(column, _parse_scalar(factor), components))
    operations += [Scale(column, -1.0, components) for column, components in map(_split_components, o.sign)]
    for text in o.swap:
        column, components = _split_components(text)
        if components is None or len(components) != 2:
            raise UserError(f"{text!r} does not name two components", where="--swap", hint="such as 'action[x,y]'")
        operations.append(Swap(column, (components[0], components[1])))
    return operations + [Reorder(column, tuple(parts.split(","))) for column, parts in (
        split_pair("--reorder", text, "action=2,0,1") for text in o.reorder)]


def _parse_retargeting(o: ViewOptions) -> Operation:
    from ..data.retargeting import MotionRetargeting

    assert o.retarget is not None
    try:
        lengths = tuple(map(float, o.retarget.split(",")))
    except ValueError:
        raise UserError(f"{o.retarget!r} does not give the lengths of links", where="--retarget",
                        hint="in m, from the base: --retarget 0.4,0.35,0.25") from None
    return MotionRetargeting(lengths, o.by, o.reach, o.turn)


def _split_components(text: str) -> tuple[str, tuple[str, ...] | None]:
    """Splits "action[x,y]" into the column and the names or numbers of components, of which "action" has none."""
    column, bracket, parts = text.removesuffix("]").partition("[")
    return (column, tuple(part.strip() for part in parts.split(","))) if bracket else (text, None)


def _parse_condition(text: str, data) -> Operation:
    from ..data.formats.parts.column_names import format_list
    from ..data.operations import Filter, episode_values

    for sign in ("!=", ">=", "<=", "="):
        name, separator, value = text.partition(sign)
        if separator and name and value:
            if sign in (">=", "<="):
                number = _parse_scalar(value)
                if isinstance(number, (int, float)) and not isinstance(number, bool):
                    return Filter(name, **{"at_least" if sign == ">=" else "at_most": number})
                break
            values = [w for v in episode_values(data, name) for w in (v if isinstance(v, list) else [v])]
            kinds = {isinstance(v, str) for v in values if v is not None} or {False}
            texts = [value] if value in values else value.split(",")  # a text of the data may have commas
            parsed = tuple(v if is_text else _parse_scalar(v) for is_text in sorted(kinds) for v in texts)
            condition = Filter(name, parsed, negate=sign == "!=")
            if not len(condition.apply(data)):
                options = dict.fromkeys(v if isinstance(v, str) else json.dumps(v, default=str) for v in values)
                raise UserError(f"no episode satisfies {text!r}", where="--filter",
                                hint=f"values of {name}: {format_list(options)}")
            return condition
    raise UserError(f"{text!r} is not a field, =, !=, >= or <=, and a value", where="--filter",
                    hint="such as --filter success=true --filter 'length>=50'")


def _parse_range(text: str) -> tuple[int, int | None, tuple[int, ...] | None]:
    episodes, steps = _split_episodes(text, "=")
    if not (match := re.fullmatch(r"(-?\d*):(-?\d*)", steps)) or "-" in match.groups():
        raise UserError(f"{text!r} is not of the form A:B", where="--crop",
                        hint="such as --crop 5:-5, --crop=:-5 or, of episode 3 alone, --crop 3=5:-2")
    return int(match[1] or 0), int(match[2]) if match[2] else None, episodes


def _parse_label(text: str) -> tuple[str, Any, tuple[int, ...] | None]:
    episodes, label = _split_episodes(text, ":")
    name, value = split_pair("--label", label, "'task=put it there'")
    if re.match(r"[\W\d_]*:", name):  # such as -1:success, which is no field of all episodes
        raise UserError(f"{text!r} has no episode numbers before the colon", where="--label",
                        hint="such as --label 3:success=false or --label 1,4:success=false, counted from 0")
    return name, value if name == "task" else _parse_scalar(value), episodes


def _split_episodes(text: str, sign: str) -> tuple[tuple[int, ...] | None, str]:
    """Splits "1,4=5:-2", with the sign "=", into the episodes (1, 4) and "5:-2". Text without numbers is of all."""
    numbers, _, change = text.partition(sign)
    is_of_some = change and re.fullmatch(r"\d+(,\d+)*", numbers)
    return (tuple(map(int, numbers.split(","))), change) if is_of_some else (None, text)


def _parse_scalar(text: str):
    """Parses a number, or true or false in any case. Other text is returned unchanged."""
    try:
        value = json.loads(text.lower() if text.lower() in ("true", "false") else text)
    except ValueError:
        return text
    return value if isinstance(value, (bool, int, float)) and math.isfinite(value) else text


def _list_views(o: ViewOptions, out: Output) -> None:
    from ..data.opening import views

    folder = o.path or Path()
    if not folder.is_dir():
        raise UserError("there is no such folder", where=folder, hint="understudy view show FILE shows one view")
    rows: list[dict[str, Any]] = []
    for path in views.list_views(folder):
        try:
            view = views.read_view(path)
            states = [views.parent_state(view, p) for p in view.parents]
            worst = next((s for s in ("missing", "changed") if s in states), "as it was")
            rows.append({"path": str(path), "episodes": view.episodes, "steps": view.steps, "state": worst,
                         "parents": [str(view.parent_path(p)) for p in view.parents]})
        except UserError as error:
            rows.append({"path": str(path), "episodes": None, "steps": None, "state": f"damaged: {error.problem}",
                         "parents": []})
    cells = ((v["path"], *("" if v[k] is None else v[k] for k in ("episodes", "steps")), ", ".join(v["parents"]),
              v["state"]) for v in rows)
    out.print(plain_table(("view", "episodes", "steps", "of", "which is"), cells) if rows else f"no views in {folder}")
    out.print_json(rows)


def _show_view(o: ViewOptions, out: Output) -> None:
    from ..data.opening import views

    assert o.path is not None
    lineage = views.lineage(o.path)
    out.print(*_lineage_lines(lineage))
    for key, value in lineage["made"].items():
        text = json.dumps(value, ensure_ascii=False)
        out.print(f"{key}: {value if isinstance(value, str) else text if len(text) < 200 else f'{len(value)} of them'}")
    out.print_json(lineage)


def _lineage_lines(node, indent: str = "") -> list[str]:
    state = "" if node["state"] == "as it was" else f", {node['state'].upper()}"
    lines = [f"{indent}{node['path']}: {node['episodes']} episodes, {node['steps']} steps{state}"]
    lines += [f"{indent}  {i}. {o}" for i, o in enumerate(node.get("operations", ()), 1)]
    for parent in node.get("parents", ()):
        lines += _lineage_lines(parent, indent + "  of " if not indent else "     " + indent)
    return lines


def _materialize(o: ViewOptions, out: Output) -> None:
    from ..data.formats import formats_for_suffix
    from ..data.opening import views

    assert o.path is not None and o.out is not None
    views.read_view(o.path)  # raises UserError if it is not a view
    check_absent(o.out)
    convert([str(o.path), str(o.out), *map(str, given_options(o, "to", "strict", "ignore"))])
    out.print_json({"path": str(o.out), "format": o.to or formats_for_suffix(o.out)[0], **views.lineage(o.path)})
