"""The records of claims: what makes one stale, and the list."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import platform
import subprocess
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path

from .. import envs
from ..core import UserError
from ..files import read_json
from .base import Claim

CLAIMS_FOLDER = Path(__file__).parent
# Modules of this folder that are not claims.
NON_CLAIM_MODULES = (
    "__init__",
    "base",
    "runner",
    "records",
    "measures",
    "curation",
    "goal_directions",
    "ledger",
    "listing_cache",
    "scheduler",
    "probe",
)


def all_claims() -> dict[str, Claim]:
    """By name, from the modules beside this one."""
    stems = sorted(p.stem for p in CLAIMS_FOLDER.glob("*.py") if p.stem not in NON_CLAIM_MODULES)
    claims = [importlib.import_module(f"{__package__}.{stem}").CLAIM for stem in stems]
    return {c.name: c for c in claims}


def find_claim(name: str) -> Claim:
    import difflib

    claims = all_claims()
    if name not in claims:
        near = difflib.get_close_matches(name, claims, 1)
        raise UserError(f"expected a claim's name, found {name!r}; there are {', '.join(claims)}", where="claims",
                        hint=f"did you mean {near[0]!r}?" if near else "see understudy claims list")
    return claims[name]


def module_of(claim: Claim) -> str:
    return claim.name.replace("-", "_")


def record_path(name: str) -> Path:
    return CLAIMS_FOLDER / "results" / f"{name}.json"


def fingerprint(claim: Claim) -> str:
    """Of the claim's module and of every definition of ours that it leads to, followed by name through modules: their
    syntax trees without documentation. So a record stays valid through commits that touch nothing it ran, and through
    comments and layout. Recipes, seeds and the making of demonstrations are in those; recorded data is named there by
    its values, with its episodes drawn by the seeds, so that what reads files is not followed. An environment is named
    by a string, and followed from where that name is at home: others may come without a record going stale."""
    found: dict[tuple[str, str], str] = {}
    read = lru_cache(None)(_ModuleSource.load)
    module = f"{__package__}.{module_of(claim)}"
    claim_module = read(module)
    assert claim_module is not None
    waiting = [(module, name) for name in claim_module.definitions] + [(f"{__package__}.runner", "run_claim")]
    while waiting:
        at = waiting.pop()
        if at in found or at[0] == ENVS_MODULE or at[0].startswith(FORMATS_MODULE) or (source := read(at[0])) is None:
            continue
        if at[1] in source.definitions:
            found[at] = hashlib.sha256("".join(map(ast.dump, source.definitions[at[1]])).encode()).hexdigest()
            for node in source.definitions[at[1]]:
                waiting += source.references(node)
        elif at[1] in source.imports:
            waiting.append(source.imports[at[1]])
    text = "\n".join(f"{m} {n} {h}" for (m, n), h in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# named, not followed
FORMATS_MODULE, ENVS_MODULE = (f"{__name__.rsplit('.', 2)[0]}.{part}" for part in ("data.formats", "envs"))


class _ModuleSource:
    """defined: name -> its statements at the top of the module. imported: name -> (module of ours, name there), with
    "" for a module itself."""

    def __init__(self, name: str, file: Path):
        self.name, self.file = name, file
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
            if isinstance(node, documented) and ast.get_docstring(node) is not None:
                node.body = node.body[1:] or [ast.Pass()]
        self.imports = self._imports(tree)
        self.definitions: dict[str, list[ast.stmt]] = {}
        for node in tree.body:
            for target in _assigned_names(node):
                self.definitions.setdefault(target, []).append(node)

    @staticmethod
    def load(name: str) -> _ModuleSource | None:
        file = _module_file(name)
        return None if file is None else _ModuleSource(name, file)

    def _imports(self, tree: ast.AST) -> dict[str, tuple[str, str]]:
        package = self.name.split(".") if self.file.name == "__init__.py" else self.name.split(".")[:-1]
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = ".".join(package[: len(package) - node.level + 1] + ([node.module] if node.module else []))
                for alias in node.names:
                    whole = f"{base}.{alias.name}"
                    names[alias.asname or alias.name] = (whole, "") if _module_file(whole) else (base, alias.name)
        return names

    def references(self, node: ast.AST) -> list[tuple[str, str]]:
        """What a definition refers to: names of this module, imported ones, and attributes of imported modules."""
        used = []
        for part in ast.walk(node):
            if isinstance(part, ast.Name):
                if part.id in self.definitions:
                    used.append((self.name, part.id))
                elif part.id in self.imports:
                    used.append(self.imports[part.id])
            elif isinstance(part, ast.Attribute) and isinstance(part.value, ast.Name):
                module, name = self.imports.get(part.value.id, ("", "?"))
                if not name:
                    used.append((module, part.attr))
            elif (
                isinstance(part, ast.Constant)
                and isinstance(part.value, str)
                and (home := envs.entry_point(part.value))
            ):
                used.append(home)
        return used


def _assigned_names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return []


def _module_file(module: str) -> Path | None:
    base = CLAIMS_FOLDER.parent.joinpath(*module.split(".")[1:])
    return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.exists()), None)


def provenance() -> dict:
    """Of the code as it is now: to be asked before anything runs."""
    packages = ("understudy", "torch", "numpy", "scipy", "gymnasium", "mujoco", "gymnasium-robotics", "metaworld")
    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {"commit": _commit(), "date": datetime.now(UTC).date().isoformat(), "versions": versions,
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
                       f"Python {platform.python_version()}"}


def _commit() -> str | None:
    """With what has been changed since said beside it; records themselves are no change."""
    def git(*args):
        return subprocess.run(
            ["git", *args], cwd=CLAIMS_FOLDER.parent, capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "--", ".", ":(exclude)claims/results")
        return git("rev-parse", "HEAD").strip() + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def list_claims() -> list[dict]:
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
