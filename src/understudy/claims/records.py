"""The records of claims: their files, their list, and the test of whether a record is stale."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import os
import platform
import re
import subprocess
import traceback
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

from .. import config
from ..core import UserError, unknown_name
from ..envs import registry
from ..files import read_json
from .base import Claim
from .folder import NAME, PACKAGE, claims_folder, open_claims
from .text import ClaimText, read_texts

PACKAGES = ("torch", "numpy", "scipy", "gymnasium", "mujoco", "gymnasium-robotics", "metaworld")  # recorded with claims


def experiment_files() -> list[Path]:
    """The Markdown files of all experiments. The module of an experiment has the same name."""
    return sorted(claims_folder().glob("*/*.md"))


def texts_of(file: Path) -> dict[str, ClaimText]:
    """The texts of an experiment by the names of its claims."""
    return _read_texts(file, file.stat().st_mtime_ns)


@lru_cache(None)
def _read_texts(file: Path, changed: int) -> dict[str, ClaimText]:
    return read_texts(file)


def all_texts() -> dict[str, ClaimText]:
    """The texts of all claims by name."""
    return dict(sorted((name, text) for file in experiment_files() for name, text in texts_of(file).items()))


_FOUND: dict[tuple[Path, str], Path] = {}


def find_file(name: str) -> Path:
    """The Markdown file of the experiment of a claim."""
    folder = claims_folder()
    file = _FOUND.get((folder, name))
    if file is None or not file.exists() or name not in texts_of(file):  # to list all files takes 10 ms
        file = next((file for file in experiment_files() if name in texts_of(file)), None)
        if file is None:
            raise unknown_name("claim", name, all_texts(), "claims", hint="understudy claims list shows all")
        _FOUND[folder, name] = file
    return file


def find_text(name: str) -> ClaimText:
    """The text of the claim `name`."""
    return texts_of(find_file(name))[name]


def all_claims() -> dict[str, Claim]:
    """All claims by name."""
    loaded = {name: claim for file in experiment_files() for name, claim in _load_experiment(file).items()}
    return dict(sorted(loaded.items()))


def find_claim(name: str) -> Claim:
    """The claim of this name.

    Raises:
        UserError: There is no such claim. The message has the nearest names.
    """
    return _load_experiment(find_file(name))[name]


def _load_experiment(text: Path) -> dict[str, Claim]:
    """The claims of the module beside a Markdown file."""
    open_claims()
    file = text.with_suffix(".py")
    try:
        module = importlib.import_module(".".join((NAME, *file.relative_to(claims_folder()).with_suffix("").parts)))
    except Exception as error:
        lines = [line for frame, line in traceback.walk_tb(error.__traceback__)
                 if Path(frame.f_code.co_filename) == file]
        if isinstance(error, SyntaxError) and error.filename == str(file) and error.lineno:
            lines = [error.lineno]
        raise UserError(f"the module cannot be imported: {type(error).__name__}: {error}",
                        where=str(file) + (f", line {lines[-1]}" if lines else ""),
                        hint="correct the module, or remove it") from error
    claims = getattr(module, "CLAIMS", None) or getattr(module, "CLAIM", None)
    if claims is None:
        raise UserError("the module does not define CLAIM", where=file,
                        hint="define CLAIM = Claim(...) or CLAIMS = family(...), or remove the Markdown file if the "
                             "module is not an experiment")
    claims = claims if isinstance(claims, tuple) else (claims,)
    if other := [c for c in claims if not isinstance(c, Claim)]:
        raise UserError(f"CLAIM is of type {type(other[0]).__name__}, not Claim", where=file,
                        hint="define CLAIM = Claim(...)")
    if (names := sorted(c.name for c in claims)) != sorted(texts_of(text)):
        raise UserError(f"the names of the claims are {', '.join(map(repr, names))}, and the head of their text has "
                        f"{', '.join(texts_of(text))}", where=file, hint=f"use the same names in {text.name}")
    return {c.name: c for c in claims}


def record_path(name: str) -> Path:
    """Path of the record of the claim `name`: verdicts, intervals and history."""
    return find_file(name).parent / "records" / f"{name}.json"


def figures_path(name: str) -> Path:
    """Path of the measurements of the claim `name`."""
    return find_file(name).parent / "records" / f"{name}.figures.json"


def pilots_path(name: str) -> Path:
    """Path of the notes on pilots of the claim `name`, which its next run adds to its record."""
    return find_file(name).parent / "records" / f"{name}.pilots.json"


def probe_path(name: str) -> Path:
    """Path of the stored probe of the claim `name`."""
    return find_file(name).parent / "records" / f"{name}.probe.json"


def fingerprint(claim: Claim, sources: dict[str, _ModuleSource | None] | None = None) -> str:
    """A digest of what a claim computes: its experiments and rules as data, and the source code that they reach.

    See `code_digest`. Another claim of the same module, and the text of the claim, do not matter.

    Args:
        sources: Parsed modules by name, filled and reused when several claims are asked for.
    """
    control = claim.negative_control
    changed = control.change(claim.controlled_part.experiment)
    return code_digest([*claim.parts, changed, *control.removes], {} if sources is None else sources)


def code_digest(value: Any, sources: dict[str, _ModuleSource | None]) -> str:
    """A digest of frozen dataclasses and functions: their JSON, and every definition of understudy and of the claims
    that they lead to, followed by name through modules.

    Syntax trees without docstrings are compared, so comments and layout do not matter, nor do the modules in which
    definitions are. Code that reads files is not followed, because a claim names recorded data by a digest of its
    values. An environment is followed from its name.
    """
    document = config.dump(value)
    digests: dict[tuple[str, str], str] = {}
    waiting = [*_named_code(document), (f"{__package__}.runner", "run_claim")]
    while waiting:
        at = waiting.pop()
        if at in digests or at[0].startswith(NOT_FOLLOWED):
            continue
        if at[0] not in sources:
            sources[at[0]] = _ModuleSource.load(at[0])
        if (source := sources[at[0]]) is None:
            continue
        if at[1] in source.definitions:
            digests[at], references = source.digest(at[1])
            waiting += references
        elif at[1] in source.imports:
            waiting.append(source.imports[at[1]])
    lines = sorted(f"{name} {digest}" for (_, name), digest in digests.items())
    return hashlib.sha256("\n".join([json.dumps(_without_modules(document)), *lines]).encode()).hexdigest()[:16]


def _named_code(document: Any) -> Iterator[tuple[str, str]]:
    """Module and name of each class, function and environment that JSON data name."""
    if isinstance(document, dict):
        if "$" in document:
            module, _, name = document["$"].partition(":")
            yield module, name.partition(".")[0]
        for part in document.values():
            yield from _named_code(part)
    elif isinstance(document, list):
        for part in document:
            yield from _named_code(part)
    elif isinstance(document, str):
        if (home := registry.entry_point(document)) is not None:
            yield home
        elif re.fullmatch(rf"({PACKAGE.name}|{NAME})[.\w]*:\w+", document):  # a factory of an environment
            module, _, name = document.partition(":")
            yield module, name


def _without_modules(document: Any) -> Any:
    if isinstance(document, dict):
        return {k: v.partition(":")[2] if k == "$" else _without_modules(v) for k, v in document.items()}
    return list(map(_without_modules, document)) if isinstance(document, list) else document


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
            nodes, self.definitions[name] = self.definitions[name], []  # trees are large, and are read once
            text = "".join(map(ast.dump, nodes))
            self._digests[name] = (hashlib.sha256(text.encode()).hexdigest(),
                                   [other for node in nodes for other in self.references(node)])
        return self._digests[name]

    @staticmethod
    def load(name: str) -> _ModuleSource | None:
        file = _module_file(name)
        return None if file is None else _parse_module(name, file, file.stat().st_mtime_ns)

    def _imports(self, tree: ast.AST) -> dict[str, tuple[str, str]]:
        package = self.name.split(".") if self.file.name == "__init__.py" else self.name.split(".")[:-1]
        names = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                base = ".".join((package[: len(package) - node.level + 1] if node.level else [])
                                + ([node.module] if node.module else []))
                if base.partition(".")[0] not in (PACKAGE.name, NAME):
                    continue
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


@lru_cache(None)
def _parse_module(name: str, file: Path, changed: int) -> _ModuleSource:
    return _ModuleSource(name, file)


def _assigned_names(node: ast.stmt) -> list[str]:
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        return [node.name]
    if isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        return [n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)]
    return []


def _module_file(module: str) -> Path | None:
    package, *parts = module.split(".")
    if package not in (PACKAGE.name, NAME):
        return None
    base = (claims_folder() if package == NAME else PACKAGE).joinpath(*parts)
    return next((f for f in (base.with_suffix(".py"), base / "__init__.py") if f.exists()), None)


def provenance() -> dict:
    """Commit, date, package versions and machine. Call this before a run, because the code may change during the run.
    """
    return {"commit": _commit(), "date": datetime.now(UTC).date().isoformat(),
            "versions": installed_versions("understudy", *PACKAGES),
            "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, "
                       f"Python {platform.python_version()}"}


def installed_versions(*packages: str) -> dict[str, str]:
    """The versions of those packages that are installed."""
    versions = {}
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return versions


def _commit() -> str | None:
    """The commit, with a note if code has changed since. Changes of records, figures, probes and texts do not count."""
    root = claims_folder().parent

    def git(*args):
        return subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, check=True).stdout

    try:
        changed = git("status", "--porcelain", "--", NAME, *([PACKAGE] if PACKAGE.is_relative_to(root) else []),
                      f":(exclude,glob){NAME}/**/*.json", f":(exclude,glob){NAME}/**/*.md")
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
            confirmed_fingerprints = {record["fingerprint"], confirmation(claim.name).get("fingerprint")}
            entry |= {"verdict": record["verdict"], "reason": record["reason"],
                      "stale": fingerprint(claim, sources) not in confirmed_fingerprints, "date": record["date"],
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
        return all(map(installed_versions, _extra_packages(m[1])))
    if m := re.search(r"\(([A-Z_]+)\)", need):  # a variable that names a folder
        return os.path.isdir(os.environ.get(m[1], ""))
    return True  # its run will say


def _extra_packages(name: str) -> list[str]:
    """The packages of one of understudy's extras."""
    requirements = [r for r in metadata.requires("understudy") or () if re.search(rf"extra == ['\"]{name}['\"]", r)]
    return [name_match[0] for r in requirements if (name_match := re.match(r"[\w.-]+", r))]
