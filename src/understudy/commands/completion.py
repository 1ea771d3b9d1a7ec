"""The command understudy completion."""

from __future__ import annotations

import contextlib
import io
from typing import Annotated, Literal

import tyro
from tyro.conf import Positional, arg

from .parts.command_list import COMMANDS, options_class
from .parts.common import parse
from .parts.groups import command_options
from .parts.help_page import options_for_help


@command_options
class CompletionOptions:
    """Print a script with which your shell completes commands, options and their choices.

    In bash: `understudy completion bash > ~/.local/share/bash-completion/completions/understudy`. In fish:
    `understudy completion fish > ~/.config/fish/completions/understudy.fish`. In zsh, write it to a file named
    _understudy in a folder of $fpath. It holds from the next shell on.
    """

    shell: Annotated[Literal["bash", "zsh", "fish"], Positional, arg(metavar="bash|zsh|fish")]
    """your shell"""


def main(args: list[str]) -> None:
    o = parse(CompletionOptions, "completion", args)
    commands = {name: options_for_help(options_class(name)) for name in COMMANDS}
    script = io.StringIO()
    with contextlib.redirect_stdout(script), contextlib.suppress(SystemExit):
        tyro.extras.subcommand_cli_from_dict(
            commands, prog="understudy", args=["--tyro-print-completion", o.shell],
            config=(tyro.conf.FlagCreatePairsOff,))  # ty: ignore[no-matching-overload]  # markers are declared as types
    # Without these options bash would complete no files, and nearly every command takes one.
    print(script.getvalue().replace("\ncomplete -F ", "\ncomplete -o bashdefault -o default -F "), end="")
