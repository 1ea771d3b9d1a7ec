"""The command understudy diagnose."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from ..advice import advice_about
from ..core import MissingAction, UserError
from ..hints import escape_control
from ..serve.address import lerobot_name, served_address
from .parts.arms import prepare_robot
from .parts.common import (
    Output,
    command_line,
    earlier_provenances,
    given_options,
    has_no_run,
    open_data,
    parse,
    read_provenance,
    recorded_data_of,
    recorded_env_of,
    recorded_word,
    trained_rate,
    trust_options,
)
from .parts.groups import ActingOptions, ColumnsOption, HtmlOption, JsonOption, PositiveCount, command_options
from .parts.options import refuse_given
from .parts.policies import ROWS, load_actor, load_policy, run_folder, tell_checkpoint
from .parts.robot_options import RobotOptions
from .parts.run_options import missing_data, reseeded_command, trained_on

if TYPE_CHECKING:
    from ..diagnose.base import RunDiagnosis
    from ..diagnose.runner import Observed, Recorded

_READINGS = 5  # number of readings of a robot that does not move


@command_options
class DiagnoseOptions(ActingOptions, ColumnsOption, HtmlOption, JsonOption, RobotOptions):
    """Say why a policy fails although its loss fell.

    Without --env and --robot, the run and its data are checked: fit, statistics, the delay of the recorded actions, the
    checkpoint. With --env, the policy acts in a few episodes, and some more repeat recorded actions. With --robot, only
    observations are read: the robot does not move.

    Nothing is changed. The exit status does not depend on what is found: `ok` of --json does.
    """

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """a run, or one of its checkpoints; with --env or --robot also a policy of LeRobot"""
    data: Annotated[Path | None, arg(metavar="DATA")] = None
    """the demonstrations; by default those that the run was trained on, if they are still there"""
    env: Annotated[str | None, arg(metavar="ENV")] = None
    """the environment in which the policy fails"""
    episodes: PositiveCount = 20
    """number of episodes of the policy in --env"""


def main(args: list[str]) -> None:
    o = parse(DiagnoseOptions, "diagnose", args)
    address = served_address(o.run)
    is_of_lerobot = address is not None and lerobot_name(address) is not None
    if is_of_lerobot and o.env is None and o.robot is None:
        raise UserError("how a policy of LeRobot was trained is not known here, so only where it acts can be checked",
                        where=address, hint="name where it fails: --env ENV or --robot TYPE")
    if has_no_run(o.run) and not is_of_lerobot:
        raise UserError("is not a run: it does not say what it was trained on", where=address or o.run,
                        hint=f"diagnose the run that {'is served there' if address else 'it was exported from'}")
    o.refuse_without_robot(command_line("diagnose", o.run, "--robot", "TYPE"))
    if o.robot is not None:
        refuse_given(o, ("env",), "cannot be used with --robot", "name the one in which the policy fails")
    if o.env is None:
        refuse_given(o, ("episodes",), "is a number of episodes in the environment of --env", "add --env ENV")
    with Output(o.json) as out:
        tell_checkpoint(o.run)
        result = _diagnosis_by_acting(o) if is_of_lerobot else _diagnosis(o)
        commands = [_command(o, finding.command) for finding in result.findings]
        following = [(step.text, _command(o, step.command)) for step in result.next_steps]
        for finding, command in zip(result.findings, commands, strict=True):
            out.print(f"{finding.level}  {finding.code}  ({finding.describe_range()})", f"  {finding.message}",
                      f"  -> {finding.remedy}" + (f": {command}" if command else ""))
        if result.findings:
            out.print()
        out.print(result.headline, *(f"not checked: {text}" for text in result.unchecked),
                  *advice_about(*(f"diagnose {finding.code}" for finding in result.findings)))
        if following:
            out.print("Try next:", *(f"  {text}: {command}" for text, command in following))
        if o.html is not None:
            _write_page(o.html, o, result, commands, following)
            out.print(f"Report written to {o.html}")
        document = result.to_json()
        document["findings"] = [{**finding, "command": command}
                                for finding, command in zip(document["findings"], commands, strict=True)]
        document["next"] = [{"text": text, "command": command} for text, command in following]
        out.print_json(document)


def _diagnosis(o: DiagnoseOptions) -> RunDiagnosis:
    """Checks a run, its data, and where it acts if that is named."""
    from ..checkpoint import find_checkpoint
    from ..diagnose.runner import diagnose
    from ..learn.devices import choose_device
    from ..learn.method import TrainedRun
    from ..learn.training_curves import TrainingCurves

    trained = TrainedRun.load(o.run, o.trust, choose_device(o.device), transforms=True)
    recorded, reason = _recorded(o, trained.policy.image_sizes)
    observed = _observed(o, recorded)
    name = find_checkpoint(o.run).name
    result = diagnose(trained, TrainingCurves.load(o.run), int(name) if name.isdigit() else None, recorded, observed)
    return result if reason is None else replace(result, unchecked=(reason, *result.unchecked))


def _diagnosis_by_acting(o: DiagnoseOptions) -> RunDiagnosis:
    """Checks where a policy acts whose training is not known, against the data of --data."""
    from ..diagnose.runner import diagnose_planner
    from ..policy import camera_sizes

    planner = load_policy(o.run, o, None)[0]
    sizes = camera_sizes({name: planner.features[name] for name in planner.inputs})
    recorded = None if o.data is None else _recorded(o, sizes)[0]
    observed = _observed(o, recorded)
    assert observed is not None
    return diagnose_planner(planner, recorded, observed)


def _write_page(path: Path, o: DiagnoseOptions, result: RunDiagnosis, commands: list[str | None],
                following: list[tuple[str, str | None]]) -> None:
    """Writes the page of --html: the findings of each level, with their commands, and what was checked."""
    from ..evaluate.report import Commands, Content, Paragraph, Remedies, Section, capitalize_first, write_page

    leads = {"fault": "Each of these explains failures. Fix the first one, and diagnose again.",
             "warning": "These may explain some failures.", "note": "These are good to know."}
    sections = []
    for level, lead in leads.items():
        pairs = [(f, command) for f, command in zip(result.findings, commands, strict=True) if f.level == level]
        remedies = tuple((capitalize_first(f.message), f"What to do: {f.remedy}.", f"{f.code}: {f.describe_range()}")
                         for f, _ in pairs)
        to_run = tuple((command, f"{f.code}:") for f, command in pairs if command)
        contents: list[Content] = [Remedies(remedies), *((Commands(to_run),) if to_run else ())]
        if pairs:
            sections.append(Section(f"{level.capitalize()}s", tuple(contents), lead))
    unchecked = [Paragraph(f"Not checked: {text}.") for text in result.unchecked]
    sections.append(Section("What was checked", (Paragraph(", ".join(result.checked) + "."), *unchecked)))
    if following:
        to_try = tuple((command, f"{text[0].upper()}{text[1:]}:") for text, command in following if command)
        sections.append(Section("What to try next", (Commands(to_try),)))
    acting_in = o.env or o.robot
    write_page(path, f"Diagnosis of {o.run.name}" + (f" in {acting_in}" if acting_in else ""), sections,
               verdict=(result.headline,))


def _data_path(o: DiagnoseOptions) -> Path | None:
    """Returns the path of the data of --data, or of the data that the run was trained on."""
    return o.data if has_no_run(o.run) else o.data or trained_on(o.run)


def _recorded(o: DiagnoseOptions, image_sizes: Mapping[str, tuple[int, int]]) -> tuple[Recorded | None, str | None]:
    """Returns the recorded data of the run, or why they are not there.

    Args:
        image_sizes: Height and width of each camera that the policy reads.
    """
    from ..diagnose.runner import Recorded
    from ..evaluate.action_prediction import episodes_to_evaluate

    path = _data_path(o)
    if path is None or o.data is None and not path.exists():
        return None, f"{missing_data(path)} (name them: --data DATA)"
    try:
        data = open_data(path, next(iter(image_sizes.values()), None), decode=bool(image_sizes),
                         columns=o.columns, run=o.run)
    except MissingAction:
        return None, f"there are no actions in {path}"
    provenance, everything = read_provenance(o.run), range(len(data))
    numbers, origin = episodes_to_evaluate(provenance, data, earlier_provenances(o.run))
    left_out = set(provenance.get("left_out", ()))
    held_out = numbers if origin == "held out" else []
    learned = numbers if origin == "trained on" else [i for i in everything if i not in {*held_out, *left_out}]
    reason = (f"{path} are not the data of the run, as far as is recorded: what is said of its fit is about them"
              if origin == "other data" else None)
    sizes = recorded_data_of(o.run).get("camera_sizes") or {}
    return Recorded(data, held_out, learned, sizes, origin != "other data"), reason


def _observed(o: DiagnoseOptions, recorded: Recorded | None) -> Observed | None:
    if o.robot is not None:
        return _observed_robot(o)
    if o.env is None:
        return None
    from ..diagnose.runner import observe_environment
    from ..envs import make

    with closing(make(o.env, min(ROWS, o.episodes), o.trust)) as env:
        try:
            actor = load_actor(o.run, env, o)[0]
        except UserError as error:  # it does not fit: the checks say why
            if recorded is None:
                raise
            print(escape_control(f"the policy cannot act in {o.env}: {error.problem}"), file=sys.stderr)
            actor = None
        return observe_environment(env, actor, None if recorded is None else recorded.data, o.episodes, o.seed)


def _observed_robot(o: DiagnoseOptions) -> Observed:
    """Reads observations from a connected robot, which does not move."""
    import numpy as np

    from ..data.episode import Dataset, Episode
    from ..diagnose.runner import Observed

    robot = prepare_robot(o.robot_config(), o.trust, o.yes)
    with robot:
        readings = [robot.observe() for _ in range(_READINGS)]
    columns = {name: np.stack([np.asarray(reading[name]) for reading in readings]) for name in readings[0]}
    limits = {"low": robot.limits.low, "high": robot.limits.high}
    return Observed(robot.schema, {"fps": trained_rate(o.run), **limits}, Dataset([Episode(columns)]), moves=False)


def _command(o: DiagnoseOptions, words: Sequence[str]) -> str | None:
    """Returns the command of a finding, for this run, data and environment."""
    if not words or has_no_run(o.run) and any(word == "METHOD" or word.startswith(("RUN-", "RUN/")) for word in words):
        return None  # what trains it is not known
    if "METHOD" in words and (again := reseeded_command(o.run)) is not None:
        return " ".join([again[0], *words[words.index("RUN-2") + 1:]])
    env, data = o.env or recorded_env_of(o.run), _data_path(o)
    words = _without_robot(words, env) if o.robot is None else _with_robot(o, words)
    data_word = "DATA" if data is None else recorded_word(data) if words[0] == "eval" else str(data)
    names = {"DATA": data_word, "ENV": env or "ENV", "RUN": str(o.run), "VIEW": "view.json"}
    words = [_run_place(o.run, names.get(word, word)) for word in words]
    python = given_options(o, "lerobot_python") if str(o.run) in words else ()
    return command_line(*words, *python, *(trust_options(o.trust, env, o.run) if env in words else ()))


def _with_robot(o: DiagnoseOptions, words: Sequence[str]) -> list[str]:
    """Returns the words of a command for the robot in place of an environment."""
    if words[:2] == ("robot", "check"):
        return [*words[:2], *o.robot_arguments(), *words[2:]]
    if "ENV" not in words:
        return list(words)
    at, teleoperator = words.index("ENV"), ("--teleop", "TYPE") if words[0] == "record" else ()
    command = "act" if words[0] == "eval" else words[0]
    return [command, *words[1:at], *o.robot_arguments(), *teleoperator, *words[at + 1:]]


def _without_robot(words: Sequence[str], env: str | None) -> Sequence[str]:
    """Returns the words of a command, with another one in place of those that need a robot."""
    if words[0] != "robot":
        return words
    return ("replay", "DATA", "ENV") if words[1] == "check" and env is not None else ("inspect", "DATA")


def _run_place(run: Path, word: str) -> str:
    """Returns a path beside the run for RUN-NAME, one in its folder for RUN/NAME, and other words as they are."""
    if word.startswith("RUN-"):
        return f"{run}{word.removeprefix('RUN')}"
    return f"{run_folder(run)}{word.removeprefix('RUN')}" if word.startswith("RUN/") else word
