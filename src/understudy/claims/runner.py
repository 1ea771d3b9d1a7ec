"""Runs a claim cell by cell, and judges figures. Finished cells are kept, so that an interrupted run continues."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..core import UserError
from ..data.cache import folder as cache
from ..evaluate.evaluation import tuning_seed
from ..evaluate.stats import seeds_caveat
from ..files import read_json, write_json, write_text
from .base import (
    AllOf,
    Claim,
    ClaimPart,
    Condition,
    Experiment,
    Measurements,
    Rule,
    RuleResult,
    smallest_effect,
    summarize,
    worst_verdict,
)
from .records import (
    code_digest,
    figures_path,
    find_text,
    fingerprint,
    is_redesigned,
    pilots_path,
    provenance,
    record_path,
)

LogFunction = Callable[[str], None]
Figures = dict[str, Measurements]  # part -> measurements; those of the negative control are under CONTROL
CONTROL = "negative control"
MECHANISM_ONLY = "mechanism only"  # the reason of a verdict if a claim cannot test its statement
PILOT_SEEDS = 800, 801, 802  # no claim is judged or tuned with them
MAX_SPREAD = 2.5  # spread of seeds in smallest effects; above it, more seeds do not help


def run_claim(claim: Claim, *, revision: str = "", log: LogFunction = lambda text: None) -> dict:
    """Runs a claim and writes its measurements and its record.

    Finished cells are kept in the cache by what they compute, so that an interrupted run continues, and claims that
    share an arm, a source and seeds run it once.

    Args:
        revision: What changed in the design since the previous run, for the log of the record.
    """
    mark, origin = fingerprint(claim), provenance()  # the code may change during the run
    cells = Cells(cache() / "claims" / "cells")
    figures, chosen = run_figures(claim, cells, log)
    judged = judge_figures(claim, figures)
    for name, part in judged["parts"].items():
        part["chosen"] = chosen[name]
        log(f"{name}: {part['verdict']} here ({_text(claim, part)}). {seeds_caveat(part['seeds'])}")
    log(f"{CONTROL}: {judged['negative_control']['verdict']} ({_text(claim, judged['negative_control'])})")
    record = {
        "name": claim.name,
        "rows": list(claim.rows),
        **judged,
        "fingerprint": mark,
        "seconds": round(sum(read_json(file)["seconds"] for file in cells.used), 1),
        **origin,
        "log": _continued_log(claim.name, origin["date"], revision, judged),
    }
    write_figures(claim.name, figures)
    write_json(record_path(claim.name), record)
    return record


def run_pilot(claim: Claim, *, log: LogFunction = lambda text: None) -> list[str]:
    """Runs the parts that decide with seeds that never judge, and notes their spread for the history of the record.

    Args:
        claim: The claim. Its next run adds the note to the log of its record.

    Returns:
        One sentence per rule: the spread of the training seeds in units of the smallest effect.
    """
    cells, sentences, verdicts, origin = Cells(cache() / "claims" / "cells"), [], [], provenance()
    for part in (p for p in claim.parts if p.is_decisive):
        pilot = replace(part, experiment=replace(part.experiment, seeds=PILOT_SEEDS, starts_seed=PILOT_SEEDS[0],
                                                 looks=()))
        _, figures = _run_experiment(pilot.experiment, cells, f"{part.name}, pilot", log)
        verdicts.append(_judge_part(pilot, figures)["verdict"])
        sentences += [_spread(claim, pilot, rule, figures)
                      for rule in (part.rule.rules if isinstance(part.rule, AllOf) else (part.rule,))]
    change = f"Training seeds {PILOT_SEEDS[0]} to {PILOT_SEEDS[-1]}, commit {origin['commit']}. {' '.join(sentences)}"
    notes = read_json(pilots_path(claim.name)) if pilots_path(claim.name).exists() else []
    write_json(pilots_path(claim.name), [
        *notes, log_entry(origin["date"], "pilot", change, {"verdict": worst_verdict(verdicts)})])
    return sentences


def _spread(claim: Claim, part: ClaimPart, rule: Any, figures: Measurements) -> str:
    measures = dict(part.experiment.measures)
    if not hasattr(rule, "measure"):  # a rule about the arms together
        return f"{part.name}: {_described(claim, rule.judge(figures, measures).conditions)}."
    first, *second = (np.array([np.mean(v) for v in figures[arm][rule.measure]]) for arm in rule.arms)
    spread = float(np.std(first - second[0] if second else first, ddof=1)) / smallest_effect(rule.measure, measures)
    advice = " More seeds do not help: change the world or the measure." if spread > MAX_SPREAD else ""
    return (f"{part.name}, {rule.measure}, {' and '.join(rule.arms)}: the spread of seeds is {spread:.2g} smallest "
            f"effects.{advice}")


@dataclass
class Cells:
    """Finished cells: one arm with one seed, each in a file that is named by a digest of its code and settings.

    Attributes:
        used: The files that a run has read or written.
    """

    folder: Path
    used: set[Path] = field(default_factory=set)
    sources: dict = field(default_factory=dict)


def run_figures(claim: Claim, cells: Cells, log: LogFunction) -> tuple[Figures, dict[str, dict[str, int]]]:
    """Runs all cells of a claim that are not finished.

    Args:
        cells: Finished cells. New ones are added.

    Returns:
        The measurements, and for each part the index of the option that tuning chose for each arm.
    """
    figures, chosen = {}, {}
    for part in claim.parts:
        chosen[part.name], figures[part.name] = _run_part(part, cells, log)
        if claim.negative_control.part == part.name and all(  # what does not hold cannot be removed
                result.verdict == "holds" for result in _judge_removed_rules(claim, figures[part.name])):
            changed = _control_experiment(claim.negative_control.change(part.experiment), part.rule, chosen[part.name])
            figures[CONTROL] = _run_control(claim, part, changed, figures[part.name], cells, log)
    return figures, chosen


def judge_figures(claim: Claim, figures: Figures) -> dict:
    """Judges the measurements of a claim by its rules. Nothing runs.

    Args:
        figures: Measurements of each part, and those of the negative control if it ran.

    Returns:
        "verdict", "reason" (empty, or why a verdict is undecided although the rules hold), "parts" and
        "negative_control", as a record stores them.
    """
    parts = {part.name: _judge_part(part, figures[part.name]) for part in claim.parts}
    control = _judge_control(claim, figures[CONTROL]) if CONTROL in figures else {
        "part": claim.negative_control.part, "passes": False, "verdict": "not run", "conditions": [], "summary": {}}
    verdict = worst_verdict(p["verdict"] for p in parts.values() if p["decides"])
    reason = next((p["reason"] for p in parts.values() if p["decides"] and p["reason"]), "")
    if verdict == "holds" and not control["passes"]:
        verdict, reason = "undecided", "control inconclusive"
    if claim.mechanism_only:
        verdict, reason = "undecided", MECHANISM_ONLY
    return {"verdict": verdict, "reason": reason, "parts": parts, "negative_control": control}


def judge_again(claim: Claim, date: str, why: str) -> dict:
    """Judges the stored measurements of a claim by its current rules, and writes the record. Nothing runs.

    The log gets an entry if the verdict, its reason or the comparisons that decide changed.

    Args:
        date: Today, such as "2026-11-21".
        why: What changed in the rules or statistics, for the log.

    Raises:
        UserError: The design has changed since the figures were measured. Its rule would judge figures that were known
            before.
    """
    old = read_json(record_path(claim.name))
    if is_redesigned(find_text(claim.name).revision, old):
        raise UserError(f"The design of {claim.name} has changed since its record.", where="understudy claims judge",
                        hint=f"run it: understudy claims run {claim.name}")
    judged = judge_figures(claim, read_json(figures_path(claim.name)))
    for name, part in judged["parts"].items():
        part["chosen"] = old["parts"][name]["chosen"]
    log = list(old.get("log", []))
    if (old["verdict"], old.get("reason", ""), _deciding(old)) != (
            judged["verdict"], judged["reason"], _deciding(judged)):
        log.append(log_entry(date, "judged again", why, judged))
    kept = {k: old[k] for k in ("fingerprint", "seconds", "commit", "date", "versions", "machine")}
    record = {"name": claim.name, "rows": list(claim.rows), **judged, **kept, "log": log}
    write_json(record_path(claim.name), record)
    return record


def _deciding(judged: dict) -> list[tuple[str, str, float]]:
    """The comparisons of the parts that decide, and their bounds."""
    return [(c["label"], c["side"], c["bound"]) for p in judged["parts"].values() if p["decides"]
            for c in p["conditions"]]


def log_entry(date: str, kind: str, change: str, judged: dict) -> dict:
    """One entry of a claim's public history.

    Args:
        date: Such as "2026-11-21".
        kind: "pilot", whose seeds do not judge; "run"; "redesign", a run of a changed design; "judged again", without
            a run; "note", such as a known weakness.
        judged: "verdict", and "reason" if there is one.
    """
    return {"date": date, "kind": kind, "change": change, "verdict": judged["verdict"],
            "reason": judged.get("reason", "")}


def write_figures(name: str, figures: Figures) -> None:
    """Writes the measurements of a claim to its file, one line per measure, in as few characters as possible: most are
    successes of single episodes, 0 or 1.
    """
    parts = []
    for part, arms in figures.items():
        lines = []
        for arm, measures_of_arm in arms.items():
            measures = ",\n".join(f"   {json.dumps(k)}: {_compact(v)}" for k, v in measures_of_arm.items())
            lines.append(f"  {json.dumps(arm)}: {{\n{measures}\n  }}")
        parts.append(f" {json.dumps(part)}: {{\n" + ",\n".join(lines) + "\n }")
    write_text(figures_path(name), "{\n" + ",\n".join(parts) + "\n}\n")


def _compact(value) -> str:
    """JSON without spaces, with whole numbers as such."""
    return json.dumps(_whole_as_int(value), separators=(",", ":"))


def _whole_as_int(value):
    if isinstance(value, dict):
        return {k: _whole_as_int(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_whole_as_int(v) for v in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _continued_log(name: str, date: str, revision: str, judged: dict) -> list[dict]:
    record = read_json(record_path(name)) if record_path(name).exists() else {}
    pilots = read_json(pilots_path(name)) if pilots_path(name).exists() else []
    old = [*record.get("log", []), *(pilot for pilot in pilots if pilot not in record.get("log", []))]
    if not record:
        return [*old, log_entry(date, "run", revision or "First run.", judged)]
    if is_redesigned(revision, record):
        return [*old, log_entry(date, "redesign", revision, judged)]
    return [*old, log_entry(date, "run", "Run again, with the same design.", judged)]


def _judge_part(part: ClaimPart, figures: Measurements) -> dict:
    experiment, seeds = part.experiment, _n_seeds(figures)
    measures = dict(experiment.measures)
    judged = part.rule.judge(figures, measures, experiment.level(seeds))
    low = [f"{arm} does not reach {least:g} of {measure}" for arm, measure, least in experiment.sanity
           if np.mean(figures[arm][measure]) < least]
    return {"verdict": "undecided" if low else judged.verdict, "reason": "; ".join(low), "decides": part.is_decisive,
            "seeds": seeds, "conditions": [asdict(c) for c in judged.conditions],
            "summary": summarize(figures, measures)}


def _judge_control(claim: Claim, figures: Measurements) -> dict:
    """Judges the negative control.

    It passes if every rule that it should remove fails, so that each interval lies below its bound or smallest effect.
    Otherwise the control is inconclusive. Intervals have the level at which its part was judged.
    """
    results = _judge_removed_rules(claim, figures)
    verdicts = {f.verdict for f in results}
    passes = verdicts == {"fails"}
    return {"part": claim.negative_control.part, "passes": passes,
            "verdict": "fails" if passes else "holds" if "holds" in verdicts else "undecided",
            "conditions": [asdict(c) for f in results for c in f.conditions],
            "summary": summarize(figures, dict(claim.controlled_part.experiment.measures))}


def _judge_removed_rules(claim: Claim, figures: Measurements) -> list[RuleResult]:
    """Judges the rules that the control should remove, by measurements of its part with or without its change."""
    experiment = claim.controlled_part.experiment
    measures, level = dict(experiment.measures), experiment.level(_n_seeds(figures))
    return [rule.judge(figures, measures, level) for rule in claim.removed_rules]


def _n_seeds(figures: Measurements) -> int:
    return len(next(iter(next(iter(figures.values())).values())))


def _text(claim: Claim, judged: dict) -> str:
    return _described(claim, (Condition(**c) for c in judged["conditions"]))


def _described(claim: Claim, conditions: Iterable[Condition]) -> str:
    return "; ".join(c.describe(claim.unit_of(c.label)) for c in conditions)


def _run_part(part: ClaimPart, cells: Cells, log: LogFunction) -> tuple[dict[str, int], Measurements]:
    """Runs the planned looks of a part until one decides."""
    for count, _ in part.experiment.looks or ((len(part.experiment.seeds), 0.0),):
        experiment = replace(part.experiment, seeds=part.experiment.seeds[:count], looks=())
        chosen, figures = _run_experiment(experiment, cells, part.name, log)
        if _judge_part(part, figures)["verdict"] != "undecided":
            break
    return chosen, figures


def _run_control(claim: Claim, part: ClaimPart, changed: Experiment, figures: Measurements, cells: Cells,
                 log: LogFunction) -> Measurements:
    """Runs the control with the seeds of its part. Where the part holds, it goes on to later looks until it passes: the
    part may be decided by few seeds, and a control of few seeds is inconclusive."""
    used, holds = _n_seeds(figures), _judge_part(part, figures)["verdict"] == "holds"
    later = [count for count, _ in part.experiment.looks if count > used] if holds else []
    for count in (used, *later):
        _, control_figures = _run_experiment(replace(changed, seeds=part.experiment.seeds[:count], looks=()), cells,
                                   f"{part.name}, {CONTROL}", log)
        if _judge_control(claim, control_figures)["passes"]:
            break
    return control_figures


def _run_experiment(
    experiment: Experiment, cells: Cells, title: str, log: LogFunction
) -> tuple[dict[str, int], Measurements]:
    chosen, figures = {}, {}
    for arm in experiment.arms:
        scores = []
        for i, method in enumerate(arm.options) if len(arm.options) > 1 else ():
            tried = [_run_cell(experiment, method, seed, experiment.tuning_episodes, tuning_seed(0), cells,
                               f"{title} | {arm.name}, tuning {i}", log) for seed in experiment.tuning_seeds]
            scores.append(float(np.mean([np.mean(t[experiment.tuned_by]) for t in tried])))
        chosen[arm.name] = int(np.argmax(scores)) if scores else 0
        method = arm.options[chosen[arm.name]]
        cells_of_arm = [
            _run_cell(experiment, method, seed, experiment.episodes, experiment.starts_seed, cells,
                      f"{title} | {arm.name}", log)
            for seed in experiment.seeds
        ]
        figures[arm.name] = {name: [r[name] for r in cells_of_arm] for name in cells_of_arm[0]}
    return chosen, figures


def _control_experiment(experiment: Experiment, rule: Rule, chosen: dict[str, int]) -> Experiment:
    """The experiment of a control with the options that tuning chose, and only the arms that are judged. It is not
    tuned again.
    """
    return replace(experiment, arms=tuple(replace(a, options=(a.options[chosen[a.name]],))
                                          for a in experiment.arms if a.name in rule.arms))


def _run_cell(experiment: Experiment, method, seed: int, episodes: int, starts: int, cells: Cells, title: str,
              log: LogFunction) -> dict:
    cell_inputs = {"method": method, "source": experiment.source, "env": experiment.env,
                   "options": experiment.env_options, "measure": experiment.measure, "seed": seed,
                   "episodes": episodes, "starts": starts}
    file = cells.folder / f"{code_digest(cell_inputs, cells.sources)}.json"  # parts that share a cell run it once
    cells.used.add(file)
    if not file.exists():
        began = time.process_time()
        measures = experiment.measure(experiment, method, experiment.source.load(seed), seed, episodes, starts)
        write_json(file, {"measures": measures, "seconds": time.process_time() - began})
        means = ", ".join(f"{k} {np.mean(v):.3f}" for k, v in measures.items())
        log(f"{title} | seed {seed} | {means} | {time.process_time() - began:.0f} s")
    return read_json(file)["measures"]
