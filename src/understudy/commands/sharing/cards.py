"""The cards of data sets and policies on the hub: README.md with the metadata that the hub reads."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...audit.base import Finding
from ...core import Schema
from ...hints import command_line, pluralize
from ..parts.policies import ACTING

_LISTED = 20  # failed starts, and tasks, that a card lists


@dataclass(frozen=True)
class DataFacts:
    """What a card says about a data set.

    Args:
        fps: Steps per second. None if they are not known.
        successes: Number of episodes that succeeded. None if the data do not say it.
        origin: The environment or the robot of the recording, if it is known.
        findings: What the audit of the data found.
    """

    fingerprint: str
    episodes: int
    steps: int
    fps: float | None
    features: Schema
    successes: int | None
    origin: str | None
    tasks: Sequence[str]
    findings: Sequence[Finding]


def data_card(name: str, facts: DataFacts, license: str | None) -> str:
    """Returns the card of a data set.

    Args:
        name: OWNER/NAME.
    """
    metadata = {"license": license, "task_categories": ["robotics"], "tags": ["LeRobot", "understudy",
                                                                             "imitation-learning"],
                "configs": [{"config_name": "default", "data_files": "data/*/*.parquet"}]}
    rate = f", {facts.fps:g} steps per second" if facts.fps else ", at a rate that was not recorded"
    place = f" Recorded in {facts.origin}." if facts.origin else ""
    success = "" if facts.successes is None else f" {facts.successes} of {facts.episodes} episodes succeeded."
    columns = [f"| `{column}` | {feature.dtype} | {' x '.join(map(str, feature.shape)) or '1'} |"
               for column, feature in facts.features.items()]
    return f"""{_front_matter(metadata)}
# {name}

{pluralize(facts.episodes, 'episode')} of demonstrations, {pluralize(facts.steps, 'step')}{rate}.{place}{success}

Fingerprint of the data, by which runs name them: `{facts.fingerprint}`.

## Columns

| column | type | shape |
|---|---|---|
{chr(10).join(columns)}
{_tasks(facts.tasks)}
## Audit

{_audit(facts.findings)}

## Use

{_commands([command_line('train', 'METHOD', f'hf:{name}', '--out', 'RUN')])}

The files have the layout of LeRobot, which opens them as `LeRobotDataset("{name}")`.
"""


def run_card(name: str, *, provenance: Mapping[str, Any], head: str, updates: int, evaluations: Sequence[Mapping],
             is_lerobot: bool, license: str | None) -> str:
    """Returns the card of a policy.

    Args:
        name: OWNER/NAME.
        provenance: The provenance.json of its checkpoint.
        head: Name of the class of its head.
        updates: Number of updates of its checkpoint.
        evaluations: Stored results of `understudy eval` of this checkpoint.
        is_lerobot: Whether the files of LeRobot's layout are there too.
    """
    data, versions = provenance["data"], provenance["versions"]
    method = (provenance.get("options") or {}).get("method")
    on_hub = [data["name"]] if "/" in str(data["name"]) else None
    metadata = {"license": license, "library_name": "understudy", "pipeline_tag": "robotics", "datasets": on_hub,
                "tags": ["robotics", "imitation-learning", *([method] if method else []),
                         *(["LeRobot"] if is_lerobot else [])]}
    held_out = ", ".join(map(str, provenance["held_out"]))
    lerobot = f'\nLeRobot loads it, too: `--policy.path={name}`.\n' if is_lerobot else ""
    commands = [*filter(None, [provenance["command"]]), *dict.fromkeys(map(_eval_command, evaluations))]
    env = evaluations[0]["env"] if evaluations else "ENV"
    return f"""{_front_matter(metadata)}
# {name}

A policy{f" of the method `{method}`" if method else ""} with the head {head}.
Trained with seed {provenance["seed"]} in {pluralize(updates, "update")} by understudy {versions["understudy"]} \
(PyTorch {versions["torch"]}).
[CARD.md](CARD.md) has its settings and the measurements of the training.

## Evaluation

{_evaluation(evaluations)}

## Known failures

{_failures(evaluations)}

## Use

{_commands([command_line('eval', f'hf:{name}', env, '--episodes', 100)])}
{lerobot}
## Data

{f"`{data['name']}`" if data["name"] else "A data set"}: {pluralize(data["episodes"], 'episode')}, \
{pluralize(data["steps"], 'step')}, with the fingerprint `{data["fingerprint"]}`.
{f"Held out: episodes {held_out}." if held_out else "No episode was held out."}

## Commands that made it

{_commands(commands) if commands else 'No command was recorded.'}
"""


def _front_matter(metadata: Mapping[str, Any]) -> str:
    """Returns metadata as the hub reads them. JSON values are YAML."""
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in metadata.items() if value is not None]
    return "\n".join(["---", *lines, "---", ""])


def _commands(lines: Sequence[str]) -> str:
    return "\n".join(["```bash", *lines, "```"])


def _tasks(tasks: Sequence[str]) -> str:
    if not tasks:
        return ""
    more = [f"- and {len(tasks) - _LISTED} more"] if len(tasks) > _LISTED else []
    return "\n".join(["", "## Tasks", "", *(f"- {_cell(task)}" for task in tasks[:_LISTED]), *more, ""])


def _audit(findings: Sequence[Finding]) -> str:
    if not findings:
        return "`understudy audit` finds nothing."
    rows = [f"| {f.severity} | `{f.code}` | {_cell(f.message)} |" for f in findings]
    return "\n".join(["What `understudy audit` finds:", "", "| severity | finding | |", "|---|---|---|", *rows])


def _evaluation(evaluations: Sequence[Mapping]) -> str:
    if not evaluations:
        return "No evaluation of this checkpoint is stored."
    rows = [f"| {line['env']} | {line['seed']} | {line['episodes']} | "
            f"{_interval(line['success'], 'estimate', lambda rate: f'{rate:.1%}')} | "
            f"{_interval(line['return'], 'mean', lambda value: f'{value:.4g}')} | {line['date'][:10]} |"
            for line in evaluations]
    return "\n".join([
        "| environment | seed | episodes | success | mean return | date |", "|---|--:|--:|--:|--:|---|", *rows, "",
        "In brackets are 95% intervals. They are about this checkpoint: another training seed may come out otherwise."])


def _interval(result: Mapping | None, estimate: str, form: Callable[[float], str]) -> str:
    if result is None:
        return "-"
    middle, low, high = ("-" if result[name] is None else form(result[name]) for name in (estimate, "low", "high"))
    return f"{middle} [{low}, {high}]"


def _failures(evaluations: Sequence[Mapping]) -> str:
    """Returns which numbered starts failed in the stored evaluations."""
    lines = []
    for line in evaluations:
        failed = [i for i, success in enumerate(line["each"]["success"] or []) if not success]
        if failed:
            more = f", and {len(failed) - _LISTED} more" if len(failed) > _LISTED else ""
            lines.append(f"- {line['env']}, seed {line['seed']}: {len(failed)} of {line['episodes']} starts failed, "
                         f"{'number' if len(failed) == 1 else 'numbers'} {', '.join(map(str, failed[:_LISTED]))}{more}")
    return "\n".join(lines) or "No failure is recorded."


def _eval_command(line: Mapping) -> str:
    acting: list[str] = []
    for name in ACTING:
        if name in line:
            acting += [f"--{name}", *([line[name]] if isinstance(line[name], str) else line[name])]
    return command_line("eval", "RUN", line["env"], "--episodes", line["episodes"], "--seed", line["seed"], *acting)


def _cell(text: str) -> str:
    """Returns a text in one line that ends no cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")
