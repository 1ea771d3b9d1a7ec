"""The command understudy studio."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..core import AtLeast, AtMost, UserError
from ..files import file_name
from .parts.common import parse
from .parts.groups import command_options
from .parts.options import Advice


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
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """address to listen on; 0.0.0.0 for all, which needs --token-file"""
    port: Annotated[int | None, AtLeast(0), AtMost(65535), Advice("leave it out for one that is free"),
                    arg(metavar="N")] = None
    """port of the server; by default 8765, or a free one"""
    token_file: Annotated[Path | None, arg(metavar="FILE")] = None
    """file with one token a line; the page asks for one of them"""
    tls_cert: Annotated[Path | None, arg(metavar="PEM")] = None
    """certificate, for https://"""
    tls_key: Annotated[Path | None, arg(metavar="PEM")] = None
    """private key of the certificate"""
    no_browser: bool = False
    """print the address and open no browser"""


def main(args: list[str]) -> None:
    o = parse(StudioOptions, "studio", args)
    try:
        import nicegui  # noqa: F401
    except ImportError:
        raise UserError("the studio needs the package nicegui", where="understudy studio",
                        hint="install it: pip install 'understudy[studio]'") from None
    from ..serve.access import read_tokens, readable_tokens_warning, refuse_strangers, tls_context
    from ..studio.browser.live import playable_env
    from ..studio.browser.project import PROJECT, Project
    from ..studio.browser.server import StudioAddress, free_port, serve_studio

    tokens = () if o.token_file is None else read_tokens(o.token_file)
    refuse_strangers(o.host, tokens, "give --token-file FILE, and the page asks for one of its tokens")
    has_tls = tls_context(o.tls_cert, o.tls_key) is not None
    if warning := readable_tokens_warning(o.host, tokens, has_tls):
        print(f"warning: {warning}", file=sys.stderr)

    if o.out is None and Path(o.env, PROJECT).exists():
        project = Project(Path(o.env))
    else:
        playable_env(o.env)  # before a folder is made
        project = Project(o.out or Path(f"studio-{file_name(o.env)}"), o.env)
    with project.locked():
        address = StudioAddress(o.host, free_port(o.host, o.port), o.tls_cert, o.tls_key)
        print(f"understudy studio: {address}", flush=True)
        if tokens:
            print(f"The page asks for a token of {o.token_file}.", flush=True)
        print(f"Everything is kept in {project.folder}. Ctrl-C ends the server.", flush=True)
        serve_studio(project, address, tokens, show=not o.no_browser)
