"""Runs the arms of a table with each training seed. Finished cells are kept, so that an interrupted run continues."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from understudy import config
from understudy.files import read_json, write_json, write_text

from .experiment import Experiment
from .tables import Table

ROOT = Path(__file__).parents[1]
CELLS = Path(__file__).parent / "cells"  # of runs that have not ended, ignored by git
PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "mujoco", "gymnasium-robotics", "metaworld")


def provenance() -> dict[str, Any]:
    """The commit, the date, and versions of packages. Changed or new files are marked by "+changes"."""
    def git(*command: str) -> str:
        return subprocess.run(("git", *command), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    changes = git("status", "--porcelain", "--", "src", "evidence/*.py")
    versions = {"understudy": metadata.version("understudy")}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {"commit": git("rev-parse", "--short=12", "HEAD") + ("+changes" if changes else ""),
            "date": datetime.now(UTC).date().isoformat(), "versions": {**versions, "python": platform.python_version()}}


def design(experiment: Experiment, arm: str, seed: int) -> str:
    """A digest of what a cell computes: arm, source, seed and settings."""
    return _digest({"option": experiment.arms[arm], "source": experiment.source, "env": experiment.env,
                    "env_options": experiment.env_options, "measure": experiment.measure, "seed": seed,
                    "episodes": experiment.episodes, "starts": experiment.first_seed})


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(config.dump(value), sort_keys=True).encode()).hexdigest()[:16]


def run_table(table: Table, log: Callable[[str], None] = print) -> None:
    """Runs a table and writes its figures.

    The file of the figures lists the runs before this one. Each says whether its arms, sources, seeds and settings
    were the same.
    """
    experiment = table.load_experiment()
    cells = {arm: [run_cell(table.name, experiment, arm, seed, log) for seed in experiment.seeds]
             for arm in experiment.arms}
    every = [cell for of_arm in cells.values() for cell in of_arm]
    measures = dict.fromkeys(measure for cell in every for measure in cell["figures"])
    whole = _digest([cell["design"] for cell in every])
    old = read_json(table.path) if table.path.is_file() else None
    log_entries = [] if old is None else [*old.get("earlier", []), {
        "commits": old["commits"], "date": old["date"],
        "design": "the same" if old.get("design") == whole else "another" if old.get("design") else "not recorded"}]
    write_figures(table.path, {
        "exploratory": False, "seeds": list(experiment.seeds), "commits": sorted({cell["commit"] for cell in every}),
        "date": max(cell["date"] for cell in every), "seconds": round(sum(cell["seconds"] for cell in every)),
        "versions": every[-1]["versions"], "design": whole, "earlier": log_entries,
        "figures": {measure: {arm: [cell["figures"][measure] for cell in of_arm] for arm, of_arm in cells.items()
                              if measure in of_arm[0]["figures"]} for measure in measures}})
    for file in (CELLS / table.name).glob("*.json"):
        file.unlink()


def run_cell(name: str, experiment: Experiment, arm: str, seed: int, log: Callable[[str], None]) -> dict[str, Any]:
    """The figures of one arm with one training seed. They are computed unless a run that was stopped has them."""
    digest = design(experiment, arm, seed)
    file = CELLS / name / f"{digest}.json"
    if not file.is_file():
        began, origin = time.process_time(), provenance()
        values = experiment.measure(experiment, experiment.arms[arm], experiment.source.load(seed), seed,
                                    experiment.episodes, experiment.first_seed)
        figures = {measure: float(f"{np.mean(v):.6g}") for measure, v in values.items()}
        seconds = time.process_time() - began
        write_json(file, {"design": digest, "seconds": seconds, **origin, "figures": figures})
        means = ", ".join(f"{measure} {value:.3g}" for measure, value in figures.items())
        log(f"{name} | {arm} | seed {seed} | {means} | {seconds:.0f} s")
    return read_json(file)


def write_figures(path: Path, record: dict[str, Any]) -> None:
    """Writes figures, one line per arm."""
    head = json.dumps({key: value for key, value in record.items() if key != "figures"}, indent=1)[:-2]
    measures = ",\n".join(
        f"  {json.dumps(measure)}: {{\n"
        + ",\n".join(f"   {json.dumps(arm)}: {json.dumps(values)}" for arm, values in arms.items()) + "\n  }"
        for measure, arms in record["figures"].items())
    write_text(path, f'{head},\n "figures": {{\n{measures}\n }}\n}}\n')
