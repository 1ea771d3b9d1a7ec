"""Runs a claim, cell by cell. What was done is kept, so that an interrupted run goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from .. import config
from ..data.cache import folder as cache
from ..evaluate.evaluation import tuning_seed
from ..evaluate.stats import seeds_caveat
from ..files import read_json, write_json
from .base import Claim, Experiment, Measurements, Rule, summarize
from .records import fingerprint, provenance, record_path

LogFunction = Callable[[str], None]
STARTS_SEED = 100  # the seed of the starts on which all are judged


def run_claim(claim: Claim, *, log: LogFunction = lambda text: None) -> dict:
    """The record, also written to results/NAME.json. Cells are kept under the cache by the claim's fingerprint."""
    mark, origin = fingerprint(claim), provenance()  # while it runs, the code may change
    cells = cache() / "claims" / f"{claim.name}-{mark}"
    parts, twin = {}, None
    for part in claim.parts:
        chosen, figures = _run_experiment(part.experiment, cells, part.name, log)
        kinds = dict(part.experiment.kinds)
        found = part.rule.judge(figures, kinds)
        log(f"{part.name}: {found.verdict} here ({found.text}). {seeds_caveat(len(part.experiment.seeds))}")
        parts[part.name] = {
            "verdict": found.verdict,
            "decides": part.is_decisive,
            "finding": found.text,
            "low": found.low,
            "high": found.high,
            "chosen": chosen,
            "summary": summarize(figures, kinds),
            "figures": figures,
        }
        if claim.negative_control.part == part.name:
            changed = _control_experiment(claim.negative_control.change(part.experiment), part.rule, chosen)
            _, spoiled = _run_experiment(changed, cells, f"{part.name}, negative control", log)
            found = part.rule.judge(spoiled, kinds)
            twin = {"part": part.name, "change": claim.negative_control.description, "verdict": found.verdict,
                    "finding": found.text, "flips": found.verdict != parts[part.name]["verdict"],
                    "summary": summarize(spoiled, kinds), "figures": spoiled}
            log(f"negative control: {found.verdict} ({found.text})")
    assert twin is not None  # the control changes one of the parts
    record = {
        "name": claim.name,
        "rows": list(claim.rows),
        "paper": claim.paper,
        "statement": claim.statement,
        "here": claim.setup,
        "verdict": _verdict(parts, twin),
        "parts": parts,
        "negative_control": twin,
        "fingerprint": mark,
        "seconds": round(sum(read_json(f)["seconds"] for f in cells.glob("*.json")), 1),
        **origin,
    }
    write_json(record_path(claim.name), record)
    return record


def _verdict(parts: dict, negative_control: dict) -> str:
    """Of the parts that decide; an experiment that its sabotage does not shake shows nothing either way."""
    found = {p["verdict"] for p in parts.values() if p["decides"]}
    verdict = "fails" if "fails" in found else "undecided" if "undecided" in found else "holds"
    return "undecided" if verdict == "holds" and not negative_control["flips"] else verdict


def _run_experiment(
    experiment: Experiment, folder: Path, title: str, log: LogFunction
) -> tuple[dict[str, int], Measurements]:
    chosen, figures = {}, {}
    for arm in experiment.arms:
        scores = []
        for i, method in enumerate(arm.options) if len(arm.options) > 1 else ():
            tried = [_run_cell(experiment, method, seed, experiment.tuning_episodes, tuning_seed(0), folder,
                           f"{title} | {arm.name}, tuning {i}", log) for seed in experiment.tuning_seeds]
            scores.append(float(np.mean([np.mean(t[experiment.tuned_by]) for t in tried])))
        chosen[arm.name] = int(np.argmax(scores)) if scores else 0
        method = arm.options[chosen[arm.name]]
        ran = [
            _run_cell(experiment, method, seed, experiment.episodes, STARTS_SEED, folder, f"{title} | {arm.name}", log)
            for seed in experiment.seeds
        ]
        figures[arm.name] = {name: [r[name] for r in ran] for name in ran[0]}
    return chosen, figures


def _control_experiment(experiment: Experiment, rule: Rule, chosen: dict[str, int]) -> Experiment:
    """The twin is not tuned again: it runs what the tuning of the real experiment chose, and only what is judged."""
    return replace(experiment, arms=tuple(replace(a, options=(a.options[chosen[a.name]],))
                                          for a in experiment.arms if a.name in rule.arms))


def _run_cell(experiment: Experiment, method, seed: int, episodes: int, starts: int, folder: Path, title: str,
          log: LogFunction) -> dict:
    what = {"method": method, "source": experiment.source, "env": experiment.env, "options": experiment.env_options,
            "measure": experiment.measure, "seed": seed, "episodes": episodes, "starts": starts}
    key = json.dumps(config.dump(what))  # parts that share a cell run it once
    file = folder / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    if not file.exists():
        began = time.process_time()
        measures = experiment.measure(experiment, method, experiment.source.load(seed), seed, episodes, starts)
        write_json(file, {"measures": measures, "seconds": time.process_time() - began})
        shown = ", ".join(f"{k} {np.mean(v):.3f}" for k, v in measures.items())
        log(f"{title} | seed {seed} | {shown} | {time.process_time() - began:.0f} s")
    return read_json(file)["measures"]
