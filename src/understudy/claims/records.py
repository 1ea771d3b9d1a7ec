"""The records of claims: what makes one stale, the list, and the page."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from ..core import UserError
from ..files import read_json, write_text
from .base import Claim

HERE = Path(__file__).parent
PARTS = ("__init__", "base", "run", "records", "measures")  # modules of this folder that are not claims


def all_claims() -> dict[str, Claim]:
    """By name, from the modules beside this one."""
    stems = sorted(p.stem for p in HERE.glob("*.py") if p.stem not in PARTS)
    claims = [importlib.import_module(f"{__package__}.{stem}").CLAIM for stem in stems]
    return {c.name: c for c in claims}


def find(name: str) -> Claim:
    import difflib

    claims = all_claims()
    if name not in claims:
        near = difflib.get_close_matches(name, claims, 1)
        raise UserError(f"expected a claim's name, found {name!r}; there are {', '.join(claims)}",
                        do=f"did you mean {near[0]!r}?" if near else "see understudy claims list")
    return claims[name]


def module_of(claim: Claim) -> str:
    return claim.name.replace("-", "_")


def record_path(name: str) -> Path:
    return HERE / "results" / f"{name}.json"


def fingerprint(claim: Claim) -> str:
    """Of the claim's module and of every module of ours that it imports, directly or not: their syntax trees without
    documentation, so that unrelated commits, comments and layout leave a record valid. Recipes, seeds and the making
    of demonstrations are in those; recorded data is named there, with its episodes drawn by the seeds."""
    found: dict[str, str] = {}
    waiting = [f"{__package__}.{module_of(claim)}", f"{__package__}.run"]
    while waiting:
        name = waiting.pop()
        if name in found or (file := _file(name)) is None:
            continue
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        found[name] = hashlib.sha256(ast.dump(tree).encode()).hexdigest()
        waiting += _imports(tree, name, file)
    text = "\n".join(f"{k} {v}" for k, v in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _file(module: str) -> Path | None:
    base = HERE.parent.joinpath(*module.split(".")[1:])
    return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.exists()), None)


def _imports(tree: ast.Module, name: str, file: Path) -> list[str]:
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            names += [".".join(base), *(".".join([*base, a.name]) for a in node.names)]
    return names


def provenance() -> dict:
    def commit():
        try:
            return subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True,
                                  check=True).stdout.strip()
        except (OSError, subprocess.CalledProcessError):
            return None
    packages = ("understudy", "torch", "numpy", "scipy", "gymnasium", "mujoco", "gymnasium-robotics", "metaworld")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"commit": commit(), "date": datetime.now(UTC).date().isoformat(), "versions": versions,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
                       f"Python {platform.python_version()}"}


def listing() -> list[dict]:
    """One entry a claim, with the verdict of its record and whether the code has changed since."""
    entries = []
    for claim in all_claims().values():
        entry = {"name": claim.name, "rows": list(claim.rows), "statement": claim.statement, "verdict": "not run",
                 "stale": False, "date": None, "seconds": None, "command": f"understudy claims run {claim.name}"}
        if record_path(claim.name).exists():
            record = read_json(record_path(claim.name))
            entry |= {"verdict": record["verdict"], "stale": record["fingerprint"] != fingerprint(claim),
                      "date": record["date"], "seconds": record["seconds"]}
        entries.append(entry)
    return entries


def table(path: Path | str = "docs/ledger.md") -> Path:
    """Renders the page of all claims."""
    write_text(path, page())
    return Path(path)


def page() -> str:
    lines = ["# The ledger of claims", "",
             "Each row of the ledger of published systems becomes a small experiment that can fail. Its rule stands "
             "before its first run; the seeds that judge are not the seeds that tune; a sabotaged twin must flip the "
             "verdict. *Here* means: on the task and scale named, which need not be the paper's.", "",
             "| row | claim | paper | verdict | date | CPU seconds |", "|---|---|---|---|---|---|"]
    claims, entries = all_claims(), listing()
    for e in entries:
        verdict = e["verdict"] if e["verdict"] == "not run" else f"**{e['verdict']}** here"
        stale = " (stale: the code has changed since)" if e["stale"] else ""
        lines.append(f"| {', '.join(e['rows'])} | [{e['name']}](#{e['name']}) | {claims[e['name']].paper} | "
                     f"{verdict}{stale} | {e['date'] or ''} | {e['seconds'] or ''} |")
    for e in entries:
        lines += ["", *_section(claims[e["name"]], e)]
    return "\n".join(lines) + "\n"


def _section(claim: Claim, entry: dict) -> list[str]:
    lines = [f"## {claim.name}", "", f"Row {', '.join(claim.rows)}. {claim.paper}", "",
             f"> {claim.statement}", "", f"Tested here: {claim.here}", "", f"Command: `{entry['command']}`", ""]
    if entry["verdict"] == "not run":
        needs = f" It needs {', '.join(claim.needs)}." if claim.needs else ""
        return [*lines, f"Not run yet.{needs}"]
    record = read_json(record_path(claim.name))
    lines += [f"**{record['verdict'].capitalize()} here.**", ""]
    for name, part in record["parts"].items():
        aside = "" if part["decides"] else " (reported beside the verdict)"
        lines += [f"*{name}*{aside}: {part['verdict']}. {part['finding']}.", "",
                  "| arm | measure | mean | 95 % interval (training seeds, then episodes) |", "|---|---|---|---|"]
        for arm, measures in part["summary"].items():
            lines += [f"| {arm} | {m} | {_n(v['estimate'])} | {_n(v['low'])} to {_n(v['high'])} |"
                      for m, v in measures.items()]
        lines.append("")
    twin = record["twin"]
    lines += [f"Sabotaged twin ({twin['change']}): {twin['verdict']}. {twin['finding']}.", "",
              f"{record['machine']}; {record['seconds']:.0f} CPU seconds; {record['date']}."]
    return lines


def _n(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"
