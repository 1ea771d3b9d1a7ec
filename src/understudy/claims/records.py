"""The records of claims: their files, their list, and the test of whether a record is stale."""

from __future__ import annotations

import ast
import hashlib
import importlib
import os
import platform
import re
import subprocess
import traceback
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from ..core import UserError, unknown_name
from ..envs import registry
from ..files import read_json
from .base import Claim
from .text import ClaimText, read_texts

CLAIMS_FOLDER = Path(__file__).parent
# Modules of this folder that are not claims.
NON_CLAIM_MODULES = (
    "__init__",
    "base",
    "runner",
    "records",
    "measures",
    "curation",
    "few_steps",
    "goal_directions",
    "one_goal",
    "ledger",
    "listing_cache",
    "memo",
    "scheduler",
    "effects",
    "probe",
    "spot_check",
    "text",
)


def all_claims() -> dict[str, Claim]:
    """All claims by name, from the modules of this folder.

    Raises:
        UserError: A module cannot be imported, or does not define a `CLAIM` with the name of the module.
    """
    files = sorted(p for p in CLAIMS_FOLDER.glob("*.py") if p.stem not in NON_CLAIM_MODULES)
    return {c.name: c for c in map(_load_claim, files)}


def _load_claim(file: Path) -> Claim:
    try:
        module = importlib.import_module(f"{__package__}.{file.stem}")
    except Exception as error:
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__)
                 if Path(frame.f_code.co_filename) == file]
        if isinstance(error, SyntaxError) and error.filename == str(file) and error.lineno:
            lines = [error.lineno]
        raise UserError(f"the module cannot be imported: {type(error).__name__}: {error}",
                        where=str(file) + (f", line {lines[-1]}" if lines else ""),
                        hint="correct the module, or remove it") from error
    if not hasattr(module, "CLAIM"):
        raise UserError("the module does not define CLAIM", where=file,
                        hint="define CLAIM = Claim(...). If the module is not a claim, add its name to "
                             "NON_CLAIM_MODULES in claims/records.py")
    claim = module.CLAIM
    if not isinstance(claim, Claim):
        raise UserError(f"CLAIM is of type {type(claim).__name__}, not Claim", where=file,
                        hint="define CLAIM = Claim(...)")
    if module_of(claim) != file.stem:
        raise UserError(f"the name of the claim is {claim.name!r}, which does not match the file", where=file,
                        hint=f"use name={file.stem.replace('_', '-')!r}, or rename the file to {module_of(claim)}.py")
    return claim


def find_claim(name: str) -> Claim:
    """The claim of this name.

    Raises:
        UserError: There is no such claim. The message has the nearest names.
    """
    claims = all_claims()
    if name not in claims:
        raise unknown_name("claim", name, claims, "claims", hint="understudy claims list shows all")
    return claims[name]


def all_texts() -> dict[str, ClaimText]:
    """The texts of all claims by name."""
    return {name: text for file in sorted(CLAIMS_FOLDER.glob("*.md")) for name, text in read_texts(file).items()}


def find_text(name: str) -> ClaimText:
    """The text of the claim `name`."""
    return read_texts(CLAIMS_FOLDER / f"{name.replace('-', '_')}.md")[name]


def module_of(claim: Claim) -> str:
    """Name of the claim's module in this folder."""
    return claim.name.replace("-", "_")


def record_path(name: str) -> Path:
    """Path of the record of the claim `name`: verdicts, intervals and history."""
    return CLAIMS_FOLDER / "results" / f"{name}.json"


def figures_path(name: str) -> Path:
    """Path of the measurements of the claim `name`. They are in the repository and not in the wheel."""
    return CLAIMS_FOLDER / "figures" / f"{name}.json"


def probe_path(name: str) -> Path:
    """Path of the stored probe of the claim `name`."""
    return CLAIMS_FOLDER / "probes" / f"{name}.json"


