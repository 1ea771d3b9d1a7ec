"""MkDocs hook: API pages made when the site is built. A group has a list of its names and a page for each module."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from mkdocs.structure.files import File

SOURCE = Path(__file__).parents[1] / "src" / "understudy"

# Folder of the group -> title, and its packages or modules. Modules of a package are added by themselves.
PAGES = {
    "core": ("Core", ("core", "config", "checkpoint", "plugins", "files")),
    "data": ("Data", ("data", "data.opening", "data.recording")),
    # The readers and writers of formats are called through open_dataset and write_dataset.
    "formats": ("Formats", ("data.formats.registry",)),
    "policy": ("Policy", ("policy",)),
    "heads": ("Heads", ("heads", "heads.likelihood", "heads.tokens", "heads.denoising", "heads.one_step",
                        "heads.energy", "heads.memory")),
    "nets": ("Networks", ("nets", "nets.pretrained")),
    "execute": ("Execution", ("execute",)),
    "learn": ("Learning", ("learn", "learn.rewards", "learn.critics", "learn.objectives", "learn.cloning")),
    "methods": ("Methods", ("methods", "methods.behavior_cloning", "methods.chunking", "methods.generative",
                            "methods.goal_conditioned", "methods.interaction", "methods.observation_only",
                            "methods.offline_rl", "methods.online_rl", "methods.reasoning", "methods.representation",
                            "methods.retrieval", "methods.return_conditioned", "methods.reward_matching",
                            "methods.skills")),
    "envs": ("Environments", ("envs", "envs.toys", "envs.simulators")),
    "robots": ("Robots", ("robots",)),
    "evaluate": ("Evaluation", ("evaluate", "evaluate.behavior", "choose")),
    "audit": ("Audit and scores", ("audit", "audit.scores", "diagnose")),
    "improve": ("Improvement", ("improve",)),
    "deploy": ("Deployment", ("deploy", "studio.html_page")),
    "serve": ("Serving", ("serve",)),
    "testing": ("Contract tests", ("testing",)),
}


def on_files(files, config):
    for group, (title, _) in PAGES.items():
        files.append(File.generated(config, f"api/{group}/index.md", content=group_page(group, title)))
        for module in group_modules(group):
            files.append(File.generated(config, _page(group, module), content=module_page(title, module)))
    return files


def group_modules(group: str) -> list[str]:
    return [m for name in PAGES[group][1] for m in modules(name)]


def on_page_markdown(markdown, page, config, files):
    """Lists the groups on the first page of the reference."""
    return markdown.replace("<!-- groups -->", group_list()) if page.file.src_uri == "api/index.md" else markdown


def group_list() -> str:
    """One line a group, with the first sentence of its first package or module."""
    return "\n".join(["Each group has a page with all its names:", "", "| group | what it is |", "|---|---|", *(
        f"| [{title}]({group}/index.md) | {summary(ast.parse(source_file(names[0]).read_text('utf-8')))} |"
        for group, (title, names) in PAGES.items())])


def module_page(group_title: str, module: str) -> str:
    """Guides stand before it in the search. The menu has no entry for it, so its first line leads back."""
    return "\n".join(["---", "search: {boost: 0.3}", "---", f"# understudy.{module}", "",
                      f"[API](../index.md) › [{group_title}](index.md)", "", f"::: understudy.{module}", ""])


def group_page(group: str, title: str) -> str:
    """Modules with their public names, one line each. Anchors are those that the names had on this page before."""
    lines = ["---", "search: {exclude: true}", "---", f"# {title}", "", "[API](../index.md)", ""]
    for module in group_modules(group):
        page = _page(group, module).removeprefix(f"api/{group}/")
        tree = ast.parse(source_file(module).read_text("utf-8"))
        lines += [f"## [{module}]({page})", "", summary(tree), ""]
        if members := {f"understudy.{module}.{node.name}": node for node in public_members(tree)}:
            lines += ["| name | what it is or does |", "|---|---|", *(
                f'| <a id="{path}"></a>[`{node.name}`]({page}#{path}) | {summary(node)} |'
                for path, node in members.items()), ""]
    return "\n".join(lines)


def modules(name: str) -> list[str]:
    """The module itself if it has public members, and, for a package, its modules that have."""
    path = SOURCE.joinpath(*name.split("."))
    if not path.is_dir():
        return [name]
    package = [name] if has_public_members(path / "__init__.py") else []
    found = (f"{name}.{file.stem}" for file in sorted(path.glob("*.py"))
             if not file.stem.startswith("_") and has_public_members(file))
    return [*package, *found]


def source_file(module: str) -> Path:
    path = SOURCE.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def has_public_members(file: Path) -> bool:
    return any(public_members(ast.parse(file.read_text("utf-8"))))


def public_members(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """Those with a docstring. The pages of modules show no others."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_") and (
                ast.get_docstring(node)):
            yield node


def summary(node: ast.Module | ast.FunctionDef | ast.ClassDef) -> str:
    """First paragraph of the docstring, as a cell of a table."""
    text = " ".join((ast.get_docstring(node) or "").partition("\n\n")[0].split())
    return text.replace("|", r"\|")


def _page(group: str, module: str) -> str:
    return f"api/{group}/{module.removeprefix(f'{group}.')}.md"
