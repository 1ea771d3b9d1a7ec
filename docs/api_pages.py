"""MkDocs hook: one API page per package, made when the site is built, so that every new module is in the reference."""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.structure.files import File

SOURCE = Path(__file__).parents[1] / "src" / "understudy"

# Page -> title, and the packages or modules on it. Modules of a package are added by themselves.
PAGES = {
    "core": ("Core", ("core", "config", "checkpoint", "plugins", "files")),
    "data": ("Data", ("data",)),
    "formats": ("Formats", ("data.formats",)),
    "policy": ("Policy", ("policy",)),
    "heads": ("Heads", ("heads",)),
    "nets": ("Networks", ("nets",)),
    "execute": ("Execution", ("execute",)),
    "learn": ("Learning", ("learn",)),
    "methods": ("Methods", ("methods",)),
    "envs": ("Environments", ("envs", "envs.toys", "envs.simulators")),
    "robots": ("Robots", ("robots",)),
    "evaluate": ("Evaluation", ("evaluate", "evaluate.behavior", "choose")),
    "audit": ("Audit and scores", ("audit", "audit.scores")),
    "improve": ("Improvement", ("improve",)),
    "deploy": ("Deployment", ("deploy", "studio.html_page")),
    "serve": ("Serving", ("serve",)),
    "testing": ("Contract tests", ("testing",)),
    "claims": ("Claims", ("claims.base", "claims.measures")),
}
WITHOUT_MODULES = {"data.formats"}  # its readers and writers are called through open_dataset and write_dataset
INTERNAL = {f"methods.{name}" for name in (  # see methods.md
    "chunking", "generative", "retrieval", "behavior_cloning", "representation", "skills")}


def on_files(files, config):
    for page, (title, names) in PAGES.items():
        text = f"# {title}\n\n" + "\n".join(f"::: understudy.{m}\n" for name in names for m in modules(name))
        files.append(File.generated(config, f"api/{page}.md", content=text))
    return files


def modules(name: str) -> list[str]:
    """The module itself and, for a package, its modules with public members."""
    path = SOURCE.joinpath(*name.split("."))
    if not path.is_dir():
        return [name]
    if name in WITHOUT_MODULES:
        return [name]
    found = (f"{name}.{file.stem}" for file in sorted(path.glob("*.py")) if has_public_members(file))
    return [name, *(m for m in found if m not in INTERNAL)]


def has_public_members(file: Path) -> bool:
    if file.stem.startswith("_"):
        return False
    definitions = (node for node in ast.parse(file.read_text("utf-8")).body
                   if isinstance(node, ast.FunctionDef | ast.ClassDef))
    return any(not node.name.startswith("_") for node in definitions)