def fingerprint(claim: Claim, sources: dict[str, _ModuleSource | None] | None = None) -> str:
    """A digest of the source code that a claim reaches.

    It covers the claim's module and every definition of understudy that it leads to, followed by name through modules.
    Syntax trees without docstrings are compared, so comments and layout do not matter. Code that reads files is not
    followed, because a claim names recorded data by a digest of its values. An environment is followed from its name.

    Args:
        claim: The claim.
        sources: Parsed modules by name, filled and reused when several claims are asked for.
    """
    found: dict[tuple[str, str], str] = {}
    sources = {} if sources is None else sources
    module = f"{__package__}.{module_of(claim)}"
    claim_module = sources.setdefault(module, _ModuleSource.load(module))
    assert claim_module is not None
    waiting = [(module, name) for name in claim_module.definitions] + [(f"{__package__}.runner", "run_claim")]
    while waiting:
        at = waiting.pop()
        if at in found or at[0].startswith(NOT_FOLLOWED):
            continue
        if at[0] not in sources:
            sources[at[0]] = _ModuleSource.load(at[0])
        if (source := sources[at[0]]) is None:
            continue
        if at[1] in source.definitions:
            found[at], references = source.digest(at[1])
            waiting += references
        elif at[1] in source.imports:
            waiting.append(source.imports[at[1]])
    text = "\n".join(f"{m} {n} {h}" for (m, n), h in sorted(found.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# They hold names of environments and formats, and old names of everything.
NOT_FOLLOWED = tuple(f"{__name__.rsplit('.', 2)[0]}.{part}" for part in ("data.formats", "envs.registry", "moved"))


class _ModuleSource:
    """A parsed module.

    Attributes:
        definitions: Name -> its statements at the top of the module.
        imports: Name -> (module of understudy, name there), with "" for a module itself.
    """

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
        self._digests: dict[str, tuple[str, list[tuple[str, str]]]] = {}

    def digest(self, name: str) -> tuple[str, list[tuple[str, str]]]:
        """The digest of a definition, and the names that it refers to."""
        if name not in self._digests:
            nodes = self.definitions[name]
            text = "".join(map(ast.dump, nodes))
            self._digests[name] = (hashlib.sha256(text.encode()).hexdigest(),
                                   [other for node in nodes for other in self.references(node)])
        return self._digests[name]

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
        """The names that a definition refers to: of this module, of imports, and attributes of imported modules."""
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
                and (home := registry.entry_point(part.value))
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
    """Commit, date, package versions and machine. Call this before a run, because the code may change during the run.
    """
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
    """The commit, with a note if code has changed since. Changes of records, figures and probes do not count."""
    def git(*args):
        return subprocess.run(
            ["git", *args], cwd=CLAIMS_FOLDER.parent, capture_output=True, text=True, check=True
        ).stdout

    try:
        changed = git("status", "--porcelain", "--", ".", ":(exclude)claims/results", ":(exclude)claims/figures",
                      ":(exclude)claims/probes")
        return git("rev-parse", "HEAD").strip() + (" with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def list_claims() -> list[dict]:
    """One entry per claim.

    Each has "name", "rows", "statement", "advice", "verdict" ("not run" without a record), "reason", "stale", "date",
    "seconds" and "command". A record is stale if the source code differs from that of its run and from that of its last
    confirmation by a probe.
    """
    entries, sources, texts = [], {}, all_texts()
    for claim in all_claims().values():
        text = texts[claim.name]
        entry = {"name": claim.name, "rows": list(claim.rows), "statement": text.statement, "advice": text.advice,
                 "verdict": "not run", "reason": "", "stale": False, "date": None, "seconds": None,
                 "command": f"understudy claims run {claim.name}"}
        if record_path(claim.name).exists():
            record = read_json(record_path(claim.name))
            known = {record["fingerprint"], confirmation(claim.name).get("fingerprint")}
            entry |= {"verdict": record["verdict"], "reason": record["reason"],
                      "stale": fingerprint(claim, sources) not in known, "date": record["date"],
                      "seconds": record["seconds"]}
        entries.append(entry)
    return entries


def is_redesigned(revision: str, record: dict) -> bool:
    """Whether the design of a claim has changed since its record. The run of the new design is then due."""
    return bool(revision) and revision not in {entry["change"] for entry in record.get("log", [])}


def confirmation(name: str) -> dict:
    """When a probe last confirmed the record of this claim: "commit", "date", "fingerprint". Empty if none has."""
    return read_json(probe_path(name)).get("confirmed", {}) if probe_path(name).exists() else {}


# -- what a claim needs ---------------------------------------------------------------------------------------------


def missing_requirements(claim: Claim) -> list[str]:
    """The requirements of a claim that this machine does not meet, as the claim names them."""
    return [need for need in claim.needs if not _is_available(need)]


def _is_available(need: str) -> bool:
    if m := re.fullmatch(r"the (\w+) extra", need):
        return all(_is_installed(name) for name in _extra_packages(m[1]))
    if m := re.search(r"\(([A-Z_]+)\)", need):  # a variable that names a folder
        return os.path.isdir(os.environ.get(m[1], ""))
    return True  # its run will say


def _extra_packages(name: str) -> list[str]:
    """The packages of one of understudy's extras."""
    wanted = [r for r in metadata.requires("understudy") or () if re.search(rf"extra == ['\"]{name}['\"]", r)]
    return [found[0] for r in wanted if (found := re.match(r"[\w.-]+", r))]


def _is_installed(package: str) -> bool:
    try:
        return bool(metadata.version(package))
    except metadata.PackageNotFoundError:
        return False
