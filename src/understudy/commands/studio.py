"""The command understudy studio."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..core import UserError
from ..files import file_name
from .parts.common import parse
from .parts.groups import command_options


@command_options
class StudioOptions:
    """Open a page in the browser on which you show a task, check, train, watch, take over and compare.

    Everything stays in one folder: recordings in demonstrations, selections in views, and policies in runs. The page
    runs the other commands and can show them. Open the folder again, and the page shows the same.
    """

    env: Annotated[str, Positional, arg(metavar="ENV|FOLDER")] = "push"
    """a toy that can be moved with arrow keys, such as push or fork, or the folder of a project to open again"""
    out: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """folder of the project; it is made, or opened again (default: studio-ENV)"""
    port: Annotated[int | None, arg(metavar="N")] = None
    """port of the server on this machine; by default 8765, or a free one"""
    no_browser: bool = False
    """print the address and open no browser"""


def main(args: list[str]) -> None:
    o = parse(StudioOptions, "studio", args)
    try:
        import nicegui  # noqa: F401
    except ImportError:
        raise UserError("the studio needs the package nicegui", where="understudy studio",
                        hint="install it: pip install 'understudy[studio]'") from None
    from ..studio.browser.live import playable_env
    from ..studio.browser.project import PROJECT, Project
    from ..studio.browser.server import free_port, serve_studio

    if o.out is None and Path(o.env, PROJECT).exists():
        project = Project(Path(o.env))
    else:
        playable_env(o.env)  # before a folder is made
        project = Project(o.out or Path(f"studio-{file_name(o.env)}"), o.env)
    with project.locked():
        port = free_port(o.port)
        print(f"understudy studio: http://127.0.0.1:{port}/", flush=True)
        print(f"Everything is kept in {project.folder}. Ctrl-C ends the server.", flush=True)
        serve_studio(project, port, show=not o.no_browser)
